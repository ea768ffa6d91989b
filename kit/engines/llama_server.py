"""llama.cpp in this process, through xllamacpp: a model loaded, asked over its own loopback port, and gone at close().

Its own callback gives text without token ids, or ids with a sort of the whole vocabulary each token (n_probs); over
HTTP it gives ids for nothing. So it is asked through the port that it opens anyway, under a key that only this process
knows.
"""

from __future__ import annotations

import ctypes
import http.client
import importlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TextIO

from kit.engines import threads
from kit.environment import machine
from kit.errors import Command, KitError

STEP = 256  # llama.cpp rounds a context up to this many tokens
# The line of its log that ends its start. Ended before it, llama.cpp waits for itself for ever.
READY, PATIENCE = "all slots are idle", 60.0  # seconds
# The last line of a load that failed: it comes late, and would go to a stderr that is a person's again.
GIVEN_UP = "exiting due to model loading error"
# llama.cpp makes blocks of its own of these for the CPU's kernels. Mapped, the file would be in memory beside them:
# 1.48 GB in place of 0.94 for q4_0 at 1B, for 0.4 s less of loading (docs/measurements.md).
REPACKED = ("q4_0",)
HTTP_THREADS, SILENCE = 128, 10  # seconds
NOBODY = "https://nobody.invalid"  # an origin that no page can have (RFC 2606)
# In what it saves of a slot (int32s behind "ggsq", a version, a length, two marks): the count of tokens, and they.
SAVED_COUNT_AT = 20


@dataclass(frozen=True)
class Listening:
    """How others reach a server: at `host` and `port` (0: any), under `key`, as `name`.

    `page` is a folder with an index.html, which needs no key, and `about` what is said to it in /props.
    """

    host: str
    port: int
    key: str
    name: str
    page: Path
    about: dict[str, Any]


@dataclass(frozen=True)
class Ran:
    """What llama.cpp's log says that it did: `device` is cpu or mps, `threads` of the CPU, `features` of its kernels;
    `gpu_bytes` is what it took of the GPU's memory, None for nothing.
    """

    device: str
    threads: int
    features: str
    layers: tuple[int, int] | None  # on the GPU, of how many; None where there is no GPU
    gpu_bytes: int | None


@dataclass(frozen=True)
class Chunk:
    """What came at once: `text`, and of its tokens the last one's id. `count` is how many tokens have come so far.

    llama.cpp keeps a token that ends inside a character until the character is whole, and then names only the last.
    """

    text: str
    token_id: int | None
    count: int


def import_library() -> Any:
    """xllamacpp. Its Linux wheels expect libgomp on the system, which slim ones lack; torch's wheel brings it."""
    with threads.loading_llamacpp():
        if sys.platform == "linux" and (torch := importlib.util.find_spec("torch")):
            for folder in torch.submodule_search_locations or ():
                library = Path(folder) / "lib" / "libgomp.so.1"
                if library.exists():
                    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        import xllamacpp

    return xllamacpp


def has_metal() -> bool:
    """Whether llama.cpp finds Apple's GPU."""
    return any(_is_metal(str(device["name"])) for device in import_library().get_device_info())


