"""`make docker-run` on a real engine: the same answers, output and statuses as natively, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kit.paths import ROOT
from kit.tune import evaluate
from tests.conftest import clean_environment, own_file, run_command
from tests.docker_kit import compose, containers, docker, image, tidy_engine, verb
from tests.test_run import KEYS

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def engine():
    with tidy_engine():
        yield


@pytest.mark.parametrize("method", ["pipeline", "manual"])
def test_greedy_decoding_in_float32_gives_the_same_tokens_natively_and_in_the_container(script, method):
    settings = {"METHOD": method, "DTYPE": "float32", "DEVICE": "cpu", "JSON": "1", "MAX_NEW_TOKENS": "40"}
    native = script("run", env=settings)
    contained = verb("run", **settings)
    assert contained.status == 0, contained.err
    here, there = json.loads(native.out), json.loads(contained.out)
    assert there["token_ids"] == here["token_ids"]
    assert len(there["token_ids"]) == 40
    assert list(there) == KEYS
    assert {name: there["versions"][name] for name in ("torch", "transformers")} == {
        name: here["versions"][name] for name in ("torch", "transformers")
    }


def test_llamacpp_gives_the_same_tokens_natively_and_in_the_container(script):
    settings = {"METHOD": "llamacpp", "DEVICE": "cpu", "JSON": "1", "MAX_NEW_TOKENS": "40"}
    native, contained = script("run", env=settings), verb("run", **settings)
    assert contained.status == 0, contained.err
    here, there = json.loads(native.out), json.loads(contained.out)
    assert (there["token_ids"], there["quant"]) == (here["token_ids"], "q4_1")


def test_stdout_is_the_completion_and_nothing_else(make):
    settings = {"MAX_NEW_TOKENS": "8", "DTYPE": "float32"}
    native, contained = make("run", env=settings), make("docker-run", env=settings)
    assert contained.out == native.out
    assert "peak memory" in contained.err


PROMPTS = [
    'a "quoted" $HOME $(id) `id` #comment \\ back',
    "two\nlines\n",
    "-leads with a dash",
    "ünïcode 你好 🎉",
    "it's 100% {{fine}} ${PATH}",
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_arrives_letter_for_letter(make, prompt, tmp_path):
    done = make("docker-run", "JSON=1", "MAX_NEW_TOKENS=1", "METHOD=llamacpp", env={"PROMPT": prompt})
    assert json.loads(done.out)["prompt"] == prompt


def test_a_prompt_from_a_file_of_this_machine_and_from_standard_input(tmp_path):
    path = tmp_path / "a prompt.txt"
    path.write_text("Water boils at\n\n", encoding="utf-8")
    settings = {"JSON": "1", "MAX_NEW_TOKENS": "1", "METHOD": "llamacpp"}
    by_file = verb("run", PROMPT_FILE=str(path), **settings)
    assert json.loads(by_file.out)["prompt"] == "Water boils at\n\n"
    by_stdin = verb("run", stdin="From standard input", PROMPT_FILE="-", **settings)
    assert json.loads(by_stdin.out)["prompt"] == "From standard input"


def test_a_run_without_a_prompt_file_leaves_standard_input_to_its_caller():
    program = 'sh env/docker.sh run >/dev/null 2>&1; read line; echo "$line"'
    settings = {"MAX_NEW_TOKENS": "1", "METHOD": "llamacpp"}
    done = run_command(["sh", "-c", program], env=settings, stdin="for the next one\n")
    assert done.out == "for the next one\n"


TYPED = {"KIT_TYPED": "FROM"}
WRONG = [
    ({"MODEL": "gpt"}, 2, "there is no model 'gpt'", "make docker-run MODEL=starter"),
    ({"MODEL": "llama-3.2-1b"}, 1, "is not here yet (2.48 GB)", "make docker-download MODEL=llama-3.2-1b"),
    ({"PROMPT": ""}, 2, "the prompt is empty", "make docker-run PROMPT="),
    ({"PROMPT_FILE": "/nowhere"}, 2, "PROMPT_FILE=/nowhere cannot be read", "make docker-run PROMPT_FILE="),
    ({"MAX_NEW_TOKENS": "0"}, 2, "is not in the range", "--help"),
    ({"DEVICE": "cuda"}, 2, "CPU builds of torch only", "make docker-run DEVICE=cpu"),
    ({"DEVICE": "mps"}, 1, "no container reaches Apple's GPU", "on the Mac itself: make run DEVICE=mps"),
    (TYPED | {"FROM": "/etc/passwd"}, 2, "out of the container's sight", "make docker-run FROM=reports/passwd"),
    (TYPED | {"FROM": "reports/nowhere"}, 2, "reports/nowhere cannot be read", "ls reports/"),
    ({"MEMORY": "abc"}, 2, "MEMORY=abc is no size", "make docker-run MEMORY=6g"),
    ({"MEMORY": "8"}, 2, "MEMORY=8 is no size", "make docker-run MEMORY=6g"),
    ({"MEMORY": "600m"}, 1, "needs 0.72 GB of memory, and this container has 0.63 GB", "make docker-run MEMORY=1g"),
]


@pytest.mark.parametrize(("settings", "status", "says", "following"), WRONG, ids=lambda value: str(value)[:30])
def test_wrong_input_has_the_exit_status_and_the_words_of_the_native_verb(settings, status, says, following):
    done = verb("run", **settings)
    assert done.status == status, done.err
    assert done.out == ""
    assert says in done.err
    assert following in done.err
    assert "Traceback" not in done.err


def test_a_model_that_outgrows_the_memory_limit_is_killed_and_that_is_explained():
    """A long prompt: its attention takes more than the weights, which is seen only while it runs."""
    done = verb("run", stdin="word " * 7000, PROMPT_FILE="-", MEMORY="1g", MAX_NEW_TOKENS="1", DTYPE="float32")
    assert done.status == 1
    assert "error: the container was killed (exit 137), most likely because starter needed more memory" in done.err
    assert "MEMORY=1g" in done.err
    assert "make docker-run MEMORY=4g" in done.err
    assert "MODEL=starter" not in done.err


def test_a_verification_that_outgrows_the_memory_limit_is_not_told_to_shorten_its_prompt():
    done = verb("verify", MEMORY="600m", DTYPE="float32")
    assert done.status == 1
    assert "error: the container was killed (exit 137)" in done.err
    assert "next: where the machine has it: make docker-verify MEMORY=2g" in done.err


def test_ctrl_c_ends_a_run_at_once_and_leaves_no_container():
    before = containers()
    run = subprocess.Popen(
        ["make", "-s", "docker-run", "MAX_NEW_TOKENS=4000"],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert run.stdout
    run.stdout.read(20)  # it is generating
    started = time.monotonic()
    os.killpg(run.pid, signal.SIGINT)
    run.communicate(timeout=60)
    assert time.monotonic() - started < 60  # 4,000 tokens take longer
    assert run.returncode != 0
    assert gone(before)


def test_dotenv_is_read_as_natively(kit_copy):
    example = (kit_copy / ".env.example").read_text().replace("MODEL=llama-3.2-1b", "MODEL=starter")
    assert "\n\n" in example
    (kit_copy / ".env").write_text(
        f"{example}\nHF_TOKEN=hf_x\nMETHOD=manual\nSEED=3\nPROMPT=a = from the file\nDTYPE=\n"
    )
    (kit_copy / ".env").chmod(0o600)
    settings = {"JSON": "1", "MAX_NEW_TOKENS": "1"}
    by_file = json.loads(verb("run", cwd=kit_copy, **settings).out)
    assert (by_file["method"], by_file["seed"], by_file["prompt"]) == ("manual", 3, "a = from the file")
    by_environment = json.loads(verb("run", cwd=kit_copy, **settings, METHOD="pipeline", SEED="4").out)
    assert (by_environment["method"], by_environment["seed"]) == ("pipeline", 4)
    prompt = kit_copy / "prompt.txt"
    prompt.write_text("from a file of its own")
    assert (
        json.loads(verb("run", cwd=kit_copy, **settings, PROMPT_FILE=str(prompt)).out)["prompt"] == prompt.read_text()
    )


def test_a_prompt_in_dotenv_that_is_longer_than_an_argument_may_be(kit_copy):
    prompt = " ".join(["word"] * 28_600)
    assert len(prompt) > 131_072  # Linux's MAX_ARG_STRLEN
    (kit_copy / ".env").write_text(f"PROMPT={prompt}\n")
    (kit_copy / ".env").chmod(0o600)
    done = verb("run", cwd=kit_copy)
    assert done.status == 2
    assert "the prompt is 28600 tokens long" in done.err
    assert not list(kit_copy.glob(".docker.*"))


@pytest.mark.parametrize(
    "line", ['MODEL="starter"', "export MODEL=starter", "MODEL = starter", "MODEL=starter # mine", "MODEL=starter\r"]
)
def test_a_dotenv_that_its_readers_read_differently_is_refused_by_its_line(kit_copy, line):
    (kit_copy / ".env").write_bytes(f"# a comment with 'quotes'\n{line}\n".encode())
    done = verb("run", cwd=kit_copy)
    assert done.status == 1
    assert "error: .env has what its readers read differently:\n  line 2: " in done.err


INSIDE = """
import os, sys
status = open("/proc/self/status").read()
facts = dict(line.split(":\\t", 1) for line in status.splitlines() if ":\\t" in line)
print(facts["CapEff"], facts["CapBnd"], facts["NoNewPrivs"])
print(sorted(os.listdir("/sys/class/net")))
for path in ("/kit/x", "/kit/models/x", "/etc/x", "/usr/x"):
    try:
        open(path, "w")
        print(path, "written")
    except OSError as error:
        print(path, error.strerror)
