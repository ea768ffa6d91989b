"""A model, examined once before anything runs it: is it what its files say it is, and can it be run as it is meant?

From the files and not from their names: which ones are the weights, every tensor that the config asks for in its shape,
the config's values against an allow-list, the tokenizer's ids against the rows, and which tokens end a text. What is
not right or not known is an objection, by name, in the way of torch, of llama.cpp or of both.

What came of it is kept in the folder, and holds as long as the files are those that were examined; a folder that cannot
be written is examined each time (0.1 to 0.3 s).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from kit.errors import Command, Hint, KitError
from kit.files import beside
from kit.formats import gguf_tokenizer, llama, llama_config
from kit.formats.llama_config import LLAMACPP, TORCH, Objection
from kit.formats.safetensors import SafetensorsFile, Tensor, read_headers
from kit.models.registry import Model

RECORD = ".examined.json"
# Counts up when the same files would be judged in another way: by the rules here, or by another transformers.
VERSION = 1

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# What transformers reads in a folder, where it is there.
READ = (
    *("*.safetensors", "*.index.json", "*.bin", "*config.json", "tokenizer*.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.*", "merges.txt", "tokenizer.model", "*chat_template*", "*.h5", "*.msgpack"),
)
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
# The method of each framework that has full control.
METHODS = {TORCH: "manual", LLAMACPP: "llamacpp"}
SHOWN = 3  # names in a sentence


class Source(Protocol):
    """The files of a model, in a folder or on the Hub."""

    @property
    def names(self) -> frozenset[str]: ...

    def read(self, name: str) -> bytes | None:
        """A small file's content; None where it is not there, or cannot be looked at cheaply."""

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors by the header of a safetensors file."""

    def same(self, one: Tensor, other: Tensor) -> bool:
        """Whether two tensors have the same numbers; True where that cannot be looked at cheaply."""


@dataclass(frozen=True)
class Examination:
    """What came of it. `weights` are the safetensors files that make up the model, `dtype` the number format of most of
    their bytes, `rows` the embedding's, `ends` the ids of all tokens that end a text; `begin` and `pad` are ids too.
    """

    weights: tuple[str, ...] = ()
    dtype: str = "float32"
    rows: int = 0
    ends: tuple[int, ...] = ()
    begin: int | None = None
    pad: int | None = None
    objections: tuple[Objection, ...] = ()
    notes: tuple[str, ...] = ()

    def against(self, framework: str) -> list[str]:
        """Why the framework would not compute it as it is meant; none for a model that it can run."""
        return [objection.text for objection in self.objections if framework in objection.frameworks]


_known: dict[tuple[Any, ...], Examination] = {}  # of this process


def examination(model: Model) -> Examination:
    """The model's folder, or its base's, examined now or before. Raises OSError where its files cannot be read."""
    model = model.foundation
    key = (model.folder, model.files)
    if key not in _known:
        _known[key] = _recorded(model)
    return _known[key]


def _recorded(model: Model) -> Examination:
    record = model.folder / RECORD
    files = {file.path: file.sha256 for file in model.files}
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError, AttributeError):
        kept = json.loads(record.read_text(encoding="utf-8"))
        if (kept.pop("version"), kept.pop("files")) == (VERSION, files):
            return _restored(kept)
    result = examine(Folder(model))
    with contextlib.suppress(OSError), beside(record) as place:
        place.write_text(json.dumps({"version": VERSION, "files": files, **asdict(result)}), encoding="utf-8")
    return result


def _restored(kept: dict[str, Any]) -> Examination:
    kept["objections"] = tuple(Objection(each["text"], tuple(each["frameworks"])) for each in kept["objections"])
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()}
    return Examination(**fields)


def require(model: Model, framework: str) -> Examination:
    """The examination of a model that the framework can run. Raises KitError that says why it cannot, by name, with the
    method that can, if one can."""
    strangers = [f"models/{one.name}/{name}" for one in filter(None, (model, model.base)) for name in unpinned(one)]
    if strangers:
        names = ", ".join(sorted(strangers)[:SHOWN])
        raise KitError(
            f"{names}: nobody pinned {'it' if len(strangers) == 1 else 'them'}, and transformers would read "
            f"{'it' if len(strangers) == 1 else 'them'}.",
            f"move {'it' if len(strangers) == 1 else 'them'} out of the folder, then the same command",
        )
    result = examination(model)
    against = result.against(framework)
    if against:
        raise KitError(f"{model.name} cannot be run with {framework}: {'; '.join(against)}.", *how_to_run(model))
    return result


def how_to_run(model: Model) -> Hint:
    """What to type for a completion: the method that can run the model, if only one can, and the starter if none."""
    able = [framework for framework in METHODS if not examination(model).against(framework)]
    if len(able) == len(METHODS):
        return (Command("run", MODEL=model.name),)
    if able:
        return (Command("run", METHOD=METHODS[able[0]], MODEL=model.name),)
    return (Command("run", MODEL="starter"), "  (no method can run these files)")


def weights(model: Model) -> list[Path]:
    """The safetensors files that make up the model."""
    return [model.foundation.folder / name for name in examination(model).weights]


def weights_bytes(model: Model) -> int:
    """Bytes of them."""
    names = examination(model).weights
    return sum(file.size for file in model.foundation.files if file.path in names)


def unpinned(model: Model) -> list[str]:
    """Files of the folder that transformers would read, and that are none of the model's."""
    pinned = {file.path for file in model.files} | set(model.licence_files)
    try:
        names = [path.name for path in model.folder.iterdir()]
    except OSError:
        return []
    return sorted(name for name in names if name not in pinned and not name.startswith(".") and is_read(name))


