"""`make bench`: real runs in fresh processes, their report, their table and their picture."""

from __future__ import annotations

import json
import re
import struct
import sys
import time

import pytest

from kit import paths
from kit.bench import experiment, plot
from kit.bench import plan as bench_plan
from kit.bench.disturbance import Reading
from kit.bench.plan import Combination
from kit.engines.llamacpp_engine import LlamacppEngine
from kit.engines.methods import ManualEngine
from kit.errors import KitError, WrongUsage
from kit.models import gguf_files, registry
from kit.paths import ROOT
from tests import warm


@pytest.fixture
def run_verb(monkeypatch) -> list[str]:
    """The verb of one run; the bandwidth is not known. `done` measures it, and its runs start from nothing."""
    monkeypatch.setattr(experiment, "_bandwidth", lambda device: None)
    return warm.command([sys.executable, "-m", "scripts.run"], {})


def plan(model, methods="manual,llamacpp", devices="auto", dtypes="", quants=None, turns=1):
    quants = quants or ("auto" if "llamacpp" in methods else "")
    lists = [[name for name in text.split(",") if name] for text in (methods, devices, dtypes, quants)]
    return bench_plan.make(model, *lists, turns, 4)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    """Whatever else this machine does meanwhile, no turn of these benches is a disturbed one."""
    monkeypatch.setattr(experiment.disturbance, "read", lambda: Reading(time.monotonic(), 0.0, 0.0, None, None))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One real bench, in a copy of the kit so that its reports are its own."""
    from tests.conftest import copy_kit, run_command

    folder = copy_kit(tmp_path_factory.mktemp("bench") / "kit", to_run=True)
    (folder / "models").symlink_to(ROOT / "models")
    # What stands in the environment for other verbs decides nothing here.
    foreign = {"TEMPERATURE": "0.9", "SEED": "7", "PROMPT": "something else", "JSON": "0"}
    command = [sys.executable, "-m", "scripts.bench", "--methods=manual,llamacpp", "--quants=auto", "--runs=2"]
    ended = run_command([*command, "--tokens=6"], cwd=folder, env=foreign)
    assert ended.status == 0, ended.err
    (report,) = (folder / "reports").glob("bench-*.json")
    return ended, report, json.loads(report.read_text())


@pytest.mark.container
@pytest.mark.slow
def test_a_row_for_each_combination_and_a_run_for_each_turn(done):
    rows = done[2]["rows"]
    assert [(row["method"], row["device"], row["dtype"], row["quant"]) for row in rows] == [
        ("manual", "cpu", "bfloat16", None),
        ("llamacpp", "cpu", None, "q4_1"),
    ]
    assert [len(row["runs"]) for row in rows] == [2, 2]
    assert {row["failure"] for row in rows} == {None}


@pytest.mark.slow
def test_the_phases_add_up_to_the_process_from_start_to_end(done):
    for row in done[2]["rows"]:
        for run in row["runs"]:
            assert sum(run[name] for name in plot.PHASES) == pytest.approx(run["process_s"])
            assert all(run[name] > 0 for name in plot.PHASES)


@pytest.mark.slow
def test_a_process_of_its_own_and_its_memory(done):
    manual, llamacpp = (row["summary"]["peak_rss_bytes"]["median"] for row in done[2]["rows"])
    # More than the weights, less than two models; and neither has the other's library.
    assert 270e6 < manual < 1e9
    assert 98e6 < llamacpp < 350e6


@pytest.mark.slow
def test_the_ceiling_is_the_measured_bandwidth_over_the_bytes_of_a_token(done):
    document = done[2]
    read = document["bandwidth"]["cpu"]
    assert len(read["bytes_per_s"]) == 2
    assert read["low"] <= read["median"] <= read["high"]
    for row in document["rows"]:
        assert row["ceiling_tokens_per_s"] == pytest.approx(read["median"] / row["bytes_per_token"])
        speed = row["summary"]["decode_tokens_per_s"]["median"]
        assert row["ceiling_share"] == pytest.approx(speed / row["ceiling_tokens_per_s"])
    assert document["rows"][0]["bytes_per_token"] == 269_030_016  # every weight once, two bytes each


@pytest.mark.slow
def test_the_report_has_the_facts_of_a_manifest_and_nothing_of_a_person(done):
    document = done[2]
    assert {"kit", "python", "packages", "os", "cpu", "memory", "torch", "llamacpp"} <= set(document["facts"])
    assert set(document["model"]["files"]) >= {"model.safetensors", "starter-q4_1.gguf"}
    assert document["request"] == {"prompt": "Hello, who or what are you ?", "new_tokens": 6, "runs": 2, "seed": 0}
    assert str(ROOT) not in json.dumps(document)


@pytest.mark.slow
def test_the_page_describes_every_key_of_the_report(done):
    """docs/bench.md: `name` in its tables is a key; and every key is there."""
    page = (ROOT / "docs" / "bench.md").read_text()
    described = set(re.findall(r"^\| `([a-z0-9_.\[\]]+)`", page, re.MULTILINE))

    def keys(value, prefix=""):
        for name, inner in value.items():
            yield prefix + name
            if prefix + name in ("bandwidth", "rows[].summary"):
                yield from (f"{prefix}{name}.*.{key}" for each in inner.values() for key in each)
            elif isinstance(inner, dict) and name not in ("facts", "model"):
                yield from keys(inner, f"{prefix}{name}.")
            elif isinstance(inner, list) and inner and isinstance(inner[0], dict):
                yield from keys(inner[0], f"{prefix}{name}[].")

    found = {re.sub(r"\.\*\.", ".", name) for name in keys(done[2])}
    assert found - {"quality"} == described - {name for name in described if name.startswith("quality")}


@pytest.mark.slow
def test_stdout_is_the_table_and_the_conclusions_and_so_is_the_file(done):
    ended, report, document = done
    table = report.with_suffix(".md").read_text()
    assert ended.out == table
    assert re.search(r"\| manual( \*)? \| cpu \| bfloat16 \|", table)  # marked where this machine is busy
    assert re.search(r"\| llamacpp( \*)? \| cpu \| q4_1 \|", table)
    assert document["conclusions"]
    assert all(f"- {sentence}" in table for sentence in document["conclusions"])
    nothing = document["conclusions"][0].startswith("No conclusion")  # a busy machine
    assert nothing or "MPS against CPU stays open here" in table or document["without_mps"] is None


@pytest.mark.container
@pytest.mark.slow
def test_the_picture_is_a_png_of_a_readable_size(done):
    content = done[1].with_suffix(".png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width > 1200
    assert height > 500


@pytest.mark.slow
def test_a_report_that_is_compared_with_itself_is_the_same(done, script):
    ended = script("compare", "--a", str(done[1]), "--b", str(done[1]))
    assert ended.status == 0
    assert "too few runs" in ended.err


# --- The plan ---------------------------------------------------------------------------------------------------------


def test_the_usual_plan_has_all_methods_and_the_shipped_file(kit_copy, monkeypatch):
    # It writes the files that are missing, so into a folder of its own.
    monkeypatch.setattr(paths, "MODELS", kit_copy / "models")
    found = bench_plan.make(registry.find("starter"), ["pipeline", "manual", "llamacpp"], ["cpu"], [], [], 5)
    names = [(one.method, one.number_format) for one in found.combinations]
    assert names == [
        *(("pipeline", "bfloat16"), ("manual", "bfloat16")),
        *(("llamacpp", "q4_1"), ("llamacpp", "bf16"), ("llamacpp", "q4_0")),
    ]


def test_every_method_device_and_format_is_combined_once(starter):
    found = plan(starter, methods="pipeline,manual", devices="cpu,auto,cpu", dtypes="float32,auto,bfloat16")
    assert [(one.method, one.dtype) for one in found.combinations] == [
        *(("pipeline", "float32"), ("pipeline", "bfloat16")),
        *(("manual", "float32"), ("manual", "bfloat16")),
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"methods": "manual,magic"}, "METHODS: magic is unknown. Valid: pipeline, manual, llamacpp"),
        ({"methods": ""}, "METHODS is empty"),
        ({"devices": "cpu,tpu"}, "DEVICES: tpu is unknown. Valid: auto, cpu, mps"),
        ({"devices": "cuda"}, "CPU builds of torch only"),
        ({"devices": ""}, "DEVICES is empty"),
        ({"dtypes": "int4"}, "DTYPES: int4 is unknown"),
        ({"quants": "q5_k"}, "QUANTS: q5_k is unknown. Valid: auto, bf16, q8_0, q4_0, q4_1"),
        ({"methods": "llamacpp", "dtypes": "float32"}, "DTYPES=float32 is for pipeline and manual"),
        ({"methods": "manual", "quants": "bf16"}, "QUANTS=bf16 is for llamacpp"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_first_run(options, says, starter):
    with pytest.raises(WrongUsage, match=re.escape(says)):
        plan(starter, **options)


def test_an_unknown_quant_behind_a_known_one_is_refused_before_a_file_is_written(starter, monkeypatch):
    monkeypatch.setattr(gguf_files, "ensure", lambda *_: pytest.fail("it began to write"))
    with pytest.raises(WrongUsage, match="QUANTS: q5_k is unknown"):
        plan(starter, methods="llamacpp", quants="q8_0,q5_k")


@pytest.mark.slow
def test_what_dotenv_says_of_a_run_decides_nothing_in_a_bench(starter, run_verb, tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("PROMPT_FILE=/nowhere.txt\nJSON=0\nMETHOD=manual\nSEED=3\n")
    (tmp_path / ".env").chmod(0o600)
    monkeypatch.setenv("KIT_DOTENV", str(tmp_path / ".env"))
    (row,) = experiment.run(plan(starter, methods="llamacpp"), run_verb).rows
    assert row.failure is None
    assert len(row.runs) == 1


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (KeyboardInterrupt(), "the quality was not measured to its end"),
        (KitError("it does not fit"), "it does not fit"),
    ],
)
def test_times_are_written_down_when_the_quality_cannot_be_measured(
    starter, run_verb, trouble, says, monkeypatch, tmp_path
):
    from scripts import bench as verb

    def measure(bench, progress):
        raise trouble

    written = []
    monkeypatch.setattr(verb.bench_quality, "measure", measure)
    monkeypatch.setattr(verb, "show", lambda done, as_json: written.append(done))
    options = ["--methods=llamacpp", "--quants=auto", "--runs=1", "--tokens=2", "--quality"]
    with pytest.raises(KitError, match=says):
        verb.bench.main(options, standalone_mode=False)
    assert [len(row.runs) for row in written[0].rows] == [1]


def test_mps_by_name_is_refused_where_it_cannot_run_and_auto_says_why_it_is_not_there(starter, script, monkeypatch):
    from kit.environment import machine

    monkeypatch.setattr(machine, "this", lambda: machine.Machine("Linux", "x86_64"))
    with pytest.raises(KitError, match="DEVICE=mps cannot run here"):
        plan(starter, devices="mps")
    assert plan(starter).without_mps == "MPS is the GPU of Apple Silicon, and this is Linux x86_64"


def test_with_mps_there_is_a_row_on_each_device(starter, monkeypatch):
    """Up to the boundary of the GPU: what is asked of each process."""
    from kit.engines import devices

    monkeypatch.setattr(devices, "mps_obstacle", lambda here, look: None)
    found = plan(starter)
    assert [(one.method, one.device) for one in found.combinations] == [
        *(("manual", "cpu"), ("manual", "mps"), ("llamacpp", "cpu"), ("llamacpp", "mps"))
    ]
    assert found.without_mps == ""


def test_a_wrong_number_of_runs_is_wrong_usage(script):
    for runs in ("0", "-1", "many"):
        assert script("bench", "--runs", runs).status == 2


def test_quality_of_random_weights_is_refused(script):
    ended = script("bench", "--model", "llama-3.2-1b-shape", "--quality")
    assert ended.status == 2
    assert "have no quality" in ended.err


def test_bytes_of_a_token_count_every_weight_once(starter):
    assert ManualEngine(starter, "cpu", "float32").bytes_per_token() == 2 * 269_030_016
    # 3,432 bytes of the file are its header's; an embedding that is not the head is read a row a token.
    assert LlamacppEngine(starter, "cpu").bytes_per_token() == 96_576_768


# --- What goes wrong --------------------------------------------------------------------------------------------------


def test_a_combination_that_fails_is_named_and_the_others_go_on(starter, run_verb, tmp_path):
    """The stand-in for a machine that is too small: a verb that fails for one method."""
    verb = tmp_path / "verb.py"
    verb.write_text(
        "import os, sys\n"
        "if '--method=llamacpp' in sys.argv: sys.exit('error: it does not fit')\n"
        f"os.execv(sys.executable, {run_verb} + sys.argv[1:])\n"
    )
    found = experiment.run(plan(starter), [sys.executable, str(verb)])
    manual, llamacpp = found.rows
    assert len(manual.runs) == 1
    assert llamacpp.runs == []
    assert llamacpp.failure == "it does not fit"


def test_a_run_that_was_killed_says_so(starter):
    with pytest.raises(KitError, match="it was killed, most likely because it needed more memory"):
        experiment.run_once(["sh", "-c", "kill -9 $$"], plan(starter), plan(starter).combinations[0])


def test_another_device_than_asked_for_is_no_measurement(starter):
    asked = plan(starter, methods="llamacpp")
    other = Combination("llamacpp", "mps", None, "q4_1", 1)
    said = {"method": "llamacpp", "device": "cpu", "dtype": None, "quant": "q4_1", "new_tokens": 4}
    with pytest.raises(KitError, match="llamacpp on mps in q4_1 was asked for, and llamacpp on cpu in q4_1 ran"):
        experiment._read(said, asked, other, 1.0, 1)


def test_ctrl_c_keeps_what_was_measured(starter, run_verb):
    def press(what: str, done: int, total: int) -> None:
        if what.startswith("turn 2"):
            raise KeyboardInterrupt

    found = experiment.run(plan(starter, methods="llamacpp", turns=9), run_verb, press)
    assert [len(each.runs) for each in found.rows] == [1]
    assert found.interrupted
    assert found.runs_done == 1


def test_ctrl_c_before_anything_was_measured_ends_the_verb(starter, run_verb):
    def press(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment.run(plan(starter, methods="llamacpp"), run_verb, press)


@pytest.mark.slow
def test_reports_that_cannot_be_written_say_so(done, tmp_path, monkeypatch):
    from kit import paths, reports

    monkeypatch.setattr(paths, "REPORTS", tmp_path / "file" / "reports")
    (tmp_path / "file").write_text("")
    with pytest.raises(KitError, match="could not be written: Not a directory"):
        reports.write("bench", done[2])


def test_the_bench_of_a_model_that_is_not_here_names_the_next_command(models):
    with pytest.raises(KitError, match="is not here yet"):
        plan(registry.find("smollm2-135m"))
