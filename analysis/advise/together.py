"""Several models on one card: every combination of their formats, planned and ranked."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.advise.ask import Ask, milliseconds, targets
from analysis.plan import hardware
from analysis.plan.card import Placed, Plan, plan
from analysis.plan.engine import Card, Engine
from analysis.predict.answer import predict
from analysis.predict.prediction import GIB
from analysis.predict.request import RequestError

if TYPE_CHECKING:
    from analysis.throughput.predict import Speed

_WIDTH = 110
MOST_COMBINATIONS = 625
_RANK = {"fits": 0, "tight": 1, "does_not_fit": 2, "does_not_start": 3}
_VERDICTS = {
    "fits": "fits", "tight": "tight", "does_not_fit": "does not fit", "does_not_start": "does not start",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Together:
    """One combination. `quality` is the sum of the user's scores, None where one is missing.

    `alone` is the predicted speed of each engine of the plan, in its order, with its share of the card and its own load
    while the others idle; None without a calibration. Beside others it is slower, so `misses`, the targets that an
    engine misses even so, are certain to be missed, and what is met may still be missed."""

    plan: Plan
    engines: tuple[Engine, ...]
    quality: float | None
    alone: tuple[Speed | None, ...] = ()
    misses: tuple[str, ...] = ()

    @property
    def requests(self) -> float:
        """Requests at once of the engine that holds the fewest of what it was asked for, as a multiple of that."""
        return min(one.prediction.full_length_requests.value / one.engine.concurrency for one in self.plan.placed)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second of all engines, each alone; 0 where one has no prediction."""
        return sum(one.tokens_per_s.value for one in self.alone if one) if self.alone and all(self.alone) else 0.0

    @property
    def weights_bytes(self) -> int:
        return sum(one.prediction.weights_bytes for one in self.plan.placed)

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        from analysis.plan.cli import as_json

        alone = [one.fields() if one else None for one in self.alone]
        return {"quality": self.quality, "engines_alone": alone, "misses": list(self.misses),
                **as_json(self.plan, [])}  # fmt: skip


def pairs(ask: Ask) -> list[Together]:
    """Every combination, best first: what fits; what misses no target; the higher score where all are scored; the
    higher throughput of the engines, each alone, to two digits; the load held more often; the most bytes of weights,
    which gives up least. Raises RequestError."""
    if ask.concurrency is None:
        raise RequestError("--together plans by requests at once: state the load with --concurrency N")
    count = len(ask.formats) ** len(ask.models)
    if count > MOST_COMBINATIONS:
        raise RequestError(
            f"{len(ask.models)} models in {len(ask.formats)} formats are {count} combinations; name fewer in --formats"
        )
    card = Card(ask.gpu, ask.gpu_total_gib, ask.vllm_version)
    found, refused = [], ""
    for formats in itertools.product(ask.formats, repeat=len(ask.models)):
        engines = tuple(Engine(model, quantization, ask.concurrency, ask.length)
                        for model, quantization in zip(ask.models, formats, strict=True))  # fmt: skip
        scores = [ask.quality.get((one.model, str(one.quantization))) for one in engines]
        if ask.least_quality is not None and any(score is None or score < ask.least_quality for score in scores):
            continue
        try:
            done = plan(engines, card)
            alone = tuple(_alone(ask, one, card) for one in done.placed) if done.works else ()
        except RequestError as why:
            refused = refused or str(why)
            continue
        quality = sum(filter(None, scores)) if None not in scores else None
        found.append(Together(done, engines, quality, alone, _misses(ask, done, alone)))
    if not found:
        raise RequestError(refused or "no combination scores --min-quality; lower it or add scores")
    scored = all(one.quality is not None for one in found)
    return sorted(found, key=lambda one: (
        _RANK[one.plan.verdict], bool(one.misses), -(one.quality or 0.0) if scored else 0.0,
        -float(f"{one.tokens_per_s:.2g}"), -float(f"{one.requests:.2g}"), -one.weights_bytes,
    ))  # fmt: skip


def _alone(ask: Ask, one: Placed, card: Card) -> Speed | None:
    """The engine's speed with the share that the plan gives it. Raises RequestError."""
    return predict(card.request(
        one.engine, gpu_memory_utilization=one.share, concurrency=ask.concurrency, input_tokens=ask.input_tokens,
        output_tokens=ask.output_tokens,
    )).speed  # fmt: skip


