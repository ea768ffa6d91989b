"""`make pictures`: the pictures of README and docs, from a real run in a real browser."""

from __future__ import annotations

import sys
from pathlib import Path

from kit.paths import ROOT
from tests.browser import Browser
from tests.test_page import go_on
from tests.test_serving import start

DOCS = ROOT / "docs"


def main(folder: Path = DOCS) -> None:
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


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
