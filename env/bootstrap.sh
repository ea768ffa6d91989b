#!/bin/sh
# Makes .venv out of the lock: sh env/bootstrap.sh [dev] (EXTRA=… besides); with `which` it only says which Python it would take.
#
# Does nothing, in a few milliseconds, when .venv is what the lock says. Otherwise it finds a Python, makes .venv, gets uv
# (a pinned, hashed wheel) into it and lets it install the lock: uv takes 4 to 7 s where pip takes 59 s.
# Settings: PYTHON; pip's and uv's own for index, find-links, proxy and CA.
#
# POSIX sh, for macOS's and Debian's.
set -u

CDPATH= cd "$(dirname "$0")/.." || exit 1
root=$(pwd -P)

# The Python that uv brings where the machine has none between 3.11 and 3.13.
FALLBACK_PYTHON=3.13.18
# PyTorch's own page of CPU wheels: a flat list of links, so it can decide about torch and about nothing else.
TORCH_PAGE=https://download.pytorch.org/whl/cpu/torch/
# .venv with the development tools, bytecode and uv's cache on the same disk: 1374 MB (measured).
NEEDED_MB=1400
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

# What the lock pins of the package $1.
version_of() { sed -n "s/^$1==\\([^ ;]*\\).*/\\1/p" "$lock"; }
torch_version() { version_of torch; }

# The lock's own entries of the packages $*, with their hashes.
entries() { awk -v names=" $* " '/^[^ ]/ { name = $1; sub(/==.*/, "", name); wanted = index(names, " " name " ") } wanted' "$lock"; }

# What .venv has beside the lock, in locks of their own: the development tools, and what EXTRA names. Once there, it stays.
asked=
case " ${KIT_TYPED:-} " in *" EXTRA "*) asked=$(printf '%s' "${EXTRA:-}" | tr ',' ' ') ;; esac
extras= choice=
for file in env/lock/*.txt; do
  name=${file##*/}
  name=${name%.txt}
  case $name in linux | macos) continue ;; dev) ;; *) choice="$choice $name" ;; esac
  case " ${1:-} $asked " in *" $name "*) extras="$extras $name" && continue ;; esac
  [ ! -f ".venv/lock-$name.txt" ] || extras="$extras $name"
done
for name in $asked; do
  case " $choice " in *" $name "*) ;; *) die "EXTRA=$EXTRA: there is no $name." "make setup EXTRA=${choice# }" ;; esac
done

. env/find-python.sh
. env/uv-settings.sh

# True for a .venv that is in its place, finished once, and made with the Python that is asked for (if one is).
in_place() {
  [ -x .venv/bin/python ] && is_here "$(cat .venv/ready 2>/dev/null)" &&
    { [ -z "${PYTHON:-}" ] || [ "$(describe "$PYTHON")" = "$(cat .venv/made-with)" ]; }
}

is_ready() {
  in_place && cmp -s "$lock" .venv/lock.txt || return
  for name in $extras; do cmp -s "env/lock/$name.txt" ".venv/lock-$name.txt" || return; done
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
except OSError as error:
    sys.stderr.write("note: this file system has no locks (%s): one set-up at a time, please\n" % error.strerror)
    sys.stderr.flush()
os.execv("/bin/sh", ["sh", "env/bootstrap.sh", sys.argv[1], "--locked"])
' "${1:-}"
fi
is_ready && exit 0 # the other one has done it
find_python

# Runs a command; its output goes to the log and, without uv's lists and counts, to the person.
logged() {
  { "$@" 2>&1; echo "$?" >.venv/status; } | tee .venv/setup.log |
    sed -e '/^ [+~-] /d' -e '/^ Downloaded /d' -e '/^WARNING: Location .* is ignored/d' -e '/^Using /d' -e '/^Resolved /d' \
      -e '/^Prepared /d' -e '/^Uninstalled /d' -e '/^Installed /d' -e '/^Audited /d' -e '/^Checked /d' >&2
  [ "$(cat .venv/status)" = 0 ]
}

# Ends with the likely cause of a step's failure, read from the log. $1: the step.
explain() {
  while read -r pattern; do
    grep -qiE "$pattern" .venv/setup.log && break
    pattern=
  done <<'END'
no space left|dis[ck] quota|os error 28
permission denied|read-only file system|operation not permitted
hash mismatch|do not match the hashes
certificate|unknownissuer
wheels with a matching
dns error|resolve|connect|timed out|unreachable|proxy|name or service|no version|find a version|was not found
END
  case $pattern in
    *space*) die "$1 failed: the disk is full." "free $NEEDED_MB MB, then the same command" ;;
    *permission*) die "$1 failed: this account may not write where it has to (its words stand above)." \
      "check who owns this folder and your home, then the same command" ;;
    *hash*) die "$1 failed: a package is not the pinned one (its sha256 differs), and was not installed." \
      "try another network; if you use a mirror of the package index, tell its keeper" ;;
    *certificate*) die "$1 failed: a server's certificate was refused." \
      "behind a company proxy, name its CA file: SSL_CERT_FILE=/path/to/ca.pem, then the same command" ;;
    *wheels*) die "$1 failed: where packages are looked for, one has no wheel for this Python (its words stand above)." \
      "another Python: make setup PYTHON=python3.11; or another index or find-links (PIP_INDEX_URL, PIP_FIND_LINKS)" ;;
    *dns*) die "$1 failed: a server could not be reached, or does not have the package (its words stand above)." \
      "check the network (and PIP_INDEX_URL, PIP_FIND_LINKS, HTTPS_PROXY if you use them); $RESUME" ;;
    *) die "$1 failed, with the words above (.venv/setup.log has all of them)." "$RESUME" ;;
  esac
}

