"""make tune: what comes of it, that nothing is lost on the way, and that it is what it says."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import statistics
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kit import files, paths
from kit.engines import generate, methods
from kit.engines.request import Request
from kit.environment.machine import Machine
from kit.errors import KitError, WrongUsage
from kit.formats import llama, to_gguf
from kit.formats.gguf import GgufFile
from kit.hub import download
from kit.models import folder as model_folder
from kit.models import registry
from kit.models.registry import ADAPTER_CONFIG, ADAPTER_FILES, ADAPTER_GGUF, ADAPTER_WEIGHTS, Model
from kit.tune import data, evaluate, export, plan, plot, train, tune
from kit.tune.head_loss import head_loss
from kit.tune.tune import Asked
from tests.tiny_llamas import Recipe, bake, model_of

TEXT = "\n\n".join(f"The number {number} is the one of {number * 7}, and that is all." for number in range(30))


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """What starts the tests in the background may have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _little_to_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "UNRELATED_TOKENS", 64)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text(TEXT)
    return path


def asked(base: Model, notes: Path, **other: object) -> Asked:
    usual = {"name": "mine", "epochs": 2, "lr": 5e-3, "rank": 4, "context": 32, "device": "cpu"}
    return Asked(base, data=notes, **{**usual, **other})  # type: ignore[arg-type]


def run(what: Asked, said: list[str] | None = None, on_progress=lambda *_: None) -> dict:
    notes: list[str] = [] if said is None else said
    return tune.tune(tune.prepare(what, notes.append), notes.append, on_progress)[0]


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    """The finished folders of `tuned`, by learning rate."""
    return {}


@pytest.fixture
def tuned(tiny: Model, notes: Path, results: dict[float, Path], tmp_path_factory: pytest.TempPathFactory):
    """Puts models/mine there as `run(asked(tiny, notes))` leaves it, trained once for all tests that begin with it."""

    def put(lr: float = 5e-3) -> Model:
        if lr not in results:
            run(asked(tiny, notes, lr=lr))
            results[lr] = Path(shutil.copytree(paths.MODELS / "mine", tmp_path_factory.mktemp("tuned") / "mine"))
        else:
            shutil.copytree(results[lr], paths.MODELS / "mine")
        return registry.find("mine")

    return put


def adapter(name: str = "mine") -> dict[str, bytes]:
    return {path: (paths.MODELS / name / path).read_bytes() for path in ADAPTER_FILES}


def stop_after(updates: int):
    """A Progress that presses Ctrl-C in an update."""

    def progress(what: str, done: float, total: float = 1.0, unit: str = "") -> None:
        if total > 1 and done == updates:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


# --- What comes of it -------------------------------------------------------------------------------------------------


def test_the_model_learns_and_tune_json_says_of_what_and_how(tiny, notes):
    said = run(asked(tiny, notes))
    kept = json.loads((paths.MODELS / "mine" / "tune.json").read_text())
    assert kept["after"]["held_out_loss"] < kept["before"]["held_out_loss"] - 0.2
    assert kept["base"] == tiny.identity()
    assert kept["data"]["sha256"] == data.read(notes).sha256
    assert kept["data"]["samples"] + kept["data"]["held_out_samples"] == 30
    assert kept["settings"] == {
        "epochs": 2,
        "lr": 5e-3,
        "rank": 4,
        "alpha": 8,
        "context": 32,
        "seed": 0,
        "device": "cpu",
        "dtype": "bfloat16",
    }
    assert kept["complete"]
    assert len(kept["curve"]["training"]) == kept["updates"] == said["updates_planned"]
    assert kept["versions"]["peft"]
    assert str(paths.ROOT) not in json.dumps(kept)


def test_stock_peft_loads_the_folder_and_gives_the_same_numbers(tiny, tuned):
    tuned()
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.bfloat16)
    stock = PeftModel.from_pretrained(base, str(paths.MODELS / "mine"))
    ids = torch.arange(20)[None]
    with methods.REFERENCE(registry.find("mine"), "cpu") as engine, torch.inference_mode():
        engine.load(64)
        assert torch.equal(stock(ids).logits, engine.loaded(ids).logits)


