"""The real bundle on machines without any network, and a room of real clients. Slow: set-up from nothing."""

from __future__ import annotations

import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kit import files
from kit.environment import lock as locks
from kit.offline import bundle
from tests import answers
from tests.bundle_kit import sha256
from tests.conftest import copy_kit, run_command
from tests.real_room import RealBundle, isolated, real, require_isolation, serve

pytestmark = pytest.mark.slow
__all__ = ["real"]

BIN = Path(sys.executable).parent
WHEELS = len(locks.pins(locks.this()))


@pytest.fixture
def clone(tmp_path, real) -> Path:
    """An attendee's clone of the commit, on a machine of its own."""
    require_isolation()
    run_command(["git", "clone", "-q", str(real.clone), str(tmp_path / "clone")])
    return tmp_path / "clone"


def test_from_a_bundle_to_an_answer_without_any_network(real, clone, tmp_path):
    """The tar; tests/test_workshop.py has the folder and the mirror."""
    home = tmp_path / "home"
    probe = isolated(["curl", "-sS", "--max-time", "5", "http://192.0.2.1/"], clone, home)
    assert probe.status != 0, "there is a network after all"
    words = [f"BUNDLE={real.tar}", f"SHA256={real.digest}"]
    done = isolated(["make", "-s", "setup", *words], clone, home)
    assert done.status == 0, done.err
    assert f"from the bundle: {WHEELS} wheels" in done.err
    assert "fetching" not in done.err
    run = isolated(["make", "-s", "run"], clone, home)
    assert run.status == 0, run.err
    assert run.out.startswith(answers.here())
    proof = isolated(["make", "-s", "verify", "DEVICE=cpu"], clone, home)
    assert proof.status == 0, proof.out + proof.err
    assert "verified: starter on cpu in bfloat16" in proof.out
    # From here on it is a clone like any other: set-up and doctor need no bundle, and an empty .venv no network.
    assert isolated(["make", "-s", "setup"], clone, home).status == 0
    assert isolated(["make", "-s", "clean", "setup"], clone, home).status == 0
    assert isolated(["make", "-s", "run", "MAX_NEW_TOKENS=12"], clone, home).out.startswith(answers.here())


def test_the_bundles_own_kit_is_a_working_clone(real, tmp_path):
    """What its README says, on a machine that has nothing but the tar."""
    require_isolation()
    unpacked = run_command(["tar", "-xf", str(real.tar), "-C", str(tmp_path)])
    assert unpacked.status == 0
    folder = tmp_path / real.folder.name
    assert sha256((folder / "SHA256SUMS").read_bytes()) == real.digest
    readme = (folder / "README").read_text()
    (copying,) = (line.strip() for line in readme.splitlines() if line.startswith("  cp -R"))
    home = tmp_path / "home"
    assert isolated(["sh", "-c", copying.partition(" && ")[0]], folder, home).status == 0
    clone = home / "base-model-kit"
    done = isolated(["make", "-s", "setup", f"BUNDLE={folder}", f"SHA256={real.digest}"], clone, home)
    assert done.status == 0, done.err
    assert isolated(["make", "-s", "run", "MAX_NEW_TOKENS=12"], clone, home).out.startswith(answers.here())


def test_a_python_without_ensurepip_is_enough_for_a_bundle(real, clone, tmp_path):
    """Debian's, where python3-venv is not installed and no network is there to install it from."""
    python = tmp_path / "python3-minimal"
    refuse = f"import sys; sys.modules['ensurepip'] = None; sys._base_executable = '{python}'; exec(sys.argv.pop(1))"
    real_python = f"{sys.base_prefix}/bin/python3"
    python.write_text(
        f'#!/bin/sh\nif [ "$1" = -c ]; then shift; exec {real_python} -c "{refuse}" "$@"; fi\n'
        f'[ "$*" != "-m venv .venv" ] || exit 1\nexec {real_python} "$@"\n'
    )
    python.chmod(0o755)
    words = [f"BUNDLE={real.folder}", f"SHA256={real.digest}", f"PYTHON={python}"]
    done = isolated(["make", "-s", "setup", *words], clone, tmp_path / "home")
    assert done.status == 0, done.err
    installed = {path.name for path in clone.glob(".venv/lib/*/site-packages/*.dist-info")}
    assert any(name.startswith("pip-") for name in installed)
    assert any(name.startswith("uv-") for name in installed)


