"""What the write-up that the kit grew from measured, as it says it: quoted, not measured here."""

from __future__ import annotations

WHERE = "M1 MacBook Air (2020, 8 GB), Llama 3.2 1B, bfloat16"
# Seconds in all by method and device, to 50 tokens (manual) or the pipeline's own length.
SECONDS = {("pipeline", "cpu"): 6, ("pipeline", "mps"): 8, ("manual", "cpu"): 6, ("manual", "mps"): 10}
