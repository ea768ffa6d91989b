"""`make download`: goes on where it stopped, proves every byte, and says what stopped it. Against the local Hub."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from kit.paths import ROOT
from tests.conftest import clean_environment, run_command
from tests.hub import (
    Account,
    Cut,
    Delay,
    IgnoreRange,
    MisbehavingHub,
    Portal,
    Redirect,
    Stall,
    Status,
    WrongBytes,
    big_file,
    serve_folder,
    tiny_model,
)
from tests.hub_kit import TOKEN, HubKit, hub_kit, section

BIG = 120_000_000
WEIGHTS = "model.safetensors"
LICENCES = ["LICENSE.txt", "USE_POLICY.md"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny model that runs, and one whose weights are large."""
    tiny = tiny_model(tmp_path_factory.mktemp("tiny"))
    for name in LICENCES:
        (tiny / name).write_text(f"the text of {name}\n")
    big = tiny_model(tmp_path_factory.mktemp("big"))
    (big / WEIGHTS).unlink()
    big_file(big / WEIGHTS, BIG)
    return tiny, big


@pytest.fixture(scope="module")
def served(folders):
    tiny, big = folders
    return {
        "tiny": serve_folder(tiny, "free/tiny"),
        "gated": serve_folder(tiny, "meta/gated"),
        "big": serve_folder(big, "free/big"),
    }


@pytest.fixture
def kit(tmp_path, served):
    sections = section("tiny", served["tiny"]) + section("gated", served["gated"], gated=True, licences=LICENCES)
    accounts = {TOKEN: Account("ada")}
    with MisbehavingHub(served.values(), gated={"meta/gated"}, accounts=accounts) as hub:
        yield hub_kit(tmp_path, hub, sections + section("big", served["big"]))


def whole(kit: HubKit, name: str, served) -> bool:
    """The bytes of every file, and no partial file left."""
    folder = kit.model(name)
    files = [file for file in served[name].files if (name, file.path) not in {("gated", "")}]
    same = all((folder / f.path).read_bytes() == (served[name].folder / f.path).read_bytes() for f in files)
    return same and not list(folder.glob(".*.partial"))


def sent(kit: HubKit, path: str = WEIGHTS) -> int:
    """Bytes of a file that the hub has sent, in all."""
    return sum(record.sent for record in kit.hub.asked(path, "GET"))


@pytest.mark.parametrize("name", [pytest.param("tiny", marks=pytest.mark.slow), "gated"])
@pytest.mark.container
def test_an_open_and_a_gated_model_arrive_whole_and_run_without_network_or_token(kit, served, name, tmp_path):
    done = kit.run("download", "--model", name, HF_TOKEN=TOKEN if name == "gated" else "")
    assert done.status == 0, done.err
    assert done.out == ""
    assert f"{name} is here" in done.err
    assert whole(kit, name, served)

    (tmp_path / "sitecustomize.py").write_text(
        "import socket\ndef refuse(*a): raise RuntimeError('network')\n"
        "socket.socket.connect = refuse\nsocket.getaddrinfo = refuse\n"
    )
    method = "pipeline" if name == "gated" else "manual"
    ran = kit.run("run", "--model", name, "--method", method, "--max-new-tokens", "3", PYTHONPATH=str(tmp_path))
    assert ran.status == 0, ran.err


