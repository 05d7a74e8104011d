"""The guide's budget table for one 96 GB card, cell by cell: its figure, ours, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from analysis import gpus, guide
from analysis.estimate import Estimate
from analysis.plan import hardware
from analysis.plan.card import Plan, plan
from analysis.plan.engine import Card, Engine
from analysis.predict.request import Request
from analysis.tables.cli import DEFAULT_VLLM
from analysis.tables.evidence import MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS, Evidence, Figure, added

GB, GIB = guide.GB, 2**30
CARD = "rtx-pro-6000"
"""The 96 GB card of the table in analysis.gpus."""

CONCURRENCY, LENGTH = 8, 4096
"""The load of the totals: requests at once of each model, and their tokens."""

TOLERANCE = 0.10
"""The guide's totals are round figures: within a tenth of ours, or within our interval, one counts as upheld."""

NEITHER = "tight: neither"

Mark = Literal["measured", "predicted", "refuted", "tight: neither", "not checked"]


Models = tuple[tuple[str, str], ...]
"""(catalogue model, format) of each engine."""

Triple = tuple[float, float, float]
"""Value, low and high of one figure."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the guide's table. `value`, `low`, `high` are in `unit` (GB of 10^9 bytes, requests, or none).

    `mark`: `measured` or `predicted` where our figure of that basis upholds the guide's or stands alone, `refuted`
    where it contradicts it, `tight: neither` where both answers lie within our interval, `not checked` where this
    project has no figure. `basis` says what ours rests on.
    """

    scenario: str
    models: str
    quantity: str
    unit: str
    said: str
    ours: str
    value: float | None
    low: float | None
    high: float | None
    mark: Mark
    basis: str
    run_ids: tuple[str, ...] = ()


def cells(sets: Sequence[str] = (), gpu: str = CARD, vllm_version: str | None = None) -> list[Cell]:
    """Every cell of the six scenarios. Rows of `sets` that measured a term on this card count before predictions.

    Raises ValueError with one sentence for what cannot be used.
    """
    from analysis.tables.measured import Measured

    version = _version(vllm_version)
    name = gpus.find(gpu).name
    evidence = Evidence(name, version, Measured.read(sets, name, version))
    return [cell for row in guide.SUMMARY_ROWS for cell in _row(evidence, row)]


def planned(row: guide.SummaryRow, gpu: str = CARD, vllm_version: str | None = None) -> Plan:
    """The plan of one scenario with the settings of the tables."""
    return _planned(row.models, gpu, _version(vllm_version))


def _version(given: str | None) -> str:
    """The release of the other tables, unless another is named. Raises RequestError."""
    return Request.of({"model": "any", "vllm_version": given or DEFAULT_VLLM}).vllm_version


def _planned(models: Models, gpu: str, vllm_version: str) -> Plan:
    settings = (("max_num_seqs", MAX_NUM_SEQS), ("max_num_batched_tokens", MAX_NUM_BATCHED_TOKENS))
    engines = [Engine(model, quantization, CONCURRENCY, LENGTH, settings) for model, quantization in models]
    return plan(engines, Card(gpu, None, vllm_version))


def _row(evidence: Evidence, row: guide.SummaryRow) -> Iterator[Cell]:
    """The cells of one line; where the card does not run a format, those of the nearest that it runs as well."""
    yield from _cells(evidence, row, row.models, "")
    other = runnable(row.models, evidence.gpu, evidence.vllm_version)
    if other != row.models:
        changed = [new for (_, old), (_, new) in zip(row.models, other, strict=True) if old != new]
        yield from _cells(evidence, row, other, f"in {' and '.join(dict.fromkeys(changed))}: ")


def runnable(models: Models, gpu: str, vllm_version: str) -> Models:
    """The same models, each in its own format where the card runs it, else in the nearest."""
    asked = [Request.of({"model": model, "quantization": quantization, "gpu": gpu, "vllm_version": vllm_version})
             for model, quantization in models]  # fmt: skip
    return tuple((model, hardware.nearest(one) or quantization)
                 for one, (model, quantization) in zip(asked, models, strict=True))  # fmt: skip