def test_a_tampered_real_bundle_installs_nothing(real, clone, tmp_path):
    spoilt = tmp_path / "spoilt"
    shutil.copytree(real.folder, spoilt, copy_function=os.link)
    (wheel,) = (spoilt / "wheels").glob("transformers-*")
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 1
    wheel.unlink()
    wheel.write_bytes(content)
    done = isolated(["make", "-s", "setup", f"BUNDLE={spoilt}", f"SHA256={real.digest}"], clone, tmp_path / "home")
    assert done.status == 2
    assert f"error: the bundle is refused: 'wheels/{wheel.name}'" in done.err
    assert not (clone / ".venv").exists()
    assert not (clone / "models" / "starter").exists()
    assert not list((clone / "env" / "wheels").glob("*.whl"))


def test_the_same_bytes_again(real, tmp_path):
    """Another clone of the commit, with nothing that is there already."""
    again = make_bundle_of(real, tmp_path / "again")
    assert sha256((again / "SHA256SUMS").read_bytes()) == real.digest
    assert files.sha256(again.with_name(f"{again.name}.tar")) == files.sha256(real.tar)


def make_bundle_of(real: RealBundle, place: Path, *words: str) -> Path:
    run_command(["git", "clone", "-q", str(real.clone), str(place)])
    shutil.copytree(real.clone / "models", place / "models", copy_function=os.link)
    done = run_command([sys.executable, "-m", "scripts.bundle", *words], cwd=place, timeout=600)
    assert done.status == 0, done.err
    return place / "dist" / real.folder.name


def test_a_bundle_for_macs_is_made_here_too(real, tmp_path):
    made = make_bundle_of(real, tmp_path / "macs", "--platform", "macos-arm64,macos-arm64:3.12")
    names = {path.name for path in (made / "wheels").iterdir()}
    assert {"cp311", "cp312"} == {name.split("-")[2] for name in names if name.startswith("torch-")}
    assert not [name for name in names if "linux" in name]


def test_thirty_clients_at_once_all_end_with_verified_files(real, tmp_path):
    """Fifteen with hf and the starter, fifteen with the kit's own restore."""
    process, url = serve(real)
    sums = bundle.parse_sums((real.folder / "SHA256SUMS").read_bytes())
    pinned = {
        path.removeprefix("models/starter/"): digest
        for path, digest in sums.items()
        if path.startswith("models/starter/")
    }
    slots = 30

    def with_hf(seat: int) -> None:
        home = tmp_path / f"seat-{seat}"
        home.mkdir()
        command = [str(BIN / "hf"), "download", "base-model-kit/starter", "--local-dir", "starter"]
        env = {"HF_ENDPOINT": url, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HOME": str(home), "NO_PROXY": "*"}
        done = run_command(command, cwd=home, env=env)
        assert done.status == 0, done.err
        found = {path: files.sha256(home / "starter" / path) for path in pinned}
        assert found == pinned
        shutil.rmtree(home)

    def with_the_kit(seat: int) -> None:
        clone = copy_kit(tmp_path / f"seat-{seat}")
        env = {"BUNDLE": url, "SHA256": real.digest, "NO_PROXY": "*"}
        done = run_command([sys.executable, "-m", "scripts.unbundle"], cwd=clone, env=env)
        assert done.status == 0, done.err
        for path in pinned:
            assert files.sha256(clone / "models" / "starter" / path) == pinned[path]
        assert len(list((clone / "env" / "wheels").glob("*.whl"))) == WHEELS
        shutil.rmtree(clone)

    started = time.monotonic()
    try:
        with ThreadPoolExecutor(slots) as room:
            seats = [room.submit((with_hf, with_the_kit)[seat % 2], seat) for seat in range(30)]
            for seat in seats:
                seat.result()
        memory = Path(f"/proc/{process.pid}/status")
        if memory.exists():
            peak = next(line for line in memory.read_text().splitlines() if line.startswith("VmHWM"))
            assert int(peak.split()[1]) < 300_000
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert time.monotonic() - started < 240
