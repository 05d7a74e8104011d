"""What a person sees while a sweep runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

_ENOUGH = 3  # finished points before their durations say anything about the rest
_RECENT = 8  # finished points kept in the live table


def gib(value: int | float | None) -> str:
    """Bytes as GiB or MiB, whichever reads better; a dash for unknown."""
    if value is None:
        return "-"
    return f"{value / 2**30:.2f} GiB" if abs(value) >= 2**30 else f"{value / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """`75` as `1:15`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass
class PointView:
    """The point being measured, as it is now."""

    label: str
    phase: str = "gate"
    read_memory: Callable[[], int | None] | None = None
    tokens_per_s: float | None = None
    detail: str = ""
    began: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class DonePoint:
    """A point that is recorded: its peak memory and best throughput."""

    label: str
    status: str
    peak_bytes: int | None
    tokens_per_s: float | None
    seconds: float


class Progress:
    """Shows points as they are measured. Measuring code sets `point` attributes; drawing is ours."""

    def __init__(self, total: int, skipped: int, title: str, console: Console | None = None) -> None:
        # Progress goes to stderr, so that what a program may want to read has stdout to itself.
        self._console = console or Console(stderr=True, highlight=False)
        self._total, self._skipped, self._title = total, skipped, title
        self._began = time.monotonic()
        self._durations: list[float] = []
        self._done: list[DonePoint] = []
        self.point: PointView | None = None
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4, transient=True)
            self._live.start()

    def more(self, points: int = 1) -> None:
        """Points that nobody could plan for come on top."""
        self._total += points

    def start(self, label: str) -> PointView:
        """A new point begins."""
        self.point = PointView(label)
        return self.point

    def phase(self, name: str) -> None:
        """The point enters a phase."""
        if self.point:
            self.point.phase = name

    def finish(self, status: str, figures: str, peak_bytes: int | None, tokens_per_s: float | None) -> None:
        """The point is recorded. `figures` says it in a line, the rest are its cells in the live table."""
        assert self.point is not None
        took = time.monotonic() - self.point.began
        self._durations.append(took)
        self._done.append(DonePoint(self.point.label, status, peak_bytes, tokens_per_s, took))
        if self._live and status not in ("ok", "memory_only"):
            self._console.print(Text(f"{self.point.label}: {status}, {figures}", style=_style(status)))
        if self._live is None:
            number = len(self._done)
            left = f", about {duration(self._left())} left" if number < self._total and number >= _ENOUGH else ""
            print(f"[{number}/{self._total}] {self.point.label}: {status}, {figures} ({took:.1f} s{left})",
                  file=sys.stderr, flush=True)  # fmt: skip
        self.point = None

    def note(self, sentence: str) -> None:
        """A line for people that stays on screen."""
        if self._live:
            self._console.print(sentence)
        else:
            print(sentence, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the live table away."""
        if self._live:
            self._live.stop()
            self._live = None

    def _left(self) -> float:
        if not self._durations:
            return 0.0
        # The median, because a first start that fills caches would promise too much time.
        middle = sorted(self._durations)[len(self._durations) // 2]
        current = time.monotonic() - self.point.began if self.point and len(self._done) < self._total else 0.0
        return max(0.0, middle * (self._total - len(self._done)) - current)

    def _render(self) -> RenderableType:
        elapsed = time.monotonic() - self._began
        known = f", {self._skipped} recorded before" if self._skipped else ""
        left = f", about {duration(self._left())} left" if len(self._durations) >= _ENOUGH else ""
        done = f"{len(self._done)} of {self._total} points{known}"
        head = Text(f"{self._title}: {done}, {duration(elapsed)} elapsed{left}", style="bold")
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("point", "phase", "memory", "tokens/s", "time"):
            table.add_column(name, justify="left" if name in ("point", "phase") else "right", no_wrap=True)
        for done in self._done[-_RECENT:]:
            cells = (gib(done.peak_bytes), _speed(done.tokens_per_s), duration(done.seconds))
            table.add_row(done.label, Text(done.status, style=_style(done.status)), *cells, style="dim")
        if point := self.point:
            phase = f"{point.phase} {point.detail}".strip()
            memory = gib(point.read_memory() if point.read_memory else None)
            took = duration(time.monotonic() - point.began)
            table.add_row(point.label, phase, memory, _speed(point.tokens_per_s), took)
        return Group(head, table)


def _speed(tokens_per_s: float | None) -> str:
    return f"{tokens_per_s:,.0f}" if tokens_per_s else ""


def _style(status: str) -> str:
    return {"ok": "green", "memory_only": "yellow", "pruned": "yellow"}.get(status, "red")