def test_a_whole_model_asks_nothing_of_the_network(kit):
    assert kit.run("download", "--model", "tiny").status == 0
    before = len(kit.hub.requests)
    done = kit.run("download", "--model", "tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.status == 0, done.err
    assert "tiny was here already" in done.err
    assert len(kit.hub.requests) == before


def test_only_what_is_missing_or_altered_is_fetched(kit, served):
    assert kit.run("download", "--model", "tiny").status == 0
    (kit.model("tiny") / "config.json").unlink()
    altered = kit.model("tiny") / "tokenizer.json"
    altered.write_bytes(b"{" + altered.read_bytes()[:-1])
    before = len(kit.hub.asked(WEIGHTS, "GET"))
    done = kit.run("download", "--model", "tiny")
    assert done.status == 0, done.err
    assert whole(kit, "tiny", served)
    assert len(kit.hub.asked(WEIGHTS, "GET")) == before


@pytest.mark.container
def test_after_kill_9_at_60_percent_the_next_run_transfers_at_most_45(kit, served):
    order = kit.hub.misbehave(WEIGHTS, Stall(after=BIG * 60 // 100), times=1)
    command = [sys.executable, "-m", "scripts.download", "--model", "big"]
    first = subprocess.Popen(
        command, cwd=kit.folder, env=clean_environment() | kit.environment(), stderr=subprocess.DEVNULL
    )
    partial_size = 0
    for _ in range(600):
        partials = list(kit.model("big").glob(".*.partial"))
        partial_size = sum(path.stat().st_size for path in partials)
        if partial_size >= BIG * 60 // 100:
            break
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    order.stop()
    assert partial_size >= BIG * 60 // 100
    assert not (kit.model("big") / WEIGHTS).exists()

    done = kit.run("download", "--model", "big")
    assert done.status == 0, done.err
    _, second = kit.hub.asked(WEIGHTS, "GET")
    assert second.range == f"bytes={partial_size}-"
    assert second.sent <= BIG * 45 // 100
    assert whole(kit, "big", served)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_cut_connection_goes_on_by_itself(kit, served, reset):
    kit.hub.misbehave(WEIGHTS, Cut(after=BIG // 3, reset=reset), times=2)
    done = kit.run("download", "--model", "big")
    assert done.status == 0, done.err
    assert "Going on in" in done.err
    assert whole(kit, "big", served)
    assert sent(kit) < BIG * 11 // 10


def short_timeouts(kit: HubKit) -> None:
    """The same code with half a second where it has fifteen: a test must not wait them out."""
    path = kit.folder / "kit" / "net" / "get.py"
    text = path.read_text()
    assert "SOCKET_TIMEOUT = 10.0" in text
    path.write_text(text.replace("SOCKET_TIMEOUT = 10.0", "SOCKET_TIMEOUT = 0.5"))


def test_a_stalled_connection_is_noticed_and_goes_on(kit, served):
    short_timeouts(kit)
    kit.hub.misbehave(WEIGHTS, Stall(after=BIG // 2), times=1)
    done = kit.run("download", "--model", "big")
    assert done.status == 0, done.err
    assert "did not answer in time. Going on in 0 s from 50%" in done.err
    assert whole(kit, "big", served)


def test_a_stall_is_noticed_within_30_seconds():
    from kit.net import get, transfer

    assert get.SOCKET_TIMEOUT <= 10
    assert transfer.SLOW_WINDOW <= 30


@pytest.mark.parametrize(("status", "name"), [(429, "tiny"), (503, "gated")])
def test_retry_after_is_honoured_by_the_first_request_as_by_any_other(kit, served, status, name):
    kit.hub.misbehave("*", Status(status, retry_after=2), times=1)
    started = time.monotonic()
    done = kit.run("download", "--model", name, HF_TOKEN=TOKEN)
    assert done.status == 0, done.err
    assert time.monotonic() - started >= 2
    assert "Going on in 2 s" in done.err
    assert whole(kit, name, served)


def test_a_stall_before_the_first_byte_of_a_gated_model_goes_on(kit, served):
    short_timeouts(kit)
    kit.hub.misbehave("*", Delay(5), times=1)
    done = kit.run("download", "--model", "gated", HF_TOKEN=TOKEN)
    assert done.status == 0, done.err
    assert "did not answer in time. Going on in 0 s" in done.err
    assert whole(kit, "gated", served)


def test_a_download_asks_the_hub_for_nothing_but_the_model(kit):
    assert kit.run("download", "--model", "gated", HF_TOKEN=TOKEN).status == 0
    assert [record.path for record in kit.hub.requests if "/meta/gated" not in record.path] == []


def test_a_wait_that_is_too_long_is_said_instead(kit):
    kit.hub.misbehave(WEIGHTS, Status(429, retry_after=4000), method="GET")
    done = kit.run("download", "--model", "tiny")
    assert done.status == 1
    assert "next: wait 4000 seconds" in done.err


def test_wrong_bytes_are_thrown_away_and_fetched_once_more(kit, served):
    kit.hub.misbehave(WEIGHTS, WrongBytes(), times=1)
    done = kit.run("download", "--model", "tiny")
    assert done.status == 0, done.err
    assert "model.safetensors: wrong bytes, thrown away; fetching it once more" in done.err
    assert whole(kit, "tiny", served)


def test_wrong_bytes_twice_are_named_and_nothing_of_them_stays(kit):
    kit.hub.misbehave(WEIGHTS, WrongBytes())
    done = kit.run("download", "--model", "tiny")
    assert done.status == 1
    assert "error: model.safetensors came with other bytes than env/models.toml pins, twice" in done.err
    assert not (kit.model("tiny") / WEIGHTS).exists()
    assert not list(kit.model("tiny").glob(".*.partial"))


def test_a_server_without_ranges_starts_the_file_again(kit, served):
    kit.hub.misbehave(WEIGHTS, Cut(after=BIG // 3), times=1)
    kit.hub.misbehave(WEIGHTS, IgnoreRange())
    done = kit.run("download", "--model", "big")
    assert done.status == 0, done.err
    assert whole(kit, "big", served)


def test_a_redirect_to_another_host_gets_no_token(kit, served):
    with MisbehavingHub(served.values()) as files:
        kit.hub.misbehave("*/resolve/*", Redirect(files.url), method="GET")
        done = kit.run("download", "--model", "gated", HF_TOKEN=TOKEN)
        assert done.status == 0, done.err
        assert whole(kit, "gated", served)
        assert sent(kit) == 0
        fetched = files.asked(WEIGHTS, "GET")
        assert fetched
        assert {record.authorization for record in files.requests} == {None}
    assert {record.authorization for record in kit.hub.asked(WEIGHTS, "GET")} == {f"Bearer {TOKEN}"}


def test_no_token_goes_to_an_open_model(kit):
    assert kit.run("download", "--model", "tiny", HF_TOKEN=TOKEN).status == 0
    assert {record.authorization for record in kit.hub.requests} == {None}


@pytest.mark.container
def test_two_downloads_at_once_share_the_work(kit, served):
    done = []
    threads = [threading.Thread(target=lambda: done.append(kit.run("download", "--model", "big"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.status for each in done] == [0, 0], done
    assert sent(kit) == BIG
    assert whole(kit, "big", served)
    assert "another download of big is at work: waiting for it" in done[0].err + done[1].err


@pytest.mark.container
def test_a_disk_without_room_is_an_error_before_the_first_byte(kit):
    toml = kit.folder / "env" / "models.toml"
    toml.write_text(toml.read_text().replace(f"size = {BIG}", f"size = {10**15}"))
    done = kit.run("download", "--model", "big")
    assert done.status == 1
    assert "error: what is missing of big needs 1000000" in done.err
    assert "are free" in done.err
    assert kit.hub.requests == []


@pytest.fixture
def small_disk(kit):
    """models/ on a file system of 80 MB."""
    folder = kit.folder / "models"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root, on Linux")
    yield kit
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_on_the_way_is_said_and_the_download_goes_on_later(small_disk):
    path = small_disk.folder / "kit" / "files.py"
    path.write_text(path.read_text().replace("if need and free < need:", "if free < 0:"))
    done = small_disk.run("download", "--model", "big")
    assert done.status == 1
    assert "error: models/big/ could not be written: the disk is full" in done.err
    assert "next: free some room, then: the same command, which goes on where it stopped" in done.err


REFUSALS = {
    "no token": ({}, "", "meta/gated is gated, and no token was sent"),
    "not accepted": ({TOKEN: Account("ada", access="none")}, TOKEN, "has no access to meta/gated yet"),
    "rejected": ({}, TOKEN, "the Hub rejects the token (401)"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refused_download_says_why_and_makes_no_file(kit, case):
    accounts, token, says = REFUSALS[case]
    kit.hub.accounts = accounts
    done = kit.run("download", "--model", "gated", HF_TOKEN=token)
    assert done.status == 1
    assert says in done.err
    assert "next: " in done.err
    assert not [path for path in kit.model("gated").iterdir() if path.is_file()]


def test_a_file_that_the_commit_lacks_is_named_after_its_model(kit):
    kit.hub.misbehave("config.json", Status(404, error_code="EntryNotFound"))
    done = kit.run("download", "--model", "tiny")
    assert done.status == 1
    assert "free/tiny lacks a file that env/models.toml lists" in done.err


def test_a_page_of_the_network_in_place_of_the_hub(kit):
    kit.hub.misbehave("*", Portal())
    done = kit.run("download", "--model", "tiny")
    assert done.status == 1
    assert "is not the Hub: a page of the network you are in" in done.err


def test_another_size_than_the_pinned_one_is_named(kit):
    toml = kit.folder / "env" / "models.toml"
    toml.write_text(toml.read_text().replace(f"size = {BIG}", f"size = {BIG - 1}"))
    done = kit.run("download", "--model", "big")
    assert done.status == 1
    assert f"model.safetensors has {BIG} bytes at 127.0.0.1" in done.err


def test_licence_files_come_from_the_same_commit_and_are_proved(kit, served):
    assert kit.run("download", "--model", "gated", HF_TOKEN=TOKEN).status == 0
    for name in LICENCES:
        assert (kit.model("gated") / name).read_text() == f"the text of {name}\n"
    (kit.model("gated") / LICENCES[0]).unlink()
    kit.hub.misbehave(LICENCES[0], WrongBytes())
    done = kit.run("download", "--model", "gated", HF_TOKEN=TOKEN)
    assert done.status == 0
    assert "LICENSE.txt of gated is not the file that the Hub lists" in done.err
    assert not (kit.model("gated") / LICENCES[0]).exists()


@pytest.mark.parametrize("what", ["/api/models/*", LICENCES[1]])
def test_licence_files_wait_for_a_busy_hub_like_the_others(kit, served, what):
    assert kit.run("download", "--model", "gated", HF_TOKEN=TOKEN).status == 0
    (kit.model("gated") / LICENCES[1]).unlink()
    kit.hub.misbehave(what, Status(503, retry_after=1), times=1)
    done = kit.run("download", "--model", "gated", HF_TOKEN=TOKEN)
    assert done.status == 0, done.err
    assert "Trying again in 1 s." in done.err
    assert (kit.model("gated") / LICENCES[1]).exists()


def test_a_mirror_without_the_licence_does_not_fail_a_model_that_is_whole(kit, served):
    """It runs; it may only not be handed on, and that is said."""
    kit.hub.misbehave(LICENCES[1], Status(404, error_code="EntryNotFound"))
    for state in ("is here", "was here already"):
        done = kit.run("download", "--model", "gated", HF_TOKEN=TOKEN)
        assert done.status == 0, done.err
        assert f"gated {state}" in done.err
        assert "Without USE_POLICY.md gated runs, and may not be handed on." in done.err
    gone = kit.run("download", "--model", "gated", HF_ENDPOINT="http://127.0.0.1:9")
    assert gone.status == 0, gone.err
    assert "127.0.0.1:9 refused the connection" in gone.err


def test_a_disk_that_takes_a_part_of_a_write_is_no_whole_file(kit, served):
    """A limit of 51 MB inside a piece of the file: what is over it is neither written nor believed to be."""
    command = ["sh", "-c", f"ulimit -f 99999; exec {sys.executable} -m scripts.download --model big"]
    full = run_command(command, cwd=kit.folder, env=kit.environment())
    assert full.status == 1
    assert "could not be written: File too large" in full.err
    assert not (kit.model("big") / WEIGHTS).exists()
    done = kit.run("download", "--model", "big")
    assert done.status == 0, done.err
    assert whole(kit, "big", served)


def test_without_a_network_an_open_model_says_so_at_once(kit):
    started = time.monotonic()
    done = kit.run("download", "--model", "tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.status == 1
    assert "127.0.0.1:9 refused the connection" in done.err
    assert time.monotonic() - started < 15  # with all of its tries it took 31 s


def test_a_folder_in_the_place_of_a_file_is_named(kit):
    (kit.model("tiny") / WEIGHTS).mkdir(parents=True)
    done = kit.run("download", "--model", "tiny")
    assert done.status == 1
    assert "could not be written: Is a directory" in done.err
    assert WEIGHTS in done.err


def test_the_starter_is_made_and_not_downloaded(kit, tmp_path):
    from tests.conftest import copy_kit

    folder = copy_kit(tmp_path / "plain")
    (folder / "models").mkdir()
    shutil.copytree(ROOT / "models" / "starter", folder / "models" / "starter")
    done = run_command([sys.executable, "-m", "scripts.download", "--model", "starter"], cwd=folder)
    assert done.status == 0, done.err
    assert "starter was here already" in done.err


def test_elsewhere_than_on_a_terminal_progress_is_a_line_and_not_a_bar(kit):
    done = kit.run("download", "--model", "big")
    lines = [line for line in done.err.splitlines() if line.startswith("big ") and "GB" in line]
    assert lines
    assert all("\r" not in line and "#" not in line for line in lines)
