#!/bin/sh
# Removes what can be made again: sh env/purge.sh [--force]. Never .env, and no tuned model: that cannot. POSIX sh.
set -u
CDPATH= cd "$(dirname "$0")/.." || exit 1

if [ "${1:-}" != --force ]; then
  if [ ! -t 0 ]; then
    echo "error: purge asks before it removes models/, reports/ and dist/, and there is nobody to ask." >&2
    echo "  next: make purge FORCE=1" >&2
    exit 1
  fi
  du -sh models reports dist 2>/dev/null
  printf 'Remove models/ (but what was tuned), reports/ and dist/ for good? [y/N] '
  read -r answer
  case $answer in [yY]*) ;; *) echo "nothing was removed"; exit 1 ;; esac
fi
rm -rf reports dist
kept=
for place in models/* models/.[!.]*; do
  [ -e "$place" ] || [ -L "$place" ] || continue
  if [ -f "$place/tune.json" ] || [ "${place%.tuning}" != "$place" ]; then kept="$kept $place"; else rm -rf "$place"; fi
done
if [ -n "$kept" ]; then
  echo "kept, for a tuning cannot be fetched again:$kept (make remove NAME=… removes one)" >&2
else
  rm -rf models
fi
