"""`make login`: each case has its own words and its next command. The real client, against the local Hub."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import clean_environment
from tests.hub import Account, Delay, MisbehavingHub, Portal, Status, serve_folder, tiny_model
from tests.hub_kit import TOKEN, HubKit, hub_kit, section


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return serve_folder(tiny_model(tmp_path_factory.mktemp("tiny")), "meta/gated-1b")


@pytest.fixture
def kit(tmp_path, served):
    """A kit with a gated model and one open one of the same files."""
    from dataclasses import replace

    free = replace(served, repo_id="free/open-1b")
    with MisbehavingHub([served, free], gated={served.repo_id}, accounts={TOKEN: Account("ada")}) as hub:
        yield hub_kit(tmp_path, hub, section("gated", served, gated=True) + section("open", free))


def log_in(kit: HubKit, token: str = TOKEN, model: str = "gated", **env: str):
    return kit.run("login", "--model", model, HF_TOKEN=token, **env)


def token_files(kit: HubKit) -> list[Path]:
    return [path for path in (kit.folder.parent / "home").rglob("*") if path.is_file() and TOKEN in path.read_text()]


@pytest.mark.container
def test_a_good_token_is_signed_in_as_hf_auth_login_does(kit):
    done = log_in(kit)
    assert done.status == 0, done.err
    assert "signed in as ada, with a token of the scope read (HF_TOKEN)" in done.err
    assert "it can read meta/gated-1b at" in done.err
    assert "next: make download MODEL=gated" in done.err
    assert {path.name for path in token_files(kit)} == {"token", "stored_tokens"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in token_files(kit))
    # The hf command and other libraries are signed in too.
    hf = Path(sys.executable).with_name("hf")
    environment = clean_environment() | kit.environment()
    who = subprocess.run([hf, "auth", "whoami"], env=environment, capture_output=True, text=True, check=True)
    assert "ada" in who.stdout


def test_the_token_is_read_from_dotenv(kit):
    (kit.folder / ".env").write_text(f"HF_TOKEN={TOKEN}\n")
    (kit.folder / ".env").chmod(0o600)
    done = kit.run("login", "--model", "gated")
    assert done.status == 0, done.err
    assert "signed in as ada" in done.err


@pytest.mark.container
def test_logout_forgets_it_and_names_what_dotenv_still_holds(kit):
    assert log_in(kit).status == 0
    done = kit.run("logout")
    assert (done.status, token_files(kit)) == (0, [])
    assert "signed out" in done.err
    (kit.folder / ".env").write_text(f"HF_TOKEN={TOKEN}\n")
    (kit.folder / ".env").chmod(0o600)
    again = kit.run("logout")
    assert again.status == 0
    assert "nobody was signed in" in again.err
    assert ".env still holds HF_TOKEN" in again.err


def test_after_login_no_variable_is_needed(kit):
    assert log_in(kit).status == 0
    done = kit.run("download", "--model", "gated")
    assert done.status == 0, done.err


def test_a_write_token_is_warned_about(kit):
    kit.hub.accounts[TOKEN] = Account("ada", role="write")
    done = log_in(kit)
    assert done.status == 0
    assert "warning: this token may also write; one that only reads is enough" in done.err


def test_no_token_and_no_terminal_never_prompts(kit):
    done = log_in(kit, token="")
    assert done.status == 1
    assert "error: there is no token: HF_TOKEN is empty" in done.err
    assert "https://huggingface.co/settings/tokens/new?canReadGatedRepos=true&tokenType=fineGrained" in done.err
    assert kit.hub.requests == []


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("sk-" + "a" * 40, "does not begin with hf_"),
        ("hf_short", "is cut short"),
        (TOKEN[:12] + " " + TOKEN[12:], "has a blank or a line end in it"),
        (TOKEN + "é", "has a character in it that no token has"),
        (TOKEN + '"', "is cut short, or has a character too many"),
    ],
)
def test_a_malformed_token_is_named_before_any_network(kit, token, says):
    done = log_in(kit, token=token, HF_ENDPOINT="")
    assert done.status == 1
    assert f"error: the token in HF_TOKEN {says}" in done.err
    assert "next: copy it whole from https://huggingface.co/settings/tokens" in done.err
    assert token not in done.err
    assert kit.hub.requests == []


REFUSALS = {
    "rejected": (None, "the Hub rejects the token (401)", "make another at https://huggingface.co/settings/tokens"),
    "not accepted": (
        Account("ada", access="none"),
        "its account has no access to meta/gated-1b yet (403, gated)",
        "accept the licence at https://huggingface.co/meta/gated-1b",
    ),
    "pending": (
        Account("ada", access="pending"),
        "the request for meta/gated-1b is waiting for its owners' approval",
        "wait (minutes to a day",
    ),
    "fine-grained": (
        Account("ada", role="fineGrained", can_read_gated_repos=False),
        "it is fine-grained, without the permission for gated repositories",
        "tick «Read access to contents of all public gated repos you can access»",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_says_which_it_is_and_what_to_do(kit, case):
    account, says, following = REFUSALS[case]
    kit.hub.accounts = {TOKEN: account} if account else {}
    done = log_in(kit)
    assert done.status == 1
    assert f"error: {says}" in done.err or says in done.err
    assert f"next: {following}" in done.err
    assert "Traceback" not in done.err
    # Signed in or not: a token that the Hub knows is stored, another is not.
    assert bool(token_files(kit)) == (account is not None)
    assert ("make run MODEL=starter" in done.err) == (account is not None)


def test_an_open_model_needs_no_access_check_with_the_token(kit):
    done = log_in(kit, model="open")
    assert done.status == 0, done.err
    assert "it can read free/open-1b" in done.err
    assert [r.authorization for r in kit.hub.requests if "open-1b" in r.path] == [None, None]


def test_rate_limited_says_how_long_to_wait(kit):
    kit.hub.misbehave("/api/whoami-v2", Status(429, retry_after=77))
    done = log_in(kit)
    assert done.status == 1
    assert "answers too many requests from here (429)" in done.err
    assert "next: wait 77 seconds" in done.err


def test_a_page_of_the_network_in_place_of_the_hub(kit):
    kit.hub.misbehave("*", Portal())
    done = log_in(kit)
    assert done.status == 1
    assert "is not the Hub: a page of the network you are in" in done.err


def test_trouble_of_the_hubs_own(kit):
    kit.hub.misbehave("*", Status(503, message="maintenance"))
    assert "has trouble of its own (503, maintenance)" in log_in(kit).err


UNREACHABLE = {
    "refused": ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "127.0.0.1:9 refused the connection"),
    "DNS": ({"HF_ENDPOINT": "https://hub.invalid"}, "the name hub.invalid was not found (DNS)"),
    "proxy": (
        {"HF_ENDPOINT": "https://hub.invalid", "https_proxy": "http://me:secret@127.0.0.1:9", "no_proxy": ""},
        "the proxy 127.0.0.1:9 did not let hub.invalid through",
    ),
}


@pytest.mark.parametrize("case", UNREACHABLE)
def test_an_unreachable_hub_says_which_way_is_blocked(kit, case):
    env, says = UNREACHABLE[case]
    done = log_in(kit, **env)
    assert done.status == 1
    assert says in done.err
    assert "next: check" in done.err
    assert "secret" not in done.err


# What stands in .env or a shell and can never work: (variable, its value), and what is said of it.
MISTAKES = [
    ("SSL_CERT_FILE", "/path/to/ca.pem", "SSL_CERT_FILE names /path/to/ca.pem, which is not there"),
    ("SSL_CERT_FILE", __file__, f"SSL_CERT_FILE names {__file__}: put the CA"),
    ("https_proxy", "proxy.invalid:none", "proxy.invalid:none is not an HTTP proxy"),
    ("https_proxy", "http://ada:secret@", "…@ is not an HTTP proxy"),
    ("ALL_PROXY", "socks5://ada:secret@proxy.invalid:1080", "socks5://…@proxy.invalid:1080 is not an HTTP proxy"),
]


@pytest.mark.parametrize("verb", ["login", "download"])
@pytest.mark.parametrize(("name", "value", "says"), MISTAKES)
def test_a_proxy_or_certificate_that_cannot_be_is_named(kit, verb, name, value, says):
    https = kit.hub.url.replace("http://", "https://")
    done = (
        log_in(kit, HF_ENDPOINT=https, **{name: value})
        if verb == "login"
        else kit.run(verb, "--model", "open", HF_ENDPOINT=https, **{name: value})
    )
    assert done.status == 1
    assert says in done.err
    assert "next: " in done.err
    assert "secret" not in done.err
    assert "Going on in" not in done.err  # trying again would not help


def test_a_hub_that_is_forbidden_by_a_variable(kit):
    done = log_in(kit, HF_HUB_OFFLINE="1")
    assert done.status == 1
    assert "HF_HUB_OFFLINE is set" in done.err


def test_tls_that_is_not_tls(kit):
    done = log_in(kit, HF_ENDPOINT=kit.hub.url.replace("http://", "https://"))
    assert done.status == 1
    assert "was refused (TLS)" in done.err
    assert "SSL_CERT_FILE" in done.err


def test_a_hub_that_does_not_answer_in_time(kit):
    (kit.folder / "kit" / "hub" / "client.py").write_text(
        (kit.folder / "kit" / "hub" / "client.py").read_text().replace("READ_TIMEOUT = 20.0", "READ_TIMEOUT = 0.5")
    )
    kit.hub.misbehave("/api/whoami-v2", Delay(5))
    done = log_in(kit)
    assert done.status == 1
    assert "did not answer in time" in done.err


def test_no_token_is_sent_to_a_mirror_without_https(kit):
    done = log_in(kit, HF_ENDPOINT="http://192.0.2.1:8080")
    assert done.status == 1
    assert "a token is never sent there" in done.err
    assert "a mirror needs none: make download" in done.err


def test_the_commit_is_checked_and_not_only_the_repository(kit):
    toml = kit.folder / "env" / "models.toml"
    toml.write_text(toml.read_text().replace('revision = "', 'revision = "ffff'))
    done = log_in(kit)
    assert done.status == 1
    assert "meta/gated-1b has no commit ffff" in done.err


def test_scope_of_a_fine_grained_token(kit):
    kit.hub.accounts[TOKEN] = Account("ada", role="fineGrained")
    assert "scope fineGrained" in log_in(kit).err


def test_on_a_terminal_it_asks_for_the_token_and_does_not_show_it(kit):
    import os
    import pty

    leader, follower = pty.openpty()
    login = subprocess.Popen(
        [sys.executable, "-m", "scripts.login", "--model", "gated"],
        cwd=kit.folder,
        env=clean_environment() | kit.environment(HF_TOKEN=""),
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    said = b""
    while b"Paste it (hidden)" not in said:
        said += os.read(leader, 1024)
    os.write(leader, f"{TOKEN}\n".encode())
    assert login.wait(60) == 0
    while True:
        try:
            said += os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
        if b"next: make download" in said:
            break
    os.close(leader)
    assert b"signed in as ada" in said
    assert TOKEN.encode() not in said


def test_a_token_of_the_browsers_log_in_is_taken(kit):
    token = "hf_oauth_" + "eyJhbGciOi" * 4 + ".a-b_c"
    kit.hub.accounts = {token: Account("ada")}
    assert log_in(kit, token=token).status == 0


def test_logout_leaves_the_clients_other_tokens(kit):
    assert log_in(kit).status == 0
    stored = kit.folder.parent / "home" / "hf" / "stored_tokens"
    stored.write_text(stored.read_text() + "[work]\nhf_token = hf_of_another_account\n")
    done = kit.run("logout")
    assert done.status == 0
    assert token_files(kit) == []
    assert "hf_of_another_account" in stored.read_text()
    assert "keeps other tokens, untouched: work" in done.err


def test_logout_names_a_token_in_the_environment(kit):
    assert "the environment still holds HF_TOKEN" in kit.run("logout", HF_TOKEN=TOKEN).err


def test_a_token_that_cannot_be_stored_says_where(kit, tmp_path):
    (tmp_path / "file").write_text("")
    done = log_in(kit, HF_HOME=str(tmp_path / "file" / "hf"))
    assert done.status == 1
    assert "the Hub client's token file cannot be changed: Not a directory" in done.err
    assert "HF_HOME=/path/to/folder" in done.err


@pytest.mark.parametrize(
    "address", ["huggingface.co", "https://", "ftp://hub.invalid", "https://ada:secret@hub.invalid"]
)
def test_an_endpoint_that_is_no_address_is_named(kit, address):
    for verb in ("login", "download"):
        done = kit.run(verb, "--model", "gated", HF_TOKEN=TOKEN, HF_ENDPOINT=address)
        assert done.status == 1
        assert "is not the address of a Hub or mirror" in done.err
        assert "secret" not in done.err


def test_another_hubs_token_has_a_form_of_its_own(kit):
    other = "glpat-" + "x" * 30
    kit.hub.accounts[other] = Account("ada")
    done = log_in(kit, token=other)
    assert done.status == 0, done.err


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize("verb", ["login", "download"])
def test_offline_is_kept_to_and_the_variable_that_is_set_is_named(kit, name, verb):
    done = kit.run(verb, "--model", "gated", HF_TOKEN=TOKEN, **{name: "1"})
    assert done.status == 1
    assert f"error: {name} is set, and forbids asking the Hub." in done.err
    assert f"next: unset {name}" in done.err
    assert kit.hub.requests == []


def test_where_a_token_comes_from_is_said(kit):
    done = kit.run("login", "--model", "gated", HUGGING_FACE_HUB_TOKEN=TOKEN)
    assert done.status == 0, done.err
    assert "(HUGGING_FACE_HUB_TOKEN)" in done.err
    done = kit.run("logout", HUGGING_FACE_HUB_TOKEN=TOKEN)
    assert "the environment still holds HUGGING_FACE_HUB_TOKEN" in done.err


def test_what_is_in_dotenv_already_is_not_copied_over(tmp_path):
    from kit import settings

    assert settings.how_to_write("HF_TOKEN", tmp_path / ".env").startswith("cp .env.example .env")
    (tmp_path / ".env").write_text("MODEL=mine\n")
    assert settings.how_to_write("HF_TOKEN", tmp_path / ".env") == "write it behind HF_TOKEN= in .env"


def test_a_download_without_a_token_says_so_before_it_asks_the_network(kit):
    done = kit.run("download", "--model", "gated", HF_ENDPOINT="", HTTPS_PROXY="http://127.0.0.1:9")
    assert done.status == 1
    assert "meta/gated-1b is gated, and no token was sent" in done.err
