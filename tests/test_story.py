"""docs/story.py: the story as a notebook, each chapter by itself; and `make notebook`, which opens it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from kit.environment import lock as locks
from kit.errors import Command, KitError
from kit.paths import ROOT
from kit.serve import notebook
from tests.conftest import clean_environment

STORY = jupytext.read(ROOT / "docs" / "story.py")
NUMBERS = range(1, 10)


def chapter(number: int) -> NotebookNode:
    """The notebook with the cells of one chapter and no other."""
    starts = [place for place, cell in enumerate(STORY.cells) if cell.source.startswith("# ")]
    first = next(place for place in starts if STORY.cells[place].source.startswith(f"# {number}. "))
    behind = [place for place in starts if place > first]
    found = NotebookNode(STORY)
    found.cells = [NotebookNode(cell) for cell in STORY.cells[first : behind[0] if behind else None]]
    return found


@pytest.mark.parametrize("number", NUMBERS)
def test_each_chapter_has_a_picture_and_two_questions_and_calls_no_shell(number):
    cells = chapter(number).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert "plt.show()" in code
    questions = text.partition("**Try it.**")[2]
    assert "\n1. " in questions
    assert "\n2. " in questions
    assert "\n3. " not in questions
    assert not [line for line in code.splitlines() if line.startswith(("!", "%"))]
    assert "subprocess" not in code
    assert "os.system" not in code


def test_the_table_of_the_first_cell_has_every_chapter():
    titles = [cell.source.splitlines()[0] for cell in STORY.cells if cell.source.startswith("# ")][1:]
    listed = [line.split("|")[1:3] for line in STORY.cells[0].source.splitlines() if line.startswith("| ")][2:]
    assert [f"# {number.strip()}. {question.strip()}" for number, question in listed] == titles
    assert len(titles) == len(NUMBERS)


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
def test_each_chapter_runs_alone(number, kit_copy, monkeypatch):
    for name in [name for name in os.environ if name not in clean_environment()]:
        monkeypatch.delenv(name)
    for name, value in (clean_environment() | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(kit_copy)}).items():
        monkeypatch.setenv(name, value)
    found = chapter(number)
    NotebookClient(found, timeout=900, resources={"metadata": {"path": str(kit_copy / "docs")}}).execute()
    outputs = [output for cell in found.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output for output in outputs if "image/png" in output.get("data", {})]
    said = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    if number == 8:
        assert "after:  Odo Brask" in said
    if number == 9:
        assert "FAILED" not in said
        assert said.count("ok    ") == 3


@pytest.fixture
def own_notebook(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(notebook, "NOTEBOOK", tmp_path / "story.ipynb")
    return tmp_path / "story.ipynb"


def test_what_a_reader_has_changed_stays_and_a_newer_story_is_said(own_notebook):
    assert notebook.write() is False
    assert json.loads(own_notebook.read_text())["nbformat"] == 4
    own_notebook.write_text("mine")
    assert notebook.write() is False
    os.utime(own_notebook, (0, 0))
    assert notebook.write() is True
    assert own_notebook.read_text() == "mine"


def test_without_the_extra_it_says_what_to_type(monkeypatch):
    monkeypatch.setattr(locks, "installed", lambda venv: {})
    with pytest.raises(KitError, match="jupyterlab is not in") as error:
        notebook.require(8888)
    assert error.value.hint == (Command("setup", EXTRA="notebook"),)


def test_a_machine_without_a_screen_is_reached_through_ssh(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert not notebook.has_screen()
    monkeypatch.setenv("DISPLAY", ":0")
    assert notebook.has_screen()
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.7 51000 10.0.0.2 22")
    assert not notebook.has_screen()
    assert notebook.tunnel(8889) == "ssh -L 8889:127.0.0.1:8889 10.0.0.2"


@pytest.mark.slow
@pytest.mark.skipif(
    not (ROOT / ".venv" / "lock-notebook.txt").exists(), reason="JupyterLab is not in .venv: make setup EXTRA=notebook"
)
def test_it_opens_on_loopback_with_a_token_in_the_kernel_of_the_kit(kit_copy, tmp_path):
    said = tmp_path / "said"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free_port = probe.getsockname()[1]
    with said.open("w") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "scripts.notebook", "--port", str(free_port)],
            cwd=kit_copy,
            env=clean_environment(),
            stdout=out,
            stderr=out,
        )
    try:
        end = time.monotonic() + 300
        while "token=" not in said.read_text():
            assert time.monotonic() < end, said.read_text()
            assert child.poll() is None, said.read_text()
            time.sleep(0.1)
        page, _, token = said.read_text().split()[-1].partition("?token=")
        assert page == f"http://127.0.0.1:{free_port}/lab/tree/docs/story.ipynb"
        assert f"ssh -L {free_port}:127.0.0.1:{free_port} " in said.read_text()
        api = f"http://127.0.0.1:{free_port}/api"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{api}/contents/docs/story.ipynb", timeout=60)
        with_token = {"Authorization": f"token {token}"}
        asked = urllib.request.Request(f"{api}/kernels", b"{}", with_token, method="POST")
        kernel = json.load(urllib.request.urlopen(asked, timeout=60))
        assert kernel["name"] == "python3"
        own: list[str] = []
        while not own:
            assert time.monotonic() < end, said.read_text()
            running = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
            place = str(kit_copy / ".venv" / "jupyter")
            own = [line for line in running.splitlines() if "ipykernel" in line and place in line]
            time.sleep(0.2)
        assert own[0].startswith(sys.executable)
        assert (kit_copy / ".venv" / "jupyter").stat().st_mode & 0o077 == 0  # the token stands in its log
    finally:
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130
