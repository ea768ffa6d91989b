"""The doctor's half that asks the Hub: what each check says, and quickly so without a network."""

from __future__ import annotations

import json
import socket
import sys

import pytest

from kit.doctor import hub as hub_checks
from tests.hub import Account, Delay, MisbehavingHub, OtherDate, serve_folder, tiny_model
from tests.hub_kit import TOKEN, HubKit, hub_kit, section


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return serve_folder(tiny_model(tmp_path_factory.mktemp("tiny")), "meta/gated-1b")


@pytest.fixture
def kit(tmp_path, served):
    from dataclasses import replace

    free = replace(served, repo_id="free/open-1b")
    with MisbehavingHub([served, free], gated={served.repo_id}, accounts={TOKEN: Account("ada")}) as hub:
        yield hub_kit(tmp_path, hub, section("gated", served, gated=True) + section("open", free))


PROGRAM = """
import json, sys, time
from kit import settings
from kit.doctor import check as checks
from kit.doctor import hub as hub_checks
from scripts.doctor import as_dict
settings.apply(settings.read())
hub_checks.DEADLINE = float(sys.argv[2])
import huggingface_hub
started = time.monotonic()
found = [as_dict(check) for check in checks.run(hub_checks.listed(sys.argv[1]))]
print(json.dumps([found, time.monotonic() - started]))
"""


QUICK = 1.0  # seconds in place of the deadline, where a test waits it out


def look(kit: HubKit, model: str = "gated", **env: str) -> dict[str, dict[str, str]]:
    """The checks by id, in a process of their own as the doctor runs them."""
    return ask(kit, model, **env)[0]


def ask(
    kit: HubKit, model: str = "gated", deadline: float = hub_checks.DEADLINE, **env: str
) -> tuple[dict[str, dict[str, str]], float]:
    from tests.conftest import run_command

    environment = kit.environment(**{"SSL_CERT_FILE": "", "SSL_CERT_DIR": "", "REQUESTS_CA_BUNDLE": "", **env})
    done = run_command(
        [sys.executable, "-c", PROGRAM, model, str(deadline)], cwd=kit.folder, env=environment, kind="hub"
    )
    assert done.status == 0, done.err
    assert TOKEN not in done.out + done.err
    found, seconds = json.loads(done.out)
    return {check["id"]: check for check in found}, seconds


def test_all_is_well(kit):
    found = look(kit, HF_TOKEN=TOKEN)
    assert {check["state"] for check in found.values()} == {"ok"}, found
    assert "well-formed, from HF_TOKEN" in found["D30"]["text"]
    assert found["D31"]["text"] == "ada, scope read"
    assert "meta/gated-1b at 0123456789ab can be read" in found["D32"]["text"]
    assert "127.0.0.1" in found["D33"]["text"]
    assert found["D35"]["text"].startswith("within ")


def test_no_token_for_a_gated_model(kit):
    found = look(kit)
    assert found["D30"]["state"] == "FAIL"
    assert "make login" in found["D30"]["next"]
    assert found["D31"]["text"].startswith("skipped")


def test_a_malformed_token(kit):
    found = look(kit, HF_TOKEN="hf_x")
    assert found["D30"]["state"] == "FAIL"
    assert "cut short" in found["D30"]["text"]


def test_a_rejected_token(kit):
    kit.hub.accounts = {}
    assert "rejects the token" in look(kit, HF_TOKEN=TOKEN)["D31"]["text"]


def test_a_write_token_is_a_warning(kit):
    kit.hub.accounts = {TOKEN: Account("ada", role="write")}
    assert look(kit, HF_TOKEN=TOKEN)["D31"]["state"] == "WARN"


def test_access_not_granted(kit):
    kit.hub.accounts = {TOKEN: Account("ada", access="none")}
    found = look(kit, HF_TOKEN=TOKEN)
    assert (found["D31"]["state"], found["D32"]["state"]) == ("ok", "FAIL")
    assert "accept the licence" in found["D32"]["next"]


def test_an_open_model_needs_no_token(kit):
    found = look(kit, "open")
    assert {check["state"] for check in found.values()} == {"ok"}


@pytest.mark.parametrize(("skew", "says"), [(7200, "120 minutes behind"), (-7200, "120 minutes ahead")])
def test_a_clock_that_is_wrong(kit, skew, says):
    kit.hub.misbehave("*", OtherDate(skew))
    found = look(kit, "open")
    assert found["D35"]["state"] == "FAIL"
    assert says in found["D35"]["text"]


