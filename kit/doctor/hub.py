"""The doctor's checks of the Hub: the token, whose it is, what it reads, and the way there.

All that waits for a network is asked at once and shares one deadline, so that no network costs 5 s at most in all.
"""

from __future__ import annotations

import os
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, cast

from kit.doctor.check import FAIL, OK, WARN, Listed, Outcome, skipped
from kit.errors import Command, KitError
from kit.hub import client as hub
from kit.hub import download
from kit.hub.errors import NEW_TOKEN_PAGE
from kit.models import registry
from kit.models.registry import Model
from kit.net import errors as network_errors

DEADLINE = 4.5  # seconds for all lookups together
# Where huggingface.co sends a client for the bytes of large files.
FILE_HOSTS = ("cas-bridge.xethub.hf.co", "cdn-lfs.hf.co")
CLOCK_WARN = 300.0  # seconds off: certificates are still valid, signed links may not be

PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy")


def listed(model_name: str) -> list[Listed]:
    """Every check of the Hub, for the model that is chosen. A model that does not come from there has none."""
    try:
        model = registry.find(model_name)
    except KitError:
        return _all_skipped("which model it is about is not known (D09)")
    if model.repo_id is None:
        return _all_skipped(f"{model.name} does not come from the Hub")
    looks, here = _looks(model), download.is_complete(model)
    return _numbered([_softened(looks[name], here) for name in NAMES])


def _all_skipped(reason: str) -> list[Listed]:
    return _numbered([partial(skipped, reason)] * len(NAMES))


def _numbered(looks: Iterable[Callable[[], Outcome]]) -> list[Listed]:
    return [(f"D3{number}", name, look) for number, (name, look) in enumerate(zip(NAMES, looks, strict=True))]


NAMES = ("token", "account", "access", "hub", "file-hosts", "clock", "network")  # of D30 to D36


class Lookups:
    """What the network says, each asked in a thread of its own from the start; `get` waits until the deadline."""

    def __init__(self, model: Model) -> None:
        # Here and not in a thread: the Hub's client reads its settings when it is imported, and two threads that import
        # its parts at once wait for each other. Nor is it the network that this time is for.
        with hub.session():
            pass
        self._answers: dict[str, Any] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._deadline = time.monotonic() + DEADLINE
        self.hosts = [hub.endpoint()]
        if self.hosts == ["https://huggingface.co"]:
            self.hosts += [f"https://{name}" for name in FILE_HOSTS]
        for address in self.hosts:
            self._ask(address, partial(server_date, address))
        # In a thread, too: the client may ask the Hub to renew the token that it keeps.
        self._ask("token", hub.find_token)
        if hub.is_trusted(hub.endpoint()):
            self._ask("account", lambda: self.token and hub.account(self.token))
            if model.gated:
                self._ask("access", partial(self._require_access, model))

    def _require_access(self, model: Model) -> None:
        if token := self.token:
            hub.require_access(model, token)

    @property
    def token(self) -> hub.Token | None:
        """The token in effect. Raises KitError for a silence."""
        return cast("hub.Token | None", self.get("token"))

    def _ask(self, name: str, question: Callable[[], Any]) -> None:
        def run() -> None:
            try:
                self._answers[name] = question()
            except KitError as error:
                self._answers[name] = error
            except Exception as error:  # or the thread's end would look like a silence
                self._answers[name] = KitError(f"{type(error).__name__}: {error}", "please report it")

        self._threads[name] = threading.Thread(target=run, daemon=True)
        self._threads[name].start()

    def get(self, name: str) -> Any:
        """The answer. Raises the KitError that came instead of it, or one for a silence."""
        self._threads[name].join(max(0.0, self._deadline - time.monotonic()))
        answer = self._answers.get(name, KitError("no answer in time", "check the network"))
        if isinstance(answer, KitError):
            raise answer
        return answer


def server_date(address: str) -> float | None:
    """Seconds that the server's clock is ahead of this machine's; None where it does not say. Raises KitError."""
    request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "base-model-kit"})
    try:
        import httpx2

        tls = urllib.request.HTTPSHandler(context=httpx2.create_ssl_context())
        proxies = urllib.request.ProxyHandler(network_errors.proxies())
        with urllib.request.build_opener(tls, proxies).open(request, timeout=DEADLINE) as response:
            date = response.headers.get("Date")
    except urllib.request.HTTPError as error:  # an answer is an answer
        date = error.headers.get("Date")
    except OSError as error:
        raise network_errors.explain(error, address) from error
    return None if date is None else parsedate_to_datetime(date).timestamp() - time.time()


