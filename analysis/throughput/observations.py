"""Rows of result sets as the throughput fit sees them: what ran, under which load, what the clock said."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final

from analysis import gpus
from analysis.arithmetic import ArithmeticRefusal
from analysis.fit.starts import origin_of
from analysis.gpus import Sheet
from analysis.predict.features import features_of_row
from analysis.rows import held_back
from analysis.throughput.calibration import METRICS, Metric, weight_format
from analysis.throughput.roofline import Limits, Turn, Vector, of_run, turn, waiting_turns
from analysis.throughput.work import Work, work_of

SPOILT: Final[dict[str, str]] = {
    "failed_requests": "some requests failed", "aborted": "called off", "no_completed_requests": "nothing completed",
    "prefix_cache_hits": "prompts were partly cached", "prompt_tokens_mismatch": "other prompts than asked",
    "preemptions": "requests were preempted", "throttled": "the device was throttled",
    "foreign_processes": "a foreign process ran beside it", "coalesced_tokens": "tokens came several at a time",
}  # fmt: skip
"""Flags of rows that the formula does not describe, and why."""
WHOLE_START: Final = frozenset({"throttled", "foreign_processes"})
_CLOSED: Final = (None, "closed", "closed_loop")


@dataclass(frozen=True, slots=True)
class Origin:
    """Rows that may be fitted together. `runner` is vLLM's model runner."""

    vllm_version: str
    runner: str
    device: str
    weight_format: str


