"""The adapter as models/<NAME>/ holds it: peft's own form, the same for llama.cpp, and tune.json: of what, and how."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.files import sha256
from kit.formats import llama, to_gguf
from kit.models import registry
from kit.models.registry import Model

if TYPE_CHECKING:
    from peft import PeftModel


def write(place: Path, model: PeftModel, base: Model, name: str, said: dict[str, Any]) -> dict[str, Any]:
    """Writes the folder `place`: the adapters of `model`, and `said` with the files' sha256; that is tune.json.

    The same adapters give the same bytes. Raises KitError where what was written is not right.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = model.peft_config["default"]
    # Without the embeddings, which learn nothing: peft would ask the Hub whether they have grown.
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(state, place / registry.ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (place / registry.ADAPTER_WEIGHTS).chmod(0o644)  # safetensors' own writer leaves it to its owner alone
    words = {key: _plain(value) for key, value in {**config.to_dict(), "inference_mode": True}.items()}
    text = json.dumps(words, indent=2, sort_keys=True, ensure_ascii=False)
    (place / registry.ADAPTER_CONFIG).write_text(f"{text}\n", encoding="utf-8")
    alpha = float(config.lora_alpha)
    to_gguf.convert_adapter(
        place / registry.ADAPTER_WEIGHTS, llama.read_config(base.folder), alpha, name, place / registry.ADAPTER_GGUF
    )
    names = registry.ADAPTER_FILES
    files = [{"path": path, "size": (place / path).stat().st_size, "sha256": sha256(place / path)} for path in names]
    said = {**said, "files": files}
    text = json.dumps(said, indent=1, ensure_ascii=False)
    (place / registry.TUNE_JSON).write_text(f"{text}\n", encoding="utf-8")
    return said


def _plain(value: Any) -> Any:
    """As JSON has it: a set has no order of its own, and would be written in another one each time."""
    if isinstance(value, set):
        return sorted(value)
    return value.value if isinstance(value, Enum) else value
