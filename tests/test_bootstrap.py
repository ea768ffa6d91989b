"""env/bootstrap.sh: which Python it takes, and what it says of a machine that has none.

Other machines are stand-ins in front of PATH: uname, sysctl, sw_vers and Pythons that answer as theirs would.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from kit.paths import ROOT
from tests.conftest import Done, copy_kit, run_command

PYTHON_3_8 = "it is Python 3.8, and the kit needs 3.11, 3.12 or 3.13"
NOT_HERE = "exit 127"
REAL = sys.base_prefix + "/bin/python3"


def which(**options):
    return run_command(["sh", "env/bootstrap.sh", "which"], **options)


@pytest.fixture
def bare_path(tmp_path):
    """A PATH with the ordinary tools and no Python: python(name="body") adds one."""
    folder = tmp_path / "bare"
    folder.mkdir()
    tools = "sh uname sed awk cat cmp dirname df tee grep tr rm mkdir".split()
    for tool in [*tools, *(("sw_vers", "sysctl") if sys.platform == "darwin" else ())]:
        (folder / tool).symlink_to(shutil.which(tool) or "/nowhere")

    def python(**bodies: str) -> dict[str, str]:
        for name, body in bodies.items():
            path = folder / name.replace("_", ".")
            path.write_text(f"#!/bin/sh\n{body}\n")
            path.chmod(0o755)
        return {"PATH": str(folder)}

    return python


def lying(version: tuple[int, int] = (3, 11), machine: str = "", system: str = "") -> str:
    """A real Python that says it is another: the stand-in for one that is not on this machine."""
    lies = f"import sys, platform; sys.version_info = {version} + (0, 'final', 0);"
    lies += f"platform.machine = lambda: {machine!r};" if machine else ""
    lies += f"platform.system = lambda: {system!r};" if system else ""
    return f"""
