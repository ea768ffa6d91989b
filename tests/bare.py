"""Method 2 without the kit: the library calls alone. docs/measurements.md holds `make run METHOD=manual` against it."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "models/starter"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="cpu")
inputs = tokenizer("Hello, who or what are you ?", return_tensors="pt")
outputs = model.generate(**inputs, max_new_tokens=50, do_sample=False)
print(tokenizer.decode(outputs[0, inputs["input_ids"].shape[1] :]))
