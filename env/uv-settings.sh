# Sourced by bootstrap.sh: where packages come from and how they are reached, out of the configuration files of pip and
# uv, and pip's as uv's, which reads none of pip's. Nothing else of those files counts. POSIX sh.

# A value of pip's configuration files, as `pip install` takes it. $1: its name there.
pip_setting() {
  for section in install global; do
    value=$(printf '%s\n' "$pip_says" | sed -n "s/^$section\.$1=['\"]\(.*\)['\"]\$/\1/p" | tail -1) # the last file wins
    [ -z "$value" ] || { printf '%b\n' "$value"; return; } # pip writes the end of a line as \n
  done
}

# pip's configuration files as its variables; the files count no more. Once: pip takes 0.12 s to start.
set_pip() {
  [ -z "${pip_is_set:-}" ] || return 0
  pip_is_set=1
  # A file's `user = true` is an option of this command too.
  pip_says=$(PIP_USER=0 .venv/bin/python -m pip config list 2>/dev/null)
  for setting in index-url extra-index-url find-links no-index trusted-host proxy cert client-cert cache-dir \
    keyring-provider retries timeout; do
    variable=PIP_$(printf '%s' "$setting" | tr 'a-z-' 'A-Z_')
    eval "given=\${$variable:-}"
    [ -n "$given" ] || given=$(pip_setting "$setting")
    [ -z "$given" ] || export "$variable=$given"
  done
  export PIP_CONFIG_FILE=/dev/null
}

set_uv() {
  set_pip
  .venv/bin/python -m scripts.environment uv-config .venv/uv.toml || exit 1
  export UV_CONFIG_FILE=.venv/uv.toml
  default_index=${PIP_INDEX_URL:-}
  [ -n "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ] || [ -z "$default_index" ] || export UV_DEFAULT_INDEX="$default_index"

  more=${PIP_EXTRA_INDEX_URL:-}
  [ -n "${UV_INDEX:-}${UV_EXTRA_INDEX_URL:-}" ] || [ -z "$more" ] || export UV_EXTRA_INDEX_URL="$more"
  # The best version of all indexes, as pip does it; the lock's hashes decide what may be installed.
  export UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"

  [ -z "${PIP_NO_INDEX:-}" ] || export UV_NO_INDEX="${UV_NO_INDEX:-1}"
  [ -z "${PIP_TRUSTED_HOST:-}" ] || export UV_INSECURE_HOST="${UV_INSECURE_HOST:-$PIP_TRUSTED_HOST}"

  proxy=${PIP_PROXY:-}
  [ -n "${HTTPS_PROXY:-}${https_proxy:-}" ] || [ -z "$proxy" ] || export HTTPS_PROXY="$proxy" HTTP_PROXY="$proxy"

  certificates=${PIP_CERT:-}
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
