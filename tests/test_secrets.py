"""The token stands in .env and in the login's own file, and nowhere else: whatever the verb, in success and failure."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

import pytest

from kit.registry import ROOT
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


VERBS = [
    ["login"],
    ["download"],
    ["run", "--max-new-tokens", "1"],
    ["doctor"],
    ["add_model", "--repo", "meta/gated", "--name", "again"],
    ["setup"],
    ["lock"],
    ["logout"],
]


@pytest.mark.parametrize("debug", ["", "1"])
@pytest.mark.parametrize("state", ["success", "rejected", "broken"])
def test_no_output_and_no_file_holds_it(kit, state, debug):
    if state == "rejected":
        kit.hub.accounts = {}
    if state == "broken":
        kit.hub.misbehave("*", Status(500))
    for verb, *arguments in VERBS:
        done = kit.run(verb, *arguments, KIT_DEBUG=debug, UV_OFFLINE="1")
        assert TOKEN not in done.out + done.err, verb
        assert "Traceback" not in done.err or debug
        allowed = {"kit/.env", "home/hf/token", "home/hf/stored_tokens"}
        assert holders(kit) <= allowed, verb
        for name in holders(kit):
            assert (kit.folder.parent / name).stat().st_mode & 0o777 == 0o600
    assert holders(kit) == {"kit/.env"}


@pytest.mark.skipif(not Path("/proc").exists(), reason="process arguments are read from Linux's /proc")
def test_no_process_has_it_among_its_arguments(kit):
    seen: list[bytes] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_bytes()
                except OSError:
                    continue
                if TOKEN.encode() in line:
                    seen.append(line)
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for verb in ("login", "download"):
        assert kit.run(verb).status == 0
    stop.set()
    watcher.join()
    assert seen == []


def test_lint_refuses_a_file_with_a_token_and_does_not_show_it(tmp_path):
    folder = copy_kit(tmp_path / "kit")
    subprocess.run(["git", "init", "-q", folder], check=True, env=clean_environment())
    assert run_command(["sh", "env/no-token.sh"], cwd=folder).status == 0
    (folder / "notes of mine.md").write_text("HF_TOKEN=" + "hf_" + "a1B2" * 8 + "xy")
    done = run_command(["sh", "env/no-token.sh"], cwd=folder)
    assert done.status == 1
    assert "notes of mine.md" in done.err
    assert "a1B2" not in done.err + done.out
    assert "env/no-token.sh" in (ROOT / "Makefile").read_text()


def test_a_token_has_no_readable_repr():
    from kit.hub import Token
    from kit.transfer import Remote

    assert TOKEN not in repr(Token(TOKEN, "HF_TOKEN"))
    assert TOKEN not in repr(Remote("http://127.0.0.1", "x", 1, "00", TOKEN))
