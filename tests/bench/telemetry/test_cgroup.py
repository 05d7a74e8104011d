from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bench.telemetry.cgroup import (
    MemoryCgroup,
    effective_memory_bytes,
    find_memory_cgroup,
    machine_memory_bytes,
)
from bench.telemetry.engine_cgroup import EngineCgroup, NoEngineCgroup

MIB = 2**20
GIB = 2**30


@pytest.fixture
def tree(tmp_path):
    """A made-up /proc and cgroup mount: `tree(files)` writes them and returns the /proc to read."""

    def make(memberships, mountinfo, files, mem_total_kb=16 * 2**20):
        proc = tmp_path / "proc"
        (proc / "self").mkdir(parents=True)
        (proc / "self" / "cgroup").write_text(memberships)
        (proc / "self" / "mountinfo").write_text(mountinfo.replace("@", str(tmp_path)))
        (proc / "meminfo").write_text(f"MemTotal:       {mem_total_kb} kB\nMemFree: 1 kB\n")
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return proc

    return make


V1 = """31 23 0:32 / @/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / @/unified rw,relatime - cgroup2 cgroup2 rw
"""
V2 = "30 23 0:26 / @/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def test_version_1_in_a_hybrid_machine(tree, tmp_path):
    proc = tree(
        "9:name=systemd:/\n4:memory:/job/a\n0::/\n",
        V1,
        {
            "memory/job/a/memory.usage_in_bytes": "1000\n",
            "memory/job/a/memory.max_usage_in_bytes": "3000\n",
            "memory/job/a/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/job/memory.limit_in_bytes": f"{4 * GIB}\n",
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
            "unified/cgroup.controllers": "hugetlb\n",
        },
    )
    group = find_memory_cgroup(proc=proc)
    assert (group.version, group.path) == (1, tmp_path / "memory/job/a")
    assert (group.current_bytes(), group.peak_bytes()) == (1000, 3000)
    assert group.limit_bytes() == 4 * GIB  # the limit of the group above counts
    assert effective_memory_bytes(proc) == 4 * GIB


def test_version_2(tree, tmp_path):
    proc = tree(
        "0::/user.slice/run.scope\n",
        V2,
        {
            "cgroup/user.slice/run.scope/cgroup.controllers": "cpu memory pids\n",
            "cgroup/user.slice/run.scope/memory.current": "5\n",
            "cgroup/user.slice/run.scope/memory.peak": "7\n",
            "cgroup/user.slice/run.scope/memory.max": "max\n",
            "cgroup/user.slice/memory.max": "max\n",
        },
    )
    group = find_memory_cgroup(proc=proc)
    assert (group.version, group.path) == (2, tmp_path / "cgroup/user.slice/run.scope")
    assert (group.current_bytes(), group.peak_bytes(), group.limit_bytes()) == (5, 7, None)
    assert effective_memory_bytes(proc) == 16 * GIB


def test_a_container_whose_own_cgroup_is_mounted_as_the_root(tree, tmp_path):
    mounts = "31 23 0:32 /docker/abc @/memory rw - cgroup cgroup rw,memory\n"
    proc = tree("4:memory:/docker/abc\n", mounts, {"memory/memory.limit_in_bytes": f"{GIB}\n"})
    assert find_memory_cgroup(proc=proc).path == tmp_path / "memory"
    assert effective_memory_bytes(proc) == GIB


def test_a_cgroup_outside_of_the_mount_reads_as_the_mount(tree, tmp_path):
    proc = tree(
        "0::/../../other\n", V2, {"cgroup/cgroup.controllers": "memory\n", "cgroup/memory.max": "123\n"}
    )
    assert find_memory_cgroup(proc=proc).path == tmp_path / "cgroup"


def test_a_limit_above_the_machine_does_not_count(tree):
    files = {"cgroup/cgroup.controllers": "memory\n", "cgroup/memory.max": f"{64 * GIB}\n"}
    assert effective_memory_bytes(tree("0::/\n", V2, files)) == 16 * GIB


def test_no_memory_controller_at_all(tree):
    proc = tree("0::/\n", V2, {"cgroup/cgroup.controllers": "cpu\n"})
    assert find_memory_cgroup(proc=proc) is None
    assert effective_memory_bytes(proc) == 16 * GIB


def test_this_machine():
    assert 0 < effective_memory_bytes() <= machine_memory_bytes()
    group = find_memory_cgroup()
    if group is not None:
        assert str(os.getpid()) in group.procs_path.read_text().split()


@pytest.fixture
def own():
    group = EngineCgroup.create("a test: engine/1")
    if isinstance(group, NoEngineCgroup):
        pytest.skip(f"no cgroup of our own can be made here: {group.reason}")
    with group:
        yield group
    assert not group.path.exists()


TOUCH = "import sys; sys.stdin.readline(); b = bytearray(48 << 20); b[::4096] = b'1' * len(b[::4096])"


def test_an_engine_cgroup_keeps_the_peak_that_is_over(own):
    assert own.scope == "own"
    assert own.peak_bytes() < 16 * MIB
    process = subprocess.Popen([sys.executable, "-c", TOUCH], stdin=subprocess.PIPE)
    assert own.add(process.pid)
    assert own.pids() == [process.pid]
    process.communicate(b"\n", timeout=30)
    assert process.returncode == 0
    assert own.peak_bytes() >= 48 * MIB > own.current_bytes()
    assert own.close() == []
    assert own.peak_bytes() >= 48 * MIB  # still known when the cgroup is gone
    assert own.add(os.getpid()) is False


def test_leaving_an_engine_cgroup_kills_what_is_left(own):
    process = subprocess.Popen([sys.executable, "-c", "import os, time; os.fork(); time.sleep(600)"])
    assert own.add(process.pid)
    assert own.close() == []
    assert process.wait(timeout=10) == -9
    assert own.close() == []  # a second time is nothing


def test_a_process_that_is_gone_cannot_be_added(own):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert own.add(process.pid) is False


def test_where_none_can_be_made_the_reason_is_said(tmp_path):
    missing = MemoryCgroup(tmp_path / "gone", 1, tmp_path)
    with EngineCgroup.create("x", missing) as group:
        assert (group.scope, group.path, group.peak_bytes(), group.add(1)) == ("shared", None, None, False)
        assert str(missing.path) in group.reason
    assert "no memory cgroup" in EngineCgroup.create("x", None).reason


def test_a_directory_without_memory_files_is_refused_and_removed(tmp_path):
    group = EngineCgroup.create("x", MemoryCgroup(tmp_path, 1, tmp_path))
    assert "no memory controller" in group.reason
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("own_files", "parent_files", "words"),
    [
        ({}, None, "not delegated"),
        ({}, {"cgroup.subtree_control": "cpu"}, "hands the memory controller"),
        ({"memory.max": "1000"}, {"cgroup.subtree_control": "cpu memory"}, "would escape"),
    ],
)
def test_version_2_refusals(tmp_path, own_files, parent_files, words):
    path = tmp_path if parent_files is None else tmp_path / "own"
    path.mkdir(exist_ok=True)
    for folder, files in ((path, own_files), (tmp_path, parent_files or {})):
        for name, text in files.items():
            (folder / name).write_text(text + "\n")
    assert words in EngineCgroup.create("x", MemoryCgroup(path, 2, tmp_path)).reason
