"""`make node` and `make batch RAY=`: many machines answer one file, and none of it is lost or double.

The machines are network namespaces of this one, which needs Linux, root and Ray (`make setup EXTRA=ray`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kit.batch import cluster
from kit.batch.cluster import Proof
from kit.environment import lock as locks
from kit.errors import Command, KitError, WrongUsage
from kit.paths import ROOT
from tests.conftest import Done, clean_environment, copy_linked

HEAD = "10.77.0.1"
PATIENCE = 900  # seconds, for a machine with other work


# --- What is said before anything is started --------------------------------------------------------------------------


@pytest.fixture
def token(tmp_path, monkeypatch) -> Path:
    path = tmp_path / ".ray-token"
    monkeypatch.setattr(cluster, "TOKEN", path)
    return path


@pytest.fixture
def ray_is_here(monkeypatch) -> None:
    """On a Linux machine."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(locks, "require_extra", lambda name, module: None)
    monkeypatch.setattr(cluster, "set_environment", lambda on_loopback: None)


def test_without_ray_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(locks, "installed", lambda venv: {})
    with pytest.raises(KitError, match="ray is not in") as error:
        cluster.prepare(None, "127.0.0.1", 0)
    assert error.value.hint == (Command("setup", EXTRA="ray"),)


@pytest.mark.parametrize(("head", "listen"), [("10.0.0.1", "10.0.0.2"), (None, "10.0.0.2"), ("10.0.0.1", "127.0.0.1")])
def test_a_mac_joins_no_cluster_and_works_alone(ray_is_here, token, monkeypatch, head, listen):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(KitError, match="Ray lets no Mac join a cluster") as error:
        cluster.prepare(head, listen, 6379)
    assert error.value.hint[1] == Command("batch", RAY="auto")
    assert cluster.prepare(None, "127.0.0.1", 0).on_loopback


def test_a_node_of_another_machines_head_is_opened_only_where_that_is_typed(ray_is_here, token):
    with pytest.raises(WrongUsage, match="it listens on all networks of this machine") as error:
        cluster.prepare("10.0.0.1", "127.0.0.1", 6379)
    assert error.value.hint == (Command("node", HEAD="10.0.0.1", LISTEN="0.0.0.0"),)


def test_the_token_is_its_owners_alone_and_travels_by_hand(ray_is_here, token):
    with pytest.raises(KitError, match="token is not here") as error:
        cluster.prepare("10.0.0.1", "10.0.0.2", 6379)
    assert str(error.value.hint[0]).startswith("scp ")
    assert cluster.prepare(None, "127.0.0.1", 0) == cluster.Node("127.0.0.1", 0, None)
    assert token.stat().st_mode & 0o777 == 0o600
    written = token.read_text()
    assert len(written) == 64
    cluster.make_token()
    assert token.read_text() == written
    assert written not in str(KitError(f"it is {written}"))
    token.chmod(0o644)
    with pytest.raises(KitError, match="can be read by other accounts") as error:
        cluster.make_token()
    assert error.value.hint == ("chmod 600 .ray-token",)


@pytest.mark.parametrize("head", ["10.0.0.1:", ":1", "10.0.0.1:x"])
def test_an_address_that_is_none_is_refused(head):
    with pytest.raises(WrongUsage, match="is no address of a head"):
        cluster.with_port(head)


def test_an_address_without_a_port_has_rays():
    assert cluster.with_port("10.0.0.1") == "10.0.0.1:6379"
    assert cluster.with_port("10.0.0.1:7000") == "10.0.0.1:7000"


def test_what_differs_between_two_nodes_is_named():
    one, other = (
        Proof("a" * 40, "1a", "3.11", {"ray": "2", "click": "8"}),
        Proof("b" * 40, "2b", "3.12", {"ray": "3", "click": "8"}),
    )
    assert one.differences(one) == []
    assert one.differences(other) == [
        f"commit {'a' * 12} in place of {'b' * 12}",
        "source 1a in place of 2b",
        "Python 3.11 in place of 3.12",
        "ray 2 in place of 3",
    ]
    assert one.resource != other.resource


