"""`make sbom` and `make outdated`: what is inside, and what it could move to."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from kit.environment import lock as locks
from kit.environment import sbom
from kit.paths import ROOT
from tests.conftest import Done, run_command


def test_it_is_valid_by_the_official_schema_and_the_same_each_time(script):
    first, second = script("sbom"), script("sbom")
    assert first.status == 0, first.err
    assert first.out == second.out
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(first.out) is None


def test_each_package_of_the_lock_stands_in_it_with_its_hashes_and_what_it_needs():
    document = sbom.of_environment()
    found = {component["name"]: component for component in document["components"]}
    for pin in locks.pins(locks.this()):
        assert found[pin.name]["version"] == pin.version
        assert {each["content"] for each in found[pin.name]["hashes"]} == set(pin.sha256)
    assert "pytest" not in found
    needs = {each["ref"]: each["dependsOn"] for each in document["dependencies"]}
    assert set(needs) == {"base-model-kit", *(component["purl"] for component in found.values())}
    assert found["tokenizers"]["purl"] in needs[found["transformers"]["purl"]]
    reached, waiting = set(), ["base-model-kit"]
    while waiting:
        ref = waiting.pop()
        if ref not in reached:
            reached.add(ref)
            waiting += needs[ref]
    assert reached == set(needs)


def test_no_path_and_no_host_stands_in_it():
    text = json.dumps(sbom.of_environment())
    assert str(locks.ROOT) not in text
    assert "site-packages" not in text
    assert "://" not in text


def said(**headers: str | list[str]) -> Message:
    message = Message()
    for name, values in headers.items():
        for value in [values] if isinstance(values, str) else values:
            message[name.replace("_", "-")] = value
    return message


def test_a_licence_is_an_expression_else_a_classifier_else_a_file_to_see():
    classifiers = ["License :: OSI Approved :: MIT License", "Topic :: Software Development"]
    everything = {"Classifier": classifiers, "License_File": "LICENSE", "License": "a text"}
    assert sbom.licences(said(License_Expression="MIT OR Apache-2.0", **everything)) == [
        {"expression": "MIT OR Apache-2.0"}
    ]
    assert sbom.licences(said(**everything)) == [{"license": {"name": "MIT License"}}]
    assert sbom.licences(said(License_File="COPYING")) == [{"license": {"name": "see file COPYING"}}]
    assert sbom.licences(said(License="3-Clause BSD License")) == [{"license": {"name": "3-Clause BSD License"}}]
    assert sbom.licences(said(License="line\nline")) == [{"license": {"name": "not stated"}}]


def test_without_an_index_outdated_says_what_to_type(make):
    env = {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "UV_NO_CACHE": "1", "UV_HTTP_RETRIES": "0"}
    done = make("outdated", env=env | dict.fromkeys(("UV_FIND_LINKS", "PIP_FIND_LINKS"), ""))
    assert done.status == 2
    assert done.out == ""
    assert "error: the package index was not asked" in done.err
    assert "then: make outdated" in done.err


# --- make audit -------------------------------------------------------------------------------------------------------


class Advisories(BaseHTTPRequestHandler):
    """The public service, as https://google.github.io/osv.dev/post-v1-query/ has it, with one thing to say."""

    against: ClassVar[str] = ""
    asked: ClassVar[list[tuple[str, str]]] = []

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = asked["package"]["name"]
        self.asked.append((name, asked["version"]))
        ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "9.9"}]}]
        affected = [{"package": {"name": name, "ecosystem": "PyPI"}, "ranges": ranges}]
        found = [{"id": "GHSA-1", "aliases": ["CVE-1"], "summary": "bad", "affected": affected}]
        body = json.dumps({"vulns": found} if name == self.against else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def advisories(monkeypatch) -> Iterator[type[Advisories]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PIP_AUDIT_OSV_URL", f"http://127.0.0.1:{server.server_port}/")
        Advisories.asked.clear()
        yield Advisories
        server.shutdown()


def audit() -> Done:
    return run_command(["sh", "env/audit.sh"])


def test_an_audit_asks_about_every_package_of_every_lock(advisories, monkeypatch):
    monkeypatch.setattr(advisories, "against", "")
    done = audit()
    assert (done.status, done.out) == (0, "")
    assert "nothing is known against them" in done.err
    pinned = {pin for lock in (ROOT / "env" / "lock").glob("*.txt") for pin in locks.read(f"env/lock/{lock.name}")}
    assert set(advisories.asked) == {(pin.name, pin.version.partition("+")[0]) for pin in pinned}


def test_what_is_known_against_one_is_listed_and_the_status_says_so(advisories, monkeypatch):
    monkeypatch.setattr(advisories, "against", "torch")
    done = audit()
    assert done.status == 1
    assert re.search(r"^torch +\S+ +CVE-1 +9.9$", done.out, re.MULTILINE)


def test_without_a_network_an_audit_says_that_it_asked_nobody(monkeypatch):
    monkeypatch.setenv("PIP_AUDIT_OSV_URL", "http://127.0.0.1:9/")
    done = audit()
    assert (done.status, done.out) == (1, "")
    assert "error: the advisories could not be asked" in done.err
    assert "next: check the network" in done.err
