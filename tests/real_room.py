"""A clone of this very source, with the real starter model, and its real bundle for this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from kit.paths import ROOT
from tests.conftest import Done, clean_environment, copy_kit, run_command

# In a namespace of its own: no interface but loopback, no route to anywhere.
ISOLATED = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "isolated"]
# Neither this machine's wheels nor its index or caches may help.
ALONE = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "UV_FIND_LINKS": "", "PIP_RETRIES": "0"}


def alone(home: Path) -> dict[str, str]:
    """The variables of a person whose HOME is empty."""
    home.mkdir(exist_ok=True)
    caches = {name: str(home / name) for name in ("UV_CACHE_DIR", "PIP_CACHE_DIR", "XDG_CACHE_HOME", "XDG_DATA_HOME")}
    return {**ALONE, **caches, "HOME": str(home)}


@dataclass(frozen=True)
class RealBundle:
    """`clone` made it; `folder` and `tar` are it, and `digest` is what was printed."""

    clone: Path
    folder: Path
    tar: Path
    digest: str


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> RealBundle:
    """One for all: the tests that ask for it are a group, for one worker."""
    return make_bundle(tmp_path_factory.mktemp("room"))


def make_bundle(place: Path) -> RealBundle:
    clone = copy_kit(place / "organiser")
    (clone / "models").mkdir()
    shutil.copytree(ROOT / "models" / "starter", clone / "models" / "starter", copy_function=_link)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "as it is here"]):
        git = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.com", "-c", "commit.gpgsign=false"]
        subprocess.run([*git, *words], cwd=clone, check=True)
    done = run_command([sys.executable, "-m", "scripts.bundle"], cwd=clone, timeout=600)
    assert done.status == 0, done.err
    folder = next(path for path in (clone / "dist").iterdir() if path.is_dir())
    return RealBundle(clone, folder, folder.with_name(f"{folder.name}.tar"), done.out.strip())


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def require_isolation() -> None:
    if subprocess.run([*ISOLATED, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a network namespace needs Linux, root, unshare and ip")


def isolated(command: list[str], cwd: Path, home: Path, **env: str) -> Done:
    """Runs where there is no network at all."""
    return run_command([*ISOLATED, *command], cwd=cwd, env={**alone(home), **env}, timeout=600)


def serve(bundle: RealBundle, *words: str) -> tuple[subprocess.Popen[str], str]:
    """`make mirror`'s script on a free port, and its address."""
    command = [sys.executable, "-m", "scripts.mirror", "--bundle", str(bundle.folder), "--port", "0", *words]
    process = subprocess.Popen(
        command,
        cwd=bundle.clone,
        env=clean_environment() | {"KIT_DOTENV": "", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    found = re.search(r"BUNDLE=(http://\S+)", process.stdout.readline())
    assert found
    return process, found[1]
