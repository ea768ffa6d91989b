"""`make node`: this machine as a node of a Ray cluster, and what a node proves before it is given a prompt.

A node offers two resources by name, and Ray gives work where they are offered: `kit-<proof>` (once: one engine at a
time), of the commit, Python and packages that it has, and `kit-model-<proof>` for each model that is whole there.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from kit.engines.llama_server import NativeLog
from kit.environment import facts
from kit.environment import lock as locks
from kit.errors import Command, KitError, WrongUsage, keep_secret
from kit.files import sha256
from kit.models import folder as model_folder
from kit.models import registry
from kit.models.registry import Model
from kit.net import address
from kit.paths import ROOT

PORT = 6379  # Ray's own
TOKEN = ROOT / ".ray-token"
LOOPBACK = "127.0.0.1"
STORE = 200_000_000  # bytes of shared memory: what is on its way is text
AS_STARTED = "KIT_NODE_PROOF"
MISSES = 3  # a head that is busy may miss one
SECONDS = 3.0  # for a connection to the head
PATIENCE = 15  # seconds for an answer of the head: it may be busy
IMPORT = 120  # seconds for the import of Ray before that: so may this machine be


@dataclass(frozen=True)
class Proof:
    """What has to be the same on every node: else one prompt is answered in two ways."""

    commit: str
    source: str  # of kit/ as it lies there: a file beside it, such as IN, changes nothing
    python: str
    packages: dict[str, str]

    @property
    def resource(self) -> str:
        return f"kit-{_short(json.dumps(asdict(self), sort_keys=True))}"

    def differences(self, other: Proof) -> list[str]:
        """What this one has otherwise than `other`, as a person reads it."""
        found = [("commit", self.commit[:12], other.commit[:12]), ("source", self.source, other.source)]
        found += [("Python", self.python, other.python)]
        found += [(name, self.packages[name], other.packages.get(name, "none")) for name in self.packages]
        return [f"{name} {one} in place of {two}" for name, one, two in found if one != two]


def proof() -> Proof:
    """This machine's. Packages are those that every platform's locks have; a build (+cpu) is no other version."""
    here = locks.this()
    common = {pin.name for pin in locks.pins(locks.Target(here.platform, here.python, ("ray",)))}
    for platform in locks.PLATFORMS:
        common &= {pin.name for pin in locks.pins(locks.Target(platform, here.python, ("ray",)))}
    present = locks.installed(ROOT / ".venv")
    packages = {name: version.partition("+")[0] for name, version in sorted(present.items()) if name in common}
    return Proof(facts.commit().removesuffix("-changed"), _source(), here.python, packages)


def _source() -> str:
    files = sorted(path.relative_to(ROOT) for path in ROOT.glob("kit/**/*.py"))
    return _short("".join(f"{file} {sha256(ROOT / file)}\n" for file in files))


def model_resource(model: Model) -> str:
    return f"kit-model-{_short(json.dumps(model.identity(), sort_keys=True))}"


def offers() -> dict[str, float]:
    """The resources of this machine as a node."""
    found = {proof().resource: 1.0}
    for name in [*registry.read(), *registry.tuned_names()]:
        try:
            model = registry.find(name)
            model_folder.check(model)
        except KitError:  # it is not here, or not whole
            continue
        found[model_resource(model)] = 1.0
    return found


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# --- Ray's own settings -----------------------------------------------------------------------------------------------


def set_environment(on_loopback: bool) -> None:
    """What Ray reads of the environment, before it is imported. No telemetry; a token for whoever asks."""
    locks.require_extra("ray", "ray")
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(TOKEN),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_raylet_start_wait_time_s": "120",  # on a machine with other work, 30 is too short
        # A driver whose head is gone ends so much later.
        "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
        # Workers import this clone's kit.
        "PYTHONPATH": str(ROOT),
    }
    if on_loopback:
        # The one way to make Ray listen on 127.0.0.1 alone: else it takes another address of this machine, and listens
        # on all of them.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"


def make_token() -> None:
    """A random token in a file that only its owner reads, where there is none."""
    if not TOKEN.exists():
        descriptor = os.open(TOKEN, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
    keep_token()


def keep_token() -> None:
    """Raises KitError where the token is missing, or others may read it; from now on no message holds it."""
    if not TOKEN.exists():
        raise KitError(
            f"the cluster's token is not here: {TOKEN.name} lies in the kit's folder on the head's machine.",
            f"scp <the head's machine>:<its clone>/{TOKEN.name} .",
        )
    if TOKEN.stat().st_mode & 0o077:
        raise KitError(f"{TOKEN.name} can be read by other accounts of this machine.", f"chmod 600 {TOKEN.name}")
    keep_secret(TOKEN.read_text(encoding="ascii", errors="replace"))


# --- A node -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A node that can be started: at `host`, the head where `head` is None, else one of the head's at that address."""

    host: str
    port: int
    head: str | None

    @property
    def on_loopback(self) -> bool:
        return self.host == LOOPBACK