def test_the_adapter_names_its_base_by_repository_and_commit_and_no_path_of_this_machine(tiny, tuned):
    tuned()
    config = json.loads((paths.MODELS / "mine" / ADAPTER_CONFIG).read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (tiny.repo_id, tiny.revision)
    assert str(paths.MODELS) not in json.dumps(config)


def test_the_base_without_a_repository_is_named_by_its_revision(tiny, notes, monkeypatch):
    base = replace(tiny, repo_id=None, revision="wheel-1")
    monkeypatch.setattr(registry, "read", lambda: {"tiny": base})
    run(asked(base, notes))
    config = json.loads((paths.MODELS / "mine" / ADAPTER_CONFIG).read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (None, "wheel-1")


def test_every_linear_layer_learns_in_float32_and_the_base_stays_as_it_is(tiny, notes):
    before = (tiny.folder / "model.safetensors").read_bytes()
    run(asked(tiny, notes))
    from safetensors.torch import load_file

    tensors = load_file(paths.MODELS / "mine" / ADAPTER_WEIGHTS)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    layers = {name.split(".")[-3] for name in tensors}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert all(tensor.abs().sum() > 0 for tensor in tensors.values())
    assert (tiny.folder / "model.safetensors").read_bytes() == before


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tiny, notes, tuned):
    tuned()
    for name, seed in (("same", 0), ("other", 1)):
        run(asked(tiny, notes, name=name, seed=seed))
    assert adapter("mine")[ADAPTER_WEIGHTS] == adapter("same")[ADAPTER_WEIGHTS]
    assert adapter("mine")[ADAPTER_CONFIG] == adapter("same")[ADAPTER_CONFIG]
    assert adapter("mine")[ADAPTER_WEIGHTS] != adapter("other")[ADAPTER_WEIGHTS]


def test_what_is_held_out_is_in_no_block_that_is_learnt(tiny, notes):
    ready = tune.prepare(asked(tiny, notes), lambda line: None)
    learnt = ready.engine.decode([one for ids, _ in ready.blocks() for one in ids])
    held = data.hold_out(data.read(notes).samples)[1]
    assert held
    assert not [one.text for one in held if one.text in learnt]


def test_a_picture_shows_both_losses(tiny, notes, tmp_path):
    plot.draw(run(asked(tiny, notes)), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


# --- The same by every method -----------------------------------------------------------------------------------------


def complete(model: Model, method: str, **other: str) -> list[int]:
    return generate.complete(Request(model, "The number 8 is", method, "cpu", max_new_tokens=6, **other)).token_ids


def test_every_method_runs_the_tuned_model_and_its_base_is_another(tiny, tuned):
    found = tuned()
    by_method = {method: complete(found, method) for method in methods.NAMES}
    assert len(set(map(tuple, by_method.values()))) == 1, by_method
    assert complete(found.foundation, "manual") != by_method["manual"]
    assert complete(found.foundation, "manual") == complete(tiny, "manual")


def logprobs(model: Model, method: str, ids: list[int], **number_format: str) -> list[float]:
    with methods.of(method)(model, "cpu", *number_format.values()) as engine:
        engine.write_file()
        engine.load(len(ids))
        return [position.logprob for position in engine.logprobs(ids, 1)]


@pytest.fixture
def text_ids(tiny) -> list[int]:
    return methods.REFERENCE(tiny, "cpu").encode(TEXT)[:60]


def distance(one: list[float], other: list[float]) -> float:
    return statistics.fmean(abs(a - b) for a, b in zip(one, other, strict=True))


def test_the_adapter_through_llamacpp_is_the_adapter_through_torch(tiny, tuned, text_ids):
    found = tuned(lr=2e-2)
    torch_side = logprobs(found, "manual", text_ids, dtype="float32")
    assert distance(logprobs(found, "llamacpp", text_ids, quant="bf16"), torch_side) <= 0.02
    assert distance(logprobs(tiny, "llamacpp", text_ids, quant="bf16"), torch_side) > 0.2, "the base is another model"


@pytest.mark.parametrize("fault", ["not permuted", "alpha ignored"])
def test_a_faulty_adapter_for_llamacpp_is_seen_when_it_is_written(tiny, notes, fault, monkeypatch):
    if fault == "not permuted":
        monkeypatch.setattr(llama, "permute", lambda values, heads: values)
    else:
        monkeypatch.setattr("gguf.GGUFWriter.add_float32", lambda writer, key, value: writer.add_string(key, "1"))
    with pytest.raises(KitError, match=r"it has other tensors|is not base_model"):
        run(asked(tiny, notes))
    assert not (paths.MODELS / "mine").exists()


@pytest.mark.parametrize("fault", ["not permuted", "alpha ignored"])
def test_the_proof_between_the_methods_sees_those_faults_too(tiny, tuned, text_ids, fault, monkeypatch):
    found = tuned(lr=2e-2)
    target, source = found.folder / ADAPTER_GGUF, found.folder / ADAPTER_WEIGHTS
    generate.prepare(Request(found, "x", "llamacpp", "cpu", quant="bf16"))
    monkeypatch.setattr(to_gguf, "_prove_adapter", lambda *_: None)
    if fault == "not permuted":
        monkeypatch.setattr(llama, "permute", lambda values, heads: values)
    alpha = 8.0 if fault == "not permuted" else 4.0
    to_gguf.convert_adapter(source, llama.read_config(tiny.folder), alpha, "mine", target)
    monkeypatch.setattr(model_folder, "check", lambda model: None)
    torch_side = logprobs(found, "manual", text_ids, dtype="float32")
    assert distance(logprobs(found, "llamacpp", text_ids, quant="bf16"), torch_side) > 0.03


def test_nothing_of_rope_is_in_the_adapter(tuned):
    tuned()
    written = GgufFile(paths.MODELS / "mine" / ADAPTER_GGUF)
    assert len(written.tensors) == 2 * 7 * 2
    assert {name.rsplit(".", 1)[1] for name in written.tensors} == {"lora_a", "lora_b"}
    assert (written.metadata["general.type"], written.metadata["adapter.type"]) == ("adapter", "lora")
    written.close()


def test_switched_off_the_adapter_leaves_the_base_exactly(tiny, tuned):
    tuned()
    from peft.tuners.lora import LoraLayer

    ids = torch.arange(20)[None]
    with methods.REFERENCE(registry.find("mine"), "cpu") as engine, methods.REFERENCE(tiny, "cpu") as base:
        engine.load(64)
        base.load(64)
        with torch.inference_mode():
            on = engine.loaded(ids).logits
            for module in engine.loaded.modules():
                if isinstance(module, LoraLayer):
                    module.enable_adapters(False)
            assert torch.equal(engine.loaded(ids).logits, base.loaded(ids).logits)
            assert not torch.equal(on, base.loaded(ids).logits)


# --- Nothing is lost --------------------------------------------------------------------------------------------------


def test_ctrl_c_leaves_an_adapter_that_runs_and_the_same_command_ends_with_the_same_bytes(tiny, notes, tuned):
    curve = json.loads((tuned().folder / "tune.json").read_text())["curve"]["training"]
    said: list[str] = []
    stopped = run(asked(tiny, notes, name="ended"), said, stop_after(5))
    assert (stopped["complete"], stopped["updates"]) == (False, 5)
    assert "stopping after this update; once more ends at once, with the last checkpoint" in said
    assert complete(registry.find("ended"), "manual")
    said.clear()
    done = run(asked(tiny, notes, name="ended"), said)
    assert f"going on after 5 of {len(curve)} updates" in said
    assert done["complete"]
    assert done["curve"]["training"] == curve
    assert adapter("ended")[ADAPTER_WEIGHTS] == adapter("mine")[ADAPTER_WEIGHTS]
    assert not tune.workshop("ended").exists()


def test_the_checkpoint_has_no_copy_of_the_base(tiny, notes):
    run(asked(tiny, notes), on_progress=stop_after(5))
    kept = train.read_checkpoint(tune.workshop("mine") / "checkpoint.pt")
    assert kept
    assert all("lora_" in name for name in kept["state"]["adapters"])


def test_a_damaged_checkpoint_counts_as_none(tiny, notes):
    run(asked(tiny, notes), on_progress=stop_after(5))
    (tune.workshop("mine") / "checkpoint.pt").write_bytes(b"PK\x03\x04 no more")
    assert run(asked(tiny, notes))["complete"]


def test_a_full_disk_is_a_sentence_and_the_checkpoint_before_stays(tiny, notes, monkeypatch):
    run(asked(tiny, notes), on_progress=stop_after(5))
    path = tune.workshop("mine") / "checkpoint.pt"
    before = path.read_bytes()

    def full(*_: object) -> None:
        """As torch's writer has it: its own words, and the cause behind them."""
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(KitError) as error:
        run(asked(tiny, notes))
    assert "the disk is full" in error.value.message
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["checkpoint.pt"]


def test_a_disk_without_room_is_said_before_the_first_update(tiny, notes, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: os.terminal_size((0, 0)) and type("", (), {"free": 1000})())
    with pytest.raises(KitError, match="on this disk"):
        run(asked(tiny, notes))


def test_a_second_one_under_the_same_name_waits_and_finds_it_done(tiny, notes, tuned):
    tuned()
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with files.locked(paths.MODELS / ".mine.lock"):
            held.set()
            go_on.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(60)
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(line)
        go_on.set()

    kept, was_here = tune.tune(tune.prepare(asked(tiny, notes), said.append), hear)
    other.join()
    assert said == ["waiting for another process that tunes mine"]
    assert was_here
    assert kept == json.loads((paths.MODELS / "mine" / "tune.json").read_text())


def test_the_same_again_is_here_already_and_is_not_trained_anew(tiny, notes, tuned):
    tuned()
    before = adapter()
    said, was_here = tune.tune(tune.prepare(asked(tiny, notes), lambda line: None), lambda line: None)
    assert was_here
    assert said["complete"]
    assert adapter() == before


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [{"epochs": 3}, {"seed": 1}, {"lr": 1e-3}])
def test_a_name_that_another_tuning_has_is_refused_and_the_tuning_stays(tiny, notes, tuned, other):
    tuned()
    before = adapter()
    with pytest.raises(WrongUsage, match="is taken, by a tuning with"):
        run(asked(tiny, notes, **other))
    assert adapter() == before


def test_a_name_that_another_text_has_is_refused(tiny, notes, tuned):
    tuned()
    notes.write_text(TEXT + "\n\nOne more.")
    with pytest.raises(WrongUsage, match=r"another text \(notes.txt\)"):
        run(asked(tiny, notes))


def test_a_tuning_that_is_under_way_is_not_gone_on_with_in_another_way(tiny, notes):
    run(asked(tiny, notes), on_progress=stop_after(5))
    with pytest.raises(WrongUsage, match="under way with EPOCHS=2"):
        run(asked(tiny, notes, epochs=3))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "tiny"}, "is a model of env/models.toml"),
        ({"name": "a/b"}, "a name has letters"),
        ({"name": ".."}, "a name has letters"),
        ({"name": ""}, "a name has letters"),
        ({"lr": 0.0}, "above 0 and below 1"),
        ({"lr": 1.0}, "above 0 and below 1"),
        ({"lr": float("nan")}, "above 0 and below 1"),
        ({"context": 257}, "holds 256 tokens"),
        ({"rank": 65}, "at most 64"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(tiny, notes, settings, says):
    with pytest.raises(WrongUsage) as error:
        run(asked(tiny, notes, **settings))
    assert says in error.value.message
    assert [path.name for path in paths.MODELS.iterdir() if path.name not in ("tiny", ".tiny.lock")] == []


def test_a_text_of_fewer_tokens_than_a_block_says_which_block_it_fills(tiny, notes):
    notes.write_text("One is one.\n\nTwo is two, and that is all.\n\nThree is three, which is more.")
    with pytest.raises(WrongUsage) as error:
        run(asked(tiny, notes, context=128))
    assert "one block holds 128" in error.value.message
    assert any("CONTEXT=" in str(part) for part in error.value.hint)


def test_a_stopped_one_without_its_checkpoint_is_not_replaced_by_another(tiny, notes):
    run(asked(tiny, notes), on_progress=stop_after(5))
    shutil.rmtree(tune.workshop("mine"))
    before = adapter()
    with pytest.raises(WrongUsage, match="under way with EPOCHS=2"):
        run(asked(tiny, notes, epochs=3))
    assert adapter() == before


def test_a_folder_of_that_name_that_is_no_tuning_is_left_alone(tiny, notes):
    (paths.MODELS / "mine").mkdir()
    (paths.MODELS / "mine" / "precious").touch()
    with pytest.raises(WrongUsage, match="is no tuning"):
        run(asked(tiny, notes))
    assert (paths.MODELS / "mine" / "precious").exists()


def test_a_tuned_model_is_no_base(notes, tuned):
    base = tuned()
    with pytest.raises(WrongUsage, match="is tuned already"):
        run(asked(base, notes, name="more"))


def test_random_weights_are_tuned_for_speed_and_it_says_so(tiny, notes, monkeypatch):
    base = replace(tiny, kind="random")
    monkeypatch.setattr(registry, "read", lambda: {"tiny": base})
    said: list[str] = []
    tune.prepare(asked(base, notes), said.append)
    assert "random weights" in said[0]


def test_a_training_that_comes_apart_says_so_and_leaves_no_model(tiny, notes, monkeypatch):
    real = train.loss_sum

    def loss_sum(model, block):
        total, count = real(model, block)
        return total * (float("nan") if model.training else 1.0), count

    monkeypatch.setattr(train, "loss_sum", loss_sum)
    with pytest.raises(KitError, match="came apart"):
        run(asked(tiny, notes))
    assert not (paths.MODELS / "mine").exists()


# --- A base that changed, an adapter of another -----------------------------------------------------------------------


def test_a_base_that_changed_is_named(tiny, tuned, monkeypatch):
    tuned()
    files = tuple(replace(file, sha256="0" * 64) if file.path == "model.safetensors" else file for file in tiny.files)
    monkeypatch.setattr(registry, "read", lambda: {"tiny": replace(tiny, files=files, revision="later")})
    with pytest.raises(KitError) as error:
        registry.find("mine")
    assert "another one by now, at later: model.safetensors" in error.value.message


def test_a_download_of_a_tuned_model_asks_the_hub_for_nothing_that_is_not_there(tuned):
    tuned()
    assert download.download(registry.find("mine")) is False
    (paths.MODELS / "mine" / ADAPTER_GGUF).unlink()
    with pytest.raises(KitError, match=r"adapter\.gguf is missing") as error:
        download.download(registry.find("mine"))
    assert "cannot be fetched again" in str(error.value.hint[0])


def test_a_base_that_is_gone_from_the_list_and_one_that_is_gone_from_the_disk_are_named(tiny, tuned, monkeypatch):
    tuned()
    (tiny.folder / "config.json").unlink()
    with pytest.raises(KitError, match=r"models/tiny/config\.json is missing"):
        model_folder.check(registry.find("mine"))
    monkeypatch.setattr(registry, "read", dict)
    with pytest.raises(KitError, match="lists no tiny"):
        registry.find("mine")


@pytest.mark.parametrize("config", [{"num_hidden_layers": 3}, {"num_hidden_layers": 1}, {"intermediate_size": 128}])
def test_an_adapter_of_another_base_is_refused(tuned, config):
    found = tuned()
    bake(Recipe(config=config), paths.MODELS / "other", 0)
    strange = replace(found, base=model_of(paths.MODELS / "other"))
    with methods.REFERENCE(strange, "cpu") as engine, pytest.raises(KitError, match="does not belong to other"):
        engine.load(32)


@pytest.mark.parametrize("path", ADAPTER_FILES)
def test_an_adapter_that_was_altered_is_named(tuned, path):
    tuned()
    place = paths.MODELS / "mine" / path
    place.write_bytes(place.read_bytes()[:-1] + b"x")
    with pytest.raises(KitError, match=f"models/mine/{path} is altered"):
        model_folder.check(registry.find("mine"))


OUTSIDE = json.dumps(
    {"base": {"name": "tiny", "files": {}}, "files": [{"path": "../../.env", "size": 1, "sha256": "0" * 64}]}
)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"base": {}, "files": []}', OUTSIDE])
def test_a_tune_json_that_is_damaged_is_said(tuned, content):
    tuned()
    (paths.MODELS / "mine" / "tune.json").write_text(content)
    with pytest.raises(KitError, match=r"models/mine/tune\.json"):
        registry.find("mine")


