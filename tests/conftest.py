"""What the tests share: a clean environment, the verbs as a person types them, copies of the kit, the starter model."""

from __future__ import annotations

import compileall
import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported, here and in the verbs that tests start: on two cores two workers with two threads each wait
# for each other, and a replay of 5 s takes a minute.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # Begun in a shell's background; what tests start would never hear Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

from kit import paths, settings
from kit.engines import devices, threads, torch_engine
from kit.environment import machine
from kit.models import folder as model_folder
from kit.models import registry
from kit.models.registry import Model
from kit.paths import ROOT
from tests import warm

threads.before_torch()

# What the caller's environment, make, and other tools may hold that would decide about a test. Not the base image:
# where no registry is in reach, it is the machine's only one.
FOREIGN = {variable.name for variable in settings.VARIABLES if variable.verbs} - {"BASE_IMAGE"}
FOREIGN |= {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "KIT_TYPED", "KIT_DEBUG", "KIT_CONTAINER"}
FOREIGN |= {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV"}
FOREIGN |= {name for name in os.environ if name.startswith(("HF_", "PYTEST_"))}


# The .env of whoever runs the tests stays out of them; a copy of the kit has its own.
NO_DOTENV = str(ROOT / "tests" / "no.env")


@dataclass(frozen=True)
class Done:
    """A finished command, as the person who typed it sees it."""

    status: int
    out: str
    err: str


def run_command(
    command: list[str],
    cwd: Path = ROOT,
    env: dict[str, str] | None = None,
    stdin: str | None = None,
    timeout: int = 240,
    kind: str = "",
) -> Done:
    """The command, by a warm server where one can do it: a verb, or with its `kind` a program of `python -c`."""
    environment = clean_environment() | ({} if cwd == ROOT else {"KIT_DOTENV": ""}) | (env or {})
    if server := warm.server_for(command, env or {}, kind):
        return Done(*warm.run(server, command, cwd, environment, stdin, timeout))
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def clean_environment() -> dict[str, str]:
    # HF_HUB_OFFLINE too, which a run sets in its own process, and so in this one.
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN and not name.startswith("HF_")}
    return kept | {"KIT_DOTENV": NO_DOTENV}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FOREIGN & set(os.environ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def script() -> Callable[..., Done]:
    """Runs a verb as `python -m scripts.NAME`, in a process of its own: script("run", "--seed", "1", env=…, cwd=…)."""

    def call(name: str, *arguments: str, **options) -> Done:
        return run_command([sys.executable, "-m", f"scripts.{name}", *arguments], **options)

    return call


@pytest.fixture
def make() -> Callable[..., Done]:
    """Runs `make -s` with the given words."""

    def call(*words: str, **options) -> Done:
        return run_command(["make", "-s", *words], **options)

    return call


def copy_kit(target: Path, to_run: bool = False) -> Path:
    """The kit's own files, as a clone would have them; nothing generated. `to_run` leaves the tests out, and
    takes Python's bytecode along, as after a first run."""
    folders: set[Path] = set()

    def copy(source: Path, place: Path, copy_file: Callable[[Path, Path], object] = shutil.copy2) -> None:
        if place.parent not in folders:
            place.parent.mkdir(parents=True, exist_ok=True)
            folders.add(place.parent)
        copy_file(source, place)

    for name in own_files():
        source = ROOT / name
        if (to_run and name.startswith("tests/")) or not source.is_file():
            continue
        copy(source, target / name)
        if to_run and name.startswith(("kit/", "scripts/")) and name.endswith(".py"):
            compiled = Path(cache_from_source(str(source)))
            if compiled.is_file():
                # Python itself replaces such a file, and never writes into one.
                copy(compiled, target / compiled.relative_to(ROOT), link_or_copy)
    (target / "tests").mkdir(exist_ok=True)
    return target


@functools.cache
def own_files() -> list[str]:
    """By git's list; in the container, which has no clone, by what lies there."""
    if (ROOT / ".git").exists():
        listed = run_command(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]).out
        return [name for name in listed.split("\0") if name]
    generated = {".venv", "models", "reports", "dist", ".pytest_cache"}
    files = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file() and path.suffix != ".whl"]
    return [str(path) for path in files if path.parts[0] not in generated and "__pycache__" not in path.parts]


