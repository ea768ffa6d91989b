"""`make add-model`: a section of env/models.toml for a repository and commit of the Hub."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib

import pytest
from safetensors.torch import load_file

from tests.conftest import run_command
from tests.hub import Account, MisbehavingHub, serve_folder, tiny_model
from tests.hub_kit import TOKEN, HubKit, hub_kit, section


@pytest.fixture
def kit(tmp_path, request):
    folder = tiny_model(tmp_path / "tiny")
    for name in ("LICENSE.txt", "USE_POLICY.md", "README.md"):
        (folder / name).write_text(f"{name}\n")
    (folder / "original").mkdir()
    (folder / "original" / "model.safetensors").write_bytes(b"a second copy")
    served = serve_folder(folder, "some/Tiny-1.5")
    gated = {served.repo_id} if getattr(request, "param", None) == "gated" else set()
    with MisbehavingHub([served], gated=gated, accounts={TOKEN: Account("ada")}) as hub:
        yield hub_kit(tmp_path, hub, "# a comment that stays\n" + section("first", served))


def models(kit: HubKit) -> dict:
    return tomllib.loads((kit.folder / "env" / "models.toml").read_text())


@pytest.mark.parametrize("kit", ["open", "gated"], indirect=True)
def test_the_section_has_what_inference_needs_and_the_model_then_downloads(kit):
    environment = {"HF_TOKEN": TOKEN} if kit.hub.gated else {}
    done = kit.run("add_model", "--repo", "some/Tiny-1.5", "--name", "tiny-1.5", **environment)
    assert done.status == 0, done.err
    added, first = models(kit)["tiny-1.5"], models(kit)["first"]
    assert "# a comment that stays" in (kit.folder / "env" / "models.toml").read_text()
    assert added["repo_id"] == "some/Tiny-1.5"
    assert added["revision"] == first["revision"]
    assert added.get("gated", False) is bool(kit.hub.gated)
    assert added["kind"] == "base"
    assert added["licence_files"] == ["LICENSE.txt", "USE_POLICY.md"]
    mine = {file["path"]: (file["size"], file["sha256"]) for file in added["files"]}
    pinned = {file["path"]: (file["size"], file["sha256"]) for file in first["files"]}
    assert mine == {path: facts for path, facts in pinned.items() if path in mine}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(mine)
    assert not {"README.md", "original/model.safetensors", "LICENSE.txt"} & set(mine)
    assert done.out.startswith('["tiny-1.5"]')

    fetched = kit.run("download", "--model", "tiny-1.5", **environment)
    assert fetched.status == 0, fetched.err
    assert (kit.model("tiny-1.5") / "LICENSE.txt").exists()
    if not kit.hub.gated:
        assert kit.run("run", "--model", "tiny-1.5", "--max-new-tokens", "1").status == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "REPO and NAME are both needed"),
        (["--repo", "nonsense", "--name", "x"], "REPO=nonsense is not of the form owner/name"),
        (["--repo", "a/b", "--name", "../x"], "NAME=../x"),
        (["--repo", "a/b", "--name", "first"], "has a model first already"),
    ],
)
def test_names_that_cannot_be_are_refused_before_any_network(kit, arguments, says):
    done = kit.run("add_model", *arguments)
    assert done.status == 2
    assert says in done.err
    assert kit.hub.requests == []


def test_a_repository_or_commit_that_is_not_there(kit):
    assert "has no no/body" in kit.run("add_model", "--repo", "no/body", "--name", "x").err
    done = kit.run("add_model", "--repo", "some/Tiny-1.5", "--name", "x", "--revision", "nope")
    assert done.status == 1
    assert "some/Tiny-1.5 has no commit nope" in done.err
    assert set(models(kit)) == {"first"}


RENAMED = """
from huggingface_hub import HfApi
from scripts import add_model, cli
real = HfApi.model_info
# The Hub redirects the old name's address, and answers with the new one.
HfApi.model_info = lambda api, name, **more: real(api, {"old/name": "some/Tiny-1.5"}.get(name, name), **more)
cli.main(add_model.add_model)
"""


def test_a_repository_that_was_renamed_is_pinned_by_its_name_of_today(kit):
    command = [sys.executable, "-c", RENAMED, "--repo", "old/name", "--name", "x"]
    done = run_command(command, cwd=kit.folder, env=kit.environment())
    assert done.status == 0, done.err
    assert models(kit)["x"]["repo_id"] == "some/Tiny-1.5"
    assert "old/name is called some/Tiny-1.5 now, and is pinned by that name" in done.err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_act": "mish_of_mine"}, "hidden_act"),
        ({"tie_word_embeddings": False}, "lm_head.weight, which the weights have not"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_no_method_can_run_is_refused_before_its_weights_are_fetched(tmp_path, change, says):
    folder = tiny_model(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    served = serve_folder(folder, "some/tiny")
    with MisbehavingHub([served]) as hub:
        kit = hub_kit(tmp_path, hub, section("first", served))
        done = kit.run("add_model", "--repo", "some/tiny", "--name", "x")
        assert done.status == 1
        assert "some/tiny is not a model that the kit can run: " in done.err
        assert says in done.err
        assert set(models(kit)) == {"first"}


def test_only_the_weights_that_the_index_names_are_pinned(tmp_path):
    folder = tiny_model(tmp_path / "tiny")
    names = list(load_file(folder / "model.safetensors"))
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    table = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    served = serve_folder(folder, "some/tiny")
    with MisbehavingHub([served]) as hub:
        kit = hub_kit(tmp_path, hub, section("first", served))
        done = kit.run("add_model", "--repo", "some/tiny", "--name", "x")
        assert done.status == 0, done.err
    added = models(kit)["x"]
    assert added["kind"] == "instruct"
    paths = {file["path"] for file in added["files"]}
    assert {name for name in paths if name.endswith(".safetensors")} == {"model-00001-of-00001.safetensors"}
    assert {"chat_template.jinja", "model.safetensors.index.json"} <= paths
