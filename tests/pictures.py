"""`make pictures`: the pictures of README and docs, from real runs in a real browser, terminal text too."""

from __future__ import annotations

import html
import re
import shutil
import sys
import tempfile
from pathlib import Path

from kit.paths import ROOT
from tests.browser import Browser
from tests.conftest import run_command
from tests.test_page import go_on
from tests.test_serving import start

DOCS = ROOT / "docs"
TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body { margin: 0; background: #1e1e1e; color: #ddd }
pre { margin: 16px; white-space: pre-wrap; font: 13px/1.45 monospace }
b { color: #fff } .ok { color: #7ec87e } .warn { color: #e6b450 } .fail { color: #ff6b6b }
</style><pre>"""
COLOURS = {" ok ": "ok", " warn": "warn", " FAIL": "fail"}


def page(folder: Path) -> None:
    running = start("CONTEXT=512")
    try:
        for name, width, height, dark in (("page.png", 1000, 860, False), ("page-phone.png", 390, 844, True)):
            with Browser(width, height, dark) as browser:
                scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
                browser.tool("Emulation.setEmulatedMedia", {"features": [scheme]})
                browser.open(running.lines[0])
                browser.wait("return about.model")
                go_on(browser, "The capital of France is", length=24)
                browser.click("#paper .t:nth-child(6)")
                browser.run("scrollTo(0, 0)")
                print(browser.picture(folder / name))
    finally:
        running.stop()


def doctor(folder: Path) -> None:
    """A clone whose environment is not what the lock says: what is wrong, and what to type."""
    spoilt = ROOT / ".venv" / "lib" / f"python3.{sys.version_info[1]}" / "site-packages" / "requests-0.0.dist-info"
    spoilt.mkdir()
    try:
        said = run_command(["make", "-s", "doctor"]).out
    finally:
        spoilt.rmdir()
    lines = []
    for line in said.replace(str(ROOT), "~/base-model-kit").replace(str(Path.home()), "~").rstrip().splitlines():
        state = next((colour for begin, colour in COLOURS.items() if line.startswith(begin)), None)
        text = html.escape(line)
        lines.append(f'<span class="{state}">{text[:6]}</span>{text[6:]}' if state else text)
    with tempfile.NamedTemporaryFile("w", suffix=".html", encoding="utf-8") as file:
        file.write(f"{TERMINAL}<b>$ make doctor</b>\n" + "\n".join(lines))
        file.flush()
        with Browser(1000, 48 + 19 * (len(lines) + 2)) as browser:
            browser.open(f"file://{file.name}")
            print(browser.picture(folder / "doctor.png"))


def drawn(folder: Path, name: str, *words: str) -> None:
    """The picture that a verb draws of its report."""
    done = run_command(["make", "-s", *words])
    assert done.status == 0, done.err
    found = re.findall(r"reports/\S+\.png", done.out + done.err)
    print(shutil.copy(ROOT / found[-1], folder / name))


def main(folder: Path = DOCS) -> None:
    page(folder)
    doctor(folder)
    drawn(folder, "bench.png", "bench", "RUNS=3")
    drawn(folder, "tuning.png", "tune", "NAME=pictured")
    run_command(["make", "-s", "remove", "NAME=pictured", "FORCE=1"])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
