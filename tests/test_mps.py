"""What needs a Mac's GPU. Elsewhere each is skipped, and says why."""

from __future__ import annotations

import pytest

from kit import paths
from kit.engines import devices, generate, methods, torch_engine
from kit.engines.request import Request
from kit.models import registry
from kit.tune import tune
from kit.tune.tune import Asked

pytestmark = pytest.mark.mps


def test_auto_is_mps():
    assert devices.choose("auto", torch_engine.obstacle)[0] == "mps"


@pytest.mark.parametrize("method", methods.NAMES)
def test_a_completion_on_mps_reads_as_the_one_on_the_cpu_begins(starter, method):
    def complete(device):
        return generate.complete(Request(starter, "The capital of France is", method, device, max_new_tokens=8))

    on_gpu, on_cpu = complete("mps"), complete("cpu")
    assert on_gpu.device == "mps"
    assert on_gpu.device_memory_bytes
    assert on_gpu.device_memory_bytes >= starter.weights
    # bfloat16 differs between chips after some tokens, for honest reasons; the first ones do not.
    assert on_gpu.token_ids[:3] == on_cpu.token_ids[:3]


def test_float32_on_mps_loads(starter):
    assert generate.complete(Request(starter, "One", "manual", "mps", "float32", max_new_tokens=2)).dtype == "float32"


def test_a_tuning_on_mps_learns_and_its_adapter_runs_on_the_cpu(starter, models, monkeypatch):
    """The same bytes are not promised on MPS; that it learns is."""
    (models / "starter").symlink_to(paths.ROOT / "models" / "starter")
    said, _ = tune.tune(
        tune.prepare(Asked(starter, "mine", None, "mps", epochs=2), lambda line: None), lambda line: None
    )
    assert said["settings"]["device"] == "mps"
    assert said["after"]["held_out_loss"] < said["before"]["held_out_loss"] - 0.5
    assert generate.complete(Request(registry.find("mine"), "One", "manual", "cpu", max_new_tokens=2)).new_tokens == 2
