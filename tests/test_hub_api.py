"""What the server says of its models: ranges, ids, and that only what is listed can be had."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess

import pytest

from kit.offline import hub_endpoints
from tests.hub import HubServer, serve_folder
from tests.hub.raw import ask

CONTENT = bytes(range(256)) * 40
FILE = "/org/name/resolve/main/model.safetensors"


def make_folder(folder):
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(CONTENT)
    (folder / "config.json").write_text("{}\n")
    (folder / "sub" / "ä b#?%.txt").write_text("deep")
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with HubServer([serve_folder(make_folder(tmp_path_factory.mktemp("hub") / "model"), "org/name")]) as hub:
        yield hub


@pytest.fixture
def folder(tmp_path):
    """One that a test may alter; altered_hub serves it."""
    return make_folder(tmp_path / "model")


@pytest.fixture
def altered_hub(folder):
    with HubServer([serve_folder(folder, "org/name")]) as hub:
        yield hub


@pytest.mark.parametrize(
    ("asked", "first", "stop"),
    [
        ("0-9", 0, 10),
        ("10-", 10, 10240),
        ("-5", 10235, 10240),
        ("0-", 0, 10240),
        ("5-99999", 5, 10240),
        ("-99999", 0, 10240),
    ],
)
def test_a_range_gives_these_bytes_and_no_others(hub, asked, first, stop):
    reply = ask(hub.url, FILE, Range=f"bytes={asked}")
    assert (reply.status, reply.body) == (206, CONTENT[first:stop])
    assert reply.headers["Content-Range"] == f"bytes {first}-{stop - 1}/10240"


@pytest.mark.parametrize("asked", ["10240-", "-0", "9" * 30 + "-"])
def test_a_range_that_cannot_be_had_is_refused_with_the_size(hub, asked):
    reply = ask(hub.url, FILE, Range=f"bytes={asked}")
    assert (reply.status, reply.body, reply.headers["Content-Range"]) == (416, b"", "bytes */10240")


@pytest.mark.parametrize("asked", ["9-3", "-", "", "a-b", "0x1-", "9" * 5000 + "-"])
def test_what_is_no_range_is_refused(hub, asked):
    assert ask(hub.url, FILE, Range=f"bytes={asked}").status == 400


def test_a_resume_of_another_version_gets_the_whole_file(hub):
    etag = ask(hub.url, FILE, "HEAD").headers["ETag"]
    assert ask(hub.url, FILE, Range="bytes=5-", If_Range=etag).body == CONTENT[5:]
    assert ask(hub.url, FILE, Range="bytes=5-", If_Range='"another"').body == CONTENT


def test_a_head_says_what_a_get_would_and_sends_no_body(hub):
    head, get = ask(hub.url, FILE, "HEAD", Range="bytes=0-9"), ask(hub.url, FILE)
    del head.headers["Date"], get.headers["Date"]
    assert (head.status, head.headers.items(), head.body) == (200, get.headers.items(), b"")
    assert head.headers["Content-Length"] == head.headers["X-Linked-Size"] == "10240"
    assert head.headers["X-Linked-Etag"] == head.headers["ETag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'


def test_ids_are_the_ones_that_git_gives(hub):
    def git(content: bytes) -> str:
        command = ["git", "hash-object", "--stdin"]
        return subprocess.run(command, input=content, capture_output=True, check=True).stdout.decode().strip()

    sha256 = hashlib.sha256(CONTENT).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize 10240\n".encode()
    tree = {entry["path"]: entry for entry in json.loads(ask(hub.url, "/api/models/org/name/tree/main").body)}
    assert tree["config.json"]["oid"] == git(b"{}\n")
    assert ask(hub.url, "/org/name/resolve/main/config.json").headers["ETag"] == f'"{git(b"{}" + bytes([10]))}"'
    assert tree["model.safetensors"]["oid"] == git(pointer)
    assert tree["model.safetensors"]["lfs"] == {"oid": sha256, "size": 10240, "pointerSize": len(pointer)}
    assert tree["sub"]["type"] == "directory"


def test_any_name_can_be_had_under_its_quoted_path(hub):
    assert ask(hub.url, "/org/name/resolve/main/sub/%C3%A4%20b%23%3F%25.txt?download=true").body == b"deep"


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "sub/../../secret",
        "sub/../config.json",
        "%2e%2e/secret",
        "..%2fsecret",
        "%2e%2e%2fsecret",
        "..%5csecret",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "config.json%00",
        "config.json/",
        "./config.json",
        "sub",
        "sub/",
        "",
        "unlisted",
        "%ff%fe",
    ],
)
def test_only_what_is_listed_can_be_had(altered_hub, folder, path):
    (folder.parent / "secret").write_text("secret")
    (folder / "unlisted").write_text("secret")
    reply = ask(altered_hub.url, f"/org/name/resolve/main/{path}")
    assert reply.status == 404
    assert b"secret" not in reply.body


@pytest.mark.parametrize(
    "path", ["/", "/../secret", "//etc/passwd", "http://x/etc", "/org/name/", "/org", "/api/models/"]
)
def test_nothing_else_is_there_and_no_folder_is_listed(hub, path):
    assert ask(hub.url, path).status in (400, 404)


def test_a_symbolic_link_is_not_followed(altered_hub, folder):
    secret = folder.parent / "secret"
    secret.write_bytes(CONTENT)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(secret)
    assert ask(altered_hub.url, FILE).status == 500
    (folder / "sub").rename(folder.parent / "elsewhere")
    (folder / "sub").symlink_to(folder.parent / "elsewhere")
    assert ask(altered_hub.url, "/org/name/resolve/main/sub/%C3%A4%20b%23%3F%25.txt").status == 500


@pytest.mark.parametrize("spoil", [lambda file: file.unlink(), lambda file: file.write_bytes(b"short"), os.truncate])
def test_a_file_that_changed_meanwhile_is_not_served(altered_hub, folder, spoil):
    file = folder / "model.safetensors"
    spoil(file) if spoil is not os.truncate else (file.unlink(), os.mkfifo(file))
    assert ask(altered_hub.url, FILE).status == 500
    assert ask(altered_hub.url, "/org/name/resolve/main/config.json").status == 200


def test_out_of_open_files_is_no_changed_file(altered_hub, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(hub_endpoints.Path, "open", refuse)
        assert ask(altered_hub.url, FILE).status == 503
    assert ask(altered_hub.url, FILE).status == 200


def test_no_token_is_asked_for_and_none_is_used(hub):
    for headers in ({}, {"Authorization": "Bearer hf_whatever"}):
        assert ask(hub.url, FILE, **headers).status == 200
        assert ask(hub.url, "/api/models/org/name/auth-check", **headers).status == 200
        assert ask(hub.url, "/api/whoami-v2", **headers).status == 401
