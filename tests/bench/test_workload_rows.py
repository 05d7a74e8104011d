"""What a load run says becomes columns of the workloads and requests tables, and nothing is lost on the way."""

import pytest

from bench.load.run import run_load
from bench.load.spec import LoadSpec
from bench.outcome import Stretch
from bench.record.store import ResultSet
from bench.record.tables import table_schema
from bench.rows import _RENAMED, request_rows, workload_columns, workload_telemetry
from bench.telemetry.samples import Sample
from tests.fakes.sim_server import SimServer

# Said by the client and left out of the table, each for a reason.
LEFT_OUT = {
    "abort_reason",  # becomes failure_sentence
    "errors",  # errors_json
    "timeout_s", "stall_timeout_s",  # in the engine row's request_json; they do not shape the load
    "counted_output_tokens", "steady_counted_output_tokens",  # rate x window
    "engine_prefix_cache_queries_tokens", "engine_prompt_tokens", "engine_requests_succeeded",
    "engine_request_queue_time_sum_s", "engine_request_queue_time_count", "engine_kv_cache_usage_max_ratio",
    "engine_gauge_cpu_s", "client_send_delay_p99_s", "client_send_delay_max_s",
}  # fmt: skip


@pytest.fixture(scope="module")
def open_loop():
    with SimServer(ttft_s=0.03, itl_s=0.005) as sim:
        spec = LoadSpec(
            pattern="poisson", rate_per_s=60, num_requests=60, seed=7, slo_ttft_s=0.5, save_requests=True,
            input_tokens={"kind": "uniform", "min": 4, "max": 12}, output_tokens=6,
        )  # fmt: skip
        return run_load(sim.base_url, "sim", spec, 2048)


def test_every_figure_of_the_client_has_a_column_or_a_reason(open_loop):
    said = set(open_loop.to_row())
    columns = set(table_schema("workloads").names)
    counts = {name for name in said if name.endswith("_count") or name.startswith("outcome_")}
    lost = said - columns - set(_RENAMED) - LEFT_OUT - counts
    assert not lost, f"neither a column nor left out for a reason: {sorted(lost)}"


def test_an_open_loop_row_is_whole(open_loop):
    row = workload_columns(open_loop)
    assert set(row) <= set(table_schema("workloads").names)
    assert (row["pattern"], row["rate_per_s"], row["completed"], row["failed"]) == ("poisson", 60, 60, 0)
    assert row["offered_requests_per_s"] == pytest.approx(60, rel=0.5)
    assert (row["input_tokens_min"] >= 4, row["input_tokens_max"] <= 12) == (True, True)
    assert '"uniform"' in row["input_tokens_json"] and row["output_tokens_json"] is None
    assert isinstance(row["input_tokens"], int) and row["output_tokens"] == 6
    assert row["run_seed"] == 7 and "seed" not in row, "the configured seed is written before the load"
    assert row["received_tokens"] == row["engine_generation_tokens"] == 360
    assert row["token_count_difference"] == 0 and "token_count_mismatch" not in row["flags"]
    assert row["goodput_share"] == 1.0 and row["kv_cache_usage_peak"] > 0 and row["gauge_readings"] > 3
    assert row["workers"] == 1 and row["client_bound"] in (True, False)
    assert row["steady_rule"]
    assert row["served_requests_per_s"] == pytest.approx(row["offered_requests_per_s"], rel=0.1), "it keeps up"


def test_a_row_is_written_and_read_back_unchanged(open_loop, tmp_path):
    row = workload_columns(open_loop) | {"run_id": "a", "workload": "w", "position": 0}
    requests = request_rows(row, open_loop)
    results = ResultSet(tmp_path)
    results.create()
    results.write("a", {"run_id": "a"}, [row], [], requests)
    (read,) = results.rows("workloads")
    assert {name: read[name] for name in row} == row
    read = results.rows("requests")
    assert len(read) == 60 and {r["outcome"] for r in read} == {"ok"}
    assert [r["index"] for r in read] == list(range(60))
    assert {(r["run_id"], r["workload"], r["position"]) for r in read} == {("a", "w", 0)}
    assert sum(r["output_tokens"] for r in read) == row["received_tokens"]
    assert max(r["ttft_s"] for r in read) == pytest.approx(row["ttft_max_s"])
    assert read[0]["chunk_s"] is None, "single chunks only where save_chunks asks for them"


def test_tokens_the_engine_counts_otherwise_are_flagged(open_loop):
    import dataclasses

    more = dataclasses.replace(open_loop.engine, generation_tokens=361.0)
    row = workload_columns(dataclasses.replace(open_loop, engine=more))
    assert row["token_count_difference"] == 1 and "token_count_mismatch" in row["flags"]
    cut = dataclasses.replace(open_loop, engine=more, not_sent=1)
    assert "token_count_mismatch" not in workload_columns(cut)["flags"], "a request cut off explains the rest"


def test_energy_and_processor_time_are_those_of_the_measured_window():
    samples = [
        Sample(i / 10, "load:w", 100 + i / 10, device_index=0, energy_j=30.0 * i, tree_cpu_s=i / 20, throttle_reasons=4)
        for i in range(101)
    ]
    row = {"received_tokens": 200, "steady_output_tokens_per_s": 60.0}
    columns = workload_telemetry(Stretch(row, "load:w", (102.0, 4.0), (103.0, 2.0)), None, samples)
    assert set(columns) <= set(table_schema("workloads").names)
    assert columns["energy_j"] == pytest.approx(1200) and columns["energy_j_per_token"] == pytest.approx(6)
    assert columns["steady_energy_j_per_token"] == pytest.approx(300 / 60)
    assert columns["engine_cpu_us_per_token"] == pytest.approx(2e6 / 200)
    assert columns["engine_cpu_cores"] == pytest.approx(0.5)
    assert columns["throttle_reasons"] == ["sw_power_cap"] and columns["power_mean_w"] == pytest.approx(300)


def test_the_progress_of_an_open_loop_says_the_rate_and_what_is_in_flight():
    from bench.load.monitor import Progress
    from bench.workload_run import progress_text

    closed = LoadSpec(concurrency=4, num_requests=8)
    assert progress_text(Progress(8, 7, 3, 0, 1.5), closed) == "3/8"
    assert progress_text(Progress(None, 7, 3, 1, 1.5), closed) == "3 done, 1 failed"
    poisson = LoadSpec(pattern="poisson", rate_per_s=4, num_requests=40)
    assert progress_text(Progress(40, 30, 12, 0, 10.0), poisson) == "12/40, 18 in flight, 3.0 sent/s"
    assert progress_text(Progress(40, 40, 38, 0, 10.0), poisson) == "38/40, 2 in flight", "all sent: no rate any more"
