"""The clock of a serving engine: how long its steps take, and what requests see of them.

A step takes

    step + weights x bytes of weights + kv x bytes of KV cache + compute x FLOPs + prefill_token x prompt tokens
         + sequence x sequences

which is linear in the coefficients. Every figure of a steady state is a sum of such steps, so that each is a vector of
what the coefficients multiply (`Vector`); the fit solves for them and a prediction multiplies by them.

The steady state: B requests are in service, each of a prompt of I tokens and O output tokens. A request occupies one
step per chunk of its prompt, the last of which yields its first token, and one per further token. In the time in which
each of the B is served once (a *turn*) the engine makes

    n = max(O + chunks - 1 + wait, B (I + O - 1) / max_num_batched_tokens)

steps: the second is the limit that prompts set where they come faster than a step can take them. With requests of equal
length in a closed loop, as benchmarks send them, as many prompts as fit one step are answered and sent again together
(`group`); the others' prompts fall into a request's decoding and lengthen its TPOT. Arrivals in an open loop come one
by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from analysis.throughput.work import Work

COEFFICIENTS: Final = (
    "step", "weights", "kv", "prefill_compute", "decode_compute", "prefill_token", "sequence",
)  # fmt: skip
"""step: seconds a step takes whatever it holds. weights, kv: per byte read. prefill_compute, decode_compute: per FLOP.
prefill_token: seconds a prompt token. sequence: seconds a sequence and step (scheduling, sampling, output)."""

Vector = tuple[float, ...]
"""What each of COEFFICIENTS multiplies: 1, bytes, bytes, FLOPs, FLOPs, tokens, sequences."""

Cap = Literal["concurrency", "max_num_seqs", "kv_capacity"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine admits. `kv_sequences` is how many requests of the load the KV pool holds at once, counting the
    mean length of a request over its life, I + O/2."""

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_sequences: float = math.inf

    def cap(self) -> tuple[float, Cap]:
        """The most requests in service, and what sets it."""
        if self.kv_sequences < self.max_num_seqs:
            return max(self.kv_sequences, 1.0), "kv_capacity"
        return float(self.max_num_seqs), "max_num_seqs"


@dataclass(frozen=True, slots=True)
class Turn:
    """A steady state with `batch` requests in service.

    `cycle` is the time in which each is served once; `ttft` that from admission to the first token; `tpot` that
    between a request's tokens; `itl` that of a step without a prompt, `itl_prefill` of one with. `burst` is the mean
    time to the first token where all of the batch arrive at once at an idle engine, as at the beginning of a run. None
    where there is no second token. Vectors, see COEFFICIENTS.
    """

    batch: float
    steps: float
    prefill_steps: float
    cycle: Vector
    ttft: Vector
    tpot: Vector | None
    itl: Vector
    itl_prefill: Vector
    burst: Vector


def turn(
    ranks: tuple[Work, ...], limits: Limits, input_tokens: float, output_tokens: float, batch: float,
    *, one_by_one: bool = False,
) -> Turn:  # fmt: skip
    """The steady state of `batch` >= 1 requests; `one_by_one` where requests arrive independently of one another.

    With several pipeline ranks a step passes them one after the other, each with its share of the batch.
    """
    share = max(batch / len(ranks), 1.0)
    parts = [_turn(work, limits, input_tokens, output_tokens, share, one_by_one) for work in ranks]
    if len(parts) == 1:
        return parts[0]
    tpots = [part.tpot for part in parts if part.tpot is not None]
    return Turn(
        batch, parts[0].steps, parts[0].prefill_steps, _sum(part.cycle for part in parts),
        _sum(part.ttft for part in parts), _sum(tpots) if tpots else None, _sum(part.itl for part in parts),
        _sum(part.itl_prefill for part in parts), _sum(part.burst for part in parts),
    )  # fmt: skip