open("/tmp/x", "w").write("scratch")
print(os.getuid(), os.getgid())
print("HF_TOKEN" in os.environ, os.path.exists("/kit/.env"))
print(open("/proc/1/comm").read().strip())
"""


def test_a_run_has_no_network_no_token_no_privilege_and_nothing_to_write_to():
    done = compose(
        *("run", "--rm", "-T", "--entrypoint", ".venv/bin/python", "run", "-c", INSIDE), HF_TOKEN="hf_" + "a" * 34
    )
    assert done.status == 0, done.err
    privileges, network, *writes, caller, secrets, first = done.out.splitlines()
    assert privileges == "0000000000000000 0000000000000000 1"
    assert network == "['lo']"
    assert writes == [f"{path} Read-only file system" for path in ("/kit/x", "/kit/models/x", "/etc/x", "/usr/x")]
    assert caller == f"{os.getuid()} {os.getgid()}"
    assert secrets == "False False"
    assert "init" in first


def test_by_hand_as_the_page_shows_it():
    section = (ROOT / "docs" / "container.md").read_text(encoding="utf-8")
    _, block, _ = section[section.index("By hand") :].split("```", 2)
    lines = block.removeprefix("sh\n").strip().splitlines()
    assert any(line.startswith("docker compose run") for line in lines)
    done = run_command(["sh", "-ec", "\n".join(lines)], timeout=600)
    assert done.status == 0, done.err
    native = run_command(["make", "-s", "run", "DEVICE=cpu"])
    assert done.out.endswith(native.out)


def gone(before: set[str]) -> bool:
    """Whether the kit's containers end soon: in a second, and on a busy machine in more."""
    for _ in range(300):
        if containers() <= before:
            return True
        time.sleep(0.1)
    return False


