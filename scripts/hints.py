"""What to type next, in words: as it is typed natively, and as it is outside the container that this may run in.

Standard library only, and parsed by Python 3.9: the doctor and a set-up from a bundle say it, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from kit import settings
from kit.errors import Command, Part
from kit.settings import CONTAINER_VERBS

# The model that was typed for this verb: what to type next is about the same one, unless it names another.
typed_model: str | None = None


def about_model(command: Command) -> Command:
    takes = command.verb in settings.BY_NAME["MODEL"].verbs and not {"MODEL", "FROM"} & set(command.variables)
    if takes and typed_model:
        return Command(command.verb, MODEL=typed_model, **command.variables)
    return command


def words(hint: Iterable[Part]) -> str:
    """The hint as a person reads it."""
    hint = [part if isinstance(part, str) else about_model(part) for part in hint]
    container = os.environ.get("KIT_CONTAINER") == "1"
    return "".join(
        part if isinstance(part, str) else outside_container(part) if container else typed(part) for part in hint
    )


def typed(command: Command) -> str:
    """`make run MODEL=starter`; a value that a shell would cut stands in quotes."""
    pairs = [f"{name}={_quoted(value)}" for name, value in command.variables.items()]
    return " ".join(["make", command.verb, *pairs])


def outside_container(command: Command) -> str:
    """What does the same as `command`, typed on the machine that the container runs on."""
    verb, variables = command.verb, command.variables
    if variables.get("DEVICE") == "mps" or (verb == "verify" and "RECORD" in variables):
        return typed(command)  # natively: no container reaches Apple's GPU, and an image only reads the references
    if verb in CONTAINER_VERBS:  # for those the machine needs no Python
        return typed(Command(f"docker-{verb}", **variables))
    if verb == "setup":
        return typed(Command("docker-download", MODEL="starter"))
    if verb == "login":  # a download reads the token from .env, and says whose it is and what it may not
        return typed(Command("docker-download", **variables))
    if verb == "gguf":  # a run writes a missing file first
        return typed(Command("docker-run", METHOD="llamacpp", **variables))
    if verb == "clean setup":
        return "docker image rm -f $(docker image ls -q base-model-kit), which builds the image anew the next time"
    if verb == "doctor":
        return "see docs/troubleshooting.md"
    return typed(command)  # of reports and bundles: outside, with the kit's own environment


def _quoted(value: str) -> str:
    return f"'{value}'" if any(character in value for character in ' $"`&|;<>()*?#~') else value