@pytest.fixture(scope="session")
def kit_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `kit_copy` is copied from: the kit, and the starter without the GGUF files that were written from it."""
    folder = copy_kit(tmp_path_factory.mktemp("once") / "kit", to_run=True)
    written = shutil.ignore_patterns("*-bf16.gguf*", "*-q8_0.gguf*", "*-q4_0.gguf*")
    shutil.copytree(ROOT / "models" / "starter", folder / "models" / "starter", ignore=written)
    return folder


@pytest.fixture
def kit_copy(tmp_path: Path, kit_once: Path) -> Iterator[Path]:
    """A copy of the kit whose starter model is whole, in files of its own, so that a test may break them: but for the
    two large ones, which all copies share until a test asks for `own_file`."""
    weights = kit_once / "models" / "starter" / "model.safetensors"
    before = weights.stat()
    yield copy_linked(kit_once, tmp_path / "kit")
    assert weights.stat().st_mtime_ns == before.st_mtime_ns, "a test wrote into the weights of all: use own_file"


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A second name of the file, where both are on one file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def copy_linked(source: Path, target: Path) -> Path:
    """A copy of a folder in which files over 50 MB are the same ones (0.1 s, where copies of the starter take 0.8)."""

    def copy(one: str, other: str) -> None:
        (link_or_copy if Path(one).stat().st_size > 50_000_000 else shutil.copy2)(one, other)

    return Path(shutil.copytree(source, target, copy_function=copy))


def own_file(path: Path) -> Path:
    """The file as one of the test's own, to be altered in place."""
    copied = path.with_name(f".{path.name}.own")
    shutil.copy2(path, copied)
    return copied.replace(path)


@pytest.fixture(scope="session")
def starter() -> Model:
    """The real starter model, whole (make test has made it)."""
    model = registry.find("starter")
    model_folder.check(model)
    return model


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models/ of the test's own."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setattr(paths, "MODELS", folder)
    return folder


@pytest.fixture(scope="session")
def tiny_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tiny` is copied from: Llama 3.2's kind, with heads that share keys and values, RoPE that is scaled, and an
    embedding that is the head too."""
    from tests.tiny_llamas import Recipe, bake

    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {**scaling, "rope_theta": 500000.0, "original_max_position_embeddings": 64}
    settings = {"rope_parameters": rope, "tie_word_embeddings": True, "max_position_embeddings": 256}
    folder = tmp_path_factory.mktemp("baked") / "tiny"
    bake(Recipe(config=settings, tokenizer="llama3"), folder, 0)
    return folder


@pytest.fixture
def tiny(models: Path, tiny_once: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A real Llama of 0.2 MB, and no other model: where what the starter would say is not the question."""
    from tests.tiny_llamas import model_of

    found = model_of(Path(shutil.copytree(tiny_once, models / "tiny")))
    monkeypatch.setattr(registry, "read", lambda: {"tiny": found})
    return found


# Modules that share something costly or the one engine; each other module is a group of its own.
GROUPS = {
    **dict.fromkeys(("test_docker_download", "test_docker_image", "test_docker_run", "test_devcontainer"), "engine"),
    **dict.fromkeys(("test_room", "test_workshop"), "room"),
}


# The groups that take longest, in minutes: begun last, one of them would keep one worker at work alone.
FIRST = (
    "test_room",
    "test_workshop",
    "test_docker_image",
    "test_docker_run",
    "test_docker_download",
    "test_devcontainer",
)
FIRST += ("test_tuning_page", "test_setup", "test_cluster", "test_planted_secrets")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):  # as yet without workers, which have no such number
        warm.share()
    if not hasattr(config, "workerinput"):
        for name in ("kit", "scripts"):
            compileall.compile_dir(ROOT / name, quiet=2)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where tests go by group (make test-slow), a group stays on one worker, so that what it shares is made once.

    xdist's own loadgroup writes the marks of groups where pytest 9 no longer reads them.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = Path(nodeid.partition("::")[0]).stem
            return GROUPS.get(module, module)

    return ByGroup(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))
    marked = [item for item in items if item.get_closest_marker("mps")]
    obstacle = devices.mps_obstacle(machine.this(), torch_engine.obstacle) if marked else None
    for item in marked:
        if obstacle:
            item.add_marker(pytest.mark.skip(reason=f"needs a Mac's GPU: {obstacle[0]}"))


@pytest.fixture
def on_path(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Stand-ins for programs that this machine has not, in front of PATH: on_path(uname="echo Darwin")."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def put(**programs: str) -> dict[str, str]:
        for name, body in programs.items():
            program = folder / name.replace("_dot_", ".")
            program.write_text(f"#!/bin/sh\n{body}\n")
            program.chmod(0o755)
        return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}

    return put
