"""The multiplier tables and the audited claims, for the card and the vLLM of the sets."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import Any, Final

from analysis.report.context import Context, Section
from analysis.report.table import Column, Table, box

GPU: Final = "h100-80gb"
"""The card of the tables where no set comes from one that is known."""
AUDIT_CARD: Final = "rtx-pro-6000"


def evidence(context: Context) -> tuple[Any, list[str]]:
    """What the tables draw on: rows of a known GPU, or none of them; and sentences on what was left aside."""
    from analysis import gpus
    from analysis.predict.request import Request
    from analysis.rows import RowsError
    from analysis.tables.cli import DEFAULT_VLLM
    from analysis.tables.evidence import Evidence
    from analysis.tables.measured import Measured

    gpu, version, notes = GPU, DEFAULT_VLLM, []
    rows: list[Any] = []
    found = Counter(
        (gpus.of_device(row.get("device_name"), row.get("device_memory_total_bytes")),  # type: ignore[arg-type]
         str(row.get("vllm_version") or "").split("+")[0])
        for point in context.good if not point.on_cpu for row in point.good
    )  # fmt: skip
    for (name, release), _ in found.most_common():
        try:
            known, asked = gpus.find(name).name, Request.of({"model": "any", "vllm_version": release}).vllm_version
        except ValueError:
            continue
        gpu, version = known, asked
        rows = [row for point in context.good if not point.on_cpu for row in point.good]
        break
    class Indexed(Measured):
        """Every cell asks for the rows of its model several times: over ten thousand rows that takes seconds."""

        def _of(self, model: str, quantization: str) -> list[Any]:
            if (model, quantization) not in of:
                of[model, quantization] = super()._of(model, quantization)
            return of[model, quantization]

    of: dict[tuple[str, str], list[Any]] = {}
    try:
        measured: Measured = Indexed(rows, gpu, version)
    except RowsError as several:
        notes.append(f"Measured cells are left out: {several}.")
        measured = Measured([], gpu, version)
    return Evidence(gpu, version, measured), notes + list(measured.notes)


def multipliers(context: Context, facts: Any) -> Section:
    from analysis import gpus
    from analysis.tables import cells as cells_of
    from analysis.tables.render import _TITLES as titles

    out = Section("multipliers", "Multiplier tables")
    card = gpus.find(facts.gpu)
    cells = list(cells_of.cells(facts))
    labels = dict(cells_of.FORMATS)
    measured = sum(bool(cell.run_ids) for cell in cells)
    out.lead = (
        f"Memory that vLLM {facts.vllm_version} takes on one {card.title}, by model and format: exact weights and KV "
        f"bytes, measured or predicted overhead, and the guide's figure beside each. {measured} of {len(cells)} cells "
        "are from rows of the sets above."
    )
    gib = 2**30
    columns = [Column("Size"), Column("Model"), Column("Format"), Column("Quantity"), Column("Load"),
               Column("Value", "2"), Column("low", "2"), Column("high", "2"), Column("Unit"), Column("Guide"),
               Column("ours / guide"), Column("Basis"), Column("run_ids", "id")]  # fmt: skip
    rows = []
    for cell in cells:
        scale = gib if cell.unit == "B" else 1
        ratio = cell.ratio
        rows.append([
            cell.size, titles.get(cell.model, cell.model), labels.get(cell.quantization, cell.quantization),
            cell.quantity, f"{cell.sequences} × {cell.tokens}" if cell.sequences else "",
            *(None if one is None else one / scale for one in (cell.value, cell.low, cell.high)),
            "GiB" if cell.unit == "B" else "×", cell.guide.text() if cell.guide else None,
            f"{ratio[0]:.2f}–{ratio[1]:.2f}" if ratio else None, cell.basis, ", ".join(cell.run_ids),
        ])  # fmt: skip
    out.html = _grid(cells, titles, labels)
    out.tables.append(Table("multipliers", "Every cell, beside the guide", columns, rows,
                            "Load: sequences × tokens. Multiplier: total over weights. `make tables` writes the "
                            "same."))  # fmt: skip
    return out


def _grid(cells: list[Any], titles: dict[str, str], labels: dict[str, str]) -> str:
    """The multipliers alone, to be read at a glance."""
    loads = list(dict.fromkeys((one.sequences, one.tokens) for one in cells if one.quantity == "multiplier"))
    head = "".join(f"<th scope=col class=n>{s} × {t:,} tokens</th><th scope=col class=n>90 %</th>" for s, t in loads)
    lines = []
    for model, quantization in dict.fromkeys((one.model, one.quantization) for one in cells):
        mine = {(one.sequences, one.tokens): one for one in cells
                if (one.model, one.quantization, one.quantity) == (model, quantization, "multiplier")}  # fmt: skip
        values = "".join(_interval(mine.get(load)) for load in loads)
        lines.append(f"<tr><td>{escape(titles.get(model, model))}</td><td>{escape(labels.get(quantization, ''))}</td>"
                     f"{values}</tr>")  # fmt: skip
    return (f"{box('Multipliers')}<table class=plain><caption>Total over weights, with 90 % interval</caption><thead>"
            f"<tr><th scope=col>Model</th><th scope=col>Format</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
            "</table></div>")  # fmt: skip


def _interval(cell: Any) -> str:
    if cell is None or cell.value is None:
        return "<td class=n>no data</td><td></td>"
    spread = "exact" if cell.low == cell.high else f"{cell.low:.2f}–{cell.high:.2f}"
    return f"<td class=n>{cell.value:.2f}</td><td class=n><small>{spread}</small></td>"


def audit(facts: Any) -> Section:
    from analysis import gpus
    from analysis.audit import installed
    from analysis.audit.cli import found_by
    from analysis.audit.finding import VERDICTS
    from analysis.audit.finding import Context as AuditContext
    from analysis.tables.evidence import Evidence

    out = Section("claims", "Audited claims")
    card = Evidence(gpus.find(AUDIT_CARD).name, facts.vllm_version)
    source = installed.find()
    findings = found_by(AuditContext(facts, card, source, "No vLLM is installed beside this Python"))
    counts = Counter(one.verdict for one in findings)
    out.lead = (
        "Rules of thumb about vLLM's memory, each checked: "
        + ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
        + f". Memory claims are for one {gpus.find(facts.gpu).title}, those about a 96 GB card for one "
        f"{gpus.find(card.gpu).title}. Misleading: true for some models only, or true and leads to a wrong choice."
    )
    columns = [Column("Verdict"), Column("Claim", "prose"), Column("Guide"), Column("Ours"), Column("Why", "prose"),
               Column("How"),
               Column("Check", "id"), Column("run_ids", "id")]  # fmt: skip
    rows = [[one.verdict, one.claim, one.guide, one.ours, one.why, one.how, one.id, ", ".join(one.run_ids)]
            for one in findings]  # fmt: skip
    out.tables.append(Table("claims", "Every claim", columns, rows, "GB are 10^9 bytes, GiB 2^30.", open=True))
    return out
