"""The mirror's HTTP server: uvicorn on a thread of its own, and what a room asks of it beyond that.

Who sends or takes nothing for a minute is let go, files go out of handles that were checked, whoever watches is told.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import resource
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, Self

import anyio
import h11
import uvicorn
from starlette.responses import FileResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from kit.errors import KitError

# Seconds in which a client must send or take something. An idle connection is closed too; clients open another.
TIMEOUT = 60
# Seconds in which who connects is to ask for something, where others have no room otherwise.
GRACE = 1.0
# Clients that may wait to be accepted: a room of 30, each with 8 downloads at once.
BACKLOG = 512
# Open files to ask for: 5,000 clients with a file each. macOS refuses more, whatever its hard limit says.
OPEN_FILES = 10_240
# Bytes read and sent at once: 0.8 of nginx's rate, where 64 KiB, starlette's own, reach 0.24 (docs/measurements.md).
PIECE = 1 << 19


@dataclass(frozen=True)
class Exchange:
    """What became of a request: for who watches. Neither query nor headers, which may hold secrets."""

    client: str
    method: str
    path: str  # as sent: percent-encoded
    status: int
    sent: int  # bytes of the body


class Server:
    """Serves `app` from the moment it is made, on a thread of its own, until close(). Raises KitError where it cannot.

    `on_request` is called after each reply, whole or not, on one thread of its own: it may take its time.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str = "127.0.0.1",
        port: int = 0,
        on_request: Callable[[Exchange], None] = lambda exchange: None,
        timeout: float = TIMEOUT,
    ) -> None:
        # Said to be TCP, so that asyncio switches Nagle's algorithm off: with it each small answer takes 44 ms.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen()
        except OSError as error:
            raise KitError(f"cannot listen on {host}:{port}: {error.strerror or error}.", "try another port") from error
        self.host, self.port = host, int(listener.getsockname()[1])
        self._watcher = ThreadPoolExecutor(1)
        config = uvicorn.Config(
            _watched(app, lambda exchange: self._watcher.submit(on_request, exchange)),
            http=_Connection,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="critical",
            proxy_headers=False,  # a client could say that it is another
            server_header=False,
            headers=[("Server", "base-model-kit")],
            timeout_keep_alive=timeout,  # type: ignore[arg-type]
            timeout_graceful_shutdown=1,
            backlog=BACKLOG,
            # A client takes two files, its connection and what it is sent. Whom that leaves out is told so (503).
            limit_concurrency=max(1, (_open_files() - 32) // 2),
        )
        self._server = _Uvicorn(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def close(self) -> None:
        """Stops listening and cuts the connections that are open."""
        self._server.should_exit = True
        self._thread.join()
        self._watcher.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Uvicorn(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Where no more files can be opened, asyncio accepts again after a second, and need not say so each time."""
        await anyio.to_thread.run_sync(int)  # anyio imports a part of itself at its first use, which is opening files
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, fault: None if "socket" in fault else loop.default_exception_handler(fault)
        )
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """At once: uvicorn would wait for transfers to end."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)
        await super().shutdown(sockets)


class _Connection(H11Protocol):
    """uvicorn waits for ever for the end of a request, and for who takes nothing of the answer."""

    _stalled: asyncio.TimerHandle | None = None
    _since = 0.0  # when it was last asked for nothing

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_a_request()
        self._make_room()
        if self._is_full():
            # Where no file is left, no other connection is made at which room could be.
            self.loop.call_later(GRACE, self._make_room)

    def _is_full(self) -> bool:
        return len(self.connections) >= (self.limit_concurrency or math.inf) - 1

    def _make_room(self) -> None:
        """Who asks for nothing, or for ever, leaves when others come: half a request counts as a whole one does."""
        if not self._is_full():
            return
        # Of many that come at once each is heard first.
        until = self.loop.time() - GRACE
        known = [each for each in self.connections if isinstance(each, _Connection)]
        silent = [each for each in known if each._since <= until and (not each.cycle or each.cycle.response_complete)]
        if silent:
            min(silent, key=lambda each: each._since).transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait_for_a_request()

    def _wait_for_a_request(self) -> None:
        self._since = self.loop.time()
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._let_go_unless_below(math.inf)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled:
            self._stalled.cancel()

    def _let_go_unless_below(self, untaken: float) -> None:
        """Lets go where none of these bytes has been taken since; else looks again when the time has passed."""
        now = self.transport.get_write_buffer_size()
        if now < untaken:
            self._stalled = self.loop.call_later(self.timeout_keep_alive, self._let_go_unless_below, now)
        else:
            self.transport.abort()


def _open_files() -> int:
    """How many files this process may have open, now that it has asked for more: 256 is a Mac's usual."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return OPEN_FILES
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _watched(app: ASGIApp, on_request: Callable[[Exchange], object]) -> ASGIApp:
    async def watch(scope: Scope, receive: Receive, send: Send) -> None:
        status = sent = 0

        async def count(message: Message) -> None:
            nonlocal status, sent
            await send(message)
            status = message.get("status", status)
            sent += len(message.get("body", b"")) if scope["method"] != "HEAD" else 0

        try:
            await app(scope, receive, count)
        except Exception as error:  # uvicorn ends the connection
            # Of a disk that fails and a file that is cut short meanwhile, each client hears; a fault of ours is news.
            if not isinstance(error, OSError | h11.LocalProtocolError):
                logging.getLogger(__name__).exception("a fault of the mirror")
            raise
        finally:
            client, _ = scope["client"] or ("one that has gone", 0)
            on_request(Exchange(client, scope["method"], scope["raw_path"].decode("ascii"), status, sent))

    return watch


class FilePart(FileResponse):
    """An open file, or the part of it that is asked for. Closes it."""

    chunk_size = PIECE

    def __init__(self, file: BinaryIO, headers: Mapping[str, str], media_type: str) -> None:
        # No path, so that nothing but the handle can be sent.
        super().__init__("", headers=headers, media_type=media_type, stat_result=os.fstat(file.fileno()))
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":  # a range is of a GET alone (RFC 9110, 14.2)
            scope["headers"] = [header for header in scope["headers"] if header[0] != b"range"]
        with self._file:
            await super().__call__(scope, receive, send)

    @asynccontextmanager
    async def _open_file(self) -> AsyncIterator[anyio.AsyncFile[bytes]]:
        yield anyio.wrap_file(self._file)