# --- Memory -----------------------------------------------------------------------------------------------------------

# Model, context, gradient checkpointing, rank -> the peak that was measured, in MB (docs/measurements.md).
MEASURED = [
    ("starter", 64, False, 8, 831),
    ("starter", 128, False, 8, 979),
    ("starter", 256, False, 8, 1224),
    ("starter", 512, False, 8, 1681),
    ("starter", 1024, False, 8, 2672),
    ("starter", 256, False, 32, 1309),
    ("starter", 256, True, 8, 956),
    ("starter", 1024, True, 8, 1532),
]


@pytest.mark.parametrize(("name", "context", "checkpointing", "rank", "measured"), MEASURED)
def test_the_formula_meets_the_measured_peaks_within_a_tenth(starter, name, context, checkpointing, rank, measured):
    recipe = train.Recipe(1, 1e-3, rank, context, 0)
    foretold = plan.peak_memory(registry.find(name), recipe, checkpointing) / 1e6
    assert abs(foretold / measured - 1) < 0.1


def test_it_fits_or_fits_with_checkpointing_or_is_refused_with_what_would_fit(starter, monkeypatch):
    recipe = train.Recipe(1, 1e-3, 8, 1024, 0)
    plain, less = (plan.peak_memory(starter, recipe, one) for one in (False, True))
    said: list[str] = []

    def decide(free: float) -> bool:
        monkeypatch.setattr(plan.memory, "free_memory", lambda here: int(free / plan.SHARE) + 1)
        return plan.require_memory(starter, recipe, Machine("Linux", "x86_64", None, None, None), said.append)

    assert decide(plain) is False
    assert not said
    assert decide(less) is True
    assert "gradient checkpointing" in said[0]
    with pytest.raises(KitError) as error:
        decide(less - 10_000_000)
    assert "GB of memory at least" in error.value.message
    assert ", or CONTEXT=512" in error.value.hint


