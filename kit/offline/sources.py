"""A bundle as a folder, as a tar, or behind a mirror's address, without a way out: its checksums, its files proved, a
copy of one.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import stat
import tarfile
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import quote, urlsplit

from kit.errors import Command, Hint, KitError, WrongUsage
from kit.files import sha256
from kit.net import errors as network_errors
from kit.net import get, transfer
from kit.net.get import Remote
from kit.offline import bundle
from kit.offline.bundle import Sums

PIECE = 1 << 20
NOT_LISTED = f"is not in {bundle.SUMS}"
NO_FILE = "is a link or a device, and a bundle has files only"
OTHER_BYTES = f"is not the file that {bundle.SUMS} lists (its sha256 differs)"

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
        path = self.folder / bundle.SUMS
        try:
            if path.is_symlink():
                raise bundle.refusal(bundle.SUMS, NO_FILE)
            with path.open("rb") as file:
                return file.read(bundle.SUMS_LIMIT)
        except OSError as error:
            raise KitError(
                f"{self.folder} is no bundle: {bundle.SUMS} in it cannot be read ({error.strerror or error}).",
                "name the folder that holds SHA256SUMS, or the .tar, or http://…",
            ) from error

    def check(self, sums: Sums, on_bytes: OnBytes = lambda count: None) -> None:
        present = dict(bundle.listing(self.folder))
        for path, status in present.items():
            if path not in sums and path.startswith(f"{bundle.KIT}/"):
                continue  # kit/ may have been worked in
            if not stat.S_ISREG(status.st_mode):
                raise bundle.refusal(path, NO_FILE)
            if path not in sums and path != bundle.SUMS:
                raise bundle.refusal(path, NOT_LISTED)
        if missing := [path for path in sums if path not in present]:
            raise bundle.refusal(missing[0], "is missing")
        for path, wanted in sums.items():
            if (self.folder / path).resolve() != self.folder.resolve() / path:
                raise bundle.refusal(path, "lies behind a link")
            if sha256(self.folder / path, on_bytes) != wanted:
                raise bundle.refusal(path, OTHER_BYTES)

    def size(self, path: str) -> int:
        try:
            return (self.folder / path).lstat().st_size
        except FileNotFoundError:
            raise bundle.refusal(path, "is missing") from None

    def bring(self, path: str, sha256: str, partial: Path, on_bytes: OnBytes) -> None:
        with (self.folder / path).open("rb", buffering=0) as file:
            _copy(file, self.size(path), path, sha256, partial, on_bytes)


class Tar:
    """A bundle's tar, read in place: nothing is unpacked, so no name in it can lead anywhere."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._members: dict[str, tarfile.TarInfo] = {}
        size = os.fstat(self._file.fileno()).st_size
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as tar:
                for member in tar:
                    bundle.check_path(member.name)
                    _, _, inside = member.name.partition("/")
                    if member.isdir() or any(map(bundle.CLUTTER.fullmatch, member.name.split("/"))):
                        continue
                    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
                        raise bundle.refusal(member.name, NO_FILE)
                    if not 0 <= member.size <= size - member.offset_data:
                        raise bundle.refusal(member.name, "is larger than the tar that it is in")
                    if not inside or inside in self._members:
                        raise bundle.refusal(member.name, "is not a path that a bundle has, or is there twice")
                    self._members[inside] = member
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            raise KitError(f"{path} is no tar of a bundle, or is cut short: {error}.", bundle.AGAIN) from error

    def read_sums(self) -> bytes:
        member = self._members.get(bundle.SUMS)
        if member is None or member.size > bundle.SUMS_LIMIT:
            missing = f"the tar is no bundle: there is no {bundle.SUMS} in it."
            raise KitError(missing, "name what `", Command("bundle"), "` wrote")
        self._file.seek(member.offset_data)
        return self._file.read(member.size)

    def check(self, sums: Sums, on_bytes: OnBytes) -> None:
        for path in self._members:
            if path not in sums and path != bundle.SUMS:
                raise bundle.refusal(path, NOT_LISTED)
        for path, wanted in sums.items():
            self.bring(path, wanted, None, on_bytes)

    def size(self, path: str) -> int:
        if path not in self._members:
            raise bundle.refusal(path, "is missing")
        return self._members[path].size

    def bring(self, path: str, sha256: str, partial: Path | None, on_bytes: OnBytes) -> None:
        size = self.size(path)
        self._file.seek(self._members[path].offset_data)
        _copy(self._file, size, path, sha256, partial, on_bytes)


