"""What can stand in a container's way: each named, with what to do. With stand-ins for the docker command."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from kit.paths import ROOT
from tests.conftest import run_command
from tests.docker_kit import verb

TELL = """case "$*" in
  *"image inspect"*Architecture*) echo "linux/arm64 sha256:0" ;;
  *"image inspect"*) exit 1 ;;
  *Server.Arch*) echo amd64 ;;
  *"compose version"*) echo {compose} ;;
esac"""


def without_docker(tmp_path) -> str:
    """A PATH with everything but docker."""
    folder = tmp_path / "everything"
    folder.mkdir()
    for place in reversed(os.environ["PATH"].split(os.pathsep)):
        for program in Path(place).glob("*"):
            if not program.name.startswith("docker") and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)
    return str(folder)


def test_no_client(tmp_path):
    done = verb("run", PATH=without_docker(tmp_path))
    assert done.status == 1
    assert "error: there is no docker client on this machine" in done.err
    assert "or natively: make run" in done.err


def stand_in(on_path, **programs: str) -> dict[str, str]:
    """A client, and a machine with an amd64 engine's processor: the tests are of one, wherever they run."""
    environment = on_path(**{"uname": '[ "$1" = -m ] && echo x86_64 || echo Linux', **programs})
    return {**environment, "MODEL": "starter", "BASE_IMAGE": ""}


def test_an_engine_that_does_not_run(on_path):
    said = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
    done = verb("run", **stand_in(on_path, docker=f"echo '{said}' >&2; exit 1", uname="echo Linux"))
    assert done.status == 1
    assert "error: the Docker engine is not running: Cannot connect" in done.err
    assert "next: sudo systemctl start docker, then the same command; or natively: make run" in done.err


def test_an_engine_that_does_not_run_on_a_mac(on_path):
    done = verb("run", **stand_in(on_path, docker="echo 'Cannot connect' >&2; exit 1", uname="echo Darwin"))
    assert "next: open -a Docker" in done.err


@pytest.mark.skipif(not shutil.which("docker"), reason="no docker client")
def test_an_engine_that_does_not_run_for_the_real_client():
    done = verb("run", DOCKER_HOST="unix:///nowhere/docker.sock")
    assert done.status == 1
    assert "error: the Docker engine is not running: " in done.err
    assert "next: unset DOCKER_HOST (it is unix:///nowhere/docker.sock), or start the engine that it names" in done.err


def test_an_account_that_may_not(on_path):
    said = "permission denied while trying to connect to the Docker daemon socket"
    done = verb("run", **stand_in(on_path, docker=f"echo '{said}' >&2; exit 1"))
    assert "error: this account may not talk to the Docker engine" in done.err
    assert "sudo usermod -aG docker" in done.err


@pytest.mark.parametrize(
    ("compose", "says"),
    [
        ("2.19.1", "error: Compose here is version 2.19.1; the kit needs 2.20 or later"),
        ("v2.3.0-desktop.1", "error: Compose here is version 2.3.0-desktop.1; the kit needs 2.20 or later"),
    ],
)
def test_a_compose_that_is_too_old(on_path, compose, says):
    done = verb("run", **stand_in(on_path, docker=TELL.format(compose=compose)))
    assert done.status == 1
    assert says in done.err
    assert "next: update Docker" in done.err


NO_PLUGIN = TELL.format(compose="x").replace("echo x", "exit 1")


def test_compose_1_alone(on_path):
    done = verb("run", **stand_in(on_path, **{"docker": NO_PLUGIN, "docker-compose": "echo 1.29.2"}))
    assert done.status == 1
    assert "error: Compose here is version 1.29.2, which ended in 2023; the kit needs 2.20 or later" in done.err
    assert "docker-compose-plugin" in done.err


