#!/bin/sh
# Builds a stand-in base image from Debian's packages, for machines and rooms that reach no container registry:
#   sudo sh env/local-base.sh && BASE_IMAGE=base-model-kit-base:bookworm make docker-run
# Does nothing where the image is there already. Needs root and debootstrap (Debian, Ubuntu: apt install debootstrap).
# DEBIAN_MIRROR is another mirror than Debian's own. POSIX sh.
set -u
CDPATH= cd "$(dirname "$0")/.." || exit 1
# Its Python is 3.11, the one of the image that env/Dockerfile pins.
suite=bookworm
image=base-model-kit-base:$suite

say() { printf '%s\n' "$*" >&2; }

die() {
  say "error: $1"
  say "  next: $2"
  exit 1
}

command -v docker >/dev/null 2>&1 || die "there is no docker client on this machine." "apt install docker.io"
docker image inspect "$image" >/dev/null 2>&1 && exit 0
docker version >/dev/null 2>&1 || die "the Docker engine is not running, or is not for this account." "sudo systemctl start docker, then: sudo sh env/local-base.sh"
command -v debootstrap >/dev/null 2>&1 || die "debootstrap is not installed." "apt install debootstrap"
[ "$(id -u)" = 0 ] || die "debootstrap needs root." "sudo sh env/local-base.sh"

folder=$(mktemp -d "${TMPDIR:-/tmp}/kit.XXXXXX") || die "no temporary folder can be made." "check TMPDIR"
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM
say "building $image from Debian's packages (a minute)"
# make, git and sudo are for the tests and for an editor's container.
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates,make,git,sudo "$suite" "$folder/root" \
  ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$folder/log" 2>&1 || {
  tail -5 "$folder/log" >&2
  die "debootstrap failed, with the words above." "check the network, or name a mirror: DEBIAN_MIRROR=http://…"
}
rm -rf "$folder/root/var/cache/apt" "$folder/root/var/lib/apt/lists" "$folder/root/var/log" "$folder/root/usr/share/doc/"*/changelog*
mkdir -p "$folder/root/var/log"
# A company's own certificates, where this machine names them: packages come through its proxy inside a container too.
certificates=
if [ -n "${SSL_CERT_FILE:-}" ]; then
  certificates=/etc/ssl/certs/ca-certificates.crt
  cp "$SSL_CERT_FILE" "$folder/root$certificates" || die "SSL_CERT_FILE=$SSL_CERT_FILE cannot be read." "unset it"
fi
tar -C "$folder/root" -c . | docker import ${certificates:+--change "ENV SSL_CERT_FILE=$certificates PIP_CERT=$certificates"} \
  - "$image" >/dev/null || die "the image could not be made." "docker info shows whether the engine runs"
say "$image is here"
