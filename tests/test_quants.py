"""`make gguf`: which file a QUANT is, and a file that is whole or not there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from kit import paths
from kit.engines import generate
from kit.engines.request import Request
from kit.errors import KitError, WrongUsage
from kit.files import sha256
from kit.models import gguf_files, registry
from tests import answers
from tests.conftest import Done, own_file, run_command


@pytest.fixture
def own(kit_copy, monkeypatch):
    """The starter in files of the test's own."""
    monkeypatch.setattr(paths, "MODELS", kit_copy / "models")
    return registry.find("starter")


def leftovers(model) -> list[str]:
    return [path.name for path in model.folder.iterdir() if "partial" in path.name]


def test_auto_is_the_file_as_shipped_and_else_bf16(starter):
    assert gguf_files.choose(starter, "auto").name == "q4_1"
    other = gguf_files.choose(registry.find("llama-3.2-1b"), "auto")
    assert (other.name, other.path.name) == ("bf16", "llama-3.2-1b-bf16.gguf")
    assert "no GGUF is shipped" in other.reason


def test_an_unknown_quant_is_refused_with_the_valid_ones(starter):
    with pytest.raises(WrongUsage, match="Valid: auto, bf16, q8_0, q4_0, q4_1"):
        gguf_files.choose(starter, "q5_k")
    with pytest.raises(WrongUsage, match=r"Valid: auto, bf16, q8_0, q4_0\.$"):
        gguf_files.choose(registry.find("llama-3.2-1b"), "q4_1")


@pytest.mark.container
def test_make_gguf_says_where_the_file_is_and_its_sha256_and_writes_it_once(own, kit_copy, script):
    done = script("gguf", "--quant", "bf16", cwd=kit_copy)
    path = own.folder / "starter-bf16.gguf"
    assert (done.status, done.out) == (0, "")
    assert "models/starter/starter-bf16.gguf: bf16, 0.27 GB, written in" in done.err
    assert f"sha256 {sha256(path)}" in done.err
    assert "make run METHOD=llamacpp MODEL=starter QUANT=bf16" in done.err
    before = path.stat().st_mtime_ns
    assert "was here already" in script("gguf", "--quant", "bf16", cwd=kit_copy).err
    assert path.stat().st_mtime_ns == before
    assert "starter-q4_1.gguf: q4_1, 0.10 GB, as shipped" in script("gguf", cwd=kit_copy).err


def test_a_run_writes_the_file_that_is_missing_and_its_time_is_not_the_runs(own):
    said = []
    completion = generate.complete(
        Request(own, "One, two, three,", "llamacpp", quant="bf16", max_new_tokens=4),
        on_progress=lambda what, share: said.append(what),
    )
    assert said[0] == "writing starter-bf16.gguf"
    assert (completion.quant, completion.new_tokens) == ("bf16", 4)
    assert completion.import_s < 0.5
    assert leftovers(own) == []


@pytest.mark.parametrize("wrong", [{"prompt": ""}, {"max_new_tokens": 9000}], ids=["empty prompt", "too long"])
def test_a_wrong_request_writes_nothing(wrong, own):
    with pytest.raises(WrongUsage):
        generate.complete(Request(own, **{"prompt": "One", "method": "llamacpp", "quant": "q8_0", **wrong}))
    assert not (own.folder / "starter-q8_0.gguf").exists()


@pytest.mark.slow
def test_the_bf16_file_answers_as_manual_does(own):
    """The same bits in both; they round what they multiply in other ways: the same tokens where they are sure."""
    requests = [
        Request(own, answers.PROMPT, "llamacpp", quant="bf16", max_new_tokens=answers.TOKENS),
        Request(own, answers.PROMPT, "manual", dtype="bfloat16", max_new_tokens=answers.TOKENS),
    ]
    ids = [generate.complete(request).token_ids for request in requests]
    assert ids[0] == ids[1]


@pytest.mark.slow
def test_an_altered_file_is_written_anew(own):
    quant = gguf_files.choose(own, "bf16")
    gguf_files.ensure(own, quant)
    digest = sha256(quant.path)
    with quant.path.open("r+b") as file:
        file.seek(100_000_000)
        file.write(b"x" * 100)
    assert gguf_files.ensure(own, quant) is True
    assert sha256(quant.path) == digest == gguf_files.digest(quant, own)
    # Copied, with another time: the same bytes are not written again.
    os.utime(quant.path, (1, 1))
    assert gguf_files.ensure(own, quant) is False


