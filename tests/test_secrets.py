"""The token stands in .env and in the login's own file, and nowhere else: whatever the verb, in success and failure."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kit.paths import ROOT
from tests.conftest import clean_environment, copy_kit, run_command
from tests.hub import Account, MisbehavingHub, Status, serve_folder, tiny_model
from tests.hub_kit import TOKEN, HubKit, hub_kit, section


@pytest.fixture
def kit(tmp_path):
    served = serve_folder(tiny_model(tmp_path / "tiny"), "meta/gated")
    with MisbehavingHub([served], gated={served.repo_id}, accounts={TOKEN: Account("ada")}) as hub:
        kit = hub_kit(tmp_path, hub, section("gated", served, gated=True))
        (kit.folder / ".env").write_text(f"HF_TOKEN={TOKEN}\nMODEL=gated\n")
        (kit.folder / ".env").chmod(0o600)
        yield kit


def holders(kit: HubKit) -> set[str]:
    """The files of the test that hold the token."""
    root = kit.folder.parent
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and TOKEN.encode() in path.read_bytes()
    }


# Every verb, in an order in which the first ones succeed. Those that take minutes follow below.
AT_THE_HUB = ("login", "download", "run", "doctor", "add_model", "logout")
VERBS = [
    ["login"],
    ["download"],
    ["run", "--max-new-tokens", "1"],
    ["verify", "--method", "llamacpp"],
    ["doctor"],
    ["add_model", "--repo", "meta/gated", "--name", "again"],
    ["gguf"],
    ["tune"],
    ["notebook", "--prepare"],
    ["export"],
    ["models"],
    ["remove", "--name", "none"],
    ["bundle"],
    ["mirror"],
    ["serve", "--context", "9000"],
    ["chat", "--context", "9000"],
    ["batch"],
    ["node", "--head", "10.0.0.1"],
    ["sbom"],
    ["compare"],
    ["readiness"],
    ["unbundle"],
    ["setup"],
    ["lock"],
    ["variables", "--check"],
    ["environment", "prove"],
    ["logout"],
]
SLOW_VERBS = [
    ["doctor", "--second-stage"],
    ["run", "--max-new-tokens", "2", "--record"],
    ["verify", "--record"],
    ["verify"],
    ["bench", "--methods", "manual", "--runs", "1", "--tokens", "2"],
]
# `lock` and `bundle` fail at once, instead of copying the wheels of this machine's find-links.
NO_INDEX = {"UV_OFFLINE": "1", "UV_FIND_LINKS": "", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}


def test_every_verb_is_among_them():
    verbs = {path.stem for path in ROOT.glob("scripts/*.py") if '__name__ == "__main__"' in path.read_text()}
    assert verbs == {verb for verb, *_ in VERBS + SLOW_VERBS}


@contextmanager
def watched_processes(kit: HubKit) -> Iterator[list[bytes]]:
    """The arguments of every process of this kit that had the token among them; none where there is no Linux's /proc.

    Of this kit: with its home in the environment. Another test may run beside this one.
    """
    home = f"HOME={kit.folder.parent / 'home'}".encode()
    seen: list[bytes] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            # Not `[0-9]*/cmdline`: glob itself would look there, and end this thread where a process has just ended.
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    line = (process / "cmdline").read_bytes()
                    if TOKEN.encode() in line and home in (process / "environ").read_bytes().split(b"\0"):
                        seen.append(line)
                except OSError:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        stop.set()
        watcher.join()


def run_and_search(kit: HubKit, verbs: list[list[str]], debug: str) -> None:
    for verb, *arguments in verbs:
        with watched_processes(kit) as seen:
            done = kit.run(verb, *arguments, KIT_DEBUG=debug, timeout=600, **NO_INDEX)
        assert TOKEN not in done.out + done.err, verb
        assert "Traceback" not in done.err or debug
        assert seen == [], verb
        assert holders(kit) <= {"kit/.env", "home/hf/token", "home/hf/stored_tokens"}, verb
        for name in holders(kit):
            assert (kit.folder.parent / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("state", "debug"),
    [
        ("success", ""),
        *(pytest.param(state, "1", marks=pytest.mark.slow) for state in ("success", "rejected", "broken")),
        *(pytest.param(state, "", marks=pytest.mark.slow) for state in ("rejected", "broken")),
    ],
)
@pytest.mark.container
def test_no_output_no_file_and_no_process_holds_it(kit, state, debug):
    if state == "rejected":
        kit.hub.accounts = {}
    if state == "broken":
        kit.hub.misbehave("*", Status(500, retry_after=0))
    # The others ask nobody: once in success, and once in failure, where it is all written out.
    of_all = (state, debug) in [("success", ""), ("broken", "1")]
    run_and_search(kit, [verb for verb in VERBS if of_all or verb[0] in AT_THE_HUB], debug)
    assert holders(kit) == {"kit/.env"}


@pytest.mark.slow
def test_no_report_holds_it(kit):
    run_and_search(kit, [["login"], ["download"], *SLOW_VERBS], debug="")
    reports = {path.suffix for path in (kit.folder / "reports").iterdir()}
    assert reports == {".json", ".md", ".png"}


def test_the_search_finds_a_process_that_has_it(kit):
    with watched_processes(kit) as seen:
        command = [sys.executable, "-c", "import time; time.sleep(0.5)", TOKEN]
        subprocess.run(command, env=os.environ | kit.environment(), check=True)
    assert seen or not Path("/proc").exists()


ACCOUNT = "hf_" + "a1B2" * 8 + "xy"
BROWSER = "hf_oauth_" + "eyJhbGciOi" * 4 + ".a1B2-c_d"


@pytest.fixture
def clone(tmp_path) -> Path:
    folder = copy_kit(tmp_path / "kit")
    subprocess.run(["git", "init", "-q", folder], check=True, env=clean_environment())
    return folder


@pytest.mark.parametrize("token", [ACCOUNT, BROWSER], ids=["account", "browser"])
@pytest.mark.parametrize("name", ["notes of mine.md", "-v", "ä.txt"])
def test_lint_refuses_a_file_with_a_token_and_does_not_show_it(clone, name, token):
    assert run_command(["sh", "env/no-token.sh"], cwd=clone).status == 0
    (clone / name).write_text(f"HF_TOKEN={token}")
    done = run_command(["sh", "env/no-token.sh"], cwd=clone)
    assert done.status == 1
    assert name in done.err
    assert "a1B2" not in done.err + done.out
    assert "env/no-token.sh" in (ROOT / "Makefile").read_text()


def test_lint_refuses_a_token_that_is_staged_and_no_longer_in_the_file(clone):
    (clone / "notes.md").write_text(f"HF_TOKEN={ACCOUNT}")
    subprocess.run(["git", "-C", clone, "add", "notes.md"], check=True, env=clean_environment())
    (clone / "notes.md").write_text("nothing")
    done = run_command(["sh", "env/no-token.sh"], cwd=clone)
    assert done.status == 1
    assert "notes.md" in done.err


def test_lint_does_not_pass_what_it_could_not_search(clone):
    (clone / ".git" / "HEAD").write_text("nonsense")
    done = run_command(["sh", "env/no-token.sh"], cwd=clone)
    assert done.status == 1
    assert "none was searched for tokens" in done.err


def test_a_token_has_no_readable_repr():
    from kit.hub.client import Token
    from kit.net.get import Remote

    assert TOKEN not in repr(Token(TOKEN, "HF_TOKEN"))
    assert TOKEN not in repr(Remote("http://127.0.0.1", "x", 1, "00", TOKEN))


@pytest.mark.parametrize("between", ["\n", "\t", "ä", "\\n"], ids=["line end", "tab", "umlaut", "escaped"])
@pytest.mark.parametrize("verb", [["login"], ["add_model", "--repo", "meta/gated", "--name", "again"], ["download"]])
def test_a_malformed_token_is_refused_before_it_is_sent_and_not_shown(kit, verb, between):
    done = kit.run(*verb, HF_TOKEN=f"hf_MARKEDQZMARKEDQZ{between}MARKEDQZMARKEDQZZz")
    assert done.status == 1
    assert "the token in HF_TOKEN" in done.err
    assert "next: " in done.err
    assert "MARKEDQZ" not in done.out + done.err
    assert kit.hub.requests == []


def test_a_malformed_token_that_was_typed_is_refused_before_it_is_sent(monkeypatch):
    from kit.errors import KitError
    from kit.hub import client

    monkeypatch.setattr(client, "session", lambda: pytest.fail("it was sent"))
    with pytest.raises(KitError, match="the token in what you typed does not begin with hf_"):
        client.account(client.Token("password", "what you typed"))
