"""A comparison for people: text for a terminal, or Markdown. Quality first, then what changed, then the method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

from analysis.compare.model import VERDICTS, Comparison
from analysis.compare.page import Page

CORRECTION_NAMES = {"bh": "Benjamini-Hochberg (false discovery rate)", "holm": "Holm (family-wise)", "none": "none"}
MOST_WARNINGS = 20
LISTED = 12
"""Most lines of a list of cells before the rest is counted only."""
FEW = 6
"""Most cells that keep lines of their own where one name for all of them would name others too."""


def page(comparison: Comparison, markdown: bool = False, width: int = 118, every: bool = False) -> str:
    """The whole text. `every` lists all comparisons instead of those that changed."""
    out = Page(markdown, max(60, width))
    _head(out, comparison)
    _quality(out, comparison)
    for side in range(1, len(comparison.columns)):
        _side(out, comparison, side, every)
    _outcomes(out, comparison)
    _method(out, comparison)
    return "\n".join(out.lines).strip("\n") + "\n"


def _head(out: Page, c: Comparison) -> None:
    if out.markdown:
        out.lines += [f"# {', '.join(column.label for column in c.columns[1:])} against {c.baseline}", ""]
    head = ["" if c.col == "set" else c.col, "engine starts", "started", "workloads"]
    question = [one for one in c.differences if one.role == "question"]
    rows = []
    for at, column in enumerate(c.columns):
        label = column.label + (" (baseline)" if at == 0 else "")
        rows.append(
            [
                label,
                f"{column.engines:,}",
                f"{column.started:,}",
                f"{column.workloads:,}",
                *(" | ".join(one.values[at]) for one in question),
            ]
        )
    out.table([*head, *(one.column for one in question)], rows)
    if question:
        out.text(f"The question: {question[0].column}, which differs between the sides.")
    if c.constants:
        out.text("All cells: " + ", ".join(f"{name} {_value(name, value)}" for name, value in c.constants.items()))


def _value(name: str, value: object) -> str:
    if name.endswith("_bytes") and isinstance(value, (int, float)):
        return f"{value / 2**30:.4g} GiB"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _quality(out: Page, c: Comparison) -> None:
    minor = [one for one in c.differences if one.role == "minor"]
    flags: dict[tuple[str, str], list[str]] = {}
    for one in c.quality:
        flags.setdefault((one.table, one.flag), []).append(
            f"{one.column} {one.rows} of {one.of}" + (" left out" if one.left_out else "")
        )
    seen_in_workloads = {flag for table, flag in flags if table == "workloads"}
    told = [
        f"{flag}: {', '.join(counts)}"
        for (table, flag), counts in flags.items()
        if table == "workloads" or flag not in seen_in_workloads
    ]
    if not (c.warnings or c.notes or told or minor):
        return
    out.title("Before reading on")
    for warning in c.warnings[:MOST_WARNINGS]:
        out.text(f"WARNING: {warning}")
    if len(c.warnings) > MOST_WARNINGS:
        out.text(f"WARNING: ... and {len(c.warnings) - MOST_WARNINGS} more; --out FILE.json has them")
    if told:
        out.text("flagged rows (--strict leaves out those that were disturbed): " + "; ".join(told))
    for note in c.notes:
        out.text(f"note: {note}")
    if minor:
        out.text(
            "also different, and rarely the reason: "
            + "; ".join(f"{one.column} {' -> '.join(' | '.join(v) or 'unknown' for v in one.values)}" for one in minor)
        )


def _side(out: Page, c: Comparison, side: int, every: bool) -> None:
    import numpy as np

    changes = c.changes
    here = changes.column == side
    if not here.any():
        return
    label = c.columns[side].label
    out.title(f"{label} against {c.baseline}: in short")
    rows = []
    for at, metric in enumerate(c.metrics):
        of = here & (changes.metric == at)
        if not of.any():
            continue
        counts = {name: int((changes.verdict[of] == code).sum()) for code, name in enumerate(VERDICTS)}
        geomean = next((g for g in c.geomeans if g.metric == metric.name and g.column == label), None)
        share = changes.known("change")[of]
        decided = np.isin(changes.verdict[of], [0, 1]) & np.isfinite(share)
        most = share[decided][np.argmax(np.abs(share[decided]))] if decided.any() else math.nan
        rows.append(
            [
                f"{metric.name}, {metric.unit}".rstrip(", "),
                str(int(of.sum())),
                str(counts["changed"] + counts["exact"]),
                str(counts["no_change"] + counts["same"]),
                str(counts["undecided"]),
                _pct(100 * (geomean.ratio - 1)) if geomean else "",
                _pct(most),
            ]
        )
    out.table(["metric", "cells", "changed", "no change", "undecided", "geomean", "largest"], rows)
    undecided = here & (changes.verdict == VERDICTS.index("undecided"))
    if undecided.any():
        out.text(_why_undecided(c, undecided))
    show = here if every else here & np.isin(changes.verdict, [0, 1])
    if show.any():
        _listing(
            out,
            c,
            side,
            show,
            f"{label} against {c.baseline}: " + ("all comparisons" if every else "what changed"),
            every,
        )
    elif not every:
        out.text(
            "No change is shown: no difference is significant after correction."
            if (here & (changes.verdict == VERDICTS.index("no_change"))).any()
            else "No change is shown."
        )
    if undecided.any() and not every:
        share = changes.known("change")
        share = np.where(undecided & np.isfinite(share), np.abs(share), -1)
        chosen = np.zeros(len(changes), bool)
        for at in range(len(c.metrics)):
            of = np.where(changes.metric == at, share, -1)
            largest = np.argsort(-of, kind="stable")[:3]
            chosen[largest[of[largest] > 0]] = True
        if chosen.any():
            _listing(
                out, c, side, chosen, f"{label} against {c.baseline}: largest differences that are NOT decided", True
            )


def _why_undecided(c: Comparison, undecided: object) -> str:
    import numpy as np

    from analysis.compare import stats

    changes = c.changes
    at = np.flatnonzero(undecided)
    sizes, counts = np.unique(np.stack([changes.n_a[at], changes.n_b[at]], axis=1), axis=0, return_counts=True)
    n, m = (int(size) for size in sizes[np.argmax(counts)])
    need = int(changes.need_n[at].max())
    everything = int((~np.isin(changes.verdict, [1, 2])).sum())
    by_rank = stats.restarts_needed(c.alpha if c.correction == "none" else c.alpha / everything)
    least = stats.smallest_p(n, m)
    told = f"{len(at):,} comparisons cannot be decided: {n} against {m} restarts"
    if "Mann-Whitney" in c.test or least > c.alpha:
        told += f" can reach p = {least:.2g} at the least by Mann-Whitney"
        told += f", never {c.alpha:g}" if least > c.alpha else f", not enough among {everything:,} comparisons"
    told += f". Needs at least {need} restarts on both sides (repeats={need})"
    if by_rank > need:
        told += f", by Mann-Whitney, which assumes no distribution, {by_rank} among {everything:,} comparisons"
    return told + ("; fewer metrics need fewer." if by_rank > 4 else ".")


def _listing(out: Page, c: Comparison, side: int, show: object, title: str, every: bool) -> None:
    import numpy as np

    changes = c.changes
    out.title(title)
    limit = 10**9 if every else 40
    size = np.abs(np.nan_to_num(changes.per_cent("change") if every else changes.known("change")))
    tables = list(dict.fromkeys(cell.table for cell in c.cells))
    for table in tables:
        for at, metric in enumerate(c.metrics):
            rows_at = np.flatnonzero(show & (changes.metric == at))
            rows_at = [row for row in rows_at if c.cells[changes.cell[row]].table == table]
            if not rows_at:
                continue
            rows_at.sort(key=lambda row: -size[row])
            direction = f" ({metric.better} is better)" if metric.better else ""
            head = f"{table + ': ' if table else ''}{f'{metric.name}, {metric.unit}'.rstrip(', ')}{direction}"
            out.lines += ["", f"**{head}**" if out.markdown else head, *([""] if out.markdown else [])]
            of = np.flatnonzero((changes.metric == at) & (changes.column == side))
            names = _Names(c, [int(row) for row in of if c.cells[changes.cell[row]].table == table])
            alike = _alike(c, rows_at, names) if not every else [[row] for row in rows_at]
            rows = [_row(c, group, metric.better, names) for group in alike[:limit]]
            out.table(
                [
                    "cell",
                    c.baseline,
                    c.columns[side].label,
                    "change",
                    "%",
                    f"{100 - 100 * c.alpha:g} % interval, %",
                    "p adj.",
                    "n",
                ],
                rows,
            )
            for group in alike[:limit]:
                if names.others(group):
                    told = "; ".join(names.name(row) for row in group[:LISTED])
                    more = f" and {len(group) - LISTED} more" if len(group) > LISTED else ""
                    out.text(f"{names.shared(group)}: {told}{more}")
            if len(alike) > limit:
                out.text(f"  ... and {sum(map(len, alike[limit:]))} more; --all or --out FILE has them")


def _alike(c: Comparison, rows: Sequence[int], names: _Names) -> list[list[int]]:
    """Exact changes of the same two values make one line: weights do not depend on max_num_seqs.

    A few cells that their shared name does not tell from others keep lines of their own.
    """
    groups: dict[tuple, list[int]] = {}
    for row in rows:
        exact = VERDICTS[c.changes.verdict[row]] == "exact"
        groups.setdefault((c.changes.median_a[row], c.changes.median_b[row]) if exact else (row,), []).append(row)
    out = []
    for group in groups.values():
        few = len(group) <= FEW and names.others(group)
        out += [[row] for row in group] if few else [group]
    return out


class _Names:
    """Names for several comparisons of a metric, side and table at once. `of`: all of them, whatever they found."""

    def __init__(self, c: Comparison, of: Sequence[int]) -> None:
        self._c, self._of = c, of

    def name(self, row: int) -> str:
        """What the cell of a comparison is called."""
        return self._c.cells[self._c.changes.cell[row]].name

    @cached_property
    def _having(self) -> dict[str, set[int]]:
        """Word to the comparisons whose cells have it; looked up only where several are told as one."""
        having: dict[str, set[int]] = {}
        for row in self._of:
            for word in self.name(row).split():
                having.setdefault(word, set()).add(row)
        return having

    def others(self, group: Sequence[int]) -> int:
        """How many comparisons are not of the group, and have all words that its cells share."""
        if len(group) == 1:
            return 0
        alike = [self._having[word] for word in self._shared(group)]
        return (len(set.intersection(*alike)) if alike else len(self._of)) - len(group)

    def shared(self, group: Sequence[int]) -> str:
        """What the cells of a group have in common, and how many of the cells that are called so it has."""
        if len(group) == 1:
            return self.name(group[0])
        others = self.others(group)
        count = f"({len(group)} of {len(group) + others} cells)" if others else f"({len(group)} cells)"
        return " ".join([*self._shared(group), count])

    def _shared(self, group: Sequence[int]) -> list[str]:
        words = [self.name(row).split() for row in group]
        return [word for word in words[0] if all(word in one for one in words)]


def _row(c: Comparison, group: Sequence[int], better: str | None, names: _Names) -> list[str]:
    changes, row = c.changes, group[0]
    digits = _digits(changes.median_a[row])
    verdict = VERDICTS[changes.verdict[row]]
    low, high, share = (float(changes.known(name, row)) for name in ("low", "high", "change"))
    change = changes.shifts["change"][row]
    word = ""
    if verdict in ("changed", "exact") and better:
        word = "better" if (change < 0) == (better == "lower") else "worse"
    p = {"exact": "exact", "same": "same", "undecided": f"needs {changes.need_n[row]}"}.get(verdict) or (
        f"{changes.p_adjusted[row]:.2g}"
    )
    interval = "" if verdict in ("exact", "same") else f"{low:+.2f} .. {high:+.2f}" if math.isfinite(low) else "none"
    return [
        names.shared(group),
        _figure(changes.median_a[row], digits)
        + _spread(changes.spread_a[row], changes.median_a[row], changes.n_a[row]),
        _figure(changes.median_b[row], digits)
        + _spread(changes.spread_b[row], changes.median_b[row], changes.n_b[row]),
        ("+" if change > 0 else "") + _figure(change, digits),
        _pct(share) + (f" {word}" if word else ""),
        interval,
        p,
        str(changes.n_a[row]) if changes.n_a[row] == changes.n_b[row] else f"{changes.n_a[row]}+{changes.n_b[row]}",
    ]


def _digits(value: float) -> int:
    if not math.isfinite(value) or value == 0:
        return 3
    return max(0, min(6, 3 - math.floor(math.log10(abs(value)))))


def _figure(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return ""
    text = f"{value:,.{digits}f}"
    # A change far below the figure's own digits is shown all the same: 0.0000 would deny it.
    return f"{value:.2g}" if value and not float(text.replace(",", "")) else text


def _spread(spread: float, median: float, n: int) -> str:
    return "" if n < 2 or not median or not math.isfinite(spread) else f" ±{50 * spread / abs(median):.1f}%"


def _pct(value: float) -> str:
    return f"{value:+.2f}%" if math.isfinite(value) else ""


def _outcomes(out: Page, c: Comparison) -> None:
    if c.outcomes:
        out.title("Starts that end differently")
        for one in c.outcomes[: 4 * LISTED]:
            word = {
                "breaks": "BREAKS ",
                "worse": "fails more often ",
                "mends": "now starts ",
                "better": "fails less often ",
            }
            out.text(f"{word.get(one.kind, '')}{one.sentence(c.baseline)}")
        if len(c.outcomes) > 4 * LISTED:
            out.text(f"... and {len(c.outcomes) - 4 * LISTED} more; --out FILE has them")
    if c.only:
        out.title("Cells that only some sides have")
        groups: dict[tuple, list[str]] = {}
        for one in c.only:
            groups.setdefault((one.present, one.absent), []).append(one.cell)
        for (present, absent), names in groups.items():
            unique = list(dict.fromkeys(names))
            more = f" and {len(unique) - LISTED} more" if len(unique) > LISTED else ""
            out.text(
                f"{len(unique)} only in {', '.join(present)}, not in {', '.join(absent)}: "
                + "; ".join(unique[:LISTED])
                + more
            )


def _method(out: Page, c: Comparison) -> None:
    out.title("How")
    if c.tests:
        out.text(
            f"Test: {c.test}" + (f" ({c.test_note})" if c.test_note else "") + f". Correction over all {c.tests:,} "
            f"comparisons: {CORRECTION_NAMES[c.correction]}, alpha {c.alpha:g}. Samples are engine restarts."
        )
        means = "geometric means" if "moderated" in c.test else "means"
        shift = "the Hodges-Lehmann shift" if "Mann-Whitney" in c.test else f"the difference of {means}"
        out.text(
            f"Figures are medians ± half the interquartile range; change is {shift}, with its own "
            f"uncorrected {100 - 100 * c.alpha:g} % interval; per cent are of {c.baseline}'s median. "
            "Geomean: geometric mean over cells of the ratio of medians, whatever their tests say."
        )
    else:
        out.text(f"No test was made. Figures are medians; per cent are of {c.baseline}'s median.")
    if c.count("exact") or c.count("same"):
        out.text("exact: the quantity has no spread between restarts in any cell, so a difference needs no test.")
