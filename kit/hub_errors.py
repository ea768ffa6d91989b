"""The Hub's errors, each as a KitError: one ordered table, subclasses first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC
from typing import Any

from kit import network_errors
from kit.errors import KitError
from kit.network_errors import SAME_AGAIN, chain, host
from kit.registry import Model

STARTER = "meanwhile: make run MODEL=starter"
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
            return explain_status(response.status_code, dict(response.headers), model, endpoint)
    return network_errors.explain(error, endpoint)


# --- What the Hub answered -------------------------------------------------------------------------------------------


def explain_status(status: int, headers: dict[str, str], model: Model | None, endpoint: str) -> KitError:
    """The KitError for an HTTP status, by the Hub's X-Error-Code and X-Error-Message."""
    lower = {name.lower(): value for name, value in headers.items()}
    code, said = lower.get("x-error-code", ""), lower.get("x-error-message", "")
    for matches, build in TABLE:
        if matches(status, code, said):
            return build(model, status, said, lower, endpoint)
    return KitError(
        f"{host(endpoint)} answered {status}{f' ({said})' if said else ''}.", f"try again later, {SAME_AGAIN}"
    )


def _no_token(model: Model | None, *_: Any) -> KitError:
    name, page = _names(model)
    return KitError(
        f"{name} is gated, and no token was sent.",
        f"1. accept the licence at {page}\n"
        f"  2. make a token that reads gated models: {TOKEN_PAGE}/new?canReadGatedRepos=true&tokenType=fineGrained\n"
        "  3. cp .env.example .env && chmod 600 .env, write it behind HF_TOKEN=, then: make login\n"
        f"  {STARTER}",
    )


def _pending(model: Model | None, *_: Any) -> KitError:
    name, page = _names(model)
    return KitError(
        f"the request for {name} is waiting for its owners' approval.",
        f"wait (minutes to a day; {page} shows the state), then: make login\n  {STARTER}",
    )


def _not_accepted(model: Model | None, *_: Any) -> KitError:
    name, page = _names(model)
    return KitError(
        f"the token is valid, but its account has no access to {name} yet (403, gated).",
        f"accept the licence at {page} (same account), then: make login\n  {STARTER}",
    )


def _no_gated_permission(model: Model | None, *_: Any) -> KitError:
    name, _page = _names(model)
    return KitError(
        f"the token may not read {name}: it is fine-grained, without the permission for gated repositories.",
        f"tick «Read access to contents of all public gated repos you can access» at {TOKEN_PAGE}, then: make login\n"
        f"  {STARTER}",
    )


def _rejected(_model: Model | None, *_: Any) -> KitError:
    return KitError(
        "the Hub rejects the token (401): it was revoked, has expired, or is not whole.",
        f"make another at {TOKEN_PAGE}, write it into .env, then: make login",
    )


def _limited(_model: Model | None, _status: int, _said: str, headers: dict[str, str], endpoint: str) -> KitError:
    seconds = retry_after(headers)
    wait = f"{seconds:.0f} seconds" if seconds is not None else "5 minutes"
    return KitError(f"{host(endpoint)} answers too many requests from here (429).", f"wait {wait}, {SAME_AGAIN}")


def _no_revision(model: Model | None, *_: Any) -> KitError:
    name, page = _names(model)
    commit = f" {model.revision}" if model else ""
    return KitError(f"{name} has no commit{commit} there.", f"compare env/models.toml with {page}")


def _no_file(model: Model | None, *_: Any) -> KitError:
    name, page = _names(model)
    return KitError(f"{name} lacks a file that env/models.toml lists.", f"compare env/models.toml with {page}")


def _no_repository(model: Model | None, _status: int, _said: str, _headers: dict[str, str], endpoint: str) -> KitError:
    name, _page = _names(model)
    return KitError(
        f"{host(endpoint)} has no {name}, or it is private and no token for it was sent.",
        "check the name (and HF_ENDPOINT, if you set it)",
    )


def _trouble(_model: Model | None, status: int, said: str, headers: dict[str, str], endpoint: str) -> KitError:
    seconds = retry_after(headers)
    wait = f"wait {seconds:.0f} seconds" if seconds is not None else "wait a few minutes"
    return KitError(
        f"{host(endpoint)} has trouble of its own ({status}{f', {said}' if said else ''}).", f"{wait}, {SAME_AGAIN}"
    )


# A 403 without a code is a fine-grained token without the permission; with GatedRepo it is the account.
TABLE: list[tuple[Callable[[int, str, str], bool], Callable[..., KitError]]] = [
    (lambda status, code, said: code == "GatedRepo" and status == 401, _no_token),
    (lambda status, code, said: code == "GatedRepo" and "awaiting" in said.lower(), _pending),
    (lambda status, code, said: code == "GatedRepo", _not_accepted),
    (lambda status, code, said: status == 403 and ("fine-grained" in said.lower() or not code), _no_gated_permission),
    (lambda status, code, said: code == "RevisionNotFound", _no_revision),
    (lambda status, code, said: code == "EntryNotFound", _no_file),
    (lambda status, code, said: code == "RepoNotFound" or status == 404, _no_repository),
    (lambda status, code, said: status == 401, _rejected),
    (lambda status, code, said: status == 429, _limited),
    (lambda status, code, said: status >= 500, _trouble),
]


def retry_after(headers: dict[str, str]) -> float | None:
    """Seconds to wait, from Retry-After: a number, or a date (RFC 9110, 10.2.3)."""
    from datetime import datetime
    from email.utils import parsedate_to_datetime

    value = headers.get("retry-after", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _names(model: Model | None) -> tuple[str, str]:
    if model is None:
        return "the model", "its page on the Hub"
    return str(model.repo_id), f"https://huggingface.co/{model.repo_id}"
