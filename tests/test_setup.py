"""Set-up from nothing, for real, and what can go wrong in it. Slow, and it needs the package index (or its caches)."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests import answers
from tests.conftest import Done, clean_environment, copy_kit, run_command
from tests.foreign import nonsense

pytestmark = pytest.mark.slow

LOCK = "env/lock/macos.txt" if sys.platform == "darwin" else "env/lock/linux.txt"
REFUSED = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple"}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> dict[str, str]:
    """An empty HOME for all tests of this file: the first one fills its caches, as a person's would be."""
    folder = tmp_path_factory.mktemp("home")
    cleared = dict.fromkeys(("UV_CACHE_DIR", "PIP_CACHE_DIR", "XDG_CACHE_HOME", "XDG_DATA_HOME"), "")
    return {"HOME": str(folder), **{name: "" for name in cleared if name in os.environ}}


@pytest.fixture
def clone(tmp_path) -> Path:
    return copy_kit(tmp_path / "base-model-kit")


def make(folder: Path, home: dict[str, str], *words: str, **env: str) -> Done:
    return run_command(["make", "-s", *words], cwd=folder, env=home | env, timeout=600)


def identity(folder: Path) -> tuple[int, int]:
    """Changes when .venv or the starter's weights are made anew."""
    return (folder / ".venv" / "bin").stat().st_ino, (folder / "models/starter/model.safetensors").stat().st_mtime_ns


def test_a_clean_clone_with_an_empty_home_answers_and_then_does_nothing_twice(clone, home):
    first = make(clone, home, "run")
    assert first.status == 0, first.err
    assert first.out.startswith(answers.here())
    before = identity(clone)
    second = make(clone, home, "run")
    assert second.out == first.out
    assert identity(clone) == before
    assert len(second.err.splitlines()) == 4, second.err

    # A changed models.toml or lock redoes only what depends on it.
    later = time.time() + 5
    os.utime(clone / "env" / "models.toml", (later, later))
    assert "fetching" not in make(clone, home, "run", "MAX_NEW_TOKENS=1").err
    lock = clone / LOCK
    lock.write_text(re.sub(r"\nshellingham==(.*\n)( .*\n)+", "\n", lock.read_text()))
    again = make(clone, home, "run", "MAX_NEW_TOKENS=1")
    assert again.status == 0, again.err
    assert "installing" in again.err
    assert not list(clone.glob(".venv/lib/*/site-packages/shellingham"))
    assert identity(clone) == before

    # Moved, it is made anew for its place: whatever else the environment says.
    moved = clone.with_name("moved here")
    clone.rename(moved)
    third = make(moved, {**nonsense(), **home}, "run", "MAX_NEW_TOKENS=1")
    assert third.status == 0, third.err
    assert "moved" in third.err
    assert (moved / ".venv" / "ready").read_text() == f"{moved}/.venv\n"


