"""Workloads on a live server over real HTTP: rows in order, knee searches, servers that die or are too slow."""

import dataclasses
from types import SimpleNamespace

import pytest

from bench.config import BenchConfig, ModelConfig, WorkloadConfig, WorkloadPoint
from bench.config.knee import KneeConfig
from bench.engine.failure import Failure
from bench.engine.server import ServerError
from bench.errors import BadRequest
from bench.load import drive
from bench.outcome import Outcome
from bench.record.tables import table_schema
from bench.workload_run import WorkloadRun, few_samples, trial_spec
from tests.fakes.sim_server import SimServer

SHAPE = {"architectures": ["LlamaForCausalLM"], "vocab_size": 2048}
SMALL = {"input_tokens": 8, "output_tokens": 4, "warmup_requests": 2, "max_duration_s": 20.0}


class Engine:
    """What a run needs of an engine start, around a simulated server."""

    def __init__(self, sim, *points, dies_after=None):
        cfg = BenchConfig(model=ModelConfig(name="sim", config=SHAPE), workload=WorkloadConfig("w", list(points)))
        request = SimpleNamespace(cfg=cfg, point_id="p", source=SimpleNamespace(config=SHAPE))
        self.outcome = Outcome("r", {"flags": [], "warnings": []})
        self.phases, self.notes, self.polls, self.dies_after = [], [], 0, dies_after
        server = SimpleNamespace(base_url=sim.base_url, call_workers=self._no_workers)
        progress = SimpleNamespace(point=SimpleNamespace(detail="", tokens_per_s=None), note=self.notes.append)
        process = SimpleNamespace(poll=self._poll, pid=-1, session_id=None)
        diagnose = lambda: Failure("runtime", "unknown", "nobody knows", "")  # noqa: E731
        self.run = WorkloadRun(request, self.outcome, server, process, progress, self.phases.append, diagnose).run

    def _no_workers(self, *_):
        raise ServerError("no workers in a simulation")

    def _poll(self):
        self.polls += 1
        return "signal 9" if self.dies_after is not None and self.polls > self.dies_after else None


@pytest.fixture(scope="module")
def sim():
    with SimServer(ttft_s=0.02, itl_s=0.002) as server:
        yield server


def test_workloads_run_in_order_each_with_prompts_of_its_own(sim):
    engine = Engine(
        sim,
        WorkloadPoint("closed", concurrency=2, num_requests=6, **SMALL),
        WorkloadPoint("open", pattern="poisson", rate_per_s=50, num_requests=10, save_requests=True, **SMALL),
    )
    engine.run()
    closed, opened = engine.outcome.workloads
    assert [row["status"] for row in (closed, opened)] == ["ok", "ok"]
    assert [(row["position"], row["workload"]) for row in (closed, opened)] == [(0, "closed"), (1, "open")]
    assert closed["run_seed"] != opened["run_seed"] and closed["seed"] == opened["seed"] == 0
    assert engine.phases == ["warmup:closed", "load:closed", "ready", "warmup:open", "load:open", "ready"]
    assert len(engine.outcome.requests) == 10 and {r["position"] for r in engine.outcome.requests} == {1}
    for stretch, row in zip(engine.outcome.stretches, (closed, opened), strict=True):
        assert stretch.row is row and stretch.phase == f"load:{row['workload']}"
        assert stretch.whole == (row["started_unix_s"], row["window_s"])
    assert set(closed) <= set(table_schema("workloads").names)
    assert engine.outcome.engine["workloads_s"] > 0 and "failure_cause" not in engine.outcome.engine


def test_a_knee_is_searched_and_every_trial_is_a_row(sim):
    knee = KneeConfig(axis="concurrency", low=1, high=3, requests_per_slot=3, slo={"ttft_p50_s": 0.5})
    engine = Engine(sim, WorkloadPoint("knee", num_requests=4, knee=knee, **SMALL),
                    WorkloadPoint("after", concurrency=1, num_requests=2, **SMALL))  # fmt: skip
    engine.run()
    *trials, after = engine.outcome.workloads
    assert [(row["knee_trial"], row["knee_value"], row["concurrency"]) for row in trials] == [
        (1, 1, 1), (2, 3, 3), (3, 3, 3),
    ]  # fmt: skip
    assert [row["num_requests"] for row in trials] == [4, 9, 9], "longer with more in flight"
    assert len({row["run_seed"] for row in trials}) == 3, "no trial meets another's prompts in the cache"
    assert [row["position"] for row in engine.outcome.workloads] == [0, 1, 2, 3]
    assert all(row["knee_met"] and row["knee_outcome"] == "at_least" for row in trials)
    assert [row["knee_answer"] for row in trials] == [False, False, True]
    (said,) = engine.notes
    first, *notes = said.split("; ")
    assert first == "knee: at least concurrency 3: nothing tried broke it (3 trials)"
    assert "; ".join(notes) == (trials[-1]["knee_notes"] or ""), "a person is told what the rows are"
    assert engine.phases[:3] == ["warmup:knee", "load:knee#1", "ready"] and "load:knee#3" in engine.phases
    assert after["workload"] == "after" and after.get("knee_trial") is None


