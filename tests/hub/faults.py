"""What can go wrong between a Hub and its client: one small class each, and what spoils an answer."""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from dataclasses import dataclass
from email.utils import formatdate
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

from starlette.types import Message, Receive, Send


@dataclass(frozen=True)
class Cut:
    """Ends the connection after that many bytes of the body; with `reset`, by a TCP reset (RST) and not a FIN."""

    after: int
    reset: bool = False


@dataclass(frozen=True)
class Stall:
    """Sends that many bytes of the body and then nothing, until the order is stopped or the hub closed."""

    after: int = 0


@dataclass(frozen=True)
class WrongBytes:
    """Another body of the same size: every bit of it is turned."""


@dataclass(frozen=True)
class IgnoreRange:
    """200 and the whole body, whatever range was asked for."""


@dataclass(frozen=True)
class Status:
    """An error in place of the answer. `retry_after` in seconds; `error_code` and `message` as the Hub's headers."""

    status: int
    retry_after: int | None = None
    error_code: str = ""
    message: str = "told to fail"


@dataclass(frozen=True)
class Redirect:
    """302 to the same path on `host` (the url of another hub), as the Hub sends clients to its file store."""

    host: str


@dataclass(frozen=True)
class OtherDate:
    """A Date header that is `skew` seconds ahead of the time (negative: behind)."""

    skew: float


@dataclass(frozen=True)
class Portal:
    """200 and a page of HTML: what a hotel's network answers before one has signed in."""

    page: str = "<!doctype html><html><title>Welcome</title><body>Please accept the terms of use.</body></html>"


@dataclass(frozen=True)
class Delay:
    """Waits that many seconds before the answer."""

    seconds: float


Fault = Cut | Stall | WrongBytes | IgnoreRange | Status | Redirect | OtherDate | Portal | Delay
# These change the body, and there is none in the answer to a HEAD.
OF_THE_BODY = (Cut, Stall, WrongBytes, IgnoreRange)
TURNED = bytes(255 - value for value in range(256))


class Gone(Exception):
    """The connection has ended, by the fault or by its client."""


class Connection:
    """What HTTP's own interface (ASGI) does not reach: the connection of a request, in uvicorn."""

    def __init__(self, receive: Receive) -> None:
        self._cycle: Any = receive.__self__  # type: ignore[attr-defined]

    async def wait(self, over: threading.Event) -> None:
        while not over.is_set():
            if self._cycle.disconnected:
                raise Gone
            await asyncio.sleep(0.01)

    async def end(self, reset: bool) -> None:
        transport = self._cycle.transport
        if reset:
            while transport.get_write_buffer_size():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)  # a reset throws away what the client has not read yet
            transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        transport.close()
        await self.wait(threading.Event())

    def date(self, value: str) -> None:
        others = [header for header in self._cycle.default_headers if header[0] != b"date"]
        self._cycle.default_headers = [*others, (b"date", value.encode())]


@dataclass
class SpoiltBody:
    """Passes an answer on through `send`, with one fault of its body."""

    fault: Cut | Stall | WrongBytes
    send: Send
    connection: Connection
    stopped: threading.Event
    sent: int = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            return await self.send(message)
        body, fault = message.get("body", b""), self.fault
        if isinstance(fault, WrongBytes):
            return await self.send(message | {"body": body.translate(TURNED)})
        first = min(len(body), max(0, fault.after - self.sent))
        reached = self.sent + first == fault.after
        if reached and not (isinstance(fault, Stall) and self.stopped.is_set()):
            await self.send({"type": "http.response.body", "body": body[:first], "more_body": True})
            if isinstance(fault, Cut):
                await self.connection.end(fault.reset)
            await self.connection.wait(self.stopped)
            body = body[first:]
        self.sent += len(message.get("body", b""))
        return await self.send(message | {"body": body})


def redirected(fault: Redirect, path: str, send: Send) -> Send:
    """A whole answer becomes a redirect; an error stays what it is."""
    kept = (b"etag", b"x-repo-commit", b"x-linked-etag", b"x-linked-size")
    redirects = False

    async def redirect(message: Message) -> None:
        nonlocal redirects
        if message.get("status") in (200, 206):
            redirects = True
            headers = [header for header in message["headers"] if header[0] in kept]
            headers += [(b"location", f"{fault.host}{path}".encode()), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 302, "headers": headers})
        elif redirects and message["type"] == "http.response.body":
            if not message.get("more_body"):
                await send({"type": "http.response.body"})
        else:
            await send(message)

    return redirect


def date(fault: OtherDate) -> str:
    return formatdate(time.time() + fault.skew, usegmt=True)
