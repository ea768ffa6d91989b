"""What a server is asked, and what it replies."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol


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
