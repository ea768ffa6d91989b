#!/bin/sh
# Refuses a token of the Hub in any file that git has, would take, or holds staged. Says where, and never shows the token.
# POSIX sh.
set -u
CDPATH= cd "$(dirname "$0")/.." || exit 1

# An account's tokens, and those of a log-in in the browser.
token='hf_([A-Za-z0-9]{34}|oauth_[A-Za-z0-9._-]{34})'

[ -e .git ] || { echo "no git clone here: no file was searched for tokens" >&2; exit 0; }
said=$(git ls-files 2>&1 >/dev/null) || {
  echo "error: git does not say which files it has, so none was searched for tokens: $said" >&2
  echo "  next: git status" >&2
  exit 1
}
found=$({
  export LC_ALL=C # of bytes: some greps take a line that is no UTF-8 for none
  git ls-files -z --cached --others --exclude-standard | xargs -0 grep -lE -e "$token" --
  git grep --cached -lE -e "$token" # what is staged may differ from the file
} 2>/dev/null | sort -u)
[ -z "$found" ] && exit 0
echo "error: a token stands in a file that git would commit:" >&2
echo "$found" | sed 's/^/  /' >&2
echo "  next: take it out (git add it again if it was staged), and revoke it at https://huggingface.co/settings/tokens if it was ever pushed" >&2
exit 1
