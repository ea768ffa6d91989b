# Sourced by bootstrap.sh: which Python makes .venv. Sets `python` (its path) and, where that one is only good for
# fetching another that fits, `borrowed`. POSIX sh.

# Prints why the Python $1 cannot be used, nothing where it can. The snippet is read by any Python 3.
obstacle() {
  "$1" - 2>/dev/null <<'END' || printf 'it does not run'
import platform, sys, sysconfig
system, arch = platform.system(), platform.machine()
if sys.version_info[:2] < (3, 11) or sys.version_info[:2] > (3, 13):
    print("it is Python %d.%d, and the kit needs 3.11, 3.12 or 3.13" % sys.version_info[:2])
elif platform.python_implementation() != "CPython":
    print("it is %s, and the kit needs CPython" % platform.python_implementation())
elif system == "Darwin" and arch != "arm64":
    print("it is an x86_64 Python, and torch has wheels for Apple Silicon only")
elif "musl" in (sysconfig.get_config_var("SOABI") or ""):
    print("it is built on musl (Alpine), and torch has wheels for glibc only")
END
}

# The interpreter behind a launcher or a virtual environment, which may be the .venv that is about to be made anew.
base_of() { "$1" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))'; }

# True where $1, which .venv/ready names, is this .venv: the folder and not its spelling, for a disk may take no notice of
# small and large letters.
is_here() {
  [ "$1" = "$(pwd -P)/.venv" ] ||
    { [ -d "$1" ] && [ "$(ls -di "$1/." | awk '{ print $1 }')" = "$(ls -di .venv/. | awk '{ print $1 }')" ]; }
}

# Version and place of the Python $1: what .venv remembers of the one that it was made with.
describe() { "$1" -c 'import sys; print(sys.version.split()[0], sys.base_prefix)' 2>/dev/null; }

# The machine itself, before any Python is blamed.
check_machine() {
  torch=$(torch_version)
  case $(uname -s) in
    Linux)
      case $(uname -m) in
        x86_64 | aarch64 | arm64) ;;
        *) die "torch has no wheels for Linux on $(uname -m)." "use an x86_64 or aarch64 machine" ;;
      esac ;;
    Darwin)
      # A shell under Rosetta says x86_64 on Apple Silicon too: what counts there is the Python.
      if [ "$(uname -m)" = x86_64 ] && [ "$(sysctl -n hw.optional.arm64 2>/dev/null)" != 1 ]; then
        die "this Mac has an Intel processor, and torch $torch has no wheels for it." \
          "use an Apple Silicon Mac or a Linux machine"
      fi
      macos=$(sw_vers -productVersion)
      [ "${macos%%.*}" -ge 14 ] || die "torch $torch needs macOS 14 or later, and this is $macos." "update macOS" ;;
  esac
}

find_python() {
  borrowed=
  if [ -n "${PYTHON:-}" ]; then
    command -v "$PYTHON" >/dev/null 2>&1 || die "PYTHON=$PYTHON is not there." "make setup PYTHON=python3.12"
    why=$(obstacle "$PYTHON")
    [ -z "$why" ] || die "PYTHON=$PYTHON cannot be used: $why." "make setup PYTHON=python3.12"
    python=$(base_of "$PYTHON")
    return
  fi
  seen=
  for name in python3.13 python3.12 python3.11 python3; do
    command -v "$name" >/dev/null 2>&1 || continue
    why=$(obstacle "$name")
    if [ -z "$why" ]; then
      python=$(base_of "$name")
      return
    fi
    [ "$why" != "it does not run" ] || continue # a launcher without a Python behind it
    seen="$seen
  $name: $why"
    case $why in *musl*) ;; *) borrowed=$(base_of "$name") ;; esac
  done
  python=$borrowed
  [ -n "$borrowed" ] || die "no Python 3.11, 3.12 or 3.13 was found.$seen" \
    "install one (macOS: brew install python@3.13, Debian: apt install python3 python3-venv), then the same command"
}

# Debian's minimal Python comes without venv or without ensurepip.
check_venv() {
  "$python" -c 'import venv, ensurepip' 2>/dev/null && return
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  die "$python (Python $version) comes without venv or ensurepip, so it cannot make an environment." \
    "apt install python$version-venv (as root), then the same command"
}
