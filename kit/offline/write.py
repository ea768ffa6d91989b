"""dist/<name>/ and dist/<name>.tar: the kit's source at the commit, the lock's wheels, models, licences, checksums.

The same inputs give the same bytes. What is there and right is neither fetched nor copied again; the folder and the tar
grow beside their names and are renamed when they are whole.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kit import paths
from kit.environment import lock as locks
from kit.environment import sbom, wheels
from kit.environment.lock import Target
from kit.errors import KitError
from kit.files import Progress, require_room, sha256, silent, staged
from kit.models import folder as model_folder
from kit.models import licence, registry
from kit.models.registry import Model
from kit.offline import bundle
from kit.paths import ROOT

# The wheels of one target, for the disk check: no lock says their sizes (docs/measurements.md: 257 MB for Linux).
WHEELS_BYTES = 320_000_000
EPOCH = 315_532_800  # 1980-01-01: the time of every file in the tar


@dataclass(frozen=True)
class Made:
    """A finished bundle; `size` in bytes, of the tar."""

    folder: Path
    tar: Path
    digest: str
    size: int


def make(models: Iterable[Model], targets: Iterable[Target], on_progress: Progress = silent) -> Made:
    """Makes the bundle of the commit that is checked out. Raises KitError; safe to interrupt and to run again."""
    # A tuned model is nothing without its base.
    models = sorted({model.name: model for one in models for model in (one, one.foundation)}.values(), key=_name)
    targets = sorted(set(targets), key=str)
    commit = clean_commit()
    for model in models:
        model_folder.check(model)
        licence.require_licences(model, [path.name for path in model.folder.iterdir()])
        if not licence.may_be_called(model, model.name) and model.base:
            raise KitError(
                f"{model.name} is made of {model.base.name}, and the {model.licence} asks of a model that is handed on "
                "that its name begins with Llama.",
                f"mv models/{model.name} models/llama-{model.name}, then the same command with that name",
            )
    folder = paths.DIST / f"base-model-kit-{commit[:12]}"
    wait = partial(on_progress, "waiting for another bundle that is made here", 0)
    with staged("the bundle", paths.DIST / "bundle", bundle.GOES_ON, on_wait=wait):
        return _Work(folder, commit, models, targets, on_progress).run()


def _name(model: Model) -> str:
    return model.name


def clean_commit() -> str:
    """The commit that is checked out. Raises KitError where this is no clone, or it has changes."""
    if not (paths.ROOT / ".git").exists():
        raise KitError("a bundle holds the source at a commit, and this folder is no git clone.", "make it in a clone")
    commit = _git("rev-parse", "HEAD").decode().strip()
    changed = _git("status", "--porcelain", "--untracked-files=no").decode("utf-8", "replace").splitlines()
    if changed:
        names = ", ".join(line[3:] for line in changed[:3]) + (" …" if len(changed) > 3 else "")
        raise KitError(
            f"a bundle holds the source at a commit, and there are changes that are not committed: {names}.",
            "git commit (or git stash), then the same command",
        )
    return commit


def _git(*words: str) -> bytes:
    try:
        done = subprocess.run(["git", *words], cwd=paths.ROOT, capture_output=True, check=False)
    except OSError as error:
        raise KitError("git is needed to make a bundle, and it does not run.", "install git") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise KitError(f"git {words[0]} failed: {' '.join(said)}", "check the clone: git status")
    return done.stdout


class _Work:
    def __init__(
        self, folder: Path, commit: str, models: list[Model], targets: list[Target], on_progress: Progress
    ) -> None:
        self.folder, self.commit, self.models, self.targets = folder, commit, models, targets
        self.on_progress = on_progress
        self.partial = folder.with_name(f".{folder.name}.partial")
        self.executable: set[str] = set()

    def run(self) -> Made:
        self.partial.mkdir(parents=True, exist_ok=True)
        self._reuse()
        self._check_disk()
        self._write_kit()
        self._fetch_wheels()
        self._link_models()
        self._say_what_is_inside()
        readme = readme_text(self.commit, self.models, self.targets)
        (self.partial / bundle.README).write_text(readme, encoding="utf-8")
        sums = self._sums()
        listed = bundle.format_sums(sums)
        (self.partial / bundle.SUMS).write_bytes(listed)
        tar = self._move_into_place(self._write_tar(sums))
        return Made(self.folder, tar, bundle.digest(listed), tar.stat().st_size)

    def _reuse(self) -> None:
        """Wheels that earlier bundles have, finished or not: each is proved before it counts."""
        place = self.partial / bundle.WHEELS
        place.mkdir(exist_ok=True)
        for wheel in self.folder.parent.glob(f"*base-model-kit-*/{bundle.WHEELS}/*.whl"):
            if not (place / wheel.name).exists():
                _link(wheel, place / wheel.name)
        for left in self.folder.parent.glob(".base-model-kit-*.partial"):
            if left != self.partial:
                _remove(left)
        # What is written anew each time is no room that is taken: a tar that was not finished, copies of models.
        anew = (bundle.KIT, bundle.MODELS, bundle.LICENCES, bundle.SBOM)
        for left in (place / ".arriving", *(self.partial / name for name in anew)):
            shutil.rmtree(left, ignore_errors=True)

    def _check_disk(self) -> None:
        """Raises KitError before the first byte where the bundle does not fit."""
        there = self.partial / bundle.WHEELS
        have = sum(wheel.stat().st_size for wheel in there.glob("*.whl"))
        fetching = sum(self._still_to_fetch(target, there) for target in self.targets)
        size = sum(model.size for model in self.models)
        copied = 0 if self.partial.stat().st_dev == paths.MODELS.stat().st_dev else size
        needed = 2 * fetching + have + size + copied + bundle.MARGIN
        require_room("the bundle", self.partial, needed, bundle.GOES_ON)

    @staticmethod
    def _still_to_fetch(target: Target, there: Path) -> int:
        """Bytes of the wheels of `target` that are not there: all of them less those that are."""
        missing = set(wheels.missing(target, there))
        brought = [wheels.wheel_of(pin, target, there) for pin in locks.pins(target) if pin not in missing]
        return max(0, WHEELS_BYTES - sum(wheel.stat().st_size for wheel in brought if wheel)) if missing else 0

    def _write_kit(self) -> None:
        place = self.partial / bundle.KIT
        shutil.rmtree(place, ignore_errors=True)
        with tarfile.open(fileobj=io.BytesIO(_git("archive", "--format=tar", self.commit))) as archive:
            for member in archive:
                if member.isdir() or member.name == "pax_global_header":
                    continue
                content = archive.extractfile(member)
                if content is None or not member.isreg():
                    raise KitError(f"{member.name} is a link, and a bundle has files only.", "git rm it, and commit")
                bundle.check_path(member.name)
                target = place / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
                if member.mode & 0o100:
                    target.chmod(0o755)
                    self.executable.add(f"{bundle.KIT}/{member.name}")

    def _fetch_wheels(self) -> None:
        place = self.partial / bundle.WHEELS
        keep = set()
        for target in self.targets:
            if missing := wheels.missing(target, place):
                report = partial(self.on_progress, f"wheels for {target}: fetching {len(missing)}")
                report(0)
                wheels.fetch(target, missing, place, report)
            keep |= {wheels.wheel_of(pin, target, place) for pin in locks.pins(target)}
        for path in place.iterdir():
            if path not in keep:
                _remove(path)

    def _link_models(self) -> None:
        place = self.partial / bundle.MODELS
        shutil.rmtree(place, ignore_errors=True)
        for model in self.models:
            tune = [registry.TUNE_JSON] if model.base else []
            for path in [file.path for file in model.files] + list(model.licence_files) + tune:
                (place / model.name / path).parent.mkdir(parents=True, exist_ok=True)
                _link(model.folder / path, place / model.name / path)
            if duty := licence.duty(model):
                (place / model.name / licence.NOTICE).write_text(duty.notice, encoding="utf-8")

    def _say_what_is_inside(self) -> None:
        """Every package with its licence, a list for each target; and the texts of the licences."""
        there = self.partial / bundle.WHEELS
        (self.partial / bundle.SBOM).mkdir(exist_ok=True)
        for target in self.targets:
            wheels_of = [wheel for pin in locks.pins(target) if (wheel := wheels.wheel_of(pin, target, there))]
            text = sbom.as_json(sbom.of_wheels(target, wheels_of, self.commit))
            (self.partial / bundle.SBOM / f"{target.platform}-{target.python}.json").write_text(text, encoding="utf-8")
        for wheel in sorted(there.glob("*.whl")):
            for name, content in sbom.licence_texts(wheel):
                path = f"{bundle.LICENCES}/{wheel.stem}/{name}"
                bundle.check_path(path)
                (self.partial / path).parent.mkdir(parents=True, exist_ok=True)
                (self.partial / path).write_bytes(content)

    def _sums(self) -> dict[str, str]:
        """The sha256 of every file, the models' held against their pins."""
        sizes = {path: status.st_size for path, status in bundle.listing(self.partial) if path != bundle.SUMS}
        total, done, sums = sum(sizes.values()) or 1, 0, {}
        for path, size in sizes.items():
            sums[path] = sha256(self.partial / path)
            done += size
            self.on_progress("checksums", done / total)
        for model in self.models:
            for file in model.files:
                if sums[f"{bundle.MODELS}/{model.name}/{file.path}"] != file.sha256:
                    raise KitError(
                        f"models/{model.name}/{file.path} is altered: its sha256 is not the pinned one.",
                        *model_folder.repair(model),
                    )
        return sums

    def _write_tar(self, sums: dict[str, str]) -> Path:
        growing = self.folder.with_name(f".{self.folder.name}.tar.partial")
        total, done = sum((self.partial / path).stat().st_size for path in sums) or 1, 0
        # Names of wheels are longer than USTAR's 100 letters. Nothing but what is set here gets into a header.
        with tarfile.open(growing, "w", format=tarfile.PAX_FORMAT) as tar:
            tar.copybufsize = 1 << 20  # type: ignore[attr-defined]
            for path in [bundle.SUMS, *sorted(sums)]:
                entry = tarfile.TarInfo(f"{self.folder.name}/{path}")
                entry.size = (self.partial / path).stat().st_size
                entry.mtime, entry.mode = EPOCH, 0o755 if path in self.executable else 0o644
                with (self.partial / path).open("rb") as file:
                    tar.addfile(entry, file)
                done += entry.size
                self.on_progress("tar", done / total)
        return growing

    def _move_into_place(self, growing: Path) -> Path:
        """The folder and the tar under their names; the tar's."""
        old = self.folder.with_name(f".{self.folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(old)
        self.partial.rename(self.folder)
        tar = growing.replace(self.folder.with_name(f"{self.folder.name}.tar"))
        shutil.rmtree(old, ignore_errors=True)
        return tar


def _link(source: Path, target: Path) -> None:
    """A hard link where the file system allows: no room, no time. The kit replaces files and never writes into them."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


# --- The README of a bundle -------------------------------------------------------------------------------------------


def readme_text(commit: str, models: list[Model], targets: list[Target]) -> str:
    """The README for these models and targets."""
    duties = [licence.duty(model) for model in models]
    licences = [
        "  base-model-kit: MIT (kit/LICENSE); each package its own: licences/, and sbom/ says which",
        *map(_of, models),
    ]
    text = (ROOT / "env" / "bundle-readme.txt").read_text(encoding="utf-8")
    return text.format(
        commit=commit,
        shown="".join(f"\n{words}\n" for words in sorted({duty.shown for duty in duties if duty})),
        targets=", ".join(f"{target.platform} with Python {target.python}" for target in targets),
        names=", ".join(model.name for model in models),
        licences="".join(f"{line}\n" for line in licences),
    )


def _of(model: Model) -> str:
    files = [path for path in (*model.licence_files, *(file.path for file in model.files)) if "LICENSE" in path]
    files += [path for path in model.licence_files if path not in files]
    files += [licence.NOTICE] if licence.duty(model) else []
    where = f" (models/{model.name}/: {', '.join(files)})" if files else ""
    source = f"https://huggingface.co/{model.repo_id} at {model.revision}" if model.repo_id else model.revision
    source = f"{model.base.name}, tuned: no registry pins it" if model.base else source
    return f"  {model.name} = {model.title}: {model.licence}{where}, from {source}"
