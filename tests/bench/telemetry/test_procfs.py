"""Real child processes with known memory, read through the real /proc."""

from __future__ import annotations

import os
import signal
import time

import pytest

from bench.telemetry import procfs
from bench.telemetry.process_tree import ProcessTree

MIB = 2**20
SIZE = 64 * MIB

ALLOCATE = """
import sys, time
block = bytearray(int(sys.argv[1]))
for position in range(0, len(block), 4096):
    block[position] = 1
print("ready", flush=True)
sys.stdin.readline()
del block
print("freed", flush=True)
sys.stdin.readline()
"""

# A parent that touches memory and forks children which share it; the second child leaves the session.
FORK = """
import os, sys, time
block = bytearray(int(sys.argv[1]))
for position in range(0, len(block), 4096):
    block[position] = 1
for number in range(2):
    if os.fork() == 0:
        if number == 1:
            os.setsid()
        time.sleep(600)
time.sleep(0.1)
print("ready", flush=True)
time.sleep(600)
"""

# A child that outlives its parent in a session of its own.
ORPHAN = """
import os, sys, time
child = os.fork()
if child == 0:
    os.setsid()
    os.close(1)
    time.sleep(600)
time.sleep(0.1)
print("ready", flush=True)
sys.stdin.readline()
"""


def until(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true"
        time.sleep(0.01)


def test_touched_memory_shows_in_every_figure(spawn):
    pid = spawn(ALLOCATE, SIZE).pid
    rollup = procfs.rollup(pid)
    for value in (
        procfs.rss_bytes(pid),
        rollup.rss_bytes,
        rollup.pss_bytes,
        rollup.uss_bytes,
        rollup.anon_bytes,
    ):
        assert SIZE <= value < SIZE + 40 * MIB
    assert rollup.uss_bytes <= rollup.pss_bytes <= rollup.rss_bytes
    assert procfs.cpu_s(pid) > 0
    assert procfs.threads(pid) == 1


def test_peak_rss_remembers_freed_memory_until_reset(spawn):
    process = spawn(ALLOCATE, SIZE)
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"freed\n"
    assert procfs.peak_rss_bytes(process.pid) >= SIZE > procfs.rss_bytes(process.pid)
    if not procfs.reset_peak_rss(process.pid):
        pytest.skip("this kernel does not let clear_refs be written")
    assert procfs.peak_rss_bytes(process.pid) < SIZE


def test_shared_pages_count_once_in_pss_and_per_process_in_rss(spawn):
    process = spawn(FORK, SIZE)
    tree = ProcessTree(process.pid, process.pid)
    assert len(tree.refresh()) == 3
    usage, rollup = tree.usage(), tree.rollup()
    assert usage.processes == 3
    assert usage.rss_bytes >= 3 * SIZE
    assert SIZE <= rollup.pss_bytes < 2 * SIZE
    assert rollup.uss_bytes < SIZE
    tree.close()


def test_descendants_count_without_a_session_and_the_session_without_descent(spawn):
    process = spawn(FORK, MIB)
    assert len(procfs.tree_pids(process.pid)) == 3
    assert (
        len(procfs.tree_pids(None, process.pid)) == 3
    )  # the one that left the session is a descendant still
    assert procfs.tree_pids(None) == set()


def test_a_member_stays_one_after_its_parent_died(spawn):
    process = spawn(ORPHAN)
    tree = ProcessTree(process.pid)
    (orphan,) = tree.refresh() - {process.pid}
    try:
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.wait(timeout=10)
        assert tree.refresh() == {orphan}
        assert tree.usage().processes == 1
    finally:
        os.kill(orphan, signal.SIGKILL)
    until(lambda: tree.refresh() == set())
    tree.close()


def test_a_process_that_dies_leaves_the_sums_and_keeps_its_cpu_time(spawn):
    process = spawn(ALLOCATE, SIZE)
    tree = ProcessTree(process.pid)
    tree.refresh()
    before = tree.usage()
    process.kill()
    process.wait()
    after = tree.usage()  # without a refresh in between
    assert (after.processes, after.rss_bytes) == (0, 0)
    assert after.cpu_s >= before.cpu_s > 0
    assert tree.rollup() is None
    assert tree.refresh() == set()


def test_a_zombie_holds_nothing(spawn):
    process = spawn(ALLOCATE, SIZE)
    tree = ProcessTree(process.pid)
    tree.refresh()
    process.kill()
    until(lambda: procfs.read_stat(process.pid).is_dead)  # dead, not yet reaped
    assert tree.usage().rss_bytes == 0
    assert procfs.tree_pids(process.pid) == set()
    assert procfs.rollup(process.pid) is None


def test_a_reused_pid_is_not_ours(spawn):
    process = spawn(ALLOCATE, MIB)
    tree = ProcessTree(process.pid)
    tree.refresh()
    tree._starts[process.pid] -= 1  # what a stranger under the same number looks like: another start time
    assert tree.refresh() == set()
    tree.close()


def test_reading_a_process_that_is_gone(spawn):
    process = spawn(ALLOCATE, MIB)
    process.kill()
    process.wait()
    pid = process.pid
    readings = [
        procfs.rss_bytes(pid), procfs.rollup(pid), procfs.peak_rss_bytes(pid), procfs.cpu_s(pid),
        procfs.threads(pid),
    ]  # fmt: skip
    assert readings == [None] * 5
    assert procfs.reset_peak_rss(pid) is False
    assert ProcessTree(pid).refresh() == set()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_what_may_not_be_read_is_none_and_said(spawn):
    """Another user's process: RSS is public, PSS is not."""
    reader = """
import os, sys
from bench.telemetry import procfs
from bench.telemetry.process_tree import ProcessTree
tree = ProcessTree(int(sys.argv[1]))
os.setgid(65534); os.setuid(65534)
tree.refresh()
assert tree.usage().rss_bytes > 0
assert procfs.rollup(int(sys.argv[1])) is None
assert tree.rollup() is None
assert tree.denied == {int(sys.argv[1])}
assert procfs.reset_peak_rss(int(sys.argv[1])) is False
print("ready", flush=True)
"""
    spawn(reader, spawn(ALLOCATE, MIB).pid)


def test_command_names_with_parentheses_and_spaces():
    text = b"42 (a) b (c)) S 7 42 43 0 -1 4194304 1 0 0 0 250 150 9 9 20 0 3 0 12345 0 0"
    stat = procfs.parse_stat(text)
    assert (stat.pid, stat.state, stat.parent_pid, stat.session_id) == (42, "S", 7, 43)
    assert (stat.threads, stat.start_ticks, stat.cpu_s) == (3, 12345, 400 / procfs.TICKS_PER_S)
    assert procfs.parse_stat(b"") is None
    assert procfs.parse_stat(b"42 (a) S 7") is None


def test_rollup_parses_a_whole_smaps_too():
    mapping = b"""7f00-7f01 rw-p 0 00:00 0
Rss:                 100 kB
Pss:                  60 kB
Private_Clean:        10 kB
Private_Dirty:        40 kB
Anonymous:            50 kB
Swap:                  0 kB
VmFlags: rd wr mr
"""
    rollup = procfs.parse_rollup(mapping * 2)
    assert (rollup.rss_bytes, rollup.pss_bytes, rollup.uss_bytes) == (200 * 1024, 120 * 1024, 100 * 1024)
    assert procfs.parse_rollup(b"") is None
