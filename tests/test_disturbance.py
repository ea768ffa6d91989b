"""A busy machine is no property of a method: what a bench knows of the others, and what it makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kit.bench import conclusions, disturbance, experiment
from kit.bench import plot as bench_plot
from kit.bench import table as bench_table
from kit.bench.disturbance import Disturbance, Reading
from kit.bench.experiment import Run
from kit.bench.plan import Combination, Plan

QUIET = Run(0.1, 1.0, 0.2, 0.1, 1.6, 3.0, 20.0, 10**9, None, 0.02, 0.0, 0.0)
BUSY = replace(QUIET, decode_tokens_per_s=2.0, decode_s=16.0, process_s=17.4, others_processors=1.9)
MANUAL = Combination("manual", "cpu", "bfloat16", None, 10**9)
LLAMACPP = Combination("llamacpp", "cpu", None, "bf16", 10**9)


def test_what_others_took_is_what_was_busy_and_not_this_process():
    before = Reading(at=100.0, own=5.0, busy=1000.0, stolen=10.0, throttled=None)
    after = Reading(at=110.0, own=17.0, busy=1020.0, stolen=11.0, throttled=3.0)
    assert before.until(after) == Disturbance(0.8, 0.1, None)


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (Disturbance(0.02, 0.0, 0.0), None),
        (Disturbance(None, None, None), None),
        (Disturbance(1.9, 0.0, 0.0), "other programs took 1.9 processors"),
        (Disturbance(0.0, 0.5, None), "the hypervisor took 0.5 processors"),
        (Disturbance(0.0, None, 0.4), "the control group was throttled 40% of the time"),
    ],
)
def test_what_disturbs_is_said(seen, says):
    assert seen.reason == says


@pytest.mark.parametrize(
    ("group", "place", "said", "seconds"),
    [
        ("0::/user/kit", "user/kit", "usage_usec 9\nthrottled_usec 2500000\n", 2.5),
        ("0::/user/kit", ".", "throttled_usec 1000000\n", 1.0),
        ("4:cpu,cpuacct:/docker/x", "cpu,cpuacct/docker/x", "nr_periods 3\nthrottled_time 500000000\n", 0.5),
        ("3:memory:/docker/x", "memory/docker/x", "throttled_usec 1\n", None),
        ("0::/user/kit", "elsewhere", "throttled_usec 1\n", None),
    ],
    ids=["own group", "root", "version 1", "another controller", "nowhere"],
)
def test_throttling_is_that_of_the_processes_own_control_group(tmp_path, group, place, said, seconds):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(group + "\n")
    (tmp_path / "cgroup" / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / "cgroup" / place / "cpu.stat").write_text(said)
    assert disturbance.throttled_seconds(tmp_path / "proc", tmp_path / "cgroup") == seconds


def test_this_machine_says_what_it_can():
    before = disturbance.read()
    seen = before.until(disturbance.read())
    assert seen.others_processors is not None
    assert (seen.stolen_processors is not None) == Path("/proc/stat").exists()  # Linux counts it


@pytest.fixture
def bench(starter, monkeypatch):
    """A bench of two methods whose runs are given, turn by turn, the warm-up first: no process is started."""

    def call(*turns: tuple[Run, Run], asked: int = 2) -> tuple[experiment.Bench, int]:
        left = [run for turn in turns for run in turn]
        started = []

        def give(command, plan, combination) -> Run:
            started.append(combination)
            place = (MANUAL, LLAMACPP).index(combination)
            number = (len(started) - 1) // 2
            return turns[min(number, len(turns) - 1)][place]

        monkeypatch.setattr(experiment, "run_once", give)
        monkeypatch.setattr(experiment, "_bandwidth", lambda device: 50e9)
        assert left
        return experiment.run(Plan(starter, (MANUAL, LLAMACPP), asked, 4, "no GPU"), []), len(started) // 2 - 1

    return call


def test_a_disturbed_turn_is_run_again_and_leaves_no_trace_in_the_figures(bench):
    found, turns = bench((QUIET, QUIET), (BUSY, QUIET), (QUIET, QUIET), (QUIET, QUIET))
    assert (turns, found.repeated, found.runs_done) == (3, 1, 2)
    assert found.rows[0].values("decode_tokens_per_s") == [20.0, 20.0]
    assert found.disturbances == []


def test_it_is_run_again_a_bounded_number_of_times(bench):
    _, turns = bench((QUIET, QUIET), (BUSY, BUSY))
    assert turns == 2 + experiment.REPEATS


def test_figures_and_conclusions_are_of_the_undisturbed_turns(bench):
    found, _ = bench((QUIET, QUIET), (QUIET, QUIET), (QUIET, BUSY), asked=5)
    assert found.runs_done == 5
    assert all(row.values("decode_tokens_per_s") == [20.0] for row in found.rows)
    said = conclusions.of(found)
    assert (
        "4 turns were disturbed (other programs took 1.9 processors) and left out of every figure and sentence." in said
    )
    assert not any("the framework" in sentence for sentence in said)


def test_without_an_undisturbed_turn_there_is_no_conclusion_and_every_row_is_marked(bench, tmp_path):
    found, _ = bench((QUIET, QUIET), (BUSY, QUIET))
    said = conclusions.of(found)
    assert len(said) == 1
    assert said[0].startswith("No conclusion: in every turn others took the processors (other programs took 1.9")
    content = experiment.content(found, said)
    assert [row["disturbed"] for row in content["rows"]] == [True, True]
    assert content["rows"][0]["runs"][0]["disturbed"] == "other programs took 1.9 processors"
    assert content["rows"][1]["runs"][0]["disturbed"] is None
    assert content["turns_repeated"] == experiment.REPEATS
    table = bench_table.markdown(content)
    assert "| manual * |" in table
    assert "\\* disturbed in every turn: other programs took 1.9 processors." in table
    bench_plot.draw(content, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
