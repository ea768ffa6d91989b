"""`make verify` as a person sees it: stage by stage, the manifest, the readiness code, a first reference."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from kit import paths, reports
from kit.engines import methods
from kit.engines.engine import Position
from kit.engines.request import Request
from kit.errors import KitError
from kit.models import registry
from kit.models.registry import Model
from kit.paths import ROOT
from kit.verify import golden, readiness, stages
from tests.conftest import Done, own_file
from tests.tiny_llamas import Recipe, bake, model_of


@pytest.fixture
def quick(kit_copy: Path) -> Path:
    """A kit whose reference has no long prompt: what takes 5 s of each replay."""
    path = kit_copy / "env" / "golden" / "starter.json"
    reference = json.loads(path.read_text())
    reference["entries"] = [entry for entry in reference["entries"] if entry["name"] != "long"]
    path.write_text(json.dumps(reference))
    return kit_copy


def verify(folder: Path, script, *arguments: str, **env: str) -> Done:
    return script("verify", *arguments, cwd=folder, env=env)


@pytest.mark.container
def test_a_good_machine_is_verified_with_a_manifest_and_a_code(quick, script):
    done = verify(quick, script, "--device", "cpu")
    assert done.status == 0, done.err
    stages = re.findall(r"^(ok  |FAIL)  (\w+) ", done.out, re.MULTILINE)
    assert stages == [("ok  ", "hashes"), ("ok  ", "tokenizer"), ("ok  ", "float32"), ("ok  ", "bfloat16")]
    assert "verified: starter on cpu in bfloat16, pipeline" in done.out
    code = readiness.decode(done.out.splitlines()[-1])
    assert (code.outcome, code.model, code.device, code.dtype) == ("ok", "starter", "cpu", "bfloat16")
    (manifest,) = (quick / "reports").glob("manifest-*.json")
    said = json.loads(manifest.read_text())
    assert said["outcome"]["ok"] is True
    assert said["readiness"] == done.out.splitlines()[-1]
    assert set(said["facts"]) == {"kit", "python", "packages", "os", "cpu", "memory", "environment", "torch"}
    assert said["facts"]["packages"]["torch"]
    assert said["model"]["files"]["model.safetensors"]
    assert said["facts"]["torch"]["threads"] > 0
    flips = said["outcome"]["stages"]["bfloat16"]["flips"]
    assert f"{len(flips)} positions have another token first" in done.out
    assert all(flip["position"] > 0 and flip["explained"] for flip in flips)


@pytest.mark.container
@pytest.mark.slow
def test_llama_cpp_is_verified_on_top_of_the_float32_replay(quick, script):
    done = verify(quick, script, "--method", "llamacpp")
    assert done.status == 0, done.err
    stages = re.findall(r"^(ok  |FAIL)  (\w+) ", done.out, re.MULTILINE)
    assert stages == [("ok  ", "hashes"), ("ok  ", "tokenizer"), ("ok  ", "float32"), ("ok  ", "q4_1")]
    assert "verified: starter on cpu in q4_1, llamacpp" in done.out
    assert readiness.decode(done.out.splitlines()[-1]).dtype == "q4_1"


@pytest.mark.slow
def test_no_user_host_path_or_token_is_in_the_manifest(quick, script):
    import getpass
    import socket

    token = "hf_" + "x1" * 17
    done = verify(quick, script, "--dtype", "float32", HF_TOKEN=token)
    assert done.status == 0, done.err
    (manifest,) = (quick / "reports").glob("manifest-*.json")
    text = manifest.read_text()
    assert token not in text
    assert str(quick) not in text
    assert str(Path.home()) not in text
    for name in (socket.gethostname(), getpass.getuser()):
        assert f': "{name}"' not in text


@pytest.mark.slow
def test_float32_on_the_cpu_alone_is_replayed_once(quick, script):
    done = verify(quick, script, "--dtype", "float32", "--json")
    assert done.status == 0, done.err
    assert list(json.loads(done.out)["outcome"]["stages"]) == ["hashes", "tokenizer", "float32"]


def test_altered_weights_are_named_before_anything_is_loaded(quick, script):
    path = own_file(quick / "models" / "starter" / "model.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    done = verify(quick, script)
    assert done.status == 1
    assert "FAIL  hashes" in done.out
    assert "models/starter/model.safetensors is altered" in done.out
    assert "float32" not in done.out.replace("float32 on", "")
    assert readiness.decode(done.out.splitlines()[-1]).outcome == "hashes"
    assert "next: make setup" in done.out


def test_a_swapped_tokenizer_is_seen(starter, tmp_path, monkeypatch):
    """Two tokens change places: hashes aside, the prompts' tokens tell."""
    folder = tmp_path / "starter"
    shutil.copytree(starter.folder, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.gguf"))
    reference = golden.read(starter)
    monkeypatch.setattr(paths, "MODELS", tmp_path)
    assert stages.check_tokenizer(methods.REFERENCE(starter, "cpu"), reference).ok
    path = folder / "tokenizer.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = said["model"]["vocab"]
    vocabulary["ĠFrance"], vocabulary["ĠParis"] = vocabulary["ĠParis"], vocabulary["ĠFrance"]
    path.write_text(json.dumps(said), encoding="utf-8")
    stage = stages.check_tokenizer(methods.REFERENCE(starter, "cpu"), reference)
    assert not stage.ok
    assert "the prompt 'english' gives other tokens" in stage.faults


@pytest.mark.slow
def test_a_fault_in_the_replay_fails_with_what_to_do(quick, script):
    """A reference of another model's numbers stands in for a machine that computes wrongly."""
    path = quick / "env" / "golden" / "starter.json"
    reference = json.loads(path.read_text())
    reference["entries"][1]["logprobs"] = [value - 1 for value in reference["entries"][1]["logprobs"]]
    path.write_text(json.dumps(reference))
    done = verify(quick, script, "--dtype", "float32")
    assert done.status == 1
    assert "FAIL  float32" in done.out
    assert "log-probabilities are off by" in done.out
    assert "NOT verified: starter on cpu in float32" in done.out
    assert "next: make clean setup" in done.out
    assert readiness.decode(done.out.splitlines()[-1]).outcome == "float32"


def test_the_output_on_apples_gpu_says_that_its_tolerance_is_provisional(starter):
    """The reference's own numbers stand in for a GPU's."""
    reference = golden.read(starter)
    by_ids = {
        entry.ids: [Position(logprob, 0, margin) for logprob, margin in zip(entry.logprobs, entry.margins, strict=True)]
        for entry in reference.entries
    }
    for device, provisional in {"mps": True, "cpu": False}.items():
        stage = stages.judge_replay(
            lambda ids, first: by_ids[ids], reference, device, "bfloat16", lambda what, share: None
        )
        assert stage.ok
        assert ("provisional: not measured on a Mac yet" in stage.text) == provisional


def test_without_a_reference_the_methods_are_held_to_each_other_and_no_more_is_said(quick, script):
    (quick / "env" / "golden" / "starter.json").unlink()
    keep_short_prompts(quick)
    done = verify(quick, script, "--method", "manual")
    assert done.status == 0, done.err
    rows = re.findall(r"^(ok  |FAIL)  (\w+) ", done.out, re.MULTILINE)
    assert rows == [("ok  ", "hashes"), ("ok  ", "float32"), ("ok  ", "tokenizer"), ("ok  ", "bfloat16")]
    assert "agreement, not reproduction: starter on cpu in bfloat16, manual" in done.out
    assert "make verify MODEL=starter RECORD=1" in done.out
    assert "verified" not in done.out
    (manifest,) = (quick / "reports").glob("manifest-*.json")
    outcome = json.loads(manifest.read_text())["outcome"]
    assert (outcome["ok"], outcome["proof"]) == (True, "agreement")
    assert readiness.decode(done.out.splitlines()[-1]).outcome == "agrees"


def keep_short_prompts(folder: Path) -> None:
    for name in ("long", "code", "scripts", "question"):
        (folder / "env" / "golden" / "prompts" / f"{name}.txt").unlink()


def test_float32_alone_is_held_to_another_format(tiny):
    done = stages.verify(Request(tiny(), method="manual", device="cpu", dtype="float32"))
    assert [stage.name for stage in done.stages] == ["hashes", "float32", "tokenizer", "bfloat16"]
    assert done.ok


def test_llama_cpp_agrees_with_float32(tiny):
    done = stages.verify(Request(tiny(), method="llamacpp", device="cpu", quant="bf16"))
    assert [stage.name for stage in done.stages] == ["hashes", "float32", "tokenizer", "bf16"]
    assert done.ok


def overflow(folder: Path) -> None:
    """Weights that float32 and bfloat16 can hold, and whose products float16 cannot."""
    change_weights(folder, lambda name, weights: weights * 3e4 if "up_proj" in name or "gate_proj" in name else weights)


def lose_a_number(folder: Path) -> None:
    def change(name, weights):
        if name == "model.norm.weight":
            weights[0] = math.nan
        return weights

    change_weights(folder, change)


def change_weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    save_file({name: change(name, weights) for name, weights in load_file(path).items()}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "dtype", "stage"), [(overflow, "float16", "float16"), (lose_a_number, "bfloat16", "float32")]
)
def test_methods_that_disagree_fail(tiny, change, dtype, stage):
    done = stages.verify(Request(tiny(change), method="manual", device="cpu", dtype=dtype))
    assert done.failed.name == stage
    assert readiness.code(done).outcome == stage


