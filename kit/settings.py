""".env and the environment. Imported before torch, transformers or huggingface_hub, which read theirs at import.

Order: make variable or flag, environment, .env, default. The options of a verb are the first two, and take what
`read` returns for the third.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from kit import dotenv_file
from kit.errors import KitError

# What .env may set: for the verbs' options, and for the libraries.
OPTION_NAMES = [
    *("MODEL", "DEVICE", "METHOD", "DTYPE", "PROMPT", "PROMPT_FILE", "MAX_NEW_TOKENS", "SEED", "TEMPERATURE", "JSON"),
    *("QUANT", "REPO", "REVISION", "NAME"),
]
# What .env may set for the container (env/docker.sh).
CONTAINER_NAMES = ("BASE_IMAGE", "MEMORY")
LIBRARY_NAMES = (
    *("HF_TOKEN", "HF_ENDPOINT", "HF_HOME", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE", "KIT_DEBUG"),
)

KNOWN = {*OPTION_NAMES, *LIBRARY_NAMES, *CONTAINER_NAMES}


@dataclass(frozen=True)
class Settings:
    """What .env says. `values` by name, as written; `warnings` a line each, for stderr."""

    values: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read(path: Path = dotenv_file.PATH) -> Settings:
    """Reads .env; none is an empty one. Raises KitError that names each line that readers would disagree about."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        following = "move it away: .env is a file" if path.is_dir() else "chmod 600 .env"
        raise KitError(f".env cannot be read: {error.strerror}.", following) from error
    faults = dotenv_file.faults(content)
    if faults:
        lines = "\n".join(f"  line {fault.line}: {fault.text}" for fault in faults)
        raise KitError(f".env has what its readers read differently:\n{lines}", "see .env.example for the form")

    from dotenv import dotenv_values

    values = {name: value for name, value in dotenv_values(path, interpolate=False).items() if value}
    warnings = [f"{what}: {following}" for what, following in dotenv_file.exposures(path)]
    warnings += [f".env sets {name}, which nothing here reads" for name in values if name not in KNOWN]
    return Settings(values, tuple(warnings))


def apply(settings: Settings) -> None:
    """Puts what the libraries read into the environment, where the environment does not say otherwise already."""
    for name in LIBRARY_NAMES:
        # An empty variable is none: CI systems and `docker run -e` pass those on.
        if name in settings.values and not os.environ.get(name):
            os.environ[name] = settings.values[name]
