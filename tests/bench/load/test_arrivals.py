"""Sending times: the rates and shapes they promise, fixed by the seed, whatever the engine does."""

from __future__ import annotations

import hashlib
import json
from statistics import mean, pstdev

import numpy as np
import pytest

from bench.errors import BadRequest
from bench.load import arrivals
from bench.load.schedule import planned_requests
from bench.load.spec import LoadSpec
from bench.load.traces import read_trace


def due_s(**fields):
    return [request.due_ns / 1e9 for request in planned_requests(LoadSpec(**fields))]


def gaps(**fields):
    return np.diff(due_s(**fields))


def test_constant_gaps_are_equal():
    assert due_s(pattern="constant", rate_per_s=4, num_requests=5) == [0, 0.25, 0.5, 0.75, 1.0]
    assert due_s(pattern="constant", rate_per_s=4, duration_s=1) == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("fields", "shape"),
    [({"pattern": "poisson"}, 1.0), ({"pattern": "gamma", "burstiness": 0.25}, 0.25),
     ({"pattern": "gamma", "burstiness": 4.0}, 4.0)],
)  # fmt: skip
def test_gaps_have_the_shape_that_was_asked_for(fields, shape):
    """A gamma of shape k has a coefficient of variation of 1 / sqrt(k)."""
    found = gaps(**fields, rate_per_s=50, num_requests=20001)
    assert mean(found) == pytest.approx(1 / 50, rel=1e-6)  # exactly the rate, whatever the seed
    assert pstdev(found) / mean(found) == pytest.approx(shape**-0.5, rel=0.05)
    assert min(found) >= 0


def test_poisson_is_gamma_of_shape_one():
    base = {"rate_per_s": 9.0, "num_requests": 50}
    assert due_s(pattern="poisson", **base) == due_s(pattern="gamma", burstiness=1.0, **base)


def test_a_poisson_count_varies_as_much_as_its_mean():
    times = np.array(due_s(pattern="poisson", rate_per_s=100, num_requests=20000))
    counts = np.bincount(times.astype(int))[:-1]
    assert counts.var() == pytest.approx(counts.mean(), rel=0.25)


def test_duration_and_number_end_what_comes_first():
    base = {"pattern": "poisson", "rate_per_s": 10.0}
    assert len(due_s(**base, duration_s=5)) == 50 and max(due_s(**base, duration_s=5)) < 5
    assert len(due_s(**base, duration_s=5, num_requests=20)) == 20
    assert len(due_s(**base, duration_s=0.01)) == 1


def test_a_ramp_follows_the_line():
    times = np.array(due_s(pattern="ramp", rate_per_s=10, rate_end_per_s=110, duration_s=20, burstiness=1e9))
    assert len(times) == 1200 and times.max() < 20
    per_second = np.histogram(times, bins=20, range=(0, 20))[0]
    assert per_second == pytest.approx(10 + 5 * (np.arange(20) + 0.5), abs=1.5)
    falling = due_s(pattern="ramp", rate_per_s=110, rate_end_per_s=10, duration_s=20, burstiness=1e9)
    assert np.sort(20 - np.array(falling))[:-1] == pytest.approx(times[1:], abs=0.12)
    level = due_s(pattern="ramp", rate_per_s=10, rate_end_per_s=10, num_requests=30)
    assert level == pytest.approx(due_s(pattern="poisson", rate_per_s=10, num_requests=30))


def test_a_ramp_by_number_takes_as_long_as_its_mean_rate_needs():
    times = due_s(pattern="ramp", rate_per_s=1, rate_end_per_s=3, num_requests=200, burstiness=1e9)
    assert max(times) == pytest.approx(100, rel=0.01)


def test_seeds_tell_arrivals_apart():
    base = {"pattern": "poisson", "rate_per_s": 10.0, "num_requests": 50}
    assert due_s(**base, seed=1) == due_s(**base, seed=1) != due_s(**base, seed=2)


