"""What a load may be asked to be: every wrong setting is refused by name, and patterns know their own."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from bench.config import WorkloadPoint
from bench.errors import BadRequest
from bench.load.arrivals import PATTERNS
from bench.load.plan import JobQueue, make_plans
from bench.load.spec import LoadSpec

CLOSED = {"concurrency": 1, "num_requests": 1}
POISSON = {"pattern": "poisson", "rate_per_s": 5.0, "num_requests": 10}


@pytest.mark.parametrize(
    ("base", "field", "value"),
    [
        *((CLOSED, *case) for case in [
            ("concurrency", 0), ("concurrency", 8.0), ("concurrency", True), ("concurrency", None), ("num_requests", 0),
            ("num_requests", None), ("input_tokens", 0), ("output_tokens", 0), ("output_tokens", 2.5),
            ("output_tokens", "7"), ("seed", -1), ("seed", "x"), ("temperature", -0.1), ("temperature", float("nan")),
            ("top_p", 0), ("top_p", 1.5), ("timeout_s", 0), ("timeout_s", float("inf")), ("stall_timeout_s", -1),
            ("stall_timeout_s", None), ("duration_s", 0), ("rate_per_s", 3.0), ("rate_end_per_s", 3.0),
            ("burstiness", 0.5), ("trace_speed", 2.0), ("pattern", "open"), ("pattern", ["poisson"]),
            ("shared_prefix_ratio", 1.01), ("shared_prefix_ratio", -0.1), ("prefix_groups", 0), ("slo_itl_s", 0),
            ("workers", -1), ("workers", 65), ("trace_time_unit", "us"), ("num_requests", 10_000_001),
            ("save_chunks", True),
        ]),
        *((POISSON, *case) for case in [
            ("rate_per_s", None), ("rate_per_s", 0), ("rate_per_s", float("inf")), ("burstiness", 2.0),
            ("rate_end_per_s", 9.0), ("trace_file", "x.csv"),
        ]),
    ],
)  # fmt: skip
def test_spec_names_the_wrong_field(base, field, value):
    with pytest.raises(BadRequest) as refusal:
        LoadSpec(**{**base, field: value})
    assert str(refusal.value).startswith(f"{field}=") and "\n" not in str(refusal.value)


def test_a_workload_point_is_checked_by_the_spec_alone_and_says_where_it_stands():
    with pytest.raises(BadRequest, match=r"^workload\.points\[chat\]\.rate_per_s=None: pattern poisson needs it$"):
        WorkloadPoint(name="chat", pattern="poisson")
    with pytest.raises(BadRequest, match=r"^workload\.points\[chat\]\.input_tokens\.max=3: must be at least min=5$"):
        WorkloadPoint(name="chat", input_tokens={"kind": "uniform", "min": 5, "max": 3})


def test_every_setting_of_a_spec_is_one_of_a_workload_with_the_same_default():
    spec = {item.name: item.default for item in dataclasses.fields(LoadSpec)}
    point = {item.name: item.default for item in dataclasses.fields(WorkloadPoint)}
    assert {name: point[name] for name in spec} == spec


def test_a_workload_becomes_a_spec_with_the_seed_of_its_run():
    point = WorkloadPoint(name="w", pattern="gamma", rate_per_s=2, burstiness=0.5, duration_s=10, slo_ttft_s=1)
    spec = point.spec(77)
    assert (spec.seed, spec.burstiness, spec.concurrency, spec.num_requests, spec.total) == (77, 0.5, None, None, 20)
    assert spec.slo == {"ttft": 1}


def test_the_identity_of_old_workloads_stays_and_new_settings_enter_it():
    plain = {
        "name": "w", "concurrency": 4, "num_requests": 8, "input_tokens": 64, "output_tokens": 8, "warmup_requests": 4,
        "temperature": 0.0, "top_p": 1.0, "seed": 0, "max_duration_s": None,
    }  # fmt: skip
    point = WorkloadPoint(name="w", concurrency=4, num_requests=8, input_tokens=64, output_tokens=8, warmup_requests=4)
    assert point.content() == plain
    same = dataclasses.replace(point, timeout_s=9, stall_timeout_s=9, workers=2, save_requests=True, save_chunks=True)
    assert same.content() == plain
    assert dataclasses.replace(point, shared_prefix_ratio=0.5).content() == plain | {"shared_prefix_ratio": 0.5}
    assert dataclasses.replace(point, duration_s=5).content() == plain | {"duration_s": 5}


def test_files_enter_the_identity_by_what_is_in_them(tmp_path):
    one, two, other = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "c.csv"
    for file, rows in ((one, "0,3,4"), (two, "0,3,4"), (other, "0,3,5")):
        file.write_text(f"timestamp,input_length,output_length\n{rows}\n")
    of = [WorkloadPoint(name="w", pattern="trace", trace_file=str(file)).content() for file in (one, two, other)]
    assert of[0] == of[1] != of[2] and of[0]["trace_file"].startswith("sha256:")
    lengths = [
        WorkloadPoint(name="w", input_tokens={"kind": "file", "path": str(file), "column": "output_length"}).content()
        for file in (one, two, other)
    ]
    assert lengths[0] == lengths[1] != lengths[2]


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_a_warmup_is_a_closed_loop_of_the_same_lengths(pattern, tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("timestamp,input_length,output_length\n0,10,2\n1,30,4\n")
    needs = {"concurrency": 3, "rate_per_s": 5.0, "rate_end_per_s": 9.0, "trace_file": str(trace)}
    spec = LoadSpec(pattern=pattern, num_requests=2, slo_e2e_s=1, **{n: needs[n] for n in PATTERNS[pattern].needs})
    warm = spec.for_warmup(6, 5)
    assert (warm.pattern, warm.total, warm.seed, warm.slo) == ("closed_loop", 6, 5, {})
    assert warm.concurrency == (3 if pattern == "closed_loop" else 6)
    assert warm.input_tokens_mean == spec.input_tokens_mean and warm.output_tokens_mean == spec.output_tokens_mean


def test_the_longest_request_is_known_beforehand(tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("timestamp,input_length,output_length\n0,10,90\n1,30,4\n2,500,500\n")
    assert LoadSpec(pattern="trace", trace_file=str(trace), num_requests=2).longest_request_tokens == 100
    spread = {"kind": "lognormal", "mean": 50, "std": 20, "max": 300}
    assert LoadSpec(**CLOSED, input_tokens=spread, output_tokens=7).longest_request_tokens == 307


@pytest.mark.parametrize(
    ("workers", "shares", "slots"), [(1, [10], [4]), (3, [6, 2, 2], [2, 1, 1]), (9, [3, 3, 2, 2], [1] * 4)]
)  # fmt: skip
def test_slots_are_dealt_evenly_and_requests_by_slots(workers, shares, slots):
    plans = make_plans("http://h:1", "m", LoadSpec(concurrency=4, num_requests=10), 2048, workers)
    assert [plan.total for plan in plans] == shares and [plan.slots for plan in plans] == slots
    assert [plan.first_slot for plan in plans] == [sum(slots[:n]) for n in range(len(slots))]
    dealt = [[request.index for request in plan.requests()] for plan in plans]
    assert sorted(sum(dealt, [])) == list(range(10)) and [len(one) for one in dealt] == shares
    assert all(index % 4 in range(plan.first_slot, plan.first_slot + plan.slots)
               for plan, mine in zip(plans, dealt, strict=True) for index in mine)  # fmt: skip
    assert pickle.loads(pickle.dumps(plans)) == plans and len(pickle.dumps(plans[0])) < 3000


def test_an_open_load_is_dealt_by_turns_and_a_cap_takes_one_worker():
    plans = make_plans("http://h:1", "m", LoadSpec(**POISSON), 2048, 2)
    assert [plan.slots for plan in plans] == [0, 0]
    assert [next(plan.requests()).index for plan in plans] == [0, 1]
    assert [p.slots for p in make_plans("http://h:1", "m", LoadSpec(**POISSON, concurrency=3), 2048, 5)] == [3]
    with pytest.raises(BadRequest, match=r"^workers=2: a cap on requests in flight \(concurrency=3\) is one count"):
        LoadSpec(**POISSON, concurrency=3, workers=2)


def test_too_many_short_prompts_are_refused_before_anything_is_sent():
    with pytest.raises(BadRequest, match="^num_requests=5000: of input_tokens=1 only"):
        make_plans("http://h:1", "m", LoadSpec(concurrency=1, num_requests=5000, input_tokens=1), 2048, 1)


def test_a_trace_of_too_many_short_prompts_names_the_trace(tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("timestamp,input_length,output_length\n" + "".join(f"{n}.5,{1 + n % 2},3\n" for n in range(4000)))
    spec = LoadSpec(pattern="trace", trace_file=str(trace))
    with pytest.raises(BadRequest, match="^trace_file=.*: of its 4000 requests the shortest have 1 prompt tokens"):
        make_plans("http://h:1", "m", spec, 2048, 1)


def test_requests_beyond_the_memory_for_them_are_made_one_by_one(monkeypatch):
    from bench.load import plan as module

    (plan,) = make_plans("http://h:1", "m", LoadSpec(concurrency=2, num_requests=40, input_tokens=8), 2048, 1)
    everything = [(job.request, job.wire) for job in iter(JobQueue(plan).take, None)]
    monkeypatch.setattr(module, "PREBUILT_BYTES", 2000)
    jobs = JobQueue(plan)
    assert len(jobs._ready) < 10
    lazily = []
    while (job := jobs.take()) is not None:
        lazily.append((job.request, job.wire))
        jobs.top_up()
        assert len(jobs._ready) < 10
    assert lazily == everything and len(everything) == 40


def test_a_closed_loop_by_duration_alone_never_runs_out_of_requests():
    (plan,) = make_plans("http://h:1", "m", LoadSpec(concurrency=2, duration_s=1.0, input_tokens=8), 2048, 1)
    jobs = JobQueue(plan)
    assert plan.total is None
    assert [jobs.take().request.index for _ in range(100)] == list(range(100))
