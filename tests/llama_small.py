"""A small random model with Llama 3.2's own settings: RoPE scaling, theta, grouped heads, tied embeddings, epsilon."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from kit.models import random_weights
from kit.models.registry import Model, ModelFile

SIZES = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 49152}
# Random weights as a training starts with foretell nothing, whatever the attention does. With these factors it decides:
# without Llama 3's RoPE scaling the log-probabilities at 2,000 tokens are off by 1.2, and bfloat16 by 0.02.
FACTORS = {"q_proj": 4.0, "k_proj": 4.0, "v_proj": 4.0, "o_proj": 4.0, "embed": 4.0}


def make(folder: Path, tokenizer_folder: Path) -> Model:
    """The model's folder, and the model as the registry would describe it."""
    folder.mkdir(parents=True)
    random_weights.write(folder, tokenizer_folder, random_weights.CONFIG | SIZES)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, values in model.named_parameters():
            for part, factor in FACTORS.items():
                if part in name:
                    values.mul_(factor)
    model.save_pretrained(folder)
    files = tuple(ModelFile(path.name, path.stat().st_size, "") for path in sorted(folder.iterdir()))
    return Model(folder.name, "small and random", "random", "", None, "", False, 131072, files, None)
