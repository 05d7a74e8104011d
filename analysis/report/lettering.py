"""How wide text may become in a reader's browser, whichever face it falls back to.

Charts are laid out where the report is made and lettered where it is read. There the named faces may be missing, and
what stands in for them is wider: Verdana and DejaVu Sans are the widest that are common.
"""

from __future__ import annotations

from typing import Final

from analysis.report.points import short

_GROUPS: Final = {
    "ijl'": 0.35, " ,.": 0.37, "ftI": 0.43, "rsJ-/\\()[]:;!\"|–": 0.53, "czk?": 0.6, "aevxyLFE{}": 0.64,
    "bdghnopqu0123456789$*_`": 0.64, "PTYSZ": 0.69, "ABCKRVX": 0.7, "DHNUGOQ&": 0.79, "w+<=>#^~×−": 0.84, "M": 0.87,
    "m": 0.98, "W@": 1.0, "%": 1.08,
}  # fmt: skip
"""Advance widths of the wider of the two faces, em, rounded up."""
_WIDTHS: Final = {char: width for chars, width in _GROUPS.items() for char in chars}


def width(text: str, size: float) -> float:
    """Room to reserve for a line of text of `size` px, in px; other scripts count as full squares."""
    return size * sum(_WIDTHS.get(char, 1.0) for char in text)


def fitted(text: str, size: float, room: float) -> str:
    """The text, with as much of its middle left out as `room` px ask for."""
    most = len(text)
    while most > 3 and width(short(text, most), size) > room:
        most -= 1
    return short(text, most)
