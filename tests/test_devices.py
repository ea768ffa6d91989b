"""cpu, mps, auto: every decision up to torch's boundary.

MPS is not on the machines that most of these run on. Its stand-in is the Machine that is asked about, and
torch.backends.mps: what is above that boundary is real. tests/test_mps.py holds what needs the hardware.
"""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from kit.engines import devices, torch_engine
from kit.engines.methods import ManualEngine
from kit.environment import machine
from kit.environment.machine import Machine
from kit.errors import KitError, WrongUsage
from kit.models import examine
from scripts.hints import words


def choose(name: str) -> tuple[str, str]:
    return devices.choose(name, torch_engine.obstacle)


MAC = Machine(system="Darwin", arch="arm64", macos="15.3")


@pytest.fixture
def on(monkeypatch):
    """Makes this process believe that it runs on another machine, with a torch that answers about MPS as told."""

    def pretend(here: Machine, built=True, available=True, sum_of_ones=4.0):
        monkeypatch.setattr(machine, "this", lambda: here)
        monkeypatch.setattr(torch.backends.mps, "is_built", lambda: built)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: available)
        asked = []

        class Ones:
            def __init__(self, *shape, device):
                asked.append(device)
                if isinstance(sum_of_ones, Exception):
                    raise sum_of_ones

            def __mul__(self, factor):
                return self

            def sum(self):
                return self

            def item(self):
                return sum_of_ones

        monkeypatch.setattr(torch, "ones", Ones)
        return asked

    return pretend


OBSTACLES = [
    pytest.param(Machine("Linux", "x86_64"), {}, "GPU of Apple Silicon, and this is Linux x86_64", id="linux"),
    pytest.param(Machine("Linux", "aarch64", container=True), {}, "no container reaches Apple's GPU", id="container"),
    pytest.param(Machine("Darwin", "x86_64", "15.3", translated=True), {}, "under Rosetta", id="rosetta"),
    pytest.param(Machine("Darwin", "x86_64", "13.1"), {}, "Intel processor", id="intel"),
    pytest.param(Machine("Darwin", "arm64", "13.6.1"), {}, "macOS 14 or later, and this is 13.6.1", id="old macOS"),
    pytest.param(MAC, {"built": False}, "built without MPS", id="torch without MPS"),
    pytest.param(Machine("Darwin", "arm64", "15.3", virtual=True), {"available": False}, "virtual machine", id="VM"),
    pytest.param(MAC, {"available": False}, "no Metal device", id="sandbox"),
    pytest.param(MAC, {"sum_of_ones": RuntimeError("MPS broke\nmore")}, "first operation.*MPS broke", id="broken"),
    pytest.param(MAC, {"sum_of_ones": 3.0}, "gave a wrong number", id="garbage"),
]


@pytest.mark.parametrize(("here", "torch_says", "cause"), OBSTACLES)
def test_mps_asked_for_says_which_cause_it_is_and_what_to_type(on, here, torch_says, cause):
    on(here, **torch_says)
    with pytest.raises(KitError, match=rf"DEVICE=mps cannot run here: .*{cause}") as caught:
        choose("mps")
    assert caught.value.status == 1
    assert "make " in words(caught.value.hint)


@pytest.mark.parametrize(("here", "torch_says", "cause"), OBSTACLES)
def test_auto_takes_the_cpu_and_gives_the_same_cause_as_its_reason(on, here, torch_says, cause):
    on(here, **torch_says)
    name, reason = choose("auto")
    assert name == "cpu"
    assert re.search(cause, reason)


@pytest.mark.parametrize("name", ["mps", "auto"])
def test_a_mac_where_it_works_gets_mps_after_one_operation_there(on, name):
    asked = on(MAC)
    chosen, reason = choose(name)
    assert chosen == "mps"
    assert reason
    assert asked == ["mps"]


def test_the_container_hint_is_the_native_command():
    why, hint = devices.mps_obstacle(Machine("Linux", "aarch64", container=True), torch_engine.obstacle) or ("", "")
    assert "make run DEVICE=mps" in words(hint)
    assert why


def test_cpu_asks_nothing_about_the_machine(monkeypatch):
    monkeypatch.setattr(machine, "this", lambda: pytest.fail("asked"))
    assert choose("cpu")[0] == "cpu"


@pytest.mark.parametrize("checkpoint", ["bfloat16", "float32"])
def test_dtype_auto_is_the_checkpoints_own(checkpoint, starter, monkeypatch):
    examined = dataclasses.replace(examine.examination(starter), dtype=checkpoint)
    monkeypatch.setattr(examine, "examination", lambda model: examined)
    chosen = ManualEngine(starter, "cpu").device
    assert (chosen.number_format, chosen.format_reason) == (checkpoint, "the checkpoint's own")


def test_a_dtype_that_was_asked_for_is_taken(starter):
    chosen = ManualEngine(starter, "cpu", "float16").device
    assert (chosen.number_format, chosen.format_reason) == ("float16", "asked for")


def test_unknown_names_are_refused_with_the_valid_ones(starter):
    with pytest.raises(WrongUsage, match=r"DEVICE=gpu is unknown\. Valid: auto, cpu, mps"):
        choose("gpu")
    with pytest.raises(WrongUsage, match=r"DTYPE=int8 is unknown\. Valid: auto, bfloat16, float16, float32"):
        ManualEngine(starter, "cpu", "int8")
    with pytest.raises(WrongUsage, match="CPU builds"):
        choose("cuda")
