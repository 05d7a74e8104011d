"""Two real vLLM engines on one CPU at once, through the router: rows for both, interference, a clean end, a death."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from bench.telemetry import procfs

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs an installed vLLM"),
]
SHORT = [
    f"colocate.streams.{name}.load.{what}" for name in ("code", "chat")
    for what in ("duration_s=3", "warmup_requests=2", "concurrency=2", "input_tokens=32", "output_tokens=8")
]  # fmt: skip


def _rows(root: Path, table: str) -> list[dict]:
    return [row for file in sorted((root / table).glob("*.parquet"))
            for row in pq.read_table(file, partitioning=None).to_pylist()]  # fmt: skip


def _left_behind() -> list[str]:
    """Processes of a harness: engines, routers, clients, samplers."""
    marks = ("VLLM::", "warm_parent", "bench.router", "bench.colocate.client", "telemetry.sampler")
    found = []
    for pid, stat in procfs.all_stats().items():
        command = (procfs.read_bytes(f"/proc/{pid}/cmdline") or b"").replace(b"\0", b" ").decode()
        if not stat.is_dead and any(mark in command for mark in marks):
            found.append(command)
    return found


@pytest.fixture(scope="module")
def pair(bench, tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    done = bench("colocate=cpu-pair", *SHORT, "set=pair", f"paths.results={results}", TMPDIR="/tmp")
    return done, results / "pair"


def test_both_engines_their_streams_and_the_group_are_recorded(pair):
    done, root = pair
    assert done.returncode == 0, done.stderr
    (group,) = _rows(root, "colocations")
    engines = sorted(_rows(root, "engines"), key=lambda row: row["colocation_position"])
    assert (group["status"], group["members"], group["not_started"]) == ("ok", ["coder", "general"], [])
    assert [row["colocation_member"] for row in engines] == ["coder", "general"]
    for row in engines:
        assert row["status"] == "ok" and row["colocation_id"] == group["run_id"]
        assert row["weights_tensor_bytes"] == row["expected_weights_bytes"]
        assert row["tree_pss_peak_bytes"] > row["weights_bytes"] + row["kv_cache_bytes"]
    # Each waits for the one before; both are there while they are driven.
    first, second = (row["started_unix_s"] + row["startup_s"] for row in engines)
    assert first < second
    assert engines[0]["ended_unix_s"] >= engines[1]["ended_unix_s"], "down in the reverse order"
    assert group["kv_cache_sum_bytes"] == sum(row["kv_cache_bytes"] for row in engines)
    largest = max(row["tree_pss_peak_bytes"] for row in engines)
    assert largest < group["tree_pss_peak_bytes"] <= group["tree_pss_peaks_sum_bytes"]
    assert group["tree_pss_ready_bytes"] <= group["tree_pss_peak_bytes"]


def test_each_stream_is_driven_past_the_router_alone_and_together(pair):
    _, root = pair
    (group,) = _rows(root, "colocations")
    runs = {row["run_id"]: row for row in _rows(root, "engines")}
    loads = _rows(root, "workloads")
    assert sorted((row["workload"], row["colocation_mode"]) for row in loads) == [
        (stream, mode) for stream in ("chat", "code") for mode in ("alone", "direct", "together")
    ]
    for row in loads:
        assert (row["status"], row["failed"]) == ("ok", 0), row["failure_sentence"]
        assert runs[row["run_id"]]["colocation_member"] == {"code": "coder", "chat": "general"}[row["workload"]]
        assert row["output_tokens"] == 8 and row["token_count_difference"] == 0, "the engine's own counters agree"
        together = row["colocation_mode"] == "together"
        assert (row["interference_output_tokens_per_s"] is not None) == together
        assert (row["colocation_overlap"] or 0) > (0.5 if together else -1)
    told = json.loads(group["interference_json"])
    assert set(told) == {"code", "chat"} and group["interference_stated"]
    assert all(one["pairs"] == 1 for metrics in told.values() for one in metrics.values())
    assert group["joint_output_tokens_per_s"] > 0 and group["joint_share"] > 0
    # Past the router went the direct runs; everything else passed it and nothing went astray.
    counted = json.loads(group["router_outcomes_json"])
    for stream, member in (("code", "coder"), ("chat", "general")):
        through = [row for row in loads if row["workload"] == stream and row["colocation_mode"] != "direct"]
        sent = sum(row["completed"] for row in through)
        assert counted[member]["outcomes"]["ok"] == sent + 2, "and its warm-up"
        assert sum(counted[member]["outcomes"].values()) == sent + 2
    assert group["router_unrouted"] == 0 and group["router_forward_p50_s"] > 0


def test_nothing_is_left_running_and_nothing_is_measured_twice(pair, bench):
    done, root = pair
    assert _left_behind() == []
    assert "interference on code, together over alone" in done.stdout
    again = bench("colocate=cpu-pair", *SHORT, "set=pair", f"paths.results={root.parent}")
    assert again.returncode == 0 and "1 recorded before, 0 to start" in again.stderr
    assert len(_rows(root, "colocations")) == 1


def test_a_killed_engine_leaves_the_other_serving_and_the_rows_honest(pair, tmp_path, bench):
    words = ["colocate=cpu-pair", *SHORT, "colocate.direct=false", "set=kill", f"paths.results={tmp_path}",
             "colocate.streams.chat.load.duration_s=6", "colocate.streams.code.load.duration_s=6"]  # fmt: skip
    harness = subprocess.Popen([sys.executable, "-m", "bench", *words], cwd=ROOT, env=os.environ | {"TMPDIR": "/tmp"},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    _kill_the_coder_when_both_are_driven(harness.pid)
    out, err = harness.communicate(timeout=120)
    assert harness.returncode == 1, out + err
    (group,) = _rows(tmp_path / "kill", "colocations")
    engines = {row["colocation_member"]: row for row in _rows(tmp_path / "kill", "engines")}
    assert (group["status"], group["failure_member"]) == ("failed", "coder")
    assert engines["coder"]["status"] == "failed" and engines["coder"]["failure_phase"] == "runtime"
    assert engines["general"]["status"] == "ok" and "sibling_died" in engines["general"]["flags"]
    loads = {(row["workload"], row["colocation_mode"]): row for row in _rows(tmp_path / "kill", "workloads")}
    code, chat = loads["code", "together"], loads["chat", "together"]
    assert code["status"] == "failed" and (code["failed"] or code["not_sent"])
    kinds = json.loads(code["outcomes_json"])
    assert sum(kinds.values()) == code["completed"] + code["failed"] and code["completed"] > 0
    assert code["output_tokens_per_s"] is code["steady_output_tokens_per_s"] is None, "no throughput to quote"
    assert group["joint_output_tokens_per_s"] is group["joint_share"] is None
    assert (chat["status"], chat["failed"]) == ("ok", 0) and "sibling_died" in chat["flags"]
    assert chat["window_s"] > 5.5, "it served on to its end"
    assert chat["interference_output_tokens_per_s"] is None, "of a dead neighbour nothing is stated"
    assert _left_behind() == []


def _kill_the_coder_when_both_are_driven(harness: int) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        stats = procfs.all_stats()
        ours = procfs.tree_pids(harness, stats=stats)
        words = {pid: procfs.read_bytes(f"/proc/{pid}/cmdline") or b"" for pid in ours}
        commands = {pid: text.replace(b"\0", b" ").decode() for pid, text in words.items()}
        clients = [pid for pid, text in commands.items() if "bench.colocate.client" in text]
        if len(clients) == 2 and all(map(_is_connected, clients)):
            time.sleep(2)  # past the first answers
            # The engines are the sessions of the warm parent's children; the coder was started first.
            parents = [pid for pid, text in commands.items() if "warm_parent" in text and stats[pid].session_id == pid]
            leaders = sorted(pid for pid in ours if stats[pid].session_id == pid and stats[pid].parent_pid in parents)
            assert len(leaders) == 2, commands
            os.kill(leaders[0], signal.SIGKILL)
            return
        time.sleep(0.1)
    pytest.fail("both streams were never driven at once")


def _is_connected(pid: int) -> bool:
    """A client has imported what it needs and opened its connections; on a slow machine that takes seconds."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(one.status == psutil.CONN_ESTABLISHED for one in psutil.Process(pid).net_connections("tcp"))
    return False