def test_proxies_are_shown_without_their_password_and_a_missing_ca_file_fails(kit):
    found = look(kit, "open", NO_PROXY="127.0.0.1", HTTPS_PROXY="http://me:secret@proxy.invalid:3128")
    assert "HTTPS_PROXY=http://…@proxy.invalid:3128" in found["D36"]["text"]
    assert "secret" not in str(found)
    assert look(kit, "open", SSL_CERT_FILE="/nowhere.pem")["D36"]["state"] == "FAIL"
    assert "has no effect" in look(kit, "open", REQUESTS_CA_BUNDLE="/x")["D36"]["text"]


def test_a_proxy_that_is_none_fails_alone_and_the_others_say_why_they_do_not_look(kit):
    found = look(kit, "open", ALL_PROXY="socks5://me:secret@proxy.invalid:1080")
    assert found["D36"]["state"] == "FAIL"
    assert "socks5://…@proxy.invalid:1080 is not an HTTP proxy" in found["D36"]["text"]
    assert found["D33"]["text"] == "skipped: the way to the Hub is not known (D36)"
    assert kit.hub.requests == []


@pytest.mark.parametrize("case", ["refused", "DNS", "silent"])
def test_without_a_network_each_check_says_so_in_5_seconds_in_all(kit, case):
    endpoints = {"refused": "http://127.0.0.1:9", "DNS": "https://hub.invalid", "silent": kit.hub.url}
    if case == "silent":
        kit.hub.misbehave("*", Delay(30))
    found, seconds = ask(kit, deadline=QUICK, HF_TOKEN=TOKEN, HF_ENDPOINT=endpoints[case])
    assert found["D33"]["state"] == "FAIL"
    assert found["D31"]["state"] == "FAIL"
    # All together and not one after the other, with room for a busy machine.
    assert seconds < QUICK + 4
    assert hub_checks.DEADLINE < 5


def sign_in_by_browser(kit: HubKit) -> None:
    """What `hf auth login` leaves, its time nearly up: the client renews it when it is asked for the token."""
    folder = kit.folder.parent / "home" / "hf"
    folder.mkdir(parents=True)
    (folder / "token").write_text(TOKEN)
    (folder / "stored_tokens").write_text(f"[ada]\nhf_token = {TOKEN}\nrefresh_token = hf_renew\nexpires_at = 1\n")


def test_a_token_that_is_renewed_keeps_to_the_5_seconds(kit):
    sign_in_by_browser(kit)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found, seconds = ask(kit, deadline=QUICK, HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert found["D30"]["text"] == "no answer in time"
    assert seconds < QUICK + 4


@pytest.mark.skipif(sys.platform != "linux", reason="a second loopback address, which is not trusted, is Linux's")
def test_no_secret_goes_to_a_mirror_without_https_to_renew_a_token(kit, served):
    sign_in_by_browser(kit)
    with MisbehavingHub([served], host="127.0.0.2") as mirror:
        found = look(kit, HF_ENDPOINT=mirror.url)
        assert "well-formed, from the Hub client's token file" in found["D30"]["text"]
        assert found["D31"]["text"].startswith("skipped: no token is sent")
        assert {record.method for record in mirror.requests} == {"HEAD"}


def test_no_token_goes_to_an_open_model(kit):
    look(kit, "open", HF_TOKEN=TOKEN)
    assert {record.path for record in kit.hub.requests if record.authorization} == {"/api/whoami-v2"}


def test_a_model_that_is_whole_needs_no_hub(kit):
    assert kit.run("download", "--model", "open").status == 0
    found = look(kit, "open", HF_ENDPOINT="http://127.0.0.1:9")
    assert found["D33"]["state"] == "WARN"


def test_file_hosts_are_named_one_by_one(kit):
    found = look(kit, "open", HF_ENDPOINT="", https_proxy="http://127.0.0.1:9")
    assert all(name in found["D34"]["text"] for name in hub_checks.FILE_HOSTS)
    assert "proxy 127.0.0.1:9" in found["D34"]["text"]


def test_dotenv_reaches_the_second_stage(kit):
    from tests.conftest import run_command

    (kit.folder / ".env").write_text(f"HF_TOKEN={TOKEN}\n")
    (kit.folder / ".env").chmod(0o600)
    command = [sys.executable, "-m", "scripts.doctor", "--second-stage"]
    done = run_command(command, cwd=kit.folder, env=kit.environment(MODEL="gated"))
    assert done.status == 0, done.err
    assert any(check["text"] == "ada, scope read" for check in json.loads(done.out))
    assert TOKEN not in done.out


def test_an_endpoint_that_is_no_address(kit):
    found = look(kit, HF_TOKEN=TOKEN, HF_ENDPOINT="huggingface.co")
    assert found["D33"]["state"] == "FAIL"
    assert "HF_ENDPOINT=huggingface.co is not the address" in found["D33"]["text"]
    assert found["D31"]["text"].startswith("skipped")