class LlamaServer:
    """A GGUF file in `quant`, loaded on `device` (cpu or mps) for up to `context` tokens in each of its `slots`, with a
    GGUF `adapter` where there is one. Raises KitError where it cannot be, and where something else ran than what was
    asked for. To be closed. `listening` opens it to others.

    Whatever llama.cpp would settle by itself is settled here: no fitting to free memory, no context shift, no prompt
    cache between requests but the one that is asked for, no warm-up, and threads on performance cores alone.
    """

    def __init__(
        self,
        path: Path,
        device: str,
        context: int,
        quant: str = "",
        adapter: Path | None = None,
        listening: Listening | None = None,
        slots: int = 1,
    ) -> None:
        library = import_library()
        self._key = listening.key if listening else secrets.token_hex(16)
        # Made for the moment in which something lies in it: whoever is killed leaves none behind.
        self._slots = Path(tempfile.gettempdir()) / f"kit-{secrets.token_hex(8)}"
        self._log = NativeLog()
        self._native: Any = None
        self._connections: set[http.client.HTTPConnection] = set()
        parameters = self._parameters(library, path, device, context, slots)
        if listening:
            _listen(parameters, listening)
        if adapter:
            parameters.lora_adapters = [library.CommonAdapterLoraInfo(str(adapter), 1.0)]
        if device == "cpu" and quant in REPACKED:
            parameters.load_mode = library.llama_load_mode.LLAMA_LOAD_MODE_NONE
        self._log.start()
        try:
            self._native = library.Server(parameters)
            said = self._log.wait_for(READY, PATIENCE)
            self._address = str(self._native.listening_address).removeprefix("http://")
            self.port = int(self._address.rpartition(":")[2])
            self.ran = read_log(said)
            if self.ran.device != device:
                layers = f"layers on the GPU: {self.ran.layers}"
                raise KitError(
                    f"llama.cpp was asked for {device} and took {self.ran.device} ({layers}).",
                    Command("run", METHOD="manual"),
                    ", and please report it",
                )
            if listening:
                self._log.discard()  # it goes on for as long as others ask
        except BaseException as error:
            failed = isinstance(error, RuntimeError)
            said = self._log.wait_for(GIVEN_UP, 1.0) if failed else ""
            self.close()
            if failed:
                raise _load_error(path, str(error), said) from error
            raise

    def _parameters(self, library: Any, path: Path, device: str, context: int, slots: int) -> Any:
        parameters = library.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = -(-context // STEP) * STEP * slots  # llama.cpp divides it among them
        parameters.n_parallel = slots
        # It would change what was asked for, without a word.
        parameters.fit_params = False
        parameters.warmup = parameters.ctx_shift = parameters.cache_idle_slots = False
        parameters.cache_ram_mib = parameters.n_ctx_checkpoints = 0
        parameters.flash_attn_type = library.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
        parameters.n_gpu_layers = 0 if device == "cpu" else 999
        parameters.no_kv_offload = parameters.no_op_offload = device == "cpu"
        for parameter in (parameters.cpuparams, parameters.cpuparams_batch):
            parameter.n_threads = machine.performance().count
        # A chat's template and a page for a browser: not for a base model.
        parameters.use_jinja = parameters.enable_chat_template = parameters.ui = False
        parameters.chat_template = "chatml"  # the model's own may be none that it can read, and is not asked for
        parameters.api_keys = [self._key]
        parameters.slot_save_path = f"{self._slots}/"
        parameters.verbosity = 4  # the least that tells which layers ran where
        return parameters

    def generate(
        self,
        ids: list[int],
        count: int,
        temperature: float = 0.0,
        seed: int = 0,
        ignore_eos: bool = False,
        banned: Sequence[int] = (),
    ) -> Iterator[Chunk]:
        """Up to `count` tokens after `ids`, as they come, and none of those `banned`. Temperature 0 is greedy.

        Raises KitError where llama.cpp says that it drew with other settings.
        """
        asked, drawing = _asked(ids, count, temperature, seed, ignore_eos, banned)
        arrived = 0
        with self._ask("/completion", asked | {"stream": True, "cache_prompt": True, "id_slot": 0}) as answer:
            for line in answer:
                if not line.startswith(b"data: "):
                    continue
                said = json.loads(line[6:])
                if said.get("stop"):
                    hold_against(drawing, said["generation_settings"])
                    if said["tokens_predicted"] > arrived:  # it ended inside a character
                        yield Chunk("", None, said["tokens_predicted"])
                    return
                if not arrived:
                    self._hold_slot_against(drawing)
                tokens, arrived = said["tokens"], said["tokens_predicted"]
                yield Chunk(said["content"], tokens[-1] if tokens else None, arrived)

    def _hold_slot_against(self, asked: dict[str, Any]) -> None:
        """While it draws: whoever has what they wanted does not wait for its last word."""
        with self._ask("/slots", None) as answer:
            slot = json.loads(answer.read())[0]
        if slot.get("is_processing"):
            hold_against(asked, slot["params"])

    def answer(
        self,
        slot: int,
        ids: list[int],
        count: int,
        temperature: float = 0.0,
        seed: int = 0,
        ignore_eos: bool = False,
        banned: Sequence[int] = (),
        keeps: bool = False,
    ) -> list[int]:
        """The same as `generate` in a slot of its own (from 0 on) and at once: the ids, each of them. With `keeps` it
        goes on from what it worked on there; else the prompt is worked on whole, as of a server that was just loaded.
        """
        asked, drawing = _asked(ids, count, temperature, seed, ignore_eos, banned)
        said = self.post("/completion", asked | {"id_slot": slot, "cache_prompt": keeps})
        hold_against(drawing, said["generation_settings"])
        if len(said["tokens"]) != said["tokens_predicted"]:
            raise KitError("llama.cpp's tokens could not be read.", "please report it, with the prompt")
        return [int(token) for token in said["tokens"]]

    def next_id(self, ids: list[int]) -> int:
        """The likeliest token after `ids`."""
        asked = {"prompt": ids, "n_predict": 1, "return_tokens": True, "cache_prompt": True}
        return int(self.post("/completion", asked | {"samplers": ["top_k"], "top_k": 1})["tokens"][0])

    def ids_after(self, prompt_ids: list[int]) -> list[int]:
        """The ids that it has worked on behind the last prompt. Raises KitError for an unknown form of them."""
        self._slots.mkdir(mode=0o700)
        try:
            count = self.post("/slots/0?action=save", {"filename": "slot"})["n_saved"]
            with (self._slots / "slot").open("rb") as file:
                content = file.read(SAVED_COUNT_AT + 4 * (1 + count))
        finally:
            shutil.rmtree(self._slots)  # it is the whole of the attention's state
        saved = list(struct.unpack_from(f"<{len(content[SAVED_COUNT_AT:]) // 4}i", content, SAVED_COUNT_AT))
        if saved[: 1 + len(prompt_ids)] != [count, *prompt_ids]:
            raise KitError("llama.cpp's saved tokens could not be read.", "please report it, with the prompt")
        return saved[1 + len(prompt_ids) :]

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A request, and the whole answer to it."""
        with self._ask(path, body) as answer:
            said: dict[str, Any] = json.loads(answer.read())
        return said

    @contextmanager
    def _ask(self, path: str, body: dict[str, Any] | None) -> Iterator[http.client.HTTPResponse]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        with closing(http.client.HTTPConnection(self._address)) as connection:  # closed, it stops a stream
            self._connections.add(connection)
            try:
                if body is None:
                    connection.request("GET", path, headers=headers)
                else:
                    connection.request("POST", path, json.dumps(body), headers)
                answer = connection.getresponse()
                if answer.status != 200:
                    raise KitError(f"llama.cpp refused the request: {answer.read().decode('utf-8', 'replace').strip()}")
                yield answer
            finally:
                self._connections.discard(connection)

    def hang_up(self) -> None:
        """Ends the waiting for what is asked of it, whichever thread waits: that one gets an OSError. llama.cpp itself
        stops what it streams, and works on what it does not."""
        for connection in list(self._connections):
            if connection.sock:
                with suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def abandon(self) -> None:
        """In place of close() where the process ends next: that would wait for every answer that is being given."""
        _abandoned.append(self._native)

    def close(self) -> None:
        """Ends the server, its port and its log; what it held in memory is free again."""
        self._native = None
        self._log.close()


def _asked(
    ids: list[int], count: int, temperature: float, seed: int, ignore_eos: bool, banned: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A request, and that part of it which says how tokens are drawn."""
    greedy = {"samplers": ["top_k"], "top_k": 1}
    # From the whole distribution, as through torch; 2**32 - 1 would mean a random seed.
    drawn = {"samplers": ["temperature"], "temperature": temperature, "seed": seed % (2**32 - 1)}
    drawing = drawn if temperature > 0 else greedy
    asked = {"prompt": ids, "n_predict": count, "return_tokens": True, "ignore_eos": ignore_eos}
    return asked | {"logit_bias": [[token, False] for token in banned], **drawing}, drawing


_abandoned: list[Any] = []  # held until the process is gone


def _listen(parameters: Any, listening: Listening) -> None:
    """Opens the port to others than this process, and no more than is meant."""
    parameters.model.path = os.path.relpath(parameters.model.path)  # it stands in /props
    parameters.hostnames, parameters.port = [listening.host], listening.port
    parameters.api_keys, parameters.model_alias = [listening.key], {listening.name}
    # Unless it is told one origin, it answers each with its own name, and any page in the browser may read.
    parameters.cors_origins, parameters.cors_origins_explicit = NOBODY, True
    parameters.cors_credentials = False
    parameters.ui, parameters.public_path = True, str(listening.page)
    parameters.ui_config_json = json.dumps(listening.about)
    parameters.slot_save_path = ""
    parameters.use_jinja = parameters.enable_chat_template = True
    parameters.chat_template = ""  # the model's own; where it has none, llama.cpp takes chatml
    # Half-sent requests hold a thread each, until they have been silent for so long.
    parameters.n_threads_http, parameters.timeout_read = HTTP_THREADS, SILENCE
    # What a request does not name is as in `make run`: greedy, and with a temperature from the whole distribution.
    sampling = parameters.sampling
    sampling.temp, sampling.top_k, sampling.top_p, sampling.min_p = 0.0, 0, 1.0, 0.0
    sampling.penalty_repeat = 1.0


def hold_against(asked: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raises KitError where the settings in force are other ones than were asked for."""
    for name, value in asked.items():
        got = settings.get(name)
        near = isinstance(value, float) and isinstance(got, float) and abs(got - value) <= 1e-6 * value
        if got != value and not near:
            raise KitError(f"llama.cpp was asked for {name} = {value}, and took {got}.", "please report it")


def read_log(text: str) -> Ran:
    """What ran, from the log of a load. Raises KitError where the log does not say."""
    threads = re.search(r"system_info: n_threads = (\d+).*? \| (?:\w+ : )?(.*)", text)
    buffers = re.findall(r"(?:load_tensors|llama_kv_cache): +(\S+) (?:model|KV) buffer size = +([\d.]+)", text)
    layers = re.search(r"offloaded (\d+)/(\d+) layers to GPU", text)
    if not threads or not buffers:
        raise KitError("llama.cpp's log does not say what ran.", "please report it, with the version in env/lock/")
    on_gpu = [name for name, size in buffers if not name.startswith("CPU") and float(size) > 0]
    counts = (int(layers[1]), int(layers[2])) if layers else None
    whole = counts is not None and counts[0] == counts[1] and all(map(_is_metal, on_gpu))
    device = "cpu" if not on_gpu else "mps" if whole else "a part of both"
    used = re.findall(r"(\S+) (?:model|KV|compute) buffer size = +([\d.]+) MiB", text)
    gpu_bytes = int(sum(float(size) for name, size in used if _is_metal(name)) * 2**20)
    return Ran(device, int(threads[1]), threads[2].strip(" |"), counts, gpu_bytes or None)


def _is_metal(name: str) -> bool:
    return name.upper().startswith(("MTL", "METAL"))


def _load_error(path: Path, error: str, log: str) -> KitError:
    why = next((line.split(" E ", 1)[1].strip() for line in log.splitlines() if " E " in line), error)
    again = f"remove {path.name}, then: ", Command("setup"), ", or ", Command("gguf")
    return KitError(f"llama.cpp could not load {path.name}: {why}", *again)


# --- What native code writes to standard error, kept aside ------------------------------------------------------------


class NativeLog:
    """From start() to close(), file descriptor 2 is a file without a name; Python's sys.stderr goes on as before."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open until close()
        self._stderr: TextIO = sys.stderr
        self._kept = -1

    def start(self) -> Self:
        sys.stderr.flush()
        self._kept = os.dup(2)
        os.dup2(self._file.fileno(), 2)
        own = False
        with suppress(OSError, ValueError):  # a stand-in without a descriptor
            own = self._stderr.fileno() == 2
        if own:
            sys.stderr = os.fdopen(os.dup(self._kept), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        return self

    def text(self) -> str:
        """All that was written so far."""
        size = os.fstat(self._file.fileno()).st_size
        return os.pread(self._file.fileno(), size, 0).decode("utf-8", "replace")

    def wait_for(self, sign: str, seconds: float) -> str:
        """The text, as soon as `sign` is in it: llama.cpp writes from a thread of its own."""
        end = time.monotonic() + seconds
        while sign not in (text := self.text()) and time.monotonic() < end:
            time.sleep(0.001)
        return text

    def discard(self) -> None:
        """What is written from now on is kept nowhere."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
        os.ftruncate(self._file.fileno(), 0)

    def close(self) -> None:
        if self._kept < 0:
            return
        os.dup2(self._kept, 2)
        os.close(self._kept)
        self._kept = -1
        if sys.stderr is not self._stderr:
            sys.stderr.close()
            sys.stderr = self._stderr
        self._file.close()
