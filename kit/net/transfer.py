"""One file over HTTP, into a partial file that the next process can go on with, hashed on the way.

Not the Hub client's own download: since huggingface_hub 1.18 that one starts an interrupted file from zero, takes wrong
bytes of the right size, and gives up at a reset connection. This asks for what is missing (Range) and lets a file go
only when its sha256 is right.
"""

from __future__ import annotations

import hashlib
import http.client
import queue
import time
import urllib.error
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from kit.errors import KitError
from kit.net import errors as network_errors
from kit.net import get
from kit.net.get import Broken, Remote

SLOW_WINDOW, SLOW_BYTES = 30.0, 32_768  # fewer bytes than that in as many seconds: as good as stalled
# Seconds before each new try that follows one without progress; a try that moved bytes starts over at the first.
BACK_OFF = (1.0, 2.0, 4.0, 8.0, 16.0)
# Where not a byte has come yet, waiting seldom helps: one more try, and the person hears what is wrong.
FIRST_TRIES = 1
LONGEST_WAIT = 300.0  # seconds that a Retry-After is honoured; more is said to the person instead

OnBytes = Callable[[int], None]
OnTrouble = Callable[[str], None]
Sleep = Callable[[float], None]


def fetch(
    remote: Remote,
    partial: Path,
    on_bytes: OnBytes = lambda have: None,
    on_trouble: OnTrouble = lambda text: None,
    sleep: Sleep = time.sleep,
) -> None:
    """Completes `partial` and proves its sha256. `on_bytes` gets how many bytes it holds, `on_trouble` a line a retry.

    Raises KitError where the server refuses, stays silent, or sends other bytes twice. What came stays in `partial`.
    """
    try:
        for last in (False, True):
            digest = _receive_all(remote, partial, on_bytes, on_trouble, sleep)
            if digest == remote.sha256:
                return
            partial.unlink()
            if last:
                raise KitError(
                    f"{remote.name} came with other bytes than {remote.pinned_by} pins, twice (sha256 {digest[:12]}… "
                    f"instead of {remote.sha256[:12]}…). It was thrown away.",
                    "try another network; if HF_ENDPOINT names a mirror, tell its keeper",
                )
            on_trouble(f"{remote.name}: wrong bytes, thrown away; fetching it once more")
    except KitError:
        if partial.exists() and not partial.stat().st_size:
            partial.unlink()  # refused before the first byte: nothing to go on with
        raise


def _receive_all(remote: Remote, partial: Path, on_bytes: OnBytes, on_trouble: OnTrouble, sleep: Sleep) -> str:
    """Receives until the size is reached; the sha256 of what is there then."""
    if partial.exists() and partial.stat().st_size > remote.size:
        partial.unlink()
    fruitless, began = 0, False
    with Hasher() as hasher, partial.open("a+b", buffering=0) as file:
        have = hasher.take_file(file)
        on_bytes(have)
        while have < remote.size:
            before = have
            try:
                _receive(remote, file, hasher, have, on_bytes)
                have = remote.size
            except Broken as broken:
                have = file.tell()
                began = began or have > before
                fruitless = 1 if have > before else fruitless + 1
                wait = broken.wait if broken.wait is not None else BACK_OFF[min(fruitless, len(BACK_OFF)) - 1]
                tries = len(BACK_OFF) if began or broken.tries is None else broken.tries
                if fruitless > tries or wait > LONGEST_WAIT:
                    raise broken.error from broken
                on_trouble(f"{broken.error.message} Going on in {wait:.0f} s from {have / remote.size:.0%}.")
                sleep(wait)
        return hasher.hexdigest()


