"""One completion, streamed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from kit import generation, registry
from kit.devices import Device
from kit.errors import WrongUsage
from kit.generation import Completion, Request
from kit.registry import Model
from scripts import cli
from scripts.options import option_device, option_dtype, option_json, option_later, option_method, option_model

DEFAULT_PROMPT = "Hello, who or what are you ?"


@click.command()
@option_model
@option_device
@option_method
@option_dtype
@click.option("--prompt", envvar="PROMPT", help=f"The text to complete.  [default: {DEFAULT_PROMPT}]")
@click.option("--prompt-file", envvar="PROMPT_FILE", help="The same from a file, byte for byte; - is standard input.")
@click.option(
    "--max-new-tokens",
    envvar="MAX_NEW_TOKENS",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="How long the completion may get.",
)
@click.option(
    "--temperature",
    envvar="TEMPERATURE",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="0 is greedy; above it tokens are drawn.",
)
@click.option(
    "--seed",
    envvar="SEED",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Same seed, same draw.",
)
@option_json
@option_later("--quant", "QUANT", neutral=("auto",))
@option_later("--record", flag=True)
@option_later("--from", "FROM")
def run(
    model: str,
    device: str,
    method: str,
    dtype: str,
    prompt: str | None,
    prompt_file: str | None,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    as_json: bool,
) -> None:
    """Complete a prompt with a base model.

    The completion goes to stdout and nothing else does; facts about it go to stderr.

    \b
    make run PROMPT="The capital of France is"
    make run METHOD=manual DEVICE=cpu MAX_NEW_TOKENS=20
    make -s run JSON=1 | python3 -m json.tool
    """
    found = registry.find(model)
    text = read_prompt(prompt, prompt_file)
    request = Request(found, text, method, device, dtype, max_new_tokens, temperature, seed)
    show_model(found)

    def show_device(chosen: Device) -> None:
        cli.note(f"{method} on {chosen.name} ({chosen.reason}), {chosen.dtype} ({chosen.dtype_reason}) …")
        if not as_json:
            cli.note(f"> {abridged(text)}")

    completion = generation.complete(request, (lambda piece: None) if as_json else cli.result, show_device)
    if as_json:
        cli.result(json.dumps(completion.as_dict(), ensure_ascii=False) + "\n")
    elif not completion.text.endswith("\n"):
        cli.result("\n")
    cli.note(summary(completion))


def read_prompt(prompt: str | None, prompt_file: str | None) -> str:
    """The prompt's text. An empty PROMPT is an empty prompt, not the default one."""
    if prompt_file is None:
        # click takes an empty variable for none.
        import os

        prompt = os.environ.get("PROMPT", DEFAULT_PROMPT) if prompt is None else prompt
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise WrongUsage("the prompt is not UTF-8 text.", "save it as UTF-8, then: make run PROMPT_FILE=prompt.txt")
        return prompt
    if prompt is not None:
        raise WrongUsage("PROMPT and PROMPT_FILE are both given.", "give one of them")
    try:
        content = sys.stdin.buffer.read() if prompt_file == "-" else Path(prompt_file).read_bytes()
        return content.decode("utf-8")
    except OSError as error:
        raise WrongUsage(f"PROMPT_FILE={prompt_file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise WrongUsage(f"PROMPT_FILE={prompt_file} is not UTF-8 text (byte {error.start}).") from error


def show_model(model: Model) -> None:
    nature = (
        "a base model: it continues text"
        if model.kind == "base"
        else "instruction-tuned, so not a base model; it stands in until you have one"
    )
    cli.note(f"{model.name} is {model.title}, {nature}")


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
    return f"[{completion.model}, {completion.device}, {completion.dtype}] " + ", ".join(parts)


if __name__ == "__main__":
    cli.main(run)
