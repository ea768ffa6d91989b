"""What can go wrong between a Hub and its client: one small class each."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from kit.offline.http_server import Body, FilePart, Text


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


@dataclass(frozen=True)
class FaultyBody:
    """Another body, sent badly: cut at `end` bytes, held at `stall_at` bytes; None where it is not."""

    inner: Body
    wrong: bool = False
    end: int | None = None
    reset: bool = False
    stall_at: int | None = None
    go_on: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def size(self) -> int:
        return self.inner.size

    def close(self) -> None:
        self.inner.close()

    def send(self, connection: socket.socket) -> int:
        sent = 0
        with suppress(OSError):
            for piece in self._pieces():
                connection.sendall(piece)
                sent += len(piece)
                if sent == self.stall_at:
                    self._wait(connection)
                if self.closing.is_set():
                    break
            if self.reset and self.end is not None:
                time.sleep(0.1)  # a reset throws away what the client has not read yet
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                # Closed for good and at once: socket.close() would wait for the handler's files, and say FIN first.
                socket.close(connection.detach())
        return sent

    def _wait(self, connection: socket.socket) -> None:
        """Until told to go on, the hub closes, or the client has gone."""
        connection.setblocking(False)
        while not self.go_on.wait(0.02) and not self.closing.is_set():
            with suppress(BlockingIOError):
                if not connection.recv(1, socket.MSG_PEEK):
                    raise ConnectionAbortedError
        connection.settimeout(10)

    def _pieces(self) -> Iterator[bytes]:
        """The body up to its end, broken where it stalls."""
        end = self.size if self.end is None else min(self.end, self.size)
        marks = sorted({0, end, min(self.stall_at or 0, end)})
        if self.stall_at == 0:
            yield b""
        for first, last in itertools.pairwise(marks):
            for start in range(first, last, 1 << 20):
                piece = self._read(start, min(1 << 20, last - start))
                yield piece.translate(TURNED) if self.wrong else piece

    def _read(self, start: int, size: int) -> bytes:
        if isinstance(self.inner, Text):
            return self.inner.data[start : start + size]
        assert isinstance(self.inner, FilePart)
        self.inner.file.seek(self.inner.start + start)
        return self.inner.file.read(size)


TURNED = bytes(255 - value for value in range(256))
