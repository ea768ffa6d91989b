"""The Hub's errors, each as a KitError: one ordered table, subclasses first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kit import settings
from kit.errors import Command, Hint, KitError
from kit.models.registry import Model
from kit.net import errors as network_errors
from kit.net.errors import Refusal, chain

STARTER = "\n  meanwhile: ", Command("run", MODEL="starter")
TOKEN_PAGE = "https://huggingface.co/settings/tokens"
# The Hub fills its form in from these: a fine-grained token that reads gated models, and nothing else.
NEW_TOKEN_PAGE = f"{TOKEN_PAGE}/new?canReadGatedRepos=true&tokenType=fineGrained"


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

# An answer, its X-Error-Code, and its X-Error-Message in small letters.
Matches = Callable[[Refusal, str, str], bool]

# Which answer it is, what happened, and what to type next. {name} and {page} are the model's.
# A 403 of the Hub without a code is a fine-grained token without the permission; with GatedRepo it is the account.
TABLE: list[tuple[Matches, str, Hint]] = [
    (
        lambda r, code, said: r.is_refused_link,
        "{r.host}, where the Hub keeps its files, refused the link to one ({r.status}).",
        (
            "check this machine's clock (date) and whether a firewall is in the way (",
            Command("doctor"),
            "), then the same command again",
        ),
    ),
    (
        lambda r, code, said: code == "GatedRepo" and r.status == 401,
        "{name} is gated, and no token was sent.",
        (
            "1. accept the licence at {page}\n  2. make a token that reads gated models: " + NEW_TOKEN_PAGE + "\n",
            "  3. {write}, then: ",
            Command("login"),
            *STARTER,
        ),
    ),
    (
        lambda r, code, said: code == "GatedRepo" and "awaiting" in said,
        "the request for {name} is waiting for its owners' approval.",
        ("wait (minutes to a day; {page} shows the state), then: ", Command("login"), *STARTER),
    ),
    (
        lambda r, code, said: code == "GatedRepo" and "rejected" in said,
        "the owners of {name} have rejected this account's request for it.",
        ("ask them at {page}, or take another model", *STARTER),
    ),
    (
        lambda r, code, said: code == "GatedRepo" and ("authorized list" in said or not said),
        "the token is valid, but its account has no access to {name} yet (403, gated).",
        ("accept the licence at {page} (same account), then: ", Command("login"), *STARTER),
    ),
    (
        lambda r, code, said: code == "GatedRepo",
        "the Hub does not let this account have {name} ({r.status}); in its words: {quoted}",
        ("look at {page} with the same account", *STARTER),
    ),
    (
        lambda r, code, said: r.status == 403 and ("fine-grained" in said or (not code and r.token_sent)),
        "the token may not read {name}: it is fine-grained, without the permission for gated repositories.",
        (
            f"tick «Read access to contents of all public gated repos you can access» at {TOKEN_PAGE}, then: ",
            Command("login"),
            *STARTER,
        ),
    ),
    (
        lambda r, code, said: code == "RevisionNotFound",
        "{name} has no commit{at} there.",
        ("compare env/models.toml with {page}",),
    ),
    (
        lambda r, code, said: code == "EntryNotFound",
        "{name} lacks a file that env/models.toml lists.",
        ("compare env/models.toml with {page}",),
    ),
    (
        lambda r, code, said: r.status == 401 and r.token_sent and code != "RepoNotFound",
        "the Hub rejects the token (401): it was revoked, has expired, or is not whole.",
        (f"make another at {TOKEN_PAGE}, write it into .env, then: ", Command("login")),
    ),
    (
        lambda r, code, said: code == "RepoNotFound" or r.status in (401, 404),
        "{r.host} has no {name}, or it is private and no token for it was sent.",
        ("check the name (and HF_ENDPOINT, if you set it)",),
    ),
]


def explain_refusal(refusal: Refusal, model: Model | None = None) -> KitError:
    """The KitError for what the Hub answered about `model`, or who it sent a client to."""
    code, said = refusal.header("x-error-code"), refusal.header("x-error-message").lower()
    words = {"name": "the model", "page": "its page on the Hub", "at": "", "r": refusal}
    words["write"] = settings.how_to_write("HF_TOKEN")
    words["quoted"] = refusal.header("x-error-message").strip()[:300]
    if model:
        page = f"https://huggingface.co/{model.repo_id}"
        words |= {"name": str(model.repo_id), "page": page, "at": f" {model.revision}"}
    for matches, message, hint in TABLE:
        if matches(refusal, code, said):
            following = [part.format(**words) if isinstance(part, str) else part for part in hint]
            return KitError(message.format(**words), *following)
    return network_errors.explain_refusal(refusal)


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
