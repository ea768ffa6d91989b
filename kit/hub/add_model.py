"""A section of env/models.toml for a repository and commit of the Hub."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from kit import paths
from kit.errors import Command, KitError, WrongUsage
from kit.files import beside, locked
from kit.hub import client as hub
from kit.hub import download
from kit.hub import errors as hub_errors
from kit.hub.client import Token
from kit.models import registry
from kit.models.registry import Model, ModelFile

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile


# What inference needs, at the top of the repository: no second copy of the weights in a folder (Llama's original/).
WANTED = [
    *("*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "vocab.json", "merges.txt"),
]
LICENCES = ["LICENSE*", "LICENCE*", "USE_POLICY*", "NOTICE*", "Notice*"]
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


def describe(repo_id: str, revision: str, name: str) -> Model:
    """Asks the Hub for the repository's files at `revision` (a branch is pinned to the commit that it is at now).

    Large files have their sha256 on the Hub; the small ones are fetched and checked against their git blob ids.
    Raises KitError.
    """
    check_names(repo_id, name)
    token = hub.find_token() if hub.is_trusted(hub.endpoint()) else None
    sent: str | bool = token.value if token else False
    from huggingface_hub.hf_api import RepoFile

    bare = Model(name, repo_id.split("/")[1], "base", "", repo_id, revision, False, 0, (), None)
    with hub.session() as api, hub_errors.about(bare):
        info = api.model_info(repo_id, revision=revision, token=sent)
        commit = str(info.sha)
        listed = api.list_repo_tree(repo_id, revision=commit, token=sent)
        tree = [entry for entry in listed if isinstance(entry, RepoFile)]
    card = dict(vars(info.card_data)) if info.card_data else {}
    licence = str(card.get("license_name") or card.get("license") or "unknown: see its page")
    files, contents = _files(replace(bare, revision=commit), tree, token)
    config = json.loads(contents.get("config.json", b"{}"))
    if not any(file.path.endswith(".safetensors") for file in files) or "max_position_embeddings" not in config:
        raise KitError(
            f"{repo_id} is not a model that the kit can run: no safetensors weights, or no config.json with a context.",
            "look for a repository of the Llama architecture with model.safetensors",
        )
    instruct = b"chat_template" in contents.get("tokenizer_config.json", b"") or "instruct" in repo_id.lower()
    licences = tuple(entry.path for entry in tree if _matches(entry.path, LICENCES))
    return replace(
        bare,
        kind="instruct" if instruct else "base",
        licence=licence,
        revision=commit,
        gated=bool(info.gated),
        context=config["max_position_embeddings"],
        files=tuple(files),
        licence_files=licences,
    )


def _files(model: Model, tree: list[RepoFile], token: Token | None) -> tuple[list[ModelFile], dict[str, bytes]]:
    """The files that inference needs, the largest first, and the content of the small ones."""
    files, contents = [], {}
    for entry in sorted(tree, key=lambda entry: -entry.size):
        if not _matches(entry.path, WANTED):
            continue
        if not entry.lfs:
            contents[entry.path] = download.small_file(model, entry.path, entry.size, entry.blob_id, token)
        digest = entry.lfs.sha256 if entry.lfs else hashlib.sha256(contents[entry.path]).hexdigest()
        files.append(ModelFile(entry.path, entry.size, digest))
    return files, contents


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