def test_extreme_shapes_still_give_times():
    for shape in (1e-6, 1e6):
        times = due_s(pattern="gamma", burstiness=shape, rate_per_s=10, num_requests=50)
        assert times == sorted(times) and max(times) == pytest.approx(4.9) and times[0] == 0


def test_a_schedule_never_changes():
    """Arrivals and lengths are part of a result's meaning, to the nanosecond and the token."""
    text = ""
    for fields in (
        {"pattern": "poisson", "rate_per_s": 7.5},
        {"pattern": "gamma", "rate_per_s": 7.5, "burstiness": 0.3},
        {"pattern": "ramp", "rate_per_s": 2, "rate_end_per_s": 20},
        {"pattern": "closed_loop", "concurrency": 4},
    ):
        spec = LoadSpec(
            **fields, num_requests=200, seed=5, output_tokens={"kind": "uniform", "min": 5, "max": 99},
            input_tokens={"kind": "lognormal", "mean": 300, "std": 250, "max": 4000},
        )  # fmt: skip
        text += "".join(f"{r.index} {r.due_ns} {r.input_tokens} {r.output_tokens}\n" for r in planned_requests(spec))
    found = hashlib.sha256(text.encode()).hexdigest()
    assert found == "1cf56a9889b6a2b1a9f492fc38473900d0a6cd25b6d5543fc6160193aacfc82d"


TRACES = {
    "plain.csv": "timestamp,input_length,output_length\n10,5,1\n12.5,6,2\n11,7,3\n",
    "milliseconds.csv": "timestamp_ms,input_tokens,output_tokens\n10000,5,1\n12500,6,2\n11000,7,3\n",
    "azure.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,5,1\n"
    "2023-11-16 18:15:49.1805900,6,2\n2023-11-16 18:15:47.6805900,7,3\n",
    "burstgpt.csv": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "10,ChatGPT,5,1,6,x\n12.5,GPT-4,6,2,8,x\n11,GPT-4,7,3,10,x\n",
    "mooncake.jsonl": "\n".join(
        json.dumps({"timestamp": at, "input_length": i, "output_length": o, "hash_ids": [0]})
        for at, i, o in ((10000, 5, 1), (12500, 6, 2), (11000, 7, 3))
    ),
    "vllm.jsonl": "\n".join(
        json.dumps({"timestamp": at, "input_length": i, "output_length": o})
        for at, i, o in ((10, 5, 1), (12.5, 6, 2), (11, 7, 3))
    ),
}


@pytest.mark.parametrize("name", sorted(TRACES))
def test_traces_of_every_kind_are_replayed_in_order_from_the_first_on(tmp_path, name):
    file = tmp_path / name
    file.write_text(TRACES[name])
    spec = LoadSpec(pattern="trace", trace_file=str(file), trace_speed=2)
    found = [(r.index, r.due_ns, r.input_tokens, r.output_tokens) for r in planned_requests(spec)]
    assert [row[0] for row in found] == [0, 1, 2] and [row[2:] for row in found] == [(5, 1), (7, 3), (6, 2)]
    assert [row[1] for row in found] == pytest.approx([0, 500_000_000, 1_250_000_000], abs=200)
    assert spec.total == 3 and (spec.input_tokens_mean, spec.output_tokens_mean) == (6, 2)


