"""`make sbom` and `make outdated`: what is inside, and what it could move to."""

from __future__ import annotations

import json
from email.message import Message

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from kit.environment import lock as locks
from kit.environment import sbom


def test_it_is_valid_by_the_official_schema_and_the_same_each_time(script):
    first, second = script("sbom"), script("sbom")
    assert first.status == 0, first.err
    assert first.out == second.out
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(first.out) is None


def test_each_package_of_the_lock_stands_in_it_with_its_hashes_and_what_it_needs():
    document = sbom.document()
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
    text = json.dumps(sbom.document())
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
