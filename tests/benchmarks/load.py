"""The load that both sides of a comparison carry, and our own client driving it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from bench.errors import BenchError
from bench.load.prompts import derive_seed, prompt_token_ids


@dataclass(frozen=True)
class Load:
    """A closed loop: `concurrency` requests in flight until `requests` are done, `warmup` before them. Lengths in
    tokens, exact."""

    concurrency: int
    requests: int
    input_tokens: int
    output_tokens: int
    warmup: int

    def __str__(self) -> str:
        return (f"{self.requests} requests ({self.warmup} to warm up) of {self.input_tokens} + {self.output_tokens} "
                f"tokens, {self.concurrency} at a time")  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What one run measured: seconds, and tokens of its completed requests."""

    duration_s: float
    completed: int
    input_tokens: int
    output_tokens: int
    ttft_mean_s: float | None = None
    tpot_mean_s: float | None = None
    e2e_mean_s: float | None = None
    flags: list[str] = field(default_factory=list)

    @property
    def output_tokens_per_s(self) -> float:
        """Output tokens over the whole window, first sending to last answer."""
        return self.output_tokens / self.duration_s

    def check(self, load: Load, who: str) -> None:
        """Raise `BenchError` unless exactly the work of `load` was done: otherwise the comparison is of two things."""
        done = (self.completed, self.input_tokens, self.output_tokens)
        asked = (load.requests, load.requests * load.input_tokens, load.requests * load.output_tokens)
        if done != asked:
            raise BenchError(f"{who}: did {done[0]} requests, {done[1]} prompt and {done[2]} output tokens instead of "
                             f"{asked[0]}, {asked[1]} and {asked[2]}; the runs are not comparable")  # fmt: skip


def prompts(load: Load, seed: int, vocab_size: int) -> list[list[int]]:
    """The token ids that `drive` sends with this seed, for clients that take them from a file."""
    return [prompt_token_ids(seed, index, load.input_tokens, vocab_size) for index in range(load.requests)]


def drive(base_url: str, model: str, load: Load, seed: int, vocab_size: int) -> Measured:
    """Warm up, then measure, with this project's own client. Raises `BenchError` where no request gets through."""
    from bench.load.run import run_load
    from bench.load.spec import LoadSpec

    spec = LoadSpec(
        concurrency=load.concurrency, num_requests=load.requests, seed=seed,
        input_tokens=load.input_tokens, output_tokens=load.output_tokens,
    )  # fmt: skip
    if load.warmup:
        warm = replace(spec, num_requests=load.warmup, seed=derive_seed(seed, "warmup"))
        run_load(base_url, model, warm, vocab_size)
    result = run_load(base_url, model, spec, vocab_size)
    whole = result.whole
    if whole.window_s is None:
        raise BenchError(f"our client: no request completed ({'; '.join(result.errors.values()) or 'no error said'})")
    prompt_tokens = round((whole.total_tokens_per_s - whole.output_tokens_per_s) * whole.window_s)
    return Measured(
        duration_s=whole.window_s,
        completed=result.completed,
        input_tokens=prompt_tokens,
        output_tokens=round(whole.output_tokens_per_s * whole.window_s),
        ttft_mean_s=whole.ttft_s.mean,
        tpot_mean_s=whole.tpot_s.mean,
        e2e_mean_s=whole.e2e_s.mean,
        flags=list(result.flags),
    )
