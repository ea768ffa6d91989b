"""One file over HTTP: through TLS, a company's CA and its proxy, over lines that trickle, past servers that wait."""

from __future__ import annotations

import datetime
import hashlib
import socket
import ssl
import threading
from email.utils import format_datetime

import pytest

from kit import hub_errors, network_errors, transfer
from kit.errors import KitError
from kit.transfer import Remote
from tests.hub import Account, MisbehavingHub, serve_folder, tiny_model
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
    assert waits == list(transfer.BACK_OFF) == sorted(transfer.BACK_OFF)


@pytest.mark.parametrize(("value", "seconds"), [("7", 7), ("", None), ("soon", None), ("-1", None)])
def test_retry_after_in_seconds(value, seconds):
    assert hub_errors.retry_after({"retry-after": value}) == seconds


def test_retry_after_as_a_date():
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=90)
    assert hub_errors.retry_after({"retry-after": format_datetime(moment, usegmt=True)}) == pytest.approx(90, abs=5)


@pytest.mark.parametrize("reason", ["certificate has expired", "certificate is not yet valid"])
def test_a_certificate_out_of_its_time_points_at_the_clock(reason):
    error = ssl.SSLCertVerificationError(1, f"[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {reason}")
    assert "clock" in network_errors.explain(error, "https://hub.invalid").hint


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
