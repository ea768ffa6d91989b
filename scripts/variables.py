"""What is written from the table of variables in env/variables.txt: one row there, and everything else follows."""

from __future__ import annotations

import re
from pathlib import Path

import click

from kit import settings
from kit.errors import Command, KitError
from kit.paths import ROOT
from kit.settings import VARIABLES
from scripts import cli

# What the container gets besides, to say its messages as they are typed outside.
FOR_MESSAGES = ("KIT_TYPED", "KIT_PROMPT_NAME", "KIT_DATA_NAME", "KIT_IN_NAME", "KIT_OUT_NAME", "KIT_CONTAINER=1")


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; fail where something is not as the table has it.")
def variables(check: bool) -> None:
    """Write .env.example, and the parts of docker-compose.yml and docs/verbs.md that list variables."""
    behind = {path: text for path, text in written().items() if path.read_text(encoding="utf-8") != text}
    if check and behind:
        names = ", ".join(str(path.relative_to(ROOT)) for path in behind)
        raise KitError(f"not as the table of variables in env/variables.txt has it: {names}.", Command("variables"))
    for path, text in behind.items():
        path.write_text(text, encoding="utf-8")
        cli.note(f"{path.relative_to(ROOT)} is written")


def written() -> dict[Path, str]:
    """Each file, as it should be."""
    compose, verbs = ROOT / "docker-compose.yml", ROOT / "docs" / "verbs.md"
    return {
        ROOT / ".env.example": example(),
        compose: environment(compose.read_text(encoding="utf-8")),
        verbs: table(verbs.read_text(encoding="utf-8")),
    }


def example() -> str:
    """.env.example"""
    head = """\
# cp .env.example .env && chmod 600 .env
# NAME=value, bare: no quotes, no blanks around =, comments on lines of their own.
# What is on the command line (make run MODEL=starter) or in the environment counts before what is here.
"""
    parts = []
    for variable in VARIABLES:
        if variable.example:
            about = "".join(f"# {line}\n" for line in variable.about.split("\n") if line)
            parts.append(("\n" if about else "") + about + variable.example + "\n")
    return head + "".join(parts)


def environment(compose: str) -> str:
    """docker-compose.yml with the names that every service gets: by name, so the value of whoever calls."""
    names = [*(v.name for v in VARIABLES if "container" in v.where), *FOR_MESSAGES]
    lines = "".join(f"  - {name}\n" for name in names)
    return re.sub(r"(?<=^x-settings: &settings\n)(  - .*\n)+", lambda _: lines, compose, count=1, flags=re.MULTILINE)


def table(page: str) -> str:
    """docs/verbs.md with the variables of each verb that has a row of its own."""

    def row(found: re.Match[str]) -> str:
        names = " ".join(variable.name for variable in settings.taken_by(found["verb"]))
        return f"{found['head']}(`{names}`){found['tail']}"

    form = r"^(?P<head>\| `make (?P<verb>[a-z-]+)` \|.*)\(`[A-Z][A-Z_ 0-9]*`\)(?P<tail>.* \|)$"
    return re.sub(form, row, page, flags=re.MULTILINE)


if __name__ == "__main__":
    cli.main(variables)