@pytest.mark.slow
def test_a_file_of_other_weights_or_of_an_older_converter_is_written_anew(own):
    quant = gguf_files.choose(own, "q8_0")
    gguf_files.ensure(own, quant)
    said = json.loads(quant.stamp.read_text())
    for change in ({"converter": 0}, {"files": {"model.safetensors": "00"}}):
        quant.stamp.write_text(json.dumps({**said, "source": {**said["source"], **change}}))
        assert gguf_files.ensure(own, quant) is True
        assert gguf_files.ensure(own, quant) is False


def test_an_altered_model_is_named_before_anything_is_written(own):
    with own_file(own.folder / "model.safetensors").open("r+b") as file:
        file.seek(1000)
        file.write(b"x")
    with pytest.raises(KitError, match=r"models/starter/model\.safetensors is altered"):
        gguf_files.ensure(own, gguf_files.choose(own, "bf16"))
    assert not (own.folder / "starter-bf16.gguf").exists()


def in_shell(kit_copy, before: str, quant: str) -> Done:
    """`python -m scripts.gguf` after some shell commands."""
    command = f"{before} && exec {sys.executable} -m scripts.gguf --quant {quant}"
    return run_command(["sh", "-c", command], cwd=kit_copy)


def mounted(kit_copy, mount: str, quant: str) -> Done:
    """The same with file systems mounted for it alone."""
    probe = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("needs root's mounts")
    command = f"{mount} && exec {sys.executable} -m scripts.gguf --quant {quant}"
    return run_command(["unshare", "-m", "sh", "-c", command], cwd=kit_copy)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's mounts")
def test_too_little_room_is_said_before_the_first_byte(kit_copy):
    copied = "cd models && mkdir full && mount -t tmpfs -o size=400m tmpfs full && cp -a starter/. full"
    done = mounted(kit_copy, f"{copied} && mount --bind full starter && cd ..", "bf16")
    assert done.status == 1
    assert re.search(r"starter-bf16\.gguf needs 319 MB on this disk, and \d+ MB are free", done.err), done.err
    assert "next: free some room, then: make gguf MODEL=starter QUANT=bf16" in done.err


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's mounts")
def test_a_folder_that_cannot_be_written_says_so(kit_copy):
    done = mounted(kit_copy, "mount --bind models models && mount -o remount,bind,ro models", "bf16")
    assert done.status == 1
    assert "error: starter-bf16.gguf could not be written: the file system is read-only" in done.err
    assert "next: take a folder that can be written, then: make gguf MODEL=starter QUANT=bf16" in done.err


@pytest.mark.container
def test_a_disk_that_fills_up_on_the_way_is_named_and_leaves_nothing(own, kit_copy):
    """Through a limit on the size of a file: an error of the same kind, wherever the tests run."""
    done = in_shell(kit_copy, "ulimit -f 60000", "q4_0")
    assert done.status == 1
    assert "error: starter-q4_0.gguf could not be written: File too large" in done.err
    assert not (own.folder / "starter-q4_0.gguf").exists()
    assert leftovers(own) == []


def start(kit_copy) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scripts.gguf", "--quant", "bf16"], cwd=kit_copy, stderr=subprocess.PIPE, text=True
    )


def test_killed_in_the_middle_leaves_no_file_and_the_same_command_completes(own, kit_copy, script):
    partial = own.folder / ".starter-bf16.gguf.partial"
    process = start(kit_copy)
    while not (partial.exists() and partial.stat().st_size > 10_000_000):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (own.folder / "starter-bf16.gguf").exists()
    assert script("gguf", "--quant", "bf16", cwd=kit_copy).status == 0
    assert gguf_files.ensure(own, gguf_files.choose(own, "bf16")) is False
    assert leftovers(own) == []


@pytest.mark.container
def test_two_at_once_write_it_once(own, kit_copy):
    processes = [start(kit_copy), start(kit_copy)]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted("written in" in text for text in said) == [False, True]
