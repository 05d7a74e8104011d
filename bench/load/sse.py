"""Read a finished event stream of ``/v1/completions``: when chunks arrived and what tokens they brought."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np

try:
    import msgspec
except ImportError:  # vLLM brings it; without it reading takes three times as long, and finds the same
    msgspec = None  # type: ignore[assignment]

_EVENT_END = re.compile(rb"\n\n|\r\n\r\n|\r\r")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BETWEEN = b"\n\ndata: "  # from one event of a single line to the next
_COUNT_LIMIT = 1 << 31  # what an `array("i")` holds; no count of tokens comes near it


@dataclass(slots=True)
class ParsedStream:
    """What a completion stream said.

    ``chunk_ns[i]`` is the arrival (clock of the caller) of the piece that completed chunk ``i``,
    ``chunk_tokens[i]`` (>= 1) the tokens it brought. Chunks that arrived in one piece are one chunk here, for
    nothing tells their times apart. ``problem`` is a sentence if the stream broke its own format; what came
    before stays. ``server_error`` is the message of an error event. ``complete`` says that the closing
    ``[DONE]`` was seen.
    """

    chunk_ns: array[int] = field(default_factory=lambda: array("q"))
    chunk_tokens: array[int] = field(default_factory=lambda: array("i"))
    output_tokens: int = 0
    prompt_tokens: int | None = None
    finish_reason: str | None = None
    server_error: str | None = None
    problem: str | None = None
    complete: bool = False


def parse_stream(pieces: Sequence[bytes], arrivals_ns: Sequence[int], *, ended: bool) -> ParsedStream:
    """Parse body ``pieces`` with their arrival times (ns, not decreasing), one time per piece.

    Tokens are counted, in this order of preference, by the running ``usage.completion_tokens`` of each chunk,
    by its ``token_ids``, or as one per chunk; the last is believed only if the closing usage agrees.
    ``ended`` is False when the connection broke off, and then an unfinished last event is ignored instead of
    being a problem.
    """
    if ended and _decode_all is not None and (usual := _read_usual(pieces, arrivals_ns)) is not None:
        return usual
    parsed = ParsedStream()
    counter = _TokenCounter(parsed)
    for arrival_ns, event in _events(pieces, arrivals_ns, ended):
        data = _data_of(event)
        if data is None:
            continue
        if parsed.complete:
            parsed.problem = f"The stream went on after [DONE]: {data[:80]!r}."
            return parsed
        if data == b"[DONE]":
            parsed.complete = True
            continue
        if counter.take_usual(data, arrival_ns):
            continue
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):  # the latter where it is nested without end
            parsed.problem = f"Event {counter.events + 1} of the stream is not JSON: {data[:80]!r}."
            return parsed
        counter.take(chunk, arrival_ns)
        if parsed.problem or parsed.server_error:
            return parsed
    counter.close(ended)
    return parsed


if msgspec is not None:

    class _Choice(msgspec.Struct, gc=False):
        finish_reason: str | None = None

    _Count = Annotated[int, msgspec.Meta(ge=0, lt=_COUNT_LIMIT)]

    class _Usage(msgspec.Struct, gc=False):
        prompt_tokens: _Count
        completion_tokens: _Count

    class _Chunk(msgspec.Struct, gc=False):
        """The usual event: what is not one choice and the running usage does not decode."""

        choices: tuple[_Choice]
        usage: _Usage
        error: None = None

    class _Closing(msgspec.Struct):
        choices: tuple[()]
        usage: _Usage
        error: None = None

    _decode = msgspec.json.Decoder(_Chunk).decode
    _decode_all = msgspec.json.Decoder(list[_Chunk]).decode
    _decode_closing = msgspec.json.Decoder(_Closing).decode
else:
    _decode = _decode_all = _decode_closing = None


def _read_usual(pieces: Sequence[bytes], arrivals_ns: Sequence[int]) -> ParsedStream | None:
    """The whole of a usual stream at once; None, with nothing said, for any other, which is then read event by event.

    Usual is: one line an event, each with one choice and more tokens than the one before by its running usage, then
    the closing usage, if any, and ``[DONE]``. All its events are decoded in one call, as one JSON array, at a fifth of
    the cost of one by one. An event of two objects shows in their number, unless another is the half of one: what no
    server sends, and is read as the usage says.
    """
    body = b"".join(pieces)
    events = body.split(_BETWEEN)
    if events[-1] != b"[DONE]\n\n" or not events[0].startswith(b"data: {") or b"\r" in body:
        return None
    del events[-1]
    line_ends = np.count_nonzero(np.frombuffer(body, dtype=np.uint8) == ord("\n"))  # bytes.count is slow
    if line_ends != 2 * len(events) + 2:
        return None  # an event of several lines, or not of data
    lengths = list(map(len, events))
    events[0] = events[0][len(b"data: ") :]
    closing = _closing_usage(events[-1])
    if closing is not None:
        del events[-1]
    try:
        chunks = _decode_all(b"[%b]" % b",".join(events))
    except (msgspec.MsgspecError, RecursionError):
        return None
    if not chunks or len(chunks) != len(events):
        return None
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    if closing is not None and closing.completion_tokens != counts[-1]:
        return None
    tokens = np.diff(np.array(counts, dtype=np.int64), prepend=0)
    if tokens.min() <= 0:
        return None
    # Each event has the time of the piece that holds the last byte of its blank line; those of one time are one chunk.
    ends = np.cumsum(lengths[: len(counts)]) + np.arange(len(counts)) * len(_BETWEEN) + 2
    piece = np.searchsorted(np.cumsum(list(map(len, pieces))), ends)
    at_ns = np.asarray(arrivals_ns, dtype=np.int64)[piece]
    first = np.flatnonzero(np.diff(at_ns, prepend=at_ns[0] - 1))
    reasons = (chunk.choices[0].finish_reason for chunk in reversed(chunks))
    return ParsedStream(
        chunk_ns=array("q", at_ns[first].tobytes()),
        chunk_tokens=array("i", np.add.reduceat(tokens, first).astype(np.intc).tobytes()),
        output_tokens=counts[-1],
        prompt_tokens=(closing or chunks[-1].usage).prompt_tokens,
        finish_reason=next((reason for reason in reasons if reason is not None), None),
        complete=True,
    )


def _closing_usage(event: bytes) -> _Usage | None:
    """The counts of the event without a choice that ends a stream; None if this is another."""
    try:
        return _decode_closing(event).usage
    except (msgspec.MsgspecError, RecursionError):
        return None


class _TokenCounter:
    """Turns chunk objects into token counts, and holds them against each other."""

    def __init__(self, parsed: ParsedStream) -> None:
        self.events = 0
        self._parsed = parsed
        self._guessed = False  # at least one chunk was counted as one token for want of better
        self._final: int | None = None

    def take_usual(self, data: bytes, arrival_ns: int) -> bool:
        """Take the usual event, one choice and the running usage; False, with nothing done, if it is any other."""
        if _decode is None:
            return False
        try:
            chunk = _decode(data)
        except (msgspec.MsgspecError, RecursionError):
            return False
        usage, parsed = chunk.usage, self._parsed
        tokens = usage.completion_tokens - parsed.output_tokens
        if tokens <= 0:
            return False
        self.events += 1
        parsed.prompt_tokens = usage.prompt_tokens
        finish_reason = chunk.choices[0].finish_reason
        if finish_reason is not None:
            parsed.finish_reason = finish_reason
        self._add(tokens, arrival_ns)
        return True

    def take(self, chunk: Any, arrival_ns: int) -> None:
        parsed = self._parsed
        self.events += 1
        if not isinstance(chunk, dict):
            parsed.problem = f"Event {self.events} of the stream is not an object: {str(chunk)[:80]!r}."
            return
        if (error := chunk.get("error")) is not None:
            message = error.get("message") if isinstance(error, dict) else None
            parsed.server_error = str(message or error)
            return
        choices, usage = chunk.get("choices"), chunk.get("usage")
        if not isinstance(choices, list) or not (usage is None or isinstance(usage, dict)):
            parsed.problem = (
                f"Event {self.events} of the stream is not a completion chunk: {str(chunk)[:80]!r}."
            )
            return
        so_far = _count(usage, "completion_tokens")
        prompt_tokens = _count(usage, "prompt_tokens")
        if prompt_tokens is not None:
            parsed.prompt_tokens = prompt_tokens
        if not choices:
            self._final = so_far if so_far is not None else self._final
            return
        choice = choices[0] if isinstance(choices[0], dict) else {}
        if choice.get("finish_reason") is not None:
            parsed.finish_reason = str(choice["finish_reason"])
        if so_far is not None:
            tokens = so_far - parsed.output_tokens
        elif isinstance(choice.get("token_ids"), list):
            tokens = len(choice["token_ids"])
        else:
            tokens, self._guessed = 1, True
        if tokens < 0:
            parsed.problem = (
                f"Event {self.events} takes the token count from {parsed.output_tokens} to {so_far}."
            )
        elif tokens:
            self._add(tokens, arrival_ns)

    def _add(self, tokens: int, arrival_ns: int) -> None:
        parsed = self._parsed
        parsed.output_tokens += tokens
        if parsed.chunk_ns and parsed.chunk_ns[-1] == arrival_ns:
            parsed.chunk_tokens[-1] += tokens
        else:
            parsed.chunk_ns.append(arrival_ns)
            parsed.chunk_tokens.append(tokens)

    def close(self, ended: bool) -> None:
        parsed = self._parsed
        if not ended:
            return
        if not parsed.complete:
            parsed.problem = f"The stream ended without [DONE] after {self.events} events."
        elif self._final is not None and self._final != parsed.output_tokens:
            parsed.problem = (
                f"The closing usage says {self._final} tokens, the chunks {parsed.output_tokens}."
            )
        elif self._guessed and self._final is None:
            parsed.problem = "The stream has no token counts: neither usage nor token_ids."


def _count(usage: dict[str, Any] | None, name: str) -> int | None:
    value = usage.get(name) if usage else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _COUNT_LIMIT else None


def _events(pieces: Sequence[bytes], arrivals_ns: Sequence[int], ended: bool) -> Iterator[tuple[int, bytes]]:
    """Each event's bytes with the arrival of the piece that held the last byte of its closing blank line."""
    body = b"".join(pieces)
    piece, covered, start = 0, len(pieces[0]) if pieces else 0, 0
    for match in _EVENT_END.finditer(body):
        while covered < match.end():
            piece += 1
            covered += len(pieces[piece])
        yield arrivals_ns[piece], body[start : match.start()]
        start = match.end()
    if ended and body[start:].strip():
        yield arrivals_ns[len(pieces) - 1], body[start:]


def _data_of(event: bytes) -> bytes | None:
    """The data lines of an event, joined; None for comments and other fields alone."""
    if event.startswith(b"data: ") and b"\n" not in event and b"\r" not in event:
        return event[6:]
    lines = [line[5:].removeprefix(b" ") for line in _LINE_END.split(event) if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
