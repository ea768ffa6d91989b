"""One GET for a file, from a byte on: redirects, the token that stays with its host, and what a refusal means."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

from kit.errors import KitError
from kit.net import errors as network_errors
from kit.net.errors import Refusal

# Seconds without a byte: the connection is stalled. As often as a download says something where there is no terminal.
SOCKET_TIMEOUT = 10.0
# The Hub's client takes this name too: for a network on which the first byte takes longer.
TIMEOUT_NAME = "HF_HUB_DOWNLOAD_TIMEOUT"
MAX_REDIRECTS = 5


@dataclass(frozen=True)
class Remote:
    """Where a file is and what it must be. `token` goes to the url's own host and to no other.

    `pinned_by` says what `size` and `sha256` come from.
    """

    url: str
    name: str
    size: int
    sha256: str
    token: str | None = field(default=None, repr=False)
    explain: Callable[[Refusal], KitError] = network_errors.explain_refusal
    pinned_by: str = "env/models.toml"


class Broken(Exception):
    """This try ended early; others may go on.

    `wait` in seconds where the server named it, `tries` how many are worth it where not a byte has come yet (None: as
    many as ever).
    """

    def __init__(self, error: KitError, wait: float | None = None, tries: int | None = None) -> None:
        super().__init__(error.message)
        self.error, self.wait, self.tries = error, wait, tries


def timeout(default: float = SOCKET_TIMEOUT) -> float:
    """Seconds without a byte before a connection is given up: the default, or more where the user says so."""
    try:
        return max(default, float(os.environ.get(TIMEOUT_NAME, "")))
    except ValueError:
        return default


def open_at(remote: Remote, have: int, method: str = "GET") -> http.client.HTTPResponse:
    """The response to GET or HEAD from byte `have` on. Redirects are followed here: the token stays with its host."""
    address = remote.url
    for _ in range(MAX_REDIRECTS):
        headers = {"User-Agent": "base-model-kit", "Accept-Encoding": "identity"}
        request = urllib.request.Request(address, headers=headers, method=method)
        if have:
            request.add_header("Range", f"bytes={have}-")
        if takes_token(remote, address):
            request.add_unredirected_header("Authorization", f"Bearer {remote.token}")
        try:
            response: http.client.HTTPResponse = _opener(address).open(request, timeout=timeout())
            return response
        except urllib.error.HTTPError as error:
            if error.code not in (301, 302, 303, 307, 308) or not error.headers.get("Location"):
                raise
            address = redirected(address, error.headers["Location"])
    raise Broken(KitError(f"{network_errors.host(remote.url)} redirects in a circle.", "try again later"))


def takes_token(remote: Remote, address: str) -> bool:
    """True for the origin that the token is for: scheme, host and port."""
    asked, origin = urlsplit(address), urlsplit(remote.url)
    return bool(remote.token) and (asked.scheme, asked.netloc) == (origin.scheme, origin.netloc)


def redirected(address: str, location: str) -> str:
    """Where a redirect leads. Raises KitError for one that leaves https, or HTTP altogether."""
    target = urljoin(address, location)
    scheme = urlsplit(target).scheme
    if scheme != "https" and (scheme != "http" or urlsplit(address).scheme == "https"):
        raise KitError(
            f"{network_errors.host(address)} redirects from {urlsplit(address).scheme} to {scheme}, which is not safe.",
            "try another network; if HF_ENDPOINT names a mirror, tell its keeper",
        )
    return target


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _opener(address: str) -> urllib.request.OpenerDirector:
    """Proxies as the environment and the system say; certificates as the Hub client checks them."""
    proxies = urllib.request.ProxyHandler(network_errors.proxies())
    if urlsplit(address).scheme != "https":
        return urllib.request.build_opener(proxies, _NoRedirect())
    try:
        import httpx2

        context = httpx2.create_ssl_context()
    except ImportError:  # a set-up from a bundle, before there is any package
        context = network_errors.default_context()
    return urllib.request.build_opener(proxies, urllib.request.HTTPSHandler(context=context), _NoRedirect())


def refused(remote: Remote, error: urllib.error.HTTPError) -> Exception:
    """A Broken for a status that passes by itself, else the KitError."""
    address = error.geturl()
    refusal = Refusal(error.code, dict(error.headers), address, remote.url, takes_token(remote, address))
    known = remote.explain(refusal)
    if refusal.is_refused_link:
        return Broken(known, tries=1)
    if error.code in (408, 416, 429) or error.code >= 500:
        return Broken(known, refusal.wait())
    return known


def coding(response: http.client.HTTPResponse) -> str:
    """How something on the way has packed the content, though it was asked not to: "" for not at all."""
    name = response.headers.get("Content-Encoding", "").strip().lower()
    return "" if name == "identity" else name


def check_kind(remote: Remote, response: http.client.HTTPResponse, have: int) -> None:
    """Raises KitError for something else than the file: a network's log-in page, or another size than is pinned."""
    if response.headers.get_content_type() == "text/html":
        raise network_errors.explain(ValueError("a web page"), remote.url)
    length = None if coding(response) else response.headers.get("Content-Length")
    total = None if length is None else int(length) + (have if response.status == 206 else 0)
    if total is not None and total != remote.size:
        host = network_errors.host(remote.url)
        raise KitError(
            f"{remote.name} has {total} bytes at {host}, and {remote.size} in {remote.pinned_by}.",
            "compare the commit there; if HF_ENDPOINT names a mirror, tell its keeper",
        )
