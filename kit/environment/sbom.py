"""What is inside: the environment as a bill of materials, CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/).

Of the lock and of what the installed packages say of themselves, and of nothing else: no time, no host and no path, so
that the same environment gives the same bytes.
"""

from __future__ import annotations

import email
import hashlib
import json
import re
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from kit.environment import facts
from kit.environment import lock as locks
from kit.environment.lock import Target
from kit.paths import ROOT

ROOT_REF = "base-model-kit"
LICENCE = re.compile(r"[^/]+\.dist-info/(licenses?/.+|[^/]*(LICEN[CS]E|COPYING|NOTICE|AUTHORS)[^/]*)", re.IGNORECASE)


def of_environment() -> dict[str, Any]:
    """That of .venv. Raises KitError for a machine that no lock is for, or a lock that is none."""
    target = locks.of(ROOT / ".venv")
    extras = tuple(extra for extra in target.extras if extra in locks.EXTRAS)
    said = {locks.normal(one.name): cast(Message, one.metadata) for one in metadata.distributions()}
    return document(replace(target, extras=extras), said, facts.commit())


def of_wheels(target: Target, wheels: Iterable[Path], commit: str) -> dict[str, Any]:
    """That of what the wheels install on `target`."""
    found = (read_wheel(wheel) for wheel in wheels)
    return document(target, {locks.normal(str(said["Name"])): said for said in found}, commit)


def read_wheel(wheel: Path) -> Message:
    """What the package says of itself."""
    with zipfile.ZipFile(wheel) as file:
        name = next(name for name in file.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        return email.message_from_bytes(file.read(name))


def licence_texts(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """The texts of its licences that a wheel has, each with its path in there."""
    with zipfile.ZipFile(wheel) as file:
        for name in file.namelist():
            if (found := LICENCE.fullmatch(name)) and not name.endswith("/"):
                yield found[1], file.read(name)


def document(target: Target, said: Mapping[str, Message], commit: str) -> dict[str, Any]:
    """The whole of it, as JSON takes it: the packages of the lock that `said` has, by what they say."""
    pins = {pin.name: pin for pin in locks.pins(target)}
    packages = {name: said[name] for name in sorted(said) if name in pins}
    needs = {name: sorted(_needs(one, target) & set(packages)) for name, one in packages.items()}
    components = [_component(name, one, pins[name]) for name, one in packages.items()]
    refs = {name: component["bom-ref"] for name, component in zip(packages, components, strict=True)}
    top = sorted(set(packages) - {need for each in needs.values() for need in each})
    text = json.dumps(components, sort_keys=True)
    # In an image the commit is a label: another commit with the same files is the same layers.
    known = {} if commit == facts.UNKNOWN else {"version": commit}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(text.encode()).hexdigest()).urn,
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": ROOT_REF,
                "name": ROOT_REF,
                **known,
                "licenses": [{"license": {"id": "MIT"}}],
            }
        },
        "components": components,
        "dependencies": [
            {"ref": ROOT_REF, "dependsOn": [refs[name] for name in top]},
            *({"ref": refs[name], "dependsOn": [refs[need] for need in needs[name]]} for name in packages),
        ],
    }


def as_json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _component(name: str, said: Message, pin: locks.Pin) -> dict[str, Any]:
    version = str(said["Version"])
    purl = f"pkg:pypi/{name}@{quote(version, safe='')}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        # Of each file that the lock takes for it: which one is installed depends on the machine.
        "hashes": [{"alg": "SHA-256", "content": sha256} for sha256 in sorted(pin.sha256)],
        "licenses": licences(said),
        "purl": purl,
    }


def licences(said: Message) -> list[dict[str, Any]]:
    """What a package says of its licence: an SPDX expression; else its classifiers; else which file to see."""
    if expression := said.get("License-Expression"):
        return [{"expression": str(expression)}]
    classifiers = [str(value) for value in said.get_all("Classifier", []) if str(value).startswith("License ::")]
    if names := list(dict.fromkeys(value.rpartition("::")[2].strip() for value in classifiers)):
        return [{"license": {"name": name}} for name in names]
    if files := [str(value) for value in said.get_all("License-File", [])]:
        return [{"license": {"name": f"see file {file}"}} for file in files]
    short = str(said.get("License") or "").strip()
    return [{"license": {"name": short if short and "\n" not in short else "not stated"}}]


def _needs(said: Message, target: Target) -> set[str]:
    """The packages that it asks for on `target`, without what only its own extras bring."""
    from packaging.requirements import Requirement

    _, system, machine = locks.PLATFORMS[target.platform]
    there = {"extra": "", "sys_platform": system, "platform_system": system.capitalize(), "platform_machine": machine}
    there |= {"python_version": target.python, "python_full_version": f"{target.python}.0"}
    wanted = [Requirement(str(one)) for one in said.get_all("Requires-Dist", [])]
    return {locks.normal(one.name) for one in wanted if one.marker is None or one.marker.evaluate(there)}
