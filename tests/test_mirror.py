"""make mirror as its clients meet it: the kit's own set-up, hf, pip and uv, and those that mean no good."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kit.net.address import of_this_machine
from scripts.mirror import another
from tests.bundle_kit import ADAPTER, LICENCES, MODEL_FILES, BundleKit, bundle_kit, sha256, tuned_model
from tests.conftest import clean_environment, run_command
from tests.hub.raw import ask, dial, wait_until

BIN = Path(sys.executable).parent
REVISION = {name: sha256(name.encode())[:40] for name in ("tiny", "guarded", "starter")}
PATIENCE = 20.0  # seconds


@dataclass
class Running:
    """A mirror in a process of its own. `said` is its stdout so far: the lines for attendees."""

    room: BundleKit
    process: subprocess.Popen[str]
    url: str
    said: list[str]

    def stop(self, how: int = signal.SIGINT) -> str:
        """Ends it; what it wrote to stderr."""
        self.process.send_signal(how)
        return self.process.communicate(timeout=PATIENCE)[1]


def start(room: BundleKit, *words: str, lines: int = 2, before: str = ":", **env: str) -> Running:
    """`before` is what the shell does first."""
    command = [sys.executable, "-m", "scripts.mirror", "--bundle", str(room.folder), "--port", "0", *words]
    process = subprocess.Popen(
        ["sh", "-c", f'{before}; exec "$@"', "sh", *command],
        cwd=room.kit,
        env=clean_environment() | {"KIT_DOTENV": "", "PYTHONUNBUFFERED": "1"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stdout
    said = [process.stdout.readline() for _ in range(lines)]
    found = re.search(r"BUNDLE=(http://\S+)", said[0])
    assert found, process.communicate()
    return Running(room, process, found[1], said)


@pytest.fixture
def room(tmp_path) -> BundleKit:
    return bundle_kit(tmp_path)


@pytest.fixture
def running(room) -> Iterator[Running]:
    mirror = start(room)
    yield mirror
    mirror.stop()


def as_typed(line: str, folder: Path, **env: str):
    """A line that the mirror printed for attendees, typed by one."""
    typed = line.partition(":")[2].strip()
    home = {"HOME": str(folder), "PATH": f"{BIN}:/usr/bin:/bin", "NO_PROXY": "*"}
    return run_command(["sh", "-c", typed], cwd=folder, env=home | env)


# --- The two lines ---------------------------------------------------------------------------------------------------


@pytest.mark.container
def test_the_line_for_a_clone_sets_it_up(running):
    room = running.room
    assert running.said[0] == f"with a clone:  make setup BUNDLE={running.url} SHA256={room.digest}\n"
    done = room.unbundle(running.url, room.digest)
    assert done.status == 0, done.err
    assert len(room.installed()) == 5
    assert (room.kit / "models/tiny/model.safetensors").read_bytes() == MODEL_FILES["model.safetensors"]
    # Only what this machine takes was asked for.
    assert "(0 MB)" in room.unbundle(running.url, room.digest).err


def test_the_line_for_hf_downloads_with_the_stock_client_and_sends_no_token(running, tmp_path):
    home = tmp_path / "attendee"
    home.mkdir()
    done = as_typed(running.said[1], home, HF_TOKEN="hf_" + "x" * 20)
    assert done.status == 0, done.err
    for path, content in MODEL_FILES.items():
        assert (home / "tiny" / path).read_bytes() == content
    # What this mirror has of the commit stays out of the client's cache, where it would count as all of it.
    assert not [path for path in (home / ".cache").rglob("*") if "trees" in path.parts or "snapshots" in path.parts]


def test_a_tuned_model_is_served_under_the_kits_own_name(room, tmp_path):
    tuned_model(room.folder / "models/mine")
    room.seal()
    mirror = start(room, lines=3)
    try:
        line = next(line for line in mirror.said if "base-model-kit/mine" in line)
        done = as_typed(line, tmp_path)
        assert done.status == 0, done.err
        assert (tmp_path / "mine" / "adapter.gguf").read_bytes() == ADAPTER["adapter.gguf"]
        assert (tmp_path / "mine" / "tune.json").is_file()
    finally:
        mirror.stop()


@pytest.mark.skipif("KIT_TESTS_ELSEWHERE" in os.environ, reason="uv cannot be told that it is on another machine")
def test_pip_and_uv_install_from_the_index(running, tmp_path):
    index = ["--index-url", f"{running.url}/simple/"]
    alone = {"PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": "", "UV_FIND_LINKS": "", "NO_PROXY": "*"}
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-cache-dir", "--target", str(tmp_path / "pip")]
    uv = [str(BIN / "uv"), "pip", "install", "-q", "--no-cache", "--target", str(tmp_path / "uv")]
    for command in (pip, uv):
        done = run_command([*command, *index, "alpha", "beta==1.0"], cwd=tmp_path, env=alone)
        assert done.status == 0, done.err
    assert (tmp_path / "pip" / "beta.py").read_bytes() == (tmp_path / "uv" / "beta.py").read_bytes()


def test_the_index_has_each_wheels_sha256(running):
    assert b'href="alpha/"' in ask(running.url, "/simple/").body
    page = ask(running.url, "/simple/alpha/").body.decode()
    (wheel,) = (running.room.folder / "wheels").glob("alpha-*")
    assert f"{wheel.name}#sha256={sha256(wheel.read_bytes())}" in page
    assert ask(running.url, "/simple").headers["Location"] == "/simple/"
    assert ask(running.url, "/simple/alpha").headers["Location"] == "/simple/alpha/"
    assert ask(running.url, "/simple/nothing/").status == 404


def test_an_interrupted_set_up_goes_on_where_it_stopped(running, room):
    half = MODEL_FILES["model.safetensors"][:3000]
    place = room.kit / "models" / "tiny"
    place.mkdir(parents=True)
    digest = sha256(MODEL_FILES["model.safetensors"])
    (place / f".model.safetensors.{digest[:12]}.partial").write_bytes(half)
    assert room.unbundle(running.url).status == 0
    assert (place / "model.safetensors").read_bytes() == MODEL_FILES["model.safetensors"]


# --- Gated models ----------------------------------------------------------------------------------------------------


@pytest.fixture
def gated(tmp_path) -> BundleKit:
    return bundle_kit(tmp_path, "tiny", "guarded")


def test_a_gated_model_is_kept_back_and_the_duty_is_shown(gated):
    mirror = start(gated)
    try:
        for path in (
            "/models/guarded/model.safetensors",
            "/models/guarded/LICENSE.txt",
            f"/tiny/guarded/resolve/{REVISION['guarded']}/model.safetensors",
            "/api/models/tiny/guarded/revision/main",
            "/models/%67uarded/model.safetensors",
        ):
            reply = ask(mirror.url, path)
            assert (reply.status, reply.headers["X-Error-Code"]) == (403, "GatedRepo"), path
            assert b"weights" not in reply.body
        done = gated.unbundle(mirror.url, gated.digest)
        assert done.status == 0, done.err
        assert "does not hand models/guarded/config.json out: its model is gated" in done.err
        assert not (gated.kit / "models" / "guarded" / "config.json").exists()
        assert (gated.kit / "models" / "tiny" / "config.json").exists()
    finally:
        said = mirror.stop()
    assert "guarded is gated and is not handed out; ALLOW_GATED=1 does, and then its licence binds you" in said
    assert "Built with Llama" in said


def test_with_allow_gated_it_is_handed_out_with_its_licence_and_the_duty_is_shown(gated, tmp_path):
    mirror = start(gated, "--allow-gated", lines=3)
    try:
        done = gated.unbundle(mirror.url, gated.digest)
        assert done.status == 0, done.err
        there = {path.name for path in (gated.kit / "models" / "guarded").iterdir()}
        assert {*MODEL_FILES, *LICENCES, "Notice"} <= there
        home = tmp_path / "attendee"
        home.mkdir()
        line = next(line for line in mirror.said if "tiny/guarded" in line)
        assert as_typed(line, home).status == 0
        assert {*MODEL_FILES, *LICENCES, "Notice"} <= {path.name for path in (home / "guarded").iterdir()}
    finally:
        said = mirror.stop()
    assert "guarded is gated (Llama 3.2 Community License) and is handed out by you" in said
    assert "Built with Llama" in said


@pytest.mark.parametrize("name", [*LICENCES, "Notice"])
def test_allow_gated_without_the_licence_in_the_bundle_is_refused(gated, name):
    (gated.folder / "models" / "guarded" / name).unlink()
    gated.seal()
    done = run_command(
        [sys.executable, "-m", "scripts.mirror", "--bundle", str(gated.folder), "--allow-gated"], cwd=gated.kit
    )
    assert done.status == 1
    assert f"models/guarded/{name}" in done.err
    assert "licence" in done.err


# --- Those that mean no good ------------------------------------------------------------------------------------------


def test_nothing_but_what_is_listed_can_be_had(running):
    (running.room.folder / "secret.txt").write_text("not listed\n")
    (running.room.folder.parent / "outside.txt").write_text("outside\n")
    for path in (
        "/secret.txt",
        "/../outside.txt",
        "/%2e%2e/outside.txt",
        "/wheels/../secret.txt",
        "/models/tiny/../../secret.txt",
        "//etc/passwd",
        "/etc/passwd",
        "/wheels/",
        "/models/tiny",
        "/simple/../secret.txt",
        "/simple/%2e%2e/",
        "/kit/%00",
    ):
        reply = ask(running.url, path)
        assert reply.status in (400, 404), path
        assert b"listed" not in reply.body
        assert b"outside" not in reply.body


def test_a_file_that_becomes_a_link_meanwhile_is_not_followed(running):
    path = running.room.folder / "README"
    content = path.read_bytes()
    elsewhere = running.room.folder.parent / "elsewhere"
    elsewhere.write_bytes(b"x" * len(content))
    path.unlink()
    path.symlink_to(elsewhere)
    assert ask(running.url, "/README").status == 500


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_writes_are_refused(running, method):
    before = sorted(path.name for path in running.room.folder.rglob("*"))
    assert ask(running.url, "/wheels/new.whl", method, b"x").status == 405
    assert sorted(path.name for path in running.room.folder.rglob("*")) == before


def test_no_token_or_query_is_logged_and_whole_large_files_are(room):
    weights = room.folder / "kit" / "large.bin"
    weights.write_bytes(bytes(2_000_000))
    room.seal()
    mirror = start(room)
    token = "hf_" + "SECRET" * 5
    ask(mirror.url, f"/kit/large.bin?token={token}", Authorization=f"Bearer {token}")
    ask(mirror.url, f"/{token}")
    said = mirror.stop()
    assert "SECRET" not in said
    assert "127.0.0.1 '/kit/large.bin' 2.0 MB" in said
    assert "stopped: handed out 1 files" in said


def test_a_client_that_is_killed_and_one_that_stalls_do_not_slow_the_others(room):
    large = room.folder / "kit" / "large.bin"
    large.write_bytes(bytes(60_000_000))
    room.seal()
    mirror = start(room)
    try:
        stalled = dial(mirror.url, "GET /kit/large.bin HTTP/1.1\r\nHost: x\r\n\r\n")
        killed = dial(mirror.url, "GET /kit/large.bin HTTP/1.1\r\nHost: x\r\n\r\n")
        killed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        killed.close()
        started = time.monotonic()
        for _ in range(5):
            assert len(ask(mirror.url, "/kit/large.bin").body) == 60_000_000
        assert time.monotonic() - started < 5
        stalled.close()
    finally:
        said = mirror.stop()
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("before", "allowed"), [("ulimit -S -n 256", {b"200"}), ("ulimit -n 128", {b"200", b"503"})], ids=["soft", "hard"]
)
def test_more_clients_than_files_may_be_open_harm_nobody(room, before, allowed):
    """256 is a Mac's usual, and can be raised; where it cannot, who is left out is told to come later."""
    (room.folder / "kit" / "large.bin").write_bytes(bytes(20_000_000))
    room.seal()
    mirror = start(room, before=before)
    try:
        takers = [dial(mirror.url, "GET /kit/large.bin HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(150)]
        assert {taker.recv(12)[9:] for taker in takers} <= allowed
        half_asked = [dial(mirror.url, "GET / HTTP/1.1\r\nX-Slow: ") for _ in range(30)]
        assert f"{ask(mirror.url, '/README').status}".encode() in allowed
        for connection in (*takers, *half_asked):
            connection.close()
        wait_until(lambda: ask(mirror.url, "/README").status == 200)
    finally:
        said = mirror.stop()
    assert "Traceback" not in said


# --- Starting and ending ---------------------------------------------------------------------------------------------


def mirror(room: BundleKit, *words: str, **env: str):
    return run_command([sys.executable, "-m", "scripts.mirror", *words], cwd=room.kit, env=env)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly(room, how):
    running = start(room)
    said = running.stop(how)
    assert running.process.returncode == 0
    assert "Traceback" not in said
    assert "stopped: handed out 0 files" in said


@pytest.mark.skipif(not of_this_machine(), reason="this machine is in no network: it has no address to print")
def test_it_is_for_this_machine_alone_unless_it_is_told(room):
    mine = start(room, LISTEN="0.0.0.0", ALLOW_GATED="1")
    assert mine.url.startswith("http://127.0.0.1:")
    assert "only this machine reaches it; for its network: LISTEN=0.0.0.0" in mine.stop()
    everyones = start(room, "--listen", "0.0.0.0")
    port = everyones.url.rpartition(":")[2]
    with socket.create_connection(("127.0.0.2", int(port)), timeout=5):
        pass
    assert "only this machine" not in everyones.stop()


def test_a_port_in_use_says_so(room):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = mirror(room, "--bundle", str(room.folder), PORT=str(port))
    assert done.status == 1
    assert f"error: cannot listen on 127.0.0.1:{port}: Address already in use." in done.err
    assert f"next: another port: make mirror BUNDLE={room.folder} PORT={port + 1}" in done.err


def test_the_next_port_is_one_that_there_is_and_that_anybody_may_take():
    assert [another(port) for port in (80, 1023, 1024, 8080, 65534, 65535)] == [8080, 8080, 1025, 8081, 65535, 8080]


def test_an_address_that_is_not_this_machines_says_so(room):
    done = mirror(room, "--bundle", str(room.folder), "--listen", "192.0.2.1", "--port", "0")
    assert done.status == 1
    assert "error: cannot listen on 192.0.2.1:0" in done.err
    assert "LISTEN= is an address of this machine" in done.err


def test_a_bad_bundle_is_not_served(room):
    assert mirror(room).status == 2
    assert "is a tar, and a mirror serves a folder" in mirror(room, "--bundle", str(room.tar)).err
    assert "is no bundle" in mirror(room, "--bundle", "/etc").err
    (room.folder / "README").write_text("another\n")
    done = mirror(room, "--bundle", str(room.folder))
    assert done.status == 1
    assert "'README' is not the file that SHA256SUMS lists" in done.err


# --- What a client meets ---------------------------------------------------------------------------------------------


def test_a_server_that_is_no_mirror_says_so(room, tmp_path):
    (tmp_path / "web").mkdir()
    web = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(tmp_path / "web")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert web.stdout
        port = re.search(r"port (\d+)", web.stdout.readline())[1]
        done = room.unbundle(f"http://127.0.0.1:{port}")
        assert f"error: http://127.0.0.1:{port} is no bundle: it answers 404 for SHA256SUMS." in done.err
        assert "as `make mirror` printed it" in done.err
        # Any web server over a bundle's folder is a mirror.
        room.folder.rename(tmp_path / "web" / "bundle")
        assert room.unbundle(f"http://127.0.0.1:{port}/bundle/").status == 0
    finally:
        web.terminate()
        web.communicate(timeout=PATIENCE)


def test_a_mirror_of_another_bundle_is_refused_before_anything_is_fetched(running, room):
    done = room.unbundle(running.url, "0" * 64)
    assert done.status == 1
    assert f"SHA256SUMS has the digest {room.digest}, and SHA256= says 000" in done.err
    assert room.installed() == []


def test_a_file_that_changes_on_the_mirror_is_thrown_away(running, room):
    weights = room.folder / "models" / "tiny" / "model.safetensors"
    weights.write_bytes(b"x" * weights.stat().st_size)
    done = room.unbundle(running.url, room.digest)
    assert done.status == 1
    assert "models/tiny/model.safetensors came with other bytes than the bundle's SHA256SUMS pins, twice" in done.err
    assert not [name for name in room.installed() if "partial" not in name]


def test_a_mirror_that_went_away_says_so_and_later_it_goes_on(room):
    running = start(room)
    running.stop()
    done = room.unbundle(running.url)
    assert done.status == 1
    assert "refused the connection." in done.err
    assert "next: check the address, and that `make mirror LISTEN=…` runs there" in done.err
