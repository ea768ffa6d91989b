"""The Hub's errors, each as a KitError: one ordered table, subclasses first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kit.errors import Command, KitError
from kit.models.registry import Model
from kit.net import errors as network_errors
from kit.net.errors import Refusal, chain

STARTER = "\n  meanwhile: ", Command("run", MODEL="starter")
TOKEN_PAGE = "https://huggingface.co/settings/tokens"


class _About(Exception):
    """Carries the model that an error is about to the table."""

    def __init__(self, model: Model, error: Exception) -> None:
        super().__init__(str(error))
        self.model, self.error = model, error


def caught() -> tuple[type[Exception], ...]:
    """What the client raises. Its httpx2 errors are no OSError; a captive portal's page is a ValueError."""
    import httpx2

    return (_About, httpx2.HTTPError, OSError, ValueError)


@contextmanager
def about(model: Model) -> Iterator[None]:
    """Errors of the block speak of `model`."""
    try:
        yield
    except caught() as error:
        raise _About(model, error) from error


def explain(error: Exception, endpoint: str) -> KitError:
    """The KitError for what the Hub's client raised while it talked to `endpoint`."""
    model = None
    if isinstance(error, _About):
        model, error = error.model, error.error
    for cause in chain(error):
        response = getattr(cause, "response", None)
        if response is not None:
            headers, sent = dict(response.headers), response.request.headers
            address, token_sent = str(response.url), "authorization" in sent
            return explain_refusal(Refusal(response.status_code, headers, address, endpoint, token_sent), model)
    return network_errors.explain(error, endpoint)


# --- What the Hub answered -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubRefusal(Refusal):
    """A refusal by the Hub, by its X-Error-Code and X-Error-Message, of `model`."""

    model: Model | None = None

    @property
    def code(self) -> str:
        return self.header("x-error-code")

    @property
    def said(self) -> str:
        return self.header("x-error-message")

    @property
    def name(self) -> str:
        return str(self.model.repo_id) if self.model else "the model"

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.model.repo_id}" if self.model else "its page on the Hub"


def explain_refusal(refusal: Refusal, model: Model | None = None) -> KitError:
    """The KitError for what the Hub answered, or who it sent a client to."""
    asked = HubRefusal(**vars(refusal), model=model)
    for matches, build in TABLE:
        if matches(asked):
            return build(asked)
    return network_errors.explain_refusal(asked)


def _link_refused(refusal: HubRefusal) -> KitError:
    return KitError(
        f"{refusal.host}, where the Hub keeps its files, refused the link to one ({refusal.status}).",
        "check this machine's clock (date) and whether a firewall is in the way (",
        Command("doctor"),
        "), then the same command again",
    )


def _no_token(refusal: HubRefusal) -> KitError:
    return KitError(
        f"{refusal.name} is gated, and no token was sent.",
        f"1. accept the licence at {refusal.page}\n  2. make a token that reads gated models: "
        f"{TOKEN_PAGE}/new?canReadGatedRepos=true&tokenType=fineGrained\n",
        "  3. cp .env.example .env && chmod 600 .env, write it behind HF_TOKEN=, then: ",
        Command("login"),
        *STARTER,
    )


def _pending(refusal: HubRefusal) -> KitError:
    return KitError(
        f"the request for {refusal.name} is waiting for its owners' approval.",
        f"wait (minutes to a day; {refusal.page} shows the state), then: ",
        Command("login"),
        *STARTER,
    )


def _not_accepted(refusal: HubRefusal) -> KitError:
    return KitError(
        f"the token is valid, but its account has no access to {refusal.name} yet (403, gated).",
        f"accept the licence at {refusal.page} (same account), then: ",
        Command("login"),
        *STARTER,
    )


def _no_gated_permission(refusal: HubRefusal) -> KitError:
    return KitError(
        f"the token may not read {refusal.name}: it is fine-grained, without the permission for gated repositories.",
        f"tick «Read access to contents of all public gated repos you can access» at {TOKEN_PAGE}, then: ",
        Command("login"),
        *STARTER,
    )


def _rejected(_refusal: HubRefusal) -> KitError:
    return KitError(
        "the Hub rejects the token (401): it was revoked, has expired, or is not whole.",
        f"make another at {TOKEN_PAGE}, write it into .env, then: ",
        Command("login"),
    )


def _no_revision(refusal: HubRefusal) -> KitError:
    commit = f" {refusal.model.revision}" if refusal.model else ""
    return KitError(f"{refusal.name} has no commit{commit} there.", f"compare env/models.toml with {refusal.page}")


def _no_file(refusal: HubRefusal) -> KitError:
    return KitError(
        f"{refusal.name} lacks a file that env/models.toml lists.", f"compare env/models.toml with {refusal.page}"
    )


def _no_repository(refusal: HubRefusal) -> KitError:
    return KitError(
        f"{refusal.host} has no {refusal.name}, or it is private and no token for it was sent.",
        "check the name (and HF_ENDPOINT, if you set it)",
    )


# A 403 of the Hub without a code is a fine-grained token without the permission; with GatedRepo it is the account.
TABLE: list[tuple[Callable[[HubRefusal], bool], Callable[[HubRefusal], KitError]]] = [
    (lambda r: r.is_refused_link, _link_refused),
    (lambda r: r.code == "GatedRepo" and r.status == 401, _no_token),
    (lambda r: r.code == "GatedRepo" and "awaiting" in r.said.lower(), _pending),
    (lambda r: r.code == "GatedRepo", _not_accepted),
    (lambda r: r.status == 403 and "fine-grained" in r.said.lower(), _no_gated_permission),
    (lambda r: r.status == 403 and not r.code and r.token_sent, _no_gated_permission),
    (lambda r: r.code == "RevisionNotFound", _no_revision),
    (lambda r: r.code == "EntryNotFound", _no_file),
    (lambda r: r.code == "RepoNotFound" or r.status == 404, _no_repository),
    (lambda r: r.status == 401 and r.token_sent, _rejected),
    (lambda r: r.status == 401, _no_repository),
]


def wait_before_again(cause: BaseException | None, back_off: float) -> float | None:
    """Seconds until the same may go well: what a busy server asks for, else `back_off`; None where it will not."""
    import httpx2

    response = getattr(cause, "response", None)
    if response is None:
        return back_off if isinstance(cause, (httpx2.TimeoutException, httpx2.NetworkError)) else None
    if response.status_code != 429 and response.status_code < 500:
        return None
    asked = network_errors.retry_after(dict(response.headers))
    return back_off if asked is None else asked
