"""docs/workshop.md, done: the organiser's commands in a clone, each attendee's block in a fresh one of their own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from kit.environment import lock as locks
from kit.paths import ROOT
from tests import answers
from tests.conftest import run_command
from tests.real_room import RealBundle, alone, real, require_isolation

PAGE = (ROOT / "docs" / "workshop.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"<!-- (?P<who>.+?) -->\n```sh\n(?P<commands>.+?)```", re.DOTALL)
BLOCKS = [(match["who"], match["commands"]) for match in BLOCK.finditer(PAGE)]
ATTENDEES = [commands for who, commands in BLOCKS if who == "an attendee"]
(HF_LINE,) = re.findall(r"^HF_ENDPOINT=.*", PAGE, re.MULTILINE)
WHEELS = len(locks.pins(locks.this()))
EXAMPLE = "base-model-kit-0123456789ab"


def test_every_block_says_who_types_it_or_why_it_is_not_run():
    assert PAGE.count("```sh") == len(BLOCKS)
    known = {"an attendee", "an attendee, set up", "the organiser", "the organiser, until Ctrl-C"}
    assert {who for who, _ in BLOCKS if not who.startswith("not run: ")} == known
    assert len(ATTENDEES) >= 6


# The room: nothing but loopback, which has the address of the page, and the mirror that the organiser starts there.
ROOM = """
ip link set lo up && ip addr add 192.168.1.10/24 dev lo || exit 3
cd "$1" && $2 >"$3" 2>&1 & mirror=$!
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do grep -q "with hf only" "$3" && break; sleep 0.5; done
cd "$4" && sh -e -c "$5"; status=$?
kill $mirror
exit $status
"""


__all__ = ["real"]


@pytest.fixture
def bundle(real) -> RealBundle:
    return real


def as_here(commands: str, bundle: RealBundle, tmp_path: Path) -> str:
    """The commands with what is this place's own, where the page has an example."""
    for example, here in {
        "/tmp/": f"{tmp_path}/",
        EXAMPLE: bundle.folder.name,
        "/Volumes/STICK": str(bundle.folder.parent),
        "0" * 64: bundle.digest,
    }.items():
        commands = commands.replace(example, here)
    return commands


def fresh_clone(bundle: RealBundle, tmp_path: Path) -> Path:
    run_command(["git", "clone", "-q", str(bundle.clone), str(tmp_path / "clone")])
    return tmp_path / "clone"


@pytest.mark.slow
def test_what_an_attendee_types_at_home_works_in_a_fresh_clone(bundle, tmp_path):
    done = run_command(["sh", "-e", "-c", ATTENDEES[0]], cwd=fresh_clone(bundle, tmp_path), timeout=600)
    assert done.status == 0, done.err
    assert answers.here() in done.out


@pytest.mark.slow
@pytest.mark.parametrize("commands", ATTENDEES[1:])
def test_what_an_attendee_types_in_the_room_works_in_a_fresh_clone(bundle, tmp_path, commands):
    require_isolation()
    (mirror,) = (line for who, line in BLOCKS if who == "the organiser, until Ctrl-C")
    # As make would, but one process that can be ended.
    script = as_here(mirror, bundle, tmp_path).replace("make mirror BUNDLE=", "-m scripts.mirror --bundle ")
    script = f"{sys.executable} {script.replace('LISTEN=', '--listen ').strip()}"
    typed = as_here(commands, bundle, tmp_path)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin:{Path(sys.base_prefix) / 'bin'}"
    env = alone(tmp_path / "home") | {"NO_PROXY": "*", "PATH": f"{path}:/usr/sbin:/sbin"}
    words = [str(bundle.clone), script, str(tmp_path / "mirror.log"), str(fresh_clone(bundle, tmp_path)), typed]
    done = run_command(["unshare", "-n", "sh", "-c", ROOM, "room", *words], env=env, timeout=600)
    assert done.status == 0, done.err + (tmp_path / "mirror.log").read_text()
    assert "error:" not in done.err
    if "make setup" in typed:
        assert f"from the bundle: {WHEELS} wheels" in done.err
    # What the organiser writes on the board is what the page says.
    board = (tmp_path / "mirror.log").read_text()
    assert f"make setup BUNDLE=http://192.168.1.10:8080 SHA256={bundle.digest}\n" in board
    assert as_here(HF_LINE, bundle, tmp_path) in board
    if "make run" in typed:
        assert answers.here() in done.out


@pytest.mark.slow
def test_what_the_organiser_types_works(bundle):
    (commands,) = (commands for who, commands in BLOCKS if who == "the organiser")
    made = run_command(["sh", "-e", "-c", commands], cwd=bundle.clone, timeout=600)
    assert made.status == 0, made.err
    assert bundle.digest in made.out
    assert bundle.folder.name in made.out
