#!/bin/sh
# The verbs in the CPU-only Linux container: sh env/docker.sh build|run|batch|serve|tune|verify|bench|download|test
#
# Finds an engine and Compose that do, builds the image where what it is made of has changed, and lets docker-compose.yml
# run it as the caller. Settings: those of the verb; BASE_IMAGE, MEMORY. POSIX sh, for macOS's and Debian's.
set -u
CDPATH= cd "$(dirname "$0")/.." || exit 1

say() { printf '%s\n' "$*" >&2; }

# What happened, what to type next, and the exit status (1).
die() {
  say "error: $1"
  say "  next: $2"
  exit "${3:-1}"
}

# A stream that is closed would be taken by the next file that is opened.
(: 3>&2) 2>/dev/null || exec 2>/dev/null
(: 3<&0) 2>/dev/null || exec </dev/null
(: 3>&1) 2>/dev/null || die "the output could not be written: standard output is closed." "make docker-${1:-run} >answer.txt"

. env/docker-settings.sh
. env/docker-engine.sh
. env/docker-image.sh

# Runs a service as the caller, to its end or the caller's. $1: the service; the rest: options of `compose run`.
service() {
  name=$1
  shift
  container=base-model-kit-$name-$$
  [ "$name" = test ] || [ ! -f "$work/settings" ] || set -- -v "$work/settings:/kit/.env:ro" "$@"
  # A reader that goes away ends a run: what writes to it is a program of its own, which is told. And one terminal for all
  # three streams, or none: with one, docker mixes the result and the messages.
  reader=
  if [ "$name" = run ] || [ "$name" = verify ] || [ "$name" = bench ]; then
    rm -f "$work/out"
    mkfifo "$work/out"
    # Open for reading in the client too: it would complain of a broken pipe before it is ended.
    exec 4<>"$work/out" 5<"$work/out"
    cat <&5 4>&- 5<&- &
    reader=$!
  fi
  if [ -n "$reader" ] || [ ! -t 0 ] || [ ! -t 1 ] || [ ! -t 2 ]; then set -- -T "$@"; fi
  set -- $compose --env-file /dev/null run --rm --name "$container" "$@" "$name"
  # In the background, so that a signal is heard while it works; there a shell gives it no standard input by itself.
  exec 3<&0
  if [ -n "$reader" ]; then
    COMPOSE_PROGRESS=quiet COMPOSE_IGNORE_ORPHANS=1 "$@" <&3 >&4 4>&- 5<&- &
    client=$!
    exec 4>&- 5<&-
    wait "$reader"
    case $? in
      0) ;;
      141) stop 0 ;; # SIGPIPE: the reader has what it wanted
      *) stop 1 ;;
    esac
  else
    COMPOSE_PROGRESS=quiet COMPOSE_IGNORE_ORPHANS=1 "$@" <&3 &
    client=$!
  fi
  wait "$client"
  status=$?
  container=
  [ "$status" != 137 ] || explain_killed
  return "$status"
}

# Ends the container with its caller: a client that is killed leaves it at work. $1: the exit status.
stop() {
  trap '' INT TERM HUP
  # A tuning ends its update, and keeps what it has.
  [ -z "${container:-}" ] || [ "$verb" != tune ] || docker stop -t 60 "$container" >/dev/null 2>&1
  [ -z "${container:-}" ] || docker rm -f "$container" >/dev/null 2>&1
  exit "$1"
}

explain_killed() {
  number=${MEMORY%[gGmM]}
  case $MEMORY in *[gG]) ;; *) number=$((number / 1024)) ;; esac
  other=
  [ "$(model)" = starter ] || other=", or: make docker-$verb MODEL=starter"
  shorter=
  [ "$verb" != run ] || shorter="a shorter prompt or fewer tokens; or, "
  die "the container was killed (exit 137), most likely because $(model) needed more memory than it has (MEMORY=$MEMORY)." \
    "${shorter}where the machine has it: make docker-$verb MEMORY=$((number * 2 + 2))g$other
  (Docker Desktop has a machine of its own: Settings, Resources, Memory)"
}

# A service, as often as it takes: one that ends with 75 (EX_TEMPFAIL) needs a file written first, which it may not do by
# itself. $1: where its standard input comes from; the rest: options of `compose run`.
attempt() {
  input=$1
  shift
  service "$verb" "$@" <"$input"
  status=$?
  [ "$status" = 75 ] || return "$status"
  service prepare --entrypoint ".venv/bin/python -m scripts.$verb --prepare" </dev/null || return
  service "$verb" "$@" <"$input"
  status=$?
  [ "$status" != 75 ] || die "the container needs a file written that it may not write." "natively: make $verb"
  return "$status"
}

