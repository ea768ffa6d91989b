"""`make add-model`: a section of env/models.toml for a repository and commit of the Hub."""

from __future__ import annotations

import tomllib

import pytest

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
