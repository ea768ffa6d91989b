"""Where things lie in a clone."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS_TOML = ROOT / "env" / "models.toml"
# What is made here, and can be made again.
MODELS = ROOT / "models"
REPORTS = ROOT / "reports"
DIST = ROOT / "dist"
