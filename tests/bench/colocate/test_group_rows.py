"""Sums at one time, interference by pairs, and readers that keep members apart from engines alone."""

from __future__ import annotations

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
