"""What the kit knows of the machine that it runs on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kit.engines import memory
from kit.environment import machine
from kit.environment.machine import Machine
from kit.paths import ROOT


@pytest.mark.container
def test_this_machine():
    here = machine.this()
    assert here.system in ("Linux", "Darwin")
    assert here.memory
    assert here.memory > 1e9
    assert here.arch in here.name


@pytest.mark.parametrize(("version", "old"), [("13.7.2", True), ("14.0", False), ("26.1", False), ("", False)])
def test_old_macos(version, old):
    assert Machine("Darwin", "arm64", version).old_macos() is old


def test_sysctl_without_the_program_is_empty(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert machine.sysctl("kern.osversion") == ""


@pytest.mark.container
def test_peak_memory_is_this_processes_own_and_not_its_parents():
    """A child of a large process starts small: Linux's ru_maxrss would carry the parent's peak over."""
    held = bytearray(300_000_000)
    held[::4096] = b"x" * len(held[::4096])
    program = "from kit.engines.memory import peak_rss_bytes as p; a = p(); b = bytearray(90_000_000); print(a, p())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 1e6 < before < 150e6
    assert 80e6 < after - before < 120e6
    assert memory.peak_rss_bytes() > 300e6
