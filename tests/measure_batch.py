"""32 prompts of 32 tokens: `make batch` beside 32 runs, eight slots beside one, and xllamacpp's server called bare.

    .venv/bin/python -m tests.measure_batch --turns 3

Prints of each turn the seconds, and at the end the medians of the ratios within turns.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kit.paths import ROOT
from tests.conftest import clean_environment
from tests.measure_serve import bare_server

PROMPTS = [
    f"{start} {end}"
    for start in ("The capital of", "Once upon a time in", "A recipe from", "The history of")
    for end in ("France", "Japan", "Peru", "Kenya", "Norway", "a small town", "the far north", "my grandmother")
]
TOKENS = 32


def script(verb: str, *words: str) -> str:
    command = [sys.executable, "-m", f"scripts.{verb}", *words, "--device", "cpu", "--max-new-tokens", str(TOKENS)]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=True)
    return done.stderr


def runs(method: str, *_: str) -> float:
    started = time.perf_counter()
    for prompt in PROMPTS:
        script("run", "--method", method, "--prompt", prompt)
    return time.perf_counter() - started


def batch(method: str, slots: int, *words: str) -> tuple[float, float]:
    """Seconds in all, and tokens/s of the answering alone."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "prompts.jsonl"
        source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
        given = ["--in", str(source), "--out", f"{folder}/answers.jsonl", "--slots", str(slots)]
        started = time.perf_counter()
        said = script("batch", "--method", method, *given, *words)
        seconds = time.perf_counter() - started
        report = ROOT / said.partition("written down: ")[2].split()[0]
        speed = json.loads(report.read_text())["tokens_per_s"]
        report.unlink()
        return seconds, speed


def ask(host: str, prompt: str) -> int:
    """How many tokens came; no prompt is spared what another had of it, as in the kit."""
    body = {"prompt": prompt, "n_predict": TOKENS, "temperature": 0, "top_k": 1, "cache_prompt": False}
    connection = http.client.HTTPConnection(host, timeout=600)
    connection.request("POST", "/completion", json.dumps(body))
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return int(answer["tokens_predicted"])


def bare(slots: int, quant: str) -> float:
    """Tokens/s of the server that the kit does not set up."""
    with bare_server(slots, 256, quant) as (host, _):
        started = time.perf_counter()
        with ThreadPoolExecutor(slots) as pool:
            tokens = sum(pool.map(lambda prompt: ask(host, prompt), PROMPTS))
        return tokens / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    found: dict[str, list[float]] = {}

    def note(name: str, ratio: float, told: str) -> None:
        print(f"{name}: {told}: {ratio:.2f}", flush=True)
        found.setdefault(name, []).append(ratio)

    for turn in range(asked.turns):
        for method in ("llamacpp", "manual"):
            order = [lambda: runs(method), lambda: batch(method, 8)[0]]  # noqa: B023 - called at once
            times = [each() for each in (order if turn % 2 == 0 else order[::-1])]
            one, other = times if turn % 2 == 0 else times[::-1]
            note(f"{method}: 32 runs / batch of 8 slots", one / other, f"{one:.1f} s, {other:.1f} s")
        single, eight = (batch("llamacpp", slots, "--quant", "bf16")[1] for slots in (1, 8))
        note("bf16: 8 slots / 1", eight / single, f"{eight:.1f}, {single:.1f} tokens/s")
        for quant in ("bf16", "q4_1"):
            kit, alone = batch("llamacpp", 8, "--quant", quant)[1], bare(8, quant)
            note(f"{quant}, 8 slots: kit / bare", kit / alone, f"{kit:.1f}, {alone:.1f} tokens/s")
    for name, ratios in found.items():
        print(f"{name}, median of {len(ratios)}: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