def _looks(model: Model) -> dict[str, Callable[[], Outcome]]:
    """What each check does. Where a setting bars the way to the Hub, one says so and the others are skipped."""
    for number, barred, require in (("D33", "hub", _name_endpoint), ("D36", "network", check_network)):
        try:
            require()
        except KitError:
            rest = partial(skipped, f"the way to the Hub is not known ({number})")
            return dict.fromkeys(NAMES, rest) | {barred: require}
    lookups = Lookups(model)
    return {
        "token": lambda: check_token(model, lookups),
        "account": lambda: check_account(lookups),
        "access": lambda: check_access(model, lookups),
        "hub": lambda: check_hub(lookups),
        "file-hosts": lambda: check_file_hosts(lookups),
        "clock": lambda: check_clock(lookups),
        "network": check_network,
    }


def _softened(look: Callable[[], Outcome], here: bool) -> Callable[[], Outcome]:
    """A model that is whole needs no Hub: what fails is only worth a warning."""

    def softened() -> Outcome:
        try:
            return look()
        except KitError as error:
            return Outcome(WARN if here else FAIL, error.message, *error.hint)

    return softened


def check_token(model: Model, lookups: Lookups) -> Outcome:
    token = lookups.token
    if token is None:
        if model.gated:
            hint = f"make one at {NEW_TOKEN_PAGE}, write it into .env, then: ", Command("login")
            raise KitError(f"there is no token, and {model.name} is gated", *hint)
        return skipped(f"{model.name} is open, and there is no token")
    return Outcome(OK, f"well-formed, from {token.source}")


def check_account(lookups: Lookups) -> Outcome:
    if lookups.token is None:
        return skipped("there is no token (D30)")
    if not hub.is_trusted(hub.endpoint()):
        return skipped("no token is sent to a HF_ENDPOINT without https, or through a proxy to this machine")
    account = lookups.get("account")
    if account.role == "write":
        return Outcome(WARN, f"{account.name}, scope write: read is enough", f"make one that reads: {NEW_TOKEN_PAGE}")
    return Outcome(OK, f"{account.name}, scope {account.role}")


def check_access(model: Model, lookups: Lookups) -> Outcome:
    if not model.gated:
        return skipped(f"{model.name} is open to everybody")
    if lookups.token is None or not hub.is_trusted(hub.endpoint()):
        return skipped("no token is sent (D30, D31)")
    lookups.get("access")
    return Outcome(OK, f"{model.repo_id} at {model.revision[:12]} can be read")


def _name_endpoint() -> Outcome:
    return Outcome(OK, hub.endpoint())


def check_hub(lookups: Lookups) -> Outcome:
    lookups.get(lookups.hosts[0])
    return Outcome(OK, f"{network_errors.host(lookups.hosts[0])} answers")


def check_file_hosts(lookups: Lookups) -> Outcome:
    """Each host by name: a firewall that lets the Hub through may hold its files back."""
    hosts = lookups.hosts[1:]
    if not hosts:
        return skipped("HF_ENDPOINT serves its files itself")
    silent = {}
    for address in hosts:
        try:
            lookups.get(address)
        except KitError as error:
            silent[network_errors.host(address)] = error
    if silent:
        text = "; ".join(f"{name}: {error.message.rstrip('.')}" for name, error in silent.items())
        raise KitError(text, *next(iter(silent.values())).hint)
    return Outcome(OK, ", ".join(network_errors.host(address) for address in hosts) + " answer")


def check_clock(lookups: Lookups) -> Outcome:
    try:
        ahead = lookups.get(lookups.hosts[0])
    except KitError as error:
        if error.hint == network_errors.SET_CLOCK:
            raise
        return skipped("the Hub does not answer (D33)")
    if ahead is None:
        return skipped("the Hub does not say its time")
    if abs(ahead) > CLOCK_WARN:
        direction = "behind" if ahead > 0 else "ahead"
        raise KitError(f"this machine's clock is {abs(ahead) / 60:.0f} minutes {direction}", "set the clock (NTP)")
    return Outcome(OK, f"within {max(1, round(abs(ahead)))} s of the Hub's")


def check_network() -> Outcome:
    """Proxies and certificates in effect, without their passwords; those that cannot be used fail."""
    network_errors.proxies()
    network_errors.require_certificates()
    parts = [f"{name}={network_errors.without_user(os.environ[name])}" for name in PROXIES if os.environ.get(name)]
    parts += [f"{name}={os.environ[name]}" for name in network_errors.CERTIFICATES if os.environ.get(name)]
    if os.environ.get("REQUESTS_CA_BUNDLE") and not os.environ.get("SSL_CERT_FILE"):
        return Outcome(WARN, "REQUESTS_CA_BUNDLE has no effect here", "name the file in SSL_CERT_FILE")
    return Outcome(OK, ", ".join(parts) or "no proxy, the system's certificates")
