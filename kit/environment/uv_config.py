"""uv's own configuration files, but for what has nothing to do with where packages come from and how they are reached.

What else may stand there (a target folder, a date before which packages must have been made) would decide about .venv.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from kit.errors import KitError

# https://docs.astral.sh/uv/reference/settings/
KEPT = {
    *("index", "index-url", "extra-index-url", "find-links", "no-index", "index-strategy", "keyring-provider"),
    *("allow-insecure-host", "native-tls", "system-certs", "http-proxy", "https-proxy", "no-proxy", "offline"),
    *("cache-dir", "no-cache", "link-mode", "concurrent-downloads", "python-install-mirror"),
}


def files() -> list[Path]:
    """Those that uv would read, the first one's word counting most: the user's, and the system's."""
    if os.environ.get("UV_CONFIG_FILE"):
        return [Path(os.environ["UV_CONFIG_FILE"])]
    if os.environ.get("UV_NO_CONFIG"):
        return []
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    system = [Path(folder) for folder in os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":") if folder]
    return [path for path in (folder / "uv" / "uv.toml" for folder in (home, *system, Path("/etc"))) if path.is_file()]


def kept(config: dict[str, Any]) -> dict[str, Any]:
    """Of one file's settings those that count; its table [pip] has the same."""
    left = {key: value for key, value in config.items() if key in KEPT}
    if isinstance(pip := config.get("pip"), dict) and (ours := kept(pip)):
        left["pip"] = ours
    return left


def toml(value: Any) -> str:
    """A value as TOML writes it in a line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def write(target: Path) -> None:
    """Raises KitError for a file that is no TOML."""
    import tomllib

    whole: dict[str, Any] = {}
    for path in files():
        try:
            config = kept(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise KitError(f"uv's configuration {path} cannot be read: {error}.", "mend it, or move it away") from error
        whole = {**config, **whole, "pip": {**config.get("pip", {}), **whole.get("pip", {})}}
    target.write_text("".join(f"{key} = {toml(value)}\n" for key, value in whole.items() if value), encoding="utf-8")
