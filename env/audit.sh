#!/bin/sh
# What is known against the packages of the locks, by the advisories of the Open Source Vulnerabilities database:
# sh env/audit.sh. POSIX sh.
set -u
CDPATH= cd "$(dirname "$0")/.." || exit 1

asked=.venv/audit said=.venv/audit.log known=
rm -f "$asked".*
# A build (+cpu) is no other version; a second version of a package, for another Python, is for a second list.
sed -n 's/^\([a-z0-9][^ =]*\)==\([^ ;+]*\).*/\1==\2/p' env/lock/*.txt | sort -u |
  awk -F== -v file="$asked" '{ print > (file "." ++seen[$1]) }'
printf 'asking about %s packages of env/lock/ …\n' "$(cat "$asked".* | wc -l | tr -d ' ')" >&2
for list in "$asked".*; do
  if found=$(.venv/bin/pip-audit -s osv --disable-pip --no-deps --progress-spinner off --desc off -r "$list" 2>"$said"); then
    # What could not be asked about is a list, too.
    [ -z "$found" ] && continue
  elif [ -z "$found" ]; then
    printf '%s\n' "error: the advisories could not be asked: $(tail -1 "$said" | cut -c 1-300)" \
      "  next: check the network (and HTTPS_PROXY if you use one), then: make audit" >&2
    exit 1
  fi
  printf '%s\n' "$found"
  known=1
done
[ -z "$known" ] || exit 1
echo "nothing is known against them" >&2