def test_compose_2_under_its_own_name_does(on_path):
    """Past Compose: the build is asked of it, by its own name."""
    docker_compose = 'case "$*" in version*) echo 2.26.1 ;; *build*) echo "moon $0" >&2; exit 1 ;; esac'
    done = verb("run", **stand_in(on_path, **{"docker": NO_PLUGIN, "docker-compose": docker_compose}))
    assert "docker-compose" in done.err
    assert "moon" in done.err


def test_no_compose_at_all(on_path, tmp_path):
    environment = stand_in(on_path, docker=NO_PLUGIN)
    environment["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{without_docker(tmp_path)}"
    done = verb("run", **environment)
    assert done.status == 1
    assert "error: Docker Compose is not here" in done.err


def test_another_processor_than_the_engines(on_path):
    environment = stand_in(on_path, docker=TELL.format(compose="2.26.1"))
    done = verb("run", **environment, DOCKER_DEFAULT_PLATFORM="linux/arm64")
    assert done.status == 1
    assert "asks for another processor than this engine's (amd64)" in done.err
    assert "next: unset DOCKER_DEFAULT_PLATFORM" in done.err


BUILDS = {
    "a base image that is out of reach": (
        "failed to do request: Head https://registry.invalid/v2: dial tcp: lookup registry.invalid: no such host",
        "the base image could not be fetched",
        "sudo sh env/local-base.sh",
    ),
    "a full disk": ("write /var/lib/docker/x: no space left on device", "the disk is full", "docker builder prune"),
    "something else": ("the moon is in the way", "the moon is in the way", "the same command goes on from here"),
}


@pytest.mark.parametrize("case", BUILDS)
def test_a_build_that_fails(on_path, case):
    said, says, following = BUILDS[case]
    told = TELL.format(compose="2.26.1").replace("esac", f'*build*) echo "{said}" >&2; exit 1 ;; esac')
    done = verb("run", **stand_in(on_path, docker=told))
    assert done.status == 1
    assert "error: the image was not built" in done.err
    assert says in done.err
    assert following in done.err


def test_a_full_temporary_folder_is_named_and_takes_no_other_image(on_path):
    """A limit of 0 bytes a file stands in for the full disk."""
    told = TELL.format(compose="2.26.1")
    program = "trap '' XFSZ; ulimit -f 0; sh env/docker.sh run"
    done = run_command(["sh", "-c", program], env=stand_in(on_path, docker=told))
    assert done.status == 1
    assert "cannot be written to" in done.err
    assert "next: free some room there, or name another folder: TMPDIR" in done.err
    assert f"building base-model-kit:{hashlib.sha256(b'').hexdigest()[:12]}" not in done.err


def test_mps_is_refused_before_anything_is_built(on_path):
    done = verb("run", **stand_in(on_path, docker="echo asked >&2; exit 1"), DEVICE="mps")
    assert done.status == 1
    assert done.err == (
        "error: DEVICE=mps cannot run in a container: no container reaches Apple's GPU.\n"
        "  next: on the Mac itself: make run DEVICE=mps\n"
    )


STAND_IN_BASES = {
    "an engine that does not run": (
        {"docker": "exit 1", "debootstrap": "echo made"},
        "the Docker engine is not running",
    ),
    "a mirror out of reach": (
        {
            "docker": '[ "$1" = version ]',
            "debootstrap": "echo 'E: Failed getting release file'; exit 1",
            "id": "echo 0",
        },
        "E: Failed getting release file\nerror: debootstrap failed, with the words above.\n  next: check the network",
    ),
    "another account than root": (
        {"docker": '[ "$1" = version ]', "debootstrap": "echo made", "id": "echo 1000"},
        "error: debootstrap needs root.\n  next: sudo sh env/local-base.sh",
    ),
}


@pytest.mark.parametrize("case", STAND_IN_BASES)
def test_a_stand_in_base_that_cannot_be_built(on_path, case):
    programs, says = STAND_IN_BASES[case]
    done = run_command(["sh", "env/local-base.sh"], env=on_path(**programs))
    assert done.status == 1
    assert says in done.err
    assert "made" not in done.out + done.err


def test_a_stand_in_base_that_is_there_is_taken_as_it_is(on_path):
    done = run_command(["sh", "env/local-base.sh"], env=on_path(docker="exit 0", debootstrap="echo made"))
    assert (done.status, done.out, done.err) == (0, "", "")


def test_an_unknown_verb_is_wrong_usage():
    assert verb("dance").status == 2


@pytest.mark.parametrize(("require", "status", "says"), [("", 0, "SKIPPED"), ("1", 1, "ERROR")])
def test_without_an_engine_the_tests_of_the_container_say_so_and_fail_only_where_one_is_required(
    require, status, says, on_path
):
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_docker_image.py", "-k", "user_is_not_root"]
    env = {**on_path(docker="echo no engine >&2; exit 1"), "REQUIRE_DOCKER": require}
    done = run_command([sys.executable, *tests], env=env)
    assert done.status == status, done.out
    assert says in done.out
    assert "NO DOCKER ENGINE RUNS HERE" in done.out


def test_the_image_holds_what_its_programs_read(tmp_path):
    recipe = (ROOT / "env" / "Dockerfile").read_text()
    stage = recipe.split("AS source\n")[1].split("FROM")[0]
    for *sources, target in (line.split() for line in re.findall(r"^COPY (.+)$", stage, re.MULTILINE)):
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (tmp_path / target).mkdir(exist_ok=True)
                shutil.copy(ROOT / source, tmp_path / target)
    # What a module needs it reads when it is imported, but for models, lock and golden, which come as they are.
    programs = re.findall(r"scripts\.(\w+)", (ROOT / "docker-compose.yml").read_text())
    assert {"run", "verify", "bench", "download"} <= set(programs)
    modules = ["kit.models.random_weights", *(f"scripts.{name}" for name in programs)]
    done = run_command([sys.executable, "-c", f"import {', '.join(modules)}"], cwd=tmp_path)
    assert done.status == 0, done.err


def test_the_base_is_pinned_once_and_by_digest():
    places = [ROOT / "docker-compose.yml", ROOT / "Makefile", ROOT / "README.md"]
    places += [path for folder in ("env", ".ci", "docs") for path in (ROOT / folder).iterdir()]
    holding = [path.name for path in places if path.is_file() and "@sha256:" in path.read_text(errors="replace")]
    assert holding == ["Dockerfile"]


def test_an_engine_that_is_emulated_on_this_machine(on_path):
    told = TELL.format(compose="2.26.1")
    done = verb("run", **stand_in(on_path, docker=told, uname='[ "$1" = -m ] && echo arm64 || echo Darwin'))
    assert done.status == 1
    assert "this machine's processor is arm64, and the Docker engine's machine is an emulated amd64" in done.err
    assert "natively: make run" in done.err


def test_a_base_image_of_another_processor(on_path):
    environment = {**stand_in(on_path, docker=TELL.format(compose="2.26.1")), "BASE_IMAGE": "some/base:1"}
    done = verb("run", **environment)
    assert done.status == 1
    assert "BASE_IMAGE=some/base:1 is for linux/arm64, and this engine's processor is amd64" in done.err


def test_mps_in_dotenv_stands_in_no_way_of_a_download(on_path, kit_copy):
    (kit_copy / ".env").write_text("DEVICE=mps\n")
    done = verb("download", cwd=kit_copy, **stand_in(on_path, docker="exit 1", uname="echo Linux"))
    assert "the Docker engine is not running" in done.err
    assert "mps" in verb("run", cwd=kit_copy).err


def test_a_dotenv_of_another_name_is_read_in_its_place(on_path, kit_copy):
    (kit_copy / ".env").write_text("DEVICE=mps\n")
    done = verb("run", cwd=kit_copy, **stand_in(on_path, docker="exit 1"), KIT_DOTENV="/nowhere")
    assert "mps" not in done.err


def test_a_certificate_file_that_is_not_there(on_path):
    done = verb("run", **stand_in(on_path, docker="exit 1"), SSL_CERT_FILE="nowhere.pem")
    assert done.status == 1
    assert "SSL_CERT_FILE=nowhere.pem cannot be read" in done.err


def lent(folder: Path, pip_config: str = "", **env: str) -> dict[str, str]:
    """What lend_settings makes of this machine's settings."""
    (folder / "pip.conf.mine").write_text(pip_config)
    program = (
        f"cd {ROOT}; work={folder}; . env/docker-image.sh; lend_settings; "
        'printf "%s\\n" "$KIT_CERTIFICATES"; cat "$KIT_PIP_CONF"'
    )
    base = {"PIP_CONFIG_FILE": str(folder / "pip.conf.mine"), "PIP_CERT": "", "SSL_CERT_FILE": ""}
    done = run_command(["sh", "-uc", program], env=base | env)
    assert done.status == 0, done.err
    certificates, _, *lines = done.out.splitlines()
    return {"certificates": certificates, **dict(line.split(" = ", 1) for line in lines)}


def test_pips_settings_go_along(tmp_path):
    certificate = tmp_path / "ca.pem"
    certificate.write_text("x")
    config = (
        "[global]\nindex-url = https://u:p@one.invalid/simple\nextra-index-url =\n  https://two.invalid/simple\n"
        f"  https://three.invalid/simple\nproxy = http://proxy.invalid:3128\ncert = {certificate}\n"
    )
    found = lent(tmp_path, config)
    assert found["index-url"] == "https://u:p@one.invalid/simple"
    assert found["extra-index-url"].split() == ["https://two.invalid/simple", "https://three.invalid/simple"]
    assert found["proxy"] == "http://proxy.invalid:3128"
    assert found["certificates"] == str(certificate)
    assert lent(tmp_path, PIP_INDEX_URL="https://env.invalid/simple")["index-url"] == "https://env.invalid/simple"


def test_a_wheel_of_another_torch_is_not_the_locked_one(tmp_path, kit_copy):
    (kit_copy / "env" / "wheels" / "torch-2.0.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    program = (
        f"work={tmp_path}; arch=amd64; KIT_USER=0:0; say() {{ :; }}; . env/docker-image.sh; "
        "host_python() { echo /nowhere/python; }; UV_FIND_LINKS=x; set -x; bring_torch"
    )
    assert "/nowhere/python -m pip download" in run_command(["sh", "-c", program], cwd=kit_copy).err


@pytest.mark.parametrize(("written", "named"), [("0" * 40, "0" * 40), ("$Format:%H$", "unknown")])
def test_a_copy_without_git_gives_its_image_the_commit_that_it_was_made_of(tmp_path, written, named):
    """As a bundle's kit is, or a folder that was downloaded."""
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "commit").write_text(f"{written}\n")
    program = f"cd '{tmp_path}'; name_commit; echo \"$KIT_COMMIT\""
    assert run_command(["sh", "-c", f". {ROOT}/env/docker-image.sh; {program}"]).out == f"{named}\n"


def test_a_prompt_that_cannot_be_read_is_refused_before_anything_is_made(on_path, tmp_path):
    calls = tmp_path / "calls"
    docker = f'echo "$*" >>{calls}; {TELL.format(compose="2.26.1").replace("exit 1", "echo sha256:0")}'
    asked = {"METHOD": "llamacpp", "QUANT": "q8_0", "PROMPT_FILE": str(tmp_path / "nowhere.txt")}
    done = verb("run", **stand_in(on_path, docker=docker), **asked)
    assert done.status == 2
    assert "nowhere.txt cannot be read" in done.err
    assert "compose version" in calls.read_text()
    assert " run " not in calls.read_text()