def test_two_runs_at_once_in_a_clean_clone_both_answer(tmp_path, home):
    folder = copy_kit(tmp_path / "zwei Läufe – 同時")
    runs = [
        subprocess.Popen(
            ["make", "-s", "run", "MAX_NEW_TOKENS=12"],
            cwd=folder,
            env=clean_environment() | home | {"LANG": "C"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        for _ in range(2)
    ]
    said = [run.communicate(timeout=600) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert all(out.startswith(answers.here()) for out, _ in said)
    assert "waiting for" in said[0][1] + said[1][1]


# What is there first at each step of a set-up, in their order: a step is cut short as soon as it has begun.
STEPS = [
    *(".venv/bin", ".venv/bin/pip", ".venv/bin/uv", ".venv/lib/*/site-packages/transformers", ".venv/ready"),
    *("models/.starter.partial", "models/.starter.partial/*.whl", "models/.starter.partial/model.safetensors"),
]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interruption_at_any_step_leaves_what_the_same_command_completes(clone, home, how):
    for step in STEPS:
        run = subprocess.Popen(
            ["make", "-s", "setup"],
            cwd=clone,
            env=clean_environment() | home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while run.poll() is None and not next(clone.glob(step), None):
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, how)
        run.wait(60)
    done = make(clone, home, "run", "MAX_NEW_TOKENS=12")
    assert done.status == 0, done.err
    assert done.out.startswith(answers.here())
    doctor = make(clone, home, "doctor")
    assert doctor.status == 0, doctor.out
    assert not [path.name for path in (clone / "models").iterdir() if "partial" in path.name]


def test_a_venv_of_another_make_is_made_anew(clone, home):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", clone / ".venv"], check=True)
    done = make(clone, home, "environment")
    assert done.status == 0, done.err
    assert "making it anew" in done.err
    assert (clone / ".venv" / "ready").exists()


def test_a_wheel_of_uv_that_an_older_bundle_left_is_not_in_the_way(clone, home):
    (clone / "env" / "wheels" / "uv-0.0.1-py3-none-any.whl").write_bytes(b"of an older lock")
    done = make(clone, home, "environment")
    assert done.status == 0, done.err


def test_another_active_environment_does_not_matter(clone, home, tmp_path):
    other = tmp_path / "other"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", other], check=True)
    active = {"VIRTUAL_ENV": str(other), "CONDA_PREFIX": str(other), "PATH": f"{other}/bin:{os.environ['PATH']}"}
    odd = {"PYTHONPATH": "/nowhere", "PIP_USER": "1", "PIP_TARGET": "/nowhere", "PYTHONHOME": ""}
    done = make(clone, home, "environment", **active, **odd)
    assert done.status == 0, done.err
    assert list(clone.glob(".venv/lib/*/site-packages/torch"))
    assert not list(other.glob("lib/*/site-packages/torch"))
    # Its Python was only a way to the one behind it.
    assert str(other) not in (clone / ".venv" / "pyvenv.cfg").read_text()


def without_links() -> dict[str, str]:
    """pip's configuration and find-links of this machine, away."""
    return {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "UV_FIND_LINKS": "", "PIP_RETRIES": "1"}


def test_without_a_network_it_says_so_and_goes_on_later(clone, tmp_path):
    empty = {"HOME": str(tmp_path / "empty")}
    done = make(clone, empty, "run", **without_links(), **REFUSED)
    assert done.status == 2
    assert "error: fetching uv failed: a server could not be reached" in done.err
    assert "Connection refused" in done.err
    assert "next: check the network" in done.err
    assert done.out == ""


def test_without_a_network_after_uv_is_there(clone, home):
    """The second step's own message: uv is there, the packages are not."""
    assert make(clone, home, "environment").status == 0
    (clone / ".venv" / "lock.txt").write_text("an older lock\n")
    shutil.rmtree(next(clone.glob(".venv/lib/*/site-packages/transformers-*.dist-info")))
    nothing_cached = {"UV_CACHE_DIR": str(clone / "empty"), "UV_HTTP_RETRIES": "0"}
    done = make(clone, home, "environment", **nothing_cached, **without_links(), **REFUSED)
    assert done.status == 2
    assert "error: installing the packages failed: a server could not be reached" in done.err
    healed = make(clone, home, "environment")
    assert healed.status == 0, healed.err
    assert list(clone.glob(".venv/lib/*/site-packages/transformers-*.dist-info"))


@pytest.mark.parametrize(("package", "step"), [("uv", "fetching uv"), ("click", "installing the packages")])
def test_a_package_whose_hash_differs_is_refused(clone, home, package, step):
    lock = clone / LOCK
    text = lock.read_text()
    start = text.index(f"\n{package}==")
    end = re.compile(r"\n(?=[a-z])").search(text, start + 1)
    entry = re.sub("sha256:[0-9a-f]{64}", "sha256:" + "0" * 64, text[start : end.start() if end else None])
    lock.write_text(text[:start] + entry + (text[end.start() :] if end else ""))
    done = make(clone, home, "run")
    assert done.status == 2
    assert f"error: {step} failed: a package is not the pinned one (its sha256 differs)" in done.err
    assert not (clone / ".venv" / "ready").exists()
    assert not list(clone.glob(f".venv/lib/*/site-packages/{package}"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root, on Linux")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(small_disk, home):
    clone = copy_kit(small_disk / "kit")
    done = make(clone, home, "run")
    assert done.status == 2
    assert re.search(r"error: the environment needs 1400 MB on this disk, and 4\d\d MB are free", done.err)
    assert not (clone / ".venv").exists()


def test_a_disk_that_fills_up_on_the_way(small_disk, home):
    clone = copy_kit(small_disk / "kit")
    script = clone / "env" / "bootstrap.sh"
    script.write_text(script.read_text().replace("NEEDED_MB=1400", "NEEDED_MB=100"))
    done = make(clone, home, "run")
    assert done.status == 2
    assert "error: installing the packages failed: the disk is full" in done.err
    assert "next: free" in done.err
    assert not (clone / ".venv" / "ready").exists()


def test_a_disk_that_fills_up_under_the_starter_model(small_disk, script):
    clone = copy_kit(small_disk / "kit")
    (clone / "filler").write_bytes(bytes(150_000_000))
    registry = clone / "kit" / "models" / "registry.py"
    registry.write_text(
        registry.read_text().replace("return self.size + (self.wheel.size if self.wheel else 0)", "return 0")
    )
    done = script("setup", cwd=clone)
    assert done.status == 1
    assert "error: the starter model" in done.err
    assert "full" in done.err or "No space left" in done.err
    assert not (clone / "models" / "starter").exists()
    assert not (clone / "models" / ".starter.partial").exists()


def test_torch_comes_from_pytorchs_page_where_no_find_links_are_set(clone, home):
    """PyTorch's page is played by a server of this test, with the wheel that this machine has."""
    wheel = local_torch_wheel()
    requested = []

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            body = f'<a href="{wheel.name.replace("+", "%2B")}">{wheel.name}</a>'.encode()
            if self.path.endswith(".whl"):
                body = wheel.read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream" if len(body) > 1000 else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        script = clone / "env" / "bootstrap.sh"
        page = f"http://127.0.0.1:{server.server_port}/whl/cpu/torch/"
        script.write_text(script.read_text().replace("https://download.pytorch.org/whl/cpu/torch/", page))
        cache = str(clone / "cache")
        done = make(clone, home, "environment", UV_CACHE_DIR=cache, **without_links())
        server.shutdown()
    assert done.status == 0, done.err
    assert any(path.endswith(".whl") for path in requested)
    assert list(clone.glob(".venv/lib/*/site-packages/torch-2.13.0+cpu.dist-info"))


def local_torch_wheel() -> Path:
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    for folder in os.environ.get("PIP_FIND_LINKS", "").split():
        for wheel in Path(folder).glob(f"torch-2.13.0+cpu-{tag}-*.whl"):
            return wheel
    pytest.skip("no torch wheel in a folder of find-links on this machine")
