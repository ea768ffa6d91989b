"""Method 3, as an engine: the same weights through llama.cpp. Neither torch nor transformers is imported."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kit import llama_server, machine
from kit.completion import Engine, Generated, Request, check_room
from kit.devices import Device
from kit.errors import KitError
from kit.llama_server import LlamaServer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load(request: Request, device: Device, path: Path) -> Engine:
    """An engine for the request, on the GGUF file `path`, whose number format is `device.dtype`.

    The prompt becomes token ids through the model folder's own tokenizer, as for every method. Raises WrongUsage where
    it does not fit into the context, KitError where llama.cpp cannot load the file or did not run it on the device.
    """
    tokenizer, prompt_ids = read_prompt(request)
    ends = end_tokens(request.model.folder)
    machine.release_free_memory()
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
