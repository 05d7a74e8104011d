"""Reading a finished stream: arrival times and token counts of chunks, however they were cut into pieces."""

from __future__ import annotations

import json
import random

import pytest

from bench.load import sse
from bench.load.sse import parse_stream

DONE = b"data: [DONE]\n\n"


@pytest.fixture(autouse=True, params=["all at once", "typed decoder", "json"])
def every_way_of_reading(request, monkeypatch):
    """All ways of reading events must find the same, the wrong ones included."""
    assert sse._decode is not None and sse._decode_all is not None
    if request.param != "all at once":
        monkeypatch.setattr(sse, "_decode_all", None)
    if request.param == "json":
        monkeypatch.setattr(sse, "_decode", None)


def event(
    tokens: int | None, *, text: str = "", prompt: int = 8, finish: str | None = None, **choice
) -> bytes:
    body = {"choices": [{"index": 0, "text": text, "finish_reason": finish, **choice}]}
    if tokens is not None:
        body["usage"] = {"prompt_tokens": prompt, "completion_tokens": tokens}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def usage(tokens: int) -> bytes:
    return (
        b"data: "
        + json.dumps({"choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": tokens}}).encode()
        + b"\n\n"
    )


def parse(*pieces: bytes, ended: bool = True):
    return parse_stream(pieces, [100 * (i + 1) for i in range(len(pieces))], ended=ended)


def test_one_event_per_piece():
    parsed = parse(event(1), event(2), event(3, finish="length"), usage(3), DONE)
    assert list(parsed.chunk_ns) == [100, 200, 300]
    assert list(parsed.chunk_tokens) == [1, 1, 1]
    assert (parsed.output_tokens, parsed.prompt_tokens, parsed.finish_reason) == (3, 8, "length")
    assert parsed.complete and parsed.problem is None and parsed.server_error is None


def test_a_chunk_of_several_tokens_counts_as_many():
    parsed = parse(event(1), event(5), event(6), usage(6), DONE)
    assert list(parsed.chunk_tokens) == [1, 4, 1] and parsed.output_tokens == 6


def test_events_in_one_piece_are_one_chunk():
    parsed = parse(event(1), event(2) + event(3) + event(5), usage(5) + DONE)
    assert list(parsed.chunk_ns) == [100, 200] and list(parsed.chunk_tokens) == [1, 4]


def test_an_event_arrives_with_its_last_piece():
    whole = event(1)
    parsed = parse(whole[:9], whole[9:-1], whole[-1:], event(2) + usage(2) + DONE)
    assert list(parsed.chunk_ns) == [300, 400]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_any_cut_gives_the_same_chunks(newline):
    """Wherever it is cut, each event gets the time of the piece with its last byte, and nothing is lost."""
    events = [event(1, text="a\\n\\nb \u00e9"), b": ping\n\n", event(3), event(4), usage(4), DONE]
    events = [e.replace(b"\n", newline) for e in events]
    body = b"".join(events)
    ends = [sum(map(len, events[: i + 1])) for i in (0, 2, 3)]
    rng = random.Random(5)
    for _ in range(200):
        cuts = sorted(rng.sample(range(1, len(body)), rng.randint(0, 12)))
        edges = [0, *cuts, len(body)]
        pieces = [body[a:b] for a, b in zip(edges, edges[1:], strict=False)]
        parsed = parse_stream(pieces, edges[1:], ended=True)  # a piece arrives at the time of its end offset
        expected = {}
        for end, tokens in zip(ends, (1, 2, 1), strict=True):
            arrival = min(edge for edge in edges[1:] if edge >= end)
            expected[arrival] = expected.get(arrival, 0) + tokens
        assert dict(zip(parsed.chunk_ns, parsed.chunk_tokens, strict=True)) == expected
        assert parsed.problem is None and parsed.complete


def test_token_ids_count_when_there_is_no_running_usage():
    parsed = parse(event(None, token_ids=[1]), event(None, token_ids=[2, 3]), usage(3), DONE)
    assert list(parsed.chunk_tokens) == [1, 2] and parsed.problem is None


def test_chunks_without_counts_are_believed_only_if_the_total_agrees():
    assert parse(event(None), event(None), usage(2), DONE).problem is None
    assert "says 4 tokens, the chunks 2" in parse(event(None), event(None), usage(4), DONE).problem
    assert "no token counts" in parse(event(None), event(None), DONE).problem


def test_a_chunk_without_new_tokens_is_no_token():
    parsed = parse(event(1), event(1, finish="abort"), usage(1), DONE)
    assert list(parsed.chunk_ns) == [100] and parsed.finish_reason == "abort" and parsed.problem is None


