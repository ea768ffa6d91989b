"""Accounts and gated models, as the real client meets them on the real Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

from tests.hub import Account, MisbehavingHub, big_file, serve_folder
from tests.hub.raw import ask, past_proxies

REPO, NAME = "org/name", "model.safetensors"
ACCOUNTS = {
    "hf_ada": Account("ada"),
    "hf_write": Account("ada", role="write"),
    "hf_fine": Account("ada", role="fineGrained"),
    "hf_narrow": Account("ada", role="fineGrained", can_read_gated_repos=False),
    "hf_none": Account("ben", access="none"),
    "hf_pending": Account("cid", access="pending"),
}


@pytest.fixture(autouse=True)
def _past_proxies(monkeypatch):
    past_proxies(monkeypatch)


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    big_file(folder / NAME, 10_000)
    with MisbehavingHub([serve_folder(folder, REPO)], gated={REPO}, accounts=ACCOUNTS) as hub:
        yield hub


def download(hub, tmp_path, token: str | bool = False) -> bytes:
    return Path(HfApi(hub.url).hf_hub_download(REPO, NAME, token=token, cache_dir=tmp_path)).read_bytes()


@pytest.mark.parametrize("token", ["hf_ada", "hf_write", "hf_fine"])
def test_a_token_with_access_reads_a_gated_model(gated, tmp_path, token):
    HfApi(gated.url).auth_check(REPO, token=token)
    assert len(download(gated, tmp_path, token)) == 10_000


@pytest.mark.parametrize(
    ("token", "status", "says"),
    [
        (False, 401, "You must have access to it and be authenticated"),
        ("hf_none", 403, "you are not in the authorized list. Visit https://huggingface.co/org/name to ask"),
        ("hf_pending", 403, "is awaiting a review from the repo authors"),
    ],
)
def test_without_access_a_gated_model_is_refused(gated, tmp_path, token, status, says):
    api = HfApi(gated.url)
    for ask_for in (
        lambda: api.auth_check(REPO, token=token),
        lambda: download(gated, tmp_path, token),
        lambda: list(api.list_repo_tree(REPO, token=token)),
        lambda: api.file_exists(REPO, NAME, token=token),
    ):
        with pytest.raises(GatedRepoError, match=says) as caught:
            ask_for()
        assert caught.value.response.status_code == status
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    assert ask(gated.url, f"/{REPO}/resolve/main/{NAME}", **headers).status == status
    assert api.model_info(REPO, token=token).gated == "manual"


def test_a_fine_grained_token_without_the_permission_is_a_bare_403(gated, tmp_path):
    with pytest.raises(HfHubHTTPError, match="enable access to public gated repositories") as caught:
        HfApi(gated.url).auth_check(REPO, token="hf_narrow")
    assert not isinstance(caught.value, GatedRepoError)
    with pytest.raises(LocalEntryNotFoundError, match="check your connection") as hidden:
        download(gated, tmp_path, "hf_narrow")
    assert isinstance(hidden.value.__cause__, HfHubHTTPError)


def test_a_token_that_nobody_has_is_a_plain_401(gated, tmp_path):
    for ask_for in (lambda: HfApi(gated.url).whoami("hf_no"), lambda: download(gated, tmp_path, "hf_no")):
        with pytest.raises(HfHubHTTPError) as caught:
            ask_for()
        assert type(caught.value) is HfHubHTTPError
        assert caught.value.response.status_code == 401


def test_whoami_tells_name_role_and_permission(gated):
    def token(name: str) -> dict:
        return HfApi(gated.url).whoami(name)["auth"]["accessToken"]

    assert HfApi(gated.url).whoami("hf_ada")["name"] == "ada"
    assert [token(name)["role"] for name in ("hf_ada", "hf_write", "hf_fine")] == ["read", "write", "fineGrained"]
    assert [token(name)["fineGrained"]["canReadGatedRepos"] for name in ("hf_fine", "hf_narrow")] == [True, False]
