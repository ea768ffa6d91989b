# Sourced by bootstrap.sh: the machine's pip settings as uv's, which reads none of pip's. POSIX sh.

# A value of pip's configuration files, as `pip install` takes it. $1: its name there. Read once, by set_uv: pip takes
# 0.12 s to start.
pip_setting() {
  for section in install global; do
    value=$(printf '%s\n' "$pip_says" | sed -n "s/^$section\.$1=['\"]\(.*\)['\"]\$/\1/p" | tail -1) # the last file wins
    [ -z "$value" ] || { printf '%b\n' "$value"; return; } # pip writes the end of a line as \n
  done
}

set_uv() {
  pip_says=$(.venv/bin/python -m pip config list 2>/dev/null)
  default_index=${PIP_INDEX_URL:-$(pip_setting index-url)}
  [ -n "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ] || [ -z "$default_index" ] || export UV_DEFAULT_INDEX="$default_index"

  more=${PIP_EXTRA_INDEX_URL:-$(pip_setting extra-index-url)}
  [ -n "${UV_INDEX:-}${UV_EXTRA_INDEX_URL:-}" ] || [ -z "$more" ] || export UV_EXTRA_INDEX_URL="$more"
  # The best version of all indexes, as pip does it; the lock's hashes decide what may be installed.
  export UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"

  [ -z "${PIP_NO_INDEX:-}" ] || export UV_NO_INDEX="${UV_NO_INDEX:-1}"
  [ -z "${PIP_TRUSTED_HOST:-}" ] || export UV_INSECURE_HOST="${UV_INSECURE_HOST:-$PIP_TRUSTED_HOST}"

  proxy=${PIP_PROXY:-$(pip_setting proxy)}
  [ -n "${HTTPS_PROXY:-}${https_proxy:-}" ] || [ -z "$proxy" ] || export HTTPS_PROXY="$proxy" HTTP_PROXY="$proxy"

  certificates=${PIP_CERT:-$(pip_setting cert)}
  [ -n "${SSL_CERT_FILE:-}" ] || [ -z "$certificates" ] || export SSL_CERT_FILE="$certificates"
  # A company's CA stands in the system's store, which uv asks only when it is told to.
  [ -n "${SSL_CERT_FILE:-}${SSL_CERT_DIR:-}" ] || export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}"

  # Hard links from uv's cache cost no disk; across file systems it would warn and copy anyway.
  cache=$(.venv/bin/uv cache dir 2>/dev/null)
  mkdir -p "$cache" 2>/dev/null
  # A home that cannot be written to, such as a container's: without a cache then.
  { [ -d "$cache" ] && [ -w "$cache" ]; } || export UV_NO_CACHE="${UV_NO_CACHE:-1}"
  [ "$(df -P "$cache" 2>/dev/null | awk 'NR == 2 { print $1 }')" = "$(df -P . | awk 'NR == 2 { print $1 }')" ] ||
    export UV_LINK_MODE="${UV_LINK_MODE:-copy}"
}
