"""Sums at one time, interference by pairs, and readers that keep members apart from engines alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.colocate.rows import speed_columns, sum_over_time
from bench.colocate.streams import ALONE, TOGETHER, Driven, Stream
from bench.config import StreamConfig


def test_a_sum_is_of_one_time_not_of_each_ones_peak():
    first = [(0.0, 10), (1.0, 50), (2.0, 10), (5.0, 10)]
    second = [(1.5, 5), (3.0, 40), (4.0, 5)]
    assert sum_over_time([first, second]) == (55, 1.5), "50 of the first still holds when 5 of the second is read"
    assert sum_over_time([[(0.0, 10)], [(1.0, 20)]]) == (20, 1.0), "one is gone before the other comes"
    assert sum_over_time([[(0.0, 10), (1.0, 10)], [(1.0, 20)]]) == (30, 1.0), "both are there at that instant"
    assert sum_over_time([[], [(0.0, 3)]]) == (3, 0.0)
    assert sum_over_time([[], []]) == (None, None)


def _run(mode: str, repeat: int, rate: float, ttft_s: float, **row) -> Driven:
    stream = Stream("code", StreamConfig(task="code"), ["coder"], 0)
    figures = {"status": "ok", "flags": [], "completed": 10, "output_tokens_per_s": rate, "ttft_p50_s": ttft_s,
               "tpot_p50_s": 0.01, "e2e_p50_s": 1.0}  # fmt: skip
    return Driven(figures | row, stream, mode, repeat)


def test_interference_is_each_turns_own_pair():
    driven = [_run(ALONE, 0, 100, 0.1), _run(TOGETHER, 0, 50, 0.3)]
    driven += [_run(ALONE, 1, 200, 0.1), _run(TOGETHER, 1, 80, 0.1)]
    found = speed_columns(driven, ["code"])
    import json

    told = json.loads(found["interference_json"])["code"]
    assert told["output_tokens_per_s"] == {"median": pytest.approx(0.45), "min": 0.4, "max": 0.5, "pairs": 2}
    assert driven[1].row["interference_ttft_p50"] == pytest.approx(3.0)
    assert found["interference_stated"] and "2 pairs" in found["interference_basis"]


def test_no_interference_is_stated_beside_a_dead_engine_or_a_failed_run():
    for spoilt in ({"flags": ["sibling_died"]}, {"status": "failed"}):
        driven = [_run(ALONE, 0, 100, 0.1), _run(TOGETHER, 0, 90, 0.3, **spoilt)]
        found = speed_columns(driven, ["code"])
        assert found["interference_json"] is None and found["interference_stated"] is False
        assert "interference_ttft_p50" not in driven[1].row


def _recorded(mode: str, **row) -> Driven:
    """A run with three requests of 10 tokens, one after the other, a second each."""
    from types import SimpleNamespace

    run = _run(mode, 0, 10, 0.1, **row)
    times = [(n * 10**9, (n + 1) * 10**9) for n in range(1, 4)]
    run.result = SimpleNamespace(records=[_record(begin, end) for begin, end in times])  # type: ignore[assignment]
    return run


def _record(begin_ns: int, end_ns: int):
    from types import SimpleNamespace

    arrivals = [(end_ns, 10)]
    return SimpleNamespace(sent_ns=begin_ns, end_ns=end_ns, outcome="ok", arrivals=arrivals, output_tokens=10)


@pytest.mark.parametrize("spoilt", [{"flags": ["sibling_died"]}, {"status": "failed"}])
def test_no_joint_throughput_is_stated_of_seconds_with_a_dying_engine(spoilt, monkeypatch):
    from types import SimpleNamespace

    import bench.colocate.rows as rows

    window = SimpleNamespace(output_tokens_per_s=10.0, requests_per_s=1.0)
    monkeypatch.setattr(rows, "window_between", lambda *_: window)
    found = speed_columns([_run(ALONE, 0, 20, 0.1), _recorded(TOGETHER)], ["code"])
    assert (found["joint_output_tokens_per_s"], found["joint_share"]) == (10.0, 0.5)
    found = speed_columns([_run(ALONE, 0, 20, 0.1), _recorded(TOGETHER, **spoilt)], ["code"])
    assert found["joint_output_tokens_per_s"] is found["joint_requests_per_s"] is found["joint_share"] is None
    assert found["joint_window_s"] is None and found["alone_sum_output_tokens_per_s"] == 20


def test_a_stream_that_failed_has_counts_and_no_throughput_to_quote():
    from bench.colocate.summary import _stream_cells

    row = {"colocation_member": "coder", "flags": [], "completed": 7, "failed": 3, "not_sent": 0, "status": "failed",
           "failure_cause": "engine_died", "output_tokens_per_s": 80.0, "ttft_p50_s": 0.1}  # fmt: skip
    cells = _stream_cells("code", TOGETHER, [row])
    assert cells == ("  code", "coder", "together", "-", "-", "-", "-", "7", "3", "engine_died")
    assert _stream_cells("code", TOGETHER, [row, row | {"status": "ok"}])[3:5] == ("80.0", "100 ms")


def test_the_summary_says_that_nothing_joint_is_stated():
    from bench.colocate.summary import _interference_lines

    (line,) = _interference_lines({"status": "failed", "interference_json": None, "joint_output_tokens_per_s": None})
    assert "neither interference nor a joint throughput is stated" in line


def test_groups_of_one_name_are_told_apart_by_what_differs():
    from bench.colocate.label import differences

    def group(seqs, tokens=48):
        return {"engines": {"coder": {"engine": {"max_num_seqs": seqs, "max_model_len": None}}},
                "streams": {"chat": {"load": {"input_tokens": tokens}}}}  # fmt: skip

    assert differences([group(4), group(8)]) == ["coder.max_num_seqs=4", "coder.max_num_seqs=8"]
    assert differences([group(4, 16), group(4)]) == ["chat.input_tokens=16", "chat.input_tokens=48"]
    assert differences([group(None), group(8)]) == ["coder.max_num_seqs=null", "coder.max_num_seqs=8"]
    assert differences([group(4)]) == [""] == differences([group(4), group(4)])[:1]
    many = [{f"setting{k}": n for k in range(6)} for n in (1, 2)]
    assert differences(many)[0].endswith("setting3=1 and 2 more")


# -- who is dead ---------------------------------------------------------------------------------------------------

ENGINE = """
import subprocess, sys, time
core = subprocess.Popen(["bash", "-c", "exec -a VLLM::EngineCore sleep 60"])
print(core.pid, flush=True)
time.sleep(60)
"""


def test_an_engine_whose_core_is_killed_is_lost_at_once_although_its_server_lives():
    import os
    import signal
    import subprocess
    import sys
    import time
    from types import SimpleNamespace

    from bench.colocate.vitals import Vitals
    from bench.engine.base import EngineProcess

    servers = [subprocess.Popen([sys.executable, "-c", ENGINE], stdout=subprocess.PIPE, start_new_session=True)
               for _ in range(2)]  # fmt: skip
    try:
        cores = [int(server.stdout.readline()) for server in servers]
        deadline = time.monotonic() + 10
        for pid in cores:  # until bash has become what it was asked to
            named = Path(f"/proc/{pid}/cmdline")
            while not named.read_text().startswith("VLLM::") and time.monotonic() < deadline:
                time.sleep(0.01)
        engines = {name: SimpleNamespace(process=EngineProcess(one.pid, one.pid, "spawn", one.poll))
                   for name, one in zip(("coder", "general"), servers, strict=True)}  # fmt: skip
        vitals = Vitals(engines)
        assert vitals.look() == set()
        os.kill(cores[0], signal.SIGKILL)
        while not vitals.look() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert vitals.lost == {"coder"} and servers[0].poll() is None, "nobody has told its server"
        servers[1].kill()
        servers[1].wait()
        assert vitals.look() == {"coder", "general"}
    finally:
        for server in servers:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            server.stdout.close()


BESIDE = {"colocation_id": "g", "colocation": "pair", "colocation_member": "coder", "colocation_point_id": "x"}


def test_no_fit_takes_a_member_for_an_engine_alone():
    from analysis.fit.starts import from_rows
    from analysis.rows import alone
    from analysis.tables.measured import Measured
    from analysis.throughput import observations
    from tests.analysis.throughput import made_up

    start = made_up.engine("tiny-llama")
    load = made_up.workload(start, 0, (4, 32, 16))
    assert from_rows([start]) and not from_rows([start | BESIDE])
    assert alone([start, start | BESIDE]) == [start]
    assert observations.unusable(start, load) is None
    assert "other engines" in observations.unusable(start | BESIDE, load)
    assert "other engines" in observations.unusable(start, load | BESIDE)
    card = made_up.gpu("qwen2.5-7b")
    assert len(Measured([card], "h100-80gb", "0.32.0").rows) == 1
    left = Measured([card | BESIDE], "h100-80gb", "0.32.0")
    assert left.rows == [] and "other engines ran" in left.notes[0]


@pytest.mark.parametrize("old", [False, True])
def test_a_comparison_keeps_members_in_cells_of_their_own(tmp_path, old):
    import pyarrow.parquet as pq

    from analysis.compare import Options, compare_sets
    from tests.analysis.compare.make_sets import noisy, write_set

    a = write_set(tmp_path / "a", 1, 3, noisy(1))
    b = write_set(tmp_path / "b", 1, 3, noisy(2), lambda cell, repeat: BESIDE)
    if old:  # a set from before there were groups
        for table in ("engines", "workloads"):
            path = a / table / "rows.parquet"
            rows = pq.read_table(path, partitioning=None)
            gone = [name for name in rows.column_names if name.startswith("colocation")]
            pq.write_table(rows.drop_columns(gone), path)
    comparison = compare_sets([a, b], Options(metrics=("throughput",)))
    assert not [one for one in comparison.records() if one["n_a"] and one["n_b"]], "nothing is the same cell"
