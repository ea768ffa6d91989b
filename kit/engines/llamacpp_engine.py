"""Method 3, as an engine: the same weights through llama.cpp. Neither torch nor transformers is imported."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.engines import llama_server, memory
from kit.engines.devices import Device
from kit.engines.llama_server import LlamaServer
from kit.engines.request import Engine, Generated, Request, check_room
from kit.environment import machine
from kit.errors import KitError
from kit.models.gguf_files import Quant
from kit.models.registry import Model

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load(request: Request, device: Device, path: Path) -> Engine:
    """An engine for the request, on the GGUF file `path`, whose number format is `device.dtype`.

    The prompt becomes token ids through the model folder's own tokenizer, as for every method. Raises WrongUsage where
    it does not fit into the context, KitError where llama.cpp cannot load the file or did not run it on the device.
    """
    tokenizer, prompt_ids = read_prompt(request)
    ends = end_tokens(request.model.folder)
    memory.release_free_memory()
    # One more than is asked for: see below.
    server = LlamaServer(path, device.name, len(prompt_ids) + request.max_new_tokens + 1, device.dtype)

    def generate(request: Request, on_text: Callable[[str], None]) -> Generated:
        said = ""
        token_ids: list[int] = []
        first_at, first_tokens, last_at = 0.0, 0, 0.0
        wanted = request.max_new_tokens

        while len(token_ids) < wanted and not (token_ids and token_ids[-1] in ends):
            known, count, start, last_id = True, 0, len(token_ids), None
            asked = prompt_ids + token_ids
            # llama.cpp keeps a token that ends inside a character to itself. One token more than is asked for, and the
            # last one asked for is among those that it has worked on, and so among those that it saves.
            for chunk in server.generate(
                asked, wanted - start + 1, request.temperature, request.seed + start, request.ignore_eos
            ):
                last_at = time.perf_counter()
                known = known and chunk.count == count + 1
                if known and chunk.token_id is not None:
                    token_ids.append(chunk.token_id)
                if chunk.count <= wanted - start:
                    count, last_id = chunk.count, chunk.token_id
                    said += chunk.text
                    on_text(chunk.text)
                else:  # it began among those asked for, and ended behind them
                    count, last_id = wanted - start, None
                first_at, first_tokens = first_at or last_at, first_tokens or count
                if count == wanted - start:
                    break
            if not known:
                token_ids[start:] = _resolved(server.ids_after(asked), last_id, count)
            if not count:
                break
        whole = tokenizer.decode(token_ids, skip_special_tokens=True)
        if whole.startswith(said) and whole != said:
            on_text(whole[len(said) :])  # the bytes of a character that the last token did not finish
        return Generated(prompt_ids, token_ids, whole, first_at, first_tokens, last_at)

    return Engine(
        device=server.ran.device,
        dtype=None,
        quant=device.dtype,
        packages=llama_server.PACKAGES,
        generate=generate,
        device_memory=lambda: server.ran.gpu_bytes,
        close=server.close,
    )


def read_prompt(request: Request) -> tuple[Tokenizer, list[int]]:
    """The model's tokenizer and the prompt's ids. Raises WrongUsage where they do not fit into the context."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(request.model.folder / "tokenizer.json"))
    prompt_ids: list[int] = tokenizer.encode(request.prompt).ids
    check_room(request, len(prompt_ids))
    return tokenizer, prompt_ids


def _resolved(saved: list[int], last_id: int | None, count: int) -> list[int]:
    """The `count` ids: llama.cpp saves a token when it has worked on it, so the last one may be missing."""
    found = saved if last_id is None else [*saved[: count - 1], last_id]
    if len(found) < count:
        raise KitError("llama.cpp's saved tokens could not be read.", "please report it, with the prompt")
    return found[:count]


def end_tokens(folder: Path) -> set[int]:
    """The ids that end a text, as for the other methods. (llama.cpp ends at more: it goes on after those.)"""
    path = folder / "generation_config.json"
    said = json.loads((path if path.exists() else folder / "config.json").read_text(encoding="utf-8"))
    ids = said.get("eos_token_id")
    return set(ids if isinstance(ids, list) else [] if ids is None else [ids])


# --- What llama.cpp makes of each token of a text ---------------------------------------------------------------------


FORCE = 10_000.0  # far above what any logit can be


@dataclass(frozen=True)
class Position:
    """`logprob` of the token that stands there, in nats; `best` is the most probable token, `margin` how far the token
    that stands there is ahead of the best other one (below 0 where it is not the best).
    """

    logprob: float
    best: int
    margin: float


class LlamacppReplay:
    """Reads a model's GGUF on `device` (cpu or mps), for texts of up to `context` tokens. To be closed."""

    def __init__(self, model: Model, quant: Quant, device: str, context: int) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
        self._vocabulary = int(json.loads((model.folder / "config.json").read_text(encoding="utf-8"))["vocab_size"])
        # A token that is a whole character: any will do.
        self._decoy = next(token for token in range(self._vocabulary) if self._is_whole(token))
        self._server = LlamaServer(quant.path, device, context + 1, quant.name)
        self.ran = self._server.ran

    def close(self) -> None:
        self._server.close()

    def positions(self, ids: Sequence[int], first: int) -> Iterator[Position]:
        """Each position from `first` (1 or more) on. Raises KitError where llama.cpp does not answer as it should."""
        for place in range(first, len(ids)):
            yield self._position(list(ids[:place]), ids[place])

    def measure(self, ids: Sequence[int], first: int) -> tuple[list[float], list[float]]:
        """The log-probability of each token from position `first` on, and its margin over the best other one."""
        found = list(self.positions(ids, first))
        return [position.logprob for position in found], [position.margin for position in found]

    def _position(self, before: list[int], token: int) -> Position:
        if self._is_whole(token):
            said = self._ask(before, token, 2)
            logprob = float(said["logprob"])
        else:
            # llama.cpp says nothing about a token that ends inside a character; so another is forced, and this one is
            # looked up among the rest.
            said = self._ask(before, self._decoy, 500)
            listed = {each["id"]: each["logprob"] for each in said["top_logprobs"]}
            if token not in listed:
                said = self._ask(before, self._decoy, self._vocabulary)
                listed = {each["id"]: each["logprob"] for each in said["top_logprobs"]}
            logprob = float(listed[token])
        top = said["top_logprobs"]
        other = top[1] if top[0]["id"] == token else top[0]
        return Position(logprob, int(top[0]["id"]), logprob - float(other["logprob"]))

    def _ask(self, before: list[int], forced: int, count: int) -> dict[str, Any]:
        asked = {"prompt": before, "n_predict": 1, "n_probs": count, "cache_prompt": True, "samplers": ["top_k"]}
        answer = self._server.post("/completion", asked | {"top_k": 1, "logit_bias": [[forced, FORCE]]})
        try:
            said: dict[str, Any] = answer["completion_probabilities"][0]
            if said["id"] != forced:
                raise ValueError(f"token {said['id']} in place of {forced}")
            return said
        except (LookupError, ValueError) as error:
            raise KitError(f"llama.cpp's log-probabilities could not be read: {error}.", "please report it") from error

    def _is_whole(self, token: int) -> bool:
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        return bool(text) and "\ufffd" not in text


def of_llamacpp() -> dict[str, Any]:
    """What llama.cpp says of itself, and the threads that it is given."""
    features = llama_server.import_library().get_system_info()
    return {"threads": machine.performance().count, "features": str(features).strip(" |")}
