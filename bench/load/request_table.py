"""One row per request, for those who want to look behind the percentiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.load.latency import longest_itl_s, meets
from bench.load.records import RequestRecord

REQUEST_COLUMNS: dict[str, tuple[str, str, str]] = {
    "index": ("int", "", "Number of the request in the schedule, from 0"),
    "worker": ("int", "", "Client process that sent it"),
    "slot": ("int", "", "Closed loop: slot; open loop: connection of its worker"),
    "scheduled_s": ("float", "s", "When it was due, after the start of the run"),
    "released_s": ("float", "s", "When it was free to go; later than due only under a cap on requests in flight"),
    "sent_s": ("float", "s", "When its first byte was written; null: never"),
    "first_token_s": ("float", "s", "Arrival of the first chunk with a token"),
    "last_token_s": ("float", "s", "Arrival of the last chunk with a token"),
    "end_s": ("float", "s", "Arrival of the last byte, or when a failure was noticed"),
    "input_tokens": ("int", "tokens", "Prompt length sent"),
    "prompt_tokens": ("int", "tokens", "Prompt length as the engine counted it"),
    "asked_output_tokens": ("int", "tokens", "Output length asked for"),
    "output_tokens": ("int", "tokens", "Output tokens received"),
    "outcome": ("text", "", "ok, or the kind of failure"),
    "http_status": ("int", "", "Status of the answer; null: none came"),
    "error": ("text", "", "What went wrong, a sentence"),
    "resends": ("int", "", "Sendings on a connection that the server had closed"),
    "ttft_s": ("float", "s", "Due until first token"),
    "tpot_s": ("float", "s", "Mean time per output token after the first"),
    "itl_max_s": ("float", "s", "Longest inter-token latency, one value a token"),
    "e2e_s": ("float", "s", "Due until last token"),
    "send_delay_s": ("float", "s", "Free to go until sent"),
    "steady": ("bool", "", "Due in the steady window"),
    "meets_slo": ("bool", "", "Ended well and within every stated limit; null without one"),
    "chunk_s": ("floats", "s", "Arrival of every chunk with tokens, after the start"),
    "chunk_tokens": ("ints", "tokens", "Tokens of every chunk"),
}
"""Column -> type (int, float, text, bool, floats, ints), unit, meaning."""

CHUNK_COLUMNS = ("chunk_s", "chunk_tokens")


def request_columns(
    records: Sequence[RequestRecord],
    start_ns: int,
    steady_ns: tuple[int, int] | None,
    slo: Mapping[str, float],
    *,
    chunks: bool = False,
) -> dict[str, list[object]]:
    """The columns of :data:`REQUEST_COLUMNS` as lists, those of single chunks only with ``chunks``."""

    def after_start_s(time_ns: int | None) -> float | None:
        return (time_ns - start_ns) / 1e9 if time_ns else None

    columns: dict[str, list[object]] = {name: [] for name in REQUEST_COLUMNS if chunks or name not in CHUNK_COLUMNS}
    for record in records:
        row: dict[str, object] = {
            "index": record.index,
            "worker": record.worker,
            "slot": record.slot,
            "scheduled_s": after_start_s(record.scheduled_ns),
            "released_s": after_start_s(record.released_ns or record.scheduled_ns),
            "sent_s": after_start_s(record.sent_ns),
            "first_token_s": after_start_s(record.first_token_ns),
            "last_token_s": after_start_s(record.last_token_ns),
            "end_s": after_start_s(record.end_ns),
            "input_tokens": record.input_tokens,
            "prompt_tokens": record.prompt_tokens,
            "asked_output_tokens": record.asked_output_tokens,
            "output_tokens": record.output_tokens,
            "outcome": record.outcome,
            "http_status": record.http_status,
            "error": record.error or None,
            "resends": record.resends,
            "ttft_s": record.ttft_s,
            "tpot_s": record.tpot_s,
            "itl_max_s": longest_itl_s(record),
            "e2e_s": record.e2e_s,
            "send_delay_s": record.send_delay_s,
            "steady": steady_ns is not None and steady_ns[0] <= record.scheduled_ns <= steady_ns[1],
            "meets_slo": meets(record, slo) if slo else None,
        }
        if chunks:
            row["chunk_s"] = [(time_ns - start_ns) / 1e9 for time_ns in record.chunk_ns]
            row["chunk_tokens"] = list(record.chunk_tokens)
        for name, values in columns.items():
            values.append(row[name])
    return columns
