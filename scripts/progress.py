"""How far a long step is: a bar that is redrawn on a terminal, and elsewhere a line at its start and every 10 s."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from scripts import cli

if TYPE_CHECKING:
    from tqdm import tqdm

REPEAT = 10.0  # seconds between two lines where there is no terminal
SHARE = "{desc} {percentage:3.0f}% {bar} {remaining} left"
COUNT = "{percentage:3.0f}% {bar} {remaining} left: {desc}"
BYTES = "{desc} {percentage:3.0f}% {bar} {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left"


class ProgressLine:
    """A kit.files.Progress. What it draws and foretells is tqdm's, imported once there is something to show."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._what, self._total, self._said = "", 0.0, 0.0
        self._terminal = sys.stderr.isatty()

    def __call__(self, what: str, done: float, total: float = 1.0, unit: str = "") -> None:
        # A share is of what is named; steps and bytes go on under another name.
        if self._bar is None or total != self._total or (total == 1.0 and what != self._what):
            self._begin(what, done, total, unit)
        assert self._bar is not None
        if what != self._what:
            self._what = what
            self._bar.set_description_str(what, refresh=False)
        self._bar.update(done - self._bar.n)
        if self._terminal and done >= total:
            self._bar.refresh()
        if not self._terminal and time.monotonic() - self._said >= REPEAT:
            self._say(str(self._bar).replace(" | ", " "))

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def note(self, text: str) -> None:
        """A line of its own between two pictures."""
        if self._bar is not None and self._terminal:
            self._bar.clear()
        cli.note(text)

    def end(self) -> None:
        """Leaves the line, so that what follows begins one of its own."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def _begin(self, what: str, done: float, total: float, unit: str) -> None:
        from tqdm import tqdm

        self.end()
        # Neither a thread that watches nor a lock between processes: this draws from one place.
        tqdm.monitor_interval = 0
        tqdm.set_lock(threading.RLock())
        form = SHARE if total == 1.0 else BYTES if unit else COUNT
        self._what, self._total = what, total
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=what,
            unit=unit or "it",
            unit_scale=bool(unit),
            dynamic_ncols=self._terminal,
            ascii=True,  # the blocks of other fonts are not in each
            bar_format=form if self._terminal else form.replace(" {bar}", ""),
            file=sys.stderr,
            delay=0 if self._terminal else float("inf"),  # elsewhere it only writes the text
        )
        if not self._terminal:
            self._say(what)

    def _say(self, text: str) -> None:
        cli.note(text)
        self._said = time.monotonic()
