"""Every way a request can fail, one by one: counted by kind, explained in a sentence, never averaged in."""

from __future__ import annotations

import pytest

from bench.load.prompts import prompt_token_ids
from bench.load.records import OUTCOMES
from tests.fakes.sim_server import SimServer, free_port

# Behaviour of the simulated server -> outcome, part of the sentence, tokens received. 5 tokens are asked for.
CASES = {
    "dropped": ({"drop": 3}, "connection_error", "3 of 5 tokens", 3),
    "dropped before a token": ({"drop": 0}, "connection_error", "after 0 bytes of the response body", 0),
    "reset before a byte": ({"reset": True}, "connection_error", "without an answer", 0),
    "stalled": ({"stall": 2}, "stalled", "stall_timeout_s=0.8. 2 of 5 tokens", 2),
    "slow first token is not a stall": ({"ttft_s": 1.2}, "ok", "", 5),
    "never a token": ({"stall": 0}, "timeout", "timeout_s=2.5", 0),
    "bad request": ({"status": 400}, "http_error", "HTTP 400: simulated failure", 0),
    "server error": ({"status": 500}, "http_error", "HTTP 500: simulated failure", 0),
    "error page": (
        {"status": 503, "error_body": "<h1>busy</h1>"},
        "http_error",
        "HTTP 503: <h1>busy</h1>",
        0,
    ),
    "endless error page": ({"status": 502, "error_body": "x" * 9000}, "http_error", "x" * 2000, 0),
    "half a character": (
        {"status": 500, "error_body": '{"error":{"message":"\\ud800 is no text"}}'}, "http_error", "? is no text", 0,
    ),
    "empty error page": ({"status": 500, "error_body": ""}, "http_error", "HTTP 500: (empty body)", 0),
    "error in the stream": ({"error_event": 2}, "http_error", "after 2 tokens: simulated engine failure", 2),
    "not JSON": ({"malformed": 2}, "malformed", "is not JSON", 2),
    "not HTTP": ({"bad_framing": 1}, "malformed", "not HTTP", 1),
    "no end mark": ({"done": False}, "malformed", "without [DONE]", 5),
    "no counts": ({"usage": "none"}, "malformed", "no token counts", 5),
    "counted only at the end": ({"usage": "final"}, "ok", "", 5),
    "counted only at the end, coalesced": (
        {"usage": "final", "coalesce": 2},
        "malformed",
        "says 5 tokens",
        3,
    ),
    "too few": ({"stop_after": 4}, "short", "4 tokens instead of 5 (finish_reason 'length')", 4),
    "none at all": ({"stop_after": 0}, "short", "0 tokens instead of 5", 0),
    "too many": ({"extra": 2}, "long", "7 tokens instead of 5", 7),
}


@pytest.fixture(scope="module")
def every_failure():
    """One run in which each fault happens once, on fresh connections, between requests that go well."""
    from bench.load.run import run_load
    from bench.load.spec import LoadSpec

    # Every response closes its connection, so that each request is the first on its own.
    faults = {2 * n + 1: case[0] for n, case in enumerate(CASES.values())}
    spec = LoadSpec(
        concurrency=3, num_requests=2 * len(CASES) + 1, input_tokens=8, output_tokens=5, timeout_s=2.5,
        stall_timeout_s=0.8,
    )  # fmt: skip
    with SimServer(ttft_s=0.01, itl_s=0.002, close="header", faults=faults) as sim:
        result = run_load(sim.base_url, "sim", spec, 2048)
        truth = sim.truth()
    records = {tuple(prompt_token_ids(0, record.index, 8, 2048)[:2]): record for record in result.records}
    return result, {line["number"]: records[tuple(line["head"])] for line in truth}


@pytest.mark.parametrize(("position", "name"), list(enumerate(CASES)), ids=list(CASES))
def test_failure(every_failure, position, name):
    _, by_number = every_failure
    record = by_number[2 * position + 1]
    _, outcome, sentence, tokens = CASES[name]
    assert (record.outcome, record.output_tokens) == (outcome, tokens)
    assert sentence in record.error and len(record.error) < 2200
    record.error.encode()  # any file can take it
    assert bool(record.error) == (outcome != "ok")
    assert record.end_ns >= record.sent_ns >= record.scheduled_ns > 0


def test_failures_are_counted_by_kind(every_failure):
    result, by_number = every_failure
    expected = dict.fromkeys(OUTCOMES, 0)
    for _, outcome, _, _ in CASES.values():
        expected[outcome] += 1
    expected["ok"] += len(CASES) + 1
    assert result.outcomes == expected
    assert result.completed == expected["ok"] and result.failed == 2 * len(CASES) + 1 - expected["ok"]
    assert len(by_number) == result.spec.num_requests and result.not_sent == 0
    assert set(result.errors) == {kind for kind, count in expected.items() if count and kind != "ok"}
    assert "failed_requests" in result.flags and "no_completed_requests" not in result.flags


