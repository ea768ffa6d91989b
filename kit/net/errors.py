"""A network that did not let the kit through: which of the causes it is, as a KitError."""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit

from kit.errors import KitError

SAME_AGAIN = "then the same command again"
SET_CLOCK = (f"check this machine's clock (date), {SAME_AGAIN}",)
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
# Where systems keep the certificates that they trust: macOS and the BSDs, Debian, Fedora, SUSE.
SYSTEM_CERTIFICATES = (
    "/etc/ssl/cert.pem",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
)


# What switches the Hub's client off, and the words that it takes for yes.
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
YES = ("1", "ON", "YES", "TRUE")


def require_online() -> None:
    """Raises KitError where the user has forbidden to ask the Hub: whoever asks it, and however."""
    for name in OFFLINE:
        if os.environ.get(name, "").upper() in YES:
            raise KitError(f"{name} is set, and forbids asking the Hub.", f"unset {name}, {SAME_AGAIN}")


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, the outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def explain(error: Exception, endpoint: str) -> KitError:
    """The KitError for a Hub that did not answer: which of the causes it is, by the chain of exceptions."""
    where, causes = host(endpoint), list(chain(error))
    text = " / ".join(map(str, causes))

    def is_a(kind: type[Exception]) -> bool:
        return any(isinstance(cause, kind) for cause in causes)

    if is_certificate(error):
        return _explain_tls(where, text)
    if proxy := proxy_for(endpoint):
        message = f"the proxy {host(proxy)} did not let {where} through: {_first(error)}"
        step = "check HTTPS_PROXY (and NO_PROXY, for what needs none),"
    elif is_a(socket.gaierror) or "Name or service" in text or "resolution" in text:
        message, step = f"the name {where} was not found (DNS).", "check the network, or HF_ENDPOINT if you set it;"
    elif any(words in text for words in ("unreachable", "Network is down", "No route to host", "Host is down")):
        message = f"there is no way to {where} from here: this machine has no network, or not that one."
        step = "connect it to a network,"
    elif is_a(TimeoutError) or any("Timeout" in type(cause).__name__ for cause in causes):
        message, step = f"{where} did not answer in time.", "check the network or try another,"
    elif is_a(ConnectionRefusedError) or "refused" in text:
        message, step = f"{where} refused the connection.", "check the network, and HF_ENDPOINT if you set it;"
    elif is_a(ValueError):
        message = f"what answered for {where} is not the Hub: a page of the network you are in, perhaps its log-in."
        step = "open a web page in a browser and sign in to the network,"
    else:
        message, step = f"the connection to {where} broke: {_first(error)}", "check the network,"
    return KitError(message, f"{step} {SAME_AGAIN}")


def is_certificate(error: BaseException) -> bool:
    """True where TLS itself refused, or has no certificates to go by: asking again does not help."""
    causes = list(chain(error))
    text = " / ".join(map(str, causes))
    cut_short = any(isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError) for cause in causes)
    # Nothing on the way to a server opens a file, but for the certificates.
    tls = any(isinstance(cause, ssl.SSLError | FileNotFoundError) for cause in causes)
    return (tls or "CERTIFICATE_VERIFY" in text or "[SSL" in text) and not cut_short


def require_certificates() -> None:
    """Raises KitError for a variable that names certificates which are not there."""
    for name in CERTIFICATES:
        if (value := os.environ.get(name)) and not Path(value).exists():
            raise KitError(f"{name} names {value}, which is not there.", f"unset {name}, or name the right file")


def default_context() -> ssl.SSLContext:
    """What a Python without packages checks certificates with: its own, or the system's where it brings none, as
    python.org's for macOS does. Raises KitError where there are neither."""
    context = ssl.create_default_context()
    if any(os.environ.get(name) for name in CERTIFICATES) or context.get_ca_certs():
        return context
    paths = ssl.get_default_verify_paths()
    if paths.cafile or (paths.capath and any(Path(paths.capath).iterdir())):  # a folder is read when it is needed
        return context
    for place in filter(os.path.exists, SYSTEM_CERTIFICATES):
        context.load_verify_locations(place)
        return context
    raise KitError(
        "this Python has no certificates to check a server with, and the system keeps none where they are looked for.",
        "on macOS with python.org's Python: run «Install Certificates.command» in its folder of /Applications; "
        "or name a file of them: SSL_CERT_FILE=/path/to/ca.pem, then the same command",
    )


def proxies() -> dict[str, str]:
    """The proxies that the environment or the system names, by scheme; ALL_PROXY counts where none is of the scheme.

    Raises KitError for one that is no HTTP proxy: the Hub's client and urllib would each stumble in their own words.
    """
    from urllib.request import getproxies

    named = getproxies()
    found = {scheme: proxy for scheme in ("http", "https", "all") if (proxy := named.get(scheme))}
    for proxy in found.values():
        bare = _bare(proxy)
        if not is_http(bare if "://" in bare else f"http://{bare}"):
            raise KitError(
                f"{without_user(proxy)} is not an HTTP proxy, and no other kind is spoken here (SOCKS neither).",
                "write it like HTTPS_PROXY=http://proxy.example.com:3128, and unset ALL_PROXY if that names it",
            )
    return {scheme: proxy for scheme in ("http", "https") if (proxy := found.get(scheme, found.get("all")))}


