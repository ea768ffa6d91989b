"""What is inside: the environment as a bill of materials, CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/).

Of the lock and of what the installed packages say of themselves, and of nothing else: no time, no host and no path, so
that the same environment gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable
from email.message import Message
from importlib import metadata
from typing import Any, cast
from urllib.parse import quote

from kit.environment import facts
from kit.environment import lock as locks
from kit.paths import ROOT

ROOT_REF = "base-model-kit"


def document() -> dict[str, Any]:
    """The whole of it, as JSON takes it. Raises KitError for a machine that no lock is for, or a lock that is none."""
    here = locks.this()
    extras = tuple(extra for extra in locks.extras_of(ROOT / ".venv") if extra in locks.EXTRAS)
    pins = {pin.name: pin for pin in locks.pins(locks.Target(here.platform, here.python, extras))}
    found = {locks.normal(one.name): one for one in metadata.distributions()}
    packages = {name: found[name] for name in sorted(found) if name in pins}
    needs = {name: sorted(_needs(one) & set(packages)) for name, one in packages.items()}
    components = [_component(name, one, pins[name]) for name, one in packages.items()]
    refs = {name: component["bom-ref"] for name, component in zip(packages, components, strict=True)}
    top = sorted(set(packages) - {need for each in needs.values() for need in each})
    text = json.dumps(components, sort_keys=True)
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
                "version": facts.commit(),
                "licenses": [{"license": {"id": "MIT"}}],
            }
        },
        "components": components,
        "dependencies": [
            {"ref": ROOT_REF, "dependsOn": [refs[name] for name in top]},
            *({"ref": refs[name], "dependsOn": [refs[need] for need in needs[name]]} for name in packages),
        ],
    }


def _component(name: str, package: metadata.Distribution, pin: locks.Pin) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{quote(package.version, safe='')}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": package.version,
        # Of each file that the lock takes for it: which one is installed depends on the machine.
        "hashes": [{"alg": "SHA-256", "content": sha256} for sha256 in sorted(pin.sha256)],
        "licenses": licences(cast(Message, package.metadata)),
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


def _needs(package: metadata.Distribution) -> set[str]:
    """The packages that it asks for on this machine, without what only its own extras bring."""
    from packaging.requirements import Requirement

    wanted: Iterable[Requirement] = map(Requirement, package.requires or ())
    return {locks.normal(one.name) for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})}
