"""What is wrong with this machine or this clone, and what to type next.

The one verb without click: its first stage runs before there is an environment, with any Python from 3.9 on.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from kit import settings
from kit.doctor import before_venv
from kit.doctor import check as checks
from kit.doctor.check import FAIL, Check
from kit.errors import Command, KitError, keep_secrets, wash
from kit.paths import ROOT
from scripts.hints import words

USAGE = "usage: python -m scripts.doctor [--json]   (the model: MODEL, or .env's)"
SECOND_STAGE = "--second-stage"
INTERRUPTED = 130  # 128 + SIGINT, as shells count it


def main(arguments: list[str]) -> int:
    if "--help" in arguments:
        print(__doc__, USAGE, sep="\n")
        return 0
    if set(arguments) - {"--json", SECOND_STAGE}:
        print(f"error: unknown: {' '.join(arguments)}\n  next: {USAGE}", file=sys.stderr)
        return 2
    keep_secrets(os.environ)
    with contextlib.suppress(KitError):
        keep_secrets(settings.read().values)
    wash(sys.stderr)
    model = setting("MODEL") or "starter"
    if SECOND_STAGE in arguments:
        from kit.doctor import in_venv

        with contextlib.suppress(KitError):  # a bad .env is D10's
            settings.apply(settings.read())
        print(json.dumps([as_dict(check) for check in checks.run(in_venv.listed(model))]))
        return 0
    as_json = "--json" in arguments or setting("JSON") not in ("", "0")
    found: list[Check] = []
    # The first stage's answers are on the screen while the second imports its libraries.
    for stage in (checks.run(before_venv.listed(model)), second_stage(model)):
        for check in stage:
            found.append(check)
            if not as_json:
                show(check)
    failed = [check.id for check in found if check.state == FAIL]
    if as_json:
        print(json.dumps({"ok": not failed, "model": model, "checks": [as_dict(check) for check in found]}))
    elif failed:
        print(f"\n{', '.join(failed)}: see docs/troubleshooting.md")
    else:
        print(f"\nready: {words([Command('run')])}")
    return 1 if failed else 0


def setting(name: str) -> str:
    """A setting from the environment, else from .env; "" where there is none, or .env is a bad one (D10 says so)."""
    if os.environ.get(name):
        return os.environ[name]
    with contextlib.suppress(KitError):
        return settings.read().values.get(name, "")
    return ""


def second_stage(model: str) -> Iterator[Check]:
    """The checks that need the libraries, run by .venv's Python; one skipped check where there is none."""
    python = ROOT / ".venv" / "bin" / "python"
    if not (ROOT / ".venv" / "ready").exists() or not python.exists():
        yield from checks.run([("D20", "libraries", lambda: checks.skipped("there is no finished .venv (D07)"))])
        return
    command, environment = [str(python), "-m", "scripts.doctor", SECOND_STAGE], dict(os.environ, MODEL=model)
    done = subprocess.run(command, cwd=str(ROOT), env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        yield Check("D20", "libraries", FAIL, f"the environment does not run: {last}", (Command("clean setup"),))
        return
    yield from (Check(**{**fields, "next": (fields["next"],)}) for fields in json.loads(done.stdout))


def as_dict(check: Check) -> dict[str, Any]:
    """As JSON has it."""
    return {**vars(check), "next": words(check.next)}


def show(check: Check) -> None:
    lines = check.text.splitlines() or [""]
    print(f" {check.state:4}  {check.id} {check.name:12} {lines[0]}")
    for line in lines[1:]:
        print(f"{'':24}{line}")
    for line in words(check.next).splitlines():
        print(f"{'':24}-> {line}")
    sys.stdout.flush()


def entry() -> int:
    """`main`, for whom a reader that has gone and Ctrl-C are no errors."""
    if sys.stdout is None:  # Python's way to say that it is closed: the exit status alone is asked for
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Or Python's own flush at its end would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    return status


if __name__ == "__main__":
    sys.exit(entry())