def _cells(evidence: Evidence, row: guide.SummaryRow, pair: Models, prefix: str) -> Iterator[Cell]:
    """The cells of `row` with its models in the formats of `pair`; `prefix` goes before each quantity."""
    needs = [evidence.total(model, quantization, CONCURRENCY, LENGTH) for model, quantization in pair]
    whole = added(needs, "sum")
    card = gpus.find(evidence.gpu).total_bytes
    done = _planned(pair, evidence.gpu, evidence.vllm_version)
    models = " + ".join(f"{model} {quantization}" for model, quantization in row.models)
    alone = " by memory alone" if done.verdict == "does_not_start" else ""

    def cell(quantity: str, unit: str, said: str, ours: str, found: Triple | None, mark: Mark, basis: str,
             of: Figure = whole) -> Cell:  # fmt: skip
        value, low, high = found or (None, None, None)
        return Cell(row.name, models, prefix + quantity, unit, said, ours, value, low, high, mark, basis, of.run_ids)

    if row.scenario:
        for one, (model, _, said_gb) in zip(needs, (row.scenario.first, row.scenario.second), strict=True):
            size = (one.value / GB, one.low / GB, one.high / GB)
            mark = _mark(one, said_gb, size)
            yield cell(f"memory of {model}", "GB", f"{said_gb:g} GB", _gb(size), size, mark, one.basis, one)
    total = (whole.value / GB, whole.low / GB, whole.high / GB)
    headroom = ((card - whole.value) / GB, (card - whole.high) / GB, (card - whole.low) / GB)
    yield cell("total", "GB", f"{row.total_gb:g} GB", _gb(total), total, _mark(whole, row.total_gb, total), whole.basis)
    # Held against the whole card, as a tenth of a small remainder would be no tolerance.
    near = abs(headroom[0] - row.headroom_gb) <= TOLERANCE * guide.CARD_GB
    yield cell("headroom", "GB", f"{row.headroom_gb:g} GB", _gb(headroom), headroom, _kept(whole, near), whole.basis)
    yield _fit(cell, row, done, whole)
    for one in done.placed:
        requests = one.prediction.full_length_requests
        least, most = row.requests
        promised = "-" if least is None else f"{least}+" if most is None else f"{least} to {most}"
        held = least is None or (requests.high >= least and (most is None or requests.low <= most))
        yield cell(
            f"requests at once, {one.engine.model}", "requests", promised, _requests(requests) + alone,
            _triple(requests), "predicted" if held else "refuted", "predicted",
        )  # fmt: skip
    if row.scenario and row.scenario.fits and not row.scenario.batching:
        fewest = min((one.prediction.full_length_requests for one in done.placed), key=lambda one: one.value)
        room: Mark = NEITHER
        if fewest.low >= CONCURRENCY or fewest.high < CONCURRENCY:
            room = "refuted" if fewest.low >= CONCURRENCY else "predicted"
        yield cell(
            "batching", "requests", "no batching", f"room for at least {_requests(fewest)} at once of each{alone}",
            _triple(fewest), room, "predicted",
        )  # fmt: skip
    shares = ", ".join(f"{one.share:.3f} for {one.engine.model}" for one in done.placed)
    at = f"{guide.TWO_MODELS_UTILIZATION} each" if len(row.models) > 1 else "-"
    works: Mark = "predicted" if len(row.models) == 1 else "refuted"
    yield cell("gpu-memory-utilization", "", at, shares + alone, None, works, "predicted")
    if row.requests[0] is not None:
        said = f"{guide.ACCURACY:.1%} of FP16"
        yield cell("accuracy", "", said, "no figure: this project measures no quality", None, "not checked", "none")


def _fit(cell: Callable[..., Cell], row: guide.SummaryRow, done: Plan, whole: Figure) -> Cell:
    said = "fits" if row.fits else "does not fit"
    basis = "predicted" if not whole.run_ids else whole.basis
    if done.verdict == "does_not_start":
        memory = done.memory.replace("_", " ")
        ours = f"does not start: {done.reason}; by memory alone: {memory}"
        return cell("fit", "", said, ours, None, "refuted" if row.fits else "predicted", "vLLM's documentation")
    mark = NEITHER if done.verdict == "tight" else _kept(whole, (done.verdict == "fits") == row.fits)
    return cell("fit", "", said, f"{done.verdict.replace('_', ' ')}: {done.reason}", None, mark, basis)


