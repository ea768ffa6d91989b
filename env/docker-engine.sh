# Sourced by docker.sh: is there an engine that runs, and a Compose that is new enough? POSIX sh.

OLDEST_COMPOSE_MINOR=20 # of version 2

check_engine() {
  natively="make ${target#docker-}"
  command -v docker >/dev/null 2>&1 || die "there is no docker client on this machine." \
    "install Docker (Linux: the engine and its compose plugin; macOS: Docker Desktop); or natively: $natively"
  arch=$(docker version --format '{{.Server.Arch}}' 2>"$work/said") || {
    case $(cat "$work/said") in
      *"permission denied"*) die "this account may not talk to the Docker engine." \
        "sudo usermod -aG docker $(id -un), then log out and in again; or natively: $natively" ;;
    esac
    [ "$(uname -s)" = Darwin ] && start="open -a Docker" || start="sudo systemctl start docker"
    # An engine of the caller's choice, on another machine or in another context.
    for name in DOCKER_HOST DOCKER_CONTEXT; do
      eval "given=\${$name:-}"
      [ -z "$given" ] || start="unset $name (it is $given), or start the engine that it names"
    done
    die "the Docker engine is not running: $(head -1 "$work/said")" "$start, then the same command; or natively: $natively"
  }
  slow="under emulation a run takes many times as long, and may answer differently."
  native "${DOCKER_DEFAULT_PLATFORM:-}" || die \
    "DOCKER_DEFAULT_PLATFORM=$DOCKER_DEFAULT_PLATFORM asks for another processor than this engine's ($arch):
  $slow" "unset DOCKER_DEFAULT_PLATFORM, then the same command"
  case ${DOCKER_HOST:-unix:}:$(uname -m):$arch in
    unix:*:arm64:amd64 | unix:*:aarch64:amd64) die \
      "this machine's processor is arm64, and the Docker engine's machine is an emulated amd64:
  $slow" "make the engine's machine anew for arm64 (Colima: colima delete, then colima start --arch aarch64); or natively: $natively" ;;
  esac
}

# True for a platform (linux/arm64/v8) that the engine's own processor runs, and for none named.
native() {
  platform=${1%/v8}
  [ -z "$platform" ] || [ "${platform#linux/}" = "$arch" ]
}

check_compose() {
  compose="docker compose"
  version=$($compose version --short 2>/dev/null) || {
    compose=docker-compose
    version=$($compose version --short 2>/dev/null) ||
      die "Docker Compose is not here." "install the plugin (Debian, Ubuntu: apt install docker-compose-plugin or docker-compose-v2)"
  }
  version=${version#v}
  major=${version%%.*}
  minor=${version#*.}
  minor=${minor%%.*}
  [ "$major" != 1 ] || die "Compose here is version $version, which ended in 2023; the kit needs 2.$OLDEST_COMPOSE_MINOR or later." \
    "install the plugin (Debian, Ubuntu: apt install docker-compose-plugin or docker-compose-v2)"
  [ "$major" -gt 2 ] || [ "$minor" -ge "$OLDEST_COMPOSE_MINOR" ] ||
    die "Compose here is version $version; the kit needs 2.$OLDEST_COMPOSE_MINOR or later." "update Docker, or its compose plugin"
}
