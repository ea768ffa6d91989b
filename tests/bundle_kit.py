"""A clone whose lock has two tiny wheels, with tiny models, and a bundle of it made by hand: to do bad things to."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from kit.environment import lock as locks
from kit.models import registry
from kit.offline import bundle
from tests.conftest import Done, copy_kit, run_command

NAME = "base-model-kit-000000000000"
TAG = f"cp{sys.version_info[0]}{sys.version_info[1]}"
MODEL_FILES = {"config.json": b'{"dtype": "bfloat16"}\n', "model.safetensors": b"weights" * 1000}
LICENCES = {"LICENSE.txt": b"the agreement\n", "USE_POLICY.md": b"the policy\n"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tiny_wheel(folder: Path, name: str, tags: str = "py3-none-any") -> Path:
    path = folder / f"{name}-1.0-{tags}.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, text in {
            f"{name}.py": f"NAME = {name!r}\n",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nLicense-Expression: MIT\n",
            f"{info}/licenses/LICENSE": f"the licence of {name}\n",
            f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: {tags}\n",
            f"{info}/RECORD": f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n",
        }.items():
            wheel.writestr(zipfile.ZipInfo(member, (1980, 1, 1, 0, 0, 0)), text)
    return path


def section(name: str, gated: bool = False) -> str:
    files = "".join(
        f'  {{ path = "{path}", size = {len(content)}, sha256 = "{sha256(content)}" }},\n'
        for path, content in MODEL_FILES.items()
    )
    licence, texts = ("Llama 3.2 Community License", [*LICENCES]) if gated else ("MIT", [])
    return (
        f'[{name}]\ntitle = "{name}"\nkind = "base"\nlicence = "{licence}"\nrepo_id = "tiny/{name}"\n'
        f'revision = "{sha256(name.encode())[:40]}"\ngated = {str(gated).lower()}\ncontext = 128\n'
        f"licence_files = {texts}\nfiles = [\n{files}]\n\n"
    ).replace("'", '"')


# A tuned model's files. An adapter's bytes mean nothing to a bundle.
ADAPTER = {name: f"{name} of a tuning".encode() for name in registry.ADAPTER_FILES}


def tuned_model(folder: Path, base: str = "tiny") -> Path:
    """A tuned model's folder, of one of the bundle's models."""
    folder.mkdir(parents=True)
    for name, content in ADAPTER.items():
        (folder / name).write_bytes(content)
    files = [{"path": name, "size": len(content), "sha256": sha256(content)} for name, content in ADAPTER.items()]
    pins = {path: sha256(content) for path, content in MODEL_FILES.items()}
    said = {"complete": True, "base": {"name": base, "files": pins}, "data": {"name": "notes.txt"}, "files": files}
    (folder / registry.TUNE_JSON).write_text(json.dumps(said))
    return folder


@dataclass(frozen=True)
class BundleKit:
    """A clone, `kit`, and a bundle for it: `folder`, and what it says its digest is."""

    kit: Path
    folder: Path

    @property
    def digest(self) -> str:
        return bundle.digest((self.folder / bundle.SUMS).read_bytes())

    @property
    def tar(self) -> Path:
        """The bundle's tar, as it is now."""
        path = self.folder.parent / f"{NAME}.tar"
        with tarfile.open(path, "w") as tar:
            for name, _ in sorted(bundle.listing(self.folder)):
                tar.add(self.folder / name, f"{NAME}/{name}")
        return path

    def seal(self) -> None:
        """SHA256SUMS anew, as whoever tampers with a bundle would."""
        sums = {
            path: sha256((self.folder / path).read_bytes())
            for path, _ in bundle.listing(self.folder)
            if path != bundle.SUMS
        }
        (self.folder / bundle.SUMS).write_bytes(bundle.format_sums(sums))

    def add_line(self, path: str, content: bytes = b"evil\n") -> None:
        with (self.folder / bundle.SUMS).open("ab") as file:
            file.write(f"{sha256(content)}  {path}\n".encode())

    def wheel(self, name: str) -> Path:
        return next((self.folder / "wheels").glob(f"{name}-*"))

    def unbundle(self, place: str | Path = "", digest: str = "", **env: str) -> Done:
        variables = {"BUNDLE": str(place or self.folder), "SHA256": digest, "NO_PROXY": "*", **env}
        return run_command([sys.executable, "-m", "scripts.unbundle"], cwd=self.kit, env=variables)

    def installed(self) -> list[str]:
        """What came into the clone: wheels, models, and what was left half done."""
        found = [path.name for path in (self.kit / "env" / "wheels").iterdir() if path.name != "README.md"]
        return sorted(found + [str(path.relative_to(self.kit)) for path in self.kit.glob("models/*/*")])


def bundle_kit(folder: Path, *names: str) -> BundleKit:
    """With the model `tiny`, or those named; `guarded` is a gated one."""
    kit = copy_kit(folder / "kit", to_run=True)
    made = folder / "out" / NAME
    (made / "wheels").mkdir(parents=True)
    _, _, machine = locks.PLATFORMS[locks.this().platform]
    platform = "macosx_11_0_arm64" if sys.platform == "darwin" else f"manylinux_2_17_{machine}"
    both = [tiny_wheel(made / "wheels", "alpha"), tiny_wheel(made / "wheels", "beta", f"{TAG}-{TAG}-{platform}")]
    lines = "".join(
        f"{path.name.split('-')[0]}==1.0 ; sys_platform == '{sys.platform}' \\\n"
        f"    --hash=sha256:{sha256(path.read_bytes())}\n"
        for path in both
    )
    for lock in ("linux.txt", "macos.txt"):
        (kit / "env" / "lock" / lock).write_text(lines)
    names = names or ("tiny",)
    (kit / "env" / "models.toml").write_text("".join(section(name, gated=name == "guarded") for name in names))
    for name in names:
        place = made / "models" / name
        place.mkdir(parents=True)
        texts = {**LICENCES, "Notice": b"the notice\n"} if name == "guarded" else {}
        for path, content in {**MODEL_FILES, **texts}.items():
            (place / path).write_bytes(content)
    (made / "kit").mkdir()
    shutil.copy(kit / "LICENSE", made / "kit" / "LICENSE")
    (made / "README").write_text("a bundle\n")
    result = BundleKit(kit, made)
    result.seal()
    return result
