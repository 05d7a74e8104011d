"""Keeps a costly reading within a share of one CPU core by taking it less often."""

from __future__ import annotations


class Pacer:
    """Says when a reading is due: at most `hz` times a second, and so seldom that its cost stays below
    `share`.

    The wait after a reading follows from what that very reading cost, so a process that grows is read less
    often from the next time on.
    """

    def __init__(self, hz: float, share: float) -> None:
        self._least_s = 1.0 / hz if hz > 0 else float("inf")
        self._share = share
        self._due_at_s = 0.0 if hz > 0 else float("inf")
        self.readings = 0
        self.cpu_s = 0.0

    def due(self, now_s: float) -> bool:
        # Half a millisecond of slack: a tick that comes a hair early must not put a reading off by a whole
        # tick.
        return now_s + 0.0005 >= self._due_at_s

    def took(self, start_s: float, cpu_s: float) -> None:
        """A reading began at `start_s` and took `cpu_s` of CPU time."""
        self.readings += 1
        self.cpu_s += cpu_s
        self._due_at_s = start_s + max(self._least_s, cpu_s / self._share)

    def soon(self) -> None:
        """Make the next reading due at once, for example because something changed."""
        if self._least_s != float("inf"):
            self._due_at_s = 0.0
