"""Which wheels a platform and a Python need: held against `packaging`, which a machine without packages lacks."""

from __future__ import annotations

import re
import sys
import zipfile

import pytest
from packaging import markers, tags, utils

from kit.environment import lock as locks
from kit.environment import wheels
from kit.environment.lock import Target
from kit.errors import KitError, WrongUsage
from kit.paths import ROOT

TARGETS = [Target(platform, python) for platform in locks.PLATFORMS for python in locks.PYTHONS]


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_locks_markers_mean_what_packaging_says(target):
    _, system, machine = locks.PLATFORMS[target.platform]
    here = {"sys_platform": system, "platform_machine": machine, "platform_python_implementation": "CPython"}
    here |= {"python_full_version": f"{target.python}.4", "python_version": target.python}
    entries = re.findall(r"^(\S+)==(\S+)(?: ; ([^\\\n]+))?", (ROOT / target.lock).read_text(), re.MULTILINE)
    wanted = [
        (name, version) for name, version, marker in entries if not marker or markers.Marker(marker).evaluate(here)
    ]
    assert [(pin.name, pin.version) for pin in locks.pins(target)] == wanted
    assert {"torch", "uv", "pip", "click"} <= {name for name, _ in wanted}


NAMES = [
    "a-1.0-py3-none-any.whl",
    "a-1.0-py2.py3-none-any.whl",
    "a-1.0-py2-none-any.whl",
    "a-1.0-1-py3-none-any.whl",
    "a-1.0-cp311-cp311-manylinux_2_28_x86_64.whl",
    "a-1.0-cp312-cp312-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
    "a-1.0-cp313-cp313t-manylinux_2_17_x86_64.whl",
    "a-1.0-cp38-abi3-manylinux1_x86_64.whl",
    "a-1.0-cp313-abi3-manylinux_2_17_x86_64.whl",
    "a-1.0-cp311-cp311-musllinux_1_2_x86_64.whl",
    "a-1.0-cp312-none-macosx_14_0_arm64.whl",
    "a-1.0-cp311-cp311-macosx_10_9_universal2.whl",
    "a-1.0-cp311-cp311-macosx_11_0_x86_64.whl",
    "a-1.0-cp311-cp311-macosx_15_0_arm64.whl",
    "a-1.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "a-1.0-cp311-cp311-manylinux_2_35_x86_64.whl",
    "a-1.0-pp311-pypy311_pp73-manylinux_2_17_x86_64.whl",
    "a-1.0-cp311-cp311-win_amd64.whl",
]


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_which_wheels_fit_is_what_packaging_says(target):
    _, system, machine = locks.PLATFORMS[target.platform]
    platforms = list(tags.mac_platforms((14, 0), "arm64")) if system == "darwin" else wheels.linux_tags(machine)
    version = (3, target.minor)
    taken = {*tags.cpython_tags(version, platforms=platforms, abis=[f"cp3{target.minor}"])}
    taken |= {*tags.compatible_tags(version, interpreter=f"cp3{target.minor}", platforms=platforms)}
    for name in NAMES:
        assert wheels.fits(name, target) == bool(utils.parse_wheel_filename(name)[3] & taken), name


def test_a_name_that_is_no_wheels_fits_nowhere():
    for name in ("../a-1.0-py3-none-any.whl", "a.whl", "a-1.0-py3-none-any.zip", "a-1.0.tar.gz", ""):
        assert not any(wheels.fits(name, target) for target in TARGETS)
        assert wheels.package(name) == ("", "")
    assert wheels.package("Ruamel.Yaml_x-2.0+cpu-py3-none-any.whl") == ("ruamel-yaml-x", "2.0+cpu")


def test_this_machine_is_a_target():
    assert locks.this().python == ".".join(map(str, sys.version_info[:2]))