def test_with_checkpointing_the_numbers_are_the_same(tiny, notes, tuned, monkeypatch):
    tuned()
    monkeypatch.setattr(plan, "require_memory", lambda *_: True)
    said = run(asked(tiny, notes, name="less"))
    assert said["checkpointing"]
    assert adapter("less")[ADAPTER_WEIGHTS] == adapter("mine")[ADAPTER_WEIGHTS]


@pytest.mark.parametrize(
    ("held_out", "updates", "every"), [(1, 1000, 100), (3, 24, 8), (3, 72, 12), (1, 2, 1), (0, 50, 5)]
)
def test_the_held_out_text_is_measured_so_often_that_it_takes_a_tenth_of_the_time(held_out, updates, every):
    assert train.updates_between(updates, 256, [([0] * 256, [True] * 256)] * held_out) == every


def test_the_loss_in_pieces_and_its_gradient_are_torchs_own():
    torch.manual_seed(0)
    weight, targets = torch.randn(50, 8), torch.randint(0, 50, (300,))
    one, other = (torch.randn(300, 8).requires_grad_() for _ in range(2))
    other.data.copy_(one.data)
    ours = head_loss().apply(one, weight, targets) / 300
    theirs = torch.nn.functional.cross_entropy(other @ weight.T, targets)
    ours.backward()
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert torch.allclose(one.grad, other.grad, atol=1e-8)


