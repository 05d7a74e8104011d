"""`--fail-on "tpot_p99>5%,kv_pool<-1%"`: a comparison to an exit code.

A rule trips on a change that is decided (significant after correction, or exact) and whose size is beyond the
threshold. `!` after a rule takes the estimate alone, whatever the test says. `failures>0` counts cells that start on
the baseline and not on another side. Without such a rule, cells that fail where a rule would have judged them trip
it: a candidate that does not start is no improvement of its latency.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.compare.metrics import METRICS, Metric, nearest
from analysis.compare.model import VERDICTS, Broken, Changes, CompareError, Comparison

if TYPE_CHECKING:
    import numpy as np

_RULE = re.compile(r"\s*([A-Za-z_]\w*)\s*(<|>)\s*=?\s*([+-]?\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*([%A-Za-z/]*)\s*(!?)\s*")

_FACTORS = {
    ("GiB", "MiB"): 1 / 1024,
    ("GiB", "KiB"): 1 / 1024**2,
    ("GiB", "GB"): 1e9 / 2**30,
    ("GiB", "MB"): 1e6 / 2**30,
    ("GiB", "B"): 2.0**-30,
    ("ms", "s"): 1e3,
    ("ms", "us"): 1e-3,
    ("s", "ms"): 1e-3,
}


@dataclass(frozen=True)
class Rule:
    """One threshold, in per cent of the baseline's median or in the metric's display unit."""

    text: str
    metric: str
    sign: str
    limit: float
    per_cent: bool
    any: bool


@dataclass(frozen=True)
class Verdict:
    """What became of a rule.

    Attributes:
        tripped, undecided: changes beyond it that are decided, and that too few restarts leave open.
        judged: comparisons it applies to. broken: cells it does not apply to because they fail on another side.
        failures: cells that a rule on failures counts, where they are too many.
    """

    rule: Rule
    tripped: tuple[int, ...]
    undecided: tuple[int, ...]
    judged: int
    failures: int = 0
    broken: tuple[Broken, ...] = ()


def parse(text: str, every: bool = False) -> list[Rule]:
    """Rules of a comma-separated expression; `every` reads each as if it ended in `!`.

    Raises CompareError for what cannot be read.
    """
    rules = []
    for part in text.split(","):
        found = _RULE.fullmatch(part)
        if not found:
            raise CompareError(
                f"--fail-on {part.strip()!r}: write metric>number%, metric<-number% or a number with its "
                "unit, as in 'tpot_p99>5%,activation>0.5GiB'"
            )
        name, sign, number, unit, mark = found.groups()
        limit, per_cent = float(number), unit == "%"
        if name != "failures":
            limit = limit if per_cent else _in_unit(part.strip(), name, limit, unit)
        elif unit:
            raise CompareError(f"--fail-on {part.strip()!r}: failures are counted, without a unit: failures>0")
        rules.append(Rule(part.strip(), name, sign, limit, per_cent, every or bool(mark)))
    return rules


def _in_unit(text: str, name: str, limit: float, unit: str) -> float:
    metric = next((metric for metric in METRICS if metric.name == name), None)
    if metric is None and not re.search(r"_(bytes|s|w|j|tokens|pct|mhz|hz|c|tokens_per_s|requests_per_s)$", name):
        raise CompareError(f"--fail-on {text!r}: no metric is named {name!r}; {nearest(name)}")
    from analysis.compare.metrics import of_column

    shown = (metric or of_column(name, "engine")).unit
    if unit == shown:
        return limit
    if not unit and limit == 0:
        return 0.0
    if (shown, unit) in _FACTORS:
        return limit * _FACTORS[shown, unit]
    raise CompareError(f"--fail-on {text!r}: {name} is in {shown or 'no unit'}; write {limit:g}% or {limit:g}{shown}")


def metrics_of(rules: Sequence[Rule]) -> dict[str, str]:
    """Metrics that must be compared for the rules to be judged, with the text of the first rule of each."""
    out: dict[str, str] = {}
    for rule in rules:
        if rule.metric != "failures":
            out.setdefault(rule.metric, rule.text)
    return out


def check(rules: Sequence[Rule], comparison: Comparison) -> None:
    """Raises CompareError for a rule on a metric that was measured nowhere: it could only ever pass."""
    labels = [column.label for column in comparison.columns]
    for rule in rules:
        if any(_names(metric, rule.metric) for metric in comparison.unmeasured):
            sides = f"neither {labels[0]} nor {labels[1]}" if len(labels) == 2 else f"none of {', '.join(labels)}"
            raise CompareError(
                f"--fail-on {rule.text!r}: {sides} has a value of {rule.metric}, so it can judge nothing"
            )


def apply(rules: Sequence[Rule], comparison: Comparison) -> list[Verdict]:
    """Every rule against every cell."""
    import numpy as np

    changes = comparison.changes
    decided = np.isin(changes.verdict, [VERDICTS.index("changed"), VERDICTS.index("exact")])
    open_ones = changes.verdict == VERDICTS.index("undecided")
    out = []
    for rule in rules:
        if rule.metric == "failures":
            broken = sum(one.kind == "breaks" for one in comparison.outcomes)
            too_many = broken > rule.limit if rule.sign == ">" else broken < rule.limit
            out.append(Verdict(rule, (), (), len(comparison.cells), broken if too_many else 0))
            continue
        which = [at for at, metric in enumerate(comparison.metrics) if _names(metric, rule.metric)]
        here = np.isin(changes.metric, which)
        size = _size(changes, rule)
        beyond = here & (size > rule.limit if rule.sign == ">" else size < rule.limit)
        trips = beyond if rule.any else beyond & decided
        left = np.zeros_like(beyond) if rule.any else beyond & open_ones
        out.append(
            Verdict(
                rule,
                tuple(map(int, np.flatnonzero(trips))),
                tuple(map(int, np.flatnonzero(left))),
                int(here.sum()),
                broken=tuple(one for one in comparison.broken if _names(one.metric, rule.metric)),
            )
        )
    return out


def _size(changes: Changes, rule: Rule) -> np.ndarray:
    """Change in the rule's unit. From a baseline of 0 any change is more than every per cent: infinite, not unknown."""
    import numpy as np

    if not rule.per_cent:
        return changes.change
    from_nothing = (changes.median_a == 0) & (changes.change != 0) & np.isfinite(changes.change)
    return np.where(from_nothing, np.copysign(np.inf, changes.change), changes.per_cent("change"))


