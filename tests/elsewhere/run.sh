#!/bin/sh
# The tests as on another machine (mac, aarch64), imitated on Linux: in a copy of the kit, whose Python says it is there.
#   sh tests/elsewhere/run.sh mac [pytest's words]
set -eu
machine=$1
shift
lock=linux
[ "$machine" != mac ] || lock=macos
copy=$(mktemp -d "${TMPDIR:-/tmp}/elsewhere.XXXXXX")
trap 'rm -rf "$copy"' EXIT
trap 'exit 130' INT TERM

git clone -q . "$copy" 2>/dev/null || : # some tests ask git
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$copy"
cp -al .venv "$copy/.venv" 2>/dev/null || cp -a .venv "$copy/.venv" # another file system has no links
cp -a models "$copy/models"
cd "$copy"
# What differs from this machine's is a file of the copy's own: the others are links.
site=$(echo .venv/lib/python3.*/site-packages)
cp tests/elsewhere/other_machine.py "$site/"
echo 'import other_machine' >"$site/zz_other_machine.pth"
if [ "$machine" = mac ]; then
  # It asks for Apple's frameworks, and jupytext for it where it is there.
  [ ! -d "$site/jupyter_server" ] || mv "$site/jupyter_server" "$site/jupyter_server.gone"
  ln "$site/torch/lib/libtorch_global_deps.so" "$site/torch/lib/libtorch_global_deps.dylib"
  # The wheel for macOS has no +cpu in its version.
  for about in "$site"/torch-*+cpu.dist-info; do
    sed 's/^\(Version: .*\)+cpu$/\1/' "$about/METADATA" >"$about/METADATA.mac"
    mv "$about/METADATA.mac" "$about/METADATA"
    mv "$about" "${about%+cpu.dist-info}.dist-info"
  done
fi
rm -f .venv/ready .venv/lock.txt
cp "env/lock/$lock.txt" .venv/lock.txt
printf '%s\n' "$(pwd -P)/.venv" >.venv/ready
# What the tools' locks have for that machine alone is a name here, and what they have for this one alone is none.
env -u KIT_TESTS_ELSEWHERE .venv/bin/python - "$machine" "$site" <<'END'
import dataclasses, pathlib, sys
from kit.environment import lock
machine, site = sys.argv[1:]
here = lock.this()
there = dataclasses.replace(here, platform="macos-arm64" if machine == "mac" else "linux-aarch64")
extras = tuple(lock.extras_of(pathlib.Path(".venv")))
packages = {target: {pin.name for pin in lock.pins(dataclasses.replace(target, extras=extras))} for target in (here, there)}
for pin in lock.pins(dataclasses.replace(there, extras=extras)):
    if pin.name not in packages[here]:
        about = pathlib.Path(site, f"{pin.name.replace('-', '_')}-{pin.version}.dist-info", "METADATA")
        about.parent.mkdir()
        about.write_text(f"Metadata-Version: 2.1\nName: {pin.name}\nVersion: {pin.version}\n")
for name in packages[here] - packages[there]:
    for folder in pathlib.Path(site).glob(f"{name.replace('-', '_')}-*.dist-info"):
        folder.rename(folder.with_suffix(".gone"))
END
export KIT_TESTS_ELSEWHERE="$machine" PATH="$copy/tests/elsewhere/$machine:$PATH"
# aarch64 is another processor and nothing else: what speaks of processors and platforms is enough.
tests=tests
[ "$machine" = mac ] || tests=$(grep -lE 'aarch64|x86_64|platform' tests/test_*.py)
# shellcheck disable=SC2086 - several files
[ $# -gt 0 ] || set -- -n "$(($(getconf _NPROCESSORS_ONLN) + 1))" --dist worksteal -m "not slow" $tests
.venv/bin/python -m pytest -q "$@"
