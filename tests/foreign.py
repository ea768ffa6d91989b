"""Environments of callers: what may be set and counts, and what must not reach the kit."""

from __future__ import annotations

import random

from kit.paths import ROOT

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
