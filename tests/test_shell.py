"""Shell that BSD's tools and dash understand, wherever it stands: that it works for who writes it is not enough."""

from __future__ import annotations

import re

import pytest

from kit.paths import ROOT

# What Linux alone has, and what to write.
GNU_ONLY = {
    r"\b(?:grep|sed|expr)\b(?![^|]*\s-\w*E)[^|]*\\[|+?]": "a basic expression knows no \\| \\+ \\?: -E",
    r"\bmktemp(?:\s+-\w+)*\s*(?:[)|;&>]|2>|$)": "mktemp takes a template: Apple's ignores TMPDIR without one",
    r"\bsed\b[^|;]*\s-\w*i\b": "sed -i differs: write another file, and rename",
    r"\breadlink\s+-f|\brealpath\b": "cd DIR && pwd -P",
    r"\bgrep\b[^|;]*\s(?:-\w*P|--perl-regexp)": "grep -E",
    r"\bstat\s+(?:-c|--format)": "wc -c, ls, or Python",
    r"\bdate\s+(?:-d|--date|-I|--iso)": "Python",
    r"\bxargs\s[^|;]*-\w*[rd]\b": "BSD's xargs has neither -r nor -d",
    r"(?:^|[|;&(]\s*)(?:cp|mv|ln|rm|mkdir|chmod)\s[^|;]*--\w": "no long options",
    r"\bcp\s+-\w*[adlux]": "cp -R or -p",
    r"\bln\s+-\w*[rT]": "a whole path",
    r"\bsort\s[^|;]*-\w*V": "compare in awk or Python",
    r"\bhead\s+(?:-n\s*-|-c\s*-)|\btail\s+-n\s*\+0": "sed '$d'",
    r"\bbase64\s+-w|\bfind\b[^|;]*-printf|\bdu\s+-\w*b|\bdf\s[^|;]*--|\bls\s[^|;]*--": "GNU's options",
    r"(?:^|[|;&(]\s*|\bthen\s+|\bdo\s+)(?:nproc|timeout|tac|sha256sum|md5sum|setsid|flock|getent|shuf|numfmt)\b": (
        "not on every Mac: Python has it"
    ),
    r"\becho\s+-[neE]": "printf",
    r"\[\[\s|<<<|(?:^|\s)function\s+\w+|(?<![\\\[])\$'|\blocal\s|&>|\bpipefail\b|\$\{\w+(?:,,|\^\^|//)": "bash's own",
    r"(?:^|\s)\[\s[^]'(]*\s==\s": "= in [ ]",
}
# Debian's alone, or bash's, and they say so in their first lines.
LINUX = {"engine", "local-base.sh"}
BASH = {"run"}


def found(text: str, but: str = "") -> list[str]:
    """What is not everywhere's in a text: the line's number, and what to write."""
    said = []
    for number, line in enumerate(text.splitlines(), 1):
        code = re.sub(r"(?:^|\s)#.*", "", line)
        said += [f"{number}: {why}" for bad, why in GNU_ONLY.items() if why != but and re.search(bad, code)]
    return said


@pytest.mark.parametrize(
    "line",
    [
        r"grep -q 'a\|b' file",
        r"sed 's/a\+//'",
        "work=$(mktemp -d)",
        "work=$(mktemp -d 2>/dev/null)",
        "sed -i s/a/b/ file",
        "here=$(readlink -f .)",
        "grep -oP 'a' file",
        "stat -c %s file",
        "date -d @0",
        "echo a | xargs -r rm",
        "cp --parents a b",
        "cp -a a b",
        "sort -V",
        "head -n -1 file",
        "base64 -w0 file",
        "find . -printf %s",
        "count=$(nproc)",
        "echo -n a",
        "[[ -e a ]]",
        '[ "$a" == b ]',
        "local a=1",
    ],
)
def test_what_linux_alone_understands_is_seen(line):
    assert found(line)


@pytest.mark.parametrize(
    "line",
    [
        "grep -qE 'a|b' file",
        'sed -e "/^a/d" -n file',
        'mktemp -d "${TMPDIR:-/tmp}/kit.XXXXXX"',
        "cp -R a b",
        "df -Pk .",
        "find . -name x -exec rm -rf {} +",
        "docker run --rm -i image",
        "tr ',' ' '",
    ],
)
def test_what_is_everywhere_passes(line):
    assert not found(line)


def test_shell_and_make_are_what_a_mac_understands():
    files = [*(ROOT / "env").glob("*.sh"), *(ROOT / ".ci").iterdir(), ROOT / "Makefile"]
    assert len(files) > 10
    faults = {
        file.name: said
        for file in files
        if file.name not in LINUX and (said := found(file.read_text(), "bash's own" if file.name in BASH else ""))
    }
    assert not faults