def is_http(address: str) -> bool:
    """True for an address of HTTP with a host, and with a port that can be one."""
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False


def proxy_for(address: str) -> str | None:
    """The proxy that is gone through to the address, None where it is reached directly. Raises KitError, as proxies."""
    from urllib.request import proxy_bypass

    parts = urlsplit(address)
    proxy = proxies().get(parts.scheme)
    return proxy if proxy and not proxy_bypass(parts.netloc) else None


def _explain_tls(where: str, text: str) -> KitError:
    try:
        require_certificates()
    except KitError as error:
        return error
    if "not yet valid" in text or "expired" in text:
        return KitError(f"the certificate of {where} is not valid now.", *SET_CLOCK)
    named = os.environ.get("SSL_CERT_FILE")
    return KitError(
        f"the certificate of {where} was refused (TLS).",
        f"SSL_CERT_FILE names {named}: put the CA of this network's proxy into it (PEM), or unset it, {SAME_AGAIN}"
        if named
        else f"behind a company proxy, name its CA file: SSL_CERT_FILE=/path/to/ca.pem, {SAME_AGAIN}",
    )


def host(address: str) -> str:
    """The address without user, password and path: fit to be shown. Takes proxies as people write them, too."""
    bare = _bare(address)
    try:
        parts = urlsplit(bare if "://" in bare else f"//{bare}")
        return f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname or bare
    except ValueError:  # a port that is no number
        return bare


def without_user(address: str) -> str:
    """The address without what stands before its last @, which may be a password with any character in it."""
    scheme, separator, rest = address.rpartition("://")
    _, at, after = rest.rpartition("@")
    return f"{scheme}{separator}{'…@' if at else ''}{after}"


def _bare(address: str) -> str:
    return without_user(address).replace("…@", "")


def _first(error: Exception) -> str:
    """The first line of what it says, as a sentence. urllib wraps the reason into <urlopen error …>."""
    said = str(error.reason if isinstance(error, URLError) else error).strip()
    return (said.splitlines() or [type(error).__name__])[0].rstrip(".") + "."


# --- What was answered instead of the file --------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """An HTTP answer that is none: its status and headers, who gave it, and what had been asked of whom.

    `address` is what answered, `endpoint` the Hub: they differ for a host that the Hub redirects to.
    """

    status: int
    headers: dict[str, str]
    address: str
    endpoint: str
    token_sent: bool

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers.items() if key.lower() == name), "")

    @property
    def host(self) -> str:
        return host(self.address)

    @property
    def elsewhere(self) -> bool:
        return self.host != host(self.endpoint)

    @property
    def is_refused_link(self) -> bool:
        """True for a host of files that refuses the link which was made for it; a new link may do."""
        return self.elsewhere and self.status in (401, 403, 404, 410)

    def wait(self) -> float | None:
        """Seconds that the server asks to wait."""
        return retry_after(self.headers)


def explain_refusal(refusal: Refusal) -> KitError:
    """The KitError for what any server may answer."""
    seconds, words = refusal.wait(), refusal.header("x-error-message")
    if refusal.status == 429:
        wait = "5 minutes" if seconds is None else f"{seconds:.0f} seconds"
        return KitError(f"{refusal.host} answers too many requests from here (429).", f"wait {wait}, {SAME_AGAIN}")
    if refusal.status >= 500:
        wait = "a few minutes" if seconds is None else f"{seconds:.0f} seconds"
        said = f"{refusal.status}, {words}" if words else refusal.status
        return KitError(f"{refusal.host} has trouble of its own ({said}).", f"wait {wait}, {SAME_AGAIN}")
    said = f"{refusal.status} ({words})" if words else refusal.status
    message = f"{refusal.host} gave an answer that is not known here: {said}."
    return KitError(message, f"try again later, {SAME_AGAIN}")


def retry_after(headers: dict[str, str]) -> float | None:
    """Seconds to wait, from Retry-After: a number, or a date (RFC 9110, 10.2.3); else from RateLimit, where nothing
    remains: `"api";r=0;t=55` (draft-ietf-httpapi-ratelimit-headers)."""
    from datetime import datetime
    from email.utils import parsedate_to_datetime

    small = {name.lower(): value.strip() for name, value in headers.items()}
    value = small.get("retry-after", "")
    if value.isdigit():
        return float(value)
    limits = re.findall(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", small.get("ratelimit", ""))
    if limits and not value:
        return max(map(float, limits))
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
