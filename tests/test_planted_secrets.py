"""A marked secret in every place that one can come from, well and badly formed, and a search through all that comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Done, run_command
from tests.hub import Account, MisbehavingHub, Redirect, serve_folder, tiny_model
from tests.hub_kit import TOKEN, HubKit, hub_kit, section

# In pieces, so that lint's search for tokens does not find it. Its parts are looked for, too: half a token is one.
MARK = "PLANTED" * 4 + "Secret"
A_TOKEN = "hf_" + MARK
NOWHERE = "127.0.0.1:9"  # the port of `discard`, where nothing listens

VERBS = [
    ["login"],
    ["download", "--model", "gated"],
    ["add_model", "--repo", "meta/gated", "--name", "again"],
    ["doctor", "--second-stage"],
    ["run", "--model", "nothing-here"],
    ["run"],
    ["verify"],
]
IN_THE_ENVIRONMENT = {
    "a token that the Hub does not know": {"HF_TOKEN": A_TOKEN},
    "two lines": {"HF_TOKEN": f"{A_TOKEN}\nmore"},
    "quoted": {"HF_TOKEN": f'"{A_TOKEN}"'},
    "with its scheme": {"HF_TOKEN": f"Bearer {A_TOKEN}"},
    "letters that no header takes": {"HF_TOKEN": f"{A_TOKEN}ä"},
    "no token's form": {"HF_TOKEN": MARK},
    "the older name": {"HUGGING_FACE_HUB_TOKEN": A_TOKEN, "HF_TOKEN": ""},
    "a proxy's password": {"HTTP_PROXY": f"http://ada:{MARK}@{NOWHERE}", "http_proxy": f"http://ada:{MARK}@{NOWHERE}"},
    "a proxy without a scheme": {"HTTP_PROXY": f"ada:{MARK}@{NOWHERE}", "http_proxy": f"ada:{MARK}@{NOWHERE}"},
    "a proxy of another kind": {"ALL_PROXY": f"socks5://ada:{MARK}@{NOWHERE}"},
    "a proxy's port that is none": {"HTTP_PROXY": f"http://ada:{MARK}@127.0.0.1:none"},
    "a password in the endpoint": {"HF_ENDPOINT": f"http://ada:{MARK}@{NOWHERE}"},
    "a signature in the endpoint": {"HF_ENDPOINT": f"http://{NOWHERE}/?X-Amz-Signature={MARK}&token={MARK}"},
    "a token for a name": {"MODEL": A_TOKEN, "DEVICE": A_TOKEN, "METHOD": A_TOKEN, "HF_TOKEN": ""},
    "a token in a path": {"HF_HOME": f"/proc/{A_TOKEN}", "PROMPT_FILE": f"/nowhere/{A_TOKEN}.txt"},
    "a blank in the password": {"HF_ENDPOINT": f"http://ada:{MARK} x@{NOWHERE}"},
}
IN_DOTENV = {
    "a blank behind it": f"HF_TOKEN={A_TOKEN} \n",
    "an open quote": f'HF_TOKEN="{A_TOKEN}\n',
    "a blank before it": f"HF_TOKEN = {A_TOKEN}\n",
    "exported": f"export HF_TOKEN={A_TOKEN}x y\n",
    "another variable": f"PROMPT={A_TOKEN}\nMODEL={A_TOKEN}\n",
}


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[HubKit]:
    served = serve_folder(tiny_model(tmp_path / "tiny"), "meta/gated")
    with MisbehavingHub([served], gated={served.repo_id}, accounts={TOKEN: Account("ada")}) as hub:
        yield hub_kit(tmp_path, hub, section("gated", served, gated=True))


def search(kit: HubKit, dones: dict[str, Done], planted: set[Path]) -> None:
    """Neither what was said nor what was written has it, but for the places where it was put."""
    for name, done in dones.items():
        assert MARK not in done.out + done.err, f"{name} said it"
    root = kit.folder.parent
    holding = {
        path
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and MARK.encode() in path.read_bytes()
    }
    assert holding <= planted


def fail(kit: HubKit, verbs: list[list[str]], **env: str) -> dict[str, Done]:
    dones = {" ".join(words): kit.run(*words, **env) for words in verbs}
    for name, done in dones.items():
        assert done.status != 0 or name.startswith("doctor"), name  # which lists what fails
        assert done.err or done.out, name
    return dones


@pytest.mark.slow
@pytest.mark.parametrize("env", IN_THE_ENVIRONMENT.values(), ids=IN_THE_ENVIRONMENT)
def test_what_the_environment_holds_is_said_and_written_nowhere(kit, env):
    verbs = VERBS if "HF_TOKEN" in env else VERBS[1:]
    search(kit, fail(kit, verbs, **{"MODEL": "gated", **env}), set())


@pytest.mark.slow
@pytest.mark.parametrize("text", IN_DOTENV.values(), ids=IN_DOTENV)
def test_what_dotenv_holds_is_said_and_written_nowhere_else(kit, text):
    dotenv = kit.folder / ".env"
    dotenv.write_text(text)
    dotenv.chmod(0o600)
    search(kit, fail(kit, VERBS[:4], KIT_DOTENV=str(dotenv)), {dotenv})


@pytest.mark.slow
def test_what_the_logins_own_file_holds_is_said_and_written_nowhere_else(kit):
    stored = kit.folder.parent / "home" / "hf" / "token"
    stored.parent.mkdir(parents=True)
    for content in (A_TOKEN, f"{A_TOKEN}\nmore", f"{A_TOKEN}ä"):
        stored.write_text(content)
        search(kit, fail(kit, VERBS[1:4]), {stored})


@pytest.mark.slow
def test_a_signed_address_that_fails_is_said_and_written_nowhere(kit):
    signed = f"http://{NOWHERE}/file?X-Amz-Credential={MARK}&X-Amz-Signature={MARK}&path="
    kit.hub.misbehave("*/resolve/*", Redirect(signed))
    search(kit, fail(kit, VERBS[1:3], HF_TOKEN=TOKEN), set())


@pytest.mark.slow
@pytest.mark.parametrize(
    "env",
    [
        {"PIP_INDEX_URL": f"http://ada:{MARK}@{NOWHERE}/simple"},
        {"PIP_EXTRA_INDEX_URL": f"http://{MARK}@{NOWHERE}/simple", "PIP_INDEX_URL": f"http://{NOWHERE}/simple"},
        {"UV_INDEX_URL": f"http://ada:{MARK}@{NOWHERE}/simple", "PIP_INDEX_URL": f"http://{NOWHERE}/simple"},
        {"UV_DEFAULT_INDEX": f"http://ada:{MARK}@{NOWHERE}/simple", "PIP_INDEX_URL": f"http://{NOWHERE}/simple"},
        {"PIP_FIND_LINKS": f"http://ada:{MARK}@{NOWHERE}/", "PIP_NO_INDEX": "1"},
        {"BUNDLE": f"http://ada:{MARK}@{NOWHERE}/"},
        {"BUNDLE": f"http://{NOWHERE}/?token={MARK}"},
        {"HTTPS_PROXY": f"http://ada:{MARK}@{NOWHERE}", "https_proxy": f"http://ada:{MARK}@{NOWHERE}"},
    ],
    ids=["pip", "pip, a token", "uv", "uv, its newer name", "find-links", "bundle", "bundle, signed", "proxy"],
)
def test_a_set_up_that_fails_says_and_writes_it_nowhere(kit, env):
    command = ["make", *(f"{name}={value}" for name, value in env.items() if name == "BUNDLE"), "setup"]
    done = run_command(command, cwd=kit.folder, env=kit.environment(**{"PIP_RETRIES": "0", **env}), timeout=300)
    assert done.status != 0
    search(kit, {"setup": done}, set())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pip.conf", "uv.toml", ".netrc"])
def test_what_a_configuration_file_holds_is_said_and_written_nowhere_else(kit, form):
    address = f"http://ada:{MARK}@{NOWHERE}/simple"
    home = kit.folder.parent / "home"
    path, text = {
        "pip.conf": (home / ".config" / "pip" / "pip.conf", f"[global]\nindex-url = {address}\nretries = 0\n"),
        "uv.toml": (home / ".config" / "uv" / "uv.toml", f'[[index]]\nurl = "{address}"\ndefault = true\n'),
        ".netrc": (home / ".netrc", f"machine 127.0.0.1 login ada password {MARK}\n"),
    }[form]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    env = {"PIP_CONFIG_FILE": "", "PIP_FIND_LINKS": "", "UV_FIND_LINKS": ""}
    if form != "pip.conf":
        env["PIP_INDEX_URL"] = f"http://{NOWHERE}/simple"
    given = {name: value for name, value in kit.environment(**env).items() if value or name not in env}
    done = run_command(["make", "setup"], cwd=kit.folder, env=given, timeout=300)
    assert done.status != 0
    search(kit, {"setup": done}, {path})


def test_sixty_commands_are_tried():
    at_the_hub = sum(len(VERBS) if "HF_TOKEN" in env else len(VERBS) - 1 for env in IN_THE_ENVIRONMENT.values())
    assert at_the_hub + 4 * len(IN_DOTENV) >= 60
