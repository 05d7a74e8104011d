"""Several models on one card: every combination of their formats, planned and ranked."""

from __future__ import annotations

import itertools
import textwrap
from dataclasses import dataclass
from typing import Any

from analysis.advise.ask import Ask
from analysis.plan.card import Plan, plan
from analysis.plan.engine import Card, Engine
from analysis.predict.prediction import GIB
from analysis.predict.request import RequestError

MOST_COMBINATIONS = 625
_RANK = {"fits": 0, "tight": 1, "does_not_fit": 2}
_VERDICTS = {"fits": "fits", "tight": "tight", "does_not_fit": "does not fit"}


@dataclass(frozen=True, slots=True)
class Together:
    """One combination. `bits` are the weight bits a parameter, summed: the fewer, the more was given up.

    `quality` is the sum of the user's scores, None where one is missing."""

    plan: Plan
    engines: tuple[Engine, ...]
    quality: float | None

    @property
    def requests(self) -> float:
        """Requests at once of the engine that holds the fewest of what it was asked for, as a multiple of that."""
        return min(one.prediction.full_length_requests.value / one.engine.concurrency for one in self.plan.placed)

    @property
    def weights_bytes(self) -> int:
        return sum(one.prediction.weights_bytes for one in self.plan.placed)

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        from analysis.plan.cli import as_json

        return {"quality": self.quality, **as_json(self.plan, [])}


def pairs(ask: Ask) -> list[Together]:
    """Every combination, best first: what fits; the higher score where all are scored; else the one that gives up
    least, which is the one with the most bytes of weights. Raises RequestError."""
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
        except RequestError as why:
            refused = refused or str(why)
            continue
        found.append(Together(done, engines, sum(filter(None, scores)) if None not in scores else None))
    if not found:
        raise RequestError(refused or "no combination scores --min-quality; lower it or add scores")
    scored = all(one.quality is not None for one in found)
    return sorted(found, key=lambda one: (
        _RANK[one.plan.verdict], -(one.quality or 0.0) if scored else 0.0, -one.weights_bytes
    ))  # fmt: skip


def text(found: list[Together], ask: Ask) -> str:
    """The combinations, the reason for the order, the commands of the first."""
    from analysis.plan import commands

    device = found[0].plan.placed[0].prediction.settings.device
    shown = [one for one in found if one.plan.verdict != "does_not_fit"][:10] or found[:3]
    width = max(len(_name(one)) for one in shown) + 2
    lines = [
        f"{len(ask.models)} models on one {device.name} ({device.total_bytes / GIB:.2f} GiB), {ask.concurrency} "
        f"requests of {ask.length:,} tokens at once each; {len(found)} combinations of formats",
        "", f"{'formats':<{width}}{'weights, GiB':>14}{'headroom, GiB':>15}{'at once':>16}{'quality':>10}  verdict",
    ]  # fmt: skip
    for one in shown:
        held = ", ".join(f"{p.prediction.full_length_requests.value:.0f}" for p in one.plan.placed)
        quality = "-" if one.quality is None else f"{one.quality:g}"
        lines.append(
            f"{_name(one):<{width}}{one.weights_bytes / GIB:>14.1f}{one.plan.headroom.value / GIB:>15.2f}{held:>16}"
            f"{quality:>10}  {_VERDICTS[one.plan.verdict]}"
        )
    first = found[0].plan
    scored = found[0].quality is not None
    why = "the highest score of what fits comes first" if scored else (
        "what fits with the most bytes of weights comes first: it gives up least. Score the formats for your task with "
        "--quality FILE"
    )  # fmt: skip
    unknown = "How fast engines are side by side is not predicted: measure it with a co-located sweep."
    lines += ["", *textwrap.wrap(f"order: {why}. {unknown}", 110)]
    if first.verdict == "does_not_fit":
        lines += textwrap.wrap(f"nothing fits: {first.reason}", 110)
    else:
        lines += ["", *(f"  {line}" for line in commands.serve_commands(first))]
        lines += [f"  note: {note}" for note in commands.notes(first)]
    return "\n".join(lines) + "\n"


def _name(one: Together) -> str:
    return " + ".join(engine.name for engine in one.engines)
