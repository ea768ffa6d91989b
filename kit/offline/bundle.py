"""A bundle: the tree `kit wheels models licences sbom README SHA256SUMS` that brings the kit to where no network is.

SHA256SUMS lists every other file; the bundle's digest is the sha256 of SHA256SUMS, so a folder, a tar and a mirror have
the same. Nothing inside a bundle vouches for it: the digest comes by another way, wheels are held to the clone's lock,
models to its models.toml.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from kit.errors import Command, Hint, KitError
from kit.models.registry import Model

SUMS, README = "SHA256SUMS", "README"
KIT, WHEELS, MODELS, LICENCES, SBOM = "kit", "wheels", "models", "licences", "sbom"
# What file managers leave on a stick; never listed, never read.
CLUTTER = re.compile(
    r"\.DS_Store|\._.*|\.Spotlight-V100|\.Trashes|\.Trash-\d+|\.fseventsd|\.TemporaryItems|\.DocumentRevisions-V100"
    r"|\.apdisk|Thumbs\.db|desktop\.ini|System Volume Information|\$RECYCLE\.BIN|lost\+found"
)
MARGIN = 50_000_000  # bytes that stay free
SUMS_LIMIT = 4_000_000  # bytes: a list of 40,000 files
AGAIN = "fetch the bundle anew from whoever made it, and compare its digest"
GOES_ON: Hint = ("the same command, which goes on where it stopped",)

Sums = Mapping[str, str]  # path -> sha256


def refusal(path: str, why: str) -> KitError:
    """A bundle is refused with the name of what is bad in it."""
    return KitError(f"the bundle is refused: {path!r} {why}. Nothing of it was installed.", AGAIN)


def check_path(path: str) -> None:
    """Raises KitError for a path that could lead outside of the folder that it is meant for."""
    parts = path.split("/")
    if path.startswith("/") or ".." in parts:
        raise refusal(path, "leads outside of the bundle")
    if "" in parts or "." in parts or "\\" in path or not path.isprintable():
        raise refusal(path, "is not a path that a bundle has")


def format_sums(sums: Sums) -> bytes:
    """The form that `shasum -a 256 -c` reads, sorted."""
    return "".join(f"{sums[path]}  {path}\n" for path in sorted(sums)).encode()


def parse_sums(content: bytes) -> dict[str, str]:
    """SHA256SUMS as path -> sha256, every path checked. Raises KitError."""
    sums: dict[str, str] = {}
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise refusal(SUMS, "is not a list of checksums") from None
    for line in lines[:-1]:
        found = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        if not found:
            raise refusal(SUMS, "is not a list of checksums")
        check_path(found[2])
        if found[2] in sums or found[2] == SUMS:
            raise refusal(found[2], "is listed twice")
        sums[found[2]] = found[1]
    if lines[-1] or not sums:
        raise refusal(SUMS, "is cut short")
    return sums


def digest(content: bytes) -> str:
    """What `make bundle` prints and `SHA256=` compares."""
    return hashlib.sha256(content).hexdigest()


def check_digest(content: bytes, wanted: str) -> None:
    """Raises KitError where this is not the bundle whose digest was handed on."""
    if wanted and digest(content) != wanted.lower():
        raise KitError(
            f"the bundle is refused: {SUMS} has the digest {digest(content)}, and SHA256= says {wanted.lower()}. "
            "Nothing of it was installed.",
            "SHA256= is what `",
            Command("bundle"),
            "` printed for this very bundle: ask whoever made it",
        )


def listing(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every file below `folder` but clutter, sorted, links not followed. A link or a device is listed like a file."""
    pending = [""]
    while pending:
        inside = pending.pop()
        for entry in sorted(os.scandir(folder / inside), key=lambda entry: entry.name, reverse=True):
            path = f"{inside}/{entry.name}" if inside else entry.name
            if CLUTTER.fullmatch(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
            else:
                yield path, entry.stat(follow_symlinks=False)


def models_in(sums: Sums) -> dict[str, list[str]]:
    """The names of the models in a bundle, each with its files' paths within its folder."""
    models: dict[str, list[str]] = {}
    for path in sums:
        top, _, rest = path.partition("/")
        name, _, inside = rest.partition("/")
        if top == MODELS and inside:
            models.setdefault(name, []).append(inside)
    return models


def check_model(model: Model, sums: Sums) -> None:
    """Raises KitError where a bundle's files of the model are not those that env/models.toml pins."""
    for file in model.files:
        path = f"{MODELS}/{model.name}/{file.path}"
        if path not in sums:
            raise refusal(path, "is missing, and env/models.toml lists it")
        if sums[path] != file.sha256:
            raise refusal(path, "is not the file that env/models.toml pins")


def wheels_in(sums: Sums) -> dict[str, str]:
    """The wheels in a bundle: file name -> sha256."""
    prefix = f"{WHEELS}/"
    return {path.removeprefix(prefix): sha256 for path, sha256 in sums.items() if path.startswith(prefix)}