def _receive(remote: Remote, file: IO[bytes], hasher: Hasher, have: int, on_bytes: OnBytes) -> None:
    """One try: from byte `have` to the end, or Broken."""
    try:
        response = get.open_at(remote, have)
    except urllib.error.HTTPError as error:
        raise get.refused(remote, error) from error
    except (OSError, http.client.HTTPException) as error:
        if network_errors.is_certificate(error):
            raise network_errors.explain(error, remote.url) from error
        raise Broken(network_errors.explain(error, remote.url), tries=FIRST_TRIES) from error
    with response:
        get.check_kind(remote, response, have)
        if response.status == 200 and have:  # the server knows no ranges: from the beginning again
            file.truncate(0)
            have = hasher.take_file(file)
        packed = get.coding(response)
        if packed and have:  # no part of it can be unpacked
            file.truncate(0)
            hasher.take_file(file)
            raise Broken(KitError(f"{network_errors.host(remote.url)} packs what it sends.", "try again"))
        # One recv at a time, so that a trickle is noticed: the response's own readinto waits until the buffer is full.
        read: Callable[[memoryview], int] = response.fp.readinto1 if not response.chunked else response.readinto
        if packed:
            read = _unpacking(remote, response, packed)
        window_start, window_bytes = time.monotonic(), 0
        while have < remote.size:
            buffer, count = hasher.buffer(), 0
            try:
                count = read(memoryview(buffer)[: min(PIECE, remote.size - have)])
            except (OSError, http.client.HTTPException, EOFError) as error:
                raise Broken(network_errors.explain(error, remote.url)) from error
            finally:
                hasher.take(buffer, count)  # also where nothing came: it goes back to the ring
            if not count:
                lost = f"{network_errors.host(remote.url)} closed the connection early."
                raise Broken(KitError(lost, "the same command goes on"))
            _write(file, memoryview(buffer)[:count])
            have += count
            on_bytes(have)
            window_bytes += count
            if (now := time.monotonic()) - window_start > SLOW_WINDOW:
                if window_bytes < SLOW_BYTES:
                    slow = f"{network_errors.host(remote.url)} sends next to nothing."
                    raise Broken(KitError(slow, "check the network"))
                window_start, window_bytes = now, 0


def _unpacking(remote: Remote, response: http.client.HTTPResponse, packed: str) -> Callable[[memoryview], int]:
    """Reads what a proxy on the way has packed. Raises KitError for a way of packing that Python does not know."""
    if packed not in ("gzip", "x-gzip"):
        raise KitError(
            f"something on the way to {network_errors.host(remote.url)} packs what it sends ({packed}).",
            "another network, or around the proxy: NO_PROXY",
        )
    import gzip

    return gzip.GzipFile(fileobj=response).readinto


def _write(file: IO[bytes], data: memoryview) -> None:
    """All of `data`: a disk that is nearly full takes a part, and says why only at the next write."""
    while data:
        data = data[file.write(data) :]


# --- sha256 in a thread of its own, beside the loop that receives -----------------------------------------------------


PIECE = 1 << 20  # bytes of one buffer
BUFFERS = 8


class Hasher:
    """sha256 in a thread of its own, over a ring of buffers that are read into, written and hashed without a copy."""

    def __init__(self) -> None:
        self._free: queue.Queue[bytearray] = queue.Queue()
        for _ in range(BUFFERS):
            self._free.put(bytearray(PIECE))
        self._thread = ThreadPoolExecutor(1)
        self._digest = hashlib.sha256()

    def __enter__(self) -> Hasher:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def buffer(self) -> bytearray:
        return self._free.get()

    def take(self, buffer: bytearray, count: int) -> None:
        self._thread.submit(self._hash, buffer, count)

    def _hash(self, buffer: bytearray, count: int) -> None:
        self._digest.update(memoryview(buffer)[:count])
        self._free.put(buffer)

    def take_file(self, file: IO[bytes]) -> int:
        """Hashes what the file holds already, alone; leaves it at its end, and returns its size in bytes."""
        self._digest = self._thread.submit(hashlib.sha256).result()
        file.seek(0)
        while count := file.readinto(buffer := self.buffer()):  # type: ignore[attr-defined]
            self.take(buffer, count)
        self._free.put(buffer)
        return file.tell()

    def hexdigest(self) -> str:
        return self._thread.submit(self._digest.hexdigest).result()
