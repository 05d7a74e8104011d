"""The guard and the launchers, with small real processes in place of vLLM."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from bench.engine.base import ExitStatus, LaunchRequest, merged_env
from bench.engine.guard import Guard, kill_session, session_members
from bench.engine.lifecycle import StartFailed, stop, wait_ready
from bench.engine.server import Server, free_port, port_is_free
from bench.engine.spawn import SpawnLauncher

# A leader with a child that ignores SIGTERM and outlives it, as vLLM's engine core does.
STUBBORN = "import os,signal,time\nif os.fork()==0: signal.signal(15, signal.SIG_IGN)\ntime.sleep(60)"


def _eventually(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _session(code):
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    assert _eventually(lambda: len(session_members(process.pid)) >= (2 if "fork" in code else 1))
    return process


def test_kill_session_leaves_nothing_even_when_a_child_ignores_sigterm():
    process = _session(STUBBORN)
    assert kill_session(process.pid) == []
    assert session_members(process.pid) == []
    assert process.wait() == -signal.SIGKILL


HARNESS = """
import subprocess, sys, time
from pathlib import Path
from bench.engine.guard import Guard
guard = Guard()
engine = subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True)
guard.watch(engine.pid, Path(sys.argv[2]))
print(engine.pid, guard._process.pid, flush=True)
time.sleep(60)
"""


def test_a_killed_harness_leaves_no_engine_no_guard_and_no_scratch(tmp_path):
    scratch = tmp_path / "scratch with space"
    scratch.mkdir()
    harness = subprocess.Popen(
        [sys.executable, "-c", HARNESS, STUBBORN, str(scratch)], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    session, guard = map(int, harness.stdout.readline().split())
    assert _eventually(lambda: len(session_members(session)) == 2)
    harness.kill()
    harness.wait()
    assert _eventually(lambda: not session_members(session)), "the engine outlived its harness"
    assert _eventually(lambda: not scratch.exists())
    assert _eventually(lambda: not Path(f"/proc/{guard}").exists() or "Z" in Path(f"/proc/{guard}/stat").read_text())


SEGMENT = """
import time
from multiprocessing import resource_tracker, shared_memory
resource_tracker.register = lambda *_: None
segment = shared_memory.SharedMemory(create=True, size=4096)
print(segment.name, flush=True)
time.sleep(60)
"""


def test_the_guard_unlinks_what_only_the_engine_mapped_of_shared_memory():
    command = [sys.executable, "-c", SEGMENT]
    engine = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True)
    name = engine.stdout.readline().strip().lstrip("/")
    assert Path("/dev/shm", name).exists()
    guard = Guard()
    guard.watch(engine.pid)
    guard.close()
    engine.wait()
    assert not Path("/dev/shm", name).exists()


def test_a_guard_that_was_killed_is_replaced_and_knows_what_was_watched():
    process = _session("import time; time.sleep(60)")
    guard = Guard()
    guard.watch(process.pid)
    guard._process.kill()
    guard._process.wait()
    guard.watch(2**22 + 1)  # any next message finds the pipe broken
    guard.forget(2**22 + 1)
    guard.close()
    assert process.wait(timeout=10) == -signal.SIGKILL


def test_closing_a_dead_guard_is_no_error():
    guard = Guard()
    guard._process.kill()
    guard._process.wait()
    guard.close()


def test_a_forgotten_session_is_left_alone_by_the_guard():
    process = _session("import time; time.sleep(60)")
    guard = Guard()
    guard.watch(process.pid)
    guard.forget(process.pid)
    guard.close()
    try:
        assert session_members(process.pid) == [process.pid]
    finally:
        kill_session(process.pid)
        process.wait()


def test_stop_says_which_signal_was_needed(monkeypatch, tmp_path):
    obedient = _launched("import time; time.sleep(60)", tmp_path, monkeypatch)
    report = stop(obedient, timeout_s=5)
    assert (report.stopped_by, report.survivors) == ("SIGTERM", ())
    assert obedient.poll() == ExitStatus(None, signal.SIGTERM)

    stubborn = _launched(STUBBORN, tmp_path, monkeypatch)
    assert _eventually(lambda: len(session_members(stubborn.session_id)) == 2)
    time.sleep(0.2)  # the child needs its signal handler in place
    report = stop(stubborn, timeout_s=1)
    assert (report.stopped_by, report.survivors) == ("SIGKILL", ())
    assert session_members(stubborn.session_id) == []


def _launched(code, tmp_path, monkeypatch):
    """An "engine" through the real spawn launcher: an interpreter that runs `code` instead of vLLM's CLI."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}'\n")
    script.chmod(0o755)
    monkeypatch.setattr("bench.engine.spawn.sys", type("sys", (), {"executable": str(script)}))
    process = SpawnLauncher().launch(LaunchRequest(("serve",), {}, tmp_path / "log", tmp_path))
    assert process.session_id == process.pid
    return process


def test_an_engine_that_ends_before_it_is_ready_fails_at_once(monkeypatch, tmp_path):
    process = _launched("raise SystemExit(3)", tmp_path, monkeypatch)
    with pytest.raises(StartFailed) as failed:
        wait_ready(process, Server(free_port()), timeout_s=30)
    assert failed.value.exit_status == ExitStatus(3, None) and not failed.value.timed_out


def test_an_engine_that_hangs_times_out(monkeypatch, tmp_path):
    process = _launched("import time; time.sleep(60)", tmp_path, monkeypatch)
    began = time.monotonic()
    with pytest.raises(StartFailed) as failed:
        wait_ready(process, Server(free_port()), timeout_s=0.5)
    assert failed.value.timed_out and failed.value.exit_status is None
    assert time.monotonic() - began < 10
    stop(process, timeout_s=1)


def test_a_taken_port_is_seen():
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert not port_is_free(server.getsockname()[1])
    assert port_is_free(free_port())


def test_environment_changes_add_replace_and_remove():
    assert merged_env({"A": "1", "B": None, "C": "3"}, {"B": "2", "C": "2", "D": "4"}) == {"A": "1", "C": "3", "D": "4"}


FORK_SAFETY = """
import threading
from bench.engine.warm_parent import unsafe_to_fork
print(unsafe_to_fork())
stop = threading.Event()
thread = threading.Thread(target=stop.wait); thread.start()
print(unsafe_to_fork())
stop.set(); thread.join()
"""


def test_a_parent_with_threads_refuses_to_fork():
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(FORK_SAFETY)], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": os.getcwd()})  # fmt: skip
    first, second = done.stdout.splitlines()
    assert first == "None"
    assert "2 threads" in second
