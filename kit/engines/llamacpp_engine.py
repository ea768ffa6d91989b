"""Method 3, as an engine: the same weights through llama.cpp. Neither torch nor transformers is imported."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Any

from kit.engines import devices, llama_server, memory
from kit.engines.devices import Device, Obstacle
from kit.engines.engine import Engine, Generated, Position, up_to_the_first
from kit.engines.llama_server import STEP, Listening, LlamaServer
from kit.engines.request import Request
from kit.environment import machine
from kit.environment.machine import Machine
from kit.errors import KitError
from kit.files import Progress, silent
from kit.formats import llama
from kit.models import gguf_files, registry
from kit.models.registry import Model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH = 512  # positions that llama.cpp computes logits for at once, at most
FORCE = 10_000.0  # far above what any logit can be


class LlamacppEngine(Engine):
    """A model's GGUF file through llama.cpp, whose Metal kernels are what `mps` means there.

    The prompt becomes token ids through the model folder's own tokenizer, as for every method.
    """

    method = "llamacpp"
    framework = "llama.cpp"
    setting = "quant"
    packages = ("xllamacpp", "tokenizers")
    libraries_memory = 250_000_000
    server: LlamaServer

    @classmethod
    def formats(cls, model: Model) -> tuple[str, ...]:
        return gguf_files.names(model.foundation)

    def choose(self, device: str, number_format: str) -> Device:
        self.quant = gguf_files.choose(self.model.foundation, number_format)
        name, reason = devices.choose(device, obstacle)
        return Device(name, self.quant.name, reason, self.quant.reason)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.model.foundation.folder / "tokenizer.json"))
        # What somebody's training left in the file; transformers takes no notice of it either.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @property
    def backend(self) -> Tokenizer:
        return self.tokenizer

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def needs_file(self) -> bool:
        return not gguf_files.is_here(self.model.foundation, self.quant)

    def write_file(self, on_progress: Progress = silent) -> bool:
        return gguf_files.ensure(self.model.foundation, self.quant, on_progress)

    def weights_bytes(self) -> int:
        return gguf_files.size(self.model.foundation, self.quant)

    def bytes_per_token(self) -> int:
        return gguf_files.bytes_per_token(self.model.foundation, self.quant)

    def import_libraries(self) -> None:
        llama_server.import_library()
        importlib.import_module("tokenizers")

    def load(self, context: int, slots: int = 1) -> None:
        _ = self.tokenizer
        memory.release_free_memory()
        # One more than is asked for: see `generate`.
        self.server = self._server(context + 1, slots)

    def listen(self, context: int, slots: int, listening: Listening) -> LlamaServer:
        """Loads it for others to ask. Raises KitError as `load` does."""
        return self._server(context, slots, listening)

    def _server(self, context: int, slots: int, listening: Listening | None = None) -> LlamaServer:
        adapter = self.model.folder / registry.ADAPTER_GGUF if self.model.base else None
        return LlamaServer(self.quant.path, self.device.name, context, self.quant.name, adapter, listening, slots)

    def memory_needed(self, context: int, slots: int) -> int:
        config = llama.read_config(self.model.foundation.folder)
        _, kv_heads, head_dim = llama.heads(config)
        per_token = 2 * 2 * config["num_hidden_layers"] * kv_heads * head_dim  # keys and values, in 16 bits
        logits = 4 * BATCH * config["vocab_size"]
        rounded = -(-context // STEP) * STEP
        return int(super().memory_needed(context, slots) + slots * rounded * per_token + logits)

    def generate(self, request: Request, on_text: Callable[[str], None] = lambda text: None) -> Generated:
        prompt_ids, ends = self.fit(request), self.examined.ends
        said = ""
        token_ids: list[int] = []
        first_at, first_tokens, last_at = 0.0, 0, 0.0
        wanted = request.max_new_tokens
        # llama.cpp ends a text at tokens of its own choice, and knows nothing of the model's others.
        banned = ends if request.ignore_eos else ()

        while len(token_ids) < wanted and not (token_ids and token_ids[-1] in ends):
            known, count, start, last_id = True, 0, len(token_ids), None
            asked = prompt_ids + token_ids
            # llama.cpp keeps a token that ends inside a character to itself. One token more than is asked for, and the
            # last one asked for is among those that it has worked on, and so among those that it saves.
            for chunk in self.server.generate(
                asked, wanted - start + 1, request.temperature, request.seed + start, request.ignore_eos, banned
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
                if count == wanted - start or (known and chunk.token_id in ends):
                    break
            if not known:
                token_ids[start:] = self._resolved(asked, last_id, count)
            if not count:
                break
        token_ids = up_to_the_first(ends, token_ids)
        whole = self.continuation(prompt_ids, token_ids)
        if whole.startswith(said) and whole != said:
            on_text(whole[len(said) :])  # the bytes of a character that the last token did not finish
        return Generated(prompt_ids, token_ids, whole, first_at, first_tokens, last_at)

    def generate_all(self, requests: Iterable[Request], slots: int) -> Generator[tuple[int, Generated | KitError]]:
        numbers, own = iter(range(slots)), threading.local()

        def begin() -> None:
            own.slot = next(numbers)

        def answer(request: Request) -> Generated | KitError:
            try:
                return self._answered(request, own.slot)
            except KitError as error:
                return error

        busy: dict[Future[Generated | KitError], int] = {}
        waiting = enumerate(requests)
        pool = ThreadPoolExecutor(slots, initializer=begin)
        try:
            while True:
                # One more for each slot, which then waits for nobody who reads answers.
                while len(busy) < 2 * slots and (following := next(waiting, None)):
                    place, request = following
                    busy[pool.submit(answer, request)] = place
                if not busy:
                    return
                for future in wait(busy, return_when=FIRST_COMPLETED).done:
                    yield busy.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            # Closed while it is asked, llama.cpp may wait for ever. And again: one may just have begun.
            while not all(future.done() for future in busy):
                self.server.hang_up()
                time.sleep(0.01)

    def _answered(self, request: Request, slot: int) -> Generated:
        """What `generate` gives, in a slot and at once: its ids then need no looking up."""
        prompt_ids, ends, token_ids = self.fit(request), self.examined.ends, list[int]()
        wanted = request.max_new_tokens
        banned = ends if request.ignore_eos else ()
        while len(token_ids) < wanted and not (token_ids and token_ids[-1] in ends):
            start = len(token_ids)
            came = self.server.answer(
                slot,
                prompt_ids + token_ids,
                wanted - start,
                request.temperature,
                request.seed + start,
                request.ignore_eos,
                banned,
                keeps=start > 0,
            )
            if not came:
                break
            token_ids = up_to_the_first(ends, token_ids + came)
        now = time.perf_counter()
        return Generated(prompt_ids, token_ids, self.continuation(prompt_ids, token_ids), now, len(token_ids), now)

    def _resolved(self, asked: list[int], last_id: int | None, count: int) -> list[int]:
        """The `count` ids behind `asked`: llama.cpp saves a token when it has worked on it, so the last one may be
        missing. An end token that came behind half a character is asked for again."""
        saved = self.server.ids_after(asked)
        ids = saved if last_id is None else [*saved[: count - 1], last_id]
        if len(ids) == count - 1:
            ids = [*ids, self.server.next_id(asked + ids)]
        if len(ids) < count:
            raise KitError("llama.cpp's saved tokens could not be read.", "please report it, with the prompt")
        return ids[:count]

    def logprobs(self, ids: Sequence[int], first: int) -> list[Position]:
        """llama.cpp gives no log-probabilities of a prompt. So each position is a request of its own, in which a bias
        forces the token that stands there; the log-probabilities are those from before the bias. What it worked on for
        the request before is kept, so that each costs one token's work.
        """
        return [self._position(list(ids[:place]), ids[place]) for place in range(first, len(ids))]

    @cached_property
    def decoy(self) -> int:
        """A token that is a whole character: any will do."""
        return next(token for token in range(self.examined.rows) if self._is_whole(token))

    def _position(self, before: list[int], token: int) -> Position:
        if self._is_whole(token):
            said = self._ask(before, token, 2)
            logprob = float(said["logprob"])
        else:
            # llama.cpp says nothing about a token that ends inside a character; so another is forced, and this one is
            # looked up among the rest.
            for count in (500, self.examined.rows):
                said = self._ask(before, self.decoy, count)
                listed = {each["id"]: each["logprob"] for each in said["top_logprobs"]}
                if token in listed:
                    break
            logprob = float(listed[token])
        top = said["top_logprobs"]
        other = top[1] if top[0]["id"] == token else top[0]
        return Position(logprob, int(top[0]["id"]), logprob - float(other["logprob"]))

    def _ask(self, before: list[int], forced: int, count: int) -> dict[str, Any]:
        asked = {"prompt": before, "n_predict": 1, "n_probs": count, "cache_prompt": True, "samplers": ["top_k"]}
        answer = self.server.post("/completion", asked | {"top_k": 1, "logit_bias": [[forced, FORCE]]})
        try:
            said: dict[str, Any] = answer["completion_probabilities"][0]
            if said["id"] != forced:
                raise ValueError(f"token {said['id']} in place of {forced}")
            return said
        except (LookupError, ValueError) as error:
            raise KitError(f"llama.cpp's log-probabilities could not be read: {error}.", "please report it") from error

    def _is_whole(self, token: int) -> bool:
        text = self.decode([token])
        return bool(text) and "\ufffd" not in text

    def device_memory(self) -> int | None:
        return self.server.ran.gpu_bytes

    def facts(self) -> dict[str, Any]:
        features = str(llama_server.import_library().get_system_info()).strip(" |")
        found = {"version": metadata.version("xllamacpp"), "threads": machine.performance().count}
        return {"llamacpp": {**found, "features": features}}

    def close(self) -> None:
        if server := self.__dict__.pop("server", None):
            server.close()


def obstacle(here: Machine) -> Obstacle | None:
    """What llama.cpp finds in the way of Metal. torch is not imported."""
    return None if llama_server.has_metal() else devices.no_metal("llama.cpp", here)
