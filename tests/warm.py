"""Verbs in processes that have their libraries already: torch and transformers (0.5 s where each would take 2.5), or
what the Hub's client stands on (0.1 s in place of 0.4).

A server, one for all workers of a run, imports the libraries once and forks a process for each verb that it is asked
for: with a working folder, an environment, streams and an exit status of its own, and the modules of the kit in that
folder. What a test is about how a process starts (its locale, closed streams, signals, PYTHONPATH) starts one itself.

`python tests/warm.py SOCKET run …` is `python -m scripts.run …` by the server at that socket, which
`python tests/warm.py SOCKET serve KIND` is.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import io
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

IMPORTS = Path(__file__).parents[1] / "kit" / "engines" / "imports.py"


def import_torch() -> None:
    # It imports its neighbours; and a thread that watches the processors would not be there behind a fork.
    sys.path.insert(0, str(IMPORTS.parents[2]))
    os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    runpy.run_path(str(IMPORTS))["import_all"]()
    sys.path.pop(0)
    forget("kit")  # a verb takes those of its own folder


def import_hub() -> None:
    for name in ("click", "dotenv", "tqdm", "huggingface_hub.hf_api"):
        importlib.import_module(name)
    forget("huggingface_hub")  # it reads its settings as it is imported


def forget(package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def serve(path: str, kind: str) -> None:
    """Until whoever started it closes its standard input."""
    {"torch": import_torch, "hub": import_hub}[kind]()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(100)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    if os.fork() == 0:
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                answer(connection)
            connection.close()
    sys.stdin.read()
    os.killpg(0, signal.SIGTERM)


def answer(connection: socket.socket) -> None:
    """Starts what the request asks for, and says how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked, streams = receive(connection)
    worker = os.fork()
    if worker == 0:
        connection.close()
        work(streams, **asked)
    for stream in streams:
        os.close(stream)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _, status = os.waitpid(worker, 0)
    with contextlib.suppress(OSError):
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def receive(connection: socket.socket) -> tuple[dict, list[int]]:
    head, streams, _, _ = socket.recv_fds(connection, 16, 3)
    size, data = int(head), b""
    while len(data) < size:
        data += connection.recv(size - len(data))
    return json.loads(data), streams


def work(streams: list[int], verb: str, arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    status = 1
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(number, mode, encoding="utf-8") for number, mode in enumerate("rww")
        )
        sys.path[0], sys.argv = folder, [verb, *arguments]
        if verb == PROGRAM:
            exec(sys.argv.pop(1), {"__name__": "__main__"})
            sys.stdout.flush()
        else:
            runpy.run_module(f"scripts.{verb}", run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def connect(connection: socket.socket, path: str) -> None:
    """To a server that may just have been started."""
    for _ in range(6000):
        try:
            return connection.connect(path)
        except OSError:
            time.sleep(0.01)
    raise TimeoutError(f"nobody listens at {path}")


def ask(
    path: str,
    verb: str,
    arguments: list[str],
    folder: str,
    environment: dict[str, str],
    streams: list[int],
    timeout: float | None = None,
) -> int:
    """The exit status of the verb, negative for a signal's. Raises TimeoutError where it takes longer."""
    request = {"verb": verb, "arguments": arguments, "folder": folder, "environment": environment}
    data = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connect(connection, path)
        connection.settimeout(timeout)
        socket.send_fds(connection, [f"{len(data):16}".encode()], streams)
        connection.sendall(data)
        return int(connection.recv(16))


PROGRAM = "-c"
# What a process reads while it starts, or the libraries while they are imported.
READ_AT_THE_START = ("PYTHON", "LANG", "LC_", "LD_")
KINDS = {
    **dict.fromkeys(
        ("run", "verify", "batch", "chat", "gguf"), ("torch", (*READ_AT_THE_START, "OMP_", "HF_", "KIT_DEBUG"))
    ),
    **dict.fromkeys(
        ("login", "logout", "download", "add_model", "bundle", "doctor", "unbundle", "compare", "readiness"),
        ("hub", READ_AT_THE_START),
    ),
}


def server_for(words: list[str], environment: dict[str, str], kind: str = "") -> str | None:
    """The path of the socket of the server that can do this command, `python -m scripts.VERB` with these variables, or
    with a `kind` `python -c PROGRAM`; None where it has to be a process of its own.

    On a Mac every one has: a fork of a process that has loaded the system's frameworks is killed there.
    """
    verb = words[2].removeprefix("scripts.") if words[:2] == [sys.executable, "-m"] else ""
    kind, early = (kind, READ_AT_THE_START) if kind else KINDS.get(verb, ("", ()))
    if not kind or sys.platform != "linux" or any(name.startswith(early) for name in environment):
        return None
    return server(kind)


def command(words: list[str], environment: dict[str, str]) -> list[str]:
    """The command by the server, where one can do it."""
    path = server_for(words, environment)
    return [sys.executable, "-I", "-S", __file__, path, *asked(words)] if path else words


def asked(words: list[str]) -> list[str]:
    """What a server is asked for: a verb or PROGRAM, and its arguments."""
    return [words[2].removeprefix("scripts."), *words[3:]] if words[1] == "-m" else words[1:]


def run(
    path: str, words: list[str], folder: Path, environment: dict[str, str], stdin: str | None, timeout: float
) -> tuple[int, str, str]:
    """The command by the server at `path`: its exit status, and what it wrote to stdout and stderr."""
    with contextlib.ExitStack() as stack:
        read, out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        if stdin is None:
            read = stack.enter_context(Path(os.devnull).open("rb"))
        else:
            read.write(stdin.encode())
            read.seek(0)
        streams = [stream.fileno() for stream in (read, out, err)]
        verb, *arguments = asked(words)
        status = ask(path, verb, arguments, str(folder), environment, streams, timeout)
        for stream in (out, err):
            stream.seek(0)
        return status, *(io.TextIOWrapper(stream, encoding="utf-8").read() for stream in (out, err))


def start(kind: str) -> str:
    """The path of a new server's socket, which is there when the server is; it ends with this process."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    started.append(
        subprocess.Popen(
            [sys.executable, __file__, f"{folder}/socket", "serve", kind], stdin=subprocess.PIPE, start_new_session=True
        )
    )
    return f"{folder}/socket"


@functools.cache
def server(kind: str) -> str:
    """The path of the socket of the server that the workers of this run share; else of this process's own."""
    return shared[kind] if kind in shared else start(kind)


def share() -> None:
    """One server of each kind for the processes that this one starts, beginning with those that come first."""
    if sys.platform == "linux":
        os.environ[SHARED] = json.dumps({kind: start(kind) for kind in ("torch", "hub")})


started: list[subprocess.Popen[bytes]] = []  # held: a server ends when its standard input is closed
SHARED = "WARM_SERVERS"
shared: dict[str, str] = json.loads(os.environ.pop(SHARED, "{}"))


if __name__ == "__main__":
    if sys.argv[2] == "serve":
        serve(sys.argv[1], sys.argv[3])
    where, verb, *arguments = sys.argv[1:]
    status = ask(where, verb, arguments, str(Path.cwd()), dict(os.environ), [0, 1, 2])
    if status < 0:
        os.kill(os.getpid(), -status)
    sys.exit(status)
