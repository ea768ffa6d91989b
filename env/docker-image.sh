# Sourced by docker.sh: the image, built where what it is made of has changed. POSIX sh.

if command -v sha256sum >/dev/null 2>&1; then hash_with=sha256sum; else hash_with="shasum -a 256"; fi

# The sha256 of each of the files that stdin names, a line each.
sha256() { tr '\n' '\0' | xargs -0 $hash_with; }

# One word for all that the image is made of: the tag that it gets. The commit too, which a label names.
tag() {
  {
    find "$@" -type f ! -path '*/__pycache__/*' ! -name '*.whl' ! -name .DS_Store -print | LC_ALL=C sort | sha256
    printf '%s\n' "$KIT_COMMIT" "${BASE_IMAGE:-}" "$base_id"
  } | $hash_with | cut -c 1-12
}

# As kit/environment/facts.py has it: a copy without git knows the commit that it was made of.
name_commit() {
  if [ -e .git ]; then
    KIT_COMMIT=$(git rev-parse HEAD 2>/dev/null || echo unknown)
    [ -z "$(git status --porcelain 2>/dev/null)" ] || KIT_COMMIT=$KIT_COMMIT-changed
  else
    KIT_COMMIT=$(cat env/commit)
    case $KIT_COMMIT in *[!0-9a-f]* | '') KIT_COMMIT=unknown ;; esac
  fi
}

# $1: the service. Builds its image where there is none of what is here now.
need_image() {
  check_engine
  made_of="kit scripts env .dockerignore LICENSE README.md docker-compose.yml"
  [ "$1" != test ] || made_of="$made_of tests docs Makefile pyproject.toml CONTRIBUTING.md .github .ci .env.example .gitignore"
  name_commit
  check_base
  KIT_IMAGE_TAG=$(tag $made_of)
  export KIT_COMMIT KIT_IMAGE_TAG
  image=base-model-kit:$KIT_IMAGE_TAG
  [ "$1" != test ] || image=base-model-kit-test:$KIT_IMAGE_TAG
  check_compose
  docker image inspect --format '{{.Id}}' "$image" >/dev/null 2>&1 || build "$1"
  # What can be used by hand, too: docker compose run --rm run.
  docker tag "$image" "${image%:*}:latest"
}

# A base image of one's own: which one it is, and whether this engine's processor runs it.
check_base() {
  base_id=
  [ -n "${BASE_IMAGE:-}" ] || return 0
  said=$(docker image inspect --format '{{.Os}}/{{.Architecture}} {{.Id}}' "$BASE_IMAGE" 2>/dev/null) || return 0
  base_id=${said#* }
  native "${said%% *}" || die "BASE_IMAGE=$BASE_IMAGE is for ${said%% *}, and this engine's processor is $arch." \
    "unset BASE_IMAGE, or make it on this machine: sudo sh env/local-base.sh"
}

build() {
  say "building $image"
  lend_settings
  bring_torch
  LOCK_SHA256=$(echo env/lock/linux.txt | sha256 | cut -c 1-64)
  export LOCK_SHA256
  $compose --env-file /dev/null build "$1" >"$work/log" 2>&1 </dev/null || explain_build
}

explain_build() {
  case $(cat "$work/log") in
    *"no space left"* | *"disk is full"*)
      die "the image was not built: the disk is full." "docker builder prune frees some; it needs 4 GB"
      ;;
    *"load metadata"*"dial tcp"* | *"failed to resolve"* | *"failed to do request"* | *"pull access denied"* | *"no such host"*)
      die "the image was not built: the base image could not be fetched." \
        "check the network; where no registry is in reach: sudo sh env/local-base.sh, then
  make $target BASE_IMAGE=base-model-kit-base:bookworm"
      ;;
    *)
      grep -vE '^#[0-9]+ (CACHED|DONE|transferring|\.\.\.|\[)' "$work/log" | tail -20 >&2
      die "the image was not built, with the words above." "where it was the network, the same command goes on from here"
      ;;
  esac
}

# The Python that says what pip is set to, where there is one.
host_python() {
  for name in .venv/bin/python python3; do
    "$name" -m pip --version >/dev/null 2>&1 && { echo "$name"; return; }
  done
}

# A machine whose index has no CPU build of torch names a folder that has it. The build cannot see that: the wheel goes along.
bring_torch() {
  [ "$arch" = amd64 ] && machine=x86_64 || machine=aarch64
  locked=$(sed -n 's/^torch==\([^ ;]*\).*/\1/p' env/lock/linux.txt)
  ls "env/wheels/torch-$locked-cp311-"*"_$machine.whl" >/dev/null 2>&1 && return
  python=$(host_python)
  [ -n "$python" ] || return
  links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$("$python" -m pip config get global.find-links 2>/dev/null)}}
  [ -n "$links" ] || return
  awk '/^[^ ]/ { wanted = /^torch==/ } wanted' env/lock/linux.txt >"$work/torch.txt"
  "$python" -m pip download -q --disable-pip-version-check --no-deps --require-hashes --only-binary :all: --no-index \
    --find-links "$links" --python-version 3.11 --implementation cp --abi cp311 --platform "manylinux_2_28_$machine" \
    -d "$work" -r "$work/torch.txt" >/dev/null 2>&1 || return 0
  rm -f env/wheels/torch-*-cp311-*"_$machine.whl"
  for wheel in "$work"/torch-*.whl; do
    mv "$wheel" "env/wheels/.${wheel##*/}.$$" && mv "env/wheels/.${wheel##*/}.$$" "env/wheels/${wheel##*/}"
    [ "$(id -u)" != 0 ] || chown "$KIT_USER" "env/wheels/${wheel##*/}"
  done
  say "torch's wheel is in env/wheels/, for the image"
}

# What the build and a download need of this machine's pip settings and certificates: files that no layer keeps.
lend_settings() {
  python=$(host_python)
  [ -z "$python" ] || "$python" -m pip config list >"$work/pip-says" 2>/dev/null || :
  KIT_CERTIFICATES=${SSL_CERT_FILE:-$(pip_says cert)}
  [ -r "$KIT_CERTIFICATES" ] || KIT_CERTIFICATES=/dev/null
  KIT_PIP_CONF=$work/pip.conf
  {
    echo '[global]'
    for key in index-url extra-index-url trusted-host proxy timeout; do
      said=$(pip_says $key)
      [ -z "$said" ] || printf '%s = %s\n' "$key" "$said"
    done
  } >"$KIT_PIP_CONF" 2>/dev/null
  [ -s "$KIT_PIP_CONF" ] || die "$work cannot be written to." "free some room there, or name another folder: TMPDIR"
  # The folder is the caller's alone; inside the container the file is for whoever runs there.
  chmod 644 "$KIT_PIP_CONF"
  export KIT_CERTIFICATES KIT_PIP_CONF
}

# A value of pip's configuration, files and environment. $1: its name.
pip_says() {
  [ -f "$work/pip-says" ] || return 0
  sed -n "s/^[^=]*\.$1='\(..*\)'\$/\1/p" "$work/pip-says" | tail -1 | sed 's/\\n/ /g'
}
