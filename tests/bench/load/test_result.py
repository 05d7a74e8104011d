"""From records to a result: flags and flat columns."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest

from bench.load.flags import CLIENT_BOUND_FLAGS, FLAGS, client_limits_text
from bench.load.metrics import MetricsSnapshot
from bench.load.records import OUTCOMES, RequestRecord
from bench.load.request_table import CHUNK_COLUMNS, REQUEST_COLUMNS
from bench.load.result import LoadResult, build_result
from bench.load.selfcheck import ClientCheck
from bench.load.spec import LoadSpec

CALM = ClientCheck(
    event_loop="uvloop", cpu_s=0.1, cpu_us_per_token=5.0, core_share=0.1, share_of_machine=0.05, cpu_wait_s=0.02,
    parse_cpu_s=0.01, loop_lag_p50_s=0.0001, loop_lag_p99_s=0.001, loop_lag_max_s=0.002, send_delay_p99_s=0.0005,
    send_delay_max_s=0.001,
)  # fmt: skip
IDLE = MetricsSnapshot(num_preemptions=0, prefix_cache_hits_tokens=0, prefix_cache_queries_tokens=0)


def make(
    index: int, slot: int, outcome: str = "ok", prompt_tokens: int = 8, resends: int = 0
) -> RequestRecord:
    start = 1_000_000 + (index // 2) * 100_000_000
    times = array("q", [start + 20_000_000 * (i + 1) for i in range(4)])
    error = "" if outcome == "ok" else f"{outcome} of {index}"
    return RequestRecord(
        index, slot, outcome, 200, error, start, start, times[0], times[-1], times[-1], prompt_tokens, 4,
        resends, times, array("i", [1] * 4), worker=index % 2, input_tokens=8, asked_output_tokens=4, released_ns=start,
    )  # fmt: skip


def coalesce(record: RequestRecord) -> RequestRecord:
    record.chunk_tokens, record.output_tokens = array("i", [2] * 4), 8
    return record


def build(records=None, client=CALM, abort="", before=IDLE, after=IDLE, not_sent=0, **fields) -> LoadResult:
    records = [make(i, i % 2) for i in range(100)] if records is None else records
    base = {"num_requests": 100, "input_tokens": 8, "output_tokens": 4}
    if fields.get("pattern", "closed_loop") == "closed_loop":
        base["concurrency"] = 2
    spec = LoadSpec(**{**base, **fields})
    return build_result(
        spec, records, client, abort_reason=abort, before=before, after=after, not_sent=not_sent, start_ns=1_000_000,
        unix_offset_ns=7_000_000,
    )  # fmt: skip


def grow(index: int) -> RequestRecord:
    """One due every 20 ms, each in flight for longer than the last."""
    record = make(index, index)
    record.scheduled_ns = record.sent_ns = record.released_ns = 1_000_000 + index * 20_000_000
    record.end_ns = record.last_token_ns = record.scheduled_ns + (index + 1) * 20_000_000
    return record


def hold(record: RequestRecord) -> RequestRecord:
    record.released_ns += 1
    return record


def test_a_clean_run_has_no_flags():
    assert build().flags == []


@pytest.mark.parametrize(
    ("flag", "change"),
    [
        ("no_completed_requests", {"records": [make(i, i % 2, "timeout") for i in range(100)]}),
        ("failed_requests", {"records": [make(0, 0, "short")] + [make(i, i % 2) for i in range(1, 100)]}),
        ("aborted", {"abort": "Gone."}),
        ("fewer_requests_than_slots", {"concurrency": 101}),
        ("few_requests_per_slot", {"concurrency": 51}),
        ("no_steady_state", {"concurrency": 3}),  # the third slot has no record
        ("few_samples_p95", {"records": [make(i, i % 2) for i in range(19)], "num_requests": 19}),
        ("few_samples_p99", {"records": [make(i, i % 2) for i in range(99)], "num_requests": 99}),
        ("prompt_tokens_mismatch", {"records": [make(i, i % 2, prompt_tokens=9) for i in range(100)]}),
        ("shared_prefix_unused", {"shared_prefix_ratio": 0.5}),
        ("prefix_cache_hits", {"after": replace(IDLE, prefix_cache_hits_tokens=16)}),
        ("preemptions", {"after": replace(IDLE, num_preemptions=1)}),
        ("resends", {"records": [make(i, i % 2, resends=i == 7) for i in range(100)]}),
        ("client_lag", {"client": replace(CALM, loop_lag_p99_s=0.0021)}),
        ("client_lag", {"client": replace(CALM, loop_lag_p99_s=0.0021, kernel_stamped_share=0.99)}),
        ("client_lag", {"client": replace(CALM, loop_lag_p99_s=0.0051, kernel_stamped_share=1.0)}),
        ("client_lag", {"client": replace(CALM, loop_lag_p50_s=0.0021, kernel_stamped_share=1.0)}),
        ("client_share", {"client": replace(CALM, share_of_machine=0.26)}),
        ("not_steady", {"pattern": "constant", "rate_per_s": 50, "records": [grow(i) for i in range(100)]}),
        ("held_back", {"records": [hold(make(i, i % 2)) for i in range(100)]}),
        ("client_cpu_bound", {"client": replace(CALM, core_share=0.8)}),
        ("client_starved", {"client": replace(CALM, cpu_wait_s=0.6)}),
        ("coalesced_tokens", {"records": [coalesce(make(i, i % 2)) for i in range(100)], "output_tokens": 8}),
        ("send_delay", {"client": replace(CALM, send_delay_p99_s=0.011)}),
    ],
)  # fmt: skip
def test_each_flag(flag, change):
    assert flag in build(**change).flags


def test_every_flag_is_explained():
    for flag, meaning in FLAGS.items():
        assert flag == flag.lower() and meaning.endswith(".")


@pytest.mark.parametrize("flag", CLIENT_BOUND_FLAGS)
def test_every_limit_of_the_client_makes_the_row_client_bound(flag):
    broken = {
        "client_lag": replace(CALM, loop_lag_p99_s=0.0021), "client_starved": replace(CALM, cpu_wait_s=0.6),
        "client_cpu_bound": replace(CALM, core_share=0.8), "client_share": replace(CALM, share_of_machine=0.26),
        "send_delay": replace(CALM, send_delay_p99_s=0.011),
    }[flag]  # fmt: skip
    assert {flag, "client_bound"} == set(build(client=broken).flags)
    assert flag in client_limits_text()


def test_a_loop_that_is_late_blurs_nothing_where_the_kernel_stamps():
    late = replace(CALM, loop_lag_p50_s=0.0019, loop_lag_p99_s=0.0049, kernel_stamped_share=1.0)
    assert build(client=late).flags == []
    assert build(client=late).to_row()["client_kernel_stamped_share"] == 1.0


def test_shared_prefixes_are_meant_to_hit_the_cache():
    hits = replace(IDLE, prefix_cache_hits_tokens=16)
    assert build(after=hits, shared_prefix_ratio=0.5).flags == []


def test_an_open_load_knows_no_slots():
    flags = build(pattern="poisson", rate_per_s=50, concurrency=101).flags
    assert not {"fewer_requests_than_slots", "few_requests_per_slot"} & set(flags)


def test_errors_keep_the_first_sentence_of_each_kind():
    records = [make(0, 0, "short"), make(1, 1, "timeout"), make(2, 0, "short"), make(3, 1)]
    result = build(records=records, num_requests=6, not_sent=2)
    assert result.errors == {"short": "short of 0", "timeout": "timeout of 1"}
    assert result.outcomes == {**dict.fromkeys(OUTCOMES, 0), "ok": 1, "short": 2, "timeout": 1}
    assert (result.completed, result.failed, result.not_sent) == (1, 3, 2)


def test_a_missing_metrics_page_costs_only_its_numbers():
    result = build(before=None, after=None)
    assert result.engine.num_preemptions is None and result.cache_config == {}
    assert result.completed == 100 and result.flags == []


def test_row_is_flat_and_no_column_hides_another():
    result = build(slo_ttft_s=0.1)
    row = result.to_row()
    assert row["output_tokens"] == 4 and row["counted_output_tokens"] == 400  # asked for per request; received
    assert row["outcome_ok"] == 100 and row["outcome_timeout"] == 0
    assert row["ttft_p50_s"] == pytest.approx(0.020) and row["itl_p50_s"] == pytest.approx(0.020)
    assert row["started_unix_s"] == pytest.approx(0.008)  # sent at 1 ms of a clock that began at 7 ms
    assert row["itl_count"] == 300 and row["ttft_count"] == 100
    assert row["goodput_share"] == 1.0 and row["goodput_requests_per_s"] == pytest.approx(row["requests_per_s"])
    assert row["client_event_loop"] == "uvloop" and row["steady_rule"] == "all_slots_busy"
    # Both slots have their first token 20 ms after the start; the first round of requests is left out.
    assert row["steady_begin_s"] == pytest.approx(0.020) and row["steady_left_out_requests"] == 2
    assert row["steady_requests"] == row["steady_ttft_count"] == 98
    for name, value in row.items():
        assert value is None or isinstance(value, (int, float, str)) or name in ("errors", "flags"), name


def test_a_row_without_one_request_has_all_columns_too():
    empty, full = build(records=[], not_sent=100, abort="Gone."), build()
    assert empty.to_row().keys() == full.to_row().keys()
    assert empty.to_row()["steady_begin_s"] is None and empty.to_row()["input_tokens"] == 8


def test_one_row_per_request_with_times_after_the_start():
    records = [make(i, i % 2) for i in range(99)] + [make(99, 1, "timeout")]
    result = build(records=records, slo_ttft_s=0.02, slo_itl_s=0.019)
    columns = result.request_columns()
    assert set(columns) == set(REQUEST_COLUMNS) - set(CHUNK_COLUMNS)
    assert {len(values) for values in columns.values()} == {100}
    row = {name: values[2] for name, values in columns.items()}
    assert row["scheduled_s"] == pytest.approx(0.1) and row["sent_s"] == pytest.approx(0.1)
    assert row["first_token_s"] == pytest.approx(0.12) and row["itl_max_s"] == pytest.approx(0.02)
    assert (row["worker"], row["outcome"], row["error"]) == (0, "ok", None)
    assert (row["steady"], row["meets_slo"]) == (True, False)
    assert columns["steady"][:3] == [False, False, True] and columns["error"][99] == "timeout of 99"
    assert set(build().request_columns()["meets_slo"]) == {None}


def test_chunks_are_kept_on_demand():
    columns = build().request_columns(chunks=True)
    assert columns["chunk_tokens"][5] == [1, 1, 1, 1]
    assert columns["chunk_s"][0] == pytest.approx([0.02, 0.04, 0.06, 0.08])


def test_request_columns_fit_their_stated_types():
    import pyarrow

    types = {
        "int": pyarrow.int64(), "float": pyarrow.float64(), "text": pyarrow.string(), "bool": pyarrow.bool_(),
        "floats": pyarrow.list_(pyarrow.float64()), "ints": pyarrow.list_(pyarrow.int32()),
    }  # fmt: skip
    schema = pyarrow.schema([(name, types[kind]) for name, (kind, _, _) in REQUEST_COLUMNS.items()])
    table = pyarrow.table(build(slo_ttft_s=1).request_columns(chunks=True), schema=schema)
    assert table.num_rows == 100
    for name, (_, unit, meaning) in REQUEST_COLUMNS.items():
        assert meaning and (unit == "s") == name.endswith("_s"), name
