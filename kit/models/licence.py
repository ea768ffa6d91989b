"""What a model's licence asks of whoever hands the model on: the texts that go along, and the words that are shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kit.errors import Command, KitError
from kit.models.registry import Model


@dataclass(frozen=True)
class Duty:
    """`notice` is the text of the file "Notice", `shown` what stands prominently, `sentence` the duty in words;
    the name of what is made of it begins with `beginning`, in any case of letters."""

    notice: str
    shown: str
    sentence: str
    beginning: str = ""


NOTICE = "Notice"
# https://github.com/meta-llama/llama-models/blob/main/models/llama3_2/LICENSE, section 1.b
LLAMA_3_2 = Duty(
    notice="Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, Inc. "
    "All Rights Reserved.\n",
    shown="Built with Llama",
    sentence="whoever hands it on gives the agreement, the notice and the use policy along, and shows «Built with "
    "Llama»; whoever takes it accepts the Llama 3.2 Community License",
    beginning="Llama",
)
DUTIES = {"Llama 3.2 Community License": LLAMA_3_2}


def duty(model: Model) -> Duty | None:
    """None for a licence that asks for no more than itself. Raises KitError for a gated model of an unknown licence."""
    found = DUTIES.get(model.licence)
    if model.gated and (found is None or not model.foundation.licence_files):
        raise KitError(
            f"{model.name} is gated ({model.licence}), and the kit does not know what handing it on asks for.",
            "leave it out of MODEL=",
        )
    return found


def may_be_called(model: Model, name: str) -> bool:
    """Whether something made of the model may have this name where it is handed on."""
    found = DUTIES.get(model.licence)
    return found is None or name.casefold().startswith(found.beginning.casefold())


def texts(model: Model) -> tuple[str, ...]:
    """The paths, within a bundle's folder of the model, of what goes along wherever the model goes."""
    return (*model.licence_files, *([NOTICE] if duty(model) else []))


def require_licences(model: Model, present: Iterable[str]) -> None:
    """Raises KitError where a licence's file is not among the `present` paths of the model's folder."""
    duty(model)
    absent = [path for path in model.licence_files if path not in set(present)]
    if absent:
        names = ", ".join(f"models/{model.name}/{path}" for path in absent)
        raise KitError(
            f"{model.name} may only be handed on with its licence, and {names} is not here.",
            Command("download", MODEL=model.name),
            f"  (it fetches what is missing), or leave {model.name} out of MODEL=",
        )
