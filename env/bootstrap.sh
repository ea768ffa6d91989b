#!/bin/sh
# Makes .venv out of the lock: sh env/bootstrap.sh [dev]; with `which` it only says which Python it would take.
#
# Does nothing, in a few milliseconds, when .venv is what the lock says. Otherwise it finds a Python, makes .venv, gets uv
# (a pinned, hashed wheel) into it and lets it install the lock: uv takes 4 to 7 s where pip takes 59 s.
# Settings: PYTHON; pip's and uv's own for index, find-links, proxy and CA.
#
# POSIX sh, for macOS's and Debian's.
set -u

cd "$(dirname "$0")/.." || exit 1
root=$(pwd -P)

# The Python that uv brings where the machine has none between 3.11 and 3.13.
FALLBACK_PYTHON=3.13.18
# PyTorch's own page of CPU wheels: a flat list of links, so it can decide about torch and about nothing else.
TORCH_PAGE=https://download.pytorch.org/whl/cpu/torch/
# .venv takes 970 MB (docs/measurements.md), and the wheels pass through once.
NEEDED_MB=1300
RESUME="the same command again goes on from here"

say() { printf '%s\n' "$*" >&2; }

# What happened, and what to type next.
die() {
  say "error: $1"
  say "  next: $2"
  exit 1
}

case $(uname -s) in
  Linux) lock=env/lock/linux.txt ;;
  Darwin) lock=env/lock/macos.txt ;;
  *) die "the kit runs on Linux and macOS, and this is $(uname -s)." "on Windows, use WSL 2" ;;
esac

torch_version() { sed -n 's/^torch==\([^ ;]*\).*/\1/p' "$lock"; }

# Once it has the development tools, .venv keeps them.
want_dev=
{ [ "${1:-}" = dev ] || [ -f .venv/lock-dev.txt ]; } && want_dev=1

. env/find-python.sh
. env/uv-settings.sh

# True for a .venv that is in its place, finished once, and made with the Python that is asked for (if one is).
in_place() {
  [ -x .venv/bin/python ] && [ "$(cat .venv/ready 2>/dev/null)" = "$root/.venv" ] &&
    { [ -z "${PYTHON:-}" ] || [ "$(describe "$PYTHON")" = "$(cat .venv/made-with)" ]; }
}

is_ready() {
  in_place && cmp -s "$lock" .venv/lock.txt && { [ -z "$want_dev" ] || cmp -s env/lock/dev.txt .venv/lock-dev.txt; }
}

if [ "${1:-}" = which ]; then
  check_machine
  find_python
  check_venv
  printf '%s%s\n' "$(describe "$python")" "${borrowed:+, which does not fit: uv will bring $FALLBACK_PYTHON}"
  exit 0
fi

is_ready && exit 0

# One set-up at a time: the lock is on the folder env/, held by an open file of this process and its children, and dies
# with them.
if [ "${2:-}" != --locked ]; then
  check_machine
  find_python
  exec "$python" -c '
import fcntl, os, sys
folder = os.open("env", os.O_RDONLY)
os.set_inheritable(folder, True)
try:
    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.stderr.write("another set-up is at work in this folder: waiting for it\n")
    sys.stderr.flush()
    fcntl.flock(folder, fcntl.LOCK_EX)
os.execv("/bin/sh", ["sh", "env/bootstrap.sh", sys.argv[1], "--locked"])
' "${1:-}"
fi
is_ready && exit 0 # the other one has done it
find_python

# What belongs to another environment must not decide about this one.
unset PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX VIRTUAL_ENV

# Runs a command; its output goes to the log and, without the lists of packages, to the person.
logged() {
  { "$@" 2>&1; echo "$?" >.venv/status; } | tee .venv/setup.log | sed '/^ [+~-] /d; /^WARNING: Location .* is ignored/d' >&2
  [ "$(cat .venv/status)" = 0 ]
}

