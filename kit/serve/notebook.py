"""The story as a notebook, and JupyterLab in which it is opened: on loopback, offline, without one's own settings.

What Jupyter keeps (settings, history, the address with its token) lies in .venv, and goes with it. Nothing is asked of
the internet, so the lab looks for no news and no extensions.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kit.environment import lock as locks
from kit.errors import Command, KitError
from kit.files import staged
from kit.net import address
from kit.paths import ROOT

PORT = 8888  # Jupyter's own
LOOPBACK = "127.0.0.1"
STORY, NOTEBOOK = ROOT / "docs" / "story.py", ROOT / "docs" / "story.ipynb"
OWN = ROOT / ".venv" / "jupyter"
PATIENCE = 120  # seconds for JupyterLab to listen: a machine may be busy


def write() -> bool:
    """The notebook out of docs/story.py, where there is none; what a reader has changed is theirs. True for one that
    is of an older story."""
    locks.require_extra("notebook", "jupytext")
    import jupytext

    if NOTEBOOK.exists():
        return STORY.stat().st_mtime > NOTEBOOK.stat().st_mtime
    with staged("docs/story.ipynb", NOTEBOOK, (Command("notebook"),)) as place:
        if place:
            place.write_text(jupytext.writes(jupytext.read(STORY), fmt="ipynb"), encoding="utf-8")
    return False


def require(port: int) -> None:
    """Raises KitError where JupyterLab is not installed, or another program has the port."""
    locks.require_extra("notebook", "jupyterlab")
    address.require_port(LOOPBACK, port, lambda other: Command("notebook", PORT=other))


@contextmanager
def running(port: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """JupyterLab with the notebook open, and the address with Jupyter's token; gone behind the block. It opens the
    browser itself where there is a screen. Raises KitError with its own words where it does not start."""
    lab, runtime, log = OWN / "lab", OWN / "data" / "runtime", OWN / "log"
    OWN.mkdir(parents=True, exist_ok=True)
    OWN.chmod(0o700)  # the log has the token
    runtime.mkdir(parents=True, exist_ok=True)
    news = lab / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    if not news.exists():  # else the first thing is a question about news of Jupyter
        news.parent.mkdir(parents=True, exist_ok=True)
        news.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}), encoding="utf-8")
    environment = os.environ | {
        "JUPYTER_NO_CONFIG": "1",
        "JUPYTERLAB_SETTINGS_DIR": str(lab),
        "JUPYTERLAB_WORKSPACES_DIR": str(lab),
        "JUPYTER_DATA_DIR": str(OWN / "data"),
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "IPYTHONDIR": str(OWN / "ipython"),
        "PYTHONPATH": str(ROOT),  # for the cells
        "PYTHONWARNINGS": "ignore:IProgress not found",  # a bar of text does
    }
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.ip={LOOPBACK}", f"--ServerApp.port={port}"]
    command += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={ROOT}", "--LabApp.extension_manager=readonly"]
    command += [f"--LabApp.default_url=/lab/tree/{NOTEBOOK.relative_to(ROOT)}"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    command += [] if has_screen() else ["--no-browser"]
    command += ["--allow-root"] if os.getuid() == 0 else []
    with log.open("wb") as out:
        # In a session of its own: on Ctrl-C it would ask whether that was meant.
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield child, _address(child, runtime, log)
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()


def _address(child: subprocess.Popen[bytes], runtime: Path, log: Path) -> str:
    says = runtime / f"jpserver-{child.pid}.json"
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and child.poll() is None:
        with suppress(OSError, ValueError):
            said = json.loads(says.read_text(encoding="utf-8"))
            return f"http://{LOOPBACK}:{said['port']}/lab/tree/{NOTEBOOK.relative_to(ROOT)}?token={said['token']}"
        time.sleep(0.1)
    last = " ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:])
    raise KitError(f"JupyterLab did not start: {last[-300:]}", "another port: ", Command("notebook", PORT=PORT + 1))


def has_screen() -> bool:
    """Whether a browser can be opened for the person who typed."""
    if "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def tunnel(port: int | None) -> str:
    """What to type on the machine with the screen, so that the address is right there too."""
    there = os.environ.get("SSH_CONNECTION", "").split()
    return f"ssh -L {port}:{LOOPBACK}:{port} {there[2] if len(there) == 4 else socket.gethostname()}"
