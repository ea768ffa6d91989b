# Sourced by docker.sh: the settings that have to be known before there is a container. POSIX sh.

# True for a variable that was typed behind make, and not as 0. $1: its name.
typed() {
  case " ${KIT_TYPED:-} " in *" $1 "*) ;; *) return 1 ;; esac
  eval "[ \"\${$1:-0}\" != 0 ]"
}

# What .env says, the last line counts; nothing where it does not. $1: the name.
from_dotenv() {
  [ ! -f "$dotenv" ] || LC_ALL=C sed -n "s/^$1=//p" "$dotenv" | tail -n 1
}

# The names that env/variables.txt marks with `shell`, from .env where the environment does not say; and .env itself for the container, which reads
# and checks the rest: with a line for each line, and without the token, which is lent to a download alone.
read_dotenv() {
  dotenv=${KIT_DOTENV:-.env}
  [ -e "$dotenv" ] || return 0
  [ -f "$dotenv" ] && [ -r "$dotenv" ] || die ".env cannot be read." "chmod 600 .env"
  (umask 077 && LC_ALL=C sed -e '/HF_TOKEN/s/.*/#/' -e '/hf_[A-Za-z0-9]\{8\}/s/.*/#/' "$dotenv" >"$work/settings") ||
    die "$work cannot be written to." "free some room there"
  for name in $(awk -F ' *[|] *' '/^[A-Z]/ && $5 ~ /shell/ { print $1 }' env/variables.txt); do
    eval "given=\${$name:-}"
    said=$(from_dotenv "$name")
    [ -n "$given" ] || [ -z "$said" ] || export "$name=$said"
    case $said in *[\"\'\`\$\\]* | *[[:space:]]*) die ".env: $name has what its readers read differently." "see .env.example for the form" ;; esac
  done
}

check_settings() {
  # Said before anything is built.
  device=${DEVICE:-$(from_dotenv DEVICE)}
  case $verb:$device,${DEVICES:-}, in run:mps,* | batch:mps,* | serve:mps,* | verify:mps,*)
    die "DEVICE=mps cannot run in a container: no container reaches Apple's GPU." "on the Mac itself: make $verb DEVICE=mps" ;;
  bench:*,mps,*)
    die "DEVICES=$DEVICES cannot run in a container: no container reaches Apple's GPU." "on the Mac itself: make bench DEVICES=$DEVICES" ;;
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
