"""A model in the terminal, loaded once."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from kit.engines import generate
from kit.engines.devices import Device
from kit.engines.request import Request
from kit.errors import KitError, WrongUsage
from kit.files import cause_of
from kit.models import registry
from kit.serve import chat as chatting
from kit.serve.chat import Chat
from scripts import cli
from scripts.options import number_formats, takes
from scripts.progress import ProgressLine

HELP = """\
What you type goes to the model; Ctrl-C stops an answer, Ctrl-D ends.
  /undo            forgets the last turn
  /drop            forgets the oldest turn
  /reset           forgets all
  /seed N          the same seed draws the same answer
  /temperature X   0 takes the likeliest token each time; above it, tokens are drawn
  /save FILE       writes the text so far
  /help            this list"""


@click.command()
@takes("chat")
@click.pass_context
def chat(
    context: click.Context,
    model: str,
    device: str,
    method: str,
    max_new_tokens: int,
    dtype: str,
    quant: str,
    temperature: float,
    seed: int,
    context_tokens: int | None,
    adapter: int,
) -> None:
    """Write with MODEL in the terminal: a line goes in, the continuation comes out.

    With a pipe for standard input, each line of it is a turn.

    \b
    make chat
    make chat METHOD=llamacpp MODEL=llama-3.2-1b
    printf 'The capital of France is\\n' | make -s chat
    """
    dtype, quant = number_formats(context, method, dtype, quant)
    found = registry.find(model)
    found = found if adapter else found.foundation
    if context_tokens and context_tokens > found.context:
        raise WrongUsage(f"CONTEXT={context_tokens}: the context of {found.name} holds {found.context} tokens.")
    room = context_tokens or min(chatting.CONTEXT, found.context)
    asked = Request(found, " ", method, device, dtype, max_new_tokens, temperature, seed, quant)
    progress = ProgressLine()

    def show_device(chosen: Device) -> None:
        progress.end()
        numbers = f"{chosen.number_format} ({chosen.format_reason})"
        cli.note(f"{found.name}: {method} on {chosen.name} ({chosen.reason}), {numbers} …")

    with generate.loaded(asked, room, show_device, progress) as engine:
        talk = Chat(engine, asked, room)
        how = "answers through its chat template" if talk.has_template else "goes on with the text so far"
        cli.note(f"{found.title} {how}; /help lists what else can be typed, Ctrl-D ends")
        for line in lines():
            if line.strip():
                turn(talk, line)


def turn(talk: Chat, line: str) -> None:
    """One line: a command, or what the model is given. What goes wrong is said, and nothing is lost."""
    try:
        if line.startswith("/"):
            command(talk, *line.split(maxsplit=1))
            return
        answer = talk.say(line, cli.result).answer
        if not answer.endswith("\n"):
            cli.result("\n")
    except KitError as error:
        cli.say_error(error)


def command(talk: Chat, name: str, value: str = "") -> None:
    value = value.strip()
    if name == "/help":
        cli.note(HELP)
    elif name in ("/undo", "/drop"):
        if not talk.turns:
            raise WrongUsage("nothing was said yet.")
        gone = talk.turns.pop(-1 if name == "/undo" else 0)
        cli.note(f"forgotten: {gone.said.splitlines()[0][:60]} …")
    elif name == "/reset":
        talk.turns.clear()
        cli.note("forgotten: all")
    elif name == "/seed":
        if not value.isdecimal():
            raise WrongUsage("the seed is a whole number.", "/seed 1")
        talk.asked = replace(talk.asked, seed=int(value))
    elif name == "/temperature":
        talk.asked = replace(talk.asked, temperature=temperature_of(value))
    elif name == "/save":
        save(talk, value)
    else:
        raise WrongUsage(f"{name} is unknown.", "/help")


def temperature_of(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1
    if not 0 <= number < math.inf:
        raise WrongUsage("the temperature is a number from 0 on.", "/temperature 0.8")
    return number


def save(talk: Chat, name: str) -> None:
    if not name:
        raise WrongUsage("the file has no name.", "/save text.txt")
    path = Path(name).expanduser()
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(talk.text() + "\n")
    except FileExistsError as error:
        raise KitError(f"{path} is there already.", "/save another name") from error
    except OSError as error:
        raise KitError(f"{path} was not written: {cause_of(error)[0]}.", "/save another name") from error
    cli.note(f"written: {path}")


def lines() -> Iterator[str]:
    """What is typed, or piped, a turn each."""
    if sys.stdin is None:  # closed
        return
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output

    # What is pasted comes as one text, line ends and all. The prompt goes to stderr: stdout has the answers.
    session: PromptSession[str] = PromptSession(output=create_output(stdout=sys.stderr))
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            cli.note("Ctrl-D ends")
        except EOFError:
            return


if __name__ == "__main__":
    cli.main(chat)
