"""How far a long step is: one line that is redrawn on a terminal, and elsewhere a line at its start and every 10 s."""

from __future__ import annotations

import os
import sys
import time

from scripts import cli

REDRAW = 0.1  # seconds between two pictures on a terminal
REPEAT = 10.0  # seconds between two lines elsewhere
BAR = 24  # characters


class ProgressLine:
    """Called with what is being done and the share of it that is done (0 to 1)."""

    def __init__(self) -> None:
        self._what = ""
        self._width = 0
        self._said = 0.0
        self._terminal = sys.stderr.isatty()

    def __call__(self, what: str, share: float) -> None:
        fresh = what != self._what
        if fresh or self._due(share >= 1):
            self._say(what, what if fresh and not self._terminal else f"{what} {share:4.0%}", fresh)

    def note(self, text: str) -> None:
        """A line of its own between two pictures."""
        self.end()
        cli.note(text)

    def end(self) -> None:
        """Leaves the line, so that what follows begins one of its own."""
        if self._terminal and self._what:
            cli.note("")
        self._what, self._width = "", 0

    def _due(self, done: bool) -> bool:
        return done or time.monotonic() - self._said >= (REDRAW if self._terminal else REPEAT)

    def _say(self, what: str, text: str, fresh: bool) -> None:
        if self._terminal:
            lead = "\n" if fresh and self._what else "\r"
            # A line that wraps cannot be drawn over.
            text = text[: columns() - 1]
            cli.note(lead + text.ljust(min(self._width, columns() - 1)), end="")
            self._width = len(text)
        else:
            cli.note(text)
        self._what, self._said = what, time.monotonic()


def columns() -> int:
    """How wide the terminal is that stderr goes to."""
    try:
        return int(os.environ.get("COLUMNS", "")) or 80
    except ValueError:
        pass
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


class StepProgress(ProgressLine):
    """The same for steps that take about as long as each other, with a bar and the time left."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title
        self._start = time.monotonic()

    def __call__(self, what: str, done: int, count: int) -> None:  # type: ignore[override]
        """`done` of `count` steps are done, and `what` comes now."""
        if not (self._terminal or self._what == "" or self._due(done >= count)):
            return
        left = (time.monotonic() - self._start) / done * (count - done) if done else 0.0
        bar = "#" * (BAR * done // count)
        parts = [self._title, bar.ljust(BAR, ".") if self._terminal else "", f"{done / count:4.0%}"]
        parts += [f"{clock(left)} left" if 0 < done < count else "", what]
        self._say(self._title, " ".join(filter(None, parts)), self._what == "")


class ByteProgress(ProgressLine):
    """The same for bytes, with a bar, the rate and the time left."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title
        self._start: tuple[float, int] | None = None

    def show(self, have: int, total: int, name: str) -> None:
        """`have` of `total` bytes are there; `name` is the file at work."""
        now = time.monotonic()
        if self._start is None:
            self._start = now, have
        done = have >= total
        if not (self._what == "" or self._due(done)):
            return
        seconds, came = now - self._start[0], have - self._start[1]
        rate = came / seconds if seconds > 0.5 else 0.0
        left = f", {clock((total - have) / rate)} left" if rate and not done else ""
        bar = ("#" * int(BAR * have / total)).ljust(BAR, ".") if self._terminal else ""
        parts = f"{have / total:4.0%} {have / 1e9:.2f} of {total / 1e9:.2f} GB" + (
            f", {rate / 1e6:.0f} MB/s" if rate else ""
        )
        self._say(self._title, self._fitting(bar, parts + left, name), self._what == "")

    def _fitting(self, bar: str, facts: str, name: str) -> str:
        """As much as one line of the terminal holds: the file's name goes first, then the bar."""
        lines = [[self._title, bar, facts, name], [self._title, bar, facts], [self._title, facts], [facts]]
        texts = [" ".join(filter(None, line)) for line in lines]
        return next((text for text in texts if not self._terminal or len(text) < columns()), texts[-1])


def clock(seconds: float) -> str:
    """`75` -> `1:15`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
