"""A tuned model's adapter on its base, in torch: peft's LoRA beside the linear layers, whose weights do not change."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from kit.errors import KitError
from kit.models.registry import Model

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def attach(loaded: PreTrainedModel, model: Model) -> PeftModel:
    """Puts the adapter of `model` into `loaded`, its base. Raises KitError where it does not belong there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

        try:
            config = PeftConfig.from_pretrained(str(model.folder))
            config.inference_mode = True
            wrapped = PeftModel(loaded, config)
            tensors = load_peft_weights(str(model.folder), device="cpu")
            set_peft_model_state_dict(wrapped, tensors)
        except (RuntimeError, ValueError, TypeError) as error:
            words = " ".join(str(error).split())[:300]
            raise _another(model, words) from error
        # peft takes what fits, and says nothing of the rest.
        taken = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    if other := taken.keys() ^ tensors.keys():
        raise _another(model, f"{len(other)} of its tensors are not those that the base takes")
    wrapped.eval()
    return wrapped


def _another(model: Model, why: str) -> KitError:
    assert model.base
    return KitError(
        f"the adapter of {model.name} does not belong to {model.base.name}: {why}.",
        "bring the whole folder anew from where it was tuned",
    )
