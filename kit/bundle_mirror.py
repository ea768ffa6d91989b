"""A bundle that a mirror serves (`make mirror`, or any web server over its folder): only what is taken is fetched."""

from __future__ import annotations

import http.client
import urllib.error
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlsplit

from kit import bundle, file_request, network_errors, transfer
from kit.bundle import Sums
from kit.bundle_reader import OnBytes
from kit.errors import KitError, WrongUsage
from kit.file_request import Remote


class NotHandedOut(KitError):
    """The mirror has the file and does not give it: a gated model."""


class Mirror:
    """`address` is where SHA256SUMS is found. Nothing of this machine is sent along, and no token."""

    def __init__(self, address: str, on_trouble: Callable[[str], None] = lambda text: None) -> None:
        self.address, self._on_trouble = check_address(address), on_trouble
        self._sizes: dict[str, int] = {}

    def read_sums(self) -> bytes:
        try:
            with file_request.open_at(self._remote(bundle.SUMS), 0) as response:
                if response.headers.get_content_type() == "text/html":
                    raise self._unreached(ValueError("a web page"))
                return response.read(bundle.SUMS_LIMIT)
        except urllib.error.HTTPError as error:
            raise self._refused(bundle.SUMS, error) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._unreached(error) from error
        except file_request.Broken as broken:
            raise broken.error from broken

    def check(self, sums: Sums, on_bytes: OnBytes) -> None:
        """Nothing: what is fetched is proved before it is used."""

    def size(self, path: str) -> int:
        if path not in self._sizes:
            self._sizes[path] = self._ask_size(path)
        return self._sizes[path]

    def _ask_size(self, path: str) -> int:
        try:
            with file_request.open_at(self._remote(path), 0, "HEAD") as response:
                length = response.headers.get("Content-Length", "")
        except urllib.error.HTTPError as error:
            raise self._refused(path, error) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._unreached(error) from error
        except file_request.Broken as broken:
            raise broken.error from broken
        if not length.isdigit():
            raise bundle.refusal(path, f"has no size at {network_errors.host(self.address)}")
        return int(length)

    def bring(self, path: str, sha256: str, partial: Path, on_bytes: OnBytes) -> None:
        seen = 0

        def report(have: int) -> None:
            nonlocal seen
            on_bytes(have - seen)
            seen = have

        try:
            transfer.fetch(self._remote(path, self.size(path), sha256), partial, report, self._on_trouble)
        except NotHandedOut:
            raise
        except KitError as error:
            raise KitError(error.message, self._hint()) from error

    def _remote(self, path: str, size: int = 0, sha256: str = "") -> Remote:
        return Remote(f"{self.address}/{quote(path)}", path, size, sha256, pinned_by=f"the bundle's {bundle.SUMS}")

    def _refused(self, path: str, error: urllib.error.HTTPError) -> KitError:
        host = network_errors.host(self.address)
        if error.code == 403 and error.headers.get("X-Error-Code") == "GatedRepo":
            return NotHandedOut(f"{host} does not hand {path} out: its model is gated.", "ask the mirror's keeper")
        if path == bundle.SUMS:
            return KitError(
                f"{self.address} is no bundle: it answers {error.code} for {bundle.SUMS}.",
                "type the address as `make mirror` printed it",
            )
        return KitError(f"{host} answers {error.code} for {path}.", "tell the mirror's keeper")

    def _unreached(self, error: Exception) -> KitError:
        return KitError(network_errors.explain(error, self.address).message, self._hint())

    def _hint(self) -> str:
        host = urlsplit(self.address).hostname
        if network_errors.proxy_for(self.address):
            return f"a mirror in the room needs no proxy: NO_PROXY={host}, then the same command"
        return "check the address, and that `make mirror LISTEN=…` runs there; then the same command"


def is_address(place: str) -> bool:
    return "://" in place


def check_address(address: str) -> str:
    """The address without its last slash. Raises WrongUsage for one that cannot be a mirror's."""
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.username or parts.password or parts.query or parts.fragment:
        raise WrongUsage(
            "BUNDLE= is not the address of a mirror (http://host:port, without user, password or query).",
            "make setup BUNDLE=http://192.168.1.10:8080",
        )
    if parts.path.endswith(".tar"):
        raise WrongUsage(
            "BUNDLE= is the address of a tar, which would have to be fetched whole.",
            "curl -O it, then: make setup BUNDLE=<file>.tar; or name a mirror's address",
        )
    return address.rstrip("/")