# --- What is said of it -----------------------------------------------------------------------------------------------


def came(before: float, after: float, on_the_way: list[float], forgot: float = 0.0, same: bool = False) -> dict:
    return {
        "before": {"held_out_loss": before, "unrelated_loss": 2.0, "completions": ["a"]},
        "after": {"held_out_loss": after, "unrelated_loss": 2.0 + forgot, "completions": ["a" if same else "b"]},
        "settings": {"lr": 1e-3, "epochs": 10},
        "curve": {"at": [25, 50, 75], "held_out": on_the_way},
        "updates": 100,
    }


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (came(3.0, 2.0, [2.6, 2.3, 2.1]), []),
        (came(3.0, 2.99, [3.0, 3.0, 3.0], same=True), ["nothing changed", "LR=0.005", "EPOCHS=30"]),
        (came(3.0, 2.9, [2.5, 2.6, 2.8]), ["by heart", "after 25 of 100", "EPOCHS=2"]),
        (came(3.0, 3.4, [3.1, 3.2, 3.3]), ["by heart"]),
        (came(3.0, 2.0, [2.6, 2.3, 2.1], forgot=0.8), ["forgot", "0.80", "LR=0.0003"]),
    ],
)
def test_it_says_where_nothing_changed_where_it_learnt_by_heart_and_where_it_forgot(said, words):
    lines = " | ".join(evaluate.verdicts(said))
    assert bool(lines) == bool(words)
    for word in words:
        assert word in lines


