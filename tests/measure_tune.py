"""Tokens/s and peak memory of `make tune`'s loop beside a bare loop of peft and torch, in turns.

    .venv/bin/python -m tests.measure_tune --turns 3 --model starter --context 256 --updates 20

The bare loop is what a page about LoRA shows: transformers' own loss, peft's "all-linear", torch's AdamW. Both learn
random tokens in blocks of the same length, with the same rank, on the same weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

RANK = 8


def bare(name: str, context: int, updates: int) -> dict[str, float]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from kit.models import registry

    model = AutoModelForCausalLM.from_pretrained(registry.find(name).folder, dtype=torch.bfloat16)
    wrapped = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    optimizer = torch.optim.AdamW([one for one in wrapped.parameters() if one.requires_grad], lr=1e-3)
    wrapped.train()
    started = time.perf_counter()
    for update in range(updates + 1):
        if update == 1:  # the first one is a warm-up
            started = time.perf_counter()
        ids = torch.tensor([block(update, context)])
        wrapped(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"tokens_per_s": updates * context / (time.perf_counter() - started)}


def kit(name: str, context: int, updates: int) -> dict[str, float]:
    from kit.engines import methods
    from kit.models import registry
    from kit.tune import train

    with methods.REFERENCE(registry.find(name), "cpu") as engine, tempfile.TemporaryDirectory() as folder:
        engine.load(context)
        recipe = train.Recipe(1, 1e-3, RANK, context, 0)
        training = train.Training(
            train.with_adapters(engine.loaded, recipe, None, ""),  # type: ignore[attr-defined]
            recipe,
            updates + 1,
        )
        blocks = [(block(update, context), [True] * context) for update in range(updates + 1)]
        checkpoint = train.Checkpoint(Path(folder) / "checkpoint.pt", {}, {})
        began: list[float] = []
        training.run(blocks, [], checkpoint, lambda now: began.append(time.perf_counter()), lambda: False)
    return {"tokens_per_s": updates * context / (began[-1] - began[0])}


def block(update: int, context: int) -> list[int]:
    import random

    draw = random.Random(update)
    return [draw.randrange(49000) for _ in range(context)]


LOOPS = {"bare": bare, "kit": kit}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--loop", choices=[*LOOPS])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--updates", type=int, default=20)
    given = parser.parse_args()
    if given.loop:
        from kit.engines import memory

        warnings.simplefilter("ignore")
        came = LOOPS[given.loop](given.model, given.context, given.updates)
        print(json.dumps({**came, "peak": memory.peak_rss_bytes() / 1e6}))
        return
    came = {loop: [] for loop in LOOPS}
    same = ["--model", given.model, "--context", str(given.context), "--updates", str(given.updates)]
    for turn in range(given.turns):
        for loop in LOOPS if turn % 2 == 0 else reversed(LOOPS):
            command = [sys.executable, "-m", "tests.measure_tune", "--loop", loop, *same]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            came[loop].append(json.loads(done.stdout.splitlines()[-1]))
            print(turn, loop, came[loop][-1], flush=True)
    for what in ("tokens_per_s", "peak"):
        medians = {loop: statistics.median(one[what] for one in rows) for loop, rows in came.items()}
        ratios = [kit[what] / bare[what] for kit, bare in zip(came["kit"], came["bare"], strict=True)]
        print(f"{what}: {medians}, kit / bare {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
