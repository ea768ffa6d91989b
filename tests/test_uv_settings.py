"""env/uv-settings.sh: the machine's pip settings reach uv."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib

import pytest

from kit.environment import uv_config
from kit.errors import KitError
from kit.paths import ROOT
from tests.conftest import clean_environment

PRINT = f"{sys.executable} -c 'import json, os; print(json.dumps(dict(os.environ)))'"


@pytest.fixture
def uv_environment(tmp_path):
    """What uv would see: set_uv() run in a folder whose .venv is this one, with pip's configuration as given."""

    def see(pip_config: str = "", **env: str) -> dict[str, str]:
        (tmp_path / "pip.conf").write_text(pip_config)
        if not (tmp_path / ".venv").exists():
            (tmp_path / ".venv").mkdir()
            (tmp_path / ".venv" / "bin").symlink_to(ROOT / ".venv" / "bin")
            for name in ("kit", "scripts", "env"):
                (tmp_path / name).symlink_to(ROOT / name)
        base = {
            name: value
            for name, value in clean_environment().items()
            if not name.startswith(("PIP_", "UV_", "SSL_")) and "proxy" not in name.lower()
        }
        done = subprocess.run(
            ["sh", "-uc", f". {ROOT}/env/uv-settings.sh; set_uv; {PRINT}"],
            cwd=tmp_path,
            env=base | {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf")} | env,
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    return see


OF_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_EXTRA_INDEX_URL",
    "cert": "SSL_CERT_FILE",
    "proxy": "HTTPS_PROXY",
}


@pytest.mark.parametrize("way", ["variables", "configuration"])
def test_pips_settings_become_uvs(uv_environment, way):
    values = {key: f"http://127.0.0.1/{key}" for key in OF_UV}
    if way == "variables":
        seen = uv_environment(**{f"PIP_{key.replace('-', '_').upper()}": value for key, value in values.items()})
    else:
        seen = uv_environment("[global]\n" + "".join(f"{key} = {value}\n" for key, value in values.items()))
    assert {key: seen[name] for key, name in OF_UV.items()} == values


def test_uvs_own_settings_win(uv_environment):
    own = {"UV_DEFAULT_INDEX": "http://own/", "SSL_CERT_FILE": "/own.pem", "HTTPS_PROXY": "http://own:1"}
    seen = uv_environment(**own, PIP_INDEX_URL="http://pip/", PIP_CERT="/pip.pem", PIP_PROXY="http://pip:1")
    assert {name: seen[name] for name in own} == own


def test_the_systems_certificates_are_asked_only_where_none_are_named(uv_environment, tmp_path):
    assert "UV_SYSTEM_CERTS" not in uv_environment(SSL_CERT_FILE="/own.pem")
    # A pip without any configuration: this machine's own may name a certificate.
    (tmp_path / ".venv" / "bin").unlink()
    (tmp_path / ".venv" / "bin").mkdir()
    for name in ("python", "uv"):
        (tmp_path / ".venv" / "bin" / name).write_text('#!/bin/sh\n[ "$2" = scripts.environment ]\n')
        (tmp_path / ".venv" / "bin" / name).chmod(0o755)
    assert uv_environment()["UV_SYSTEM_CERTS"] == "1"


def test_offline_by_pips_word(uv_environment):
    assert uv_environment(PIP_NO_INDEX="1")["UV_NO_INDEX"] == "1"


def test_a_home_without_room_for_a_cache_does_without(uv_environment, tmp_path):
    (tmp_path / "file").write_text("")
    assert uv_environment(UV_CACHE_DIR=str(tmp_path / "file" / "cache"))["UV_NO_CACHE"] == "1"
    assert "UV_NO_CACHE" not in uv_environment(UV_CACHE_DIR=str(tmp_path / "cache"))


def test_of_pips_files_only_the_way_to_packages_counts(uv_environment):
    seen = uv_environment("[global]\nuser = true\ntarget = /tmp/x\nindex-url = http://127.0.0.1/simple\n")
    assert seen["PIP_INDEX_URL"] == "http://127.0.0.1/simple"
    assert seen["PIP_CONFIG_FILE"] == "/dev/null"
    assert not {"PIP_USER", "PIP_TARGET"} & set(seen)


UV_TOML = """
exclude-newer = "2020-01-01T00:00:00Z"
index-url = "http://127.0.0.1/simple"
no-binary = true
[[index]]
name = "own"
url = "https://user@own.example/simple"
default = true
[pip]
target = "/tmp/x"
python = "3.8"
find-links = ["/wheels", "https://example/wheels"]
"""


def test_of_uvs_files_only_the_way_to_packages_counts(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text(UV_TOML)
    monkeypatch.setenv("UV_CONFIG_FILE", str(tmp_path / "mine.toml"))
    uv_config.write(tmp_path / "left.toml")
    assert tomllib.loads((tmp_path / "left.toml").read_text()) == {
        "index-url": "http://127.0.0.1/simple",
        "index": [{"name": "own", "url": "https://user@own.example/simple", "default": True}],
        "pip": {"find-links": ["/wheels", "https://example/wheels"]},
    }


def test_the_users_word_counts_more_than_the_systems(tmp_path, monkeypatch):
    monkeypatch.delenv("UV_CONFIG_FILE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "system"))
    for name, text in {"home": 'index-url = "mine"\n', "system": 'index-url = "its"\nnative-tls = true\n'}.items():
        (tmp_path / name / "uv").mkdir(parents=True)
        (tmp_path / name / "uv" / "uv.toml").write_text(text)
    uv_config.write(tmp_path / "left.toml")
    left = tomllib.loads((tmp_path / "left.toml").read_text())
    assert (left["index-url"], left["native-tls"]) == ("mine", True)


def test_a_uv_toml_that_is_none_is_named(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text("[")
    monkeypatch.setenv("UV_CONFIG_FILE", str(tmp_path / "mine.toml"))
    with pytest.raises(KitError, match=r"uv's configuration .*mine\.toml cannot be read"):
        uv_config.write(tmp_path / "left.toml")
