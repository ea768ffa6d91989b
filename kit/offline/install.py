"""What a machine takes from a bundle: the lock's wheels for it into env/wheels/, models into models/<name>/.

All names and pins are the clone's own: a bundle only has bytes for them. Nothing appears under its name before all that
is taken has been proved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from kit import paths
from kit.environment import lock as locks
from kit.environment import wheels
from kit.environment.lock import Target
from kit.errors import Command, KitError
from kit.files import require_room, sha256, staged
from kit.models import folder as model_folder
from kit.models import licence, registry
from kit.models.registry import Model
from kit.offline import bundle
from kit.offline.bundle import Sums
from kit.offline.sources import NotHandedOut, OnBytes, Source


@dataclass(frozen=True)
class Item:
    """A file of the bundle at `path` there, and where it goes."""

    path: str
    sha256: str
    target: Path

    @property
    def partial(self) -> Path:
        """Where it grows: beside its target, so that the last step is a rename."""
        return self.target.with_name(f".{self.target.name[:100]}.{self.sha256[:12]}.partial")


@dataclass
class Plan:
    """What is taken; `models` are whole once it is. `notes` are lines for the person."""

    wheels: list[Item]
    models: dict[str, list[Item]]
    notes: list[str]


def plan(sums: Sums, target: Target) -> Plan:
    """What `target` takes from a bundle of these checksums. Raises KitError where the clone's pins say otherwise."""
    known, there = registry.read(), bundle.models_in(sums)
    tunings = {name for name, inside in there.items() if name not in known and registry.TUNE_JSON in inside}
    strange = [name for name in there if name not in known and name not in tunings]
    taken = {name: _model(known[name], inside, sums) for name, inside in there.items() if name in known}
    notes = [f"{name} stays in the bundle: env/models.toml of this clone does not list it" for name in strange]
    for name in sorted(tunings):
        items, note = _tuning(name, there[name], sums)
        notes += [note] if note else []
        taken |= {name: items} if items else {}
    return Plan(wheels=_wheels(sums, target), models=taken, notes=notes)


def _tuning(name: str, inside: list[str], sums: Sums) -> tuple[list[Item], str]:
    """A tuned model's files, and what to say of it. tune.json comes last: with it the model is there."""
    place = f"{bundle.MODELS}/{name}"
    allowed = (*registry.ADAPTER_FILES, registry.TUNE_JSON)
    if not registry.NAME.fullmatch(name) or set(inside) - {licence.NOTICE} != set(allowed):
        raise bundle.refusal(place, "is no tuned model as the kit makes one")
    items = [Item(f"{place}/{path}", sums[f"{place}/{path}"], paths.MODELS / name / path) for path in allowed]
    present = [item for item in items if item.target.exists()]
    if any(sha256(item.target) != item.sha256 for item in present):
        return [], f"{name} stays in the bundle: models/{name}/ is here already, and a tuning is never replaced"
    if present == items:
        return [], ""
    return items, f"{name} is a tuned model: no registry pins it, the bundle's digest alone vouches for it"


def _wheels(sums: Sums, target: Target) -> list[Item]:
    there = bundle.wheels_in(sums)
    carried = [
        extra
        for extra in locks.EXTRAS
        if all(set(pin.sha256) & set(there.values()) for pin in locks.pins(replace(target, extras=(extra,))))
    ]
    target = replace(target, extras=tuple(carried))
    found, absent = [], []
    for pin in locks.pins(target):
        named = [name for name in there if wheels.package(name)[0] == pin.name and wheels.fits(name, target)]
        pinned = [name for name in named if there[name] in pin.sha256]
        other = [name for name in named if wheels.package(name)[1] == pin.version and name not in pinned]
        if other:
            raise bundle.refusal(f"{bundle.WHEELS}/{other[0]}", f"is not the wheel that {target.lock} pins")
        if not pinned:
            absent.append(pin)
            continue
        name = min(pinned)
        found.append(Item(f"{bundle.WHEELS}/{name}", there[name], paths.ROOT / "env" / "wheels" / name))
    if absent:
        raise _absent(f"{absent[0].name} {absent[0].version}", sums, target)
    return found


def _absent(what: str, sums: Sums, target: Target) -> KitError:
    there = set(bundle.wheels_in(sums).values())
    every = [Target(platform, python) for platform in locks.PLATFORMS for python in locks.PYTHONS]
    if fitting := [each for each in every if all(there.intersection(pin.sha256) for pin in locks.pins(each))]:
        here = [other.python for other in fitting if other.platform == target.platform]
        other_python = (Command("setup", PYTHON=f"python{here[0]}", BUNDLE="…"), ", or ") if here else ()
        return KitError(
            f"the bundle has no wheel of {what} for {target}: it is for {', '.join(map(str, fitting))}.",
            *other_python,
            f"ask for a bundle with PLATFORM={target}",
        )
    return KitError(
        f"the bundle has no wheel of {what}, which {target.lock} asks for: it was made of another commit.",
        "take the clone from the bundle (its kit/), or check out the commit that its README names",
    )


def _model(model: Model, inside: list[str], sums: Sums) -> list[Item]:
    bundle.check_model(model, sums)
    place = f"{bundle.MODELS}/{model.name}"
    taken = [file.path for file in model.files] + [path for path in licence.texts(model) if path in inside]
    return [Item(f"{place}/{path}", sums[f"{place}/{path}"], model.folder / path) for path in taken]


def carry_out(
    taken: Plan, source: Source, on_total: Callable[[int], None], on_bytes: OnBytes, on_wait: Callable[[], None]
) -> int:
    """Brings what is not here yet; the bytes that were. Raises KitError: then nothing appeared under its name."""
    with staged("what comes from the bundle", paths.MODELS / "bundle", bundle.GOES_ON, on_wait=on_wait):
        items = [*taken.wheels, *chain.from_iterable(taken.models.values())]
        wanted = {item: size for item in items if (size := _wanted(item, source, taken)) is not None}
        there = sum(item.partial.stat().st_size for item in wanted if item.partial.is_file())
        total = sum(wanted.values())
        if wanted:
            require_room("what comes from the bundle", paths.ROOT, total - there + bundle.MARGIN, bundle.GOES_ON)
        on_total(total)
        for item in wanted:
            item.target.parent.mkdir(parents=True, exist_ok=True)
            source.bring(item.path, item.sha256, item.partial, on_bytes)
        for item in wanted:
            item.partial.replace(item.target)
        for name in taken.models:
            try:
                model_folder.write_stamp(registry.find(name))
            except KitError as error:  # a tuning of a base that this clone has not
                taken.notes.append(error.message)
    return total


def _wanted(item: Item, source: Source, taken: Plan) -> int | None:
    """The size of what has to be brought; None for what is here, or what a mirror does not hand out."""
    name = item.path.split("/")[1]
    if item.path.startswith(f"{bundle.MODELS}/") and name not in taken.models:
        return None
    if item.target.is_file() and sha256(item.target) == item.sha256:
        return None
    try:
        return source.size(item.path)
    except NotHandedOut as refused:
        taken.notes.append(refused.message)
        taken.models.pop(name)
        return None
