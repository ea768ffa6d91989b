"""The locks: hashed, without CUDA, good for every platform and Python that the kit promises."""

from __future__ import annotations

import re
import tomllib

import pytest

from kit.environment import resolve
from kit.errors import KitError
from kit.paths import ROOT

LOCK = ROOT / "env" / "lock"
NAMES = ("linux.txt", "macos.txt", "dev.txt", "ray.txt")
HASHES = r"((?: ?\\\n    --hash=sha256:[0-9a-f]{64})+)"
ENTRY = re.compile(r"^([a-z0-9._-]+)==([^\s;]+)(?: ; [^\\\n]+)?" + HASHES + "$", re.MULTILINE)


def entries(name: str) -> list[tuple[str, str, list[str]]]:
    """Each package of a lock with its version and hashes."""
    found = ENTRY.findall((LOCK / name).read_text())
    return [(package, version, re.findall("[0-9a-f]{64}", hashes)) for package, version, hashes in found]


@pytest.mark.parametrize("name", NAMES)
def test_every_package_has_a_version_and_a_hash_and_no_host_stands_in_it(name):
    text = (LOCK / name).read_text()
    packages = [line for line in text.splitlines() if re.match(r"[a-zA-Z0-9]", line)]
    assert len(packages) == len(entries(name)) > 5
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text


@pytest.mark.parametrize("name", NAMES)
def test_no_cuda_package(name):
    assert not [package for package, *_ in entries(name) if package.startswith(("nvidia", "triton", "cuda"))]


def test_linux_has_the_cpu_torch_with_every_wheels_hash():
    wheels = tomllib.loads((ROOT / "env" / "torch-wheels.toml").read_text())
    (torch,) = [entry for entry in entries("linux.txt") if entry[0] == "torch"]
    assert torch[1] == wheels["version"] == "2.13.0+cpu"
    assert sorted(torch[2]) == sorted(wheels["sha256"].values())
    assert {wheel.split("-")[0] for wheel in wheels["sha256"]} == {"cp311", "cp312", "cp313"}
    assert len(wheels["sha256"]) == len(set(wheels["sha256"].values())) == 6


def test_macos_has_the_release_of_torch_with_its_wheels_hash():
    (torch,) = [entry for entry in entries("macos.txt") if entry[0] == "torch"]
    assert torch[1] == "2.13.0"
    assert "e76f9bcecc52b8ff711239a2f7547d5353df95878ab232f0773c1d95928b92f8" in torch[2]  # cp311, macosx_14_0_arm64


def test_both_platforms_have_the_same_packages():
    linux, macos = ({(package, version.split("+")[0]) for package, version, *_ in entries(name)} for name in NAMES[:2])
    assert linux == macos


def test_the_tools_take_the_versions_that_are_pinned_for_the_rest():
    runtime: dict[str, list[str]] = {}
    for package, version, *_ in (entry for name in NAMES[:2] for entry in entries(name)):
        runtime.setdefault(package, []).append(version)
    for name in NAMES[2:]:
        for package, version, *_ in entries(name):
            assert version in runtime.get(package, [version])


@pytest.mark.parametrize(
    ("source", "locks"),
    [
        ("requirements.in", ["linux.txt", "macos.txt"]),
        ("requirements-dev.in", ["dev.txt"]),
        ("requirements-ray.in", ["ray.txt"]),
    ],
)
def test_each_direct_dependency_has_one_reason_and_is_in_its_lock(source, locks):
    lines = [line for line in (ROOT / "env" / source).read_text().splitlines() if line and not line.startswith("#")]
    for line in lines:
        requirement, _, reason = line.partition("#")
        assert len(reason) > 10, line
        package, version = re.sub(r"\[.*]", "", requirement.strip()).split("==")
        for lock in locks:
            pins = {(name, pinned.split("+")[0]) for name, pinned, *_ in entries(lock)}
            assert (package.lower().replace("_", "-"), version) in pins


def test_hashes_are_merged_into_torchs_entry_alone():
    seen, other = "a" * 64, "b" * 64
    six = f"six==1.0 \\\n    --hash=sha256:{other}\n"
    lock = six + f"torch==2.0+cpu ; sys_platform == 'linux' \\\n    --hash=sha256:{seen}\n"
    merged = resolve.merge_hashes(lock, "2.0+cpu", ["c" * 64, seen])
    assert merged == lock.replace(
        f"    --hash=sha256:{seen}", f"    --hash=sha256:{seen} \\\n    --hash=sha256:{'c' * 64}"
    )


def test_a_wheel_of_an_unknown_hash_stops_the_lock():
    lock = f"torch==2.0+cpu ; sys_platform == 'linux' \\\n    --hash=sha256:{'a' * 64}\n"
    with pytest.raises(KitError, match=r"torch-wheels\.toml does not list"):
        resolve.merge_hashes(lock, "2.0+cpu", ["b" * 64])
    with pytest.raises(KitError, match=r"no torch==2\.1"):
        resolve.merge_hashes(lock, "2.1+cpu", ["a" * 64])


@pytest.mark.slow
def test_make_lock_gives_the_same_locks(kit_copy):
    """Needs the package index."""
    import sys

    from tests.conftest import run_command

    done = run_command([sys.executable, "-m", "scripts.lock"], cwd=kit_copy)
    assert done.status == 0, done.err
    for name in NAMES:
        assert (kit_copy / "env" / "lock" / name).read_text() == (LOCK / name).read_text(), name
