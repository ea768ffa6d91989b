#!/bin/sh
# Removes what can be made again: sh env/purge.sh [--force]. Never .env. POSIX sh.
set -u
CDPATH= cd "$(dirname "$0")/.." || exit 1

if [ "${1:-}" != --force ]; then
  if [ ! -t 0 ]; then
    echo "error: purge asks before it removes models/, reports/ and dist/, and there is nobody to ask." >&2
    echo "  next: make purge FORCE=1" >&2
    exit 1
  fi
  du -sh models reports dist 2>/dev/null
  printf 'Remove models/, reports/ and dist/ for good? [y/N] '
  read -r answer
  case $answer in [yY]*) ;; *) echo "nothing was removed"; exit 1 ;; esac
fi
rm -rf models reports dist