def test_platforms_are_a_list_with_commas_and_each_may_name_a_python():
    found = locks.targets("macos-arm64, linux-x86_64:3.12,linux-x86_64:3.12", "3.11")
    assert found == [Target("linux-x86_64", "3.12"), Target("macos-arm64", "3.11")]
    for wrong in ("linux", "linux-x86_64:3.9", "macos-x86_64", ",", "linux-x86_64:"):
        if wrong == "linux-x86_64:":
            assert locks.targets(wrong, "3.11") == [Target("linux-x86_64", "3.11")]
            continue
        with pytest.raises(WrongUsage, match="PLATFORM"):
            locks.targets(wrong, "3.11")


def test_a_lock_of_another_form_is_refused(tmp_path, monkeypatch):
    (tmp_path / "env" / "lock").mkdir(parents=True)
    monkeypatch.setattr(locks, "ROOT", tmp_path)
    target = Target("linux-x86_64", "3.13")
    for text in (
        "",
        "a==1.0\n",
        *(f"a==1.0 ; {marker} \\\n    --hash=sha256:{'0' * 64}\n" for marker in ("extra == 'x'", "f()", "and")),
    ):
        (tmp_path / target.lock).write_text(text)
        locks.pins.cache_clear()
        with pytest.raises(KitError):
            locks.pins(target)
    locks.pins.cache_clear()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of find-links with two wheels, a lock of them, and pip told of nothing else."""
    from tests.bundle_kit import sha256, tiny_wheel

    links, root = tmp_path / "links", tmp_path / "root"
    links.mkdir()
    (root / "env" / "lock").mkdir(parents=True)
    made = [tiny_wheel(links, "alpha"), tiny_wheel(links, "beta", "cp312-cp312-macosx_11_0_arm64")]
    lines = [
        f"{path.name.split('-')[0]}==1.0 ; sys_platform == 'darwin' \\\n    --hash=sha256:{sha256(path.read_bytes())}\n"
        for path in made
    ]
    (root / "env" / "lock" / "macos.txt").write_text("".join(lines))
    monkeypatch.setattr(locks, "ROOT", root)
    locks.pins.cache_clear()
    for name, value in {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links)}.items():
        monkeypatch.setenv(name, value)
    yield links
    locks.pins.cache_clear()


def test_another_platforms_wheels_are_fetched_and_those_that_are_there_are_not(index, tmp_path):
    """Markers and tags are the target's, not those of the machine that fetches."""
    from kit.environment import wheels

    target, folder = Target("macos-arm64", "3.12"), tmp_path / "wheels"
    folder.mkdir()
    missing = wheels.missing(target, folder)
    assert [pin.name for pin in missing] == ["alpha", "beta"]
    wheels.fetch(target, missing, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in index.iterdir())
    assert wheels.missing(target, folder) == []
    (folder / "alpha-1.0-py3-none-any.whl").write_bytes(b"cut short")
    assert [pin.name for pin in wheels.missing(target, folder)] == ["alpha"]


def test_a_wheel_that_is_nowhere_or_not_the_pinned_one_says_which(index, tmp_path):
    from kit.environment import wheels

    target, folder = Target("macos-arm64", "3.12"), tmp_path / "wheels"
    other = Target("macos-arm64", "3.11")
    folder.mkdir()
    with pytest.raises(KitError, match=r"wheels for macos-arm64:3.11 were not fetched: no index .* has beta==1.0"):
        wheels.fetch(other, wheels.missing(other, folder), folder)
    # What came before that stays.
    assert [path.name for path in folder.glob("*.whl")] == ["alpha-1.0-py3-none-any.whl"]
    (folder / "alpha-1.0-py3-none-any.whl").unlink()
    with zipfile.ZipFile(index / "alpha-1.0-py3-none-any.whl", "a") as wheel:
        wheel.writestr("more", "")
    with pytest.raises(KitError, match="not the pinned one"):
        wheels.fetch(target, wheels.missing(target, folder), folder)
    assert not list(folder.glob("*.whl"))
