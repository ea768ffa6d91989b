"""How far a long step is, as a terminal of any width shows it, and as a log keeps it."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import termios
import threading

import pytest

from scripts import progress
from scripts.progress import ProgressLine

TOTAL = 2_480_000_000


def on_terminal(monkeypatch, columns: int, steps) -> str:
    """What a real terminal of so many columns gets while `steps` calls a ProgressLine."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    screen, shown = os.fdopen(slave, "w"), []

    def read() -> None:
        while piece := os.read(master, 1 << 16):
            shown.append(piece)
            if b"END" in piece:
                return

    reader = threading.Thread(target=read)
    reader.start()
    monkeypatch.setattr(sys, "stderr", screen)
    line = ProgressLine()
    steps(line)
    line.end()
    screen.write("END")
    screen.close()
    reader.join()
    os.close(master)
    return b"".join(shown).decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [30, 40, 80, 200])
def test_no_picture_is_wider_than_the_terminal(monkeypatch, columns):
    def steps(line: ProgressLine) -> None:
        for _ in range(3):  # each is drawn, whatever the time
            line("llama-3.2-1b: model-00001-of-00002.safetensors", TOTAL / 2, TOTAL, "B")
            line.end()

    pictures = [each for each in on_terminal(monkeypatch, columns, steps).replace("\n", "\r").split("\r") if each]
    assert len(pictures) > 3
    assert max(map(len, pictures)) <= columns
    assert "llama-3.2-1b" in pictures[0]
    assert ("50% ###" in pictures[0]) == (columns == 200)


def test_a_terminal_shows_how_much_the_rate_and_the_time_left(monkeypatch):
    def steps(line: ProgressLine) -> None:
        line("llama-3.2-1b", 480_000_000, TOTAL, "B")
        line("llama-3.2-1b", TOTAL, TOTAL, "B")

    shown = on_terminal(monkeypatch, 120, steps)
    assert "19% #" in shown
    assert "480M of 2.48G" in shown
    assert "100% #" in shown
    assert "B/s" in shown
    assert "left" in shown


def test_steps_go_on_in_one_bar_and_a_note_stands_on_a_line_of_its_own(monkeypatch):
    def steps(line: ProgressLine) -> None:
        line("turn 1: manual", 1, 4)
        line.note("a note")
        line("turn 2: manual", 4, 4)

    shown = on_terminal(monkeypatch, 80, steps)
    assert "25% #" in shown
    assert "\ra note\n" in shown
    assert "left: turn 2: manual" in shown.split("\r")[-1]


def test_elsewhere_there_is_a_line_at_the_start_and_one_every_10_seconds(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    line = ProgressLine()
    for second in range(61):
        now[0] = 100.0 + second
        line("llama-3.2-1b", second * 10_000_000, TOTAL, "B")
    line.end()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 7
    assert lines[0] == "llama-3.2-1b"
    assert lines[1].startswith("llama-3.2-1b   4% 100M of 2.48G, ")
    assert lines[1].endswith(" left")


def test_elsewhere_each_share_is_named_once(capsys):
    line = ProgressLine()
    for what in ("fetching", "converting"):
        for share in (0.0, 0.5, 1.0):
            line(what, share)
    line.end()
    assert capsys.readouterr().err == "fetching\nconverting\n"