def test_failures_are_never_averaged_in(every_failure):
    result, _ = every_failure
    ok = [record for record in result.records if record.outcome == "ok"]
    assert result.ttft_s.count == result.e2e_s.count == len(ok)
    assert result.tpot_s.count == sum(len(record.chunk_ns) > 1 for record in ok)
    assert result.itl_s.count == sum(5 - record.chunk_tokens[0] for record in ok)
    assert result.ttft_s.max == max(record.ttft_s for record in ok)
    assert result.whole.counted_output_tokens == 5 * len(ok)


def test_a_kept_connection_closed_between_requests_is_no_failure(run_load):
    with SimServer(ttft_s=0.01, itl_s=0.002, close="silent") as sim:
        result = run_load(sim.base_url, concurrency=2, num_requests=20)
        truth = sim.truth()
    assert result.completed == 20 and len(truth) == 20  # nothing was asked twice


def test_a_kept_connection_closed_as_the_request_goes_out_is_tried_once_more(run_load):
    with SimServer(ttft_s=0.01, itl_s=0.002, close="late") as sim:
        result = run_load(sim.base_url, concurrency=2, num_requests=12)
        connections = sim.truth()[-1]["connections"]
    assert result.completed == 12 and result.failed == 0
    assert result.resends == 10  # all but the first of each slot
    assert connections >= 12  # and those for the metrics
    assert "resends" in result.flags


def test_a_fresh_connection_that_is_closed_is_not_tried_again(run_load):
    with SimServer(ttft_s=0.01, itl_s=0.002, faults={0: {"reset": True}}) as sim:
        result = run_load(sim.base_url, concurrency=1, num_requests=3)
        truth = sim.truth()
    assert result.outcomes["connection_error"] == 1 and result.completed == 2 and len(truth) == 3


def test_a_second_closing_is_a_failure(run_load):
    """Sent again once, not for ever: request 1 goes out on a kept connection and is refused twice."""
    with SimServer(ttft_s=0.01, itl_s=0.002, faults={1: {"reset": True}, 2: {"reset": True}}) as sim:
        result = run_load(sim.base_url, concurrency=1, num_requests=3)
        truth = sim.truth()
    assert [record.outcome for record in result.records] == ["ok", "connection_error", "ok"]
    assert [record.resends for record in result.records] == [0, 1, 0] and len(truth) == 4


def test_an_answer_that_had_begun_is_never_asked_for_again(run_load):
    with SimServer(ttft_s=0.01, itl_s=0.002, faults={1: {"drop": 0}}) as sim:
        result = run_load(sim.base_url, concurrency=1, num_requests=3)
        truth = sim.truth()
    assert [record.outcome for record in result.records] == ["ok", "connection_error", "ok"]
    assert result.resends == 0 and len(truth) == 3


def test_nobody_listens(run_load):
    result = run_load(f"http://127.0.0.1:{free_port()}", concurrency=3, num_requests=7)
    assert result.outcomes["connection_error"] == 7 and result.completed == 0
    assert "Connection refused" in result.errors["connection_error"]
    assert {"no_completed_requests", "failed_requests"} <= set(result.flags)
    assert result.whole.window_s is None and result.whole.output_tokens_per_s is None
    assert result.ttft_s.count == 0 and result.ttft_s.p50 is None and result.steady.window_s is None
    assert result.to_row()["outcome_connection_error"] == 7


def test_a_host_without_an_address(run_load):
    result = run_load("http://no-such-host.invalid:1", num_requests=2)
    assert result.outcomes["connection_error"] == 2
    assert "No connection to no-such-host.invalid:1" in result.errors["connection_error"]


def test_an_engine_that_only_lets_time_pass_ends_the_run(run_load):
    with SimServer(ttft_s=0.01, itl_s=0.002, stall=1) as sim:
        result = run_load(sim.base_url, concurrency=3, num_requests=200, stall_timeout_s=0.15)
    assert result.outcomes["stalled"] >= 6 and result.not_sent > 180
    assert "aborted" in result.flags and "in a row" in result.abort_reason
    assert result.outcomes["stalled"] + result.outcomes["aborted"] + result.not_sent == 200


def test_too_many_slots_for_this_process_are_refused(run_load, monkeypatch):
    import resource

    from bench.errors import BadRequest

    monkeypatch.setattr(resource, "getrlimit", lambda what: (256, 512))
    with pytest.raises(BadRequest, match="^concurrency=1000: this process may open only 256 connections"):
        run_load("http://127.0.0.1:1", concurrency=1000, num_requests=1000)