def test_a_model_on_which_the_methods_disagree_is_not_recorded(tiny):
    model = tiny(lose_a_number)
    with pytest.raises(KitError, match=f"the methods do not agree on {model.name}.*: float32: .* compute nothing"):
        stages.record(model)
    assert not golden.path_of(model).exists()


def test_the_first_reference_of_a_model_is_what_it_is_held_to_from_then_on(tiny):
    model = tiny()
    stages.record(model)
    done = stages.verify(Request(model, method="manual", device="cpu"))
    assert (done.ok, done.proof) == (True, stages.REPRODUCTION)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A model of 0.2 MB that nobody has a reference of."""
    (tmp_path / "golden" / "prompts").mkdir(parents=True)
    for name in ("english", "newline"):
        shutil.copy(golden.FOLDER / "prompts" / f"{name}.txt", tmp_path / "golden" / "prompts")
    monkeypatch.setattr(golden, "FOLDER", tmp_path / "golden")
    monkeypatch.setattr(paths, "MODELS", tmp_path)
    golden.prompts.cache_clear()

    def make(change=lambda folder: None) -> Model:
        bake(Recipe(change=change), tmp_path / "tiny", 1)
        return model_of(tmp_path / "tiny")

    yield make
    golden.prompts.cache_clear()


@pytest.mark.slow
def test_a_reference_is_recorded_once_and_not_overwritten_without_force(quick, script):
    path = quick / "env" / "golden" / "starter.json"
    keep_short_prompts(quick)
    before = path.read_bytes()
    refused = verify(quick, script, "--record")
    assert refused.status == 2
    assert "env/golden/starter.json is there already" in refused.err
    assert path.read_bytes() == before
    done = verify(quick, script, "--record", "--force")
    assert done.status == 0, done.err
    recorded = {entry["name"]: entry for entry in json.loads(path.read_text())["entries"]}
    shipped = {entry["name"]: entry for entry in json.loads(before)["entries"]}
    assert set(recorded) == {"newline", "english"}
    for name, entry in recorded.items():
        assert entry["ids"] == shipped[name]["ids"]
        assert entry["logprobs"] == pytest.approx(shipped[name]["logprobs"], abs=0.005)
    assert verify(quick, script, "--dtype", "float32").status == 0


def test_a_reference_of_other_files_is_refused(starter):
    other = replace(starter, revision="another")
    with pytest.raises(Exception, match="is the reference of other files"):
        golden.read(other)


def test_the_prompts_are_what_the_reference_needs():
    texts = golden.prompts()
    assert {"english", "code", "scripts", "newline", "question", "long"} == set(texts)
    assert texts["newline"] == "\n"
    reference = golden.read(registry.find("starter"))
    long = next(entry for entry in reference.entries if entry.name == "long")
    assert long.first > 1024
    assert all(len(entry.logprobs) == len(entry.ids) - entry.first for entry in reference.entries)


def test_wrong_usage(script):
    assert script("verify", "--method", "magic").status == 2
    assert script("verify", "--device", "cuda").status == 2
    assert script("verify", "--model", "llama-3.2-1b").status == 1
    assert (ROOT / "env" / "golden" / "starter.json").exists()


def test_the_result_is_shown_though_the_manifest_cannot_be_written(monkeypatch, tmp_path, starter, capsys):
    from scripts.verify import verify as verb

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(paths, "REPORTS", tmp_path / "file" / "reports")
    done = stages.Verification(starter, "manual", "cpu", "float32", (stages.Stage("hashes", "all as pinned"),))
    monkeypatch.setattr(stages, "verify", lambda request, progress: done)
    with pytest.raises(KitError, match="could not be written"):
        verb.main(["--model", "starter"], standalone_mode=False)
    assert "verified: starter on cpu in float32, manual" in capsys.readouterr().out


def test_a_picture_that_fails_is_an_error_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "REPORTS", tmp_path)

    def draw(path: Path) -> None:
        raise ValueError("no backend")

    with pytest.raises(KitError, match=r"the report bench\.png could not be made: no backend"):
        reports.write_beside(tmp_path / "bench.json", ".png", draw)
    assert list(tmp_path.iterdir()) == []
