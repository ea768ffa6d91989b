#!/bin/sh
# What `make setup BUNDLE=…` does before there is an environment: takes wheels and models out of a bundle, with the Python
# that bootstrap.sh will make .venv with. POSIX sh.
set -u
[ -n "${BUNDLE:-}${SHA256:-}" ] || exit 0
CDPATH= cd "$(dirname "$0")/.." || exit 1

say() { printf '%s\n' "$*" >&2; }

# What happened, and what to type next.
die() {
  say "error: $1"
  say "  next: $2"
  exit 1
}

case $(uname -s) in
  Linux) lock=env/lock/linux.txt ;;
  *) lock=env/lock/macos.txt ;;
esac
torch_version() { sed -n 's/^torch==\([^ ;]*\).*/\1/p' "$lock"; }

. env/find-python.sh

if [ -z "${PYTHON:-}" ] && is_here "$(cat .venv/ready 2>/dev/null)"; then
  python=.venv/bin/python
else
  check_machine
  find_python
  [ -z "$borrowed" ] || die "a bundle brings no Python, and none here fits:$seen" \
    "install Python 3.11, 3.12 or 3.13 (the one that the bundle's README names), then the same command"
fi
exec "$python" -m scripts.unbundle
