#!/bin/sh
# What the locks could move to: sh env/outdated.sh. POSIX sh.
set -u
CDPATH= cd "$(dirname "$0")/.." || exit 1
. env/uv-settings.sh
set_uv
.venv/bin/uv pip list --outdated --python .venv/bin/python 2>.venv/outdated.log && exit 0
cat .venv/outdated.log >&2
printf '%s\n' "error: the package index was not asked: its words, or uv's, stand above." \
  "  next: check the network (and PIP_INDEX_URL, PIP_FIND_LINKS, HTTPS_PROXY if you use them), then: make outdated" >&2
exit 1
