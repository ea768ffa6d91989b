"""The README of a bundle: what is in it, how it is used, what its licences ask. The same inputs, the same text."""

from __future__ import annotations

from collections.abc import Iterable

from kit import handing_on
from kit.registry import Model
from kit.wheels import Target

TEXT = """\
base-model-kit, commit {commit}: a bundle for machines without a network
{shown}
  kit/        the source at that commit, as a clone has it
  wheels/     Python packages, as env/lock/ pins them, for {targets}
  models/     {names}
  SHA256SUMS  the sha256 of every other file here

Set up a clone of that commit (or a copy of kit/) from this folder, from its .tar, or from a mirror of it:

  cp -R kit ~/base-model-kit && cd ~/base-model-kit
  make setup BUNDLE=/path/to/this/folder SHA256=<digest>
  make run

The digest is what `make bundle` printed where this was made; ask for it by another way than the one that this came by.
It is the sha256 of SHA256SUMS (shasum -a 256 SHA256SUMS). If you take kit/ from here and not from a clone, compare it
before you run anything, and check the files: shasum -a 256 -c --quiet SHA256SUMS

Licences
{licences}"""


def text(commit: str, models: Iterable[Model], targets: Iterable[Target]) -> str:
    """The README for these models and targets."""
    models = list(models)
    duties = {model.name: handing_on.duty(model) for model in models}
    shown = sorted({duty.shown for duty in duties.values() if duty})
    return TEXT.format(
        commit=commit,
        shown="".join(f"\n{words}\n" for words in shown),
        targets=", ".join(f"{target.platform} with Python {target.python}" for target in targets),
        names=", ".join(model.name for model in models),
        licences="\n".join(
            ["  base-model-kit: MIT (kit/LICENSE); each package its own, in its wheel", *map(_of, models)]
        )
        + "\n",
    )


def _of(model: Model) -> str:
    files = [path for path in (*model.licence_files, *(file.path for file in model.files)) if "LICENSE" in path]
    files += [path for path in model.licence_files if path not in files]
    files += [handing_on.NOTICE] if handing_on.duty(model) else []
    where = f" (models/{model.name}/: {', '.join(files)})" if files else ""
    source = f"https://huggingface.co/{model.repo_id} at {model.revision}" if model.repo_id else model.revision
    return f"  {model.name} = {model.title}: {model.licence}{where}, from {source}"
