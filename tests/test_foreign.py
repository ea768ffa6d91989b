"""The caller's environment is data: what would decide about the kit is cleared, and everything else passes."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys

import pytest

from kit import settings
from kit.environment import lock as locks
from kit.paths import ROOT
from tests.conftest import run_command

# What may be set, and must reach the programs.
LEGITIMATE = {
    **dict.fromkeys(("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_PROXY"), "http://127.0.0.1/"),
    **dict.fromkeys(("PIP_NO_INDEX", "PIP_TRUSTED_HOST", "PIP_CERT", "PIP_CACHE_DIR", "PIP_CONFIG_FILE"), "1"),
    **dict.fromkeys(("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_INDEX_STRATEGY"), "1"),
    **dict.fromkeys(("UV_NO_INDEX", "UV_INSECURE_HOST", "UV_SYSTEM_CERTS", "UV_NO_CACHE", "UV_LINK_MODE"), "1"),
    **dict.fromkeys(("UV_FIND_LINKS", "UV_CACHE_DIR", "UV_HTTP_TIMEOUT", "UV_INDEX_OWN_PASSWORD"), "1"),
    **dict.fromkeys(("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "ATEN_CPU_CAPABILITY", "MKL_VERBOSE"), "1"),
    **dict.fromkeys(
        ("HTTPS_PROXY", "SSL_CERT_FILE", "HF_HOME", "HF_ENDPOINT", "TRANSFORMERS_OFFLINE", "NAMELESS"), "1"
    ),
    **dict.fromkeys(("PYTHON", "PYTHONUTF8", "DOCKER_HOST", "HOME", "LANG"), "1"),
}


def nonsense() -> dict[str, str]:
    """Two hundred settings of the families that are cleared, and of no name that anybody has thought of."""
    rows = [row for row in (ROOT / "env" / "foreign.txt").read_text().splitlines() if row[:1].isupper()]
    names = [row.partition("|")[0].strip() for row in rows]
    draw = random.Random(5)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ_"
    known = "PYTHONSAFEPATH PYTHONHOME PYTHONPATH PYTHONOPTIMIZE PYTHONWARNINGS PYTHONSTARTUP PIP_USER PIP_TARGET"
    known += " PIP_REQUIRE_VIRTUALENV UV_PYTHON UV_TARGET UV_EXCLUDE_NEWER COMPOSE_FILE COMPOSE_PROJECT_NAME MPLBACKEND"
    known += " TRANSFORMERS_VERBOSITY PYTORCH_ENABLE_MPS_FALLBACK TORCH_LOGS LLAMA_ARG_N_PREDICT GGML_CUDA_P2P"
    found = dict.fromkeys(known.split(), "/nonsense")
    families = [name for name in names if name.endswith("*")]
    while len(found) < 200:
        found[draw.choice(families)[:-1] + "X" + "".join(draw.choices(letters, k=6))] = "/nonsense"
    return found | {name: "/nonsense" for name in names if not name.endswith("*")}


@pytest.fixture
def through_make(tmp_path):
    """What a program sees that the Makefile starts."""
    (tmp_path / "env").mkdir()
    for name in ("variables.txt", "foreign.txt"):
        shutil.copy(ROOT / "env" / name, tmp_path / "env" / name)
    makefile = (ROOT / "Makefile").read_text()
    show = f"{sys.executable} -I -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    (tmp_path / "Makefile").write_text(f"{makefile}\nshow:\n\t@{show}\n")

    def see(**env: str) -> dict[str, str]:
        done = run_command(["make", "-s", "show"], cwd=tmp_path, env=env)
        assert done.status == 0, done.err
        return json.loads(done.out)

    return see


def test_two_hundred_nonsense_settings_do_not_reach_what_make_starts(through_make):
    foreign = nonsense()
    assert len(foreign) >= 200
    assert not set(foreign) & set(through_make(**foreign))


def test_each_legitimate_one_reaches_it(through_make):
    seen = through_make(**LEGITIMATE)
    assert {name: seen.get(name) for name in LEGITIMATE} == LEGITIMATE


def test_a_verb_without_make_clears_them_too(monkeypatch):
    before = dict(os.environ)
    for name, value in (nonsense() | LEGITIMATE).items():
        monkeypatch.setenv(name, value)
    settings.clear_foreign()
    assert not set(nonsense()) & set(os.environ)
    assert {name: os.environ.get(name) for name in LEGITIMATE} == LEGITIMATE
    os.environ.update(before)


def test_a_run_answers_under_all_of_them(make):
    done = make("run", "METHOD=llamacpp", "MAX_NEW_TOKENS=2", "JSON=1", env=nonsense())
    assert done.status == 0, done.err
    assert json.loads(done.out)["new_tokens"] == 2


def test_a_set_up_proves_what_it_made(tmp_path):
    """Every package is there at its version, and each of its modules."""
    assert locks.unproved(ROOT / ".venv") == []
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    (packages / "click-8.0.0.dist-info").mkdir(parents=True)
    (packages / "click-8.0.0.dist-info" / "RECORD").write_text("click/__init__.py,sha256=x,1\nsix.py,,\nbin/x.py,,\n")
    faults = locks.unproved(tmp_path)
    assert any(fault.startswith("click is 8.0.0 and not ") for fault in faults)
    assert any(fault.startswith("torch is missing and not ") for fault in faults)
    assert {f"click-8.0.0.dist-info: {name} is missing" for name in ("click/__init__.py", "six.py")} <= set(faults)
