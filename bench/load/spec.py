"""What one closed-loop load run sends."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.errors import BadRequest


@dataclass(frozen=True)
class LoadSpec:
    """A closed loop of ``concurrency`` slots, each sending its next request when its last one has ended.

    ``num_requests`` are measured; ``warmup_requests`` run before them at the same concurrency and are never
    counted. Lengths are in tokens and exact: the engine is told to ignore its end-of-sequence token.

    ``seed`` picks the prompts. Give every run on the same engine its own seed (see
    :func:`bench.load.prompts.derive_seed`): two runs with the same seed and lengths send the same prompts,
    and the second would be answered out of the engine's prefix cache.

    ``timeout_s`` bounds one request from its start to its last byte. ``stall_timeout_s`` bounds the silence
    between two pieces of a response once its body has begun; it does not bound the wait for the first token,
    because a request may queue for long with nothing wrong.

    Raises :class:`BadRequest` when a field is out of range.
    """

    concurrency: int
    num_requests: int
    input_tokens: int
    output_tokens: int
    warmup_requests: int = 0
    seed: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    timeout_s: float = 600.0
    stall_timeout_s: float = 120.0

    def __post_init__(self) -> None:
        for name in ("concurrency", "num_requests", "input_tokens", "output_tokens"):
            self._check_int(name, 1)
        for name in ("warmup_requests", "seed"):
            self._check_int(name, 0)
        for name in ("timeout_s", "stall_timeout_s"):
            self._check_float(name, above=0.0)
        self._check_float("temperature", at_least=0.0)
        self._check_float("top_p", above=0.0)
        if self.top_p > 1:
            raise BadRequest(f"top_p is {self.top_p!r}; give a number above 0 and at most 1.")

    @property
    def slots(self) -> int:
        """Connections really used: no more than there are requests to send."""
        return min(self.concurrency, self.num_requests)

    def _check_int(self, name: str, at_least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
            raise BadRequest(f"{name} is {value!r}; give a whole number of at least {at_least}.")

    def _check_float(self, name: str, *, at_least: float | None = None, above: float | None = None) -> None:
        value = getattr(self, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if at_least is not None and (not number or value < at_least):
            raise BadRequest(f"{name} is {value!r}; give a finite number of at least {at_least:g}.")
        if above is not None and (not number or value <= above):
            raise BadRequest(f"{name} is {value!r}; give a finite number above {above:g}.")