# Ends with the likely cause of a step's failure, read from the log. $1: the step.
explain() {
  while read -r pattern; do
    grep -qiE "$pattern" .venv/setup.log && break
    pattern=
  done <<'END'
no space left|disk quota|os error 28
hash mismatch|do not match the hashes
certificate|unknownissuer
dns error|resolve|connect|timed out|unreachable|proxy|name or service|no version|find a version|was not found
END
  case $pattern in
    *space*) die "$1 failed: the disk is full." "free $NEEDED_MB MB, then the same command" ;;
    *hash*) die "$1 failed: a package is not the pinned one (its sha256 differs), and was not installed." \
      "try another network; if you use a mirror of the package index, tell its keeper" ;;
    *certificate*) die "$1 failed: a server's certificate was refused." \
      "behind a company proxy, name its CA file: SSL_CERT_FILE=/path/to/ca.pem, then the same command" ;;
    *dns*) die "$1 failed: a server could not be reached, or does not have the package (its words stand above)." \
      "check the network (and PIP_INDEX_URL, PIP_FIND_LINKS, HTTPS_PROXY if you use them); $RESUME" ;;
    *) die "$1 failed, with the words above (.venv/setup.log has all of them)." "$RESUME" ;;
  esac
}

make_venv() {
  check_venv
  rm -rf .venv || die ".venv cannot be removed." "remove it by hand, then the same command"
  free_mb=$(df -Pk . | awk 'NR == 2 { print int($4 / 1024) }')
  [ "$free_mb" -ge "$NEEDED_MB" ] ||
    die "the environment needs $NEEDED_MB MB on this disk, and $free_mb MB are free." "free some room, then the same command"
  say "making .venv with Python $(describe "$python")"
  mkdir .venv || die ".venv cannot be made in $root." "check who owns the folder and whether it can be written"
  logged "$python" -m venv .venv || explain "making .venv"
  # The lock's own entry for uv, with its hashes.
  awk '/^[^ ]/ { wanted = /^uv==/ } wanted' "$lock" >.venv/uv.txt
  logged .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes \
    --only-binary :all: -r .venv/uv.txt || explain "fetching uv"
}

# For a machine whose Pythons are too old or too new (a Mac's own is 3.9 or 3.14).
fetch_python() {
  wanted=$FALLBACK_PYTHON
  [ "$(uname -s)" != Darwin ] || wanted=cpython-$FALLBACK_PYTHON-macos-aarch64-none
  say "no Python fits here:$seen"
  say "uv brings Python $FALLBACK_PYTHON"
  make_venv
  set_uv
  logged .venv/bin/uv python install "$wanted" || {
    grep -i '^error\|cause' .venv/setup.log >&2
    die "Python $FALLBACK_PYTHON could not be fetched." "install Python 3.13 yourself, then: make setup PYTHON=python3.13"
  }
  python=$(.venv/bin/uv python find --managed-python "$wanted") || die "uv did not bring a Python." "$RESUME"
}

# Installs the lock, and removes what is not in it.
sync() {
  links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$(pip_setting find-links)}}
  unset UV_FIND_LINKS
  [ -n "$links" ] || [ "$lock" != env/lock/linux.txt ] || links=$TORCH_PAGE
  set -- "$lock"
  [ -z "$want_dev" ] || set -- "$@" env/lock/dev.txt
  # pip's list is blank-separated, uv's comma-separated.
  for link in $(printf '%s' "$links" | tr ',' ' '); do set -- "$@" --find-links "$link"; done
  logged .venv/bin/uv pip sync --python .venv/bin/python --require-hashes --only-binary :all: "$@" ||
    explain "installing the packages"
}

if ! in_place || [ ! -x .venv/bin/uv ]; then
  [ ! -e .venv ] || say "the .venv that is here is unfinished, moved, or made with another Python: making it anew"
  [ -z "$borrowed" ] || fetch_python
  make_venv
fi
rm -f .venv/ready # from here on it is unfinished
set_uv
say "installing $(grep -c '^[a-z0-9].*==' "$lock") packages (the largest: torch $(torch_version))"
sync
describe .venv/bin/python >.venv/made-with
cp "$lock" .venv/lock.txt
[ -z "$want_dev" ] || cp env/lock/dev.txt .venv/lock-dev.txt
{ printf '%s\n' "$root/.venv" >.venv/ready.partial && mv .venv/ready.partial .venv/ready; } ||
  die ".venv could not be finished." "$RESUME"
