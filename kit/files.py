"""A file: its hash, the lock between processes that may write it, and how it becomes whole."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNK = 1 << 20

# What is being done, and the share of it that is done (0 to 1).
Progress = Callable[[str, float], None]


def silent(what: str, share: float) -> None:
    """A Progress that shows nothing."""


def sha256(path: Path, on_bytes: Callable[[int], None] = lambda count: None) -> str:
    """The file's sha256 in hex; `on_bytes` gets the size of each piece read."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
            on_bytes(len(piece))
    return digest.hexdigest()


def git_blob_id(content: bytes) -> str:
    """git's name of a file's content: sha1 over a header and the bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the lock file `path` for the `with` block; calls `on_wait` once where another process holds it.

    The file stays behind, empty: removing it would let two processes lock two files of the same name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
