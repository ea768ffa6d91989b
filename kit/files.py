"""A file: its hash, the lock between processes that may write it, and how it becomes whole.

Parsed by Python 3.9, for the doctor.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from kit.errors import Hint, KitError

CHUNK = 1 << 20


class Progress(Protocol):
    """How far a long step is."""

    def __call__(self, what: str, done: float, total: float = 1.0, unit: str = "") -> None:
        """`done` of `total` of what is named are done: bytes where `unit` is "B", else a share or steps."""


def silent(what: str, done: float, total: float = 1.0, unit: str = "") -> None:
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
    return hashlib.new("sha1", b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the lock file `path` for the `with` block, however its process dies; calls `on_wait` once where another
    process holds it.

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


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A path beside `target`; what the block writes there gets the target's name at its end, and is gone where the
    block fails."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):  # a read-only file system refuses that, too
            partial.unlink()
        raise


@contextmanager
def staged(
    what: str,
    target: Path,
    again: Hint,
    is_done: Callable[[], bool] = lambda: False,
    need: int = 0,
    on_wait: Callable[[], None] = lambda: None,
) -> Iterator[Path | None]:
    """How a file or a folder becomes whole, whoever else is at it and whatever happens: `what` is its name for people,
    `again` what goes on after a failure.

    Takes the lock beside `target`; the block gets None where `is_done` then. Else there are `need` bytes of room, and
    the block gets a path beside the target to write to, or to make a folder of. A file there gets the target's name at
    the end of the block, which proves it first; what else is there is removed, also where the block fails. Raises
    KitError for every OSError.
    """
    partial = target.with_name(f".{target.name}.partial")
    with trouble(what, again), locked(target.with_name(f".{target.name}.lock"), on_wait):
        if is_done():
            yield None
            return
        _remove(partial)  # of one that was killed
        try:
            require_room(what, target.parent, need, again)
            yield partial
            if partial.is_file():
                partial.replace(target)
        finally:
            _remove(partial)


def require_room(what: str, folder: Path, need: int, again: Hint) -> None:
    """Raises KitError before the first byte where `folder`'s disk has no room for `need` bytes."""
    free = shutil.disk_usage(str(folder)).free
    if need and free < need:
        said = f"{what} needs {_size(need)} on this disk, and {_size(free)} are free."
        raise KitError(said, "free some room, then: ", *again)


# What an errno means, for a file that is written; the words of the system differ, and name no cause.
CAUSES = {
    errno.ENOSPC: ("the disk is full", "free some room"),
    errno.EDQUOT: ("the disk quota is used up", "free some room"),
    errno.EROFS: ("the file system is read-only", "take a folder that can be written"),
    errno.EACCES: ("permission denied for this account", "check who owns it"),
    errno.EPERM: ("permission denied for this account", "check who owns it"),
    errno.ENOLCK: ("the file system has no locks", "take a folder on a local disk"),
    errno.ENOSYS: ("the file system has no locks", "take a folder on a local disk"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n 1024)"),
    errno.ENFILE: ("too many files are open on this machine", "close other programs"),
}


@contextmanager
def trouble(what: str, again: Hint) -> Iterator[None]:
    """An OSError of the block as the KitError that says what it is; `what` is written there, `again` goes on."""
    try:
        yield
    except OSError as error:
        cause, mend = cause_of(error)
        raise KitError(f"{what} could not be written: {cause}.", f"{mend}, then: ", *again) from error


def cause_of(error: OSError) -> tuple[str, str]:
    """What an OSError says, and what to do about it; a cause that is not known is quoted and not guessed."""
    cause, mend = CAUSES.get(error.errno or 0, (error.strerror or str(error) or "no further word", "look at it"))
    return (f"{cause} ({error.filename})" if error.filename else cause), mend


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.unlink()


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
