"""The Hugging Face Hub through its own client: the token, whose it is, what it can read, signing in and out.

The bytes of a model come through kit.net.transfer; every error becomes a KitError in kit.hub.errors.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kit.errors import Command, KitError, keep_secret
from kit.files import cause_of
from kit.hub import errors as hub_errors
from kit.models.registry import Model
from kit.net import errors as network_errors
from kit.net import get

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi


HOME = "https://huggingface.co"
# Seconds. The client itself sets none for whoami and for listings.
CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 20.0

# Read when huggingface_hub is first imported, by whatever function that is: it asks and tells nothing besides.
for _name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK"):
    os.environ.setdefault(_name, "1")

# Those of account pages have letters and digits, those of a log-in in the browser are JSON web tokens (RFC 7519).
# The name that HF_TOKEN had before; the Hub's client reads it still.
OTHER_NAME = "HUGGING_FACE_HUB_TOKEN"
TOKEN_CHARACTERS = re.compile(r"[A-Za-z0-9._~+/=-]+")


@dataclass(frozen=True)
class Token:
    """A token and where it was found. Its value is in no repr, so in no traceback and no log."""

    value: str = field(repr=False)
    source: str

    def __post_init__(self) -> None:
        keep_secret(self.value)


@dataclass(frozen=True)
class Account:
    """Whose token it is. `role` is read, write or fineGrained."""

    name: str
    role: str


def endpoint() -> str:
    """The Hub's address: HF_ENDPOINT or huggingface.co, without a slash at its end.

    Raises KitError for an HF_ENDPOINT that is no address, or has a password in it.
    """
    value = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/")
    if not value:
        return HOME
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        good = False
    if not good or "@" in value:
        raise KitError(
            f"HF_ENDPOINT={network_errors.without_user(value)} is not the address of a Hub or mirror.",
            "write it like http://192.168.1.10:8080, without user and password; or unset it for the Hub itself",
        )
    return value


def is_trusted(address: str) -> bool:
    """True where a token may be sent: over https, or to this machine itself. Never in the clear over a network."""
    parts = urlsplit(address)
    if parts.scheme == "https":
        return True
    return parts.hostname in ("localhost", "127.0.0.1", "::1") and not network_errors.proxy_for(address)


def find_token() -> Token | None:
    """The token in effect: HF_TOKEN (the environment or .env), else the Hub client's own file.

    Raises KitError for what cannot be a token: whoever asks for one may send it.
    """
    value, source = os.environ.get("HF_TOKEN", "").strip(), "HF_TOKEN"
    if not value:
        from huggingface_hub import constants, get_token

        source = "the Hub client's token file"
        if os.environ.get(OTHER_NAME, "").strip():
            source = OTHER_NAME
        with contextlib.suppress(OSError):
            # The client's own way to it renews one from `hf auth login` in a browser whose time is nearly up, and sends
            # the endpoint the secret for that.
            trusted = is_trusted(endpoint())
            value = (get_token() if trusted else Path(constants.HF_TOKEN_PATH).read_text("utf-8").strip()) or ""
    if not value:
        return None
    found = Token(value, source)
    check_form(found)
    return found


def check_form(token: Token) -> None:
    """Raises KitError for what cannot be a token: caught here, a slip costs no network."""
    fault = ""
    if any(character.isspace() for character in token.value):
        fault = "has a blank or a line end in it"
    elif not token.value.isascii():
        fault = "has a character in it that no token has"
    elif not token.value.startswith("hf_") and not os.environ.get("HF_ENDPOINT"):  # another Hub has forms of its own
        fault = "does not begin with hf_"
    elif len(token.value) < 20 or not TOKEN_CHARACTERS.fullmatch(token.value):
        fault = "is cut short, or has a character too many"
    if fault:
        raise KitError(
            f"the token in {token.source} {fault}.",
            f"copy it whole from {hub_errors.TOKEN_PAGE} (it is shown once; make another if it is gone), then: ",
            Command("login"),
        )


def token_to_send(model: Model) -> Token | None:
    """The token that the model needs: none for an open one, none for a mirror without https."""
    return find_token() if model.gated and is_trusted(endpoint()) else None


@contextlib.contextmanager
def session() -> Iterator[HfApi]:
    """The Hub's own client, with time-outs; what goes wrong in the block is raised as a KitError."""
    network_errors.require_online()
    configure()
    network_errors.proxies()
    from huggingface_hub import HfApi

    try:
        # token=False: a call sends the token that it is given, and never one that it finds by itself.
        yield HfApi(endpoint=endpoint(), token=False)
    except hub_errors.caught() as error:
        raise hub_errors.explain(error, endpoint()) from error


@lru_cache(maxsize=1)
def configure() -> None:
    """Sets the client's time-outs. Once a process: a new client factory closes the client in use."""
    from huggingface_hub import set_client_factory

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    set_client_factory(_client)


def _client() -> httpx2.Client:
    import httpx2
    from huggingface_hub.utils._http import default_client_factory

    client = default_client_factory()
    client.timeout = httpx2.Timeout(get.timeout(READ_TIMEOUT), connect=CONNECT_TIMEOUT)
    return client


def account(token: Token) -> Account:
    """Whose token it is. Raises KitError where the Hub rejects it or cannot be reached."""
    check_form(token)
    with session() as api:
        said = api.whoami(token=token.value)
        access = (said.get("auth") or {}).get("accessToken") or {}
        return Account(said["name"], access.get("role", "unknown"))


def require_access(model: Model, token: Token | None) -> None:
    """Returns where `token` can read the model at its pinned commit; raises KitError that says what is missing."""
    assert model.repo_id
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import get_hf_file_metadata

    sent: str | bool = token.value if token else False
    smallest = min(model.files, key=lambda file: file.size)
    with session() as api, hub_errors.about(model):
        api.auth_check(model.repo_id, token=sent)
        url = hf_hub_url(model.repo_id, smallest.path, revision=model.revision, endpoint=endpoint())
        get_hf_file_metadata(url, token=sent, timeout=get.timeout(READ_TIMEOUT), endpoint=endpoint())


def sign_in(token: Token) -> None:
    """Signs in as `hf auth login` does, so that the hf command and other libraries work too. Raises KitError."""
    from huggingface_hub import constants, login

    with session():
        try:
            login(token=token.value, add_to_git_credential=False, skip_if_logged_in=False)
        except OSError as error:
            if error.filename is None:  # of the network, then
                raise
            raise _not_stored(error, constants.HF_TOKEN_PATH) from error


def sign_out() -> bool:
    """Removes the token that is signed in, and no other of the client's. False where none was; raises KitError."""
    from huggingface_hub import constants
    from huggingface_hub._login import _logout_from_token
    from huggingface_hub.utils._auth import get_stored_tokens

    active = Path(constants.HF_TOKEN_PATH)
    try:
        value = active.read_text(encoding="utf-8").strip()
        for name in [name for name, stored in get_stored_tokens().items() if stored == value]:
            _logout_from_token(name)
        active.unlink(missing_ok=True)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _not_stored(error, str(active)) from error
    return True


def other_tokens() -> list[str]:
    """The names of the tokens that the client keeps beside the one that is signed in."""
    from huggingface_hub.utils._auth import get_stored_tokens

    return sorted(get_stored_tokens())


def _not_stored(error: OSError, path: str) -> KitError:
    cause, mend = cause_of(error)
    where = "" if error.filename else f" ({path})"
    return KitError(
        f"the Hub client's token file cannot be changed: {cause}{where}.",
        f"{mend}, or name another folder: HF_HOME=/path/to/folder, then the same command again",
    )
