"""Colours of the page and of its charts, as one list: light for picture files, CSS variables in the page.

The categorical ones are Okabe and Ito's, which people with any common colour blindness tell apart, with indigo and grey
after them; charts never rely on colour alone.
"""

from __future__ import annotations

import re
from typing import Final

LIGHT: Final[dict[str, str]] = {
    "text": "#1b1f24", "muted": "#5b646e", "bg": "#fdfdfc", "surface": "#f4f5f4", "line": "#d9dcdf",
    "accent": "#0b5fa5", "good": "#13795b", "warn": "#945c00", "bad": "#b3261e",
    "c1": "#0072b2", "c2": "#e69f00", "c3": "#009e73", "c4": "#cc79a7", "c5": "#56b4e9", "c6": "#d55e00",
    "c7": "#33228a", "c8": "#8c8d8e",
    "h1": "#eef4fa", "h2": "#d3e3f1", "h3": "#aecde6", "h4": "#7fb1d8", "h5": "#4f92c5", "h6": "#2a71ab",
    "h7": "#104e8a", "ink1": "#1b1f25", "ink2": "#fefeff", "grid": "#e6e8ea",
}  # fmt: skip

DARK: Final[dict[str, str]] = {
    "text": "#e8eaed", "muted": "#a2abb5", "bg": "#14171b", "surface": "#1c2127", "line": "#363d46",
    "accent": "#7ab8f0", "good": "#56c9a0", "warn": "#e8b04a", "bad": "#ff8a80",
    "c1": "#4aa3df", "c2": "#f2b33d", "c3": "#2cbd92", "c4": "#e09cc3", "c5": "#9bd3f5", "c6": "#f2824a",
    "c7": "#a99bff", "c8": "#9a9da1",
    "h1": "#1f2a36", "h2": "#22394f", "h3": "#254b6d", "h4": "#2b618f", "h5": "#3f80b6", "h6": "#6fa8d8",
    "h7": "#a9d0f2", "ink1": "#eef1f4", "ink2": "#0d1116", "grid": "#2a3037",
}  # fmt: skip

SERIES: Final = tuple(LIGHT[f"c{number}"] for number in range(1, 9))
HEAT: Final = tuple(LIGHT[f"h{number}"] for number in range(1, 8))

_BY_HEX = {value: name for name, value in LIGHT.items()}
assert len(_BY_HEX) == len(LIGHT), "every colour is told apart by its value"


def variables(svg: str) -> str:
    """A chart's SVG with its light colours replaced by the page's variables."""
    return re.sub(
        r'(fill|stroke)="(#[0-9a-f]{6})"',
        lambda found: f'{found[1]}="var(--{name})"' if (name := _BY_HEX.get(found[2])) else found[0],
        svg,
    )


def css() -> str:
    """Both themes: the system's choice, and the reader's over it."""
    light, dark = (";".join(f"--{name}:{value}" for name, value in theme.items()) for theme in (LIGHT, DARK))
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}\n"
        f"@media screen{{:root[data-theme=dark]{{color-scheme:dark;{dark}}}}}\n"
    )
