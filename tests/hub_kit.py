"""A kit of a test's own whose models come from a local Hub: what the tests of login, download and doctor share."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kit.offline.hub_endpoints import ServedModel
from tests.conftest import Done, copy_kit, run_command
from tests.hub import MisbehavingHub

# Of the form that the Hub's tokens have; nobody's. In pieces, so that lint's search for tokens does not find it.
TOKEN = "hf_" + "MARKED" * 5 + "Test"


def section(name: str, model: ServedModel, gated: bool = False, licences: Iterable[str] = ()) -> str:
    """A section of models.toml for what a hub serves."""
    files = [file for file in model.files if file.path not in licences]
    lines = "".join(f'  {{ path = "{f.path}", size = {f.size}, sha256 = "{f.sha256}" }},\n' for f in files)
    return (
        f'[{name}]\ntitle = "{name}"\nkind = "base"\nlicence = "MIT"\nrepo_id = "{model.repo_id}"\n'
        f'revision = "{model.revision}"\ngated = {str(gated).lower()}\ncontext = 128\n'
        f"licence_files = {[*licences]}\nfiles = [\n{lines}]\n\n"
    ).replace("'", '"')


@dataclass(frozen=True)
class HubKit:
    """A copy of the kit, `folder`, that talks to `hub` and knows its models; its HOME is its own."""

    folder: Path
    hub: MisbehavingHub

    def environment(self, **env: str) -> dict[str, str]:
        home = self.folder.parent / "home"
        home.mkdir(exist_ok=True)
        return {
            "HF_ENDPOINT": self.hub.url,
            "KIT_DOTENV": "",
            "HOME": str(home),
            "HF_HOME": str(home / "hf"),
            **dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy", "ALL_PROXY"), ""),
            **env,
        }

    def run(self, verb: str, *arguments: str, timeout: int = 120, **env: str) -> Done:
        command = [sys.executable, "-m", f"scripts.{verb}", *arguments]
        return run_command(command, cwd=self.folder, env=self.environment(**env), timeout=timeout)

    def model(self, name: str) -> Path:
        return self.folder / "models" / name


def hub_kit(folder: Path, hub: MisbehavingHub, sections: str) -> HubKit:
    kit = copy_kit(folder / "kit", to_run=True)
    shutil.rmtree(kit / "models", ignore_errors=True)
    (kit / "env" / "models.toml").write_text(sections, encoding="utf-8")
    # A tenth of the seconds before each new try: tests/test_transfer.py holds the real ones.
    transfer = kit / "kit" / "net" / "transfer.py"
    waits = "BACK_OFF = (1.0, 2.0, 4.0, 8.0, 16.0)"
    assert waits in transfer.read_text()
    transfer.write_text(transfer.read_text().replace(waits, "BACK_OFF = (0.1, 0.2, 0.4, 0.8, 1.6)"))
    return HubKit(kit, hub)
