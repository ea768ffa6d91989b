"""One file over HTTP, into a partial file that the next process can go on with, hashed on the way.

Not the Hub client's own download: since huggingface_hub 1.18 that one starts an interrupted file from zero, takes wrong
bytes of the right size, and gives up at a reset connection. This asks for what is missing (Range) and lets a file go
only when its sha256 is right.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

from kit import hub_errors, network_errors
from kit.errors import KitError
from kit.hasher import PIECE, Hasher
from kit.registry import Model

SOCKET_TIMEOUT = 15.0  # seconds without a byte: the connection is stalled
SLOW_WINDOW, SLOW_BYTES = 30.0, 32_768  # fewer bytes than that in as many seconds: as good as stalled
MAX_REDIRECTS = 5
# Seconds before each new try that follows one without progress; a try that moved bytes starts over at the first.
BACK_OFF = (1.0, 2.0, 4.0, 8.0, 16.0)
LONGEST_WAIT = 300.0  # seconds that a Retry-After is honoured; more is said to the person instead


@dataclass(frozen=True)
class Remote:
    """Where a file is and what it must be. `token` goes to the url's own host and to no other; errors name `model`."""

    url: str
    name: str
    size: int
    sha256: str
    token: str | None = field(default=None, repr=False)
    model: Model | None = None


class _Broken(Exception):
    """This try ended early; another may go on. `wait` in seconds where the server named it."""

    def __init__(self, error: KitError, wait: float | None = None) -> None:
        super().__init__(error.message)
        self.error, self.wait = error, wait


