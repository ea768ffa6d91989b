#!/bin/sh
# Refuses a token of the Hub in any file that git has or would take. Says where, and never shows the token. POSIX sh.
set -u
cd "$(dirname "$0")/.." || exit 1

found=$({ git ls-files -z --cached --others --exclude-standard | xargs -0 grep -lE 'hf_[A-Za-z0-9]{34}'; } 2>/dev/null)
[ -z "$found" ] && exit 0
echo "error: a token stands in a file that git would commit:" >&2
echo "$found" | sed 's/^/  /' >&2
echo "  next: take it out, and revoke it at https://huggingface.co/settings/tokens if it was ever pushed" >&2
exit 1
