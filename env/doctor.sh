#!/bin/sh
# Runs the doctor with whatever Python is at hand, from 3.9 on, .venv's first. POSIX sh.
set -u
CDPATH= cd "$(dirname "$0")/.." || exit 1

for name in .venv/bin/python python3.13 python3.12 python3.11 python3 python; do
  "$name" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null && exec "$name" -m scripts.doctor "$@"
done
echo "error: no Python 3.9 or later was found." >&2
echo "  next: install Python 3.13 (macOS: brew install python@3.13, Debian: apt install python3 python3-venv)" >&2
exit 1
