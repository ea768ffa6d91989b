"""`make compare`, `make run RECORD=1` and `FROM=`: what differs between two reports, and a run repeated."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from kit import paths, reports
from kit.errors import KitError, WrongUsage
from kit.reports import Report
from tests.conftest import copy_linked, run_command


def report(**changes) -> Report:
    content = {
        "facts": {
            "kit": {"commit": "a", "lock_sha256": "l"},
            "packages": {"torch": "2.13.0", "click": "8"},
            "cpu": {"model": "x"},
            "memory": 8,
        },
        "model": {"name": "starter", "files": {"model.safetensors": "1"}},
        "outcome": {"ok": True},
    }
    for name, value in changes.items():
        place = content
        *outer, last = name.split("__")
        for part in outer:
            place = place[part]
        place[last] = value
    return Report("manifest", "2026-01-01T00:00:00+00:00", content)


def test_the_same_has_no_difference():
    assert reports.compare(report(), report()) == []


def test_the_most_important_difference_comes_first():
    other = report(
        facts__memory=16,
        facts__packages={"torch": "2.12.0", "click": "9"},
        facts__cpu={"model": "y"},
        facts__kit={"commit": "b", "lock_sha256": "l"},
        model__files={"model.safetensors": "2"},
        outcome__ok=False,
    )
    names = [difference.name for difference in reports.compare(report(), other)]
    assert names == [
        "outcome.ok",
        "model.files.model.safetensors",
        "facts.kit.commit",
        "facts.packages.torch",
        "facts.cpu.model",
        "facts.packages.click",
        "facts.memory",
    ]


def test_what_stands_in_one_alone_is_a_difference():
    (difference,) = reports.compare(report(), report(facts__packages={"torch": "2.13.0"}))
    assert (difference.name, difference.a, difference.b) == ("facts.packages.click", "8", None)


def test_what_is_measured_is_no_difference():
    assert reports.differences({"completion": {"load_s": 1}}, {"completion": {"load_s": 2}}) == []


def test_two_kinds_do_not_compare():
    with pytest.raises(WrongUsage, match="A is a manifest and B a run"):
        reports.compare(report(), Report("run", "", {}))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kind": "manifest", "format": 99, "time": ""}'])
def test_a_file_that_is_no_report_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(WrongUsage):
        reports.read(tmp_path / "x.json")


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(paths, "REPORTS", tmp_path / "file" / "reports")
    with pytest.raises(KitError, match="could not be written"):
        reports.write("run", {})


@pytest.fixture(scope="module")
def recorded_once(kit_once: Path, tmp_path_factory):
    folder = copy_linked(kit_once, tmp_path_factory.mktemp("recorded") / "kit")
    words = ["--record", "--max-new-tokens", "6", "--seed", "5", "--temperature", "0.9"]
    return folder, run_command([sys.executable, "-m", "scripts.run", *words], cwd=folder)


@pytest.fixture
def recorded(recorded_once, tmp_path: Path):
    """A kit in which a run was written down: its folder, the report, and what the run said. The report is a copy."""
    folder, done = recorded_once
    assert done.status == 0, done.err
    (written,) = (folder / "reports").glob("run-*.json")
    assert f"make run FROM=reports/{written.name}" in done.err
    return folder, Path(shutil.copy(written, tmp_path)), done


def test_of_two_long_values_the_place_where_they_differ_is_shown(script, tmp_path):
    for name, features in {"a": ["avx", "fma"], "b": ["avx", "amx_tile"]}.items():
        features = [f"instruction_set_{number}" for number in range(20)] + features
        document = {"kind": "manifest", "format": 1, "time": "", "facts": {"cpu": {"features": features}}}
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    done = script("compare", "--a", str(tmp_path / "a.json"), "--b", str(tmp_path / "b.json"))
    assert done.status == 1
    name, first, second = done.out.splitlines()
    assert name == "facts.cpu.features"
    assert first.startswith("  A  … ")
    assert '"fma"]' in first
    assert '"amx_tile"]' in second


def test_from_names_the_kind_that_it_was_given(script, tmp_path):
    (tmp_path / "x.json").write_text('{"kind": "manifest", "format": 1, "time": ""}')
    done = script("run", "--from", str(tmp_path / "x.json"))
    assert done.status == 2
    assert "error: FROM names a report of the kind manifest; a run is repeated." in done.err
    assert "next: ls reports/run-*" in done.err


@pytest.mark.container
def test_a_recorded_run_repeats_with_the_same_tokens(recorded, script):
    folder, path, first = recorded
    done = script("run", "--from", str(path), cwd=folder, env={"MODEL": ""})
    assert done.status == 0, done.err
    assert done.out == first.out
    assert "the same 6 tokens as in the record" in done.err


def test_other_tokens_name_the_recorded_fact_that_differs(recorded, script):
    folder, path, _ = recorded
    said = json.loads(path.read_text())
    said["completion"]["token_ids"][3] += 1
    said["facts"]["packages"]["torch"] = "1.0"
    path.write_text(json.dumps(said))
    done = script("run", "--from", str(path), cwd=folder)
    assert done.status == 1
    assert "OTHER tokens than in the record, from token 4 of 6 on" in done.err
    assert "facts.packages.torch: 1.0 then, 2.13.0" in done.err


def test_from_takes_no_other_setting(recorded, script):
    folder, path, _ = recorded
    done = script("run", "--from", str(path), "--seed", "6", cwd=folder)
    assert done.status == 2
    assert "FROM repeats a run as it was: leave out SEED" in done.err


def test_compare_says_what_differs_and_exits_1(recorded, script):
    folder, path, _ = recorded
    other = path.with_name("run-other.json")
    said = json.loads(path.read_text())
    said["request"]["seed"] = 6
    other.write_text(json.dumps(said))
    same = script("compare", "--a", str(path), "--b", str(path), cwd=folder)
    assert (same.status, same.out) == (0, "")
    done = script("compare", "--a", str(path), "--b", str(other), cwd=folder)
    assert done.status == 1
    assert done.out == "request.seed\n  A  5\n  B  6\n"
    assert script("compare", "--a", str(path), cwd=folder).status == 2


def test_without_names_the_two_latest_of_a_kind_are_taken(tmp_path, monkeypatch):
    from kit import paths, reports

    monkeypatch.setattr(paths, "REPORTS", tmp_path)
    with pytest.raises(WrongUsage, match="no two reports of a kind"):
        reports.latest_two()
    for name in ("run-20260101T1", "manifest-20260102T1", "run-20260103T1", "bench-20260104T1", "run-20260105T1"):
        (tmp_path / f"{name}-000001.json").write_text("{}")
    assert [path.name[:14] for path in reports.latest_two()] == ["run-20260103T1", "run-20260105T1"]
