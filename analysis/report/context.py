"""What every section draws on, and what it hands back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from analysis.report.chart import Chart
from analysis.report.points import Naming, Point, Unit, colours, shapes, unit_for
from analysis.report.read import ResultSet
from analysis.report.table import Table


@dataclass(frozen=True)
class View:
    """One of several pictures that a reader chooses between: charts side by side under a name."""

    name: str
    charts: tuple[Chart, ...]
    head: str = ""
    """Markup above the charts, escaped already."""


@dataclass
class Section:
    """A section before it is markup. `lead` and `notes` are plain text; `html` is markup that is escaped already."""

    anchor: str
    title: str
    lead: str = ""
    notes: list[str] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    choose: str = "Show"
    html: str = ""
    tables: list[Table] = field(default_factory=list)
    data: dict[str, object] = field(default_factory=dict)


@dataclass
class Context:
    """The sets of a report and their points."""

    sets: Sequence[ResultSet]
    points: list[Point]
    problems: list[str]

    @cached_property
    def good(self) -> list[Point]:
        """Points of which a start was measured."""
        return [point for point in self.points if point.good]

    @cached_property
    def naming(self) -> Naming:
        return Naming(self.points)

    @cached_property
    def unit(self) -> Unit:
        sizes = [sum(point.terms.values()) for point in self.good] + [point.peak or 0.0 for point in self.good]
        return unit_for(max(sizes, default=0.0))

    @cached_property
    def quantization_colours(self) -> dict[str, str]:
        return colours(point.quantization for point in self.points)

    @cached_property
    def quantization_shapes(self) -> dict[str, str]:
        return shapes(point.quantization for point in self.points)

    @property
    def roots(self) -> list[str]:
        return [str(one.root) for one in self.sets]

    @cached_property
    def many_environments(self) -> bool:
        return bool(self.naming.environments) or self.naming.several_sets
