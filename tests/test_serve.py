"""The server as huggingface_hub's own client meets it."""

from __future__ import annotations

import filecmp
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile, RepoFolder

from kit.files import sha256
from tests.conftest import run_command
from tests.hub import HubServer, big_file, serve_folder, tiny_model
from tests.hub.raw import past_proxies
from tests.hub.tiny_model import REVISION

REPO = "tiny/llama"


@pytest.fixture(autouse=True)
def _past_proxies(monkeypatch):
    past_proxies(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny_model(tmp_path_factory.mktemp("model"))
    (folder / "original").mkdir()
    (folder / "original" / "params.json").write_text("{}\n")
    (folder / "empty").touch()
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return serve_folder(folder, REPO)


@pytest.fixture(scope="module")
def hub(model):
    with HubServer([model]) as hub:
        yield hub


@pytest.fixture
def api(hub):
    return HfApi(hub.url, token=False)


def same(left: Path, right: Path, names: list[str]) -> bool:
    return filecmp.cmpfiles(left, right, names, shallow=False) == (names, [], [])


@pytest.mark.parametrize("revision", [None, "main", REVISION])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "original/params.json", "empty"])
def test_a_file_is_downloaded(api, folder, tmp_path, name, revision):
    path = Path(api.hf_hub_download(REPO, name, revision=revision, cache_dir=tmp_path))
    assert path.read_bytes() == (folder / name).read_bytes()
    assert REVISION in path.parts


def test_a_whole_model_is_downloaded(api, model, folder, tmp_path):
    snapshot = Path(api.snapshot_download(REPO, cache_dir=tmp_path))
    assert same(folder, snapshot, [file.path for file in model.files])


def test_files_are_chosen_by_pattern(api, tmp_path):
    api.snapshot_download(REPO, local_dir=tmp_path, allow_patterns=["*.json"], ignore_patterns=["original/*"])
    names = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert names == {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


def test_the_hf_command_downloads_through_hf_endpoint(hub, model, folder, tmp_path):
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "*"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    command = [str(Path(sys.executable).with_name("hf")), "download", REPO, "--local-dir", str(tmp_path / "local")]
    done = run_command(command, env=environment)
    assert done.status == 0, done.err
    assert same(folder, tmp_path / "local", [file.path for file in model.files])


def test_what_the_hub_tells_of_a_model(api, model):
    info = api.model_info(REPO, files_metadata=True)
    assert (info.id, info.sha, info.gated, info.private) == (REPO, REVISION, False, False)
    for file, sibling in zip(model.files, info.siblings, strict=True):
        assert (sibling.rfilename, sibling.size, sibling.blob_id) == (file.path, file.size, file.blob_id)
        assert (sibling.lfs.sha256 if sibling.lfs else None) == (file.sha256 if file.lfs else None)


def test_the_tree_of_a_model(api, model):
    tree = list(api.list_repo_tree(REPO, recursive=True))
    files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    assert {path: entry.blob_id for path, entry in files.items()} == {file.path: file.blob_id for file in model.files}
    assert files["model.safetensors"].lfs.sha256 == next(file.sha256 for file in model.files if file.lfs)
    (folder,) = (entry for entry in api.list_repo_tree(REPO) if isinstance(entry, RepoFolder))
    assert folder.path == "original"
    assert [entry.path for entry in api.list_repo_tree(REPO, "original")] == ["original/params.json"]


def test_who_asks_has_access(api):
    api.auth_check(REPO)
    assert api.file_exists(REPO, "config.json")
    assert api.revision_exists(REPO, REVISION)
    assert not api.file_exists(REPO, "no.json")
    assert not api.revision_exists(REPO, "no")
    assert not api.repo_exists("tiny/no")


@pytest.mark.parametrize(
    ("error", "ask"),
    [
        (RepositoryNotFoundError, lambda api: api.model_info("tiny/no")),
        (RepositoryNotFoundError, lambda api: api.auth_check("no")),
        (RepositoryNotFoundError, lambda api: api.hf_hub_download("tiny/no", "config.json")),
        (RepositoryNotFoundError, lambda api: api.snapshot_download("tiny/no")),
        (RevisionNotFoundError, lambda api: api.model_info(REPO, revision="no")),
        (RevisionNotFoundError, lambda api: api.hf_hub_download(REPO, "config.json", revision="refs/pr/1")),
        (RevisionNotFoundError, lambda api: api.snapshot_download(REPO, revision="f" * 40)),
        (EntryNotFoundError, lambda api: api.hf_hub_download(REPO, "no.json")),
        (EntryNotFoundError, lambda api: list(api.list_repo_tree(REPO, "additional_chat_templates"))),
        (HfHubHTTPError, lambda api: api.get_paths_info(REPO, "config.json")),
        (HfHubHTTPError, lambda api: api.whoami("hf_whatever")),
    ],
)
def test_what_is_not_there_is_the_clients_own_error(api, error, ask, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(error):
        ask(api)


def test_nothing_of_xet_is_offered(model, tmp_path):
    seen = []
    with HubServer([model], on_request=seen.append) as hub:
        snapshot_download(REPO, endpoint=hub.url, token=False, cache_dir=tmp_path)
    assert not [one for one in seen if "xet" in one.path or one.status >= 400]


def test_a_room_of_thirty_downloads_at_once(tmp_path):
    big_file(tmp_path / "model.safetensors", 4_000_000)
    model = serve_folder(tmp_path, REPO)

    def download(seat: int) -> str:
        cache = tmp_path / f"seat-{seat}"
        path = hf_hub_download(REPO, "model.safetensors", endpoint=hub.url, token=False, cache_dir=cache)
        digest = sha256(Path(path))
        shutil.rmtree(cache)
        return digest

    with HubServer([model]) as hub, ThreadPoolExecutor(30) as room:
        assert set(room.map(download, range(30))) == {model.files[0].sha256}


def test_a_downloaded_model_loads_and_generates(hub, tmp_path):
    folder = snapshot_download(REPO, endpoint=hub.url, token=False, local_dir=tmp_path)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    prompt = tokenizer("the words of this 🦙", return_tensors="pt")
    assert tokenizer.decode(prompt.input_ids[0], skip_special_tokens=True) == "the words of this 🦙"
    assert prompt.input_ids[0, 0] == model.config.bos_token_id
    output = model.generate(**prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert output.shape == (1, prompt.input_ids.shape[1] + 8)
    assert "HF_ENDPOINT" not in os.environ
