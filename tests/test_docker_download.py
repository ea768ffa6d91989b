"""`make docker-download` on a real engine, from the local Hub: whole models, the caller's files, and no token left."""

from __future__ import annotations

import json
import os
import subprocess
import time

import pytest

from tests import answers
from tests.conftest import clean_environment
from tests.docker_kit import containers, docker, tidy_engine, verb
from tests.hub import Account, MisbehavingHub, serve_folder, tiny_model
from tests.hub_kit import TOKEN, HubKit, hub_kit, section

pytestmark = pytest.mark.slow

# The container shares this machine's network for the test: the Hub listens on loopback.
ON_LOOPBACK = "services:\n  download:\n    network_mode: host\n"


@pytest.fixture(autouse=True, scope="module")
def engine():
    with tidy_engine():
        yield


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return serve_folder(tiny_model(tmp_path_factory.mktemp("tiny")), "meta/gated")


@pytest.fixture
def kit(tmp_path, served):
    with MisbehavingHub([served], gated={served.repo_id}, accounts={TOKEN: Account("ada")}) as hub:
        kit = hub_kit(tmp_path, hub, section("gated", served, gated=True) + starter())
        (kit.folder / "on-loopback.yml").write_text(ON_LOOPBACK)
        yield kit


def starter() -> str:
    from kit.paths import MODELS_TOML

    text = MODELS_TOML.read_text()
    return text[text.index("[starter]") : text.index('\n["llama')]


def download(kit: HubKit, **env: str):
    settings = {"MODEL": "gated", "HF_TOKEN": TOKEN, "COMPOSE_FILE": "docker-compose.yml:on-loopback.yml", **env}
    return verb("download", cwd=kit.folder, **kit.environment(**settings))


def test_a_gated_model_arrives_whole_and_runs_without_network_or_token(kit, served):
    done = download(kit)
    assert done.status == 0, done.err
    assert "gated is here" in done.err
    assert "next: make docker-run MODEL=gated" in done.err
    for file in served.files:
        assert (kit.model("gated") / file.path).read_bytes() == (served.folder / file.path).read_bytes()
    ran = verb("run", cwd=kit.folder, **kit.environment(MODEL="gated", JSON="1", MAX_NEW_TOKENS="3"))
    assert ran.status == 0, ran.err
    assert json.loads(ran.out)["new_tokens"] == 3


def test_the_token_stays_in_no_container_no_image_and_no_argument(kit):
    before = containers()
    done = download(kit)
    assert done.status == 0, done.err
    assert TOKEN not in done.out + done.err
    assert containers() <= before
    assert TOKEN not in docker("image", "inspect", "base-model-kit:latest")
    assert TOKEN not in docker("history", "--no-trunc", "base-model-kit:latest")
    assert any(record.authorization == f"Bearer {TOKEN}" for record in kit.hub.requests)


def test_the_token_comes_from_dotenv_and_from_the_clients_own_file(kit):
    (kit.folder / ".env").write_text(f"HF_TOKEN={TOKEN}\nMODEL=gated\n")
    (kit.folder / ".env").chmod(0o600)
    done = download(kit, HF_TOKEN="", MODEL="")
    assert done.status == 0, done.err
    (kit.folder / ".env").unlink()
    for path in kit.model("gated").iterdir():
        path.unlink()
    (kit.folder.parent / "home" / "hf").mkdir()
    (kit.folder.parent / "home" / "hf" / "token").write_text(TOKEN)
    assert download(kit, HF_TOKEN="").status == 0
    for path in kit.model("gated").iterdir():
        path.unlink()
    cache = kit.folder.parent / "home" / "cache"
    cache.mkdir()
    (kit.folder.parent / "home" / "hf").rename(cache / "huggingface")
    assert download(kit, HF_TOKEN="", HF_HOME="", XDG_CACHE_HOME=str(cache)).status == 0


def test_no_token_says_so_with_the_status_of_the_native_verb(kit):
    done = download(kit, HF_TOKEN="")
    assert done.status == 1
    assert "meta/gated is gated, and no token was sent" in done.err


@pytest.mark.skipif(os.getuid() != 0, reason="to be another account takes root")
def test_files_belong_to_the_calling_user(kit):
    """Here under sudo: the caller is whom sudo was typed by."""
    assert not (kit.folder / "models").exists()
    done = download(kit, SUDO_UID="4321", SUDO_GID="4321")
    assert done.status == 0, done.err
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in [kit.model("gated"), *kit.model("gated").iterdir()]}
    assert owners == {(4321, 4321)}


def test_a_download_that_is_killed_goes_on_in_the_next_container(kit, served):
    from tests.hub import Stall

    # It stalls again and again: a kill that takes its time, as a busy engine's does, still finds it at work.
    order = kit.hub.misbehave("model.safetensors", Stall(after=1000))
    environment = clean_environment() | kit.environment(
        MODEL="gated", HF_TOKEN=TOKEN, COMPOSE_FILE="docker-compose.yml:on-loopback.yml"
    )
    first = subprocess.Popen(["sh", "env/docker.sh", "download"], cwd=kit.folder, env=environment)
    partials: list = []
    while not (partials and partials[0].stat().st_size >= 1000):
        assert first.poll() is None
        time.sleep(0.05)
        partials = list(kit.model("gated").glob(".model.safetensors*.partial"))
    docker("kill", f"base-model-kit-download-{first.pid}")
    assert first.wait(60) == 1
    order.stop()
    assert not (kit.model("gated") / "model.safetensors").exists()
    there = partials[0].stat().st_size
    assert download(kit).status == 0
    assert kit.hub.asked("model.safetensors", "GET")[-1].range == f"bytes={there}-"


def test_the_starter_is_made_in_the_container_on_a_machine_with_docker_alone(kit):
    """As the first `make docker-run` of a clone does it."""
    done = verb("run", cwd=kit.folder, **kit.environment(MAX_NEW_TOKENS="12"))
    assert done.status == 0, done.err
    assert "starter model: converting" in done.err
    assert done.out.removesuffix("\n") == answers.here()
    assert {path.stat().st_uid for path in kit.model("starter").iterdir()} == {os.getuid()}
    again = verb("run", cwd=kit.folder, **kit.environment(MAX_NEW_TOKENS="1"))
    assert "converting" not in again.err