def _triple(one: Estimate) -> Triple:
    return one.value, one.low, one.high


def _requests(one: Estimate) -> str:
    return f"{one.value:.0f} [{one.low:.0f}, {one.high:.0f}] of {LENGTH} tokens"


def _mark(figure: Figure, said: float, ours: tuple[float, float, float]) -> Mark:
    value, low, high = ours
    return _kept(figure, low <= said <= high or abs(said / value - 1) <= TOLERANCE)


def _kept(figure: Figure, kept: bool) -> Mark:
    if not kept:
        return "refuted"
    return "measured" if figure.basis == "measured" else "predicted"


def markdown(found: Sequence[Cell], gpu: str = CARD, vllm_version: str | None = None) -> str:
    """The table as a document."""
    card = gpus.find(gpu)
    its_own = card.name == CARD
    out = [
        "# The guide's scenarios for one 96 GB card" + ("" if its_own else f", on one {card.title}"),
        "",
        f"One {card.title}, {card.total_bytes / GIB:.2f} GiB = {card.total_bytes / GB:.1f} GB, with vLLM "
        f"{_version(vllm_version)}. " + ("" if its_own else "The guide's figures are for a 96 GB card. ")
        + f"Totals count {CONCURRENCY} requests of {LENGTH} tokens at once per model, max-num-seqs {MAX_NUM_SEQS}, "
        f"max-num-batched-tokens {MAX_NUM_BATCHED_TOKENS}. GB are 10^9 bytes, as the guide's.",
        "",
        "- `measured`, `predicted`: what our figure rests on, where the guide's stands beside it or it has none. "
        "`refuted`: ours contradicts the guide's. `tight: neither`: the guide's answer and its opposite both lie "
        "within our interval, so it is neither upheld nor refuted. `not checked`: this project has no figure.",
        "- In brackets, 90 % intervals of predictions. A total counts as upheld within our interval or a tenth of "
        "ours, a headroom within a tenth of the card.",
        "- Requests at once and shares come from `python -m analysis plan`: shares that sum to less than one, engines "
        "started one after the other, what is left of the card given to the KV pools. The guide's own recipe, "
        f"{guide.TWO_MODELS_UTILIZATION} for each of two engines, asks for {2 * guide.TWO_MODELS_UTILIZATION:g} cards.",
    ]  # fmt: skip
    for name in dict.fromkeys(cell.scenario for cell in found):
        mine = [cell for cell in found if cell.scenario == name]
        out += ["", f"## {name}: {mine[0].models}", ""]
        if reading := _READINGS.get(name):
            out += [reading, ""]
        out += ["| Quantity | Guide | Ours | Mark | Basis |", "| --- | --- | --- | --- | --- |"]
        out += [f"| {one.quantity} | {one.said} | {one.ours} | {one.mark} | {one.basis} |" for one in mine]
    return "\n".join(out) + "\n"


_READINGS = {row.name: row.scenario.reading for row in guide.SUMMARY_ROWS if row.scenario}


def write(folder: Path, found: Sequence[Cell], text: str) -> None:
    """scenarios.md and scenarios.parquet in `folder`, written whole and renamed into place."""
    from analysis.tables import store

    folder.mkdir(parents=True, exist_ok=True)
    store.write_text(folder / "scenarios.md", text)
    names = ("scenario", "models", "quantity", "unit", "said", "ours", "value", "low", "high", "mark", "basis")
    kinds = {"value": "double", "low": "double", "high": "double"}
    columns = [(name, kinds.get(name, "string")) for name in names] + [("run_ids", "strings")]
    rows = [(*(getattr(one, name) for name in names), list(one.run_ids)) for one in found]
    store.write_table(folder / "scenarios.parquet", columns, rows)


def _gb(found: tuple[float, float, float]) -> str:
    value, low, high = found
    return f"{value:.1f} GB" if low == high else f"{value:.1f} GB [{low:.1f}, {high:.1f}]"
