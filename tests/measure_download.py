"""`make download` of a 1 GB file against curl from the same server, taking turns: python -m tests.measure_download."""

from __future__ import annotations

import hashlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kit.files import sha256
from tests.hub import MisbehavingHub, big_file, serve_folder, tiny_model
from tests.hub_kit import hub_kit, section

SIZE = 1_000_000_000
TURNS = 5


def seconds(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        source = tiny_model(place / "source")
        weights = source / "model.safetensors"
        weights.unlink()
        big_file(weights, SIZE)
        served = serve_folder(source, "free/big")
        with MisbehavingHub([served]) as hub:
            kit = hub_kit(place, hub, section("big", served))
            address = f"{hub.url}/free/big/resolve/{served.revision}/model.safetensors"
            curl = ["curl", "-s", "--output", str(place / "out"), address]
            took: dict[str, list[float]] = {"kit": [], "curl": [], "verify": [], "file_digest": []}
            for _ in range(TURNS):
                shutil.rmtree(kit.folder / "models", ignore_errors=True)
                took["kit"].append(seconds(lambda: kit.run("download", "--model", "big")))
                took["curl"].append(seconds(lambda: subprocess.run(curl, check=True)))
                took["verify"].append(seconds(lambda: sha256(weights)))
                with weights.open("rb") as file:
                    took["file_digest"].append(seconds(lambda file=file: hashlib.file_digest(file, "sha256")))
    for name, each in took.items():
        print(f"{name:12} {statistics.median(each):.2f} s ({min(each):.2f} to {max(each):.2f})")
    for ours, theirs in (("kit", "curl"), ("verify", "file_digest")):
        print(f"rate of {ours} over {theirs}: {statistics.median(took[theirs]) / statistics.median(took[ours]):.2f}")


if __name__ == "__main__":
    sys.exit(main())