def fetch(
    remote: Remote,
    partial: Path,
    on_bytes: Callable[[int], None] = lambda have: None,
    on_trouble: Callable[[str], None] = lambda text: None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Completes `partial` and proves its sha256. `on_bytes` gets how many bytes it holds, `on_trouble` a line a retry.

    Raises KitError where the server refuses, stays silent, or sends other bytes twice. What came stays in `partial`.
    """
    for last in (False, True):
        digest = _receive_all(remote, partial, on_bytes, on_trouble, sleep)
        if digest == remote.sha256:
            return
        partial.unlink()
        if last:
            raise KitError(
                f"{remote.name} came with other bytes than env/models.toml pins, twice (sha256 {digest[:12]}… "
                f"instead of {remote.sha256[:12]}…). It was thrown away.",
                "try another network; if HF_ENDPOINT names a mirror, tell its keeper",
            )
        on_trouble(f"{remote.name}: wrong bytes, thrown away; fetching it once more")


def _receive_all(
    remote: Remote,
    partial: Path,
    on_bytes: Callable[[int], None],
    on_trouble: Callable[[str], None],
    sleep: Callable[[float], None],
) -> str:
    """Receives until the size is reached; the sha256 of what is there then."""
    if partial.exists() and partial.stat().st_size > remote.size:
        partial.unlink()
    partial.touch()
    fruitless = 0
    with Hasher() as hasher, partial.open("r+b", buffering=0) as file:
        have = hasher.take_file(file)
        on_bytes(have)
        while have < remote.size:
            before = have
            try:
                have = _receive(remote, file, hasher, have, on_bytes)
            except _Broken as broken:
                have = file.tell()
                fruitless = 1 if have > before else fruitless + 1
                wait = broken.wait if broken.wait is not None else BACK_OFF[min(fruitless, len(BACK_OFF)) - 1]
                if fruitless > len(BACK_OFF) or wait > LONGEST_WAIT:
                    raise broken.error from broken
                on_trouble(f"{broken.error.message} Going on in {wait:.0f} s from {have / remote.size:.0%}.")
                sleep(wait)
        return hasher.hexdigest()


def _receive(remote: Remote, file: IO[bytes], hasher: Hasher, have: int, on_bytes: Callable[[int], None]) -> int:
    """One try: from byte `have` to the end, or _Broken. Returns how many bytes the file holds."""
    try:
        response = _open(remote, have)
    except urllib.error.HTTPError as error:
        raise _refused(remote, error) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(network_errors.explain(error, remote.url)) from error
    with response:
        _check_kind(remote, response, have)
        if response.status == 200 and have:
            # The server knows no ranges: from the beginning again.
            file.seek(0)
            file.truncate()
            hasher.restart()
            have = 0
        return _copy(remote, response, file, hasher, have, on_bytes)


def _copy(
    remote: Remote,
    response: http.client.HTTPResponse,
    file: IO[bytes],
    hasher: Hasher,
    have: int,
    on_bytes: Callable[[int], None],
) -> int:
    # One recv at a time, so that a trickle is noticed: the response's own readinto waits until the buffer is full.
    read: Callable[[memoryview], int] = response.fp.readinto1 if not response.chunked else response.readinto
    window_start, window_bytes = time.monotonic(), 0
    while have < remote.size:
        buffer = hasher.buffer()
        try:
            count = read(memoryview(buffer)[: min(PIECE, remote.size - have)])
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(network_errors.explain(error, remote.url)) from error
        if not count:
            lost = KitError(
                f"{network_errors.host(remote.url)} closed the connection early.", "the same command goes on"
            )
            raise _Broken(lost)
        file.write(memoryview(buffer)[:count])
        hasher.take(buffer, count)
        have += count
        on_bytes(have)
        window_bytes += count
        if (now := time.monotonic()) - window_start > SLOW_WINDOW:
            if window_bytes < SLOW_BYTES:
                slow = KitError(f"{network_errors.host(remote.url)} sends next to nothing.", "check the network")
                raise _Broken(slow)
            window_start, window_bytes = now, 0
    return have


def _open(remote: Remote, have: int) -> http.client.HTTPResponse:
    """The response to GET from byte `have` on. Redirects are followed here: the token stays with the first host."""
    address = remote.url
    for _ in range(MAX_REDIRECTS):
        request = urllib.request.Request(
            address, headers={"User-Agent": "base-model-kit", "Accept-Encoding": "identity"}
        )
        if have:
            request.add_header("Range", f"bytes={have}-")
        if remote.token and urlsplit(address).netloc == urlsplit(remote.url).netloc:
            request.add_unredirected_header("Authorization", f"Bearer {remote.token}")
        try:
            response: http.client.HTTPResponse = _opener(address).open(request, timeout=SOCKET_TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code not in (301, 302, 303, 307, 308) or not error.headers.get("Location"):
                raise
            address = urljoin(address, error.headers["Location"])
            continue
        return response
    raise _Broken(KitError(f"{network_errors.host(remote.url)} redirects in a circle.", "try again later"))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _opener(address: str) -> urllib.request.OpenerDirector:
    """Proxies as the environment and the system say; certificates as the Hub client checks them."""
    if urlsplit(address).scheme != "https":
        return urllib.request.build_opener(_NoRedirect())
    import httpx2

    context = httpx2.create_ssl_context()
    return urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _NoRedirect())


def _refused(remote: Remote, error: urllib.error.HTTPError) -> Exception:
    """A _Broken for a status that passes by itself, else the KitError."""
    headers = {name.lower(): value for name, value in error.headers.items()}
    known = hub_errors.explain_status(error.code, headers, remote.model, remote.url)
    if error.code == 416:
        return _Broken(known)
    if error.code in (408, 429) or error.code >= 500:
        return _Broken(known, hub_errors.retry_after(headers))
    return known


def _check_kind(remote: Remote, response: http.client.HTTPResponse, have: int) -> None:
    """Raises KitError for something else than the file: a network's log-in page, or another size than is pinned."""
    if response.headers.get_content_type() == "text/html":
        raise network_errors.explain(ValueError("a web page"), remote.url)
    length = response.headers.get("Content-Length")
    total = None if length is None else int(length) + (have if response.status == 206 else 0)
    if total is not None and total != remote.size:
        host = network_errors.host(remote.url)
        raise KitError(
            f"{remote.name} has {total} bytes at {host}, and {remote.size} in env/models.toml.",
            "compare the commit there; if HF_ENDPOINT names a mirror, tell its keeper",
        )
