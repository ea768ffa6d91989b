"""What native code writes to standard error, kept aside: llama.cpp says there, and nowhere else, what it did."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from typing import Self, TextIO


class NativeLog:
    """From start() to close(), file descriptor 2 is a file without a name; Python's sys.stderr goes on as before."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open until close()
        self._stderr: TextIO = sys.stderr
        self._kept = -1

    def start(self) -> Self:
        sys.stderr.flush()
        self._kept = os.dup(2)
        os.dup2(self._file.fileno(), 2)
        try:
            own = self._stderr.fileno() == 2
        except (OSError, ValueError):  # a stand-in without a descriptor
            own = False
        if own:
            sys.stderr = os.fdopen(os.dup(self._kept), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        return self

    def text(self) -> str:
        """All that was written so far."""
        size = os.fstat(self._file.fileno()).st_size
        return os.pread(self._file.fileno(), size, 0).decode("utf-8", "replace")

    def wait_for(self, sign: str, seconds: float) -> str:
        """The text, as soon as `sign` is in it: llama.cpp writes from a thread of its own."""
        end = time.monotonic() + seconds
        while sign not in (text := self.text()) and time.monotonic() < end:
            time.sleep(0.001)
        return text

    def close(self) -> None:
        if self._kept < 0:
            return
        os.dup2(self._kept, 2)
        os.close(self._kept)
        self._kept = -1
        if sys.stderr is not self._stderr:
            sys.stderr.close()
            sys.stderr = self._stderr
        self._file.close()