def test_a_file_beside_the_kit_changes_no_proof_and_one_in_it_does(kit_copy, monkeypatch):
    monkeypatch.setattr(cluster, "ROOT", kit_copy)
    before = cluster.proof()
    (kit_copy / "prompts.jsonl").write_text("{}")
    assert cluster.proof() == before
    with (kit_copy / "kit" / "files.py").open("a") as file:
        file.write("# changed\n")
    assert cluster.proof().differences(before)[0].startswith("source ")


def test_a_proof_holds_what_all_platforms_have_and_no_build(monkeypatch):
    monkeypatch.setattr(locks, "installed", lambda venv: {"torch": "2.13.0+cpu", "uv": "1", "pytest": "9"})
    assert cluster.proof().packages == {"torch": "2.13.0", "uv": "1"}


def test_extras_are_layered_so_that_no_common_package_differs():
    for platform, python in ((platform, python) for platform in locks.PLATFORMS for python in locks.PYTHONS):
        alone = {pin.name: pin.version for pin in locks.pins(locks.Target(platform, python))}
        extra = {pin.name: pin.version for pin in locks.pins(locks.Target(platform, python, locks.EXTRAS))}
        assert alone.items() <= extra.items()
        assert "ray" in extra
        for name in locks.EXTRAS:
            own = {pin.name: pin.version for pin in locks.read(locks.path_of(name)) if pin.name not in ("numpy",)}
            assert {each: alone[each] for each in own if each in alone}.items() <= own.items()


@pytest.mark.slow
def test_what_answers_and_is_no_head_is_said(monkeypatch):
    pytest.importorskip("ray", reason="Ray is not in .venv: make setup EXTRA=ray")
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(KitError, match=f"what answers at {target} is no head of Ray"):
            cluster.require_head(target)


# --- Machines ---------------------------------------------------------------------------------------------------------


