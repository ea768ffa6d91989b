"""The server as HTTP: many clients, stalled clients, clients that go away; and nothing can be written."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kit.errors import KitError
from kit.offline import http_server
from tests.hub import HubServer, big_file, serve_folder
from tests.hub.raw import ask, dial, wait_until

SIZE = 50_000_000
FILE = "/org/name/resolve/main/model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    big_file(folder / "model.safetensors", SIZE)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return serve_folder(folder, "org/name")


@pytest.fixture
def hub(model):
    with HubServer([model]) as hub:
        yield hub


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_nothing_can_be_written(hub, method):
    reply = ask(hub.url, "/api/models/org/name/paths-info/main", method, body=b"x" * 500_000)
    assert (reply.status, sorted(reply.headers["Allow"].split(", "))) == (405, ["GET", "HEAD"])


def test_a_refused_body_is_let_through_to_its_end_so_that_the_answer_arrives(hub):
    with dial(hub.url, f"POST {FILE} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123") as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
        for piece in (b"456", b"789"):
            time.sleep(0.05)  # a closed connection would be reset by the first, and refuse the second
            connection.sendall(piece)


def test_what_is_no_http_is_refused(hub):
    with dial(hub.url, "how do you do\r\n\r\n") as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_a_connection_serves_many_requests_at_once_and_without_delay(hub):
    connection = http.client.HTTPConnection(f"127.0.0.1:{hub.port}", timeout=5)
    started = time.monotonic()
    for _ in range(50):
        connection.request("GET", "/api/models/org/name")
        assert json.loads(connection.getresponse().read())["id"] == "org/name"
    connection.close()
    assert time.monotonic() - started < 1.8  # Nagle's algorithm would take 2 s


def test_who_watches_sees_requests_and_no_secrets(model):
    seen = []
    with HubServer([model], on_request=seen.append) as hub:
        ask(hub.url, f"{FILE}?token=hf_secret", Range="bytes=0-9", Authorization="Bearer hf_secret")
        wait_until(lambda: seen)
        ask(hub.url, FILE, "POST", X_Forwarded_For="192.0.2.1")
        wait_until(lambda: len(seen) == 2)
    assert [(one.client, one.method, one.path, one.status) for one in seen] == [
        ("127.0.0.1", "GET", FILE, 206),
        ("127.0.0.1", "POST", FILE, 405),
    ]
    assert seen[0].sent == 10
    assert "hf_secret" not in repr(seen)


def test_thirty_clients_at_once_all_get_the_same_bytes(hub, folder):
    part = 10_000_000
    with ThreadPoolExecutor(30) as room, (folder / "model.safetensors").open("rb") as file:
        digests = room.map(
            lambda _: hashlib.sha256(ask(hub.url, FILE, Range=f"bytes=0-{part - 1}").body).hexdigest(), range(30)
        )
        assert set(digests) == {hashlib.sha256(file.read(part)).hexdigest()}


def test_a_client_that_takes_nothing_holds_up_nobody_and_is_let_go(model):
    seen = []
    with HubServer([model], on_request=seen.append, timeout=0.5) as hub:
        stalled = [dial(hub.url, f"GET {FILE} HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(20)]
        idle = dial(hub.url)
        half_asked = dial(hub.url, "GET /api")
        assert len(ask(hub.url, FILE).body) == SIZE
        assert idle.recv(1) == half_asked.recv(1) == b""
        wait_until(lambda: len(seen) == 21)
        assert all(one.sent < SIZE for one in seen if one is not seen[0])
        for connection in (*stalled, idle, half_asked):
            connection.close()


def test_half_sent_requests_and_oversized_ones_hold_up_nobody(hub):
    half = [dial(hub.url, f"GET {FILE} HTTP/1.1\r\nHost: x\r\nX-Slow: ") for _ in range(60)]
    large = dial(hub.url, "GET / HTTP/1.1\r\nHost: x\r\nX-Large: " + "x" * 200_000)
    assert large.recv(1 << 16).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert ask(hub.url, FILE, Range="bytes=0-9").status == 206
    for connection in (*half, large):
        connection.close()


def test_a_file_that_is_cut_short_while_it_is_sent_ends_the_connection(tmp_path, capfd):
    big_file(tmp_path / "model.safetensors", SIZE)
    with HubServer([serve_folder(tmp_path, "org/name")]) as hub:
        with dial(hub.url, f"GET {FILE} HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
            got = len(connection.recv(1))
            os.truncate(tmp_path / "model.safetensors", 20_000_000)
            while piece := connection.recv(1 << 20):
                got += len(piece)
        assert got < SIZE
        assert ask(hub.url, "/api/models/org/name").status == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_client_that_goes_away_leaves_no_trace(model, capfd):
    seen = []
    with HubServer([model], on_request=seen.append) as hub:
        for said in (
            f"GET {FILE} HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET /a",
            f"POST {FILE} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
            "",
        ):
            with dial(hub.url, said) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        wait_until(lambda: [one.method for one in seen if one.method == "GET"])
        assert ask(hub.url, "/api/models/org/name").status == 200
    assert capfd.readouterr() == ("", "")


def test_closing_cuts_transfers_and_frees_the_port(model):
    hub = HubServer([model])
    with dial(hub.url, f"GET {FILE} HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        got = len(connection.recv(1))
        started = time.monotonic()
        hub.close()
        hub.close()
        while piece := connection.recv(1 << 20):
            got += len(piece)
        assert got < SIZE
        assert time.monotonic() - started < 1
        HubServer([], port=hub.port).close()


def test_a_port_that_is_taken_is_said(hub):
    with pytest.raises(KitError, match=f"cannot listen on 127.0.0.1:{hub.port}"):
        HubServer([], port=hub.port)


def test_half_sent_requests_leave_when_others_come(model, monkeypatch):
    monkeypatch.setattr(http_server, "_open_files", lambda: 52)  # ten clients
    with HubServer([model]) as hub:
        half = [dial(hub.url, f"GET {FILE} HTTP/1.1\r\nHost: x\r\nX-Slow: ") for _ in range(40)]
        wait_until(lambda: ask(hub.url, "/api/models/org/name").status == 200)
        for connection in half:
            connection.close()
