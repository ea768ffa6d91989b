"""For env/bootstrap.sh, in the middle of a set-up: no library is there yet, and no click. An image is made with this
and what it imports alone (env/Dockerfile), so that a change of other source costs no installation.

`uv-config TARGET` writes what counts of uv's own configuration files; `prove` ends with what .venv has not of the lock.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kit.environment import lock, uv_config
from kit.errors import KitError
from kit.paths import ROOT

if __name__ == "__main__":
    try:
        if sys.argv[1] == "uv-config":
            uv_config.write(Path(sys.argv[2]))
        elif faults := lock.unproved(ROOT / ".venv"):
            sys.exit("; ".join(faults[:3]) + (f", and {len(faults) - 3} more" if len(faults) > 3 else ""))
    except KitError as error:
        sys.exit(f"error: {error.message}\n  next: {''.join(map(str, error.hint))}")