# Lends a download this machine's token, proxy, certificates and package index. "$@": options of `compose run`.
download() {
  lend_settings
  set -- "$@" -v "$KIT_PIP_CONF:/etc/pip.conf:ro"
  [ "$KIT_CERTIFICATES" = /dev/null ] || set -- "$@" -v "$KIT_CERTIFICATES:/run/certificates.pem:ro" \
    -e SSL_CERT_FILE=/run/certificates.pem -e PIP_CERT=/run/certificates.pem
  for name in HF_TOKEN HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
    eval "given=\${$name:-}"
    # By name: the value stands in no argument.
    [ -z "$given" ] || set -- "$@" -e "$name"
  done
  service download "$@"
}

# A path whose ~, $HOME or ${HOME} stands for the home folder, as the Hub's client reads one that was quoted or comes from .env.
home_for() {
  case $1 in
    "~") printf '%s' "$HOME" ;;
    "~/"* | '$HOME/'* | '${HOME}/'*) printf '%s/%s' "$HOME" "${1#*/}" ;;
    *) printf '%s' "$1" ;;
  esac
}

# The token for a download, where kit/hub/client.py finds it: the environment's, .env's, or the one that the Hub's client keeps.
find_token() {
  [ -n "${HF_TOKEN:-}" ] || HF_TOKEN=$(from_dotenv HF_TOKEN)
  [ -n "$HF_TOKEN" ] || HF_TOKEN=${HUGGING_FACE_HUB_TOKEN:-}
  if [ -z "$HF_TOKEN" ]; then
    [ -n "${HF_HOME:-}" ] || HF_HOME=$(from_dotenv HF_HOME)
    file=$(home_for "${HF_TOKEN_PATH:-${HF_HOME:-${XDG_CACHE_HOME:-~/.cache}/huggingface}/token}")
    # What is none is refused where it is used, so line ends within it stay.
    HF_TOKEN=$(cat "$file" 2>/dev/null)
  fi
  [ -z "$HF_TOKEN" ] || export HF_TOKEN
}

# The model that is asked for: the environment's, or .env's.
model() {
  said=${MODEL:-$(from_dotenv MODEL)}
  echo "${said:-starter}"
}

# The starter model, where it is asked for and not there yet. (A bench may make a model that takes its tokenizer.)
need_starter() {
  [ "$(model)" = starter ] || [ "$verb" = test ] || [ "$verb" = tune ] || [ "$verb" = bench ] || return 0
  stamp=models/starter/.verified.json
  [ -f "$stamp" ] && [ -z "$(find env/models.toml -newer "$stamp")" ] && return 0
  (unset HF_TOKEN && download --entrypoint ".venv/bin/python -m scripts.setup" </dev/null) || exit
  touch "$stamp"
}

run() {
  case ${FROM:-reports/} in reports/*) ;; *)
    ! typed FROM || die "FROM=$FROM is out of the container's sight, which has reports/ alone." \
      "cp '$FROM' reports/, then: make docker-run FROM=reports/${FROM##*/}" 2 ;;
  esac
  # In .env, a file counts where no prompt is set; both are refused by who reads them.
  [ -n "${PROMPT_FILE:-}${PROMPT+x}$(from_dotenv PROMPT)" ] || PROMPT_FILE=$(from_dotenv PROMPT_FILE)
  prompt=/dev/null
  if [ -n "${PROMPT_FILE:-}" ] && ! typed FROM; then
    # The container sees no file of this machine: it comes through standard input, which may be read twice.
    prompt=$PROMPT_FILE
    [ "$prompt" != - ] || { prompt=$work/prompt && cat >"$prompt"; }
    [ ! -d "$prompt" ] && [ -r "$prompt" ] ||
      die "PROMPT_FILE=$PROMPT_FILE cannot be read." "make docker-run PROMPT_FILE=prompt.txt" 2
    KIT_PROMPT_NAME=$PROMPT_FILE
    PROMPT_FILE=-
    export KIT_PROMPT_NAME PROMPT_FILE
  fi
  # The engine would replace what is no UTF-8.
  if [ -n "${PROMPT:-}" ] && command -v iconv >/dev/null 2>&1; then
    printf '%s' "$PROMPT" | iconv -f UTF-8 -t UTF-8 >/dev/null 2>&1 ||
      die "the prompt is not UTF-8 text." "save it as UTF-8, then: make docker-run PROMPT_FILE=prompt.txt" 2
  fi
  need_starter
  set --
  ! { typed FROM || typed RECORD; } || set -- -v "$(pwd)/reports:/kit/reports"
  attempt "$prompt" "$@"
}

