"""A read-only HTTP server for large files: a thread a connection, GET and HEAD only.

It knows HTTP and nothing of what it serves: a subclass turns each Request into an Answer. http.server's own server
looks up its host name at start (seconds on some networks); this one asks no one.
"""

from __future__ import annotations

import re
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, BinaryIO, Protocol, Self

from kit.errors import KitError

# Seconds in which a client must send or take something. An idle connection is closed too; clients open another.
TIMEOUT = 60.0
# Clients that may wait to be accepted: a room of 30, each with 8 downloads at once (socketserver's own 5 refuses them).
BACKLOG = 512
# What is read of a body that was refused: closing on unread bytes would reset the connection before the answer arrives.
DRAIN_SECONDS, DRAIN_BYTES = 1.0, 1 << 20


@dataclass(frozen=True)
class Exchange:
    """What became of a request: for who watches. Neither query nor headers, which may hold secrets."""

    client: str
    method: str
    path: str
    status: int
    sent: int  # bytes of the body


class Server:
    """Listens from the moment it is made, on threads of its own, until close(). Raises KitError where it cannot."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        on_request: Callable[[Exchange], None] = lambda exchange: None,
        timeout: float = TIMEOUT,
    ) -> None:
        self.timeout = timeout
        self._on_request = on_request
        try:
            self._listener = _Listener((host, port), self)
        except OSError as error:
            raise KitError(f"cannot listen on {host}:{port}: {error.strerror or error}.", "try another port") from error
        self.host, self.port = host, int(self._listener.server_address[1])
        # How often the loop looks whether it is to end: what close() waits for.
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def answer(self, request: Request) -> Answer:
        """What to reply to a GET or a HEAD. Called from many threads at once."""
        raise NotImplementedError

    def finished(self, request: Request, status: int, sent: int) -> None:
        """Called after each reply, whole or not, on the thread of its connection."""
        self._on_request(Exchange(request.client, request.method, request.path, status, sent))

    def close(self) -> None:
        """Stops listening and cuts the connections that are open."""
        self._listener.shutdown()
        self._listener.server_close()
        self._listener.cut_connections()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Listener(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = BACKLOG

    def __init__(self, address: tuple[str, int], owner: Server) -> None:
        self.owner = owner
        self._open: set[socket.socket] = set()
        super().__init__(address, _Connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def cut_connections(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):  # it ended on its own
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to report; a fault of the server's own is."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # with it each small answer takes 40 ms
    server: _Listener

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.owner.timeout)

    def do_GET(self) -> None:
        self._reply(self.server.owner.answer)

    do_HEAD = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server refuses by itself: every other method (its 501), and what is no HTTP."""
        self.close_connection = True
        self.request_version = self.protocol_version  # what could not be read counts as HTTP/0.9, which has no status
        if code == HTTPStatus.NOT_IMPLEMENTED:
            self._reply(lambda request: Answer(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET, HEAD"}))
        else:
            self._send_head(Answer(code))

    def handle_expect_100(self) -> bool:
        return True  # no body is welcome: the answer comes at once

    def _reply(self, answer_to: Callable[[Request], Answer]) -> None:
        path, _, query = self.path.partition("?")
        headers = {name.lower(): str(value) for name, value in self.headers.items()}
        request = Request(self.command, path, query, headers, self.client_address[0])
        has_body = self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers
        self.close_connection |= has_body
        answer, sent = answer_to(request), 0
        try:
            self._send_head(answer)
            if self.command != "HEAD":
                sent = answer.body.send(self.connection)
                self.close_connection |= sent < answer.body.size
        finally:
            answer.body.close()
            self.server.owner.finished(request, answer.status, sent)
        if has_body:
            self._drain()

    def _send_head(self, answer: Answer) -> None:
        headers = {"Date": self.date_time_string(), "Server": "base-model-kit", **answer.headers}
        headers["Content-Length"] = str(answer.body.size)
        if self.close_connection:
            headers["Connection"] = "close"
        self.send_response_only(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _drain(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(DRAIN_SECONDS)
            left = DRAIN_BYTES
            while left > 0 and (piece := self.rfile.read(min(left, 1 << 16))):
                left -= len(piece)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: who wants to know passes on_request."""


# --- What a server is asked, and what it replies ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Request:
    """What a client asks. `path` and `query` as sent: still percent-encoded, and anything at all may be in them."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]  # names in small letters
    client: str


class Body(Protocol):
    """What follows the headers: `size` bytes."""

    @property
    def size(self) -> int: ...

    def send(self, connection: socket.socket) -> int:
        """The bytes that the client took. Fewer than `size`: the connection ends here."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Text:
    """A small body that is in memory."""

    data: bytes = b""

    @property
    def size(self) -> int:
        return len(self.data)

    def send(self, connection: socket.socket) -> int:
        try:
            connection.sendall(self.data)
        except OSError:
            return 0
        return len(self.data)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class FilePart:
    """`size` bytes of an open file from `start` on. The kernel copies them: 1.5 GB/s on loopback."""

    file: BinaryIO
    start: int
    size: int

    def send(self, connection: socket.socket) -> int:
        if not self.size:
            return 0
        self.file.seek(self.start)
        with suppress(OSError):  # the client went away, or took nothing for too long
            connection.sendfile(self.file, self.start, self.size)
        # Whatever ended it, sendfile leaves the file's position behind the last byte sent.
        return self.file.tell() - self.start

    def close(self) -> None:
        self.file.close()


@dataclass(frozen=True)
class Answer:
    """A status, headers (Content-Length, Date and Server are added), a body. To a HEAD, the body is not sent."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body = field(default_factory=Text)


# --- A file, or the part of it that a client asks for (RFC 9110, 14) --------------------------------------------------


def part_of(
    request: Request, size: int, etag: str, opened: Callable[[], BinaryIO | None], more: Mapping[str, str]
) -> Answer | None:
    """The answer to a GET or HEAD for a file of `size` bytes, with `more` headers. None where it cannot be opened."""
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "ETag": etag, **more}
    asked = _asked_range(request, etag)
    part = range(size) if asked is None else _part(asked, size)
    if asked is not None and not part:
        return Answer(416, {"Content-Range": f"bytes */{size}", **more})
    content = opened()
    if content is None:
        return None
    if asked is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
    return Answer(200 if asked is None else 206, headers, FilePart(content, part.start, len(part)))


def _asked_range(request: Request, etag: str) -> str | None:
    """What stands behind `Range: bytes=`, where it counts (RFC 9110).

    Not for a HEAD, nor with another ETag in If-Range: that asks for the whole of the file as it is now.
    """
    unit, _, asked = request.headers.get("range", "").partition("=")
    if request.method == "HEAD" or unit != "bytes" or request.headers.get("if-range", etag) != etag:
        return None
    return asked


def _part(asked: str, size: int) -> range:
    """The bytes of `first-last`, `first-` or `-count`; none for what cannot be had, several ranges among it."""
    match = re.fullmatch(r"([0-9]{0,19})-([0-9]{0,19})", asked)
    if match is None or asked == "-":
        return range(0)
    first, last = match.groups()
    if not first:
        return range(max(0, size - int(last)), size)
    return range(int(first), min(int(last) + 1, size) if last else size)
