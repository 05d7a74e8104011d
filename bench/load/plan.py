"""What one worker process sends, small enough to be handed to it, and the bytes it makes of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from bench.errors import BadRequest
from bench.load.prompts import prompt_token_ids, request_token_ids
from bench.load.schedule import PlannedRequest, planned_requests
from bench.load.spec import LoadSpec
from bench.load.wire import Target, completion_body

PREBUILT_BYTES = 256 << 20  # requests held ready; where there are more, one is made each time one has been sent
PREBUILT_ROUNDS = 4  # of all slots, where nobody knows how many requests there will be


@dataclass(frozen=True)
class DrivePlan:
    """The part of a load that worker ``worker`` of ``workers`` sends: so many requests of every round.

    ``slots``: those of a closed loop that are this worker's, or an open load's cap (0: no cap), which one worker has
    alone. ``first_slot``: where its slots begin in the count over all workers. ``rounds``: after how many requests it
    is this worker's turn again, and ``turns``: which requests of a round are its own. ``total``: its requests, None
    where only the duration ends them.
    """

    target: Target
    model: str
    vocab_size: int
    spec: LoadSpec
    worker: int
    workers: int
    slots: int
    first_slot: int
    rounds: int
    turns: range
    total: int | None

    def requests(self) -> Iterator[PlannedRequest]:
        """This worker's requests in order; the same ones at every call."""
        return (one for one in planned_requests(self.spec) if one.index % self.rounds in self.turns)

    def wire(self, request: PlannedRequest) -> bytes:
        """The bytes of a request."""
        spec = self.spec
        token_ids = request_token_ids(
            spec.seed, request.index, request.input_tokens, self.vocab_size, spec.shared_prefix_ratio,
            spec.prefix_groups,
        )  # fmt: skip
        body = completion_body(self.model, token_ids, request.output_tokens, spec.temperature, spec.top_p)
        return self.target.post_json("/v1/completions", body)


def make_plans(base_url: str, model: str, spec: LoadSpec, vocab_size: int, workers: int) -> list[DrivePlan]:
    """Deal a load out to ``workers`` processes, or fewer where there is not one slot or request for each.

    Slots are split as evenly as whole numbers allow, and requests by slots: of every round of as many requests as
    there are slots each worker has one for each of its own. Were they dealt evenly, a worker with more slots would be
    done first and the others would go on at a lower concurrency. An open load without a cap is dealt by turns: each
    worker sees the whole pattern thinned out. Raises :class:`BadRequest` for a load that cannot be made.
    """
    target, total = Target.parse(base_url), spec.total
    check_prompts(spec, vocab_size)
    cap = spec.concurrency or 0
    if spec.is_open and cap:
        workers = 1  # a cap on all requests in flight is one count
    limits = [limit for limit in (total, cap or None) if limit is not None]
    workers = max(1, min([workers, *limits]))
    slots = cap if spec.is_open or total is None else min(cap, total)
    plans, first_slot = [], 0
    for worker in range(workers):
        mine = slots // workers + (worker < slots % workers)
        rounds, turns = workers, range(worker, worker + 1)
        if slots:
            rounds, turns = slots, range(first_slot, first_slot + mine)
        share = None if total is None else sum(len(range(turn, total, rounds)) for turn in turns)
        plans.append(
            DrivePlan(target, model, vocab_size, spec, worker, workers, mine, first_slot, rounds, turns, share)
        )
        first_slot += mine
    return plans


def check_prompts(spec: LoadSpec, vocab_size: int) -> None:
    """Refuse, before anything starts, a load of more requests than there are prompts that begin differently."""
    total, shortest = spec.total, spec.shortest_prompt_tokens
    if spec.shared_prefix_ratio > 0 or total is None:
        return
    try:
        prompt_token_ids(spec.seed, total - 1, shortest, vocab_size)
    except BadRequest:
        if not spec.kind.brings_lengths:
            raise
        raise BadRequest(
            f"trace_file={spec.trace_file}: of its {total} requests the shortest have {shortest} prompt tokens, and so "
            "many such prompts cannot all begin differently; cut it with num_requests"
        ) from None


@dataclass(frozen=True, slots=True)
class Job:
    """One request ready to be sent."""

    request: PlannedRequest
    wire: bytes


class JobQueue:
    """Requests made ready before the clock starts; never more in memory than :data:`PREBUILT_BYTES`.

    Those beyond are made one by one, each right after another has been sent: not in the way of a sending.
    """

    def __init__(self, plan: DrivePlan) -> None:
        self._plan = plan
        self._requests = plan.requests()
        self._ready: deque[Job] = deque()
        self._bytes = 0
        self._depth = max(PREBUILT_ROUNDS * plan.slots, 16) if plan.total is None else plan.total
        while len(self._ready) < self._depth and self._bytes < PREBUILT_BYTES and self._build():
            pass
        self._depth = len(self._ready)

    def peek(self) -> Job | None:
        """The next request, left in place; None when all are gone."""
        if not self._ready:
            self._build()
        return self._ready[0] if self._ready else None

    def take(self) -> Job | None:
        """The next request; None when all are gone."""
        job = self.peek()
        if job is not None:
            self._ready.popleft()
            self._bytes -= len(job.wire)
        return job

    def top_up(self) -> None:
        """Make one more ready, if one is missing."""
        if len(self._ready) < self._depth:
            self._build()

    def _build(self) -> bool:
        request = next(self._requests, None)
        if request is None:
            return False
        self._ready.append(Job(request, self._plan.wire(request)))
        self._bytes += len(self._ready[-1].wire)
        return True