# Where a file is, for a mount; a path with a colon is none. $1: the variable; $2: its value.
place_of() {
  folder=$(CDPATH= cd -- "$(dirname -- "$2")" 2>/dev/null && pwd) ||
    die "$1=$2: there is no such folder." "mkdir -p '$(dirname -- "$2")'" 2
  case $folder/$(basename -- "$2") in *:*) die "$1=$2: the container takes no path with a colon." "rename it, or move it" 2 ;; esac
  printf '%s/%s' "${folder%/}" "$(basename -- "$2")"
}

# The prompts are lent read-only, and of the answers their folder.
batch() {
  need_starter
  ! typed RAY || die "RAY=$RAY: the container of a batch has no network." "natively: make batch RAY=$RAY" 2
  typed IN && typed OUT ||
    die "IN (a file of prompts) and OUT (the file for the answers) are both needed." "make docker-batch IN=prompts.txt OUT=answers.jsonl" 2
  [ -f "$IN" ] && [ -r "$IN" ] || die "IN=$IN cannot be read." "make docker-batch IN=prompts.txt OUT=$OUT" 2
  from=$(place_of IN "$IN") && to=$(place_of OUT "$OUT") || exit
  KIT_IN_NAME=$IN
  KIT_OUT_NAME=$OUT
  IN=/in/${from##*/}
  OUT=/out/${to##*/}
  export IN OUT KIT_IN_NAME KIT_OUT_NAME
  attempt /dev/null -v "$from:$IN:ro" -v "${to%/*}:/out"
}

# The text lies in the container under its own name.
tune() {
  need_starter
  set --
  if typed DATA; then
    [ -r "$DATA" ] || die "DATA=$DATA cannot be read." "make docker-tune DATA=notes.txt" 2
    place=$(place_of DATA "$DATA") || exit
    KIT_DATA_NAME=$DATA
    DATA=/data/$(basename -- "$DATA")
    export DATA KIT_DATA_NAME
    set -- -v "$place:$DATA:ro"
  fi
  service tune "$@"
}

# Reached on this machine alone. The header for curl lies in a folder that is lent, and goes with it.
serve() {
  ! typed LISTEN || die "LISTEN=$LISTEN: the container is published on 127.0.0.1 alone." "for a room: make serve LISTEN=$LISTEN" 2
  port=${PORT:-8080}
  case $port in 0 | *[!0-9]*) die "PORT=$port is no port that can be published." "make docker-serve PORT=8080" 2 ;; esac
  need_starter
  attempt /dev/null -p "127.0.0.1:$port:$port" -v "$work:/lent" -e KIT_SERVE_FOLDER=/lent -e "KIT_SERVE_NAME=$work"
}

verb=${1:-}
case $verb in
  build) target=docker-run ;;
  run | batch | serve | tune | verify | bench | download | test) target=docker-$verb ;;
  *) die "unknown: $verb" "sh env/docker.sh build|run|batch|serve|tune|verify|bench|download|test" 2 ;;
esac
# In the clone where that can be written: an engine in a machine of its own shares it, for models/, and perhaps no other.
work=$(mktemp -d "$(pwd)/.docker.XXXXXX" 2>/dev/null) || {
  work=$(mktemp -d "${TMPDIR:-/tmp}/kit.XXXXXX") || die "no temporary folder can be made." "check TMPDIR"
  say "note: this folder cannot be written, so what is lent to the container lies in $work: the engine must share that one"
}
trap 'rm -rf "$work"' EXIT
trap 'stop 130' INT
trap 'stop 143' TERM
trap 'stop 129' HUP

read_dotenv
check_settings
[ "$verb" != download ] || find_token
# Rootless, the container's root is the caller.
case $(docker context inspect --format '{{.Endpoints.docker.Host}}' 2>/dev/null) in
  */run/user/*) KIT_USER=0:0 ;;
  *)
    KIT_USER=$(id -u):$(id -g)
    [ "$KIT_USER" != 0:0 ] || KIT_USER=${SUDO_UID:-0}:${SUDO_GID:-0}
    ;;
esac
export KIT_USER
[ ! -f "$work/settings" ] || [ "$(id -u)" != 0 ] || chown "$KIT_USER" "$work/settings"
if [ "$verb" = build ]; then
  need_image run
  exit 0
fi
need_image "$verb"
for folder in models reports; do
  [ ! -d "$folder" ] || continue
  mkdir "$folder" || die "the folder $folder/ cannot be made." "check who owns $(pwd)"
  # Typed behind sudo, it is still the caller's.
  [ "$(id -u)" != 0 ] || chown "$KIT_USER" "$folder"
done
case $verb in
  run) run ;;
  batch) batch ;;
  serve) serve ;;
  tune) tune ;;
  verify | bench) need_starter && attempt /dev/null ;;
  test) need_starter && service test ;;
  download) download ;;
esac