def test_a_reader_that_goes_away_ends_the_run_and_is_no_error():
    before = containers()
    program = 'sh env/docker.sh run | head -c 1; echo " ${PIPESTATUS[0]}"'
    started = time.monotonic()
    done = run_command(["bash", "-c", program], env={"MAX_NEW_TOKENS": "4000"})
    assert done.out == '" 0\n'
    assert "broken pipe" not in done.err.lower()
    assert gone(before)
    assert time.monotonic() - started < 60  # 4,000 tokens take longer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_caller_that_is_ended_takes_its_container_with_it(number):
    before = containers()
    run = subprocess.Popen(
        ["sh", "env/docker.sh", "run"],
        cwd=ROOT,
        env=clean_environment() | {"MAX_NEW_TOKENS": "4000"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # A shell cannot trap what whoever started the tests (nohup) had it ignore.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert run.stdout
    run.stdout.read(20)
    run.send_signal(number)
    run.communicate(timeout=60)
    assert run.returncode == 128 + number
    assert gone(before)


def test_a_full_disk_behind_the_output_is_an_error():
    done = run_command(["sh", "-c", "sh env/docker.sh run >/dev/full"])
    assert done.status == 1
    assert "No space left" in done.err


def test_a_model_that_was_copied_runs_from_the_read_only_mount(kit_copy):
    """Other times than its stamp says: it is hashed, and the new stamp cannot be written."""
    for path in (kit_copy / "models" / "starter").iterdir():
        os.utime(own_file(path), ns=(1, 1))
    os.utime(kit_copy / "env" / "models.toml", ns=(0, 0))
    done = verb("run", cwd=kit_copy, MAX_NEW_TOKENS="1")
    assert done.status == 0, done.err


def test_a_prompt_file_that_is_not_text_is_named_as_it_was_typed(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    done = verb("run", PROMPT_FILE=str(tmp_path / "bad.txt"))
    assert done.status == 2
    assert f"PROMPT_FILE={tmp_path}/bad.txt is not UTF-8 text (byte 3)" in done.err


def test_two_runs_at_once():
    runs = [
        subprocess.Popen(
            ["sh", "env/docker.sh", "run"],
            cwd=ROOT,
            env=clean_environment() | {"MAX_NEW_TOKENS": "3", "SEED": str(seed)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    said = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert said[0][0] == said[1][0] != ""


def test_the_container_is_verified_against_the_same_reference(kit_copy):
    """With the manifest in the caller's reports/, and the commit that the image was built from."""
    done = verb("verify", cwd=kit_copy, DTYPE="float32")
    assert done.status == 0, done.err + done.out
    assert "verified: starter on cpu in float32" in done.out
    (manifest,) = (kit_copy / "reports").glob("manifest-*.json")
    assert manifest.stat().st_uid == os.getuid()
    facts = json.loads(manifest.read_text())["facts"]
    assert facts["os"]["container"] is True
    assert facts["python"]["version"].startswith("3.11.")
    assert "pytest" not in facts["packages"]


def test_the_containers_facts_name_the_commit(tmp_path):
    commit = run_command(["git", "rev-parse", "HEAD"]).out.strip()
    image()  # what is `latest` after runs of other copies
    program = "from kit.environment import facts; print(facts.commit())"
    done = compose("run", "--rm", "-T", "--entrypoint", ".venv/bin/python", "run", "-c", program)
    assert done.out.startswith(commit)


def test_a_gguf_is_written_before_the_run_that_only_reads_and_again_where_it_was_altered(kit_copy):
    settings = {"METHOD": "llamacpp", "QUANT": "q8_0", "JSON": "1", "MAX_NEW_TOKENS": "4"}
    path = kit_copy / "models" / "starter" / "starter-q8_0.gguf"
    first = verb("run", cwd=kit_copy, **settings)
    assert first.status == 0, first.err
    assert "writing starter-q8_0.gguf" in first.err
    assert json.loads(first.out)["quant"] == "q8_0"
    assert path.stat().st_uid == os.getuid()
    again = verb("run", cwd=kit_copy, **settings)
    assert "writing starter-q8_0.gguf" not in again.err
    with path.open("r+b") as file:
        file.seek(100_000_000)
        file.write(b"x" * 100)
    mended = verb("run", cwd=kit_copy, **settings)
    assert "writing starter-q8_0.gguf" in mended.err
    answers = [json.loads(done.out)["token_ids"] for done in (first, again, mended)]
    assert answers[0] == answers[1] == answers[2]


def test_an_unknown_quant_in_the_container_is_refused_with_the_valid_ones():
    done = verb("run", METHOD="llamacpp", QUANT="q5_k")
    assert done.status == 2
    assert "QUANT=q5_k is unknown. Valid: auto, bf16, q8_0, q4_0, q4_1." in done.err
    assert "next: make docker-run METHOD=llamacpp" in done.err


def test_a_run_that_was_written_down_is_repeated_in_the_container_and_natively(kit_copy, script):
    asked = {"METHOD": "manual", "DTYPE": "float32", "MAX_NEW_TOKENS": "5"}
    done = run_command(["make", "-s", "docker-run", "RECORD=1"], cwd=kit_copy, env=asked)
    assert done.status == 0, done.err
    (report,) = (kit_copy / "reports").glob("run-*.json")
    assert report.stat().st_uid == os.getuid()
    again = {"FROM": f"reports/{report.name}", "KIT_TYPED": "FROM"}
    assert f"make docker-run FROM={again['FROM']} repeats it" in done.err
    (kit_copy / ".env").write_text("METHOD=llamacpp\nMODEL=llama-3.2-1b\n")  # does not count beside FROM
    (kit_copy / ".env").chmod(0o600)
    contained = verb("run", cwd=kit_copy, **again)
    native = script("run", cwd=kit_copy, env=again)
    assert contained.status == native.status == 0, contained.err + native.err
    assert contained.out == native.out == done.out
    assert "the same 5 tokens as in the record" in contained.err


def test_a_reference_is_recorded_by_the_native_verb_alone(make):
    done = make("docker-verify", "RECORD=1")
    assert "RECORD is for the native verb" in done.err
    assert "next: on the machine itself: make verify MODEL=starter RECORD=1" in done.err


def test_no_service_has_more_than_it_needs():
    """What the file says of each; that the engine does so, the test of a run's inside shows."""
    done = compose("config", "--format", "json")
    assert done.status == 0, done.err
    services = json.loads(done.out)["services"]
    assert {"run", "verify", "download", "test"} <= set(services)
    writers = {"download", "prepare", "tune"}
    for name, service in services.items():
        assert (service["read_only"], service["init"]) == (True, True), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["user"] == f"{os.getuid()}:{os.getgid()}", name
        assert service["mem_limit"] == service["memswap_limit"] != "0", name
        assert service["network_mode"] == ("bridge" if name in ("download", "serve") else "none"), name
        assert "HF_TOKEN" not in (service.get("environment") or {}), name
        (models,) = (volume for volume in service["volumes"] if volume["target"] == "/kit/models")
        assert models.get("read_only", False) == (name not in writers), name


CLOSED = [
    ("run >&-", "", 1, "the output could not be written: standard output is closed"),
    ("run <&-", "-", 2, "the prompt is empty"),
    ("run 2>&-", "", 0, ""),
]


@pytest.mark.parametrize(("words", "prompt_file", "status", "says"), CLOSED)
def test_a_closed_stream_is_named_or_does_no_harm(words, prompt_file, status, says):
    settings = {"METHOD": "llamacpp", "MAX_NEW_TOKENS": "1", "PROMPT_FILE": prompt_file}
    done = run_command(["sh", "-c", f"sh env/docker.sh {words}"], env=settings)
    assert done.status == status, done.err
    assert says in done.err
    assert "I/O error" not in done.err
    assert "Bad file descriptor" not in done.err
    assert done.out == ('"' + "\n" if status == 0 else "")


def test_a_bench_writes_what_it_needs_and_its_reports_as_the_caller(kit_copy):
    done = verb("bench", cwd=kit_copy, METHODS="llamacpp", QUANTS="q4_0", RUNS="1")
    assert done.status == 0, done.err
    assert re.search(r"\| llamacpp( \*)? \| cpu \| q4_0 \|", done.out)  # marked where this machine is busy
    assert (kit_copy / "models" / "starter" / "starter-q4_0.gguf").stat().st_uid == os.getuid()
    reports = sorted((kit_copy / "reports").glob("bench-*"))
    assert [path.suffix for path in reports] == [".json", ".md", ".png"]
    assert {path.stat().st_uid for path in reports} == {os.getuid()}
    assert json.loads(reports[0].read_text())["facts"]["os"]["container"] is True


def test_a_bench_on_mps_is_refused_with_the_native_command():
    for devices in ("mps", "cpu,mps"):
        done = verb("bench", DEVICES=devices)
        assert done.status == 1
        assert "no container reaches Apple's GPU" in done.err
        assert f"make bench DEVICES={devices}" in done.err


def test_a_variable_that_is_one_row_and_its_use_counts_in_the_container_too(kit_copy):
    """Typed, in the environment and in .env: what tests/test_variables.py shows natively."""
    table, run = kit_copy / "env" / "variables.txt", kit_copy / "scripts" / "run.py"
    row = "SHOUT | flag | - | run | dotenv container | #SHOUT=0 | 1: the prompt in capitals.\n"
    table.write_text(table.read_text().replace("MODEL ", row + "MODEL ", 1))
    text = run.read_text().replace("    ignore_eos: bool,\n", "    ignore_eos: bool,\n    shout: bool,\n", 1)
    asked = "text = read_prompt(prompt, prompt_file)\n"
    run.write_text(text.replace(asked, asked + "        text = text.upper() if shout else text\n"))
    assert run_command([sys.executable, "-m", "scripts.variables"], cwd=kit_copy).status == 0
    settings = {"METHOD": "llamacpp", "PROMPT": "one two", "MAX_NEW_TOKENS": "1"}
    assert "> ONE TWO" in verb("run", cwd=kit_copy, SHOUT="1", **settings).err
    (kit_copy / ".env").write_text("SHOUT=1\nRUNS=3\n")
    (kit_copy / ".env").chmod(0o600)
    by_file = verb("run", cwd=kit_copy, **settings)
    assert "> ONE TWO" in by_file.err
    assert "warning: .env sets RUNS, which nothing here reads" in by_file.err


def test_the_token_of_dotenv_is_in_no_container_but_that_of_a_download(kit_copy):
    """The container reads .env itself: all of it but the token."""
    token = "hf_" + "MARKED" * 5 + "Test"
    (kit_copy / ".env").write_text(f"HF_TOKEN={token}\nSEED=3\nMODEL=starter\n")
    (kit_copy / ".env").chmod(0o600)
    stub = "import json, os; print(json.dumps([open('.env').read(), dict(os.environ)]))"
    (kit_copy / "scripts" / "run.py").write_text(stub)
    done = verb("run", cwd=kit_copy, METHOD="llamacpp")
    assert done.status == 0, done.err
    dotenv, environment = json.loads(done.out)
    assert "SEED=3" in dotenv
    assert token not in done.out
    assert "HF_TOKEN" not in environment
    assert [path for path in kit_copy.iterdir() if path.name.startswith(".docker.")] == []


def test_a_text_of_this_machine_is_tuned_on_in_the_container_and_the_model_runs_in_both(make, tmp_path):
    path = tmp_path / "my notes.txt"
    path.write_text("\n\n".join(evaluate.TEXT.read_text(encoding="utf-8").split("\n\n")[:8]))
    place = ROOT / "models" / "boxed-by-a-test"
    try:
        done = make("docker-tune", f"DATA={path}", f"NAME={place.name}", "EPOCHS=1", "CONTEXT=24", timeout=900)
        assert done.status == 0, done.err
        assert "tokens of my notes.txt" in done.err
        assert {path.stat().st_uid for path in place.iterdir()} == {os.getuid()}
        words = (f"MODEL={place.name}", "METHOD=llamacpp", "MAX_NEW_TOKENS=8")
        contained, native = make("docker-run", *words), make("run", *words)
        assert contained.status == 0, contained.err
        assert contained.out == native.out
        again = make("docker-tune", f"DATA={path}", f"NAME={place.name}", "EPOCHS=2", "CONTEXT=24")
        assert again.status != 0
        assert "is taken, by a tuning with EPOCHS=1" in again.err
        assert f"make docker-tune NAME={place.name}-2" in again.err
    finally:
        shutil.rmtree(place, ignore_errors=True)
    missing = make("docker-tune", "DATA=none.txt")
    assert "DATA=none.txt cannot be read." in missing.err


def test_a_batch_of_the_container_goes_on_natively(make, tmp_path):
    source, target = tmp_path / "my prompts.txt", tmp_path / "out" / "answers.jsonl"
    target.parent.mkdir()
    source.write_text("The capital of France is\nOnce upon a time\nTwo and two")
    words = (f"IN={source}", f"OUT={target}", "METHOD=llamacpp", "MAX_NEW_TOKENS=4")
    done = make("docker-batch", *words)
    assert done.status == 0, done.err
    assert "3 of 3 prompts answered, 12 tokens" in done.err
    assert target.stat().st_uid == os.getuid()
    whole = target.read_text().splitlines()
    assert json.loads(whole[0])["response"]["body"]["choices"][0]["text"] == " Paris.\n\n"
    target.write_text("\n".join(whole[:2]) + "\n" + whole[2][:50])
    again = make("batch", *words)
    assert again.status == 0, again.err
    assert "3 of 3 prompts answered, 2 of them before" in again.err
    ids = [[json.loads(line)["id"] for line in lines] for lines in (whole, target.read_text().splitlines())]
    assert ids[0] == ids[1]
    missing = make("docker-batch", "IN=none.txt", f"OUT={target}")
    assert missing.status == 2
    assert "IN=none.txt cannot be read." in missing.err
    mixed = make("docker-batch", *words[:3], "MAX_NEW_TOKENS=5")
    assert mixed.status == 2
    assert f"OUT={target} is not written to" in mixed.err
    assert f"make docker-batch IN='{source}' OUT={target.with_name('answers-2.jsonl')}" in mixed.err


def test_a_model_is_served_on_this_machine_alone_and_goes_with_its_container(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["make", "-s", "docker-serve", f"PORT={port}", "CONTEXT=256"]
    asked = clean_environment() | {"HF_TOKEN": "hf_" + "x" * 20}
    process = subprocess.Popen(command, cwd=ROOT, env=asked, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    try:
        page, curl, _ = (process.stdout.readline() for _ in range(3))
        assert page.startswith(f"http://127.0.0.1:{port}/#key=")
        done = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["choices"][0]["text"].startswith(" Paris.")
        (name,) = [one for one in docker("ps", "--format", "{{.Names}}").split() if "-serve-" in one]
        assert docker("port", name).split() == [f"{port}/tcp", "->", f"127.0.0.1:{port}"]
        assert "HF_TOKEN" not in docker("inspect", "--format", "{{.Config.Env}}", name)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert name not in docker("ps", "-a", "--format", "{{.Names}}")
    header = re.search(r"@(\S+)/\.serve-", curl)
    assert header
    assert not Path(header[1]).exists()


def test_a_container_is_not_served_to_a_room(make):
    done = make("docker-serve", "LISTEN=0.0.0.0")
    assert done.status != 0
    assert "published on 127.0.0.1 alone" in done.err
    assert "make serve LISTEN=0.0.0.0" in done.err
