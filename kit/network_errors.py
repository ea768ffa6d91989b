"""A network that did not let the kit through: which of the causes it is, as a KitError."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from kit.errors import KitError

SAME_AGAIN = "then the same command again"


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
    where = host(endpoint)
    text = " / ".join(str(cause) for cause in chain(error))
    kinds = [type(cause).__name__ for cause in chain(error)]
    causes = list(chain(error))
    if "offline mode is enabled" in text:
        return KitError("HF_HUB_OFFLINE is set, and forbids asking the Hub.", f"unset HF_HUB_OFFLINE, {SAME_AGAIN}")
    if any(isinstance(cause, ssl.SSLError) for cause in causes) or "CERTIFICATE_VERIFY" in text or "[SSL" in text:
        return _explain_tls(where, text)
    if proxy := proxy_for(endpoint):
        return KitError(
            f"the proxy {host(proxy)} did not let {where} through: {_first(error)}",
            f"check HTTPS_PROXY (and NO_PROXY, for what needs none), {SAME_AGAIN}",
        )
    if any(isinstance(cause, socket.gaierror) for cause in causes) or "Name or service" in text or "resolution" in text:
        return KitError(
            f"the name {where} was not found (DNS).", f"check the network, or HF_ENDPOINT if you set it; {SAME_AGAIN}"
        )
    if any(isinstance(cause, TimeoutError) for cause in causes) or any("Timeout" in kind for kind in kinds):
        return KitError(f"{where} did not answer in time.", f"check the network or try another, {SAME_AGAIN}")
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes) or "refused" in text:
        return KitError(
            f"{where} refused the connection.", f"check the network, and HF_ENDPOINT if you set it; {SAME_AGAIN}"
        )
    if any(isinstance(cause, ValueError) for cause in causes):
        return KitError(
            f"what answered for {where} is not the Hub: a page of the network you are in, perhaps its log-in.",
            f"open a web page in a browser and sign in to the network, {SAME_AGAIN}",
        )
    return KitError(f"the connection to {where} broke: {_first(error)}", f"check the network, {SAME_AGAIN}")


def proxy_for(address: str) -> str | None:
    """The proxy that the environment or the system names for the address, None where it is reached directly."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(address)
    proxy = getproxies().get(parts.scheme)
    return proxy if proxy and not proxy_bypass(parts.netloc) else None


def _explain_tls(where: str, text: str) -> KitError:
    if "not yet valid" in text or "expired" in text:
        return KitError(
            f"the certificate of {where} is not valid now.", f"check this machine's clock (date), {SAME_AGAIN}"
        )
    return KitError(
        f"the certificate of {where} was refused (TLS).",
        f"behind a company proxy, name its CA file: SSL_CERT_FILE=/path/to/ca.pem, {SAME_AGAIN}",
    )


def host(address: str) -> str:
    """The address without user, password and path."""
    parts = urlsplit(address)
    return f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname or address


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