def _names(metric: Metric, name: str) -> bool:
    return metric.name == name or name in metric.columns[:1]


def sentences(verdicts: Sequence[Verdict], comparison: Comparison, undecided: str) -> tuple[list[str], bool]:
    """What to print, and whether the whole is tripped. `undecided`: fail | pass, for what restarts cannot decide.

    Cells that fail trip the rules that would have judged them, unless a rule on failures says how many may. A rule that
    is left with nothing to judge trips in any case.
    """
    out, failed = [], False
    limit = next((one.rule for one in verdicts if one.rule.metric == "failures"), None)
    partly: dict[str, list[str]] = {}
    for one in verdicts:
        name = one.rule.text
        if one.rule.metric == "failures":
            failed |= bool(one.failures)
            out.append(
                f"{'TRIPPED' if one.failures else 'ok'}: {name}"
                + (
                    f": {one.failures} cells start on {comparison.baseline} and not on the other side"
                    if one.failures
                    else _more_often(comparison)
                )
            )
        elif one.tripped:
            failed = True
            out.append(f"TRIPPED: {name}: {len(one.tripped)} of {one.judged} comparisons, {_worst(one, comparison)}")
        elif not one.judged and one.broken:
            failed = True
            out.append(f"TRIPPED: {name}: it has nothing to judge, since {_lost(one.broken, comparison)}")
        elif not one.judged or one.undecided:
            failed |= undecided == "fail"
            why = (
                f"{len(one.undecided)} of {one.judged} comparisons are beyond it and have too few restarts to be "
                "decided"
                if one.judged
                else "nothing was compared for it"
            )
            out.append(
                f"{'TRIPPED' if undecided == 'fail' else 'UNDECIDED, passed'}: {name}: {why} (--undecided {undecided})"
            )
        else:
            out.append(f"ok: {name}: none of {one.judged} comparisons")
        if one.judged and one.broken:
            verb = "is" if sum(len(broken.cells) for broken in one.broken) == 1 else "are"
            partly.setdefault(f"{_lost(one.broken, comparison)} and {verb} not judged by", []).append(name)
    for lost, names in partly.items():
        told = f"{lost} {' and '.join(names)}"
        failed |= limit is None
        out.append(
            f"note: {told}; {limit.text} decides about failures"
            if limit
            else f"TRIPPED: {told}; add failures>0 to fail on all that fail, or failures>N to allow N of them"
        )
    return out, failed


def _lost(broken: Sequence[Broken], comparison: Comparison) -> str:
    """The cells that fail, in words."""
    told, baseline = [], comparison.baseline
    for one in broken:
        many = len(one.cells) != 1
        if one.starts:
            told.append(
                f"{len(one.cells)} {'cells that start' if many else 'cell that starts'} in {baseline} "
                f"{'do' if many else 'does'} not in {one.column}"
            )
        else:
            told.append(
                f"{len(one.cells)} {'loads that complete' if many else 'load that completes'} in {baseline} "
                f"{'fail' if many else 'fails'} in {one.column}"
            )
    return " and ".join(told)


def _more_often(comparison: Comparison) -> str:
    worse = sum(outcome.kind == "worse" for outcome in comparison.outcomes)
    return f"; {worse} cells fail more often without failing always" if worse else ""


def _worst(one: Verdict, comparison: Comparison) -> str:
    changes = comparison.changes
    size = _size(changes, one.rule)
    at = max(one.tripped, key=lambda at: size[at] if one.rule.sign == ">" else -size[at])
    unit = "%" if one.rule.per_cent else f" {comparison.metrics[int(changes.metric[at])].unit}"
    if math.isinf(size[at]):
        told = f"from 0 to {changes.median_b[at]:.3g} {comparison.metrics[int(changes.metric[at])].unit}".rstrip()
        return f"{told} in {comparison.cells[int(changes.cell[at])].name}"
    return f"most {size[at]:+.3g}{unit} in {comparison.cells[int(changes.cell[at])].name}"
