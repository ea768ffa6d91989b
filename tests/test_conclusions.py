"""What a bench says of its numbers: computed, as far as the noise allows. And two benches beside each other."""

from __future__ import annotations

import pytest

from kit.bench import compare as bench_compare
from kit.bench import conclusions, experiment, stats
from kit.bench import plot as bench_plot
from kit.bench import table as bench_table
from kit.bench.experiment import Bench, Row, Run
from kit.bench.plan import Combination, Plan
from kit.bench.stats import Spread
from kit.models import registry
from kit.reports import Report


def run(speed: float, whole: float = 3.0, memory: int = 10**9, gpu: int | None = None) -> Run:
    return Run(0.1, 1.0, 0.2, 0.1, whole - 1.4, whole, speed, memory, gpu)


def row(method: str, device: str, number_format: str, speeds, wholes=(3.0, 3.1, 3.2), gpu=None) -> Row:
    dtype, quant = (None, number_format) if method == "llamacpp" else (number_format, None)
    runs = [run(speed, whole, gpu=gpu) for speed, whole in zip(speeds, wholes, strict=False)]
    return Row(Combination(method, device, dtype, quant, 10**9), runs)


def bench(*rows: Row, without_mps: str = "", turns: int = 3) -> Bench:
    plan = Plan(registry.find("starter"), tuple(each.combination for each in rows), turns, 50, without_mps)
    return Bench(plan, list(rows), {"cpu": [50e9, 51e9, 49e9], "mps": [60e9] * 3})


SLOW, FAST = (10, 10.1, 10.2), (21, 21.1, 21.2)


def said(*rows: Row, **options) -> str:
    return "\n".join(conclusions.of(bench(*rows, **options)))


@pytest.mark.parametrize(
    ("torch_mps", "llamacpp_mps", "says"),
    [
        (SLOW, (60, 61, 62), "So where MPS is slow here, it is the framework, not the chip."),
        (SLOW, SLOW, "MPS is slower through both: here it is the chip, for one text at a time."),
        ((50, 51, 52), (60, 61, 62), "on this machine the origin's conclusion does not hold"),
        ((50, 51, 52), SLOW, "PyTorch gains from MPS here, and llama.cpp does not."),
    ],
)
def test_the_framework_or_the_chip(torch_mps, llamacpp_mps, says):
    text = said(
        row("manual", "cpu", "bfloat16", FAST),
        row("manual", "mps", "bfloat16", torch_mps),
        row("llamacpp", "cpu", "bf16", FAST),
        row("llamacpp", "mps", "bf16", llamacpp_mps),
    )
    assert says in text


def test_nothing_follows_from_what_cannot_be_told_apart():
    text = said(
        row("manual", "cpu", "bfloat16", FAST),
        row("manual", "mps", "bfloat16", (21.1, 21.0, 21.3)),
        row("llamacpp", "cpu", "bf16", FAST),
        row("llamacpp", "mps", "bf16", (60, 61, 62)),
    )
    assert "Through PyTorch MPS decodes as fast as the CPU" in text
    assert "framework, not the chip" not in text
    assert "conclusion does not hold" not in text


def test_each_devices_factor_is_named():
    text = said(row("manual", "cpu", "bfloat16", FAST), row("manual", "mps", "bfloat16", SLOW))
    assert "Through PyTorch the CPU decodes 2.1 times as fast as MPS (manual, bfloat16)." in text


def test_without_mps_the_question_stays_open_and_says_why():
    text = said(row("manual", "cpu", "bfloat16", SLOW), without_mps="this is Linux")
    assert "MPS against CPU stays open here (this is Linux)." in text
    assert "The origin found MPS slower: 10 s against 6 s" in text


def test_methods_that_cannot_be_told_apart_are_called_the_same():
    pipeline = row("pipeline", "cpu", "bfloat16", SLOW, (3.0, 3.2, 3.1))
    manual = row("manual", "cpu", "bfloat16", SLOW, (3.1, 3.1, 3.1))
    assert "pipeline and manual take the same time on cpu in bfloat16" in said(pipeline, manual)
    slower = row("pipeline", "cpu", "bfloat16", SLOW, (6.0, 6.4, 6.2))
    assert "manual is 2.0 times as fast as pipeline on cpu in bfloat16: 3.1 s against 6.2 s" in said(slower, manual)


def test_the_same_chip_and_bits_through_another_framework():
    text = said(row("manual", "cpu", "bfloat16", SLOW), row("llamacpp", "cpu", "bf16", FAST))
    assert "llamacpp in bf16 decodes 2.1 times as fast as manual in bfloat16: the same chip and 16 bits in both" in text
    text = said(row("manual", "cpu", "bfloat16", FAST), row("llamacpp", "cpu", "q4_0", SLOW))
    assert "manual in bfloat16 decodes 2.1 times as fast as llamacpp in q4_0" in text


def test_the_share_of_the_ceiling_and_the_memory_are_said():
    text = said(row("manual", "cpu", "bfloat16", SLOW), row("llamacpp", "mps", "bf16", FAST, gpu=3 * 10**9))
    assert "manual on cpu in bfloat16 stays at 20%" in text  # 10.1 of 50
    assert "llamacpp on mps in bf16 the most (4.00 GB)" in text


