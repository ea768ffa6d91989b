"""What `make setup BUNDLE=…` does before there is an environment: wheels and models out of a bundle, proved.

Without click and any package, like the doctor: it runs on the Python that will make .venv.
"""

from __future__ import annotations

import os
import re
import sys
import time
import traceback

from kit.environment import lock as locks
from kit.errors import Command, KitError, WrongUsage, keep_secrets, wash
from kit.offline import bundle, install, sources
from scripts.hints import words

USAGE = "usage: BUNDLE=<folder, tar or http://…> [SHA256=<digest>] python -m scripts.unbundle"
INTERRUPTED = 130  # 128 + SIGINT, as shells count it
REPEAT = 10.0  # seconds between two lines about a long step


def main() -> int:
    if "--help" in sys.argv[1:]:
        print(__doc__, USAGE, sep="\n")
        return 0
    keep_secrets(os.environ)
    wash(sys.stderr)
    place, wanted = os.environ.get("BUNDLE", ""), os.environ.get("SHA256", "").strip()
    try:
        unbundle(place, wanted)
    except KitError as error:
        if os.environ.get("KIT_DEBUG") == "1":
            traceback.print_exc()
        note(f"error: {error.message}\n  next: {words(error.hint)}")
        return error.status
    except OSError as error:
        note(f"error: {error.filename or place} cannot be read: {error.strerror or error}")
        note("  next: check who owns it, and the stick; then the same command")
        return 1
    except KeyboardInterrupt:
        note("\nstopped: the same command goes on from here")
        return INTERRUPTED
    return 0


def unbundle(place: str, wanted: str) -> None:
    if not place:
        both = Command("setup", BUNDLE="…", SHA256="…")
        raise WrongUsage("SHA256= is a bundle's digest, and there is no BUNDLE=.", both)
    if wanted and not re.fullmatch(r"[0-9a-fA-F]{64}", wanted):
        hint = "copy what `", Command("bundle"), "` printed"
        raise WrongUsage(f"SHA256={wanted} is no digest: that has 64 hex digits.", *hint)
    target = locks.this()
    remote = sources.is_address(place)
    source: sources.Source = sources.Mirror(place, note) if remote else sources.at(place)
    content = source.read_sums()
    bundle.check_digest(content, wanted)
    if not wanted:
        note(f"no SHA256= to compare: this bundle's digest is {bundle.digest(content)}")
    sums = bundle.parse_sums(content)
    taken = install.plan(sums, target)
    if not remote:
        note(f"checking the {len(sums)} files of the bundle")
        source.check(sums, Meter("checked"))
    meter = Meter("fetched" if remote else "copied")
    waiting = "another set-up takes from a bundle in this folder: waiting for it"
    came = install.carry_out(taken, source, meter.expect, meter, lambda: note(waiting))
    for line in taken.notes:
        note(line)
    models = ", ".join(taken.models)
    note(f"from the bundle: {len(taken.wheels)} wheels for {target}, models: {models} ({came / 1e6:.0f} MB)")


class Meter:
    """A line every ten seconds of a long step."""

    def __init__(self, done: str) -> None:
        self._done, self._bytes, self._total, self._said = done, 0, 0, time.monotonic()

    def expect(self, total: int) -> None:
        self._total = total

    def __call__(self, count: int) -> None:
        self._bytes += count
        if time.monotonic() - self._said > REPEAT:
            total = f" of {self._total / 1e9:.2f}" if self._total else ""
            note(f"{self._done} {self._bytes / 1e9:.2f}{total} GB")
            self._said = time.monotonic()


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
