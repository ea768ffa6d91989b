"""What the tests of the container share: a real engine, and the verbs as a person types them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kit.paths import ROOT
from tests.conftest import Done, clean_environment, run_command


def obstacle() -> str:
    """Why there is no container to test here; "" where there is an engine."""
    for command in (["docker", "version"], ["docker", "compose", "version"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            return "there is no docker client"
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["no word"])[-1]
    return ""


def require_engine() -> None:
    """Skips the test where no engine runs, in one loud line; fails it with REQUIRE_DOCKER=1."""
    why = obstacle()
    if why and os.environ.get("REQUIRE_DOCKER") == "1":
        pytest.fail(f"REQUIRE_DOCKER=1, and NO DOCKER ENGINE RUNS HERE: {why}")
    if why:
        pytest.skip(f"NO DOCKER ENGINE RUNS HERE, the container is not tested: {why}")


# The images that the tests had built, by what the verbs said.
BUILT: set[str] = set()


@contextmanager
def tidy_engine() -> Iterator[None]:
    """A real engine; the images that the block builds are removed at its end, but for that of the source as it is."""
    require_engine()
    latest = image()
    BUILT.clear()
    try:
        yield
    finally:
        for name in BUILT:
            docker("image", "rm", name)
        docker("tag", latest, "base-model-kit:latest")


def docker(*arguments: str, timeout: int = 120) -> str:
    """What a docker command says."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def verb(*words: str, cwd: Path = ROOT, stdin: str | None = None, timeout: int = 600, **env: str) -> Done:
    """`sh env/docker.sh …`: the script behind `make docker-…`, with its own exit status."""
    done = run_command(["sh", "env/docker.sh", *words], cwd=cwd, env=env, stdin=stdin, timeout=timeout)
    BUILT.update(re.findall(r"^building (base-model-kit\S*)$", done.err, re.MULTILINE))
    return done


def image() -> str:
    """The image of the source as it is now, built where it is not there yet."""
    done = verb("build")
    assert done.status == 0, done.err
    return docker("image", "inspect", "base-model-kit:latest", "--format", "{{.Id}}")


def compose(*words: str, timeout: int = 600, **env: str) -> Done:
    """`docker compose …` by hand, on the image that was built last, as the caller."""
    caller = {"KIT_USER": f"{os.getuid()}:{os.getgid()}"}
    done = subprocess.run(
        ["docker", "compose", *words],
        cwd=ROOT,
        env=clean_environment() | caller | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def containers() -> set[str]:
    """The kit's containers, finished ones too."""
    return set(docker("ps", "-a", "--filter", "label=com.docker.compose.project=base-model-kit", "-q").split())