def _copy(file: IO[bytes], size: int, path: str, sha256: str, partial: Path | None, on_bytes: OnBytes) -> None:
    """`size` bytes from where `file` is, hashed, and written to `partial` where there is one."""
    digest, left = hashlib.sha256(), size
    with (partial or Path(os.devnull)).open("wb") as target:
        while left and (piece := file.read(min(left, PIECE))):
            digest.update(piece)
            target.write(piece)
            left -= len(piece)
            on_bytes(len(piece))
    if left or digest.hexdigest() != sha256:
        if partial:
            partial.unlink()
        raise bundle.refusal(path, OTHER_BYTES)


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


# --- A bundle that a mirror serves ------------------------------------------------------------------------------------


class NotHandedOut(KitError):
    """The mirror has the file and does not give it: a gated model."""


class Mirror:
    """`address` is where SHA256SUMS is found. Nothing of this machine is sent along, and no token."""

    def __init__(self, address: str, on_trouble: Callable[[str], None] = lambda text: None) -> None:
        self.address, self._on_trouble = check_address(address), on_trouble
        self._sizes: dict[str, int] = {}

    def read_sums(self) -> bytes:
        with self._opened(bundle.SUMS, "GET") as response:
            if response.headers.get_content_type() == "text/html":
                raise self._unreached(ValueError("a web page"))
            return response.read(bundle.SUMS_LIMIT)

    @contextmanager
    def _opened(self, path: str, method: str) -> Iterator[http.client.HTTPResponse]:
        try:
            with get.open_at(self._remote(path), 0, method) as response:
                yield response
        except urllib.error.HTTPError as error:
            raise self._refused(path, error) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._unreached(error) from error
        except get.Broken as broken:
            raise broken.error from broken

    def check(self, sums: Sums, on_bytes: OnBytes) -> None:
        """Nothing: what is fetched is proved before it is used."""

    def size(self, path: str) -> int:
        if path not in self._sizes:
            with self._opened(path, "HEAD") as response:
                length = response.headers.get("Content-Length", "")
            if not length.isdigit():
                raise bundle.refusal(path, f"has no size at {network_errors.host(self.address)}")
            self._sizes[path] = int(length)
        return self._sizes[path]

    def bring(self, path: str, sha256: str, partial: Path, on_bytes: OnBytes) -> None:
        remote, seen = self._remote(path, self.size(path), sha256), 0

        def report(have: int) -> None:
            nonlocal seen
            on_bytes(have - seen)
            seen = have

        try:
            transfer.fetch(remote, partial, report, self._on_trouble)
        except KitError as error:
            raise KitError(error.message, *self._hint()) from error

    def _remote(self, path: str, size: int = 0, sha256: str = "") -> Remote:
        return Remote(f"{self.address}/{quote(path)}", path, size, sha256, pinned_by=f"the bundle's {bundle.SUMS}")

    def _refused(self, path: str, error: urllib.error.HTTPError) -> KitError:
        host = network_errors.host(self.address)
        if error.code == 403 and error.headers.get("X-Error-Code") == "GatedRepo":
            return NotHandedOut(f"{host} does not hand {path} out: its model is gated.", "ask the mirror's keeper")
        if path == bundle.SUMS:
            message = f"{self.address} is no bundle: it answers {error.code} for {path}."
            return KitError(message, "type the address as `", Command("mirror"), "` printed it")
        return KitError(f"{host} answers {error.code} for {path}.", "tell the mirror's keeper")

    def _unreached(self, error: Exception) -> KitError:
        return KitError(network_errors.explain(error, self.address).message, *self._hint())

    def _hint(self) -> Hint:
        host = urlsplit(self.address).hostname
        if network_errors.proxy_for(self.address):
            return (f"a mirror in the room needs no proxy: NO_PROXY={host}, then the same command",)
        return "check the address, and that `", Command("mirror", LISTEN="…"), "` runs there; then the same command"


def is_address(place: str) -> bool:
    return "://" in place


def check_address(address: str) -> str:
    """The address without its last slash. Raises WrongUsage for one that cannot be a mirror's."""
    parts = urlsplit(address) if network_errors.is_http(address) else None
    if not parts or parts.username or parts.password or parts.query or parts.fragment:
        raise WrongUsage(
            "BUNDLE= is not the address of a mirror (http://host:port, without user, password or query).",
            Command("setup", BUNDLE="http://192.168.1.10:8080"),
        )
    if parts.path.endswith(".tar"):
        raise WrongUsage(
            "BUNDLE= is the address of a tar, which would have to be fetched whole.",
            "curl -O it, then: ",
            Command("setup", BUNDLE="<file>.tar"),
            "; or name a mirror's address",
        )
    return address.rstrip("/")
