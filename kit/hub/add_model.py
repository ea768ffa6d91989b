"""A section of env/models.toml for a repository and commit of the Hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from kit import paths
from kit.errors import Command, KitError, WrongUsage
from kit.files import beside, locked
from kit.formats import llama_config, safetensors
from kit.formats.safetensors import Tensor
from kit.hub import client as hub
from kit.hub import download
from kit.hub import errors as hub_errors
from kit.hub.client import Token
from kit.models import examine, registry
from kit.models.registry import Model, ModelFile

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoFile


# What inference needs, at the top of the repository: no second copy of the weights in a folder (Llama's original/). Of
# the weights those that make up the model (examine.weight_files).
WANTED = [
    *("model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "vocab.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json"),
]
LICENCES = ["LICENSE*", "LICENCE*", "USE_POLICY*", "NOTICE*", "Notice*"]
HEADER = 1 << 16  # bytes: what most headers fit into (1B: 17 KB)
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")


def section(model: Model) -> str:
    """What will stand in env/models.toml."""
    lines = [
        f'["{model.name}"]' if "." in model.name else f"[{model.name}]",
        f"title = {json.dumps(model.title)}",
        f'kind = "{model.kind}"',
        f"licence = {json.dumps(model.licence)}",
        f'repo_id = "{model.repo_id}"',
        f'revision = "{model.revision}"',
        *(["gated = true"] if model.gated else []),
        f"context = {model.context}",
        *([f"licence_files = {json.dumps(list(model.licence_files))}"] if model.licence_files else []),
        "files = [",
        *(f'  {{ path = "{f.path}", size = {f.size}, sha256 = "{f.sha256}" }},' for f in model.files),
        "]",
    ]
    return "\n".join(lines) + "\n"


def check_names(repo_id: str, name: str) -> None:
    """Raises WrongUsage for names that cannot be, or that are taken."""
    if not REPO_ID.fullmatch(repo_id):
        example = Command("add-model", REPO="owner/name", NAME="short")
        raise WrongUsage(f"REPO={repo_id} is not of the form owner/name.", example)
    if not NAME.fullmatch(name) or ".." in name:
        raise WrongUsage(f"NAME={name}: small letters, digits, dots and dashes, please.")
    if name in registry.read():
        raise WrongUsage(f"env/models.toml has a model {name} already.", "take another NAME, or remove its section")
    if name in registry.tuned_names():
        raise WrongUsage(
            f"models/{name}/ is a tuned model, which a section of its name would hide.", "take another NAME"
        )


def describe(repo_id: str, revision: str, name: str, on_note: Callable[[str], None] = lambda text: None) -> Model:
    """Asks the Hub for the repository's files at `revision` (a branch is pinned to the commit that it is at now).

    Large files have their sha256 on the Hub; the small ones are fetched and checked against their git blob ids. The
    model is examined by them and by the headers of its weights, before gigabytes are fetched; `on_note` gets what only
    one of the frameworks cannot run. Raises KitError, also for what none can.
    """
    check_names(repo_id, name)
    token = hub.find_token() if hub.is_trusted(hub.endpoint()) else None
    sent: str | bool = token.value if token else False
    from huggingface_hub.hf_api import RepoFile

    bare = Model(name, repo_id.split("/")[1], "base", "", repo_id, revision, False, 0, (), None)

    def look() -> tuple[ModelInfo, list[RepoFile]]:
        with hub.session() as api, hub_errors.about(bare):
            info = api.model_info(repo_id, revision=revision, token=sent)
            listed = api.list_repo_tree(info.id, revision=str(info.sha), token=sent)
            return info, [entry for entry in listed if isinstance(entry, RepoFile)]

    info, tree = download.patiently(look, on_note)
    commit = str(info.sha)
    if info.id != repo_id:
        on_note(f"{repo_id} is called {info.id} now, and is pinned by that name")
        bare = replace(bare, title=info.id.split("/")[1], repo_id=info.id)
    card = dict(vars(info.card_data)) if info.card_data else {}
    licence = str(card.get("license_name") or card.get("license") or "unknown: see its page")
    source = Repository(replace(bare, revision=commit), tree, token, on_note)
    examined = examine.examine(source)
    against = [objection.text for objection in examined.objections if objection.frameworks == llama_config.ALL]
    if against:
        raise KitError(
            f"{repo_id} is not a model that the kit can run: {'; '.join(against)}.",
            "look for a repository of the Llama architecture with model.safetensors and tokenizer.json",
        )
    for objection in examined.objections:
        on_note(f"{' and '.join(objection.frameworks)} cannot run it: {objection.text}")
    for note in examined.notes:
        on_note(note)
    licences = tuple(entry.path for entry in tree if _matches(entry.path, LICENCES))
    return replace(
        bare,
        kind="instruct" if source.has_chat_template() else "base",
        licence=licence,
        revision=commit,
        gated=bool(info.gated),
        context=source.context(),
        files=tuple(source.files(examined.weights)),
        licence_files=licences,
    )


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub at a commit, as what is examined: small files whole, of the weights the headers."""

    model: Model
    tree: list[RepoFile]
    token: Token | None
    on_note: Callable[[str], None]

    @cached_property
    def entries(self) -> dict[str, RepoFile]:
        """What inference may need, by name."""
        return {entry.path: entry for entry in self.tree if _matches(entry.path, [*WANTED, "*.safetensors"])}

    @property
    def names(self) -> frozenset[str]:
        """Where an index says which the weights are, the one file is none of them."""
        return frozenset(self.entries) - ({examine.SINGLE} if examine.INDEX in self.entries else set())

    @cached_property
    def _contents(self) -> dict[str, bytes]:
        return {}

    def read(self, name: str) -> bytes | None:
        entry = self.entries.get(name)
        if entry is None or entry.lfs:
            return None
        if name not in self._contents:
            fetch = partial(download.small_file, self.model, entry.path, entry.size, entry.blob_id, self.token)
            self._contents[name] = download.patiently(fetch, self.on_note)
        return self._contents[name]

    def tensors(self, name: str) -> dict[str, Tensor]:
        path = Path(name)

        def beginning(size: int) -> bytes:
            fetch = partial(download.beginning, self.model, name, size, self.token)
            return download.patiently(fetch, self.on_note)

        start = beginning(HEADER)
        length = 8 + safetensors.header_length(path, start[:8])
        if length > len(start):
            start = beginning(length)
        return safetensors.parse(path, start[:8], start[8:length])

    def same(self, one: Tensor, other: Tensor) -> bool:
        return True  # download looks

    def files(self, weights: Iterable[str]) -> list[ModelFile]:
        """The files to pin, the largest first. A small one's sha256 is of its content."""
        pinned = []
        for entry in sorted(self.tree, key=lambda entry: -entry.size):
            if entry.path not in weights and not _matches(entry.path, WANTED):
                continue
            digest = entry.lfs.sha256 if entry.lfs else hashlib.sha256(self.read(entry.path) or b"").hexdigest()
            pinned.append(ModelFile(entry.path, entry.size, digest))
        return pinned

    def has_chat_template(self) -> bool:
        settings = json.loads(self.read("tokenizer_config.json") or b"{}")
        return any(name.startswith("chat_template") for name in self.names) or bool(settings.get("chat_template"))

    def context(self) -> int:
        context: int = llama_config.completed(json.loads(self.read("config.json") or b"{}"))["max_position_embeddings"]
        return context


def _matches(path: str, patterns: list[str]) -> bool:
    return "/" not in path and any(fnmatch(path, pattern) for pattern in patterns)


def append(model: Model) -> None:
    """Writes its section behind the others, in one step. Raises WrongUsage where the name was taken meanwhile."""
    path = paths.MODELS_TOML
    with locked(paths.MODELS / ".models-toml.lock"):
        registry.read.cache_clear()
        check_names(str(model.repo_id), model.name)
        others = path.read_text(encoding="utf-8").rstrip("\n")
        with beside(path) as partial:
            partial.write_text(f"{others}\n\n{section(model)}", encoding="utf-8")
        registry.read.cache_clear()
        registry.find(model.name)
