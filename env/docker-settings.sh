# Sourced by docker.sh: the settings that count, from .env too, and what cannot be asked of a container. POSIX sh.

SETTINGS="MODEL DEVICE METHOD DTYPE QUANT PROMPT PROMPT_FILE MAX_NEW_TOKENS TEMPERATURE SEED JSON KIT_DEBUG HF_ENDPOINT"
SETTINGS="$SETTINGS DEVICES METHODS DTYPES QUANTS RUNS QUALITY"
SETTINGS_OF_THE_CONTAINER="BASE_IMAGE MEMORY HTTP_PROXY HTTPS_PROXY NO_PROXY SSL_CERT_FILE"

# What .env says and the environment does not, into the environment. $1: the names that count.
read_dotenv() {
  dotenv=${KIT_DOTENV:-.env}
  [ -e "$dotenv" ] || return 0
  [ -f "$dotenv" ] && [ -r "$dotenv" ] || die ".env cannot be read." "chmod 600 .env"
  # kit/settings.py says it more finely, and is not at hand before there is a Python.
  bom=$(printf '\357\273\277')
  faulty=$(LC_ALL=C grep -nE "^$bom|^export |^[A-Za-z_0-9]+( |= )|[\"'\`\$\\\\]|[[:space:]]#|[[:space:]]\$" "$dotenv" |
    grep -vE '^[0-9]+:#' | head -1 | cut -d: -f1)
  [ -z "$faulty" ] || die ".env, line $faulty, has what its readers read differently." "see .env.example for the form"
  ours=' '
  while IFS= read -r line || [ -n "$line" ]; do
    name=${line%%=*}
    case $name in '' | *[!A-Z_]*) continue ;; esac
    case " $1 " in *" $name "*) ;; *) continue ;; esac
    case $ours in
      *" $name "*) given= ;; # written twice: the last one counts
      *) eval "given=\${$name:-}" ;;
    esac
    # An empty prompt that was asked for is one; and a file of it counts before .env's prompt.
    case $name$ours in
      PROMPT*" PROMPT "*) ;;
      PROMPT" "*) given=${PROMPT+x}${PROMPT_FILE:+x} ;;
    esac
    [ -n "$given" ] || [ -z "${line#*=}" ] || { export "$name=${line#*=}" && ours="$ours$name "; }
  done <"$dotenv"
}

check_settings() {
  case $verb:${DEVICE:-} in run:mps | verify:mps)
    die "DEVICE=mps cannot run in a container: containers have no Metal." "on the Mac itself: make $verb DEVICE=mps" ;;
  esac
  case $verb,${DEVICES:-}, in bench,*,mps,* | bench,mps,*)
    die "DEVICES=$DEVICES cannot run in a container: containers have no Metal." "on the Mac itself: make bench DEVICES=$DEVICES" ;;
  esac
  case $verb,$record in
    run,* | *,) ;;
    *) die "RECORD is for the native verb: the references are this clone's, and the image only reads them." \
      "make $verb RECORD=1" 2 ;;
  esac
  case ${MEMORY:=6g} in
    [1-9]*[0-9][mM] | [1-9][gG] | [1-9]*[0-9][gG]) ;;
    *) die "MEMORY=$MEMORY is no size." "make docker-$verb MEMORY=6g" 2 ;;
  esac
  # Set to nothing, they would count as set.
  [ -n "${BASE_IMAGE:-}" ] || unset BASE_IMAGE
  # Each program reads the one or the other.
  for name in HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    lower=$(printf '%s' "$name" | tr '[:upper:]' '[:lower:]')
    eval "given=\${$name:-\${$lower:-}}"
    [ -z "$given" ] || export "$name=$given" "$lower=$given"
  done
  if [ -n "${SSL_CERT_FILE:-}" ]; then
    [ -r "$SSL_CERT_FILE" ] || die "SSL_CERT_FILE=$SSL_CERT_FILE cannot be read." "unset it, or name the right file"
    case $SSL_CERT_FILE in /*) ;; *) SSL_CERT_FILE=$(pwd)/$SSL_CERT_FILE ;; esac
  fi
  export MEMORY
}