def prepare(head: str | None, listen: str, port: int) -> Node:
    """Settles where a node is reached. Raises WrongUsage where it would open more than was typed, KitError for a Mac in
    a cluster, a head that does not answer, or a token that it does not take."""
    everywhere = listen in ("0.0.0.0", "::")
    host = address.of_this_machine() if everywhere else listen
    if host is None:
        raise KitError("this machine has no address in a network.", Command("node"), ", for itself alone")
    if sys.platform == "darwin" and (head or host != LOOPBACK):
        raise KitError(
            "Ray lets no Mac join a cluster.",
            "one Mac alone: ",
            Command("batch", RAY="auto"),
            "; a cluster is of Linux",
        )
    locks.require_extra("ray", "ray")
    if head is None:
        address.require_port(host, port, lambda other: Command("node", PORT=other))
        make_token()
        return Node(host, port, None)
    target = with_port(head)
    if host == LOOPBACK:
        raise WrongUsage(
            f"a node of {target} is reached by the others: it listens on all networks of this machine.",
            Command("node", HEAD=head, LISTEN="0.0.0.0"),
        )
    keep_token()
    set_environment(False)
    require_head(target)
    return Node(host, port, target)


def with_port(head: str) -> str:
    """`10.0.0.1` -> `10.0.0.1:6379`"""
    host, colon, port = head.rpartition(":")
    if not colon:
        return f"{head}:{PORT}"
    if not host or not port.isdecimal():
        raise WrongUsage(f"{head} is no address of a head.", "10.0.0.1 or 10.0.0.1:6379")
    return head


def require_head(target: str) -> None:
    """Raises KitError within seconds where no head answers, or it does not take the token: Ray itself would wait."""
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host, int(port)), SECONDS).close()
    except OSError as error:
        raise KitError(
            f"no head answers at {target}: {error.strerror or error}.",
            "on that machine: ",
            Command("node", LISTEN="0.0.0.0"),
        ) from error
    # In a process of its own: what it says stays there, and it can be ended.
    code = "import signal, sys; from ray._raylet import GcsClient\n"
    code += f"signal.alarm({PATIENCE + 5})\n"
    code += f"GcsClient(address=sys.argv[1]).internal_kv_get(b'x', b'x', timeout={PATIENCE})"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, target], capture_output=True, text=True, timeout=IMPORT, check=False
        )
        said = done.stderr.strip() or "no answer"
    except subprocess.TimeoutExpired:
        done, said = None, "no answer"
    if "AuthenticationError" in said:
        raise KitError(
            f"the head at {target} does not take this token.", f"scp {host}:<its clone>/{TOKEN.name} . and chmod 600 it"
        )
    if done is None or done.returncode:
        last = said.splitlines()[-1][:200]
        raise KitError(f"what answers at {target} is no head of Ray 2.60: {last}.", "look at HEAD")


@contextmanager
def running(node: Node) -> Iterator[subprocess.Popen[str]]:
    """Ray's processes for the node, and gone behind the block. Its files lie in a folder that only this user reads."""
    set_environment(node.on_loopback)
    os.environ[AS_STARTED] = json.dumps(asdict(proof()))
    with tempfile.TemporaryDirectory(prefix="kit-ray-") as folder:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
        command += ["--include-log-monitor=false", f"--node-ip-address={node.host}", f"--object-store-memory={STORE}"]
        command += [f"--resources={json.dumps(offers())}", "--log-color=false", "--log-style=record"]
        if node.head:
            command += [f"--address={node.head}"]
        else:
            command += ["--head", f"--port={node.port}", "--include-dashboard=false", f"--temp-dir={folder}"]
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()


