"""How threads wait: the user's choice, the look at what others use, and what libgomp does of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kit.engines import threads
from kit.paths import ROOT
from tests.conftest import clean_environment

STAT = """cpu  10 0 10 0 0 0 0 0 0 0
cpu0 100 20 30 5000 400 3 2 60 0 0
cpu1 200 0 0 7000 0 0 0 0 0 0
cpu10 900 0 0 0 0 0 0 0 0 0
intr 7 0
"""


@pytest.fixture
def fresh(monkeypatch):
    """No decision yet, and nothing set by whoever runs the tests."""
    monkeypatch.setattr(threads, "_waiting", None)
    for name in (*threads.SETTINGS, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    started: list[str] = []
    monkeypatch.setattr(threads.threading.Thread, "start", lambda thread: started.append(thread.name))
    return started


def in_a_process(program: str, **variables: str) -> str:
    kept = {name: value for name, value in clean_environment().items() if name not in threads.SETTINGS}
    kept.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, cwd=ROOT, env=kept | variables, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize("name", threads.SETTINGS)
@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_what_the_user_has_set_is_left_alone_for_torch_and_llamacpp(name, system, fresh, monkeypatch):
    monkeypatch.setattr(threads.sys, "platform", system)
    monkeypatch.setenv(name, "17")
    before = dict(os.environ)
    assert threads.before_torch() == threads.Waiting("set", f"{name}=17")
    with threads.loading_llamacpp() as chosen:
        assert chosen == threads.Waiting("set", f"{name}=17")
        assert dict(os.environ) == before
    assert dict(os.environ) == before
    assert fresh == []
    assert threads.facts() == {"how": "set", "reason": f"{name}=17"}


def test_one_thread_needs_no_watch(fresh, monkeypatch):
    monkeypatch.setattr(threads.sys, "platform", "linux")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads.before_torch().reason == "one thread waits for nobody"
    assert fresh == []


def test_there_is_one_watch_however_often_torch_is_asked_for(fresh, monkeypatch):
    monkeypatch.setattr(threads.sys, "platform", "linux")
    assert threads.before_torch() == threads.before_torch()
    assert fresh == ["kit-watch"]


def test_a_mac_sleeps_after_a_millisecond(fresh, monkeypatch):
    monkeypatch.setattr(threads.sys, "platform", "darwin")
    monkeypatch.setitem(os.environ, "KMP_BLOCKTIME", "")
    del os.environ["KMP_BLOCKTIME"]
    assert threads.before_torch().how == "briefly"
    assert os.environ["KMP_BLOCKTIME"] == "1"
    assert fresh == []


def test_the_setting_for_llamacpp_does_not_reach_programs_that_are_started_later(fresh, monkeypatch):
    monkeypatch.setattr(threads.sys, "platform", "linux")
    with threads.loading_llamacpp() as chosen:
        assert os.environ["GOMP_SPINCOUNT"] == "1000"
    assert "GOMP_SPINCOUNT" not in os.environ
    assert threads.facts() == {"how": chosen.how, "reason": chosen.reason}


@pytest.mark.parametrize(
    ("others", "processors", "count", "how"),
    [
        (0.0, 2, 2, "looking"),
        (0.1, 2, 2, "looking"),
        (0.5, 2, 2, "asleep"),
        (1.0, 2, 2, "asleep"),
        (1.0, 2, 1, "looking"),
        (1.0, 8, 4, "looking"),
        (5.0, 8, 4, "asleep"),
        (0.0, 2, 4, "asleep"),
    ],
)
def test_threads_sleep_where_others_need_what_they_run_on(others, processors, count, how):
    chosen = threads.decide(others, processors, count)
    assert chosen.how == how
    assert chosen.reason == f"others use {others} of {processors} processors"


def test_only_the_processors_that_may_be_used_count_and_only_work():
    ticks = os.sysconf("SC_CLK_TCK")
    assert threads.busy_seconds(STAT, {0}) == 155 / ticks
    assert threads.busy_seconds(STAT, {0, 1}) == 355 / ticks


# A stand-in for /proc/stat's seconds, as long as they last: others use 1.0 processor, then none.
WATCHED = """
import itertools, os, sys, threading, time
from kit.engines import threads
threads.LOOK = 0.01
processors = os.sched_getaffinity(0)
share = 0.0
clock = others = 0.0
def look(processors):
    global clock, others
    clock, others = clock + 1, others + share
    return clock, others
threads._look = look
crowds = lambda: [thread.name for thread in threading.enumerate()].count("kit-crowd")
def wait(how, crowd):
    end = time.monotonic() + 60
    while threads.facts()["how"] != how or crowds() != crowd or not threads.facts()["reason"].startswith("others use"):
        assert time.monotonic() < end, (threads.facts(), crowds())
        time.sleep(0.01)
threads.before_torch()
assert "torch" not in sys.modules
import torch
torch.set_num_threads(2)
ones = torch.ones(300, 300)
wait("looking", 0)
first = (ones @ ones).sum().item()
share = float(len(processors))
wait("asleep", 1)
assert (ones @ ones).sum().item() == first and torch.get_num_threads() == 2
print(threads.facts()["reason"])
share = 0.0
wait("looking", 0)
assert (ones @ ones).sum().item() == first
print(threads.facts()["reason"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is Linux's")
def test_threads_sleep_while_others_are_at_work_and_look_again_afterwards():
    count = len(os.sched_getaffinity(0))
    if count < 2:
        pytest.skip("needs two processors")
    assert in_a_process(WATCHED).splitlines() == [
        f"others use {float(count)} of {count} processors",
        f"others use 0.0 of {count} processors",
    ]


def test_every_import_of_a_run_decides_before_torch_is_there():
    program = """
import sys
from kit.engines import threads
decide = threads.before_torch
def noted():
    print("torch" in sys.modules)
    return decide()
threads.before_torch = noted
from kit.engines import imports
imports.import_all()
print(threads.facts() is not None)
"""
    assert in_a_process(program, OMP_NUM_THREADS="1").splitlines() == ["False", "True"]


def test_llamacpp_is_loaded_under_the_same_policy():
    program = """
import os
from kit.engines import llama_server, threads
llama_server.import_library()
print(threads.facts()["reason"], "GOMP_SPINCOUNT" in os.environ)
"""
    expected = "KMP_BLOCKTIME=1 False" if sys.platform == "darwin" else "GOMP_SPINCOUNT=1000 False"
    assert in_a_process(program) == expected
    assert in_a_process(program, GOMP_SPINCOUNT="5") == "GOMP_SPINCOUNT=5 True"