def test_a_knee_that_breaks_fails_no_engine_start(sim):
    objective = {"ttft_p50_s": 0.001}
    knee = KneeConfig(axis="rate", low=20, trial_s=0.2, slo=objective)
    engine = Engine(sim, WorkloadPoint("knee", pattern="constant", rate_per_s=20, num_requests=4, knee=knee, **SMALL))
    engine.run()
    row, again = engine.outcome.workloads
    assert again["knee_value"] == 20 and again["run_seed"] != row["run_seed"], "the break is tried once more"
    assert (row["knee_met"], row["knee_outcome"], row["knee_lowest_broken"]) == (False, "below", 20)
    assert row["knee_reason"].startswith("ttft_p50_s 0.0") and row["status"] == "ok" and not row["knee_answer"]
    assert "failure_cause" not in engine.outcome.engine


def test_a_trial_without_end_is_an_answer_and_the_search_goes_on():
    with SimServer(ttft_s=[0.01] * 12 + [30.0] * 100, itl_s=0.001) as sim:
        knee = KneeConfig(axis="concurrency", low=1, high=2, requests_per_slot=2, slo={"ttft_p99_s": 5.0})
        point = WorkloadPoint("knee", concurrency=1, num_requests=10, knee=knee, **SMALL | {"max_duration_s": 2.5})
        engine = Engine(sim, point)
        engine.run()
    first, second, *_ = engine.outcome.workloads
    assert first["knee_met"] and not second["knee_met"]
    assert second["failure_cause"] == "too_slow" and "0 of 10 requests completed (too_slow)" in second["knee_reason"]
    assert "failure_cause" not in engine.outcome.engine


def test_a_load_this_client_cannot_make_keeps_what_was_found(sim, monkeypatch):
    """A doubling concurrency meets the limit on open files sooner than the engine's."""
    monkeypatch.setattr(drive, "allow_connections", lambda wanted: min(wanted, 3))
    knee = KneeConfig(axis="concurrency", low=1, requests_per_slot=2, slo={"ttft_p50_s": 9.0})
    engine = Engine(sim, WorkloadPoint("knee", concurrency=1, num_requests=4, knee=knee, **SMALL),
                    WorkloadPoint("after", concurrency=1, num_requests=2, **SMALL),
                    WorkloadPoint("wide", concurrency=4, num_requests=8, **SMALL | {"warmup_requests": 0}))  # fmt: skip
    engine.run()
    *trials, after, wide = engine.outcome.workloads
    assert [(row["knee_value"], row["knee_outcome"]) for row in trials] == [(1, "at_least"), (2, "at_least")]
    assert "4 cannot be sent: concurrency=4: this process may open only 3" in trials[-1]["knee_notes"]
    assert after["status"] == "ok" and after["position"] == 2
    assert wide["status"] == "failed" and wide["failure_sentence"].startswith("concurrency=4: this process may open")
    assert engine.outcome.engine["status"] == "memory_only" and engine.phases[-1] == "ready"


def test_an_engine_that_dies_ends_the_search_and_the_list(sim):
    knee = KneeConfig(axis="concurrency", low=1, slo={"ttft_p50_s": 9.0}, requests_per_slot=300, max_trials=6)
    engine = Engine(sim, WorkloadPoint("knee", concurrency=1, num_requests=4, knee=knee, **SMALL),
                    WorkloadPoint("never", concurrency=1, num_requests=2, **SMALL), dies_after=8)  # fmt: skip
    engine.run()
    rows = engine.outcome.workloads
    assert engine.outcome.engine["status"] == "failed" and engine.outcome.engine["failure_phase"] == "runtime"
    assert {row["workload"] for row in rows} == {"knee"} and rows[-1]["status"] == "failed"
    assert rows[-1]["knee_met"] is False and {row["knee_trials"] for row in rows} == {len(rows)}
    assert rows[-1]["failure_sentence"] and rows[-1]["not_sent"] > 0


def test_a_trial_is_the_point_at_another_load_and_ends_by_count():
    knee = KneeConfig(axis="rate", low=2, trial_s=10, slo={"e2e_p99_s": 1.0})
    point = WorkloadPoint("k", pattern="gamma", burstiness=0.5, num_requests=3, knee=knee)
    spec = trial_spec(point, point.spec(0), 7.5, 9)
    assert (spec.rate_per_s, spec.num_requests, spec.duration_s, spec.seed) == (7.5, 75, None, 9)
    assert dataclasses.replace(spec, rate_per_s=2, num_requests=3, seed=0) == point.spec(0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"duration_s": 3.0}, r"^workload.points\[k\].duration_s=3.0: leave it out; how long a trial of a knee is"),
        ({"concurrency": 500}, r"^workload.points\[k\].concurrency=500: leave it out; the knee search sets it"),
    ],
)
def test_a_setting_that_the_search_would_ignore_is_refused(settings, sentence):
    with pytest.raises(BadRequest, match=sentence):
        WorkloadPoint("k", knee=KneeConfig(low=1, slo={"ttft_p50_s": 1.0}), **settings)


def test_percentiles_of_few_requests_are_named():
    rows = [{"completed": 12, "flags": ["few_samples_p95", "few_samples_p99"]}, {"completed": 60, "flags": []}]
    (said,) = few_samples(KneeConfig(slo={"ttft_p95_s": 1.0, "ttft_p50_s": 1.0}), rows)
    assert said.startswith("p95 of 12 requests is hardly more than their maximum")
    assert few_samples(KneeConfig(slo={"ttft_p50_s": 1.0, "itl_p99_s": 1.0}), rows) == []
