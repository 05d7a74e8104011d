"""A leak that an allocator hides: memory that stands still, and rises by equal steps at equal intervals."""

from __future__ import annotations

from typing import Any

LEAST_STEPS = 3
"""One step is an allocator's, two may be; three of one size at one interval are a staircase."""
LEAST_STEP_BYTES = 4 * 2**20
_CLEAR = 8.0
"""A step stands out from the other changes by this many of their deviations."""
_SIZES, _GAPS = 2.0, 1.25
"""The largest step, or time between two, is at most this many times the smallest."""


def staircase(t_s: Any, level_bytes: Any, least_bytes_per_s: float) -> bool:
    """Whether the levels of equal blocks of time are a staircase that still goes on.

    Steps only up, `LEAST_STEPS` or more, of about one size and at one interval, with no longer time before the first
    and since the last: what settles takes its steps ever later. The flat parts must be flat and the steps together
    faster than `least_bytes_per_s`.
    """
    import numpy as np

    changes = np.diff(level_bytes)
    middle = float(np.median(changes))
    deviation = 1.4826 * float(np.median(np.abs(changes - middle)))
    clear = max(_CLEAR * deviation, LEAST_STEP_BYTES)
    if (changes < middle - clear).any():
        return False
    found: list[tuple[float, float]] = []
    before = -2
    for place in np.flatnonzero(changes > middle + clear):
        size = float(changes[place])
        if place == before + 1:  # one step that falls into the middle of a block
            found[-1] = (found[-1][0], found[-1][1] + size)
        else:
            found.append((float(t_s[place + 1]), size))
        before = int(place)
    if len(found) < LEAST_STEPS:
        return False
    sizes = [size for _, size in found]
    if max(sizes) > _SIZES * min(sizes) or sum(sizes) < least_bytes_per_s * float(t_s[-1] - t_s[0]):
        return False
    gaps = np.diff([at for at, _ in found])
    ends = (found[0][0] - float(t_s[0]), float(t_s[-1]) - found[-1][0])
    return bool(gaps.max() <= _GAPS * gaps.min() and max(ends) <= _GAPS * gaps.mean())
