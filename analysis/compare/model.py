"""What a comparison is made of. Light dataclasses; the numbers are columns, since there may be 100,000 of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from analysis.compare.metrics import Metric

VERDICTS = ("changed", "exact", "same", "no_change", "undecided")
"""changed: significant after correction. exact: no spread between restarts in any cell of the metric, and another
value. same: no spread in this cell, the same value. no_change: tested, not significant. undecided: too few restarts to
reach alpha, whatever they show."""

TESTS = ("auto", "mann-whitney", "welch", "moderated-t")
CORRECTIONS = ("bh", "holm", "none")


class CompareError(ValueError):
    """A comparison cannot be made as asked: one sentence, naming the field and the fix."""


@dataclass(frozen=True)
class Options:
    """What to compare, and how.

    Attributes:
        metrics: names (`analysis.compare.metrics`) or columns; empty for the default ones.
        row: identity columns that make a cell; empty for all of them.
        col: what is set against each other: `set`, or a column such as `vllm_version`.
        table: columns by which the cells are laid out in separate tables.
        ignore: identity columns that are left out of a cell's identity.
        filter: expression on rows, see `analysis.compare.filters`.
        axis: the checked metadata whose difference is the question; None to infer it where only one differs.
        test: one of `TESTS`. correction: one of `CORRECTIONS`. alpha: level, after correction.
        strict: leave out rows whose flags say that they cannot be trusted.
        rules: (metric, text of the rule) where a rule of the gate, not the user, asks for that metric.
    """

    metrics: tuple[str, ...] = ()
    row: tuple[str, ...] = ()
    col: str = "set"
    table: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    filter: str = ""
    axis: str | None = None
    test: str = "auto"
    correction: str = "bh"
    alpha: float = 0.05
    strict: bool = False
    rules: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Column:
    """One side of the comparison; the first is the baseline. Counts are of rows used."""

    label: str
    sets: tuple[str, ...]
    engines: int
    started: int
    workloads: int


@dataclass(frozen=True)
class Difference:
    """Checked metadata that is not the same everywhere: its values in every column of the comparison."""

    column: str
    values: tuple[tuple[str, ...], ...]
    role: str  # question | warning | minor


@dataclass(frozen=True)
class Quality:
    """Rows of one side that carry a flag."""

    column: str
    table: str
    flag: str
    rows: int
    of: int
    left_out: bool


@dataclass(frozen=True)
class Cell:
    """One configuration. `name` says only what varies between the cells."""

    index: int
    kind: str  # engine | workload
    table: str
    name: str
    key: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How often the starts (or workloads) of a cell ended how, where the two sides differ."""

    cell: str
    column: str
    before: dict[str, int]
    after: dict[str, int]
    kind: str  # breaks | mends | worse | better | other
    cell_index: int

    def sentence(self, baseline: str) -> str:
        def told(counts: dict[str, int]) -> str:
            return ", ".join(f"{n} {name}" for name, n in counts.items())

        return f"{self.cell}: {baseline}: {told(self.before)}; {self.column}: {told(self.after)}"


@dataclass(frozen=True)
class Broken:
    """Cells in which a metric is measured on the baseline and not on another side, because they fail there.

    Attributes:
        column: label of that side. cells: their indices.
        starts: the engine does not start; else it starts and the load on it fails.
    """

    metric: Metric
    column: str
    cells: tuple[int, ...]
    starts: bool


@dataclass(frozen=True)
class Only:
    """A cell that some sides lack."""

    cell: str
    present: tuple[str, ...]
    absent: tuple[str, ...]


@dataclass(frozen=True)
class Geomean:
    """Geometric mean over cells of the ratio of medians, other side over baseline."""

    metric: str
    column: str
    ratio: float
    cells: int


@dataclass
class Changes:
    """Columns of equal length, one entry per cell, metric and other side. Values are in the metric's display unit."""

    cell: np.ndarray
    column: np.ndarray
    metric: np.ndarray
    n_a: np.ndarray
    n_b: np.ndarray
    median_a: np.ndarray
    median_b: np.ndarray
    spread_a: np.ndarray  # interquartile range
    spread_b: np.ndarray
    shifts: dict[str, np.ndarray]  # `change`, `low`, `high`; see `known`
    p: np.ndarray
    p_adjusted: np.ndarray
    verdict: np.ndarray  # index into VERDICTS
    need_n: np.ndarray  # restarts on each side that a lone change would need; 0 where they suffice

    later: Callable[[], None] | None = None
    """Estimates the shifts that are left: where nothing changed, most of the work is for figures that few ask for."""

    def __len__(self) -> int:
        return len(self.cell)

    @property
    def change(self) -> np.ndarray:
        return self._complete("change")

    @property
    def low(self) -> np.ndarray:
        return self._complete("low")

    @property
    def high(self) -> np.ndarray:
        return self._complete("high")

    def _complete(self, name: str) -> np.ndarray:
        if self.later is not None:
            self.later()
            self.later = None
        return self.shifts[name]

    def per_cent(self, name: str) -> np.ndarray:
        """`change`, `low` or `high` in per cent of the baseline's median; NaN where that is 0."""
        return self._share(getattr(self, name), slice(None))

    def known(self, name: str, rows: slice | int = slice(None)) -> np.ndarray:
        """The same of these rows, as far as it is estimated: of all that changed and all that is undecided."""
        return self._share(self.shifts[name], rows)

    def _share(self, shift: np.ndarray, rows: slice | int) -> np.ndarray:
        import numpy as np

        with np.errstate(divide="ignore", invalid="ignore"):
            share = 100.0 * shift[rows] / np.abs(self.median_a[rows])
        return np.where(np.isfinite(share), share, np.nan)


@dataclass
class Comparison:
    """The whole result; `analysis.compare.render` and `.export` write it."""

    columns: list[Column]
    col: str
    axis: str | None
    alpha: float
    test: str
    test_note: str
    correction: str
    interval: str
    tests: int
    cells: list[Cell]
    metrics: list[Metric]
    changes: Changes
    constants: dict[str, Any] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    quality: list[Quality] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    only: list[Only] = field(default_factory=list)
    geomeans: list[Geomean] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    unmeasured: list[Metric] = field(default_factory=list)  # no side has a value of them

    @property
    def baseline(self) -> str:
        return self.columns[0].label

    def count(self, verdict: str) -> int:
        """How many comparisons ended so."""
        return int((self.changes.verdict == VERDICTS.index(verdict)).sum())

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per comparison, with names instead of indices and null for NaN."""
        from analysis.compare.export import records

        return records(self)

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for `json.dumps`."""
        from analysis.compare.export import document

        return document(self)