def test_too_few_turns_are_said_to_be_too_few():
    assert "3 runs are too few" in said(row("manual", "cpu", "bfloat16", SLOW))
    assert "too few" not in said(row("manual", "cpu", "bfloat16", SLOW * 2, (3.0,) * 6))
    # After Ctrl-C it is not the number that was asked for that counts.
    stopped = bench(row("manual", "cpu", "bfloat16", SLOW[:1]), turns=5)
    assert "1 run is too few" in "\n".join(conclusions.of(stopped))
    assert "One run in a fresh process (stopped after 1 of 5)" in bench_table.markdown(experiment.content(stopped, []))


def test_those_that_cannot_be_told_apart_are_the_fastest_together_or_nobody_is():
    quick = (
        row("llamacpp", "cpu", "q4_0", FAST, (1.0, 1.1, 1.2)),
        row("llamacpp", "cpu", "q4_1", FAST, (1.05, 1.1, 1.3)),
    )
    text = said(*quick, row("manual", "cpu", "bfloat16", SLOW))
    fastest = "llamacpp on cpu in q4_0 and llamacpp on cpu in q4_1 are the fastest (1.1 s)"
    assert f"From the command to its end {fastest}, and manual on cpu in bfloat16 the slowest (3.1 s)." in text
    # All three hold as much.
    assert "memory (" not in text
    assert "fastest" not in said(*quick)


def test_a_ratio_is_of_the_same_turns():
    # A machine that slows down by half slows both alike: the ratio has no spread.
    assert stats.ratio([10, 5, 20], [5, 2.5, 10]) == Spread(2, 2, 2)
    assert stats.is_noise(Spread(1.01, 0.9, 1.1))
    assert not stats.is_noise(Spread(1.05, 1.01, 1.1))


# --- The table and the picture ----------------------------------------------------------------------------------------


def content(*rows: Row) -> dict:
    found = bench(*rows)
    document = experiment.content(found, conclusions.of(found))
    document["facts"] = document["facts"] | {"kit": {"commit": "a"}}
    return document


def test_a_gpu_has_a_column_and_random_weights_are_labelled(tmp_path):
    document = content(row("manual", "mps", "bfloat16", SLOW, gpu=2 * 10**9))
    document["model"]["random"] = True
    table = bench_table.markdown(document)
    assert "GPU MB |" in table
    assert "| 2000 |" in table
    assert "(random weights: for speed and memory alone)" in table
    assert "GPU MB" not in bench_table.markdown(content(row("manual", "cpu", "bfloat16", SLOW)))
    bench_plot.draw(document, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_a_row_that_failed_is_in_the_table_with_its_reason():
    failed = Row(Combination("manual", "cpu", "float32", None, 1), [], "it was killed")
    table = bench_table.markdown(content(failed, row("manual", "cpu", "bfloat16", SLOW)))
    assert "| manual | cpu | float32 | – |" in table
    assert "it was killed" in table


# --- Two benches ------------------------------------------------------------------------------------------------------


def report(*rows: Row, **changes) -> Report:
    return Report("bench", "2026-01-01T00:00:00+00:00", content(*rows) | changes)


def names(a: Report, b: Report) -> list[str]:
    return [difference.name for difference in bench_compare.differences(a, b)]


def test_what_is_within_the_noise_is_no_change():
    a = report(row("manual", "cpu", "bfloat16", (10, 11, 12)))
    b = report(row("manual", "cpu", "bfloat16", (11.5, 12, 13)))
    assert names(a, b) == []


def test_what_changed_beyond_the_noise_comes_before_what_it_may_come_from():
    a = report(row("manual", "cpu", "bfloat16", SLOW, (3.0, 3.1, 3.2)))
    b = report(row("manual", "cpu", "bfloat16", FAST, (2.0, 2.1, 2.2)))
    b.content["facts"]["kit"] = {"commit": "b"}
    found = bench_compare.differences(a, b)
    assert [difference.name for difference in found] == [
        "manual on cpu in bfloat16: process_s",
        "manual on cpu in bfloat16: decode_tokens_per_s",
        "facts.kit.commit",
    ]
    assert found[1].a == "10.1 (10 to 10.2)"
    assert found[1].b == "21.1 (21 to 21.2): 2.09 times"


def test_a_row_that_only_one_has_and_another_bandwidth_are_named():
    a = report(row("manual", "cpu", "bfloat16", SLOW), row("llamacpp", "cpu", "bf16", SLOW))
    b = report(row("manual", "cpu", "bfloat16", SLOW))
    b.content["bandwidth"]["cpu"] = {"median": 10e9, "low": 9e9, "high": 11e9, "bytes_per_s": [10e9]}
    assert names(a, b) == ["llamacpp on cpu in bf16", "bandwidth of cpu, bytes/s"]


def test_too_few_runs_are_said_to_be_too_few():
    few = report(row("manual", "cpu", "bfloat16", SLOW))
    enough = report(row("manual", "cpu", "bfloat16", SLOW * 2, (3.0,) * 6))
    assert bench_compare.too_few_runs(few, enough)
    assert not bench_compare.too_few_runs(enough, enough)


def test_a_quality_that_changed_is_a_difference_and_one_that_other_kernels_move_is_none():
    rows = row("manual", "cpu", "bfloat16", SLOW)
    quality = {"method": "llamacpp", "device": "cpu", "dtype": None, "quant": "q4_0", "top1_agreement": 0.57}
    a, slightly, much = (report(rows, quality=[quality | {"perplexity": value}]) for value in (10.177, 10.2, 6.1))
    assert [each.name for each in bench_compare.differences(a, much)] == ["llamacpp on cpu in q4_0: perplexity"]
    assert bench_compare.differences(a, slightly) == []
