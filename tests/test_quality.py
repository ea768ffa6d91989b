"""`make bench QUALITY=1`: perplexity and agreement with float32, of the real formats on the real starter."""

from __future__ import annotations

import pytest

from kit.bench import experiment, quality
from kit.bench.experiment import Run
from kit.bench.plan import Combination, Plan
from kit.models import gguf_files

RUN = Run(0.1, 0.1, 0.1, 0.1, 0.1, 0.5, 10.0, 1, None)


@pytest.mark.slow
def test_fewer_bits_cost_quality_and_bfloat16_hardly_any(starter):
    gguf_files.ensure(starter, gguf_files.choose(starter, "q4_0"))  # as a bench's plan does
    combinations = (
        Combination("manual", "cpu", "bfloat16", None, 1),
        Combination("llamacpp", "cpu", None, "q4_1", 1),
        Combination("llamacpp", "cpu", None, "q4_0", 1),
    )
    bench = experiment.Bench(
        Plan(starter, combinations, 1, 4, ""), [experiment.Row(combination, [RUN]) for combination in combinations], {}
    )
    exact, bfloat16, q4_1, q4_0 = quality.measure(bench)
    assert (exact["method"], exact["dtype"], exact["top1_agreement"]) == ("manual", "float32", 1.0)
    assert exact["tokens"] == 512
    # A model of 135 million weights on this text; one that knew nothing would have 49,152.
    assert 4 < exact["perplexity"] < 9
    assert bfloat16["perplexity"] == pytest.approx(exact["perplexity"], rel=0.02)
    assert bfloat16["top1_agreement"] > 0.95
    assert q4_1["perplexity"] == pytest.approx(exact["perplexity"], rel=0.02)
    assert q4_0["perplexity"] > 1.2 * exact["perplexity"]
    assert q4_0["top1_agreement"] < q4_1["top1_agreement"]