def _turn(
    work: Work, limits: Limits, input_tokens: float, output_tokens: float, batch: float, one_by_one: bool
) -> Turn:
    budget, decodes = limits.max_num_batched_tokens, output_tokens - 1.0
    fewest = batch * (input_tokens + decodes) / budget  # steps, if every one were full
    # What running requests leave of a step for prompts.
    free = max(budget - batch * decodes / max(output_tokens, fewest), 1.0)
    chunks = max(1.0, math.ceil(input_tokens / free - 1e-9))
    group = min(batch, 1.0 if one_by_one else max(1.0, free / input_tokens))
    others = 1.0 - group / batch if batch > 1.0 else 0.0
    # A request that comes while others run waits for the step in progress.
    steps = max(output_tokens + chunks - 1.0 + others, fewest)
    prefill_steps = min(steps, max(batch / group, 1.0) * chunks)
    decoding = batch * decodes / steps

    with_prompt = _step(work, decoding + min(group * input_tokens, free))
    without = _step(work, decoding)
    context = input_tokens + output_tokens / 2.0
    decode = (0.0, 0.0, work.kv_bytes(context), 0.0, work.decode_flops(context), 0.0, 1.0)
    prompt = (0.0, 0.0, 0.0, work.prefill_flops(input_tokens), 0.0, float(input_tokens), 1.0)

    cycle = _add((steps - prefill_steps, without), (prefill_steps, with_prompt), (batch * decodes, decode),
                 (batch, prompt))  # fmt: skip
    itl = _add((1.0, without), (max(decoding, 1.0), decode))
    longest = _add((1.0, with_prompt), (decoding, decode), (min(group, free / input_tokens), prompt))
    groups = max(batch / group, 1.0)  # of a burst, the k-th waits for the k - 1 before it, which decode by then
    burst = _add(((groups + 1) / 2 * chunks, with_prompt), ((groups + 1) / 2 * group, prompt),
                 (group * (groups**2 - 1) / 6 * chunks, decode))  # fmt: skip
    if decodes <= 0:
        return Turn(batch, steps, prefill_steps, cycle, cycle, None, itl, longest, cycle)
    # Of the others' prompts, those in the steps in which this request decodes; where prompts are the limit it also
    # waits for them before its own turn comes. Groups of a closed loop follow one another step by step, as the first
    # burst set them: the step that a group waits for is the one that takes the prompts of the group before it.
    share = min(decodes / max(steps - chunks - others, decodes), 1.0) * (1.0 if one_by_one else others)
    seen = prefill_steps * others * share
    beside = group + (batch - group) * decodes / steps
    tpot = _add(((decodes - seen) / decodes, without), (seen / decodes, with_prompt),
                (share * (batch - group) / decodes, prompt), (beside, decode))  # fmt: skip
    ttft = _add((1.0, cycle), (-decodes, tpot))
    return Turn(batch, steps, prefill_steps, cycle, ttft, tpot, itl, longest, burst)


def _step(work: Work, tokens: float) -> Vector:
    return (1.0, work.weight_bytes(tokens), 0.0, 0.0, 0.0, 0.0, 0.0)


def _add(*terms: tuple[float, Vector]) -> Vector:
    return tuple(map(sum, zip(*[[factor * one for one in vector] for factor, vector in terms], strict=True)))


def _sum(vectors: object) -> Vector:
    return _add(*((1.0, vector) for vector in vectors))  # type: ignore[attr-defined]


def seconds(vector: Vector, rates: Vector) -> float:
    """The time of a vector at these coefficients."""
    return math.sumprod(vector, rates) if hasattr(math, "sumprod") else sum(map(_product, vector, rates))


def _product(one: float, other: float) -> float:
    return one * other


def of_run(steady: Turn, output_tokens: float, requests: int | None) -> tuple[Vector, Vector | None]:
    """TTFT in service and TPOT of a whole run of `requests` that begins with a burst; None: of the steady state.

    The burst moves time from decoding to waiting for the first token; a turn takes as long as ever.
    """
    if steady.tpot is None or not requests:
        return steady.ttft, steady.tpot
    share = min(steady.batch / requests, 1.0)
    decodes = output_tokens - 1.0
    ttft = _add((1.0 - share, steady.ttft), (share, steady.burst))
    return ttft, _add((1.0 / decodes, steady.cycle), (-1.0 / decodes, ttft))


def waiting_turns(concurrency: float, batch: float, requests: int | None = None) -> float:
    """Mean time in the queue, in turns, of a closed loop whose `concurrency` exceeds the `batch` in service.

    Little's law: (C - B) / B. Of a run of `requests` that begins with all C at once, those of the beginning wait
    for fewer: the k-th finds k - B before it.
    """
    if concurrency <= batch:
        return 0.0
    steady = (concurrency - batch) / batch
    if requests is None or requests <= 0:
        return steady
    first = min(requests, concurrency)
    early = max(first - batch, 0.0)
    return (early * (early + 1.0) / (2.0 * batch) + (requests - first) * steady) / requests


def erlang_c(servers: int, offered: float) -> float:
    """Probability that an arrival has to wait, M/M/c with `offered` load in Erlang below `servers`."""
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = offered * blocked / (number + offered * blocked)
    return blocked / (1.0 - (offered / servers) * (1.0 - blocked))