if [ "$1" = -c ]; then shift; exec {REAL} -c "{lies} exec(sys.argv.pop(1))" "$@"; fi
exec {REAL} -c "{lies} exec(sys.stdin.read())"
"""


def test_it_takes_the_newest_that_fits(bare_path):
    path = bare_path(python3=lying((3, 14)), python3_12=lying((3, 12)), python3_11=lying((3, 11)))
    assert which(env=path).status == 0
    # the order of names: 3.13, 3.12, 3.11, python3
    trace = run_command(["sh", "-x", "env/bootstrap.sh", "which"], env=path).err
    assert "obstacle python3.12" in trace
    assert "obstacle python3.11" not in trace


def test_a_launcher_without_a_python_behind_it_is_passed_over(bare_path):
    launcher = "echo 'pyenv: python3.13: command not found' >&2; exit 127"
    path = bare_path(python3_13=launcher, python3=f'exec {REAL} "$@"')
    done = which(env=path)
    assert done.status == 0
    assert done.err == ""


def test_python_names_the_one_to_take(bare_path):
    path = bare_path(mine=f'exec {REAL} "$@"', python3=NOT_HERE)
    done = which(env={**path, "PYTHON": "mine"})
    assert done.status == 0
    assert done.out.split()[0] == sys.version.split()[0]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (lying((3, 8)), PYTHON_3_8),
        (lying((3, 14)), "it is Python 3.14, and the kit needs"),
        (lying((3, 12), machine="x86_64", system="Darwin"), "it is an x86_64 Python, and torch has"),
        (NOT_HERE, "it does not run"),
    ],
    ids=["3.8", "3.14", "Rosetta", "broken"],
)
def test_a_python_that_was_asked_for_and_does_not_fit_is_refused_with_the_reason(bare_path, body, says):
    done = which(env={**bare_path(other=body), "PYTHON": "other"})
    assert done.status == 1
    assert f"error: PYTHON=other cannot be used: {says}" in done.err
    assert "next: make setup PYTHON=python3.12" in done.err


def test_a_python_that_is_not_there(bare_path):
    done = which(env={**bare_path(), "PYTHON": "python9"})
    assert "error: PYTHON=python9 is not there." in done.err


def test_no_python_at_all_says_what_to_install(bare_path):
    done = which(env=bare_path())
    assert done.status == 1
    assert "error: no Python 3.11, 3.12 or 3.13 was found." in done.err
    assert "brew install python@3.13" in done.err
    assert "apt install python3 python3-venv" in done.err


def test_only_one_that_is_too_new_is_borrowed_to_fetch_one_that_fits(bare_path):
    done = which(env=bare_path(python3=lying((3, 14))))
    assert done.status == 0
    assert "which does not fit: uv will bring 3.13.18" in done.out


def test_the_python_that_uv_brings_is_one_that_uv_knows():
    pinned = next(
        line.split("=")[1]
        for line in (ROOT / "env" / "bootstrap.sh").read_text().splitlines()
        if line.startswith("FALLBACK_PYTHON=")
    )
    command = [str(Path(sys.executable).with_name("uv")), "python", "list", "--offline", "--only-downloads"]
    command += ["--all-versions", "--all-platforms", "--all-arches", pinned]
    known = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for platform in ("macos-aarch64-none", "linux-x86_64-gnu", "linux-aarch64-gnu"):
        assert f"cpython-{pinned}-{platform}" in known


@pytest.mark.parametrize("absent", ["venv", "ensurepip"])
def test_debians_minimal_python_names_the_package(bare_path, absent):
    refuse = f"import sys; sys.modules['{absent}'] = None; sys._base_executable = '$0'; exec(sys.argv.pop(1))"
    body = f'if [ "$1" = -c ]; then shift; exec {REAL} -c "{refuse}" "$@"; fi\nexec {REAL} "$@"'
    done = which(env=bare_path(python3=body))
    version = ".".join(map(str, sys.version_info[:2]))
    assert done.status == 1
    assert "comes without venv or ensurepip" in done.err
    assert f"apt install python{version}-venv" in done.err


MACHINES = [
    ({"uname": "[ $1 = -m ] && echo x86_64 || echo Darwin", "sysctl": "exit 1"}, "this Mac has an Intel processor"),
    (
        {"uname": "[ $1 = -m ] && echo arm64 || echo Darwin", "sysctl": "echo 1", "sw_vers": "echo 13.6.1"},
        "needs macOS 14 or later, and this is 13.6.1",
    ),
    ({"uname": "[ $1 = -m ] && echo riscv64 || echo Linux"}, "torch has no wheels for Linux on riscv64"),
    ({"uname": "echo MINGW64_NT"}, "the kit runs on Linux and macOS, and this is MINGW64_NT"),
]


@pytest.mark.parametrize(("programs", "says"), MACHINES, ids=["Intel Mac", "macOS 13", "RISC-V", "Windows"])
def test_a_machine_that_torch_has_no_wheels_for_is_named(on_path, programs, says):
    done = which(env=on_path(**programs))
    assert done.status == 1
    assert says in done.err
    assert "next: " in done.err


def test_a_shell_under_rosetta_on_apple_silicon_is_no_intel_mac(on_path):
    path = on_path(uname="[ $1 = -m ] && echo x86_64 || echo Darwin", sysctl="echo 1", sw_vers="echo 15.3")
    assert "Intel" not in which(env=path).err


def test_musl_is_named(on_path, bare_path):
    lies = "import sys, sysconfig; sysconfig.get_config_var = lambda name: 'cpython-312-x86_64-linux-musl';"
    body = f'exec {REAL} -c "{lies} exec(sys.stdin.read())"'
    done = which(env={**bare_path(other=body), "PYTHON": "other"})
    assert "built on musl (Alpine)" in done.err


@pytest.fixture
def installing(tmp_path, on_path):
    """A set-up at its last step, where uv is asked to install the lock: installing(uv="body", pip_config=…, **env).

    The stand-in is uv: it writes down what it is asked for, in the file `asked`.
    """
    folder = copy_kit(tmp_path / "kit")
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    (folder / ".venv" / "ready").write_text(f"{folder.resolve()}/.venv\n")

    def install(uv: str = "", pip_config: str = "", **env: str) -> Done:
        # The proof at the end of a set-up would see that the stand-in has installed nothing.
        python = f'[ "$*" = "-m scripts.environment prove" ] || exec {sys.executable} "$@"'
        for name, body in {"python": python, "uv": f'echo "$@" >>asked\n{uv}'}.items():
            (programs / name).write_text(f"#!/bin/sh\n{body}\n")
            (programs / name).chmod(0o755)
        (tmp_path / "pip.conf").write_text(pip_config)
        unset = dict.fromkeys(("PIP_FIND_LINKS", "UV_FIND_LINKS"), "")
        config = {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
        # The first name that is looked for; a launcher of another Python takes a tenth of a second to say so.
        found = on_path(python3_dot_13=f'exec {sys.executable} "$@"')
        return run_command(["sh", "env/bootstrap.sh"], cwd=folder, env=unset | config | found | env)

    return install


FIND_LINKS = [
    ({"PIP_FIND_LINKS": "/one /two"}, ["/one", "/two"]),
    ({"UV_FIND_LINKS": "/one,https://host/two/"}, ["/one", "https://host/two/"]),
    ({"pip_config": "[global]\nfind-links = /one\n"}, ["/one"]),
    ({"pip_config": "[install]\nfind-links =\n  /one\n  /two\n"}, ["/one", "/two"]),
    ({}, ["https://download.pytorch.org/whl/cpu/torch/"] if sys.platform == "linux" else []),
]


@pytest.mark.parametrize(("given", "links"), FIND_LINKS, ids=["pip", "uv", "global", "install", "none"])
def test_torch_comes_from_the_machines_find_links_else_from_pytorchs_page(installing, tmp_path, given, links):
    done = installing(**given)
    assert done.status == 0, done.err
    asked = (tmp_path / "kit" / "asked").read_text().split("pip sync ")[1].split()
    assert [after for word, after in pairwise(asked) if word == "--find-links"] == links
    assert "--require-hashes" in asked


def test_a_wheel_that_is_there_for_another_python_alone_is_no_reason_to_try_again(installing):
    """What uv 0.13 says of a folder of find-links that has torch for Python 3.11, asked by Python 3.12."""
    says = "Because torch==2.13.0+cpu has no wheels with a matching Python ABI tag (e.g., `cp312`), we can conclude"
    done = installing(uv=f"cat <<'END'\n{says}\nEND\nexit 1")
    assert done.status == 1
    assert says in done.err
    assert "error: installing the packages failed: where packages are looked for, one has no wheel for this" in done.err
    assert "next: another Python: make setup PYTHON=" in done.err


def test_a_venv_of_another_python_is_made_anew_where_that_one_is_asked_for(installing, tmp_path, bare_path):
    refuse = "import sys; sys._base_executable = '$0'; exec(sys.argv.pop(1))"
    bare_path(
        other=f'[ "$1" != -m ] || exit 1\n[ "$1" != -c ] || {{ shift; exec {REAL} -c "{refuse}" "$@"; }}\nexec {REAL}'
    )
    assert "anew" not in installing().err
    (tmp_path / "kit" / ".venv" / "made-with").write_text("3.12.0 /elsewhere\n")
    done = installing(PYTHON=str(tmp_path / "bare" / "other"))
    assert "made with another Python: making it anew" in done.err
    assert f"making .venv with Python {sys.version.split()[0]}" in done.err


@pytest.mark.container
def test_when_everything_is_ready_it_says_nothing():
    done = run_command(["sh", "env/bootstrap.sh"])
    assert (done.status, done.out, done.err) == (0, "", "")


def test_a_file_system_without_locks_is_said_and_no_obstacle(installing, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import errno, fcntl\n"
        "def refuse(*_): raise OSError(errno.ENOSYS, 'Function not implemented')\n"
        "fcntl.flock = refuse\n"
    )
    done = installing(PYTHONPATH=str(tmp_path))
    assert done.status == 0, done.err
    assert "note: this file system has no locks (Function not implemented)" in done.err
