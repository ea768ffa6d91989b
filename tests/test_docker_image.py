"""The image on a real engine: what is inside and what is not, its size, and what a rebuild costs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import uuid

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from kit.environment import lock as locks
from kit.paths import ROOT
from tests.conftest import clean_environment, copy_kit, run_command
from tests.docker_kit import compose, docker, image, tidy_engine, verb

pytestmark = pytest.mark.slow

BOUND = 1_250_000_000  # bytes over the base, on x86_64, with what later versions of the kit add


@pytest.fixture(autouse=True, scope="module")
def engine():
    with tidy_engine():
        yield


@pytest.fixture(scope="module")
def built() -> str:
    return image()


@pytest.fixture(scope="module")
def files(built) -> list[tuple[str, str, int, int]]:
    """Every file of the image: its kind and mode as find prints them, its path, owner and size."""
    program = r"find / -xdev ! -path '/dev/*' -printf '%y %m %U %s %p\n'"
    said = docker("run", "--rm", "--user", "0", "--network", "none", "--entrypoint", "sh", built, "-c", program)
    found = []
    for line in said.splitlines():
        kind, mode, owner, size, path = line.split(" ", 4)
        found.append((kind + mode, path, int(owner), int(size)))
    return found


def paths(files) -> list[str]:
    return [path for _, path, _, _ in files]


def base_of() -> str:
    pinned = re.search(r"^ARG BASE_IMAGE=(\S+)$", (ROOT / "env" / "Dockerfile").read_text(), re.MULTILINE)
    assert pinned
    return os.environ.get("BASE_IMAGE") or pinned[1]


def test_its_size_over_the_base_is_within_the_bound(built):
    size, base = (int(docker("image", "inspect", name, "--format", "{{.Size}}")) for name in (built, base_of()))
    assert 0 < size - base <= BOUND


CUDA = re.compile(r"lib(cu(da|dnn|blas|fft|rand|sparse|solver)|nccl|nv|torch_cuda)|nvidia|triton|cuda|pytorch_triton")


def test_no_cuda_no_triton(files):
    inside = [path.split("site-packages/")[1] for path in paths(files) if "site-packages/" in path]
    packages = {path.split("/")[0].lower() for path in inside}
    libraries = {path.rpartition("/")[2] for path in inside if ".so" in path}
    assert "torch" in packages
    assert "libtorch_cpu.so" in libraries
    assert not [name for name in packages | libraries if CUDA.match(name)]


def test_no_weights_no_tests_no_compiler_no_cache_no_dotenv(files, built):
    names = paths(files)
    assert not [path for path in names if path.endswith((".safetensors", ".gguf", "/.env", "setup.log"))]
    assert not [path for path in names if path.endswith(".whl") and not path.startswith("/usr/")]  # Debian's ensurepip
    assert not [path for path in names if path.startswith(("/kit/tests", "/kit/models/", "/kit/.git/"))]
    assert not [path for path in names if re.search(r"site-packages/(pytest|ruff|mypy)\b", path)]
    assert not [path for path in names if re.search(r"site-packages/.*/(tests|sample_data)/", path)]
    assert not [path for path in names if path.startswith(("/root/.cache/", "/tmp/", "/var/cache/apt/archives/"))]
    which = "for name in cc gcc g++ clang ld as; do command -v $name; done; true"
    assert docker("run", "--rm", "--network", "none", "--entrypoint", "sh", built, "-c", which) == ""


def test_nothing_is_writable_by_all_and_nothing_of_the_kit_by_its_user(files):
    # Where all may write, as into /tmp, nobody may remove what is another's (the sticky bit).
    free = [path for mode, path, _, _ in files if mode[0] in "fd" and int(mode[1:], 8) & 0o1002 == 0o0002]
    assert not [path for path in free if not path.startswith(("/proc/", "/sys/"))]
    own = [entry for entry in files if entry[1].startswith("/kit")]
    assert len(own) > 1000
    assert not [path for mode, path, _, _ in own if mode[0] != "l" and int(mode[1:], 8) & 0o022]
    assert {owner for _, _, owner, _ in own} == {0}
    assert not [path for mode, path, _, _ in own if mode[0] == "f" and not int(mode[1:], 8) & 0o004]


def test_the_user_is_not_root(built):
    assert docker("image", "inspect", built, "--format", "{{.Config.User}}") == "1000:1000"
    assert docker("run", "--rm", "--network", "none", "--entrypoint", "id", built, "-u") == "1000"


KEY = r"hf_[A-Za-z0-9]{34}|-----BEGIN [A-Z ]*PRIVATE KEY-----\n[A-Za-z0-9+/]|AKIA[0-9A-Z]{16}"

# Every file with a key-like string that is not, byte for byte, what a locked package's own list says it is: some carry
# one that is published with them (transformers: its test account's).
SEARCH = """
import base64, hashlib, importlib.metadata, pathlib, re, sys
listed = {
    str(file.locate()): file.hash.value
    for package in importlib.metadata.distributions() for file in package.files or () if file.hash
}
for path in pathlib.Path("/").rglob("*"):
    if path.parts[1] in ("proc", "sys", "dev") or path.is_symlink() or not path.is_file() or path.suffix == ".pyc":
        continue
    if re.search(sys.argv[1].encode(), data := path.read_bytes()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        if listed.get(str(path)) != digest:
            print(path)
"""


def test_the_search_for_keys_finds_one():
    for key in ("hf_" + "aB1" * 11 + "x", "-----BEGIN RSA PRIVATE KEY-----\nMIIE", "AKIA" + "A1" * 8):
        assert re.search(KEY, key)


def test_no_key_like_string_in_any_file_nor_in_what_the_image_says_of_itself(built):
    def found(name: str, python: str) -> set[str]:
        search = ("--network", "none", "--user", "0", "--entrypoint", python, name, "-c", SEARCH, KEY)
        return set(docker("run", "--rm", *search).splitlines())

    # Debian's libraries bring keys that they test themselves with.
    assert found(built, ".venv/bin/python") <= found(base_of(), "python3")
    about = docker("image", "inspect", built) + docker("history", "--no-trunc", built)
    assert not re.search(KEY, about)
    assert "HF_TOKEN" not in about


# Each licence that a package lists among its files, and that is not there.
LICENCES = """
import importlib.metadata, re
for package in importlib.metadata.distributions():
    for file in package.files or ():
        if re.search("licen[cs]e|copying|notice", file.name, re.IGNORECASE) and not file.locate().exists():
            print(file)
"""


def test_the_image_says_what_is_inside(built):
    said = json.loads(docker("run", "--rm", "--network", "none", "--entrypoint", "cat", built, "sbom.json"))
    assert {one["name"]: one["version"] for one in said["components"]} == {
        pin.name: pin.version for pin in locks.pins(locks.Target(locks.this().platform, "3.11"))
    }
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(said)) is None


def test_every_licence_of_every_package_stays(built):
    search = ("--network", "none", "--entrypoint", ".venv/bin/python", built, "-c", LICENCES)
    assert docker("run", "--rm", *search) == ""


SECRETS = [".env", "env/.env", "kit/.env", "tests/.env", "models/m/model.safetensors", "reports/r.json", "dist/b.tar"]


@pytest.mark.parametrize("stage", ["source", "source-dev"])
def test_a_clones_dotenv_weights_and_reports_do_not_reach_a_build(kit_copy, stage):
    for name in SECRETS:
        (kit_copy / name).parent.mkdir(parents=True, exist_ok=True)
        (kit_copy / name).write_text("HF_TOKEN=hf_x\n")
    name = f"base-model-kit:test-{uuid.uuid4()}"
    docker_build(kit_copy, name, stage, "--build-arg", f"BASE_IMAGE={base_of()}")
    said = docker("run", "--rm", "--network", "none", "--entrypoint", "find", name, "/kit", "-type", "f")
    docker("image", "rm", name)
    found = {path.removeprefix("/kit/") for path in said.splitlines()}
    assert "kit/models/registry.py" in found
    assert not found & set(SECRETS)
    assert not [path for path in found if path.startswith(("models/", "reports/", "dist/", ".venv/", ".git/"))]


def test_the_credentials_of_a_proxy_and_of_a_package_index_stay_in_no_layer(kit_copy):
    """All layers of the environment come from the cache, so nobody is asked."""
    (kit_copy / "kit" / "environment" / "machine.py").open("a").write(f"\n# {uuid.uuid4()}\n")  # an image of its own
    settings = {"HTTPS_PROXY": "http://ada:lovelace@127.0.0.1:9", "PIP_INDEX_URL": "http://ada:lovelace@127.0.0.1:9/"}
    done = verb("build", cwd=kit_copy, **settings)
    assert done.status == 0, done.err
    (name,) = re.findall(r"^building (\S+)$", done.err, re.MULTILINE)
    about = docker("image", "inspect", name) + docker("history", "--no-trunc", name)
    assert "base-model-kit" in about
    assert "lovelace" not in about
    search = (
        "--user",
        "0",
        "--entrypoint",
        "grep",
        name,
        "-rlsI",
        "ada:lovelace",
        "/kit",
        "/etc",
        "/root",
        "/run",
        "/tmp",
    )
    assert subprocess.run(["docker", "run", "--rm", "--network", "none", *search], capture_output=True).stdout == b""


def test_labels_name_the_commit_and_the_lock(built):
    labels = json.loads(docker("image", "inspect", built, "--format", "{{json .Config.Labels}}"))
    commit = run_command(["git", "rev-parse", "HEAD"]).out.strip()
    lock = (ROOT / "env" / "lock" / "linux.txt").read_bytes()
    assert labels["org.opencontainers.image.revision"].startswith(commit)
    assert labels["base-model-kit.lock.sha256"] == hashlib.sha256(lock).hexdigest()
    assert labels["org.opencontainers.image.licenses"] == "MIT"


def test_the_environment_is_the_locks_package_by_package(built):
    program = "from kit.doctor import before_venv as m; o = m.check_environment(); print(o.state, o.text)"
    said = docker("run", "--rm", "--network", "none", "--entrypoint", ".venv/bin/python", built, "-c", program)
    assert re.fullmatch(r"ok \d+ packages, as env/lock/linux.txt says", said)


COMPILED = """
import pathlib, sys
from kit.engines.generate import complete
from kit.engines.request import Request
from kit.models import registry
from scripts import run
complete(Request(registry.find("starter"), "x", sys.argv[1], max_new_tokens=2))
for module in list(sys.modules.values()):
    cached = getattr(module, "__cached__", None)
    if isinstance(cached, str) and cached.startswith("/kit") and not pathlib.Path(cached).exists():
        print(module.__name__)
"""


@pytest.mark.parametrize("method", ["pipeline", "manual", "llamacpp"])
def test_a_run_finds_the_bytecode_of_all_that_it_imports(built, method):
    """A read-only root keeps none, so what is not compiled in the image is compiled anew at every run."""
    done = compose("run", "--rm", "-T", "--entrypoint", ".venv/bin/python", "run", "-c", COMPILED, method)
    assert done.status == 0, done.err
    assert done.out == ""


def build(folder, *arguments: str) -> str:
    """The steps of a build of a copy of the kit, as the engine tells them."""
    name = f"base-model-kit:test-{uuid.uuid4()}"
    said = docker_build(folder, name, "kit", *arguments)
    docker("image", "rm", name)
    return said


def docker_build(folder, name: str, stage: str, *arguments: str) -> str:
    """Builds a stage as an image of that name, by hand."""
    command = ["docker", "build", "--progress", "plain", "-f", "env/Dockerfile", "--target", stage, "-t", name]
    done = subprocess.run(
        [*command, *arguments, "."],
        cwd=folder,
        env=clean_environment() | {"DOCKER_BUILDKIT": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def steps(said: str) -> dict[str, bool]:
    """Step -> whether it came from the cache, without the base's own."""
    names = dict(re.findall(r"^#(\d+) \[[^]]*? \d+/\d+\] (COPY.+|RUN.+)$", said, re.MULTILINE))
    return {name: bool(re.search(rf"^#{number} CACHED$", said, re.MULTILINE)) for number, name in names.items()}


def test_the_same_lock_gives_a_rebuild_that_is_all_cache_hits_and_a_changed_source_no_installation(tmp_path, built):
    folder = copy_kit(tmp_path / "kit")
    for wheel in (ROOT / "env" / "wheels").glob("*.whl"):
        os.link(wheel, folder / "env" / "wheels" / wheel.name)
    base = ("--build-arg", f"BASE_IMAGE={base_of()}")
    build(folder, *base)
    # The same bytes, newly written and at another time.
    lock = folder / "env" / "lock" / "linux.txt"
    content = lock.read_bytes()
    lock.unlink()
    lock.write_bytes(content)
    again = steps(build(folder, *base))
    assert len(again) > 8
    assert all(again.values()), again
    source = folder / "kit" / "environment" / "machine.py"
    source.write_text(f"{source.read_text()}\n# {uuid.uuid4()}\n")  # as no build before it
    changed = steps(build(folder, *base))
    assert not all(changed.values())
    installs = {name: cached for name, cached in changed.items() if "--mount" in name or "COPY --from=slim" in name}
    assert len(installs) == 3
    assert all(installs.values()), changed


def test_a_build_without_any_network_takes_the_wheels_that_were_brought_along(tmp_path):
    folder = copy_kit(tmp_path / "kit")
    wheels = folder / "env" / "wheels"
    command = [str(ROOT / ".venv" / "bin" / "python"), "-m", "pip", "download", "-q", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "-d", str(wheels), "-r", str(folder / "env" / "lock" / "linux.txt")]
    if docker("run", "--rm", "--entrypoint", "python3", base_of(), "-c", "import sys; print(sys.version_info[:2])") != (
        run_command([command[0], "-c", "import sys; print(sys.version_info[:2])"]).out.strip()
    ):
        pytest.skip("this Python is another than the image's, and so are its wheels")
    fetched = run_command(command, timeout=600)
    assert fetched.status == 0, fetched.err
    # Another cache than the one that other builds have filled.
    recipe = folder / "env" / "Dockerfile"
    recipe.write_text(recipe.read_text().replace("target=/root/.cache", f"id={tmp_path.name},target=/root/.cache"))
    build(folder, "--build-arg", f"BASE_IMAGE={base_of()}", "--network", "none", "--no-cache")
