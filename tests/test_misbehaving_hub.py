"""The misbehaving hub does what it is told: what other tests build on, and what the real client makes of it."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from contextlib import nullcontext
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from tests.hub import (
    Account,
    Cut,
    Delay,
    IgnoreRange,
    MisbehavingHub,
    OtherDate,
    Portal,
    Redirect,
    Stall,
    Status,
    WrongBytes,
    big_file,
    serve_folder,
)
from tests.hub.raw import ask, dial, past_proxies, wait_until

REPO, NAME, SIZE = "org/name", "model.safetensors", 12_000_000
FILE = f"/{REPO}/resolve/main/{NAME}"


@pytest.fixture(autouse=True)
def _past_proxies(monkeypatch):
    past_proxies(monkeypatch)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    big_file(folder / NAME, SIZE)
    return serve_folder(folder, REPO)


@pytest.fixture
def content(model):
    return (model.folder / NAME).read_bytes()


@pytest.fixture
def hub(model):
    with MisbehavingHub([model]) as hub:
        yield hub


def download(hub, tmp_path, token: str | bool = False) -> bytes:
    return Path(HfApi(hub.url).hf_hub_download(REPO, NAME, token=token, cache_dir=tmp_path)).read_bytes()


@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_ends_the_connection_in_the_body(hub, content, reset):
    hub.misbehave(NAME, Cut(after=1000, reset=reset), times=1)
    with dial(hub.url, f"GET {FILE} HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        assert read(connection, 1000) == content[:1000]
        with pytest.raises(ConnectionResetError) if reset else nullcontext():
            assert connection.recv(1) == b""
    assert ask(hub.url, FILE).body == content
    assert hub.asked(NAME)[0].sent == 1000


def test_the_client_goes_on_after_a_cut_and_survives_an_ignored_range(hub, content, tmp_path):
    hub.misbehave(NAME, Cut(after=11_000_000), times=1)
    ignored = hub.misbehave(NAME, IgnoreRange())
    assert download(hub, tmp_path) == content
    # What it had of a piece of 10 MiB is lost.
    assert [record.range for record in hub.asked(NAME, "GET")] == [None, "bytes=10485760-"]
    assert (hub.asked(NAME, "GET")[1].status, ignored.count) == (200, 2)


@pytest.mark.parametrize("after", [0, 1000])
def test_a_stall_lasts_until_it_is_stopped(hub, content, after):
    stall = hub.misbehave(NAME, Stall(after))
    started = time.monotonic()
    threading.Timer(0.3, stall.stop).start()
    assert ask(hub.url, FILE).body == content
    assert time.monotonic() - started >= 0.3


def test_a_stall_ends_with_its_client_or_the_hub(hub):
    hub.misbehave(NAME, Stall(1000))
    with dial(hub.url, f"GET {FILE} HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        read(connection, 1000)
        assert not hub.asked(NAME)[0].done
    wait_until(lambda: hub.asked(NAME)[0].done)
    with dial(hub.url, f"GET {FILE} HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        read(connection, 1000)
        hub.close()
        wait_until(lambda: hub.asked(NAME)[1].done)
    assert [record.sent for record in hub.asked(NAME)] == [1000, 1000]


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_a_status_in_place_of_the_answer(hub, status):
    hub.misbehave("*", Status(status, retry_after=7, error_code="X", message="no"), times=2)
    for path in (FILE, "/api/whoami-v2"):
        reply = ask(hub.url, path)
        assert (reply.status, reply.headers["Retry-After"]) == (status, "7")
        assert (reply.headers["X-Error-Code"], reply.headers["X-Error-Message"]) == ("X", "no")
    assert ask(hub.url, FILE).status == 200


def test_wrong_bytes_are_of_the_right_size_and_the_client_keeps_them(hub, content, tmp_path):
    hub.misbehave(NAME, WrongBytes())
    got = download(hub, tmp_path)
    assert len(got) == SIZE
    assert not any(left == right for left, right in zip(got[:5000], content, strict=False))
    assert ask(hub.url, FILE, Range="bytes=5-9").body == got[5:10]


def test_a_redirect_leads_to_another_host_without_the_token(model, content, tmp_path):
    accounts = {"hf_ada": Account("ada")}
    with MisbehavingHub([model], {REPO}, accounts) as gated, MisbehavingHub([model]) as store:
        gated.misbehave(NAME, Redirect(store.url))
        assert download(gated, tmp_path, "hf_ada") == content
        assert {record.authorization for record in gated.requests} == {"Bearer hf_ada"}
        assert [(record.method, record.authorization) for record in store.requests] == [("GET", None)]
        assert ask(gated.url, FILE).status == 401


def test_a_date_of_another_time(hub):
    hub.misbehave("*", OtherDate(-86400))
    hub.misbehave(NAME, Status(500))
    date = parsedate_to_datetime(ask(hub.url, FILE).headers["Date"])
    assert abs(date.timestamp() - time.time() + 86400) < 5


def test_a_portal_answers_everything_with_a_page(hub):
    hub.misbehave("*", Portal())
    for path in (FILE, "/api/whoami-v2", "/anything"):
        reply = ask(hub.url, path)
        assert (reply.status, reply.headers["Content-Type"], reply.body[:9]) == (
            200,
            "text/html; charset=utf-8",
            b"<!doctype",
        )
    with pytest.raises(ValueError, match="Expecting value"):
        HfApi(hub.url).whoami("hf_ada")


def test_a_delay_before_the_answer_holds_up_no_other(hub):
    hub.misbehave(NAME, Delay(0.3), method="HEAD")
    started = time.monotonic()
    assert ask(hub.url, FILE).status == 200
    assert time.monotonic() - started < 0.3
    assert ask(hub.url, FILE, "HEAD").status == 200
    assert time.monotonic() - started >= 0.3


def test_a_fault_meets_what_it_names_as_often_as_it_says(hub):
    thrice = hub.misbehave(f"/{REPO}/resolve/*", Status(500), times=3, method="GET")
    assert [ask(hub.url, FILE).status for _ in range(4)] == [500, 500, 500, 200]
    assert ask(hub.url, f"/api/models/{REPO}").status == 200
    assert thrice.count == 3
    hub.misbehave(NAME, Cut(10), times=1)
    assert ask(hub.url, FILE, "HEAD").status == 200  # has no body that could be cut, and uses nothing up
    with pytest.raises(http.client.IncompleteRead):
        ask(hub.url, FILE)
    hub.misbehave("*", Status(500))
    hub.behave()
    assert ask(hub.url, FILE).status == 200


def test_every_request_is_on_record(hub):
    ask(hub.url, FILE, Range="bytes=0-9", Authorization="Bearer hf_x")
    hub.accounts["hf_x"] = Account("xi")
    ask(hub.url, FILE, Range="bytes=0-9", Authorization="Bearer hf_x")
    ask(hub.url, FILE, "POST", Authorization="Bearer hf_x")
    wait_until(lambda: [record.done for record in hub.requests] == [True] * 3)
    seen = [(record.method, record.status, record.range, record.sent) for record in hub.requests]
    assert seen[1:] == [("GET", 206, "bytes=0-9", 10), ("POST", 405, None, 18)]
    assert seen[0][:3] == ("GET", 401, "bytes=0-9")
    assert {record.authorization for record in hub.requests} == {"Bearer hf_x"}


def read(connection: socket.socket, size: int) -> bytes:
    """The first bytes of the body."""
    got = b""
    while len(got.partition(b"\r\n\r\n")[2]) < size:
        got += connection.recv(1 << 16)
    return got.partition(b"\r\n\r\n")[2]