def wait_until_up(child: subprocess.Popen[str]) -> None:
    """Returns when the node is one. Raises KitError with Ray's own words where it does not become one."""
    assert child.stdout
    said = []
    for line in child.stdout:
        said.append(line.rpartition(" -- ")[2].strip())
        if "Ray runtime started" in line:
            return
    words = " ".join(word for word in said if word)[-300:]
    raise KitError(f"Ray did not start: {words}", "another port: ", Command("node", PORT=PORT + 1))


# --- Whoever asks a cluster -------------------------------------------------------------------------------------------


@contextmanager
def connected(where: str, on_lost: Callable[[KitError], NoReturn]) -> Iterator[None]:
    """Within this Ray is at work: `auto` is the node of this machine, or where there is none one for the block; else it
    is the head's address. Raises KitError within seconds where that does not answer, or not to this token. `on_lost`
    ends the process where the head is gone: Ray would do it some seconds later, without a word, and hears nothing."""
    locks.require_extra("ray", "ray")
    target = f"{LOOPBACK}:{PORT}" if where == "auto" else with_port(where)
    alone = where == "auto" and not _answers(target)
    if alone:
        make_token()
    else:
        keep_token()
    set_environment(alone)
    if not alone:
        require_head(target)
    import ray

    with tempfile.TemporaryDirectory(prefix="kit-ray-") as folder:
        given: dict[str, Any] = {"address": target}
        if alone:
            given = {"address": "local", "include_dashboard": False, "_node_ip_address": LOOPBACK, "_temp_dir": folder}
            given |= {"resources": offers(), "object_store_memory": STORE}
        # What Ray tells of its own work, natively and about tasks that it does again: no step for a person in it.
        told = NativeLog().start()
        worker: Any = ray._private.worker
        worker.print_to_stdstream = lambda *_, **__: None
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", **given)
            with nullcontext() if alone else _watched(target, on_lost):
                yield
        finally:
            ray.shutdown()
            told.close()


@contextmanager
def _watched(target: str, on_lost: Callable[[KitError], NoReturn]) -> Iterator[None]:
    over = threading.Event()

    def watch() -> None:
        missed = 0
        while not over.wait(1.0):
            missed = 0 if _answers(target) else missed + 1
            if missed == MISSES:
                on_lost(KitError(f"the head at {target} is gone.", "start it again, then the same command"))

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _answers(target: str) -> bool:
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host, int(port)), SECONDS).close()
    except OSError:
        return False
    return True


def require_nodes(model: Model) -> list[str]:
    """The names of the nodes that take no prompt, with what differs. Raises KitError where no node takes any."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mine, wanted = proof(), {proof().resource, model_resource(model)}
    alive = [node for node in ray.nodes() if node["Alive"]]
    others = [node for node in alive if not wanted <= set(node["Resources"])]
    told = []
    for node in others:
        where = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        ask = ray.remote(num_cpus=0, max_retries=0)(_proof).options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        )
        try:
            theirs = Proof(**ray.get(ask.remote(), timeout=30))
            why = ", ".join(theirs.differences(mine)) or f"{model.name} is not there, or another one"
        except Exception as error:
            why = f"it does not say what it is ({type(error).__name__})"
        told.append(f"{where}: {why}")
    if len(others) == len(alive):
        raise KitError(
            f"no node takes a prompt. {'; '.join(told)}.", "make them alike, start them anew, then the same command"
        )
    return told


def names(model: Model) -> list[str]:
    """The nodes that take prompts, by address."""
    import ray

    wanted = {proof().resource, model_resource(model)}
    return sorted(
        node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"] and wanted <= set(node["Resources"])
    )


def _proof() -> dict[str, Any]:
    """On a node: what it was when it was started, whatever has become of its clone since."""
    found: dict[str, Any] = json.loads(os.environ[AS_STARTED])
    return found