def _misses(ask: Ask, done: Plan, alone: Sequence[Speed | None]) -> tuple[str, ...]:
    found = []
    for placed, speed in zip(done.placed, alone, strict=False):
        if speed is None:
            continue
        for name, target, one in (("TTFT", ask.slo.ttft_s, speed.ttft), ("TPOT", ask.slo.tpot_s, speed.tpot)):
            if target is not None and one is not None and one.value > target:
                found.append(f"{placed.engine.name}: mean {name} {milliseconds(one.value)} alone, target "
                             f"{milliseconds(target)}")  # fmt: skip
    return tuple(found)


def text(found: list[Together], ask: Ask) -> str:
    """The combinations, the reason for the order, the commands of the first."""
    from analysis.plan import commands

    device = found[0].plan.placed[0].prediction.settings.device
    shown = [one for one in found if one.plan.works][:10] or found[:3]
    width = max(len(_name(one)) for one in shown) + 2
    lines = [
        f"{len(ask.models)} models on one {device.name} ({device.total_bytes / GIB:.2f} GiB), {ask.concurrency} "
        f"requests of {ask.length:,} tokens at once each{targets(ask)}; {len(found)} combinations of formats",
        "", f"{'formats':<{width}}{'weights, GiB':>14}{'headroom, GiB':>15}{'at once':>16}{'tokens/s alone':>18}"
        f"{'quality':>10}  verdict",
    ]  # fmt: skip
    for one in shown:
        # In the order of the names, which is that of the question; the plan's is that of the starts.
        placed = sorted(zip(one.plan.placed, one.alone or [None] * len(one.plan.placed), strict=True),
                        key=lambda both: one.engines.index(both[0].engine))  # fmt: skip
        held = ", ".join(f"{p.prediction.full_length_requests.value:.0f}" for p, _ in placed)
        fast = ", ".join(f"{speed.tokens_per_s.value:,.0f}" if speed else "-" for _, speed in placed)
        quality = "-" if one.quality is None else f"{one.quality:g}"
        lines.append(
            f"{_name(one):<{width}}{one.weights_bytes / GIB:>14.1f}{one.plan.headroom.value / GIB:>15.2f}{held:>16}"
            f"{fast:>18}{quality:>10}  {_VERDICTS[one.plan.verdict]}{', misses SLO' if one.misses else ''}"
        )
    first = found[0].plan
    lines += ["", *textwrap.wrap(f"order: {_why(found)}. Engines side by side are slower than alone, by how much is "
                                 "not predicted: measure it with a co-located sweep.", _WIDTH)]  # fmt: skip
    if ask.slo.ttft_s or ask.slo.tpot_s:
        lines += textwrap.wrap(f"targets: {_on_targets(found[0])}", _WIDTH)
    engines = {(one.plan.card, engine) for one in found for engine in one.engines}
    for out in sorted({hardware.lacking(card.request(engine)) for card, engine in engines} - {""}):
        lines += textwrap.wrap(f"out: {out}", _WIDTH)
    if not first.works:
        lines += textwrap.wrap(f"nothing fits: {first.reason}", _WIDTH)
    else:
        lines += ["", *(f"  {line}" for line in commands.serve_commands(first))]
        lines += [f"  note: {note}" for note in commands.notes(first)]
    return "\n".join(lines) + "\n"


def _why(found: Sequence[Together]) -> str:
    if all(one.quality is not None for one in found):
        return "of what fits and misses no target, the highest score comes first"
    unscored = "Score the formats for your task with --quality FILE"
    if found[0].tokens_per_s:
        return (
            "of what fits and misses no target, the highest predicted throughput comes first, summed over the engines "
            "as if each ran alone, then what holds the load most often over, then what keeps the most bytes of "
            f"weights: quality is not part of it. {unscored}"
        )
    return (
        "of what fits, what holds the load most often over comes first, as no throughput is predicted for this card: "
        f"quality is not part of it. {unscored}"
    )


def _on_targets(one: Together) -> str:
    """What the first choice does about the targets."""
    if one.misses:
        return f"missed even by an engine alone: {'; '.join(one.misses)}"
    if not one.alone or not all(one.alone):
        return "not checked, as no throughput is predicted for this card"
    return "met by each engine alone, which is an optimistic bound: beside the others each is slower"


def _name(one: Together) -> str:
    return " + ".join(engine.name for engine in one.engines)
