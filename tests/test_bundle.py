"""make bundle: what goes in, the same bytes each time, and what is refused before any byte is written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kit.environment import lock as locks
from kit.environment import wheels
from kit.offline import bundle
from tests.bundle_kit import ADAPTER, LICENCES, MODEL_FILES, bundle_kit, sha256, tiny_wheel, tuned_model
from tests.conftest import Done, clean_environment, run_command

NOTICE = (
    "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
)


@dataclass
class Clone:
    """A git clone with a lock of two tiny wheels, which pip finds in `links`, and whole models."""

    folder: Path
    links: Path
    env: dict[str, str] = field(default_factory=dict)

    def git(self, *words: str) -> str:
        author = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com", "-c", "commit.gpgsign=false"]
        return run_command(["git", *author, *words], cwd=self.folder).out.strip()

    def bundle(self, *words: str, **env: str) -> Done:
        command = [sys.executable, "-m", "scripts.bundle", *words]
        return run_command(command, cwd=self.folder, env=self.env | {"PIP_FIND_LINKS": str(self.links)} | env)

    @property
    def made(self) -> Path:
        (folder,) = (path for path in (self.folder / "dist").iterdir() if path.is_dir())
        return folder

    def bytes_of_all(self) -> dict[str, str]:
        """Each file's sha256, the tar's too."""
        files = [path for path in (self.folder / "dist").rglob("*") if path.is_file() and path.name != ".bundle.lock"]
        return {str(path.relative_to(self.folder)): sha256(path.read_bytes()) for path in files}


def clone(folder: Path, *names: str) -> Clone:
    room = bundle_kit(folder, *names)
    shutil.move(room.folder / "wheels", folder / "links")
    shutil.copytree(room.folder / "models", room.kit / "models")
    found = Clone(room.kit, folder / "links", {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1"})
    (room.kit / "env" / "say.sh").write_text("echo\n")
    (room.kit / "env" / "say.sh").chmod(0o755)
    found.git("init", "-q")
    found.git("add", "-A")
    found.git("commit", "-q", "-m", "a commit")
    return found


@pytest.fixture
def here(tmp_path) -> Clone:
    return clone(tmp_path, "starter")


def test_what_is_in_a_bundle(here):
    done = here.bundle()
    assert done.status == 0, done.err
    commit = here.git("rev-parse", "HEAD")
    assert here.made.name == f"base-model-kit-{commit[:12]}"
    sums = bundle.parse_sums((here.made / "SHA256SUMS").read_bytes())
    tracked = {f"kit/{name}" for name in here.git("ls-files").splitlines()}
    wheels_there = {f"wheels/{path.name}" for path in here.links.iterdir()}
    said = {f"licences/{path.stem}/licenses/LICENSE" for path in here.links.iterdir()} | {
        f"sbom/{locks.this()}.json",
        "README",
    }
    said = {name.replace(":", "-") for name in said}
    assert set(sums) == tracked | wheels_there | said | {f"models/starter/{name}" for name in MODEL_FILES}
    checked = ["shasum", "-a", "256", "-c", "--quiet", "SHA256SUMS"]
    assert subprocess.run(checked, cwd=here.made, check=False).returncode == 0
    assert commit in (here.made / "README").read_text()
    inside = json.loads((here.made / "sbom" / f"{locks.this()}.json".replace(":", "-")).read_text())
    assert inside["metadata"]["component"]["version"] == commit
    assert {one["name"]: one["licenses"] for one in inside["components"]} == {
        wheels.package(path.name)[0]: [{"expression": "MIT"}] for path in here.links.iterdir()
    }


def test_the_bundles_own_kit_knows_the_commit_that_it_was_made_of(here, tmp_path):
    """A readiness code from it has to name the commit, and there is no git in it."""
    here.bundle()
    shutil.copytree(here.made / "kit", tmp_path / "from a stick")
    program = "from kit.environment import facts; print(facts.commit())"
    done = run_command([sys.executable, "-c", program], cwd=tmp_path / "from a stick")
    assert done.out.strip() == here.git("rev-parse", "HEAD"), done.err


def test_an_extra_goes_along_where_it_is_asked_for(here):
    wheel = tiny_wheel(here.links, "gamma")
    pin = f"gamma==1.0 \\\n    --hash=sha256:{sha256(wheel.read_bytes())}\n"
    (here.folder / "env" / "lock" / "ray.txt").write_text(pin)
    here.git("commit", "-qam", "an extra")
    assert here.bundle().status == 0
    assert not (here.made / "wheels" / wheel.name).exists()
    done = here.bundle("--extra", "ray")
    assert done.status == 0, done.err
    assert (here.made / "wheels" / wheel.name).exists()
    assert (here.made / "licences" / wheel.stem / "licenses" / "LICENSE").exists()
    assert '"gamma"' in (here.made / "sbom" / f"{locks.this()}.json".replace(":", "-")).read_text()


def test_the_digest_alone_is_the_result(here):
    done = here.bundle()
    assert done.out == sha256((here.made / "SHA256SUMS").read_bytes()) + "\n"


def test_the_tar_holds_the_same_and_nothing_of_who_made_it(here):
    here.bundle()
    with tarfile.open(here.made.with_name(f"{here.made.name}.tar"), "r:") as tar:
        members = {member.name.partition("/")[2]: member for member in tar}
        for path, member in members.items():
            assert tar.extractfile(member).read() == (here.made / path).read_bytes()
            assert (member.uid, member.gid, member.uname, member.gname, member.mtime) == (0, 0, "", "", 315532800)
    assert set(members) == {path for path, _ in bundle.listing(here.made)}
    listed = subprocess.run(
        ["git", "ls-files", "-s"], cwd=here.folder, capture_output=True, text=True, check=True
    ).stdout
    executable = [line.split("\t")[1] for line in listed.splitlines() if line.startswith("100755")]
    assert "env/say.sh" in executable
    assert {path for path, member in members.items() if member.mode != 0o644} == {f"kit/{path}" for path in executable}


def test_the_same_inputs_give_the_same_bytes(here, tmp_path):
    """In another clone of the commit, at another time, by another umask."""
    assert here.bundle().status == 0
    other = Clone(tmp_path / "other", here.links, here.env)
    subprocess.run(["git", "clone", "-q", here.folder, other.folder], check=True)
    shutil.copytree(here.folder / "models", other.folder / "models", copy_function=shutil.copyfile)
    command = f"umask 077; exec {sys.executable} -m scripts.bundle"
    done = run_command(["sh", "-c", command], cwd=other.folder, env=here.env | {"PIP_FIND_LINKS": str(here.links)})
    assert done.status == 0, done.err
    assert other.bytes_of_all() == here.bytes_of_all()


@pytest.mark.slow
def test_the_second_time_nothing_is_fetched_and_what_was_spoilt_is_mended(here):
    here.bundle()
    before = here.bytes_of_all()
    (here.links / "hidden").mkdir()
    spoilt = here.made / "wheels" / "alpha-1.0-py3-none-any.whl"
    for wheel in here.links.glob("*.whl"):
        wheel.rename(here.links / "hidden" / wheel.name)
    assert here.bundle().status == 0
    assert here.bytes_of_all() == before
    spoilt.write_bytes(b"spoilt")
    done = here.bundle()
    assert done.status == 1
    assert "has alpha==1.0 for it" in done.err
    (here.links / "hidden" / spoilt.name).rename(here.links / spoilt.name)
    assert here.bundle().status == 0
    assert here.bytes_of_all() == before


def test_what_an_interrupted_one_left_is_used_and_cleared_away(here):
    commit = here.git("rev-parse", "HEAD")[:12]
    left = here.folder / "dist" / f".base-model-kit-{commit}.partial"
    (left / "wheels" / ".arriving").mkdir(parents=True)
    (left / "models" / "gone").mkdir(parents=True)
    (left / "models" / "gone" / "x").write_text("x")
    (left / "wheels" / "gamma-1.0-py3-none-any.whl").write_text("x")
    older = here.folder / "dist" / ".base-model-kit-0000000000000000.partial" / "wheels"
    older.mkdir(parents=True)
    for wheel in list(here.links.iterdir()):
        wheel.rename(older / wheel.name)
    assert here.bundle().status == 0
    names = {path.name for path in (here.folder / "dist").iterdir()}
    assert names == {".bundle.lock", f"base-model-kit-{commit}", f"base-model-kit-{commit}.tar"}
    assert not [path for path, _ in bundle.listing(here.made) if "gone" in path or "gamma" in path]


def test_the_starter_always_goes_along(tmp_path):
    here = clone(tmp_path, "starter", "tiny")
    done = here.bundle("--model", "tiny")
    assert done.status == 0, done.err
    assert {path.name for path in (here.made / "models").iterdir()} == {"starter", "tiny"}


def test_a_tuned_model_takes_its_base_along(tmp_path):
    here = clone(tmp_path, "starter", "tiny")
    tuned_model(here.folder / "models" / "mine")
    done = here.bundle("--model", "mine")
    assert done.status == 0, done.err
    assert {path.name for path in (here.made / "models").iterdir()} == {"starter", "tiny", "mine"}
    assert {path.name for path in (here.made / "models" / "mine").iterdir()} == {*ADAPTER, "tune.json"}
    assert "no registry pins it" in (here.made / "README").read_text()


def test_a_model_made_of_llama_goes_along_under_a_name_that_says_so(tmp_path):
    here = clone(tmp_path, "starter", "guarded")
    tuned_model(here.folder / "models" / "mine", "guarded")
    refused = here.bundle("--model", "mine")
    assert refused.status == 1
    assert "its name begins with Llama" in refused.err
    (here.folder / "models" / "mine").rename(here.folder / "models" / "llama-mine")
    done = here.bundle("--model", "llama-mine")
    assert done.status == 0, done.err
    assert "\nBuilt with Llama\n" in (here.made / "README").read_text()[:200]


# --- What its licence asks ------------------------------------------------------------------------------------------


def test_a_gated_model_goes_along_with_all_that_its_licence_asks_for(tmp_path):
    here = clone(tmp_path, "starter", "guarded")
    done = here.bundle("--model", "guarded,starter")
    assert done.status == 0, done.err
    place = here.made / "models" / "guarded"
    assert {path.name for path in place.iterdir()} == {*MODEL_FILES, *LICENCES, "Notice"}
    assert (place / "Notice").read_text().strip() == NOTICE
    readme = (here.made / "README").read_text()
    assert "\nBuilt with Llama\n" in readme[:200]
    assert "guarded: Llama 3.2 Community License (models/guarded/: LICENSE.txt, USE_POLICY.md, Notice)" in readme


@pytest.mark.parametrize("name", LICENCES)
def test_a_gated_model_without_its_licence_stays_here(tmp_path, name):
    here = clone(tmp_path, "starter", "guarded")
    (here.folder / "models" / "guarded" / name).unlink()
    done = here.bundle("--model", "guarded")
    assert done.status == 1
    assert f"error: guarded may only be handed on with its licence, and models/guarded/{name} is not here" in done.err
    assert "make download MODEL=guarded" in done.err
    assert not (here.folder / "dist").exists()


def test_a_gated_model_of_a_licence_that_the_kit_does_not_know_stays_here(tmp_path):
    here = clone(tmp_path, "starter", "guarded")
    toml = here.folder / "env" / "models.toml"
    toml.write_text(toml.read_text().replace("Llama 3.2 Community License", "Another License"))
    here.git("commit", "-qam", "another")
    done = here.bundle("--model", "guarded")
    assert done.status == 1
    assert "the kit does not know what handing it on asks for" in done.err


# --- What is refused ------------------------------------------------------------------------------------------------


def test_changes_that_are_not_committed_are_refused_by_name(here):
    (here.folder / "Makefile").write_text("run:\n")
    done = here.bundle()
    assert done.status == 1
    assert (
        "error: a bundle holds the source at a commit, and there are changes that are not committed: Makefile"
        in done.err
    )
    assert not (here.folder / "dist").exists()


def test_a_folder_that_is_no_clone_is_refused(here):
    shutil.rmtree(here.folder / ".git")
    assert "this folder is no git clone" in here.bundle().err


def test_a_model_that_is_not_here_or_altered_is_refused(here):
    weights = here.folder / "models" / "starter" / "model.safetensors"
    weights.write_bytes(b"x" * 7000)
    done = here.bundle()
    assert done.status == 1
    assert "models/starter/model.safetensors is altered" in done.err
    weights.unlink()
    assert "models/starter/model.safetensors is missing" in here.bundle().err


def test_a_platform_without_its_wheels_says_which(here):
    other = next(name for name in locks.PLATFORMS if name.split("-")[0] == locks.this().platform.split("-")[0])
    done = here.bundle("--platform", f"{other}:{'3.12' if locks.this().python != '3.12' else '3.11'}")
    assert done.status == 1
    assert "error: the wheels for" in done.err
    assert "has beta==1.0 for it" in done.err
    assert not list((here.folder / "dist").glob("base*"))


def test_names_that_are_none_are_wrong_usage(here):
    assert here.bundle("--platform", "amiga").status == 2
    assert here.bundle("--model", "nobody").status == 2


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root, on Linux")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("margin", ["50_000_000", "-700_000_000"])
def test_a_disk_that_is_too_small_is_said_before_the_first_byte_and_on_the_way(here, small_disk, margin):
    writer = here.folder / "kit" / "offline" / "bundle.py"
    writer.write_text(writer.read_text().replace("MARGIN = 50_000_000", f"MARGIN = {margin}"))
    (here.folder / "filler").write_bytes(bytes(4_000_000))
    here.git("add", "-A")
    here.git("commit", "-qm", "a margin")
    (here.folder / "dist").symlink_to(small_disk)
    done = here.bundle()
    assert done.status == 1
    assert ("MB are free" if margin[0] == "5" else "the disk is full") in done.err
    assert "next: free some room" in done.err
    assert not list(small_disk.glob("base*"))


def test_what_a_killed_one_left_is_no_room_that_is_taken(here, small_disk):
    writer = here.folder / "kit" / "offline" / "bundle.py"
    writer.write_text(
        writer.read_text().replace("MARGIN = 50_000_000", "MARGIN = -637_000_000")
    )  # it thinks of real wheels
    here.git("commit", "-qam", "a margin")
    (here.folder / "dist").symlink_to(small_disk)
    name = f"base-model-kit-{here.git('rev-parse', 'HEAD')[:12]}"
    lefts = {f".{name}.partial/models": 4_000_000, ".base-model-kit-000000000000.partial/kit": 1_500_000}
    for left, size in lefts.items():
        (small_disk / left).mkdir(parents=True)
        (small_disk / left / "half").write_bytes(bytes(size))
    done = here.bundle()
    assert done.status == 0, done.err
    assert {path.name for path in small_disk.glob("*base*")} == {name, f"{name}.tar"}


def test_two_at_once_make_one(here):
    command = [sys.executable, "-m", "scripts.bundle"]
    env = clean_environment() | here.env | {"PIP_FIND_LINKS": str(here.links), "KIT_DOTENV": ""}
    both = [subprocess.Popen(command, cwd=here.folder, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [each.communicate(timeout=60)[0] for each in both]
    assert [each.returncode for each in both] == [0, 0]
    assert said[0] == said[1] != ""