@dataclass(frozen=True)
class Observation:
    """One workload on one engine start, a closed loop of equal lengths.

    `measured` holds seconds of `tpot` and `ttft` and tokens/s of `throughput`; what was not measured is absent.
    `requests` is how many were sent, None where the figures are those of a steady state.
    """

    row_id: str
    model: str
    origin: Origin
    sheet: Sheet | None
    work: Work
    limits: Limits
    tensor_parallel_size: int
    concurrency: int
    input_tokens: int
    output_tokens: int
    requests: int | None
    measured: Mapping[Metric, float]

    @property
    def length(self) -> str:
        return f"{self.input_tokens} in, {self.output_tokens} out"

    @property
    def batch(self) -> float:
        """Requests in service at once."""
        return min(float(self.concurrency), self.limits.cap()[0])

    def turn(self) -> Turn:
        return turn((self.work,), self.limits, self.input_tokens, self.output_tokens, self.batch)

    @cached_property
    def vectors(self) -> dict[Metric, Vector]:
        """What the coefficients multiply in every metric, as a time: of the throughput, the seconds per token.

        A run of few requests ends with a turn that is not full; it takes as long as a full one.
        """
        steady, batch = self.turn(), self.batch
        waiting = waiting_turns(self.concurrency, batch, self.requests)
        ttft, tpot = of_run(steady, self.output_tokens, self.requests)
        found: dict[Metric, Vector] = {
            "ttft": tuple(own + waiting * whole for own, whole in zip(ttft, steady.cycle, strict=True))
        }
        if tpot is not None:
            found["tpot"] = tpot
        served = batch if self.requests is None else self.requests / max(-(-self.requests // batch), 1.0)
        found["throughput"] = tuple(one / (served * self.output_tokens) for one in steady.cycle)
        return found

    def measured_seconds(self) -> dict[Metric, float]:
        """The measured figures as the times that `vectors` describe."""
        return {name: 1.0 / value if name == "throughput" else value for name, value in self.measured.items()}

    def features(self) -> dict[str, float]:
        """What a calibration states ranges of."""
        return features(self.work, self.batch, self.input_tokens, self.output_tokens)


def features(work: Work, batch: float, input_tokens: float, output_tokens: float) -> dict[str, float]:
    return {
        "batch": batch, "input_tokens": float(input_tokens), "output_tokens": float(output_tokens),
        "weight_bytes": work.weight_bytes(batch),
    }  # fmt: skip


@dataclass(frozen=True)
class Read:
    """The rows that can be fitted, by what may be pooled, and how many were left out for which reason."""

    observations: dict[Origin, list[Observation]]
    left_out: dict[str, int]
    given: int


def read(engines: Iterable[Mapping[str, Any]], workloads: Iterable[Mapping[str, Any]]) -> Read:
    """Joins the two tables. Nothing is dropped silently: every workload is fitted or counted under a reason."""
    starts = {row.get("run_id"): row for row in engines}
    kept: dict[Origin, list[Observation]] = {}
    left_out: Counter[str] = Counter()
    given = 0
    for row in workloads:
        start = starts.get(row.get("run_id"))
        if start is None:
            continue  # of an older measurement of the same point
        given += 1
        reason = unusable(start, row)
        if reason is None:
            made = _observation(start, row)
            if isinstance(made, Observation):
                kept.setdefault(made.origin, []).append(made)
                continue
            reason = made
        left_out[reason] += 1
    return Read(kept, dict(left_out.most_common()), given)


def unusable(start: Mapping[str, Any], row: Mapping[str, Any]) -> str | None:
    """Why a row cannot stand for the engine's own speed; None if it can."""
    if start.get("colocation_id") is not None or row.get("colocation_id") is not None:
        return "other engines ran on the device at once"
    # An engine's own flags repeat those of all its workloads; of them only what concerns the whole start counts here.
    flags = set(row.get("flags") or ()) | (set(start.get("flags") or ()) & WHOLE_START)
    if start.get("status") != "ok" or row.get("status") != "ok" or (row.get("failed") or 0) > 0:
        return "failed or incomplete"
    if held_back(row):
        return "client-bound"
    for flag, why in SPOILT.items():
        if flag in flags:
            return why
    if row.get("knee_trial") is not None:
        return "a trial of a knee search: short, and driven until it breaks"
    if row.get("pattern") not in _CLOSED:
        return "open loop: its concurrency is not a setting"
    if row.get("input_tokens_json") or row.get("output_tokens_json") or (row.get("shared_prefix_ratio") or 0) > 0:
        return "lengths vary or prompts share a prefix"
    if (start.get("pipeline_parallel_size") or 1) > 1:
        return "pipeline parallel"
    if (start.get("cpu_offload_gb") or 0) > 0:
        return "weights offloaded"
    return None


def _observation(start: Mapping[str, Any], row: Mapping[str, Any]) -> Observation | str:
    numbers = [row.get(name) for name in ("concurrency", "input_tokens", "output_tokens")]
    measured, requests = _measured(row)
    if any(not isinstance(one, int) or one < 1 for one in numbers) or not measured:
        return "the load or the clock is missing"
    concurrency, input_tokens, output_tokens = numbers
    try:
        config = json.loads(start["model_config_json"])
        known = features_of_row(start)
        origin = origin_of(start)
        work = work_of(
            config, dtype=start.get("dtype"), kv_cache_dtype=start.get("kv_cache_dtype") or "auto",
            tensor_parallel_size=known.tensor_parallel_size, vllm_version=origin.vllm_version,
            platform="cpu" if origin.on_cpu else "cuda",
        )  # fmt: skip
    except (KeyError, ValueError, TypeError, ArithmeticRefusal):
        return "the arithmetic does not know the model or its settings"
    tokens = start.get("kv_cache_tokens")
    held = tokens / (input_tokens + output_tokens / 2) if tokens else float("inf")
    sheet = next((one.sheet for one in gpus.GPUS if one.name == origin.gpu), None)
    return Observation(
        row_id=f"{row.get('run_id')}/{row.get('position', 0)}", model=str(start.get("model") or "unknown"),
        origin=Origin(origin.vllm_version, origin.runner, origin.gpu, weight_format(config, known.dtype_bytes)),
        sheet=sheet, work=work, limits=Limits(known.max_num_seqs, known.max_num_batched_tokens, held),
        tensor_parallel_size=known.tensor_parallel_size, concurrency=concurrency, input_tokens=input_tokens,
        output_tokens=output_tokens, requests=requests, measured=measured,
    )  # fmt: skip


def _measured(row: Mapping[str, Any]) -> tuple[dict[Metric, float], int | None]:
    """The means of the steady state where a rule found one with at least two turns in it, else of the whole run."""
    enough = (row.get("steady_requests") or 0) >= 2 * (row.get("concurrency") or 1)
    steady = "steady_" if row.get("steady_rule") and row.get("steady_window_s") and enough else ""
    columns = (f"{steady}tpot_mean_s", f"{steady}ttft_mean_s", f"{steady}output_tokens_per_s")
    found: dict[Metric, float] = {}
    for name, column in zip(METRICS, columns, strict=True):
        value = row.get(column)
        if isinstance(value, int | float) and 0 < value < float("inf"):
            found[name] = float(value)
    return found, None if steady else int(row.get("completed") or row.get("num_requests") or 0) or None


def digest(observations: Sequence[Observation]) -> str:
    """SHA-256 over what the fit used of every row, in the order of their ids."""
    content = [
        {
            "id": one.row_id, "model": one.model, "work": asdict(one.work), "load": [one.concurrency, one.length],
            "limits": [one.limits.max_num_seqs, one.limits.max_num_batched_tokens], "measured": dict(one.measured),
        }
        for one in sorted(observations, key=lambda one: one.row_id)
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
