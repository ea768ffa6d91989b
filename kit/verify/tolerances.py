"""How far a replay may be from the reference, by device and number format, and why that far.

The measurements stand in docs/measurements.md. Every bound lies above what honest differences gave (threads,
instruction sets, methods) and, where the format allows it, below what planted faults gave.
"""

from __future__ import annotations

from dataclasses import dataclass

from kit.verify.replay import Flip, Replay


@dataclass(frozen=True)
class Tolerance:
    """`mean` and `largest` difference of a log-probability, in nats. `provisional` where nobody has measured it yet.

    Another token may come first where the reference's own margin is at most `largest` (measured in bfloat16: margins of
    0.33 at most, where the largest difference was 0.45).
    """

    mean: float
    largest: float
    provisional: bool = False


TABLE = {
    # Measured: 0.00001 and 0.00005 between instruction sets; noise of 0.1 % in one matrix gives 0.0004 and 0.008.
    ("cpu", "float32"): Tolerance(0.0002, 0.005),
    # Measured: up to 0.005 and 0.10.
    ("cpu", "float16"): Tolerance(0.01, 0.25),
    # Measured: up to 0.042 and 0.45; noise of 20 % in one matrix gives 0.089 and 1.01, two heads swapped 0.093 and 2.0.
    ("cpu", "bfloat16"): Tolerance(0.065, 0.9),
    ("mps", "float32"): Tolerance(0.002, 0.05, provisional=True),
    ("mps", "float16"): Tolerance(0.01, 0.25, provisional=True),
    ("mps", "bfloat16"): Tolerance(0.065, 0.9, provisional=True),
    # llama.cpp rounds what it multiplies weights with to 8 bits (16 for bf16), and q8_0 to q4_0 round the weights too.
    # Measured on the starter only: another model's weights may bear it better or worse. bf16 0.014 and 0.26; q8_0 0.080
    # and 1.17; q4_1, whose weights are the reference's own, 0.065 and 0.88.
    ("cpu", "bf16"): Tolerance(0.03, 0.6),
    ("cpu", "q8_0"): Tolerance(0.12, 2.0),
    ("cpu", "q4_1"): Tolerance(0.1, 1.5),
    # 0.88 and 7.6: 4 bits for what was 4 other bits. (Through transformers in float32 the same rounded weights give
    # 0.87 and 6.8.) It sees garbage, and no less: what proves this file are its sha256, the stages before it, and a
    # test that holds llama.cpp to those rounded weights.
    ("cpu", "q4_0"): Tolerance(1.3, 15.0),
    ("mps", "bf16"): Tolerance(0.065, 0.9, provisional=True),
    ("mps", "q8_0"): Tolerance(0.12, 2.0, provisional=True),
    ("mps", "q4_1"): Tolerance(0.1, 1.5, provisional=True),
    ("mps", "q4_0"): Tolerance(1.3, 15.0, provisional=True),
}


# A tuned model is surer of itself, and rounding goes further in it: on the starter tuned on a page of text bfloat16 is
# off by 0.075 and 0.74, where its base is by 0.04 and 0.4.
TUNED = 2


@dataclass(frozen=True)
class Verdict:
    """Whether a replay is within the tolerance; `faults` says what is not, a line each."""

    replay: Replay
    tolerance: Tolerance
    unexplained: tuple[Flip, ...]
    faults: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.faults


def judge(replay: Replay, device: str, dtype: str, tuned: bool = False) -> Verdict:
    """The verdict on a replay that ran on `device` in `dtype`; `tuned` for a tuned model's."""
    allowed = TABLE[device, dtype]
    if tuned:
        allowed = Tolerance(TUNED * allowed.mean, TUNED * allowed.largest, allowed.provisional)
    unexplained = tuple(flip for flip in replay.flips if not flip.margin <= allowed.largest)
    faults = []
    # Written so that NaN fails.
    if not replay.mean <= allowed.mean:
        faults.append(f"log-probabilities are off by {replay.mean:.4f} on average, and {allowed.mean} is allowed")
    if not replay.largest <= allowed.largest:
        off = f"off by {replay.largest:.3f} ({replay.where})"
        faults.append(f"one log-probability is {off}; {allowed.largest} is allowed")
    if unexplained:
        worst = max(unexplained, key=lambda flip: flip.margin)
        faults.append(
            f"{len(unexplained)} tokens are others, which their margins do not explain "
            f"({worst.prompt}, position {worst.position}: {worst.margin:.2f} ahead in the reference)"
        )
    return Verdict(replay, allowed, unexplained, tuple(faults))