# --- Handing on -------------------------------------------------------------------------------------------------------


def test_the_merged_folder_gives_what_the_adapter_gives_in_torch_and_in_llamacpp(tiny, tuned, text_ids, monkeypatch):
    monkeypatch.setattr(paths, "DIST", paths.MODELS.parent / "dist")
    tuned(lr=2e-2)
    done = export.export(registry.find("mine"), "merged")
    merged = replace(model_of(done.folder), name="merged")
    monkeypatch.setattr(paths, "MODELS", paths.DIST)
    by_torch = logprobs(merged, "manual", text_ids, dtype="float32")
    by_llamacpp = logprobs(merged, "llamacpp", text_ids, quant="bf16")
    monkeypatch.setattr(paths, "MODELS", paths.DIST.parent / "models")
    by_adapter = logprobs(registry.find("mine"), "manual", text_ids, dtype="float32")
    assert distance(by_torch, by_adapter) <= 0.03
    assert distance(by_llamacpp, by_adapter) <= 0.03
    assert distance(logprobs(tiny, "manual", text_ids, dtype="float32"), by_adapter) > 0.2
    assert done.gguf.is_file()


@pytest.fixture
def llama_like(tiny, monkeypatch) -> Model:
    """The base under Llama's licence, as the registry has it."""
    for name in ("LICENSE.txt", "USE_POLICY.md"):
        (tiny.folder / name).write_text(name)
    found = replace(tiny, licence="Llama 3.2 Community License", licence_files=("LICENSE.txt", "USE_POLICY.md"))
    monkeypatch.setattr(registry, "read", lambda: {"tiny": found})
    monkeypatch.setattr(paths, "DIST", paths.MODELS.parent / "dist")
    return found


