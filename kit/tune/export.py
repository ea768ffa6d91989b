"""A tuned model as one plain folder, dist/<NAME>/: base and adapter merged, for programs that know nothing of adapters.

Merged in float32 and written in bfloat16, a tensor at a time, by numpy: what is added to a weight is (alpha / rank) B A
(Hu et al., 2021, section 4.1, https://arxiv.org/abs/2106.09685).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit import paths
from kit.errors import Command, WrongUsage
from kit.files import Progress, silent, staged
from kit.formats import llama, safetensors, to_gguf
from kit.formats.safetensors import SafetensorsFile, as_float32
from kit.models import examine, licence, registry
from kit.models import folder as model_folder
from kit.models.registry import Model
from kit.tune import tune

if TYPE_CHECKING:
    import numpy

MARGIN = 50_000_000  # bytes beside the weights, twice


@dataclass(frozen=True)
class Exported:
    """The folder, and the GGUF file in it; `size` in bytes, of all."""

    folder: Path
    gguf: Path
    size: int


def export(model: Model, name: str, on_progress: Progress = silent) -> Exported:
    """Writes dist/<name>/. Raises WrongUsage for a name that the base's licence does not allow, or that is taken;
    KitError where a file is missing or the disk is full."""
    base = model.base
    if base is None:
        why = f"{model.name} is not tuned: there is nothing to merge."
        raise WrongUsage(why, Command("models"), " says which are; ", Command("tune"))
    tune.check_name(name)
    if not licence.may_be_called(base, name):
        raise WrongUsage(
            f"NAME={name}: the {base.licence} asks of a model that is handed on that its name begins with Llama.",
            Command("export", MODEL=model.name, NAME=f"llama-{name}"),
        )
    model_folder.check(model)
    licence.require_licences(base, [path.name for path in base.folder.iterdir()])
    target = paths.DIST / name
    again = (Command("export", MODEL=model.name, NAME=name),)
    wait = partial(on_progress, f"waiting for another process that exports {name}", 0)
    target.parent.mkdir(parents=True, exist_ok=True)
    with staged(f"dist/{name}", target, again, need=2 * examine.weights_bytes(base) + MARGIN, on_wait=wait) as place:
        assert place
        if target.exists():
            raise WrongUsage(f"dist/{name}/ is there already.", f"rm -r dist/{name}, or another NAME")
        place.mkdir()
        _copy(base, place)
        merge(model, place / "model.safetensors", partial(on_progress, f"merging {model.name}"))
        weights, gguf = [place / "model.safetensors"], place / f"{name}-bf16.gguf"
        to_gguf.convert(place, weights, name, "bf16", gguf, partial(on_progress, f"writing {gguf.name}"))
        to_gguf.prove(place, weights, "bf16", gguf, partial(on_progress, f"proving {gguf.name}"))
        (place / "README.md").write_text(readme(model, base, name), encoding="utf-8")
        shutil.copyfile(model.folder / registry.TUNE_JSON, place / registry.TUNE_JSON)
        place.rename(target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return Exported(target, target / gguf.name, size)


def _copy(base: Model, place: Path) -> None:
    """The base's config, tokenizer and licences."""
    weights = (".safetensors", ".gguf", ".index.json", ".bin")
    for name in [*(file.path for file in base.files if not file.path.endswith(weights)), *base.licence_files]:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base.folder / name, place / name)
    if duty := licence.duty(base):
        (place / licence.NOTICE).write_text(duty.notice, encoding="utf-8")
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    if config.get(key) != "bfloat16":
        config[key] = "bfloat16"
        (place / "config.json").write_text(f"{json.dumps(config, indent=2)}\n", encoding="utf-8")


def merge(model: Model, path: Path, on_progress: Any = lambda share: None) -> None:
    """Writes the base's weights with the adapter in them to `path`, in bfloat16."""
    assert model.base
    config = llama.read_config(model.base.folder)
    source = SafetensorsFile(examine.weights(model.base))
    tied = bool(config.get("tie_word_embeddings"))
    names = sorted(own for _, own in llama.tensor_names(source.tensors, tied))
    adapter = SafetensorsFile([model.folder / registry.ADAPTER_WEIGHTS])
    settings = json.loads((model.folder / registry.ADAPTER_CONFIG).read_text(encoding="utf-8"))
    scale = settings["lora_alpha"] / settings["r"]
    total, done = sum(source.tensors[name].count for name in names), 0
    with path.open("wb") as file:
        file.write(safetensors.header({name: source.tensors[name].shape for name in names}))
        for name in names:
            values = as_float32(source.bits(name))
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{stem}.lora_A.weight" in adapter.tensors:
                values = values + _product(adapter, stem) * scale
            file.write(safetensors.bfloat16(values).astype("<u2", copy=False).data)
            done += source.tensors[name].count
            on_progress(done / total)


def _product(adapter: SafetensorsFile, stem: str) -> numpy.ndarray:
    a, b = (as_float32(adapter.bits(f"{stem}.lora_{side}.weight")) for side in "AB")
    product: numpy.ndarray = b @ a
    return product


def readme(model: Model, base: Model, name: str) -> str:
    """What goes along with what is handed on."""
    said, duty = registry.read_tune(model.name), licence.duty(base)
    source = f"https://huggingface.co/{base.repo_id} at {base.revision}" if base.repo_id else base.revision
    licences = [path for path in (*base.licence_files, *(file.path for file in base.files)) if "LICENSE" in path]
    lines = [
        f"# {name}",
        "",
        *([f"**{duty.shown}**", ""] if duty else []),
        f"{base.title} ({source}), modified: fine-tuned on {said['data']['tokens']} tokens of a text "
        f"(sha256 {said['data']['sha256']}) and merged. tune.json says how.",
        "",
        f"Licence: {base.licence} ({', '.join([*licences, *([licence.NOTICE] if duty else [])])}).",
    ]
    if duty:
        lines += ["", f"{duty.sentence[0].upper()}{duty.sentence[1:]}."]
    return "\n".join(lines) + "\n"
