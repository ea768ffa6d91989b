"""How far a long step is, as a terminal of any width shows it."""

from __future__ import annotations

import io

import pytest

from scripts import progress
from scripts.progress import ByteProgress, ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch, columns: int) -> Terminal:
    screen = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", screen)
    monkeypatch.setattr(progress, "REDRAW", 0.0)
    monkeypatch.setenv("COLUMNS", str(columns))
    return screen


@pytest.mark.parametrize("columns", [30, 40, 80, 200])
def test_no_picture_is_wider_than_the_terminal(monkeypatch, columns):
    terminal = on_terminal(monkeypatch, columns)
    shown = ByteProgress("llama-3.2-1b")
    for have in range(0, 2_480_000_000, 100_000_000):
        shown.show(have, 2_480_000_000, "model-00001-of-00002.safetensors")
    pictures = terminal.getvalue().split("\r")
    assert len(pictures) > 20
    assert max(map(len, pictures)) < columns
    assert "\n" not in terminal.getvalue()
    assert all("%" in picture and "GB" in picture for picture in pictures[1:])
    assert ("###" in pictures[-1]) == (columns >= 80)
    assert ("safetensors" in pictures[-1]) == (columns >= 200)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time in seconds, as `clock[0]`: a test must not wait it out."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_shows_rate_and_time_left(monkeypatch, clock):
    terminal = on_terminal(monkeypatch, 120)
    shown = ByteProgress("llama-3.2-1b")
    # What was there before does not count into the rate.
    shown.show(480_000_000, 2_480_000_000, "model.safetensors")
    clock[0] += 10
    shown.show(980_000_000, 2_480_000_000, "model.safetensors")
    assert "40% 0.98 of 2.48 GB, 50 MB/s, 0:30 left model.safetensors" in terminal.getvalue().split("\r")[-1]


def test_elsewhere_there_is_a_line_every_10_seconds(monkeypatch, clock):
    log = io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", log)
    shown = ByteProgress("llama-3.2-1b")
    for second in range(61):
        clock[0] = 100.0 + second
        shown.show(second * 10_000_000, 2_480_000_000, "model.safetensors")
    lines = log.getvalue().splitlines()
    assert len(lines) == 7
    assert lines[1] == "llama-3.2-1b   4% 0.10 of 2.48 GB, 10 MB/s, 3:58 left model.safetensors"


def test_a_long_line_is_cut(monkeypatch):
    terminal = on_terminal(monkeypatch, 20)
    line = ProgressLine()
    line("starter model: converting, which takes a second", 0.5)
    line("x", 0.1)
    assert max(map(len, terminal.getvalue().replace("\n", "\r").split("\r"))) == 19


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (75, "1:15"), (3725, "1:02:05")])
def test_clock(seconds, text):
    assert progress.clock(seconds) == text
