"""A bundle as a folder or a tar, without a way out: its checksums, its files proved, a copy of one.

kit/bundle_mirror.py reads one that a mirror serves.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

from kit import bundle
from kit.bundle import Sums
from kit.errors import KitError

PIECE = 1 << 20

OnBytes = Callable[[int], None]  # gets the size of each piece


class Source(Protocol):
    """Where a bundle is read from. Every method raises KitError that names the file which is bad."""

    def read_sums(self) -> bytes:
        """SHA256SUMS, as it is there."""

    def check(self, sums: Sums, on_bytes: OnBytes) -> None:
        """Proves every file that is at hand, before any is used. A mirror's are proved as they arrive."""

    def size(self, path: str) -> int:
        """Bytes of a file that is listed."""

    def bring(self, path: str, sha256: str, partial: Path, on_bytes: OnBytes) -> None:
        """Writes a file to `partial`, proved once more on the way."""


class Folder:
    """An unpacked bundle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read_sums(self) -> bytes:
        return bundle.read_sums(self.folder)

    def check(self, sums: Sums, on_bytes: OnBytes) -> None:
        bundle.check_folder(self.folder, sums, on_bytes)

    def size(self, path: str) -> int:
        try:
            return (self.folder / path).lstat().st_size
        except OSError:
            raise bundle.refusal(path, "is missing") from None

    def bring(self, path: str, sha256: str, partial: Path, on_bytes: OnBytes) -> None:
        with (self.folder / path).open("rb", buffering=0) as file:
            _copy(file, self.size(path), path, sha256, partial, on_bytes)


class Tar:
    """A bundle's tar, read in place: nothing is unpacked, so no name in it can lead anywhere."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as tar:
                for member in tar:
                    self._take(member)
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise KitError(f"{path} is no tar of a bundle, or is cut short: {error}.", bundle.AGAIN) from error

    def _take(self, member: tarfile.TarInfo) -> None:
        bundle.check_path(member.name)
        _, _, path = member.name.partition("/")
        if member.isdir() or bundle.CLUTTER.fullmatch(member.name.rpartition("/")[2]):
            return
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
            raise bundle.refusal(member.name, "is a link or a device, and a bundle has files only")
        if not path or path in self._members:
            raise bundle.refusal(member.name, "is not a path that a bundle has, or is there twice")
        self._members[path] = member

    def read_sums(self) -> bytes:
        member = self._members.get(bundle.SUMS)
        if member is None or member.size > bundle.SUMS_LIMIT:
            raise KitError(f"the tar is no bundle: there is no {bundle.SUMS} in it.", "name what `make bundle` wrote")
        self._file.seek(member.offset_data)
        return self._file.read(member.size)

    def check(self, sums: Sums, on_bytes: OnBytes) -> None:
        for path in self._members:
            if path not in sums and path != bundle.SUMS:
                raise bundle.refusal(path, f"is not in {bundle.SUMS}")
        for path, wanted in sums.items():
            size = self.size(path)
            self._file.seek(self._members[path].offset_data)
            _copy(self._file, size, path, wanted, None, on_bytes)

    def size(self, path: str) -> int:
        if path not in self._members:
            raise bundle.refusal(path, "is missing")
        return self._members[path].size

    def bring(self, path: str, sha256: str, partial: Path, on_bytes: OnBytes) -> None:
        size = self.size(path)
        self._file.seek(self._members[path].offset_data)
        _copy(self._file, size, path, sha256, partial, on_bytes)


def _copy(file: IO[bytes], size: int, path: str, sha256: str, partial: Path | None, on_bytes: OnBytes) -> None:
    """`size` bytes from where `file` is, hashed, and written to `partial` where there is one."""
    digest, left = hashlib.sha256(), size
    target = partial.open("wb") if partial else None
    try:
        while left and (piece := file.read(min(left, PIECE))):
            digest.update(piece)
            if target:
                target.write(piece)
            left -= len(piece)
            on_bytes(len(piece))
    finally:
        if target:
            target.close()
    if left or digest.hexdigest() != sha256:
        if partial:
            partial.unlink()
        raise bundle.refusal(path, f"is not the file that {bundle.SUMS} lists (its sha256 differs)")


def at(place: str) -> Folder | Tar:
    """The bundle in a folder or a tar. Raises KitError for what is neither."""
    path = Path(place).expanduser()
    try:
        return Folder(path) if path.is_dir() else Tar(path)
    except OSError as error:
        raise KitError(
            f"BUNDLE={place} cannot be read: {error.strerror or error}.",
            "name the bundle's folder, its .tar, or the address of a mirror (http://…)",
        ) from error
