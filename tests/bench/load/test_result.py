"""From records to a result: flags and flat columns."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest

from bench.load.metrics import MetricsSnapshot
from bench.load.records import OUTCOMES, RequestRecord
from bench.load.result import FLAGS, LoadResult, build_result
from bench.load.selfcheck import ClientCheck
from bench.load.spec import LoadSpec

CALM = ClientCheck("uvloop", 0.1, 5.0, 0.1, 0.05, 0.02, 0.01, 0.0001, 0.001, 0.002, 0.0005, 0.001)
IDLE = MetricsSnapshot(num_preemptions=0, prefix_cache_hits_tokens=0, prefix_cache_queries_tokens=0)


def make(
    index: int, slot: int, outcome: str = "ok", prompt_tokens: int = 8, resends: int = 0
) -> RequestRecord:
    start = 1_000_000 + (index // 2) * 100_000_000
    times = array("q", [start + 20_000_000 * (i + 1) for i in range(4)])
    error = "" if outcome == "ok" else f"{outcome} of {index}"
    return RequestRecord(
        index, slot, outcome, 200, error, start, start, times[0], times[-1], times[-1], prompt_tokens, 4,
        resends, times, array("i", [1] * 4),
    )  # fmt: skip


def coalesce(record: RequestRecord) -> RequestRecord:
    record.chunk_tokens, record.output_tokens = array("i", [2] * 4), 8
    return record


def build(records=None, warmup=(), client=CALM, abort="", before=IDLE, after=IDLE, **fields) -> LoadResult:
    records = [make(i, i % 2) for i in range(100)] if records is None else records
    spec = LoadSpec(
        **{"concurrency": 2, "num_requests": 100, "input_tokens": 8, "output_tokens": 4, **fields}
    )
    return build_result(spec, records, warmup, client, abort, before, after, 0.5, 7_000_000)


def test_a_clean_run_has_no_flags():
    assert build().flags == []


@pytest.mark.parametrize(
    ("flag", "change"),
    [
        ("no_completed_requests", {"records": [make(i, i % 2, "timeout") for i in range(100)]}),
        ("failed_requests", {"records": [make(0, 0, "short")] + [make(i, i % 2) for i in range(1, 100)]}),
        ("aborted", {"abort": "Gone."}),
        ("warmup_failures", {"warmup": [make(200, 0, "http_error")]}),
        ("fewer_requests_than_slots", {"concurrency": 101}),
        ("few_requests_per_slot", {"concurrency": 51}),
        ("no_steady_state", {"concurrency": 3}),  # the third slot has no record
        ("few_samples_p95", {"records": [make(i, i % 2) for i in range(19)], "num_requests": 19}),
        ("few_samples_p99", {"records": [make(i, i % 2) for i in range(99)], "num_requests": 99}),
        ("prompt_tokens_mismatch", {"input_tokens": 9}),
        ("prefix_cache_hits", {"after": replace(IDLE, prefix_cache_hits_tokens=16)}),
        ("preemptions", {"after": replace(IDLE, num_preemptions=1)}),
        ("resends", {"records": [make(i, i % 2, resends=i == 7) for i in range(100)]}),
        ("client_lag", {"client": replace(CALM, loop_lag_p99_s=0.0021)}),  # ITL is 20 ms
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


def test_lag_is_judged_by_what_is_measured():
    """The same lag blurs a 20 ms ITL and is nothing to a run of single tokens whose TTFT is what counts."""
    laggy = replace(CALM, loop_lag_p99_s=0.003)
    slow = [replace_times(make(i, i % 2), first_ms=500) for i in range(100)]
    assert "client_lag" in build(client=laggy).flags
    assert "client_lag" not in build(records=slow, client=laggy, output_tokens=1).flags


def replace_times(record: RequestRecord, first_ms: int) -> RequestRecord:
    record.chunk_ns, record.chunk_tokens = (
        array("q", [record.sent_ns + first_ms * 1_000_000]),
        array("i", [1]),
    )
    record.first_token_ns = record.last_token_ns = record.end_ns = record.chunk_ns[0]
    record.output_tokens = 1
    return record


def test_errors_keep_the_first_sentence_of_each_kind():
    records = [make(0, 0, "short"), make(1, 1, "timeout"), make(2, 0, "short"), make(3, 1)]
    result = build(records=records, warmup=[make(9, 0, "http_error"), make(10, 0, "short")], num_requests=6)
    assert result.errors == {
        "short": "short of 0",
        "timeout": "timeout of 1",
        "http_error": "http_error of 9",
    }
    assert result.outcomes == {**dict.fromkeys(OUTCOMES, 0), "ok": 1, "short": 2, "timeout": 1}
    assert (result.completed, result.failed, result.not_sent) == (1, 3, 2)


def test_a_missing_metrics_page_costs_only_its_numbers():
    result = build(before=None, after=None)
    assert result.engine.num_preemptions is None and result.cache_config == {}
    assert result.completed == 100 and result.flags == []


def test_row_is_flat_and_no_column_hides_another():
    result = build()
    row = result.to_row()
    assert (
        row["output_tokens"] == 4 and row["counted_output_tokens"] == 400
    )  # asked for per request; received
    assert row["outcome_ok"] == 100 and row["outcome_timeout"] == 0
    assert row["ttft_p50_s"] == pytest.approx(0.020) and row["itl_p50_s"] == pytest.approx(0.020)
    assert row["started_unix_s"] == pytest.approx(0.008)  # sent at 1 ms of a clock that began at 7 ms
    assert row["itl_count"] == 300 and row["ttft_count"] == 100
    assert row["client_event_loop"] == "uvloop" and row["engine_kv_cache_usage_max_ratio"] == 0.5
    for name, value in row.items():
        assert value is None or isinstance(value, (int, float, str)) or name in ("errors", "flags"), name
    lengths = 10 + 4 + len(OUTCOMES) + 2 * 5 + 4 * 7 + 2 + 12 + 9 + 1 + 2 + 2 + 2
    assert len(row) == lengths
