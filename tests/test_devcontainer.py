"""`.devcontainer/`: the kit in an editor, opened as VS Code does, by the reference client on a real engine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.paths import ROOT
from tests.conftest import Done, clean_environment, copy_kit
from tests.docker_kit import docker, require_engine

pytestmark = pytest.mark.slow
CLIENT = ROOT / "tests" / "devcontainer"
USER = 1000  # whom a person's clone belongs to, and who works in the container


class Opened:
    """A clone that the client has opened."""

    def __init__(self, client: Path, clone: Path) -> None:
        self.client, self.clone = client, clone
        self.up = self._call("up")
        assert self.up.status == 0, self.up.err[-3000:]
        self.said = json.loads(self.up.out.splitlines()[-1])

    def _call(self, verb: str, *words: str) -> Done:
        command = ["node", str(self.client), verb, "--workspace-folder", str(self.clone), *words]
        done = subprocess.run(
            command, env=clean_environment(), capture_output=True, text=True, timeout=1200, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def run(self, *words: str) -> Done:
        return self._call("exec", *words)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    if not shutil.which("npm"):
        pytest.skip("the reference client comes from npm, and npm is not here")
    if os.getuid() != 0:
        pytest.skip("only root can give a clone to the container's user")
    require_engine()
    folder = tmp_path_factory.mktemp("editor")
    client = Path(shutil.copytree(CLIENT, folder / "client"))
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=client, check=True, capture_output=True)
    clone = copy_kit(folder / "kit")
    if base := os.environ.get("BASE_IMAGE"):  # where no registry is in reach
        config = clone / ".devcontainer" / "devcontainer.json"
        target = '"target": "devcontainer"'
        assert target in config.read_text()
        config.write_text(config.read_text().replace(target, f'{target}, "args": {{ "BASE_IMAGE": "{base}" }}'))
    for wheel in (ROOT / "env" / "wheels").glob("torch-*.whl"):  # and no page of torch's
        shutil.copy2(wheel, clone / "env" / "wheels" / wheel.name)
    subprocess.run(["git", "init", "-q"], cwd=clone, check=True)
    subprocess.run(["chown", "-R", f"{USER}:{USER}", str(clone)], check=True)
    try:
        yield Opened(client / "node_modules" / "@devcontainers" / "cli" / "devcontainer.js", clone)
    finally:
        label = f"label=devcontainer.local_folder={clone}"
        for one in docker("ps", "-aq", "--filter", label).split():
            volumes = docker("inspect", "--format", "{{range .Mounts}}{{if .Name}}{{.Name}} {{end}}{{end}}", one)
            built = docker("inspect", "--format", "{{.Image}}", one)
            docker("rm", "-f", one)
            docker("volume", "rm", *volumes.split())
            docker("image", "rm", "-f", built)


def test_its_set_up_ends_with_an_answer_and_the_story(opened):
    assert opened.said["outcome"] == "success"
    assert opened.said["remoteUser"] == "kit"
    assert "peak memory" in opened.up.err
    assert (opened.clone / "docs" / "story.ipynb").stat().st_uid == USER


def test_who_works_in_it_is_not_root_and_has_the_development_tools(opened):
    said = opened.run("sh", "-c", "id -u; git status --short | head -1; .venv/bin/ruff --version; make -s doctor")
    assert said.out.startswith(f"{USER}\n")
    assert "ruff " in said.out
    assert " ok    D07" in said.out, said.out


def test_models_and_venv_lie_in_volumes_and_the_clone_of_this_machine_stays_as_it_is(opened):
    assert not any(
        (opened.clone / name).exists() and any((opened.clone / name).iterdir()) for name in ("models", ".venv")
    )
    assert "starter" in opened.run("ls", "models").out


def test_the_page_of_serve_is_forwarded(opened):
    said = opened.run("cat", ".devcontainer/devcontainer.json").out
    assert '"forwardPorts": [8080, 8888]' in said
    program = "make -s serve >/tmp/said 2>&1 & until grep -q key= /tmp/said; do sleep 0.2; done; "
    program += "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:8080/health\").read())'"
    done = opened.run("timeout", "120", "sh", "-c", program)
    assert "ok" in done.out, done.out + done.err