# Says where the lock's own uv lies in env/wheels/, with its pip; fails where they do not. There is no pip yet to find it.
brought_uv() {
  "$python" -c 'import sys; from kit.environment import wheels; print(*wheels.brought(sys.argv[1:]), sep="\n")' uv pip 2>/dev/null
}

is_empty() { [ -z "$(ls -A "$1" 2>/dev/null)" ]; }

make_venv() {
  uv_wheel=$(brought_uv | head -n 1)
  [ -n "$uv_wheel" ] || check_venv
  # An editor's container has a volume there, which can be emptied and not removed.
  rm -rf .venv 2>/dev/null || is_empty .venv || die ".venv cannot be removed." "remove it by hand, then the same command"
  free_mb=$(df -Pk . | awk 'NR == 2 { print int($4 * 1.024 / 1000) }')
  [ "$free_mb" -ge "$NEEDED_MB" ] ||
    die "the environment needs $NEEDED_MB MB on this disk, and $free_mb MB are free." "free some room, then the same command"
  say "making .venv with Python $(describe "$python")"
  mkdir -p .venv || die ".venv cannot be made in $root." "check who owns the folder and whether it can be written"
  if [ -n "$uv_wheel" ]; then
    # venv's own pip would be made to install one wheel: 4 s where this takes 1.
    logged "$python" -m venv --without-pip .venv || explain "making .venv"
    entries uv pip >.venv/uv.txt
    logged "$python" -m zipfile -e "$uv_wheel" .venv/uv && chmod +x .venv/uv/uv-*/scripts/uv &&
      logged .venv/uv/uv-*/scripts/uv pip install -q --python .venv/bin/python --no-deps --require-hashes --no-config \
        --no-cache --offline --no-index --find-links env/wheels -r .venv/uv.txt || explain "unpacking uv"
    rm -rf .venv/uv
    return
  fi
  logged "$python" -m venv .venv || explain "making .venv"
  entries uv >.venv/uv.txt
  set_pip
  set --
  ! brought "uv-$(version_of uv)-*" || set -- --no-index --find-links env/wheels
  logged .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes \
    --only-binary :all: "$@" -r .venv/uv.txt || explain "fetching uv"
}

# For a machine whose Pythons are too old or too new (a Mac's own is 3.9 or 3.14).
fetch_python() {
  wanted=$FALLBACK_PYTHON
  [ "$(uname -s)" != Darwin ] || wanted=cpython-$FALLBACK_PYTHON-macos-aarch64-none
  say "no Python fits here:$seen"
  say "uv brings Python $FALLBACK_PYTHON"
  make_venv
  set_uv
  logged .venv/bin/uv python install "$wanted" ||
    die "Python $FALLBACK_PYTHON could not be fetched." "install Python 3.13 yourself, then: make setup PYTHON=python3.13"
  python=$(.venv/bin/uv python find --managed-python "$wanted") || die "uv did not bring a Python." "$RESUME"
}

# True where wheels of that name lie in env/wheels/. $1: a pattern.
brought() { ls env/wheels/$1.whl >/dev/null 2>&1; }

uv_sync() { .venv/bin/uv pip sync --python .venv/bin/python --require-hashes --only-binary :all: "$@"; }

# Installs the lock, and removes what is not in it.
sync() {
  links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
  unset UV_FIND_LINKS
  [ -n "$links" ] || [ "$lock" != env/lock/linux.txt ] || brought 'torch-*' || links=$TORCH_PAGE
  set -- "$lock"
  for name in $extras; do set -- "$@" "env/lock/$name.txt"; done
  if brought '*'; then
    set -- "$@" --find-links env/wheels
    # Where they are enough, no index is asked: it may be out of reach, or not have them.
    uv_sync --dry-run --offline --no-index "$@" >/dev/null 2>&1 && links= && set -- "$@" --offline --no-index
  fi
  # pip's list is blank-separated, uv's comma-separated.
  for link in $(printf '%s' "$links" | tr ',' ' '); do set -- "$@" --find-links "$link"; done
  logged uv_sync "$@" || explain "installing the packages"
}

if ! in_place || [ ! -x .venv/bin/uv ]; then
  is_empty .venv || say "the .venv that is here is unfinished, moved, or made with another Python: making it anew"
  [ -z "$borrowed" ] || fetch_python
  make_venv
fi
rm -f .venv/ready # from here on it is unfinished
set_uv
say "installing $(grep -c '^[a-z0-9].*==' "$lock") packages (the largest: torch $(torch_version))"
sync
fault=$(.venv/bin/python -m scripts.environment prove 2>&1) ||
  die ".venv is not what the lock says, though its packages were installed: $fault" "make clean setup"
describe .venv/bin/python >.venv/made-with
cp "$lock" .venv/lock.txt
for name in $extras; do cp "env/lock/$name.txt" ".venv/lock-$name.txt"; done
{ printf '%s\n' "$root/.venv" >.venv/ready.partial && mv .venv/ready.partial .venv/ready; } ||
  die ".venv could not be finished." "$RESUME"
