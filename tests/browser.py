"""A real browser for the tests: Debian's chromium, through WebDriver (https://www.w3.org/TR/webdriver2/)."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

DRIVER = shutil.which("chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the standard's name for a reference to an element
MISSING = "no chromedriver on this machine: apt-get install chromium chromium-driver"
# Without these it asks its maker's hosts at every start.
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")


class Browser:
    """One window. To be closed."""

    def __init__(self, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        assert DRIVER, MISSING
        self.folder = tempfile.TemporaryDirectory(prefix="browser-")
        self.process = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert self.process.stdout
        line = next(line for line in self.process.stdout if "successfully" in line)
        self.port = int(line.rstrip(".\n").rpartition(" ")[2])
        options = ["--headless", "--disable-gpu", "--disable-quic", f"--user-data-dir={self.folder.name}", *QUIET]
        options += ["--hide-scrollbars", f"--window-size={width},{height}"]
        options += ["--no-sandbox"] * (os.getuid() == 0)
        options += ["--blink-settings=preferredColorScheme=0"] * dark
        chrome = {"args": options, "prefs": {"download.default_directory": self.folder.name}}
        asked = {"browserName": "chrome", "goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}
        self.session = ""
        try:
            self.session = self._ask("POST", "", {"capabilities": {"alwaysMatch": asked}})["sessionId"]
        except BaseException:
            self.process.kill()
            raise
        emulated = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.tool("Emulation.setDeviceMetricsOverride", emulated)

    def _ask(self, method: str, place: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        path = f"/session/{self.session}/{place}".rstrip("/") if self.session else "/session"
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = json.loads(connection.getresponse().read())["value"]
        connection.close()
        if isinstance(answer, dict) and "error" in answer:
            raise AssertionError(f"{answer['error']}: {answer['message'][:300]}")
        return answer

    def tool(self, name: str, parameters: dict[str, Any] | None = None) -> Any:
        """A command of Chromium's own protocol."""
        return self._ask("POST", "goog/cdp/execute", {"cmd": name, "params": parameters or {}})

    def open(self, url: str) -> None:
        self._ask("POST", "url", {"url": "about:blank"})
        self._ask("POST", "url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What the script returns."""
        return self._ask("POST", "execute/sync", {"script": script, "args": list(arguments)})

    def _element(self, selector: str) -> str:
        found = self._ask("POST", "element", {"using": "css selector", "value": selector})
        return str(found[ELEMENT])

    def click(self, selector: str) -> None:
        self._ask("POST", f"element/{self._element(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        self._ask("POST", f"element/{self._element(selector)}/value", {"text": text})

    def press(self, key: str) -> None:
        """A key, where the focus is."""
        actions = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._ask("POST", "actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def wait(self, script: str, seconds: float = 60) -> Any:
        """What the script returns, as soon as that is something."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"it never came: {script}; the page says: {self.text('#said')!r}"
            time.sleep(0.05)
        return value

    def complaints(self) -> list[str]:
        """What the browser's console holds of errors since it was last asked."""
        return [one["message"] for one in self._ask("POST", "se/log", {"type": "browser"}) if one["level"] == "SEVERE"]

    def picture(self, path: Path, whole: bool = False) -> Path:
        taken = self.tool("Page.captureScreenshot", {"captureBeyondViewport": whole})
        path.write_bytes(base64.b64decode(taken["data"]))
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._ask("DELETE", "")
        finally:
            self.process.terminate()
            self.process.wait()
            self.folder.cleanup()
