"""What a machine takes from a bundle: the lock's wheels for it into env/wheels/, models into models/<name>/.

All names and pins are the clone's own: a bundle only has bytes for them. Nothing appears under its name before all that
is taken has been proved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kit import paths
from kit.environment import lock as locks
from kit.environment import wheels
from kit.environment.lock import Target
from kit.errors import Command, Hint, KitError
from kit.files import require_room, sha256, staged
from kit.models import folder as model_folder
from kit.models import licence, registry
from kit.models.registry import Model
from kit.offline import bundle
from kit.offline.bundle import Sums
from kit.offline.sources import NotHandedOut, OnBytes, Source

MARGIN = 50_000_000  # bytes that stay free
AGAIN: Hint = ("the same command, which goes on where it stopped",)


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

    wheels: list[Item] = field(default_factory=list)
    models: dict[str, list[Item]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def items(self) -> list[Item]:
        return [*self.wheels, *(item for items in self.models.values() for item in items)]


def plan(sums: Sums, target: Target) -> Plan:
    """What `target` takes from a bundle of these checksums. Raises KitError where the clone's pins say otherwise."""
    taken = Plan(wheels=_wheels(sums, target))
    known = registry.read()
    for name, inside in bundle.models_in(sums).items():
        if name not in known:
            taken.notes.append(f"{name} stays in the bundle: env/models.toml of this clone does not list it")
            continue
        taken.models[name] = _model(known[name], inside, sums)
    return taken


def _wheels(sums: Sums, target: Target) -> list[Item]:
    there = bundle.wheels_in(sums)
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
    fitting = _targets(sums)
    if fitting:
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


def _targets(sums: Sums) -> list[Target]:
    """The targets for which a bundle has everything."""
    there = set(bundle.wheels_in(sums).values())
    every = [Target(platform, python) for platform in locks.PLATFORMS for python in locks.PYTHONS]
    return [target for target in every if all(there.intersection(pin.sha256) for pin in locks.pins(target))]


def _model(model: Model, paths: list[str], sums: Sums) -> list[Item]:
    items = []
    for file in model.files:
        path = f"{bundle.MODELS}/{model.name}/{file.path}"
        if file.path not in paths:
            raise bundle.refusal(path, "is missing, and env/models.toml lists it")
        if sums[path] != file.sha256:
            raise bundle.refusal(path, "is not the file that env/models.toml pins")
        items.append(Item(path, file.sha256, model.folder / file.path))
    for path in filter(set(paths).__contains__, licence.texts(model)):
        there = f"{bundle.MODELS}/{model.name}/{path}"
        items.append(Item(there, sums[there], model.folder / path))
    return items


def carry_out(
    taken: Plan,
    source: Source,
    on_total: Callable[[int], None] = lambda total: None,
    on_bytes: OnBytes = lambda count: None,
    on_wait: Callable[[], None] = lambda: None,
) -> int:
    """Brings what is not here yet; the bytes that were. Raises KitError: then nothing appeared under its name."""
    with staged("what comes from the bundle", paths.MODELS / "bundle", AGAIN, on_wait=on_wait):
        wanted = {item: size for item in taken.items if (size := _wanted(item, source, taken)) is not None}
        there = sum(item.partial.stat().st_size for item in wanted if item.partial.is_file())
        if wanted:
            require_room("what comes from the bundle", paths.ROOT, sum(wanted.values()) - there + MARGIN, AGAIN)
        on_total(sum(wanted.values()))
        for item in wanted:
            item.target.parent.mkdir(parents=True, exist_ok=True)
            source.bring(item.path, item.sha256, item.partial, on_bytes)
        for item in wanted:
            item.partial.replace(item.target)
        for name in taken.models:
            model_folder.write_stamp(registry.find(name))
    return sum(wanted.values())


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
