"""The guide's budget table for one 96 GB card, cell by cell: its figure, ours, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from analysis import gpus, guide
from analysis.plan.card import Plan, plan
from analysis.plan.engine import Card, Engine
from analysis.predict.request import Request
from analysis.tables.evidence import MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS, Evidence, Figure, added

GB, GIB = guide.GB, 2**30
CARD = "rtx-pro-6000"
"""The 96 GB card of the table in analysis.gpus."""

CONCURRENCY, LENGTH = 8, 4096
"""The load of the totals: requests at once of each model, and their tokens."""

TOLERANCE = 0.10
"""The guide's totals are round figures: within a tenth of ours, or within our interval, one counts as upheld."""

Mark = Literal["measured", "predicted", "refuted", "not checked"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the guide's table. `value`, `low`, `high` are in `unit` (GB of 10^9 bytes, requests, or none).

    `mark`: `measured` or `predicted` where our figure of that basis upholds the guide's or stands alone, `refuted`
    where it contradicts it, `not checked` where this project has no figure. `basis` says what ours rests on.
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

    version = Request.of({"model": "any", "vllm_version": vllm_version}).vllm_version
    name = gpus.find(gpu).name
    evidence = Evidence(name, version, Measured.read(sets, name, version))
    return [cell for row in guide.SUMMARY_ROWS for cell in _row(evidence, row)]


def planned(row: guide.SummaryRow, gpu: str = CARD, vllm_version: str | None = None) -> Plan:
    """The plan of one scenario with the settings of the tables."""
    settings = (("max_num_seqs", MAX_NUM_SEQS), ("max_num_batched_tokens", MAX_NUM_BATCHED_TOKENS))
    engines = [Engine(model, quantization, CONCURRENCY, LENGTH, settings) for model, quantization in row.models]
    return plan(engines, Card(gpu, None, vllm_version))


def _row(evidence: Evidence, row: guide.SummaryRow) -> Iterator[Cell]:
    needs = [evidence.total(model, quantization, CONCURRENCY, LENGTH) for model, quantization in row.models]
    whole = added(needs, "sum")
    card = gpus.find(evidence.gpu).total_bytes
    done = planned(row, evidence.gpu, evidence.vllm_version)
    models = " + ".join(f"{model} {quantization}" for model, quantization in row.models)

    def cell(quantity: str, unit: str, said: str, ours: str, found: tuple[float, float, float] | None, mark: Mark,
             basis: str) -> Cell:  # fmt: skip
        value, low, high = found or (None, None, None)
        return Cell(row.name, models, quantity, unit, said, ours, value, low, high, mark, basis, whole.run_ids)

    total = (whole.value / GB, whole.low / GB, whole.high / GB)
    headroom = ((card - whole.value) / GB, (card - whole.high) / GB, (card - whole.low) / GB)
    yield cell("total", "GB", f"{row.total_gb:g} GB", _gb(total), total, _mark(whole, row.total_gb, total), whole.basis)
    # Held against the whole card, as a tenth of a small remainder would be no tolerance.
    near = abs(headroom[0] - row.headroom_gb) <= TOLERANCE * guide.CARD_GB
    yield cell("headroom", "GB", f"{row.headroom_gb:g} GB", _gb(headroom), headroom, _kept(whole, near), whole.basis)
    # Tight contradicts neither: both verdicts lie within the intervals.
    agrees = done.verdict == "tight" or (done.verdict == "fits") == row.fits
    verdict = done.verdict.replace("_", " ")
    said = "fits" if row.fits else "does not fit"
    basis = "predicted" if not whole.run_ids else whole.basis
    yield cell("fit", "", said, f"{verdict}: {done.reason}", None, _kept(whole, agrees), basis)
    for one in done.placed:
        requests = one.prediction.full_length_requests
        found = (requests.value, requests.low, requests.high)
        least, most = row.requests
        promised = "-" if least is None else f"{least}+" if most is None else f"{least} to {most}"
        held = least is None or (requests.high >= least and (most is None or requests.low <= most))
        yield cell(
            f"requests at once, {one.engine.model}", "requests", promised,
            f"{found[0]:.0f} [{found[1]:.0f}, {found[2]:.0f}] of {LENGTH} tokens", found,
            "predicted" if held else "refuted", "predicted",
        )  # fmt: skip
    shares = ", ".join(f"{one.share:.3f} for {one.engine.model}" for one in done.placed)
    at = f"{guide.TWO_MODELS_UTILIZATION} each" if len(row.models) > 1 else "-"
    works = "predicted" if len(row.models) == 1 else "refuted"
    yield cell("gpu-memory-utilization", "", at, shares, None, works, "predicted")
    if row.requests[0] is not None:
        said = f"{guide.ACCURACY:.1%} of FP16"
        yield cell("accuracy", "", said, "no figure: this project measures no quality", None, "not checked", "none")


def _mark(figure: Figure, said: float, ours: tuple[float, float, float]) -> Mark:
    value, low, high = ours
    return _kept(figure, low <= said <= high or abs(said / value - 1) <= TOLERANCE)


def _kept(figure: Figure, kept: bool) -> Mark:
    if not kept:
        return "refuted"
    return "measured" if figure.basis == "measured" else "predicted"


def markdown(found: Sequence[Cell], gpu: str = CARD) -> str:
    """The table as a document."""
    card = gpus.find(gpu)
    out = [
        "# The guide's scenarios for one 96 GB card",
        "",
        f"One {card.title}, {card.total_bytes / GIB:.2f} GiB = {card.total_bytes / GB:.1f} GB. Totals count "
        f"{CONCURRENCY} requests of {LENGTH} tokens at once per model, max-num-seqs {MAX_NUM_SEQS}, "
        f"max-num-batched-tokens {MAX_NUM_BATCHED_TOKENS}. GB are 10^9 bytes, as the guide's.",
        "",
        "- `measured`, `predicted`: what our figure rests on, where the guide's stands beside it or it has none. "
        "`refuted`: ours contradicts the guide's. `not checked`: this project has no figure.",
        "- In brackets, 90 % intervals of predictions. A total counts as upheld within our interval or a tenth of "
        "ours, a headroom within a tenth of the card.",
        "- Requests at once and shares come from `python -m analysis plan`: shares that sum to less than one, engines "
        "started one after the other, what is left of the card given to the KV pools. The guide's own recipe, "
        f"{guide.TWO_MODELS_UTILIZATION} for each of two engines, asks for {2 * guide.TWO_MODELS_UTILIZATION:g} cards.",
    ]  # fmt: skip
    for name in dict.fromkeys(cell.scenario for cell in found):
        mine = [cell for cell in found if cell.scenario == name]
        out += ["", f"## {name}: {mine[0].models}", "", "| Quantity | Guide | Ours | Mark | Basis |",
                "| --- | --- | --- | --- | --- |"]  # fmt: skip
        out += [f"| {one.quantity} | {one.said} | {one.ours} | {one.mark} | {one.basis} |" for one in mine]
    return "\n".join(out) + "\n"


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
