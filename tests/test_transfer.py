"""One file over HTTP: through TLS, a company's CA and its proxy, over lines that trickle, past servers that wait."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import http.server
import socket
import ssl
import threading
from email.utils import format_datetime

import pytest

from kit.errors import KitError
from kit.hub import client as hub
from kit.hub import errors as hub_errors
from kit.net import errors as network_errors
from kit.net import get, transfer
from kit.net.get import Remote
from scripts.hints import words
from tests.hub import Account, Cut, MisbehavingHub, Redirect, Status, serve_folder, tiny_model
from tests.hub.relay import ConnectProxy, TlsFront, certificate
from tests.hub_kit import TOKEN, hub_kit, section


@pytest.fixture
def company(tmp_path):
    """A kit whose Hub is behind TLS with a CA of its own."""
    served = serve_folder(tiny_model(tmp_path / "tiny"), "meta/gated")
    cert, key = certificate(tmp_path)
    with MisbehavingHub([served], gated={"meta/gated"}, accounts={TOKEN: Account("ada")}) as hub:
        kit = hub_kit(tmp_path, hub, section("gated", served, gated=True))
        with TlsFront(hub.url, cert, key) as front:
            yield (
                kit,
                front,
                {"HF_ENDPOINT": front.url, "SSL_CERT_FILE": str(cert), "SSL_CERT_DIR": "", "HF_TOKEN": TOKEN},
            )


@pytest.mark.parametrize("verb", ["login", "download"])
def test_a_custom_ca_works_and_without_it_the_message_names_the_variable(company, verb):
    kit, _, environment = company
    refused = kit.run(verb, "--model", "gated", **{**environment, "SSL_CERT_FILE": ""})
    assert refused.status == 1
    assert "was refused (TLS)" in refused.err
    assert "SSL_CERT_FILE=/path/to/ca.pem" in refused.err
    assert kit.hub.requests == []
    done = kit.run(verb, "--model", "gated", **environment)
    assert done.status == 0, done.err


def test_a_proxy_is_gone_through_for_every_request(company):
    kit, front, environment = company
    with ConnectProxy() as proxy:
        through = {**environment, "https_proxy": proxy.url, "HTTPS_PROXY": proxy.url, "no_proxy": "", "NO_PROXY": ""}
        done = kit.run("download", "--model", "gated", **through)
        assert done.status == 0, done.err
        assert len(proxy.passed) >= 3
        assert set(proxy.passed) == {f"CONNECT localhost:{front.port}"}
        assert kit.hub.asked("model.safetensors", "GET")
        asked = len(proxy.passed)
        around = kit.run("login", "--model", "gated", **{**through, "no_proxy": "localhost", "NO_PROXY": "localhost"})
        assert around.status == 0, around.err
        assert len(proxy.passed) == asked


def test_all_proxy_counts_where_there_is_no_other(company):
    kit, front, environment = company
    with ConnectProxy() as proxy:
        through = {**environment, "ALL_PROXY": proxy.url, "no_proxy": "", "NO_PROXY": ""}
        for verb in ("login", "download"):
            done = kit.run(verb, "--model", "gated", **through)
            assert done.status == 0, done.err
        assert set(proxy.passed) == {f"CONNECT localhost:{front.port}"}
        assert len(proxy.passed) >= len(kit.hub.asked("*/resolve/*", "GET")) == 5


def test_no_network_at_all_is_said_in_words(tmp_path):
    """What the kernel of a machine without a network says, through urllib as through the Hub's client."""
    import urllib.error

    cause = OSError(101, "Network is unreachable")
    for error in (cause, urllib.error.URLError(cause)):
        said = network_errors.explain(error, "https://huggingface.co")
        assert (
            said.message == "there is no way to huggingface.co from here: this machine has no network, or not that one."
        )
        assert "connect it to a network" in words(said.hint)


def test_what_is_said_is_a_sentence_without_urllibs_wrapping(monkeypatch):
    import urllib.error

    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    cause = urllib.error.URLError(OSError("Tunnel connection failed: 407 Proxy Authentication Required"))
    said = network_errors.explain(cause, "https://huggingface.co").message
    assert said.endswith("through: Tunnel connection failed: 407 Proxy Authentication Required.")


