"""Threads on performance cores only: how they are counted, from what each kernel says."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.environment import machine


@pytest.fixture
def sys_folder(tmp_path):
    def build(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return tmp_path

    return build


def cpu(number: int, name: str) -> str:
    return f"devices__system__cpu__cpu{number}__{name}"


def test_a_core_with_two_threads_counts_once(sys_folder):
    pairs = {cpu(n, "topology__thread_siblings_list"): f"{n % 2},{n % 2 + 2}" for n in range(4)}
    found = machine.of_linux({0, 1, 2, 3}, sys_folder(**pairs))
    assert (found.count, found.reason) == (2, "all cores, a core's threads counted once")


def test_intels_efficiency_cores_are_left_out(sys_folder):
    folder = sys_folder(devices__cpu_core__cpus="0-3")
    assert machine.of_linux(set(range(12)), folder) == machine.Cores(4, "performance cores")


def test_arms_little_cores_are_left_out(sys_folder):
    folder = sys_folder(**{cpu(n, "cpu_capacity"): "1024" if n > 3 else "400" for n in range(8)})
    assert machine.of_linux(set(range(8)), folder) == machine.Cores(4, "performance cores")


def test_only_the_processors_that_this_process_may_use(sys_folder):
    assert machine.of_linux({1}, sys_folder()).count == 1


@pytest.mark.parametrize(("quota", "count"), [("150000 100000", 1), ("max 100000", 4), ("300000 100000", 3)])
def test_a_containers_quota_counts(quota, count, sys_folder):
    folder = sys_folder()
    (folder / "fs" / "cgroup").mkdir(parents=True, exist_ok=True)
    (folder / "fs" / "cgroup" / "cpu.max").write_text(quota + "\n")
    assert machine.of_linux({0, 1, 2, 3}, folder).count == count


def test_the_quota_of_an_older_kernel_counts(sys_folder):
    folder = sys_folder()
    (folder / "fs" / "cgroup" / "cpu").mkdir(parents=True)
    (folder / "fs" / "cgroup" / "cpu" / "cpu.cfs_quota_us").write_text("200000\n")
    (folder / "fs" / "cgroup" / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.of_linux({0, 1, 2, 3}, folder).count == 2


def test_a_mac_says_how_many_performance_cores_it_has(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    monkeypatch.setattr(machine, "sysctl", {"hw.perflevel0.physicalcpu": "4"}.get)
    assert machine.performance() == machine.Cores(4, "hw.perflevel0.physicalcpu")


def test_fewer_threads_may_be_asked_for_as_torch_takes_it(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert machine.performance() == machine.Cores(3, "OMP_NUM_THREADS")


def in_a_group(tmp_path: Path, line: str) -> dict[str, Path]:
    (tmp_path / "own").write_text(line + "\n")
    return {"own": tmp_path / "own", "mounted": tmp_path / "cgroup"}


@pytest.mark.parametrize(
    ("line", "folder"), [("0::/user.slice/mine", "user.slice/mine"), ("4:cpu,memory:/docker/ab", "memory/docker/ab")]
)
def test_the_limit_of_the_processs_own_group_counts_and_of_those_above_it(tmp_path, line, folder):
    where = in_a_group(tmp_path, line)
    groups = machine.control_groups("memory", **where)
    own = where["mounted"] / folder
    assert {own, own.parent, where["mounted"]} <= set(groups)


def test_memory_is_what_the_own_group_grants(tmp_path, monkeypatch):
    group = tmp_path / "cgroup" / "mine"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("2000000000\n")
    where = in_a_group(tmp_path, "0::/mine")
    groups = machine.control_groups("memory", **where)
    monkeypatch.setattr(machine, "control_groups", lambda controller: groups)
    assert machine.total_memory() == 2_000_000_000
