"""A whole bundle is taken; another one is refused with the name of what is bad, before anything is written."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from kit.errors import KitError
from kit.offline import bundle, sources
from tests.bundle_kit import ADAPTER, MODEL_FILES, NAME, TAG, BundleKit, bundle_kit, sha256, tiny_wheel, tuned_model
from tests.conftest import run_command

MODEL = ["models/tiny/.verified.json", "models/tiny/config.json", "models/tiny/model.safetensors"]


@pytest.fixture
def room(tmp_path) -> BundleKit:
    return bundle_kit(tmp_path)


def assert_taken(room: BundleKit) -> None:
    wheels = sorted(path.name for path in (room.folder / "wheels").glob("*.whl"))
    assert room.installed() == [*wheels, *MODEL]
    assert (room.kit / "models/tiny/model.safetensors").read_bytes() == MODEL_FILES["model.safetensors"]


def test_an_extra_that_a_bundle_carries_is_taken_with_it(room):
    wheel = tiny_wheel(room.folder / "wheels", "gamma")
    pin = f"gamma==1.0 \\\n    --hash=sha256:{sha256(wheel.read_bytes())}\n"
    (room.kit / "env" / "lock" / "notebook.txt").write_text(pin)
    room.seal()
    done = room.unbundle(digest=room.digest)
    assert done.status == 0, done.err
    assert_taken(room)
    assert wheel.name in room.installed()


def assert_refused(room: BundleKit, done, name: str, why: str = "") -> None:
    assert done.status == 1, done.err
    assert "error: the bundle is refused" in done.err
    assert name in done.err
    assert why in done.err
    assert "next: " in done.err
    assert room.installed() == []
    assert not list(room.kit.parent.glob("**/evil*"))
    assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize("form", ["folder", "tar"])
@pytest.mark.container
def test_a_whole_bundle_is_taken_and_the_second_time_nothing_is_copied(room, form):
    place = getattr(room, form)
    done = room.unbundle(place, room.digest)
    assert done.status == 0, done.err
    assert done.out == ""
    assert_taken(room)
    before = [path.stat().st_mtime_ns for path in room.kit.glob("models/tiny/*")]
    again = room.unbundle(place, room.digest)
    assert "(0 MB)" in again.err
    assert [path.stat().st_mtime_ns for path in room.kit.glob("models/tiny/*")] == before


def test_a_place_with_blanks_and_letters_of_all_kinds_is_one(room):
    moved = room.folder.parent / "zwei Läufe – 同時"
    room.folder.rename(moved)
    assert room.unbundle(moved).status == 0


def test_without_a_digest_it_says_the_bundles_own_and_the_pins_still_decide(room):
    done = room.unbundle()
    assert done.status == 0
    assert f"no SHA256= to compare: this bundle's digest is {room.digest}" in done.err


@pytest.mark.parametrize("form", ["folder", "tar"])
@pytest.mark.parametrize("path", ["wheels/alpha", "models/tiny/model.safetensors", "kit/LICENSE", "README"])
def test_a_changed_file_is_refused_by_name(room, form, path):
    (name,) = [found for found, _ in bundle.listing(room.folder) if found.startswith(path)]
    digest = room.digest
    content = (room.folder / name).read_bytes()
    (room.folder / name).write_bytes(content[:-1] + b"!")
    assert_refused(room, room.unbundle(getattr(room, form), digest), name, "its sha256 differs")


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_a_missing_file_is_refused_by_name(room, form):
    (room.folder / "kit" / "LICENSE").unlink()
    assert_refused(room, room.unbundle(getattr(room, form)), "kit/LICENSE", "is missing")


@pytest.mark.parametrize("form", ["folder", "tar"])
@pytest.mark.parametrize("path", ["wheels/gamma-1.0-py3-none-any.whl", "models/tiny/more.py", "setup.sh"])
def test_a_file_that_is_not_listed_is_refused_by_name(room, form, path):
    (room.folder / path).write_text("more\n")
    assert_refused(room, room.unbundle(getattr(room, form)), path, "is not in SHA256SUMS")


def test_what_a_file_manager_leaves_on_a_stick_is_passed_over(room):
    (room.folder / "wheels" / ".DS_Store").write_text("x")
    (room.folder / "models" / "tiny" / "._config.json").write_text("x")
    assert room.unbundle().status == 0
    assert_taken(room)


def test_a_kit_folder_that_was_worked_in_is_no_bad_bundle(room):
    (room.folder / "kit" / ".venv").mkdir()
    (room.folder / "kit" / ".venv" / "python").symlink_to("/usr/bin/python3")
    assert room.unbundle().status == 0


# --- Trust does not come from inside ---------------------------------------------------------------------------------


def test_another_bundle_than_the_one_whose_digest_was_handed_on_is_refused(room):
    digest = room.digest
    (room.folder / "kit" / "LICENSE").write_text("mine now\n")
    room.seal()
    done = room.unbundle(digest=digest)
    assert_refused(room, done, "SHA256SUMS", digest)
    assert room.digest in done.err


def test_a_resealed_wheel_is_refused_by_the_clones_lock(room):
    room.wheel("beta").write_bytes(b"evil")
    room.seal()
    assert_refused(room, room.unbundle(), room.wheel("beta").name, "is not the wheel that env/lock/")


def test_a_resealed_model_is_refused_by_the_clones_models_toml(room):
    (room.folder / "models/tiny/model.safetensors").write_bytes(b"evil")
    room.seal()
    assert_refused(room, room.unbundle(), "models/tiny/model.safetensors", "is not the file that env/models.toml pins")


def test_a_model_without_one_of_its_files_is_refused(room):
    (room.folder / "models/tiny/config.json").unlink()
    room.seal()
    assert_refused(room, room.unbundle(), "models/tiny/config.json", "is missing, and env/models.toml lists it")


def test_a_tuned_model_is_taken_and_it_says_what_vouches_for_it(room):
    tuned_model(room.folder / "models/mine")
    room.seal()
    done = room.unbundle()
    assert done.status == 0, done.err
    assert "mine is a tuned model: no registry pins it, the bundle's digest alone vouches for it" in done.err
    assert (room.kit / "models/mine/adapter.gguf").read_bytes() == ADAPTER["adapter.gguf"]
    listed = run_command([sys.executable, "-m", "scripts.models"], cwd=room.kit).out
    assert re.search(r"^mine +tuned +\S+ MB +tiny +whole$", listed, re.MULTILINE), listed


def test_a_tuned_model_never_replaces_one_of_its_name(room):
    tuned_model(room.folder / "models/mine")
    tuned_model(room.kit / "models/mine")
    (room.kit / "models/mine/adapter.gguf").write_bytes(b"my own work")
    room.seal()
    done = room.unbundle()
    assert done.status == 0, done.err
    assert "mine stays in the bundle: models/mine/ is here already" in done.err
    assert (room.kit / "models/mine/adapter.gguf").read_bytes() == b"my own work"


def test_a_tuned_model_that_was_half_taken_is_completed(room):
    tuned_model(room.folder / "models/mine")
    room.seal()
    place = room.kit / "models/mine"
    place.mkdir(parents=True)
    (place / "adapter.gguf").write_bytes(ADAPTER["adapter.gguf"])
    done = room.unbundle()
    assert done.status == 0, done.err
    assert {path.name for path in place.iterdir() if not path.name.startswith(".")} == {*ADAPTER, "tune.json"}


def test_a_tuned_model_with_another_file_in_it_is_refused(room):
    tuned_model(room.folder / "models/mine")
    (room.folder / "models/mine/run.py").write_text("evil")
    room.seal()
    assert_refused(room, room.unbundle(), "models/mine", "is no tuned model")


def test_wheels_and_models_that_the_clone_does_not_pin_stay_in_the_bundle(room):
    tiny_wheel(room.folder / "wheels", "gamma")
    (room.folder / "models/other").mkdir()
    (room.folder / "models/other/config.json").write_text("{}")
    room.seal()
    done = room.unbundle()
    assert done.status == 0
    assert "other stays in the bundle" in done.err
    assert not [name for name in room.installed() if "gamma" in name or "other" in name]


def test_a_bundle_for_another_python_says_which_it_is_for(room):
    other = "cp312" if TAG != "cp312" else "cp311"
    wheel = room.wheel("beta")
    wheel.rename(wheel.with_name(wheel.name.replace(TAG, other)))
    room.seal()
    done = room.unbundle()
    assert done.status == 1
    assert "error: the bundle has no wheel of beta 1.0 for" in done.err
    assert room.installed() == []


# --- No path leads out -----------------------------------------------------------------------------------------------

PATHS = [
    "../evil",
    "wheels/../../evil",
    "/tmp/evil",
    "models/tiny/../../../evil",
    "wheels\\..\\evil",
    "./evil",
    "a//evil",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("form", ["folder", "tar"])
def test_a_path_in_the_list_that_leads_out_is_refused(room, form, path):
    room.add_line(path)
    outside = path.startswith("/") or ".." in path.split("/")
    why = "leads outside of the bundle" if outside else "is not a path that a bundle has"
    assert_refused(room, room.unbundle(getattr(room, form)), repr(path), why)


def test_a_list_that_is_none_is_refused(room):
    for content in (b"", b"x\n", b"\xff\n", (room.folder / bundle.SUMS).read_bytes()[:-1]):
        (room.folder / bundle.SUMS).write_bytes(content)
        assert_refused(room, room.unbundle(), "SHA256SUMS")
    room.seal()
    room.add_line("README")
    assert_refused(room, room.unbundle(), "README", "listed twice")


@pytest.mark.parametrize(
    "path", ["wheels/alpha-1.0-py3-none-any.whl", "models/tiny/config.json", "kit/LICENSE", "SHA256SUMS"]
)
def test_a_link_in_a_folder_is_refused(room, path):
    elsewhere = room.folder.parent / "elsewhere"
    (room.folder / path).rename(elsewhere)
    (room.folder / path).symlink_to(elsewhere)
    assert_refused(room, room.unbundle(), path, "is a link or a device")


def test_a_folder_behind_a_link_is_refused(room):
    elsewhere = room.folder.parent / "elsewhere"
    (room.folder / "models" / "tiny").rename(elsewhere)
    (room.folder / "models" / "tiny").symlink_to(elsewhere)
    assert_refused(room, room.unbundle(), "models/tiny")


def test_a_pipe_in_a_folder_is_refused_and_not_waited_for(room):
    room.wheel("alpha").unlink()
    os.mkfifo(room.folder / "wheels" / "alpha-1.0-py3-none-any.whl")
    assert_refused(room, room.unbundle(), "alpha-1.0-py3-none-any.whl", "is a link or a device")


def members() -> dict[str, tarfile.TarInfo]:
    def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
        found = tarfile.TarInfo(name)
        found.type, found.linkname, found.size = kind, link, 0
        return found

    return {
        "..": member(f"{NAME}/../evil"),
        "absolute": member("/tmp/evil"),
        "symlink": member(f"{NAME}/wheels/evil.whl", tarfile.SYMTYPE, "/etc/passwd"),
        "hard link": member(f"{NAME}/wheels/evil.whl", tarfile.LNKTYPE, f"{NAME}/README"),
        "device": member(f"{NAME}/evil", tarfile.CHRTYPE),
        "pipe": member(f"{NAME}/evil", tarfile.FIFOTYPE),
        "twice": member(f"{NAME}/README"),
    }


@pytest.mark.parametrize("kind", members())
def test_a_member_of_a_tar_that_is_no_file_of_a_bundle_is_refused(room, kind):
    member = members()[kind]
    with tarfile.open(room.tar, "a") as tar:
        tar.addfile(member, io.BytesIO())
        path = tar.name
    assert_refused(room, room.unbundle(path, room.digest), repr(member.name))


def test_a_tar_that_is_cut_short_or_is_none(room):
    tar = room.tar
    whole = tar.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:700], b"not a tar" * 200, b""):
        tar.write_bytes(content)
        done = room.unbundle(tar, room.digest)
        assert done.status == 1, content[:20]
        assert "error: " in done.err
        assert "Traceback" not in done.err
        assert room.installed() == []


# --- Places, disks, and who else is at work --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("/nowhere", "BUNDLE=/nowhere cannot be read: No such file or directory"),
        ("/etc", "/etc is no bundle: SHA256SUMS in it cannot be read"),
        ("ftp://room/", "BUNDLE= is not the address of a mirror"),
        ("http://", "BUNDLE= is not the address of a mirror"),
        ("http://ada:secret@room/", "BUNDLE= is not the address of a mirror"),
        ("http://[::1", "BUNDLE= is not the address of a mirror"),
        ("http://room/x.tar", "BUNDLE= is the address of a tar"),
        ("http://127.0.0.1:9", "127.0.0.1:9 refused the connection."),
        ("http://no-such-host.invalid:8080", "the name no-such-host.invalid:8080 was not found (DNS)."),
    ],
)
def test_a_place_that_is_no_bundle(room, place, says):
    done = room.unbundle(place)
    assert done.status in (1, 2)
    assert f"error: {says}" in done.err
    assert "next: " in done.err
    assert "secret" not in done.err
    assert room.installed() == []


def test_a_digest_that_is_none_and_a_digest_without_a_bundle(room):
    assert "has 64 hex digits" in room.unbundle(digest="123").err
    done = room.unbundle(digest=room.digest, BUNDLE="")
    assert done.status == 2
    assert "there is no BUNDLE=" in done.err


def test_what_an_interrupted_one_left_is_completed(room):
    place = room.kit / "models" / "tiny"
    place.mkdir(parents=True)
    (place / "config.json").write_bytes(MODEL_FILES["config.json"])
    (place / "model.safetensors").write_bytes(b"of another time")
    assert room.unbundle().status == 0
    assert_taken(room)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root, on Linux")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("margin", ["50_000_000", "-50_000_000"])
def test_a_disk_that_is_too_small_is_said_before_the_first_byte_and_on_the_way(tmp_path, small_disk, margin):
    made = bundle_kit(tmp_path / "made")
    weights = made.folder / "models" / "tiny" / "model.safetensors"
    toml = (made.kit / "env/models.toml").read_text()
    weights.write_bytes(bytes(8_000_000))
    toml = toml.replace(
        hashlib.sha256(MODEL_FILES["model.safetensors"]).hexdigest(), hashlib.sha256(bytes(8_000_000)).hexdigest()
    )
    (made.kit / "env/models.toml").write_text(toml.replace("size = 7000,", "size = 8000000,"))
    made.seal()
    restore = made.kit / "kit" / "offline" / "bundle.py"
    restore.write_text(restore.read_text().replace("MARGIN = 50_000_000", f"MARGIN = {margin}"))
    shutil.copytree(made.kit, small_disk / "kit")
    room = BundleKit(small_disk / "kit", made.folder)
    done = room.unbundle()
    assert done.status == 1
    assert ("MB are free" if margin[0] == "5" else "the disk is full") in done.err
    assert "next: free some room" in done.err
    assert not [name for name in room.installed() if "partial" not in name]


@pytest.mark.parametrize("folder", [".Spotlight-V100", ".fseventsd", ".Trashes", "System Volume Information"])
def test_what_a_system_leaves_at_a_sticks_root_is_no_part_of_a_bundle(room, folder):
    (room.folder / folder / "inside").mkdir(parents=True)
    (room.folder / folder / "inside" / "store.db").write_text("x")
    assert room.unbundle().status == 0
    assert_taken(room)


def test_a_tar_whose_header_lies_about_a_size_is_refused_in_a_sentence(tmp_path):
    for size in (2**70, 10**9, 5000):
        header = tarfile.TarInfo("bundle/kit/x")
        header.size = size
        path = tmp_path / f"{size}.tar"
        path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        with pytest.raises(KitError, match=r"is no tar of a bundle|is larger than the tar|is refused"):
            sources.Tar(path)
