"""A model folder: cheap presence, explicit proof, and the repair for what is missing or altered."""

from __future__ import annotations

import hashlib
import os

import pytest

from kit.errors import KitError
from kit.models import folder as model_folder
from kit.models import registry
from kit.models.registry import Model, ModelFile
from scripts.hints import words

CONTENT = {"config.json": b"{}", "model.safetensors": b"weights" * 1000}


@pytest.fixture
def model(models) -> Model:
    files = tuple(ModelFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in CONTENT.items())
    found = Model("tiny", "Tiny", "base", "MIT", "some/tiny", "c0ffee", False, 8, files, None)
    found.folder.mkdir()
    for name, data in CONTENT.items():
        (found.folder / name).write_bytes(data)
    return found


def alter(model: Model, name: str) -> None:
    """Other bytes of the same size, at another time."""
    path = model.folder / name
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    os.utime(path, ns=(1, 1))


def test_whole(model):
    model_folder.check(model)
    model_folder.verify(model)
    assert model_folder.missing(model) == []


def test_a_second_check_reads_no_file(model, monkeypatch):
    model_folder.check(model)
    monkeypatch.setattr(model_folder, "sha256", lambda *_: pytest.fail("a file was read"))
    model_folder.check(model)


@pytest.mark.parametrize("name", CONTENT)
def test_a_missing_file_is_named_with_the_repair(model, name):
    (model.folder / name).unlink()
    with pytest.raises(KitError, match=rf"models/tiny/{name} is missing") as caught:
        model_folder.check(model)
    assert "make download MODEL=tiny" in words(caught.value.hint)


@pytest.mark.parametrize("look", [model_folder.check, model_folder.verify])
def test_an_altered_file_of_the_same_size_is_named(model, look):
    model_folder.check(model)
    alter(model, "model.safetensors")
    with pytest.raises(KitError, match=r"models/tiny/model\.safetensors is altered"):
        look(model)


def test_a_touched_file_is_hashed_once_and_passes(model):
    model_folder.check(model)
    os.utime(model.folder / "config.json", ns=(1, 1))
    model_folder.check(model)
    stamped = (model.folder / model_folder.STAMP).stat().st_mtime_ns
    model_folder.verify(model)
    assert (model.folder / model_folder.STAMP).stat().st_mtime_ns == stamped


def test_verify_reads_what_check_would_believe(model):
    model_folder.check(model)
    path = model.folder / "config.json"
    status = path.stat()
    alter(model, "config.json")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    model_folder.check(model)  # the stamp cannot see it
    with pytest.raises(KitError, match="altered"):
        model_folder.verify(model)


def test_another_pin_in_models_toml_asks_for_the_files_again(model):
    model_folder.check(model)
    files = (model.files[0], ModelFile("model.safetensors", model.files[1].size, "0" * 64))
    with pytest.raises(KitError, match="altered"):
        model_folder.check(registry.Model(**{**vars(model), "files": files}))


@pytest.mark.parametrize("stamp", ["", "{", "[]", '{"config.json": 3}'])
def test_a_damaged_stamp_costs_a_look_and_nothing_else(model, stamp):
    (model.folder / model_folder.STAMP).write_text(stamp)
    model_folder.check(model)


def test_a_folder_that_cannot_be_written_works_without_a_stamp(model, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(model_folder.Path, "write_text", refuse)
    model_folder.check(model)
    assert not (model.folder / model_folder.STAMP).exists()


@pytest.mark.skipif(os.name != "posix", reason="POSIX accounts")
def test_files_of_another_account_are_named(model, monkeypatch):
    monkeypatch.setattr(model_folder.os, "access", lambda path, mode: not path.endswith("config.json"))
    for look in (model_folder.check, model_folder.verify):
        with pytest.raises(KitError, match=r"this account may not read models/tiny/config\.json") as raised:
            look(model)
        assert "ls -l models/tiny" in words(raised.value.hint)


def test_a_folder_in_the_place_of_a_file_is_a_file_that_is_missing(model):
    (model.folder / "config.json").unlink()
    (model.folder / "config.json").mkdir()
    with pytest.raises(KitError, match=r"config\.json is missing"):
        model_folder.check(model)
