"""Thirty clients at once: `make serve` beside xllamacpp's server called bare, in turns.

    .venv/bin/python -m tests.measure_serve --turns 3 --slots 4

Each client asks for 50 tokens of the starter. Prints, of each turn: tokens/s in all, the median and the longest wait in
seconds, and the server's peak memory.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from kit.environment import machine
from kit.models import gguf_files, registry
from tests.conftest import clean_environment
from tests.test_serving import KEY, start

BARE = """
import sys
import time
from xllamacpp import CommonParams, Server, llama_flash_attn_type
path, slots, context, threads = sys.argv[1], *map(int, sys.argv[2:])
parameters = CommonParams()
parameters.model.path = path
parameters.n_parallel, parameters.n_ctx = slots, context * slots
parameters.fit_params = parameters.warmup = parameters.ui = False
parameters.cache_ram_mib = parameters.verbosity = parameters.n_gpu_layers = 0
parameters.flash_attn_type = llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
server = Server(parameters)
print(server.listening_address, flush=True)
time.sleep(1e6)
"""


def ask(host: str, number: int, tokens: int) -> tuple[float, int]:
    """How long a client waited, and how many tokens came."""
    body = {"prompt": f"Client {number} writes:", "n_predict": tokens, "temperature": 0, "top_k": 1, "ignore_eos": True}
    connection = http.client.HTTPConnection(host, timeout=600)
    started = time.perf_counter()
    connection.request("POST", "/completion", json.dumps(body), {"Authorization": f"Bearer {KEY}"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return time.perf_counter() - started, answer["tokens_predicted"]


def load(host: str, process: subprocess.Popen[str], clients: int, tokens: int) -> dict[str, float]:
    ask(host, 0, 8)
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda number: ask(host, number, tokens), range(clients)))
    seconds = time.perf_counter() - started
    assert [count for _, count in answers] == [tokens] * clients
    waits = [wait for wait, _ in answers]
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    whole = {"tokens_per_s": clients * tokens / seconds, "median_s": statistics.median(waits), "longest_s": max(waits)}
    return {**whole, "peak_mb": peak / 1000}


def kit(slots: int, clients: int, tokens: int) -> dict[str, float]:
    running = start(f"SLOTS={slots}", "CONTEXT=512")
    try:
        return load(running.host, running.process, clients, tokens)
    finally:
        running.stop()


@contextmanager
def bare_server(slots: int, context: int, quant: str = "auto") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """xllamacpp's server, which the kit does not set up: where it answers, and its process."""
    path = gguf_files.choose(registry.find("starter"), quant).path
    command = [sys.executable, "-c", BARE, str(path), *map(str, (slots, context, machine.performance().count))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=clean_environment(), text=True, **pipes)
    try:
        assert process.stdout
        yield process.stdout.readline().strip().removeprefix("http://"), process
    finally:
        process.kill()
        process.wait()


def bare(slots: int, clients: int, tokens: int) -> dict[str, float]:
    with bare_server(slots, 512) as (host, process):
        return load(host, process, clients, tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--clients", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=50)
    asked = parser.parse_args()
    ratios = []
    for turn in range(asked.turns):
        order = [kit, bare] if turn % 2 == 0 else [bare, kit]
        found = {each.__name__: each(asked.slots, asked.clients, asked.tokens) for each in order}
        one = kit(1, asked.clients, asked.tokens)
        for name, figures in {**found, "kit, one slot": one}.items():
            print(f"{name:14} " + "  ".join(f"{key} {value:.2f}" for key, value in figures.items()), flush=True)
        ratios.append(found["kit"]["tokens_per_s"] / found["bare"]["tokens_per_s"])
    print(f"kit / bare, tokens/s, median of {asked.turns}: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