def is_read(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in READ)


@dataclass(frozen=True)
class Folder:
    """A model folder as a Source."""

    owner: Model

    @property
    def names(self) -> frozenset[str]:
        return frozenset(file.path for file in self.owner.files)

    def read(self, name: str) -> bytes | None:
        return (self.owner.folder / name).read_bytes() if name in self.names else None

    def tensors(self, name: str) -> dict[str, Tensor]:
        return read_headers([self.owner.folder / name])

    def same(self, one: Tensor, other: Tensor) -> bool:
        import numpy

        files = SafetensorsFile([])
        files.tensors = {"one": one, "other": other}
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        step = max(1, (1 << 24) // max(1, one.shape[-1]))
        return all(
            numpy.array_equal(files.rows("one", start, end), files.rows("other", start, end))
            for start in range(0, one.shape[0], step)
            for end in [min(start + step, one.shape[0])]
        )


def examine(source: Source) -> Examination:
    """Looks at everything that there is to look at."""
    against: list[Objection] = []
    notes: list[str] = []
    config = _json(source, "config.json", against)
    weights = weight_files(source, against)
    against += llama_config.objections(config)
    tensors: dict[str, Tensor] = {}
    for name in weights:
        try:
            tensors |= source.tensors(name)
        except KitError as error:
            against.append(Objection(error.message.rstrip(".")))
    if not against:
        completed = llama_config.completed(config)
        against += tensor_objections(completed, tensors, source.same)
        if unread := llama_config.unread(config):
            notes.append(f"config.json has what nothing reads: {', '.join(unread)}")
    rows = tensors[llama.EMBEDDINGS[0]].shape[0] if llama.EMBEDDINGS[0] in tensors else 0
    if idle := sorted(name for name in source.names if fnmatch(name, "*.safetensors") and name not in weights):
        notes.append(f"weights that no method reads: {', '.join(idle)}")
    generation = _json(source, "generation_config.json", against) if "generation_config.json" in source.names else {}
    own = _json(source, "tokenizer_config.json", against) if "tokenizer_config.json" in source.names else {}
    ids = tokenizer_ids(source, rows, against, notes)
    if not against:
        against += _llamacpp_tokenizer(source, rows)
    every = [config, generation]
    ends = {one for each in every for one in _ids(each.get("eos_token_id"))} | _named(own, "eos_token", ids)
    return Examination(
        weights=tuple(weights),
        dtype=_dtype(tensors),
        rows=rows,
        ends=tuple(sorted(one for one in ends if 0 <= one < rows)),
        begin=_first(_ids(generation.get("bos_token_id")), _ids(config.get("bos_token_id"))),
        pad=_first(_ids(generation.get("pad_token_id")), _ids(config.get("pad_token_id"))),
        objections=tuple(against),
        notes=tuple(notes),
    )


def _json(source: Source, name: str, against: list[Objection]) -> dict[str, Any]:
    """A file of settings; {} and an objection where it is none."""
    try:
        content = json.loads(source.read(name) or b"")
    except ValueError as error:
        content = None
        against.append(Objection(f"{name} is no JSON ({error})" if name in source.names else f"there is no {name}"))
    if content is not None and not isinstance(content, dict):
        against.append(Objection(f"{name} is not a table of settings"))
    return content if isinstance(content, dict) else {}


def weight_files(source: Source, against: list[Objection]) -> list[str]:
    """The files that make up the model: those that the index names, else the one."""
    if INDEX not in source.names:
        if SINGLE not in source.names:
            against.append(Objection(f"there is neither {SINGLE} nor {INDEX}"))
            return []
        return [SINGLE]
    table = _json(source, INDEX, against).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        against.append(Objection(f"{INDEX} names no files"))
        return []
    shards = sorted(set(table.values()))
    if SINGLE in source.names and shards != [SINGLE]:
        against.append(Objection(f"{SINGLE} lies beside the files that {INDEX} names, and may be another training's"))
    if absent := [name for name in shards if name not in source.names]:
        against.append(Objection(f"{INDEX} names {_some(absent)}, which nobody pinned"))
        return []
    return shards


def tensor_objections(
    config: dict[str, Any], tensors: dict[str, Tensor], same: Callable[[Tensor, Tensor], bool]
) -> list[Objection]:
    """Every tensor that the config asks for is there, in its shape, and none is too many."""
    expected = llama.shapes(config)
    head, embedding = tensors.get(llama.HEADS[0]), tensors.get(llama.EMBEDDINGS[0])
    against = []
    if missing := [name for name in expected if name not in tensors]:
        against.append(Objection(f"config.json asks for {_some(missing)}, which the weights have not"))
    copies = [llama.HEADS[0]] if config.get("tie_word_embeddings") and head else []
    extra = [name for name in tensors if name not in expected and not llama.is_computed(name) and name not in copies]
    if extra:
        against.append(Objection(f"the weights have {_some(extra)}, which config.json does not ask for"))
    for name, shape in expected.items():
        if name in tensors and tensors[name].shape != shape:
            other = f"{list(tensors[name].shape)}, where config.json asks for {list(shape)}"
            against.append(Objection(f"{name} has the shape {other}"))
    if copies and head and embedding and not same(head, embedding):
        against.append(Objection(f"config.json ties {copies[0]} to the embedding, and the weights have another"))
    return against


def tokenizer_ids(source: Source, rows: int, against: list[Objection], notes: list[str]) -> dict[str, int]:
    """Each token's id; what is left over or out of place in tokenizer.json is said."""
    if "tokenizer.json" not in source.names:
        against.append(Objection("there is no tokenizer.json, which every method reads"))
        return {}
    if source.read("tokenizer.json") is None:
        return {}  # not cheaply
    tokenizer = _json(source, "tokenizer.json", against)
    try:
        vocabulary = tokenizer["model"]["vocab"]
        if not isinstance(vocabulary, dict):  # a Unigram's
            vocabulary = {row[0]: place for place, row in enumerate(vocabulary)}
        ids = dict(vocabulary)
        ids |= {added["content"]: added["id"] for added in tokenizer.get("added_tokens") or ()}
    except (LookupError, TypeError, AttributeError):
        against.append(Objection("tokenizer.json has no vocabulary"))
        return {}
    against += _added_objections(source, tokenizer)
    if left := [key for key in ("truncation", "padding") if tokenizer.get(key)]:
        notes.append(f"tokenizer.json has {' and '.join(left)} left in it, which the kit takes no notice of")
    if rows and (beyond := sorted(token for token, place in ids.items() if place >= rows)):
        notes.append(f"{_some(beyond)}: tokens beyond the {rows} that the weights have rows for")
    return ids


def _added_objections(source: Source, tokenizer: dict[str, Any]) -> list[Objection]:
    """Where an added token is not in the vocabulary and not behind it, the tokenizers library gives it another id than
    the file says, and transformers leaves it out."""
    if not isinstance(source, Folder):
        return []
    from tokenizers import Tokenizer

    try:
        loaded = Tokenizer.from_file(str(source.owner.folder / "tokenizer.json"))
    except Exception as error:  # the library's own: it has no other kind
        return [Objection(f"tokenizer.json cannot be loaded: {error}")]
    ids = {added["content"]: added["id"] for added in tokenizer.get("added_tokens") or ()}
    wrong = {token: loaded.token_to_id(token) for token, place in ids.items() if loaded.token_to_id(token) != place}
    return [
        Objection(f"tokenizer.json says that {token!r} is token {ids[token]}, and it loads as {got}")
        for token, got in wrong.items()
    ]


def _llamacpp_tokenizer(source: Source, rows: int) -> list[Objection]:
    if not isinstance(source, Folder):
        return []
    try:
        gguf_tokenizer.read(source.owner.folder, rows)
    except KitError as error:
        return [Objection(error.message.rstrip("."), (LLAMACPP,))]
    except (LookupError, TypeError, AttributeError, ValueError, OSError) as error:
        return [Objection(f"tokenizer.json is not of a form that the kit converts ({error})", (LLAMACPP,))]
    return []


def _dtype(tensors: dict[str, Tensor]) -> str:
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
    return DTYPES[max(sizes, key=partial(dict.__getitem__, sizes))] if sizes else "float32"


def _ids(value: Any) -> list[int]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)]


def _first(*lists: list[int]) -> int | None:
    return next((each[0] for each in lists if each), None)


def _named(config: dict[str, Any], key: str, ids: dict[str, int]) -> set[int]:
    """The id of a token that tokenizer_config.json names."""
    token = config.get(key)
    text = token.get("content") if isinstance(token, dict) else token
    return {ids[text]} if isinstance(text, str) and text in ids else set()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
