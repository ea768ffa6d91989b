"""A lock between processes dies with its process."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from kit.files import locked
from kit.paths import ROOT

HOLDER = """
import sys, time
from pathlib import Path
from kit.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.container
def test_the_second_waits_and_is_told_so_and_goes_on_when_the_first_is_killed(tmp_path):
    path = tmp_path / "sub" / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert holder.stdout
    assert holder.stdout.readline() == b"held\n"
    waited = []
    # kill -9 as soon as the wait has begun.
    with locked(path, lambda: (waited.append(True), threading.Timer(0.1, holder.kill).start())):
        assert waited == [True]
    holder.wait()
    holder.stdout.close()


def test_a_free_lock_does_not_wait(tmp_path):
    for _ in range(2):
        with locked(tmp_path / "lock", lambda: (_ for _ in ()).throw(AssertionError("waited"))):
            pass
