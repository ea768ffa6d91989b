"""HTTP without a client's good manners: what a server really sends. And the real client, past the machine's proxies."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


def ask(url: str, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Reply:
    """One request on a connection of its own; the path goes out as it is. ask(url, "/x", Range="bytes=0-9")."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        reply = connection.getresponse()
        return Reply(reply.status, reply.headers, reply.read())
    finally:
        connection.close()


def dial(url: str, said: str = "") -> socket.socket:
    """A bare connection, with something said on it."""
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10)
    connection.sendall(said.encode("latin-1"))
    return connection


def wait_until(true: Callable[[], object]) -> None:
    """For what a server does on its own thread, a moment after its client has the answer."""
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def past_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """For huggingface_hub in this process: its one client reads the environment when it is made."""
    from huggingface_hub.utils import close_session

    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    close_session()
