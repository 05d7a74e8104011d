"""From a specification to single requests: when each is due and how long it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.load.spec import LoadSpec


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """``index`` numbers its prompt; ``due_ns`` is in nanoseconds after the start (0 in a closed loop: when a slot is
    free). Lengths in tokens."""

    index: int
    due_ns: int
    input_tokens: int
    output_tokens: int


def planned_requests(spec: LoadSpec) -> Iterator[PlannedRequest]:
    """All requests in the order they are due; without end for a closed loop that only its duration ends."""
    inputs, outputs, seed = spec.input_lengths, spec.output_lengths, spec.seed
    for index, arrival in enumerate(spec.kind.arrivals(spec)):
        yield PlannedRequest(
            index,
            arrival.due_ns,
            inputs.of(seed, "input", index) if arrival.input_tokens is None else arrival.input_tokens,
            outputs.of(seed, "output", index) if arrival.output_tokens is None else arrival.output_tokens,
        )
