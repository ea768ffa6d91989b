"""One completion, streamed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click
from click.core import ParameterSource

from kit import paths, reports
from kit.engines import generate
from kit.engines import record as recorded_run
from kit.engines.devices import Device
from kit.engines.record import Repetition
from kit.engines.request import DEFAULT_PROMPT, Completion, Request
from kit.errors import Command, WrongUsage
from kit.models import registry
from scripts import cli
from scripts.compare import beside
from scripts.hints import words
from scripts.options import number_formats, option_prepare, takes
from scripts.progress import ProgressLine

NATURES = {
    "base": "a base model: it continues text",
    "instruct": "instruction-tuned, so not a base model; it stands in until you have one",
    "tuned": "it continues text as its own text taught it",
    "random": "for speed and memory: what it writes means nothing",
}
FROM_FILE = Command("run", PROMPT_FILE="prompt.txt")


@click.command()
@takes("run")
@click.option("--ignore-eos", is_flag=True, hidden=True, help="No token ends the text early: for make bench.")
@option_prepare
@click.pass_context
def run(
    context: click.Context,
    model: str,
    device: str,
    method: str,
    dtype: str,
    quant: str,
    ignore_eos: bool,
    prepare: bool,
    prompt: str | None,
    prompt_file: str | None,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    as_json: bool,
    record: bool,
    source: str | None,
    adapter: int,
) -> None:
    """Complete a prompt with a base model.

    The completion goes to stdout and nothing else does; facts about it go to stderr.

    \b
    make run PROMPT='The capital of France is'
    make run METHOD=manual DEVICE=cpu MAX_NEW_TOKENS=20
    make -s run JSON=1 | python3 -m json.tool
    """
    if source:
        refuse_beside_from(context)
        report = reports.read(Path(source))
        request = recorded_run.request_of(report)
    else:
        text = read_prompt(prompt, prompt_file)
        dtype, quant = number_formats(context, method, dtype, quant)
        found = registry.find(model)
        found = found if adapter else found.foundation
        request = Request(found, text, method, device, dtype, max_new_tokens, temperature, seed, quant, ignore_eos)
    progress = ProgressLine()
    if prepare:
        generate.prepare(request, progress)
        return
    cli.note(f"{request.model.name} is {request.model.title}, {NATURES[request.model.kind]}")

    def show_device(chosen: Device) -> None:
        progress.end()
        device, numbers = f"{chosen.name} ({chosen.reason})", f"{chosen.number_format} ({chosen.format_reason})"
        cli.note(f"{request.method} on {device}, {numbers} …")
        if not as_json:
            cli.note(f"> {abridged(request.prompt)}")

    on_text = (lambda piece: None) if as_json else cli.result
    completion = generate.complete(request, on_text, show_device, progress)
    if as_json:
        cli.result(json.dumps(completion.as_dict(), ensure_ascii=False) + "\n")
    elif not completion.text.endswith("\n"):
        cli.result("\n")
    cli.note(summary(completion))
    for remark in completion.notes:
        cli.note(f"note: {remark}")
    if record:
        path = reports.write("run", recorded_run.content(request, completion))
        again = words([Command("run", FROM=path.relative_to(paths.ROOT))])
        cli.note(f"written down: {again} repeats it")
    if source:
        show_repetition(recorded_run.compare(report, recorded_run.content(request, completion)))


def refuse_beside_from(context: click.Context) -> None:
    """FROM repeats a run as it was. What .env sets for all runs does not count as asked for."""
    asked = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    names = ("model", "prompt", "prompt_file", *recorded_run.ASKED)
    given = ", ".join(name.upper() for name in dict.fromkeys(names) if context.get_parameter_source(name) in asked)
    if given:
        again = Command("run", FROM="reports/run-….json")
        raise WrongUsage(f"FROM repeats a run as it was: leave out {given}.", again)


def show_repetition(repetition: Repetition) -> None:
    if repetition.first is None:
        cli.note(f"the same {repetition.tokens} tokens as in the record")
        return
    cli.note(f"OTHER tokens than in the record, from token {repetition.first + 1} of {repetition.tokens} on")
    for cause in repetition.causes[:10]:
        then, now = beside(cause.a, cause.b)
        cli.note(f"  {cause.name}: {then} then, {now} now")
    if not repetition.causes:
        cli.note(f"  nothing that is recorded differs: {words([Command('verify')])} looks closer")
    raise click.exceptions.Exit(1)


def read_prompt(prompt: str | None, prompt_file: str | None) -> str:
    """The prompt's text. An empty PROMPT is an empty prompt, not the default one."""
    if prompt_file is None:
        # click takes an empty variable for none.
        prompt = os.environ.get("PROMPT", DEFAULT_PROMPT) if prompt is None else prompt
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise WrongUsage("the prompt is not UTF-8 text.", "save it as UTF-8, then: ", FROM_FILE)
        return prompt
    shown = os.environ.get("KIT_PROMPT_NAME") or prompt_file  # the container gets the file through standard input
    if prompt is not None:
        raise WrongUsage("PROMPT and PROMPT_FILE are both given.", "give one of them")
    if prompt_file == "-" and sys.stdin is None:  # Python's way to say that it is closed
        raise WrongUsage("PROMPT_FILE=- reads standard input, and that is closed.", FROM_FILE)
    try:
        content = sys.stdin.buffer.read() if prompt_file == "-" else Path(prompt_file).read_bytes()
        return content.decode("utf-8")
    except OSError as error:
        raise WrongUsage(f"PROMPT_FILE={shown} cannot be read: {error.strerror}.", FROM_FILE) from error
    except UnicodeDecodeError as error:
        raise WrongUsage(f"PROMPT_FILE={shown} is not UTF-8 text (byte {error.start}).", "save it as UTF-8") from error


def abridged(text: str, width: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[:width]} … ({len(text)} characters)"


def summary(completion: Completion) -> str:
    """One line of facts about a run."""
    speed = completion.decode_tokens_per_s
    memory = f"peak memory {completion.peak_rss_bytes / 1e6:.0f} MB"
    if completion.device_memory_bytes is not None:
        memory += f" and {completion.device_memory_bytes / 1e6:.0f} MB on {completion.device}"
    parts = [
        f"import {completion.import_s:.1f} s",
        f"load {completion.load_s:.1f} s",
        f"first token {completion.first_token_s:.2f} s",
        f"{completion.new_tokens} tokens" + (f" at {speed:.1f} tokens/s" if speed else ""),
        f"total {completion.total_s:.1f} s",
        memory,
    ]
    number_format = completion.dtype or completion.quant
    return f"[{completion.model}, {completion.device}, {number_format}] " + ", ".join(parts)


if __name__ == "__main__":
    cli.main(run)