def test_a_trace_is_cut_by_number_or_by_time(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text(TRACES["plain.csv"])
    base = {"pattern": "trace", "trace_file": str(file)}
    assert LoadSpec(**base, num_requests=2).total == 2 and LoadSpec(**base, duration_s=1.5).total == 2
    assert LoadSpec(**base, duration_s=1.5, trace_speed=10).total == 3
    assert read_trace(str(file), "ms").offsets_s == pytest.approx([0, 0.001, 0.0025])


def test_a_file_of_plain_numbers_is_no_trace(tmp_path):
    file = tmp_path / "t.txt"
    file.write_text("10\n20\n30\n")
    with pytest.raises(BadRequest, match=r"it has no column timestamp_s or .* \(it has: plain numbers\)"):
        read_trace(str(file))


ROWS = [(n, 5, 1) for n in range(0, 200_000, 1000)]


@pytest.mark.parametrize(
    ("column", "rows", "more", "refused"),
    [
        ("timestamp", ROWS, {}, "as seconds its requests would be 1e+03 s apart"),  # milliseconds, most likely
        ("timestamp", [(n // 1000, i, o) for n, i, o in ROWS], {"hash_ids": [0]}, "as milliseconds its requests"),
        ("timestamp", [(n // 1000, i, o) for n, i, o in ROWS], {}, ""),
        ("timestamp", ROWS, {"hash_ids": [0]}, ""),
        ("timestamp_s", ROWS, {}, ""),
        ("timestamp", [(n + 0.5, i, o) for n, i, o in ROWS], {}, ""),
        ("timestamp", [(7, 5, 1)] * 30, {"hash_ids": [0]}, ""),  # all at once, in any unit
    ],
)
def test_a_unit_that_nothing_states_is_guessed_only_where_the_load_is_likely(tmp_path, column, rows, more, refused):
    file = tmp_path / "t.jsonl"
    lines = [{column: at, "input_length": i, "output_length": o} | more for at, i, o in rows]
    file.write_text("\n".join(map(json.dumps, lines)))
    for unit in ("s", "ms"):
        assert LoadSpec(pattern="trace", trace_file=str(file), trace_time_unit=unit).total == len(rows)
    if not refused:
        assert LoadSpec(pattern="trace", trace_file=str(file)).total == len(rows)
        return
    with pytest.raises(BadRequest, match="^trace_time_unit=auto: .*write trace_time_unit=s or .*=ms$") as refusal:
        LoadSpec(pattern="trace", trace_file=str(file))
    assert refused in str(refusal.value)


def test_a_long_trace_is_read_once_and_again_where_it_has_changed(tmp_path, monkeypatch):
    file = tmp_path / "t.csv"
    file.write_text(TRACES["plain.csv"])
    reads = []
    monkeypatch.setattr(arrivals, "read_trace", lambda *given: (reads.append(given), read_trace(*given))[1])
    spec = LoadSpec(pattern="trace", trace_file=str(file))
    assert (spec.total, spec.input_tokens_mean, spec.longest_request_tokens, len(reads)) == (3, 6, 10, 1)
    file.write_text(TRACES["plain.csv"] + "20,9,9\n")
    assert (LoadSpec(pattern="trace", trace_file=str(file)).total, len(reads)) == (4, 2)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rate_per_s": 1e300, "duration_s": 1e300}, "duration_s=1e+300: makes"),
        ({"rate_per_s": 5e-324, "num_requests": 3}, "rate_per_s=5e-324: must be 1e-06 or more"),
    ],
)
def test_rates_beyond_all_numbers_are_refused(fields, said):
    with pytest.raises(BadRequest) as refusal:
        LoadSpec(pattern="constant", **fields)
    assert str(refusal.value).startswith(said)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("input_length,output_length\n1,2\n", "no column timestamp_s or"),
        ("timestamp,output_length\n1,2\n", "for the input_tokens"),
        ("timestamp,input_length\n1,2\n", "for the output_tokens"),
        ("timestamp,input_length,output_length\n1,2,3\nsoon,2,3\n", "row 2 has the timestamp 'soon'"),
        ("timestamp,input_length,output_length\nnan,2,3\n", "row 1 has the timestamp 'nan'"),
        ("timestamp,input_length,output_length\n1,0,3\n", "row 1 has input_length '0'"),
        ("timestamp,input_length,output_length\n1,2\n", "row 1 has output_length None"),
        ("", "it has no rows"),
    ],
)
def test_wrong_traces_are_refused(tmp_path, text, part):
    file = tmp_path / "t.csv"
    file.write_text(text)
    with pytest.raises(BadRequest) as refusal:
        LoadSpec(pattern="trace", trace_file=str(file))
    assert str(refusal.value).startswith(f"trace_file={file}: ") and part in str(refusal.value)