@pytest.mark.parametrize(
    ("pieces", "problem"),
    [
        ([event(1), b"data: {nope\n\n", DONE], "Event 2 of the stream is not JSON"),
        ([b"data: \xff\xfe\n\n"], "not JSON"),
        ([b"data: 7\n\n"], "not an object"),
        ([b"data: {}\n\n"], "not a completion chunk"),
        ([b'data: {"choices": [], "usage": 3}\n\n'], "not a completion chunk"),
        ([event(3), event(2)], "from 3 to 2"),
        ([event(1), usage(2), DONE], "says 2 tokens, the chunks 1"),
        ([event(1), usage(1)], "without [DONE]"),
        ([], "without [DONE] after 0 events"),
        ([b"<html>busy</html>"], "without [DONE]"),
        ([event(1), usage(1), DONE, event(2)], "went on after [DONE]"),
    ],
)
def test_broken_streams_are_named(pieces, problem):
    assert problem in parse(*pieces).problem


def test_what_came_before_a_problem_stays():
    parsed = parse(event(1), event(2), b"data: {nope\n\n")
    assert parsed.output_tokens == 2 and list(parsed.chunk_ns) == [100, 200]


def test_a_cut_off_stream_is_no_problem_of_its_own():
    parsed = parse(event(1), event(2)[:-20], ended=False)
    assert parsed.problem is None and parsed.output_tokens == 1 and not parsed.complete


def test_a_last_event_without_its_blank_line_counts():
    assert parse(event(1), usage(1), b"data: [DONE]").problem is None


def test_error_events_are_the_servers_words():
    parsed = parse(event(1), b'data: {"error": {"message": "engine died", "code": 500}}\n\n', DONE)
    assert parsed.server_error == "engine died" and parsed.output_tokens == 1
    assert parse(b'data: {"error": "plain"}\n\n').server_error == "plain"


def test_other_fields_and_continued_data():
    pieces = [
        b"event: x\nid: 1\n\n",
        b'data: {"choices": [{"text":""}],\ndata: "usage": {"completion_tokens": 1}}\n\n',
        DONE,
    ]
    parsed = parse(*pieces)
    assert parsed.output_tokens == 1 and list(parsed.chunk_ns) == [200] and parsed.complete


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"[" * 100_000, "is not JSON"),
        (b'{"choices":[{"x":' + b"[" * 100_000, "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b'{"choices":[{}],"usage":{"prompt_tokens":8,"completion_tokens":99999999999}}', "no token counts"),
        (b'{"choices":[{}],"usage":{"prompt_tokens":99999999999999999999,"completion_tokens":1}}', ""),
    ],
)
def test_what_no_engine_would_send_breaks_nothing(data, problem):
    parsed = parse_stream([b"data: " + data + b"\n\n", DONE], [1, 2], ended=True)
    assert problem in (parsed.problem or "") and bool(problem) == (parsed.problem is not None)
    assert parsed.prompt_tokens in (None, 8) and parsed.output_tokens <= 1


def test_an_error_of_null_is_none():
    chunk = b'data: {"choices":[{}],"error":null,"usage":{"prompt_tokens":8,"completion_tokens":1}}\n\n'
    parsed = parse_stream([chunk, DONE], [1, 2], ended=True)
    assert (parsed.server_error, parsed.problem, parsed.output_tokens) == (None, None, 1)


def test_a_usual_stream_is_read_at_once_and_nothing_else_is(monkeypatch):
    """The quick way and the slow one find the same in ten thousand streams, of which half have something unusual."""
    if sse._decode_all is None:
        pytest.skip("reads event by event")
    rng = random.Random(11)
    odd = [event(None, token_ids=[1]), event(7), b": ping\n\n", usage(99), b"data: {nope\n\n", b"data: [DONE]\n\n",
           b"data: {},{}\n\n", event(2, text="x")[:-2] + b"\nid: 1\n\n", b'data: {"error": "x"}\n\n']  # fmt: skip
    quick = 0
    for _ in range(10_000):
        counts, total = [], 0
        for _ in range(rng.randrange(1, 8)):
            total += rng.choice([1, 1, 1, 3])
            counts.append(total)
        events = [event(count, text="\\n\\n", finish="length" if count == total else None) for count in counts]
        events += [usage(total)] * rng.randrange(2) + [DONE]
        if rng.random() < 0.5:
            events.insert(rng.randrange(len(events) + 1), rng.choice(odd))
        body = b"".join(events)
        edges = [0, *sorted(rng.sample(range(1, len(body)), rng.randrange(12))), len(body)]
        pieces = [body[a:b] for a, b in zip(edges, edges[1:], strict=False)]
        times = sorted(rng.randrange(50) for _ in pieces)
        found = parse_stream(pieces, times, ended=True)
        quick += sse._read_usual(pieces, times) is not None
        with monkeypatch.context() as slowly:
            slowly.setattr(sse, "_decode_all", None)
            assert parse_stream(pieces, times, ended=True) == found
    assert 4500 < quick < 6000