@dataclass
class Machine:
    """A network namespace at `address`, with a kit of its own in `folder`."""

    name: str
    address: str
    folder: Path
    node: subprocess.Popen[str] | None = None
    log: Path = field(default_factory=Path)

    def command(self, verb: str, *words: str) -> list[str]:
        inside = ["ip", "netns", "exec", self.name]
        return [*inside, sys.executable, "-m", f"scripts.{verb}", *words]

    def start(self, verb: str, *words: str, log: Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        environment = clean_environment() | {"KIT_TYPED": "LISTEN HEAD PORT RAY IN OUT"} | (env or {})
        with log.open("w") as file:
            return subprocess.Popen(
                self.command(verb, *words), cwd=self.folder, env=environment, stdout=file, stderr=file, text=True
            )

    def run(self, verb: str, *words: str) -> Done:
        log = self.folder / "run.log"
        status = self.start(verb, *words, log=log).wait(PATIENCE)
        return Done(status, "", log.read_text())

    def become_node(self, *words: str, env: dict[str, str] | None = None) -> None:
        self.log = self.folder / "node.log"
        self.node = self.start("node", "--listen", self.address, *words, log=self.log, env=env)
        wait_for(lambda: "ready" in self.log.read_text(), self.node, self.log)

    def commands(self) -> dict[str, int]:
        """What runs there: each command, and its process."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False).stdout
        found = {}
        for number in listed.split():
            with suppress(OSError):
                found[Path(f"/proc/{number}/cmdline").read_text().replace("\0", " ") + f" {number}"] = int(number)
        return found

    def processes(self, pattern: str = "") -> list[int]:
        return [number for command, number in self.commands().items() if pattern in command]

    def send(self, number: int, pattern: str = "") -> None:
        """A signal to every process of the machine, or to those whose command has the pattern."""
        for process in self.processes(pattern):
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def kill(self, pattern: str = "") -> None:
        """As a power cut."""
        self.send(signal.SIGKILL, pattern)
        if self.node and not pattern:
            self.node.wait()


def wait_for(happened: Callable[[], bool], running: subprocess.Popen[str] | None, log: Path) -> None:
    """Fails with what `log` says, where `running` ends before or it takes too long."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, log.read_text()
        assert running is None or running.poll() is None, log.read_text()
        time.sleep(0.1)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def room(tmp_path_factory, kit_once) -> Iterator[list[Machine]]:
    """Three machines on a switch of their own."""
    if sys.platform != "linux" or os.getuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need Linux, root and ip")
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not in .venv: make setup EXTRA=ray")
    machines = []
    try:
        for number in (1, 2, 3):
            folder = copy_linked(kit_once, tmp_path_factory.mktemp(f"machine{number}") / "kit")
            (folder / ".venv").symlink_to(ROOT / ".venv")
            machine = Machine(f"kit{os.getpid()}-{number}", f"10.77.0.{number}", folder)
            ip("netns", "add", machine.name)
            machines.append(machine)
            ip("-n", machine.name, "link", "set", "lo", "up")
        head = machines[0].name
        ip("-n", head, "link", "add", "switch", "type", "bridge")
        ip("-n", head, "addr", "add", f"{HEAD}/24", "dev", "switch")
        ip("-n", head, "link", "set", "switch", "up")
        for machine in machines[1:]:
            plug = f"plug{machine.address[-1]}"
            ip("-n", machine.name, "link", "add", "wire", "type", "veth", "peer", "name", plug, "netns", head)
            ip("-n", head, "link", "set", plug, "master", "switch", "up")
            ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", "wire")
            ip("-n", machine.name, "link", "set", "wire", "up")
        yield machines
    finally:
        for machine in machines:
            machine.kill()
            ip("netns", "del", machine.name)


@pytest.fixture
def machines(room) -> Iterator[list[Machine]]:
    """The three, with the head's token on each, and nothing at work on them."""
    for machine in room:
        shutil.copy2(token_of(room[0]), machine.folder / ".ray-token")
        (machine.folder / ".ray-token").chmod(0o600)
    yield room
    for machine in room:
        machine.kill()


def token_of(head: Machine) -> Path:
    path = head.folder / ".token"
    path.write_text("5e" * 32)
    path.chmod(0o600)
    return path


def prompts_in(machine: Machine, count: int) -> None:
    lines = [json.dumps({"id": f"p{number}", "prompt": f"Story {number} is about"}) for number in range(1, count + 1)]
    (machine.folder / "prompts.jsonl").write_text("\n".join(lines))
    (machine.folder / "answers.jsonl").unlink(missing_ok=True)


def words(*more: str) -> list[str]:
    files = ["--in", "prompts.jsonl", "--out", "answers.jsonl"]
    return [*files, "--method", "llamacpp", "--device", "cpu", "--slots", "2", "--max-new-tokens", "4", *more]


def answered(machine: Machine) -> list[int]:
    path = machine.folder / "answers.jsonl"
    whole = path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []
    return [int(json.loads(line)["id"].rpartition("-")[2]) for line in whole]


ACTOR = "ray::MapWorker"


@pytest.mark.slow
def test_a_node_that_comes_late_works_and_one_that_is_killed_loses_nothing(machines):
    head, second, third = machines
    head.become_node()
    prompts_in(head, 400)
    log = head.folder / "batch.log"
    running = head.start("batch", *words("--ray", "auto"), log=log)
    wait_for(lambda: bool(answered(head)), running, log)
    # However fast this machine is: nobody answers until all are here.
    head.send(signal.SIGSTOP, ACTOR)
    second.become_node("--head", HEAD)
    wait_for(lambda: bool(second.processes(ACTOR)), running, log)
    second.send(signal.SIGSTOP, ACTOR)
    third.become_node("--head", HEAD)
    second.send(signal.SIGCONT, ACTOR)
    before = len(answered(head))
    wait_for(lambda: len(answered(head)) > before + 40, running, log)  # which the late one has answered
    head.send(signal.SIGCONT, ACTOR)
    second.kill()
    assert running.wait(PATIENCE) == 0, log.read_text()
    assert sorted(answered(head)) == list(range(1, 401))
    assert "400 of 400 prompts answered" in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_head_that_is_killed_is_said_and_the_same_command_goes_on(machines):
    head = machines[0]
    head.become_node()
    prompts_in(head, 200)
    log = head.folder / "batch.log"
    running = head.start("batch", *words("--ray", HEAD), log=log)
    wait_for(lambda: len(answered(head)) > 10, running, log)
    head.kill("gcs_server")
    assert running.wait(PATIENCE) == 1
    assert f"error: the head at {HEAD}:6379 is gone." in log.read_text()
    assert "the same command goes on" in log.read_text()
    before = len(answered(head))
    head.kill()
    # Without a node, `auto` has one for itself; and OUT takes what any of them answers.
    done = head.run("batch", *words("--ray", "auto"))
    assert done.status == 0, done.err
    assert f"200 of 200 prompts answered, {before} of them before" in done.err
    assert sorted(answered(head)) == list(range(1, 201))


@pytest.mark.slow
def test_a_node_that_differs_takes_no_prompt_and_is_named(machines):
    head, other, _ = machines
    head.become_node(env={"KIT_COMMIT": "a" * 40})
    other.become_node("--head", HEAD, env={"KIT_COMMIT": "b" * 40})
    prompts_in(head, 12)
    log = head.folder / "batch.log"
    env = {"KIT_COMMIT": "a" * 40}
    assert head.start("batch", *words("--ray", "auto"), log=log, env=env).wait(PATIENCE) == 0, log.read_text()
    assert f"({other.address}): commit {'b' * 12} in place of {'a' * 12}" in log.read_text()
    assert f"nodes that take prompts: {HEAD}\n" in log.read_text()
    # And where none is like this one, that is an error.
    prompts_in(head, 12)
    env = {"KIT_COMMIT": "c" * 40}
    assert head.start("batch", *words("--ray", "auto"), log=log, env=env).wait(PATIENCE) == 1
    assert "error: no node takes a prompt." in log.read_text()


@pytest.mark.slow
def test_a_wrong_token_and_an_absent_head_are_said_within_seconds(machines):
    head, other, _ = machines
    head.become_node()
    prompts_in(other, 3)
    (other.folder / ".ray-token").write_text("6f" * 32)
    for verb, more in (("batch", words("--ray", HEAD)), ("node", ["--head", HEAD, "--listen", other.address])):
        done = other.run(verb, *more)
        assert done.status == 1
        assert f"the head at {HEAD}:6379 does not take this token" in done.err
        assert "5e5e5e" not in done.err
    done = other.run("batch", *words("--ray", "10.77.0.9"))
    assert done.status == 1
    assert "no head answers at 10.77.0.9:6379" in done.err
    assert "next: on that machine: make node LISTEN=0.0.0.0" in done.err


@pytest.mark.slow
def test_alone_a_node_listens_on_loopback_and_leaves_nothing(machines):
    third = machines[2]
    third.log = third.folder / "node.log"
    third.node = third.start("node", log=third.log)
    wait_for(lambda: "ready" in third.log.read_text(), third.node, third.log)
    listed = subprocess.run(
        ["ip", "netns", "exec", third.name, "cat", "/proc/net/tcp", "/proc/net/tcp6"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    listening = [line.split()[1].partition(":")[0] for line in listed.splitlines() if " 0A " in line]
    assert len(listening) >= 3
    (starts,) = [line for line in third.commands() if " --temp-dir=" in line and " start " in line]
    own = Path(re.search(r"--temp-dir=(\S+)", starts)[1])
    assert own.is_dir()
    # 127.0.0.1, and the same as IPv6 writes it (the words of /proc/net are in the machine's order of bytes).
    assert set(listening) <= {"0100007F", "0000000000000000FFFF00000100007F"}
    third.node.send_signal(signal.SIGINT)
    assert third.node.wait(60) == 130
    wait_for(lambda: not third.processes(), None, third.log)
    assert not own.exists()


@pytest.mark.slow
def test_a_base_and_what_was_tuned_of_it_are_compared_over_two_machines(machines):
    head, second, _ = machines
    (head.folder / "notes.txt").write_text("\n\n".join(f"The heron of house {number} is blue." for number in range(12)))
    done = head.run("tune", "--data", "notes.txt", "--name", "mine", "--epochs", "1", "--device", "cpu")
    assert done.status == 0, done.err
    shutil.copytree(head.folder / "models" / "mine", second.folder / "models" / "mine")
    head.become_node()
    second.become_node("--head", HEAD)
    prompts_in(head, 24)
    for model in ("starter", "mine"):
        files = ["--in", "prompts.jsonl", "--out", f"{model}.jsonl", "--model", model, "--method", "llamacpp"]
        done = head.run("batch", *files, "--device", "cpu", "--slots", "2", "--max-new-tokens", "4", "--ray", HEAD)
        assert done.status == 0, done.err
        assert f"nodes that take prompts: {HEAD}, {second.address}" in done.err
    done = head.run("compare")
    assert done.status in (0, 1), done.err
    assert "starter" in done.err
    assert "mine" in done.err
