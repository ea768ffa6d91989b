"""What the model says: a prompt that every chip answers alike, and what this one answers to the default prompt."""

from __future__ import annotations

import functools

from tests.conftest import run_command

# Each of the twenty tokens leads by 1.9 (log-probability) in float32, and bfloat16 may move one by 0.9
# (kit/verify/tolerances.py): the starter goes on like this on every chip.
PROMPT = "1, 2, 3, 4, 5, 6,"
ANSWER = " 7, 8, 9, 10, 11, 12"
TOKENS = 20


@functools.cache
def here() -> str:
    """The first twelve tokens for the default prompt, natively: in bfloat16 another chip may say other words."""
    done = run_command(["make", "-s", "run", "MAX_NEW_TOKENS=12"])
    assert done.status == 0, done.err
    assert len(done.out) > 20
    return done.out.removesuffix("\n")
