"""The server of model folders, as HTTP: ranges, refusals, clients that stall or go away."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kit import registry
from kit.errors import KitError
from kit.registry import Model, ModelFile
from kit.serve import HubServer, served
from tests.hub import big_file, serve_folder
from tests.hub.raw import ask, dial

CONTENT = bytes(range(256)) * 40
FILE = "/org/name/resolve/main/model.safetensors"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(CONTENT)
    (folder / "config.json").write_text("{}\n")
    (folder / "sub" / "ä b#?%.txt").write_text("deep")
    return folder


@pytest.fixture
def hub(folder):
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


@pytest.mark.parametrize("asked", ["10240-", "9-3", "-0", "-", "", "a-b", "0-1,5-6", "+1-2", "0x1-", "9" * 30 + "-"])
def test_a_range_that_cannot_be_had_is_refused_with_the_size(hub, asked):
    reply = ask(hub.url, FILE, Range=f"bytes={asked}")
    assert (reply.status, reply.body, reply.headers["Content-Range"]) == (416, b"", "bytes */10240")


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


def test_ids_are_the_ones_that_git_gives(hub, folder):
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
def test_only_what_is_listed_can_be_had(hub, folder, path):
    (folder.parent / "secret").write_text("secret")
    (folder / "unlisted").write_text("secret")
    reply = ask(hub.url, f"/org/name/resolve/main/{path}")
    assert reply.status == 404
    assert b"secret" not in reply.body


@pytest.mark.parametrize(
    "path", ["/", "/../secret", "//etc/passwd", "http://x/etc", "/org/name/", "/org", "/api/models/"]
)
def test_nothing_else_is_there_and_no_folder_is_listed(hub, path):
    assert ask(hub.url, path).status in (400, 404)


def test_a_symbolic_link_is_not_followed(hub, folder):
    secret = folder.parent / "secret"
    secret.write_bytes(CONTENT)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(secret)
    assert ask(hub.url, FILE).status == 500
    (folder / "sub").rename(folder.parent / "elsewhere")
    (folder / "sub").symlink_to(folder.parent / "elsewhere")
    assert ask(hub.url, "/org/name/resolve/main/sub/%C3%A4%20b%23%3F%25.txt").status == 500


@pytest.mark.parametrize("spoil", [lambda file: file.unlink(), lambda file: file.write_bytes(b"short"), os.truncate])
def test_a_file_that_changed_meanwhile_is_not_served(hub, folder, spoil):
    file = folder / "model.safetensors"
    spoil(file) if spoil is not os.truncate else (file.unlink(), os.mkfifo(file))
    assert ask(hub.url, FILE).status == 500
    assert ask(hub.url, "/org/name/resolve/main/config.json").status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_nothing_can_be_written(hub, method):
    reply = ask(hub.url, "/api/models/org/name/paths-info/main", method, body=b"x" * 500_000)
    assert (reply.status, reply.headers["Allow"], reply.headers["Connection"]) == (405, "GET, HEAD", "close")


def test_what_is_no_http_is_refused(hub):
    with dial(hub.url, "hello\r\n\r\n") as connection:
        assert connection.recv(1 << 16).split(b"\r\n")[0] in (b"", b"HTTP/1.1 400 Bad Request")


def test_a_connection_serves_many_requests_at_once_and_without_delay(hub):
    connection = http.client.HTTPConnection(f"127.0.0.1:{hub.port}", timeout=5)
    started = time.monotonic()
    for _ in range(50):
        connection.request("GET", "/api/models/org/name")
        assert json.loads(connection.getresponse().read())["id"] == "org/name"
    connection.close()
    assert time.monotonic() - started < 1  # Nagle's algorithm would take 2 s


def test_no_token_is_asked_for_and_none_is_used(hub):
    for headers in ({}, {"Authorization": "Bearer hf_whatever"}):
        assert ask(hub.url, FILE, **headers).status == 200
        assert ask(hub.url, "/api/models/org/name/auth-check", **headers).status == 200
        assert ask(hub.url, "/api/whoami-v2", **headers).status == 401


def test_who_watches_sees_requests_and_no_secrets(folder):
    seen = []
    with HubServer([serve_folder(folder, "org/name")], on_request=seen.append) as hub:
        ask(hub.url, f"{FILE}?token=hf_secret", Range="bytes=0-9", Authorization="Bearer hf_secret")
        ask(hub.url, FILE, "POST")
    assert [(one.method, one.path, one.status, one.sent) for one in seen] == [
        ("GET", FILE, 206, 10),
        ("POST", FILE, 405, 0),
    ]
    assert "hf_secret" not in repr(seen)


def test_thirty_clients_at_once_all_get_the_same_bytes(tmp_path):
    big_file(tmp_path / "model.safetensors", 8_000_000)
    expected = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    with HubServer([serve_folder(tmp_path, "org/name")]) as hub, ThreadPoolExecutor(30) as room:
        digests = room.map(lambda _: hashlib.sha256(ask(hub.url, FILE).body).hexdigest(), range(30))
        assert set(digests) == {expected}


def test_a_client_that_takes_nothing_holds_up_nobody_and_is_let_go(tmp_path):
    big_file(tmp_path / "model.safetensors", 50_000_000)
    seen = []
    with HubServer([serve_folder(tmp_path, "org/name")], on_request=seen.append, timeout=0.5) as hub:
        stalled = [dial(hub.url, f"GET {FILE} HTTP/1.1\r\n\r\n") for _ in range(20)]
        idle = dial(hub.url)
        half_asked = dial(hub.url, "GET /api")
        assert len(ask(hub.url, FILE).body) == 50_000_000
        assert idle.recv(1) == half_asked.recv(1) == b""
        wait_until(lambda: len(seen) == 21)
        assert all(one.sent < 50_000_000 for one in seen if one is not seen[0])
        for connection in (*stalled, idle, half_asked):
            connection.close()


def test_a_client_that_goes_away_leaves_no_trace(tmp_path, capfd):
    big_file(tmp_path / "model.safetensors", 50_000_000)
    seen = []
    with HubServer([serve_folder(tmp_path, "org/name")], on_request=seen.append) as hub:
        for said in (
            f"GET {FILE} HTTP/1.1\r\n\r\n",
            "GET /a",
            f"POST {FILE} HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
            "",
        ):
            with dial(hub.url, said) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        wait_until(lambda: [one.method for one in seen if one.method == "GET"])
        assert ask(hub.url, "/api/models/org/name").status == 200
    assert capfd.readouterr() == ("", "")


def test_closing_cuts_transfers_and_frees_the_port(tmp_path):
    big_file(tmp_path / "model.safetensors", 50_000_000)
    hub = HubServer([serve_folder(tmp_path, "org/name")])
    with dial(hub.url, f"GET {FILE} HTTP/1.1\r\n\r\n") as connection:
        connection.recv(1)
        started = time.monotonic()
        hub.close()
        hub.close()
        assert time.monotonic() - started < 1
        HubServer([], port=hub.port).close()


def test_a_port_that_is_taken_is_said(hub):
    with pytest.raises(KitError, match=f"cannot listen on 127.0.0.1:{hub.port}"):
        HubServer([], port=hub.port)


def test_a_model_of_the_registry_is_served_where_it_is_whole(models):
    file = ModelFile("config.json", 3, hashlib.sha256(b"{}\n").hexdigest())
    model = Model("x", "X", "base", "MIT", "org/x", "a" * 40, True, 128, (file,), None)
    with pytest.raises(KitError, match="not whole"):
        served(model)
    model.folder.mkdir()
    (model.folder / "config.json").write_text("{}\n")
    with HubServer([served(model)]) as hub:
        assert ask(hub.url, f"/org/x/resolve/{'a' * 40}/config.json").body == b"{}\n"
    with pytest.raises(KitError, match="does not come from the Hub"):
        served(registry.find("starter"))


def wait_until(true) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
