"""Method 2 without the kit: the library calls alone. docs/measurements.md holds `make run METHOD=manual` against it.

Prints the completion, and on stderr the tokens/s after the first.
"""

import os
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

from transformers import AutoModelForCausalLM, AutoTokenizer

times: list[float] = []


class Clock:
    """A streamer that only reads the clock: it is put the prompt first, then each token."""

    def put(self, value: object) -> None:
        times.append(time.perf_counter())

    def end(self) -> None:
        pass


folder = "models/starter"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="cpu")
inputs = tokenizer("Hello, who or what are you ?", return_tensors="pt")
outputs = model.generate(**inputs, max_new_tokens=50, do_sample=False, streamer=Clock())
print(tokenizer.decode(outputs[0, inputs["input_ids"].shape[1] :]))
first, *_, last = times[1:]
print(f"{(len(times) - 2) / (last - first):.1f}", file=sys.stderr)
