"""One measured request: how it ended, when its tokens came."""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field
from typing import Literal, get_args

from bench.load.http import Exchange
from bench.load.schedule import PlannedRequest
from bench.load.sse import ParsedStream, parse_stream

Outcome = Literal[
    "ok",
    "http_error",  # a status other than 200, or an error event inside the stream
    "connection_error",  # refused, reset, or closed before the response was whole
    "timeout",  # not whole within timeout_s
    "stalled",  # silent for stall_timeout_s after the body had begun
    "malformed",  # not HTTP, not an event stream, or counts that contradict each other
    "short",  # fewer tokens than asked for
    "long",  # more tokens than asked for
    "aborted",  # ended by this client: the run was called off
]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(slots=True)
class RequestRecord:
    """Times are ``time.perf_counter_ns()`` of the client; 0 or None where the thing never happened.

    ``scheduled_ns``: when the request was due (in a closed loop: when its slot became free). ``released_ns``: when it
    was free to go, later than due only where an open load's cap held it back. ``sent_ns``: just before its bytes were
    written. ``first_token_ns`` and ``last_token_ns``: arrival of the first and last chunk with tokens. ``end_ns``:
    arrival of the last byte, or for a failure when it was noticed. ``chunk_ns`` and ``chunk_tokens``: arrival and
    token count of every chunk, see :class:`bench.load.sse.ParsedStream`.

    ``input_tokens`` and ``asked_output_tokens`` are what was asked for, ``prompt_tokens`` what the engine counted,
    ``output_tokens`` what came.
    """

    index: int
    slot: int
    outcome: Outcome
    http_status: int | None
    error: str
    scheduled_ns: int
    sent_ns: int
    first_token_ns: int | None
    last_token_ns: int | None
    end_ns: int
    prompt_tokens: int | None
    output_tokens: int
    resends: int = 0
    chunk_ns: array[int] = field(default_factory=lambda: array("q"), repr=False)
    chunk_tokens: array[int] = field(default_factory=lambda: array("i"), repr=False)
    worker: int = 0
    input_tokens: int = 0
    asked_output_tokens: int = 0
    released_ns: int = 0

    @property
    def ttft_s(self) -> float | None:
        """Time to first token: from when the request was due to the arrival of the first chunk with a token."""
        return None if self.first_token_ns is None else (self.first_token_ns - self.scheduled_ns) / 1e9

    @property
    def e2e_s(self) -> float | None:
        """End-to-end latency: from when the request was due to the arrival of the last token."""
        return None if self.last_token_ns is None else (self.last_token_ns - self.scheduled_ns) / 1e9

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first: (E2E - TTFT) / (tokens - 1). None for a single chunk."""
        if self.first_token_ns is None or self.last_token_ns is None or len(self.chunk_ns) < 2:
            return None
        return (self.last_token_ns - self.first_token_ns) / 1e9 / (self.output_tokens - 1)

    @property
    def send_delay_s(self) -> float | None:
        """How late this client sent it, once it was free to go."""
        return (self.sent_ns - (self.released_ns or self.scheduled_ns)) / 1e9 if self.sent_ns else None


def to_record(
    request: PlannedRequest, worker: int, slot: int, exchange: Exchange, released_ns: int
) -> RequestRecord:
    """Parse what came back and judge it against what was asked for."""
    streamed = exchange.status == 200
    parsed = ParsedStream()
    if streamed:
        parsed = parse_stream(exchange.pieces, exchange.arrivals_ns, ended=not exchange.failure)
    outcome, error = _judge(exchange, parsed, request.output_tokens)
    error = error.encode(errors="replace").decode()  # JSON may hold half a surrogate pair, which no file takes
    return RequestRecord(
        index=request.index,
        slot=slot,
        outcome=outcome,
        http_status=exchange.status,
        error=error,
        scheduled_ns=exchange.scheduled_ns,
        sent_ns=exchange.sent_ns,
        first_token_ns=parsed.chunk_ns[0] if parsed.chunk_ns else None,
        last_token_ns=parsed.chunk_ns[-1] if parsed.chunk_ns else None,
        end_ns=exchange.end_ns,
        prompt_tokens=parsed.prompt_tokens,
        output_tokens=parsed.output_tokens,
        resends=exchange.resends,
        chunk_ns=parsed.chunk_ns,
        chunk_tokens=parsed.chunk_tokens,
        worker=worker,
        input_tokens=request.input_tokens,
        asked_output_tokens=request.output_tokens,
        released_ns=released_ns,
    )


def _judge(exchange: Exchange, parsed: ParsedStream, wanted: int) -> tuple[Outcome, str]:
    got = parsed.output_tokens
    # What the server says of itself explains more than the way the connection then ended.
    if parsed.server_error is not None:
        return (
            "http_error",
            f"The server reported an error in the stream after {got} tokens: {parsed.server_error[:2000]}",
        )
    if exchange.status is not None and exchange.status != 200 and exchange.failure != "aborted":
        return "http_error", f"HTTP {exchange.status}: {_message(exchange.body_text())}"
    if exchange.failure:
        failure: Outcome = exchange.failure  # type: ignore[assignment]
        return failure, exchange.error + (f" {got} of {wanted} tokens had come." if exchange.status else "")
    if parsed.problem is not None:
        return "malformed", parsed.problem
    reason = f" (finish_reason {parsed.finish_reason!r})" if parsed.finish_reason else ""
    if got != wanted:
        return ("short" if got < wanted else "long"), f"{got} tokens instead of {wanted}{reason}."
    return "ok", ""


def _message(body: str) -> str:
    """The message inside an error body in OpenAI's format, else the body itself."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"]) if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return body.strip() or "(empty body)"