@pytest.fixture
def trickle():
    """A server that sends one byte every 50 ms."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                try:
                    while not done.wait(0.05):
                        connection.sendall(b"x")
                except OSError:
                    continue

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/file"
    done.set()
    listener.close()


def test_a_line_that_trickles_counts_as_stalled(trickle, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "SLOW_WINDOW", 0.3)
    monkeypatch.setattr(transfer, "BACK_OFF", (0.0,))
    said: list[str] = []

    def give_up(seconds: float) -> None:
        raise KitError("enough")

    remote = Remote(trickle, "file", 1000, hashlib.sha256(b"x" * 1000).hexdigest())
    with pytest.raises(KitError, match="enough"):
        transfer.fetch(remote, tmp_path / "partial", on_trouble=said.append, sleep=give_up)
    assert "sends next to nothing" in said[0]
    assert (tmp_path / "partial").stat().st_size > 0


def test_back_off_grows_and_ends_with_what_happened(tmp_path):
    waits: list[float] = []
    remote = Remote("http://127.0.0.1:9/file", "file", 10, "00")
    with pytest.raises(KitError, match=r"127\.0\.0\.1:9 refused the connection"):
        transfer.fetch(remote, tmp_path / "partial", sleep=waits.append)
    assert waits == [1.0]


def test_once_bytes_have_come_back_off_grows_to_half_a_minute(tmp_path):
    """A network that goes away in the middle mostly comes back."""
    content = b"x" * 1_000_000
    served = tmp_path / "served"
    served.mkdir()
    (served / "config.json").write_text("{}")
    (served / "file.bin").write_bytes(content)
    waits: list[float] = []
    with MisbehavingHub([serve_folder(served, "free/x")]) as hub:
        hub.misbehave("file.bin", Cut(after=500_000), times=1)
        hub.misbehave("file.bin", Cut(after=0))
        remote = Remote(f"{hub.url}/free/x/resolve/main/file.bin", "file.bin", len(content), "00")
        with pytest.raises(KitError, match="closed the connection early"):
            transfer.fetch(remote, tmp_path / "partial", sleep=waits.append)
    assert waits == list(transfer.BACK_OFF) == sorted(transfer.BACK_OFF)
    assert sum(waits) >= 30


def test_a_refused_certificate_is_not_asked_again(company, tmp_path):
    _, front, _ = company
    waits: list[float] = []
    with pytest.raises(KitError, match="was refused"):
        transfer.fetch(Remote(f"{front.url}/x", "x", 1, "00"), tmp_path / "partial", sleep=waits.append)
    assert waits == []


@pytest.mark.parametrize("location", ["http://localhost:1/x", "file:///etc/passwd", "ftp://localhost/x"])
def test_a_redirect_that_leaves_https_is_refused(location):
    with pytest.raises(KitError, match="which is not safe"):
        get.redirected("https://huggingface.co/x", location)


@pytest.mark.parametrize(
    ("address", "takes"),
    [
        ("https://huggingface.co/other", True),
        ("http://huggingface.co/x", False),
        ("https://huggingface.co:8443/x", False),
        ("https://cas-bridge.xethub.hf.co/x", False),
    ],
)
def test_the_token_stays_with_its_origin(address, takes):
    remote = Remote("https://huggingface.co/x", "x", 1, "00", TOKEN)
    assert get.takes_token(remote, address) == takes


def test_a_token_in_the_clear_passes_no_proxy(monkeypatch):
    for name in ("http_proxy", "no_proxy", "HTTP_PROXY", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "ALL_PROXY"):
        assert hub.is_trusted("http://127.0.0.1:8080")
        monkeypatch.setenv(name, "http://proxy.invalid:3128")
        assert not hub.is_trusted("http://127.0.0.1:8080")
        monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert hub.is_trusted("http://127.0.0.1:8080")


def test_a_file_host_that_refuses_the_link_gets_a_new_link_once(tmp_path):
    served = serve_folder(tiny_model(tmp_path / "tiny"), "free/x")
    said: list[str] = []
    accounts = {TOKEN: Account("ada")}
    with MisbehavingHub([served]) as store, MisbehavingHub([served], accounts=accounts) as main:
        main.misbehave("config.json", Redirect(store.url))
        store.misbehave("config.json", Status(403))
        remote = Remote(
            f"{main.url}/free/x/resolve/main/config.json", "config.json", 10, "00", TOKEN, hub_errors.explain_refusal
        )
        with pytest.raises(KitError, match=r"refused the link to one \(403\)") as raised:
            transfer.fetch(remote, tmp_path / "partial", on_trouble=said.append, sleep=lambda seconds: None)
        assert len(main.asked("config.json")) == len(store.asked("config.json")) == 2
        assert "clock" in words(raised.value.hint)
        assert {record.authorization for record in store.asked("config.json")} == {None}


@pytest.mark.parametrize(
    "proxy",
    [
        "http://ada:secret@proxy.invalid:3128",
        "ada:secret@proxy.invalid:3128",
        "http://secret@proxy.invalid:3128/",
        "http://ada:se/cr@et@proxy.invalid:3128",
    ],
)
def test_no_form_of_a_proxy_shows_its_password(proxy):
    for shown in (network_errors.host(proxy), network_errors.without_user(proxy)):
        assert "secret" not in shown
        assert "cr@et" not in shown
        assert "proxy.invalid:3128" in shown


def test_a_bare_401_or_403_without_a_token_does_not_blame_one():
    for status in (401, 403):
        refusal = network_errors.Refusal(
            status, {}, "https://huggingface.co/x", "https://huggingface.co", token_sent=False
        )
        assert "the token" not in hub_errors.explain_refusal(refusal).message


@pytest.mark.parametrize(("value", "seconds"), [("7", 7), ("", None), ("soon", None), ("-1", None)])
def test_retry_after_in_seconds(value, seconds):
    assert network_errors.retry_after({"retry-after": value}) == seconds


def test_retry_after_as_a_date():
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=90)
    assert network_errors.retry_after({"retry-after": format_datetime(moment, usegmt=True)}) == pytest.approx(90, abs=5)


@pytest.mark.parametrize("reason", ["certificate has expired", "certificate is not yet valid"])
def test_a_certificate_out_of_its_time_points_at_the_clock(reason):
    error = ssl.SSLCertVerificationError(1, f"[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {reason}")
    assert "clock" in words(network_errors.explain(error, "https://hub.invalid").hint)


def test_the_file_is_hashed_from_its_beginning_when_it_goes_on(tmp_path):
    """A partial file that another program damaged does not pass."""
    content = bytes(range(256)) * 8000
    served = tmp_path / "served"
    served.mkdir()
    (served / "config.json").write_text("{}")
    (served / "file.bin").write_bytes(content)
    with MisbehavingHub([serve_folder(served, "free/x")]) as hub:
        partial = tmp_path / "partial"
        partial.write_bytes(b"damaged" + content[7:1_000_000])
        said: list[str] = []
        url = f"{hub.url}/free/x/resolve/main/file.bin"
        remote = Remote(url, "file.bin", len(content), hashlib.sha256(content).hexdigest())
        transfer.fetch(remote, partial, on_trouble=said.append)
        assert partial.read_bytes() == content
        assert "wrong bytes, thrown away" in said[0]


def test_a_line_that_breaks_again_and_again_still_brings_the_file(tmp_path):
    """More often than there are buffers: none may be lost where a connection ends."""
    content = bytes(range(256)) * 8000
    served = tmp_path / "served"
    served.mkdir()
    (served / "config.json").write_text("{}")
    (served / "file.bin").write_bytes(content)
    said: list[str] = []
    with MisbehavingHub([serve_folder(served, "free/x")]) as hub:
        hub.misbehave("file.bin", Cut(after=100_000), times=2 * transfer.BUFFERS)
        url = f"{hub.url}/free/x/resolve/main/file.bin"
        remote = Remote(url, "file.bin", len(content), hashlib.sha256(content).hexdigest())
        transfer.fetch(remote, tmp_path / "partial", on_trouble=said.append, sleep=lambda seconds: None)
    assert (tmp_path / "partial").read_bytes() == content
    assert len(said) == 2 * transfer.BUFFERS


def test_how_long_to_wait_is_read_from_ratelimit_too():
    assert network_errors.retry_after({"RateLimit": '"api";r=0;t=600'}) == 600
    assert network_errors.retry_after({"RateLimit": '"api";r=3;t=600'}) is None
    assert network_errors.retry_after({"RateLimit": '"api";r=0;t=600', "Retry-After": "8"}) == 8


@pytest.mark.parametrize(("value", "seconds"), [("120", 120), ("3", 10), ("much", 10), ("", 10)])
def test_the_time_out_is_as_long_as_the_user_says(monkeypatch, value, seconds):
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", value)
    assert get.timeout() == seconds


class Packing(http.server.BaseHTTPRequestHandler):
    """A proxy that packs whatever passes, though it was asked not to."""

    content = b"{}" + bytes(100_000)
    coding = "gzip"

    def do_GET(self) -> None:
        packed = gzip.compress(self.content)
        self.send_response(200)
        self.send_header("Content-Encoding", self.coding)
        self.send_header("Content-Length", str(len(packed)))
        self.end_headers()
        self.wfile.write(packed)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def packing():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Packing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        digest = hashlib.sha256(Packing.content).hexdigest()
        yield Remote(f"http://127.0.0.1:{server.server_port}/x", "x", len(Packing.content), digest)
        server.shutdown()


@pytest.mark.parametrize("there", [b"", b"{}000"])
def test_what_a_proxy_packs_is_unpacked(packing, tmp_path, there):
    (tmp_path / "x").write_bytes(there)
    transfer.fetch(packing, tmp_path / "x", lambda have: None, lambda text: None, lambda seconds: None)
    assert (tmp_path / "x").read_bytes() == Packing.content


def test_a_way_of_packing_that_is_not_known_is_said(packing, tmp_path, monkeypatch):
    monkeypatch.setattr(Packing, "coding", "br")
    with pytest.raises(KitError, match=r"packs what it sends \(br\)"):
        transfer.fetch(packing, tmp_path / "x", lambda have: None, lambda text: None)


def test_a_python_without_certificates_takes_the_systems_or_says_so(monkeypatch, tmp_path):
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nowhere = ssl.DefaultVerifyPaths(None, None, "", "", "", "")
    monkeypatch.setattr(ssl, "create_default_context", lambda: bare)
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: nowhere)
    for name in network_errors.CERTIFICATES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(network_errors, "SYSTEM_CERTIFICATES", ())
    with pytest.raises(KitError, match="this Python has no certificates"):
        network_errors.default_context()
    monkeypatch.setattr(network_errors, "SYSTEM_CERTIFICATES", (str(certificate(tmp_path)[0]),))
    assert network_errors.default_context().cert_store_stats()["x509"] == 1