def test_a_model_of_llama_is_handed_on_under_a_name_that_says_so_with_its_licence(llama_like, notes):
    said: list[str] = []
    run(asked(llama_like, notes), said)
    assert any("NAME=llama-mine" in line for line in said), "it is said where it costs nothing yet"
    with pytest.raises(WrongUsage, match="begins with Llama"):
        export.export(registry.find("mine"), "mine")
    done = export.export(registry.find("mine"), "LLAMA-mine")
    assert {"LICENSE.txt", "USE_POLICY.md", "Notice"} <= {path.name for path in done.folder.iterdir()}
    readme = (done.folder / "README.md").read_text()
    assert "Built with Llama" in readme


def test_a_name_that_begins_with_llama_needs_no_word(llama_like, notes):
    said: list[str] = []
    tune.prepare(asked(llama_like, notes, name="Llama-mine"), said.append)
    assert not said


def test_what_is_not_tuned_or_is_there_already_is_not_exported(tiny, tuned, monkeypatch):
    monkeypatch.setattr(paths, "DIST", paths.MODELS.parent / "dist")
    with pytest.raises(WrongUsage, match="is not tuned"):
        export.export(tiny, "merged")
    found = tuned()
    export.export(found, "merged")
    with pytest.raises(WrongUsage, match="is there already"):
        export.export(found, "merged")
