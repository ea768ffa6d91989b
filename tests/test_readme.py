"""The commands of the README and of the pages behind it do what they say; those that are not run say why."""

from __future__ import annotations

import re

import pytest

from kit.paths import ROOT
from kit.verify import tolerances
from tests.conftest import run_command

BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>.+?) -->\n)?```sh\n(?P<commands>.+?)```", re.DOTALL)


PAGES = ["README.md", "CONTRIBUTING.md"]
PAGES += [
    f"docs/{name}.md" for name in ("running", "llama", "proving", "container", "offline", "verbs", "how-it-works")
]


def commands() -> list[str]:
    """Every line of a block that is run, in order."""
    found = []
    for page in PAGES:
        for block in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8")):
            # What follows from a tuning is one story, in a clone of its own (test_tuning_page.py).
            if not block["reason"] and "make tune" not in block["commands"]:
                found += block["commands"].strip().splitlines()
    return found


# Two threads of torch beside another worker's take minutes; alone they take seconds.
MUCH_TO_COMPUTE = ("make verify", "make run", "make -s run", "make doctor", "echo", "make bench")


def test_there_are_commands_and_each_block_that_is_not_run_says_why():
    assert len(commands()) > 8
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert text.count("```sh") == len(BLOCK.findall(text)), page
    assert {"make run", "make test"} <= set((ROOT / "README.md").read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=pytest.mark.slow) if command.startswith(MUCH_TO_COMPUTE) else command
        for command in commands()
    ],
)
def test_the_command_works_as_it_stands(command):
    """In this environment, which all of them share. A lint run inside the tests would only repeat CI's."""
    done = run_command(["sh", "-c", command.replace("make lint", "make -n lint")], timeout=240)
    assert done.status == 0, done.err
    assert "rror:" not in done.err


def test_the_verbs_of_the_table_are_those_of_make():
    text = (ROOT / "docs" / "verbs.md").read_text(encoding="utf-8")
    table = text[text.index("| verb |") : text.index("`make` alone")]
    listed = set(re.findall(r"^  make (\S+)", run_command(["make", "help"]).out, re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", table)) == listed - {"help"}


@pytest.mark.slow
def test_the_answer_in_the_readme_is_the_one_that_a_run_gives():
    """In float32, as the README says: in bfloat16 this chip may say other words, for honest reasons."""
    done = run_command(["make", "-s", "run", "DEVICE=cpu", "DTYPE=float32"])
    assert done.out[:200] in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_proof_that_is_shown_is_held_to_todays_tolerances():
    shown = re.findall(
        r"^ok +(float32|bfloat16) .+ \((\S+) and (\S+) allowed\)", (ROOT / "docs" / "proving.md").read_text(), re.M
    )
    assert shown
    for dtype, mean, largest in shown:
        allowed = tolerances.TABLE["cpu", dtype]
        assert (float(mean), float(largest)) == (allowed.mean, allowed.largest)
