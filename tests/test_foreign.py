"""The caller's environment is data: what would decide about the kit is cleared, and everything else passes."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest

from kit import settings
from kit.environment import lock as locks
from kit.paths import ROOT
from tests.conftest import run_command
from tests.foreign import LEGITIMATE, nonsense


@pytest.fixture
def through_make(tmp_path):
    """What a program sees that the Makefile starts."""
    (tmp_path / "env").mkdir()
    for name in ("variables.txt", "foreign.txt"):
        shutil.copy(ROOT / "env" / name, tmp_path / "env" / name)
    makefile = (ROOT / "Makefile").read_text()
    show = f"{sys.executable} -I -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    (tmp_path / "Makefile").write_text(f"{makefile}\nshow:\n\t@{show}\n")

    def see(**env: str) -> dict[str, str]:
        done = run_command(["make", "-s", "show"], cwd=tmp_path, env=env)
        assert done.status == 0, done.err
        return json.loads(done.out)

    return see


def test_two_hundred_nonsense_settings_do_not_reach_what_make_starts(through_make):
    foreign = nonsense()
    assert len(foreign) >= 200
    assert not set(foreign) & set(through_make(**foreign))


def test_each_legitimate_one_reaches_it(through_make):
    seen = through_make(**LEGITIMATE)
    assert {name: seen.get(name) for name in LEGITIMATE} == LEGITIMATE


def test_a_verb_without_make_clears_them_too(monkeypatch):
    before = dict(os.environ)
    for name, value in (nonsense() | LEGITIMATE).items():
        monkeypatch.setenv(name, value)
    settings.clear_foreign()
    assert not set(nonsense()) & set(os.environ)
    assert {name: os.environ.get(name) for name in LEGITIMATE} == LEGITIMATE
    os.environ.update(before)


# pipeline stands on the same libraries as manual.
@pytest.mark.parametrize("method", ["manual", "llamacpp"])
def test_a_run_answers_under_all_of_them(make, method):
    done = make("run", f"METHOD={method}", "MAX_NEW_TOKENS=2", "JSON=1", env=nonsense())
    assert done.status == 0, done.err
    assert json.loads(done.out)["new_tokens"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["verify", "doctor", "gguf"])
def test_the_other_verbs_do_as_well(make, verb):
    done = make(verb, env={"MODEL": "starter", **nonsense()})
    assert done.status == 0, done.out + done.err


def test_a_set_up_proves_what_it_made(tmp_path):
    """Every package is there at its version, and each of its modules."""
    assert locks.unproved(ROOT / ".venv") == []
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    (packages / "click-8.0.0.dist-info").mkdir(parents=True)
    (packages / "click-8.0.0.dist-info" / "RECORD").write_text("click/__init__.py,sha256=x,1\nsix.py,,\nbin/x.py,,\n")
    faults = locks.unproved(tmp_path)
    assert any(fault.startswith("click is 8.0.0 and not ") for fault in faults)
    assert any(fault.startswith("torch is missing and not ") for fault in faults)
    assert {f"click-8.0.0.dist-info: {name} is missing" for name in ("click/__init__.py", "six.py")} <= set(faults)
