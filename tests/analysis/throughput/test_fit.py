"""Fits of rows that the formula made: coefficients found, what is not measured named, errors of the unseen told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import made_up_speed as made_up
import pytest

pytest.importorskip("scipy")
pytest.importorskip("pyarrow")

from analysis.throughput import build, cli  # noqa: E402
from analysis.throughput.calibration import load, select  # noqa: E402
from analysis.throughput.fit import estimate, fit, uncalibrated  # noqa: E402
from analysis.throughput.holdout import errors, half_width, leave_out  # noqa: E402
from analysis.throughput.observations import read, unusable  # noqa: E402
from analysis.throughput.roofline import COEFFICIENTS  # noqa: E402
from bench.record.store import ResultSet  # noqa: E402

CPU_STARTS = [made_up.engine(model, seqs=seqs) for model in made_up.MODELS for seqs in (4, 16)]
GPU_STARTS = [made_up.gpu(model) for model in made_up.GPU_MODELS]


def cpu(noise: float = 0.0, starts=None):
    starts = CPU_STARTS if starts is None else starts
    rows, origin = made_up.observations(starts, made_up.CPU_TRUTH, noise)
    return read(starts, rows).observations[origin], origin


def test_planted_coefficients_are_found_exactly():
    found = fit(cpu()[0])
    assert found.reference == "absolute" and found.spread < 1e-6
    for name, value in zip(COEFFICIENTS, found.values, strict=True):
        assert value == pytest.approx(made_up.CPU_TRUTH[name], rel=1e-3), name
    assert all(found.known)


def test_planted_coefficients_are_found_through_noise():
    found = fit(cpu(noise=0.02)[0])
    truth = made_up.CPU_TRUTH
    for name in ("step", "weights", "prefill_compute"):
        assert found.values[COEFFICIENTS.index(name)] == pytest.approx(truth[name], rel=0.15), name

    def per_sequence(values):  # models of one size hardly tell the two apart; their sum they do
        return values["decode_compute"] * 26e-6 + values["sequence"]

    values = dict(zip(COEFFICIENTS, found.values, strict=True))
    assert per_sequence(values) == pytest.approx(per_sequence(truth), rel=0.05)
    assert 0.005 < found.spread < 0.03


def test_one_row_in_ten_may_lie():
    observations, _ = cpu(noise=0.01)
    for place in range(0, len(observations), 10):
        measured = {name: 3 * value for name, value in observations[place].measured.items()}
        observations[place] = replace(observations[place], measured=measured)
    found = fit(observations)
    for name in ("step", "prefill_compute", "sequence"):
        assert found.values[COEFFICIENTS.index(name)] == pytest.approx(made_up.CPU_TRUTH[name], rel=0.2), name


def test_on_a_gpu_they_are_shares_of_the_sheet():
    rows, origin = made_up.observations(GPU_STARTS, made_up.GPU_TRUTH, 0.01)
    observations = read(GPU_STARTS, rows).observations[origin]
    found = fit(observations)
    assert found.reference == "sheet" and origin.device == "h100-80gb" and origin.weight_format == "16bit"
    for name in ("step", "weights", "prefill_compute", "sequence"):
        assert found.values[COEFFICIENTS.index(name)] == pytest.approx(made_up.GPU_TRUTH[name], rel=0.1), name
    # Not measurable: decoding's FLOPs, of which there were none, and nothing is read above the peak bandwidth.
    assert not found.known[COEFFICIENTS.index("decode_compute")]
    assert min(found.values[COEFFICIENTS.index(name)] for name in ("weights", "kv")) >= 1.0
    held = leave_out("model", observations)
    tpot = errors(held.of("tpot"))
    assert tpot.units == 4 and tpot.mean_share < 0.02 < 0.3 < tpot.below_mean_share
    peak = uncalibrated(observations)
    assert peak.values[:4] == (0.0, 1.0, 1.0, 1.0) and not any(peak.values[4:])


def test_a_load_that_does_not_vary_identifies_little():
    observations = [one for one in cpu()[0] if (one.concurrency, one.length) == (4, "128 in, 16 out")]
    observations = [one for one in observations if one.limits.max_num_seqs == 16]
    known = dict(zip(COEFFICIENTS, fit(observations).known, strict=True))
    assert not (known["step"] and known["sequence"] and known["weights"])


def test_errors_are_those_of_rows_not_seen():
    """A model that is slower by half is missed by a third, whatever the fit of all rows says of it."""
    observations, _ = cpu()
    slow = [
        replace(one, measured={"tpot": 2 * one.measured["tpot"], "ttft": 2 * one.measured["ttft"],
                               "throughput": one.measured["throughput"] / 2})
        if one.model == "tiny-qwen3" else one for one in observations
    ]  # fmt: skip
    held = leave_out("model", slow)
    missed = errors(held.of("tpot", "tiny-qwen3"))
    assert missed.mean_share == pytest.approx(0.5, abs=0.01)
    measured = [miss.measured for miss in held.of("tpot", "tiny-qwen3")]
    assert missed.mean == pytest.approx(sum(measured) / missed.rows / 2, rel=0.02)
    assert half_width(held.of("tpot")) >= 0.69  # four models: 90 % of five is all of them
    assert leave_out("length", observations).fits.keys() == {
        f"{i} in, {o} out" for i in (32, 128, 512) for o in (16, 64)
    }  # fmt: skip
    assert leave_out("concurrency", observations).fits.keys() == {"1", "2", "4", "8", "16"}
    assert leave_out("model", [one for one in observations if one.model == "tiny-llama"]).misses == ()


def test_waiting_for_a_slot_is_predicted_and_not_fitted():
    observations, _ = cpu()
    queued = next(one for one in observations if one.concurrency == 16 and one.limits.max_num_seqs == 4)
    values = tuple(made_up.CPU_TRUTH.values())
    assert estimate(values, "absolute", queued)["ttft"] == pytest.approx(queued.measured["ttft"])
    lying = [
        replace(one, measured={**one.measured, "ttft": 100.0}) if one.concurrency > one.batch else one
        for one in observations
    ]  # fmt: skip
    assert fit(lying).values == pytest.approx(fit(observations).values)


@pytest.mark.parametrize(("start", "row", "reason"), [
    ({}, {"flags": ["client_lag"]}, "client-bound"), ({}, {"flags": ["client_share"]}, "client-bound"),
    ({}, {"client_bound": True}, "client-bound"), ({}, {"flags": ["client_starved"]}, "client-bound"),
    ({}, {"status": "failed"}, "failed or incomplete"), ({"status": "memory_only"}, {}, "failed or incomplete"),
    ({}, {"failed": 2}, "failed or incomplete"), ({}, {"flags": ["preemptions"]}, "requests were preempted"),
    ({"flags": ["foreign_processes"]}, {}, "a foreign process ran beside it"),
    ({}, {"pattern": "poisson"}, "open loop: its concurrency is not a setting"),
    ({}, {"input_tokens_json": "{}"}, "lengths vary or prompts share a prefix"),
    ({"pipeline_parallel_size": 2}, {}, "pipeline parallel"),
    ({}, {"concurrency": None}, "the load or the clock is missing"),
    ({}, {"ttft_mean_s": None, "tpot_mean_s": float("nan"), "output_tokens_per_s": None},
     "the load or the clock is missing"),
    ({}, {"knee_trial": 2}, "a trial of a knee search: short, and driven until it breaks"),
    ({"model_config_json": "{}"}, {}, "the arithmetic does not know the model or its settings"),
])  # fmt: skip
def test_every_row_is_used_or_counted_with_its_reason(start, row, reason):
    engine = made_up.engine("tiny-llama", **start)
    good = made_up.workload(engine, 0, (4, 128, 16))
    found = read([engine], [{**good, **row}])
    assert found.left_out == {reason: 1} and not found.observations and found.given == 1
    # What an engine's row repeats of its other workloads says nothing of this one.
    clean = made_up.engine("tiny-llama", flags=["client_starved", "client_bound", "preemptions"])
    assert unusable(clean, good) is None and read([clean], [good, {**good, "run_id": "older"}]).given == 1


def test_a_steady_state_of_two_turns_comes_before_the_whole_run():
    engine = made_up.engine("tiny-llama")
    steady = {"steady_rule": "r", "steady_window_s": 3.0, "steady_tpot_mean_s": 0.5, "steady_ttft_mean_s": 0.6,
              "steady_output_tokens_per_s": 7.0}  # fmt: skip
    for requests, expected in ((8, {"tpot": 0.5, "ttft": 0.6, "throughput": 7.0}), (7, None)):
        row = made_up.workload(engine, 0, (4, 128, 16), **steady, steady_requests=requests)
        ((one,),) = read([engine], [row]).observations.values()
        assert (one.measured == expected) == (expected is not None) and (one.requests is None) == (expected is not None)


def written(root: Path, starts: list[dict], rows: list[dict]) -> Path:
    made = ResultSet(root)
    made.create()
    for start in starts:
        made.write(start["run_id"], start, [row for row in rows if row["run_id"] == start["run_id"]], [])
    return root


def test_from_a_result_set_to_a_calibration_that_predictions_can_choose(tmp_path, capsys):
    starts = [made_up.engine(model, seqs=seqs) for model in made_up.MODELS[:3] for seqs in (4, 16)]
    rows, _ = made_up.observations(starts, made_up.CPU_TRUTH, 0.01)
    rows[0]["flags"], rows[1]["status"] = ["client_starved"], "failed"
    root = written(tmp_path / "mine", starts, rows)
    out = tmp_path / "mine.json"
    assert cli.main([str(root), "--out", str(out), "--report"]) == 0
    told = capsys.readouterr().out
    assert "180 workloads, 2 left out: 1 client-bound; 1 failed or incomplete" in told
    for said in ("unseen model: TPOT", "unseen length: TTFT", "unseen concurrency: output tokens/s", "ms ", "tokens/s",
                 "tiny-mistral", "512 in, 64 out", "missed most", "without costs", "GB/s", "TFLOP/s"):  # fmt: skip
        assert said in told, said
    made = load(out)
    assert (made.kind, made.device, made.weight_format, made.runner) == ("own", "cpu", "fp32", "v1")
    assert made.coefficients[0] == pytest.approx(2e-3, rel=0.1) and made.reference == "absolute"
    choice = select("0.32.0", "v1", "cpu", "fp32", 1, [made])
    assert choice.distance == 0 and choice.notes == ()
    assert select("0.32.0", "v1", "h100-80gb", "fp32", 1, [made]) is None  # a CPU never stands in for a GPU
    content = json.loads(out.read_text())
    assert content["rows"]["used"] == 178 and len(content["rows"]["sha256"]) == 64
    unseen = content["held_out"]["model"]["tpot"]
    assert unseen["left_out"] == 3 and unseen["mean_per_cent"] < unseen["below_mean_per_cent"]
    first = out.read_bytes()
    assert cli.main([str(root), "--out", str(out)]) == 0 and out.read_bytes() == first


@pytest.mark.parametrize("words", [[], ["results/no-such-set"]])
def test_what_cannot_be_fitted_is_one_sentence(words, capsys):
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("roofline: ") and told.count("\n") == 1


def test_too_few_or_mixed_rows_are_refused(tmp_path, capsys):
    starts = [made_up.engine("tiny-llama", "fp32"), made_up.engine("tiny-llama", "int8-w8a8")]
    rows = [made_up.workload(start, place, made_up.LOADS[place]) for start in starts for place in range(6)]
    assert cli.main([str(written(tmp_path / "two", starts, rows)), "--out", str(tmp_path / "one.json")]) == 2
    assert "these rows make 2" in capsys.readouterr().err
    few = written(tmp_path / "few", starts[:1], rows[:3])
    assert cli.main([str(few), "--dry-run"]) == 2 and "the most is 3 of 3" in capsys.readouterr().err
    for row in rows:
        row["client_bound"] = True
    none = written(tmp_path / "none", starts, rows)
    assert cli.main([str(none), "--dry-run"]) == 2
    said = capsys.readouterr()
    assert "12 left out: 12 client-bound" in said.out and "the most is 0 of 12" in said.err
    starts[1] |= {"environment_id": "f", "host_memory_bytes": 1}


def test_environments_are_pooled_only_when_asked(tmp_path, capsys):
    starts = [made_up.engine(model) for model in made_up.MODELS[:2]]
    starts[1] |= {"environment_id": "f", "host_memory_bytes": 1}
    rows, _ = made_up.observations(starts, made_up.CPU_TRUTH)
    root = written(tmp_path / "mixed", starts, rows)
    assert cli.main([str(root), "--dry-run"]) == 2 and "never pooled silently" in capsys.readouterr().err
    assert cli.main([str(root), "--dry-run", "--pool"]) == 0 and "pooled over several" in capsys.readouterr().out


def test_one_model_leaves_its_interval_to_lengths():
    observations, origin = cpu(noise=0.05, starts=[made_up.engine("tiny-llama")])
    made = build.Fit(origin, observations)
    found = made.interval("tpot")
    assert found["left_out"] == "length" and found["half_width_log"] > 0.02 and made.spread(0) is None


def test_every_flag_of_the_client_keeps_a_row_out():
    from analysis.rows import CLIENT_BOUND
    from bench.load.flags import CLIENT_BOUND_FLAGS

    assert set(CLIENT_BOUND_FLAGS) < set(CLIENT_BOUND)
