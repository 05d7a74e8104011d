"""A small heat map as SVG, written as it stands: hundreds of them would take Vega minutes and megabytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from analysis.report.chart import FONT
from analysis.report.lettering import width as text_width
from analysis.report.palette import HEAT, LIGHT

ROW: Final = 34
"""Height of a row, px."""
LETTERS: Final = 11.0
LEAST: Final = 7.0
"""Font sizes, px: of labels, and the smallest that a figure in a cell is written in."""
SINK: Final = 0.36
"""From the middle of a line of figures down to where it stands, em."""


@dataclass(frozen=True)
class Cell:
    """`step`: its place on the scale, 0 to 6; `text`: the figure; `about`: a sentence; `href`: where its rows are."""

    step: int
    text: str
    about: str
    href: str


def drawn(
    cells: dict[tuple[int, int], Cell], rows: Sequence[int], columns: Sequence[int], row_title: str, column_title: str,
    width: int,
) -> str:  # fmt: skip
    """Cells by (row, column), the lowest row at the bottom; `width` in px. Places without a cell stay empty."""
    left = 20 + max((text_width(f"{one:,}", LETTERS) for one in rows), default=0.0) + 6
    step = (width - left) / max(len(columns), 1)
    bottom = ROW * len(rows)
    # The title along the rows is turned: a map of few rows must still be as high as its words are long.
    room = text_width(row_title, LETTERS)
    top = max((room - bottom) / 2, 0.0) + 2
    middle = top + bottom / 2
    height = max(top + bottom + 36, middle + room / 2 + 2)
    longest = max((text_width(cell.text, 1) for cell in cells.values()), default=1.0)
    size = min(LETTERS, (step - 6) / max(longest, 0.1))
    at_row = {value: top + bottom - ROW * (place + 1) for place, value in enumerate(rows)}
    at_column = {value: left + step * place for place, value in enumerate(columns)}
    marks = []
    for (row, column), cell in cells.items():
        if row not in at_row or column not in at_column:
            continue
        x, y = at_column[column], at_row[row]
        figure = ""
        if size >= LEAST:
            ink = LIGHT["ink1" if cell.step < 4 else "ink2"]
            across, low = _px(x + step / 2), _px(y + ROW / 2 + SINK * size)
            figure = f'<text x="{across}" y="{low}" fill="{ink}">{escape(cell.text)}</text>'
        marks.append(
            f'<a href="{escape(cell.href)}" aria-label="{escape(cell.about)}"><rect x="{_px(x + 1)}" '
            f'y="{_px(y + 1)}" width="{_px(step - 2)}" height="{ROW - 2}" fill="{HEAT[cell.step]}"/>{figure}</a>'
        )
    every = max(1, -(-max((text_width(f"{one:,}", LETTERS) for one in columns), default=0.0) // (step - 4)))
    down = ROW / 2 + SINK * LETTERS
    labels = [
        *(f'<text x="{_px(left - 6)}" y="{_px(at_row[one] + down)}" text-anchor="end">{one:,}</text>' for one in rows),
        *(f'<text x="{_px(at_column[one] + step / 2)}" y="{_px(top + bottom + 15)}">{one:,}</text>'
          for place, one in enumerate(columns) if place % every == 0),
    ]  # fmt: skip
    titles = (
        f'<text x="{_px(left + (width - left) / 2)}" y="{_px(top + bottom + 32)}">{escape(column_title)}</text>'
        f'<text transform="translate(12,{_px(middle)})rotate(-90)">{escape(row_title)}</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_px(height)}">'
        f'<g text-anchor="middle" font-family="{FONT}" font-size="{LETTERS:g}">'
        f'<g font-size="{size:.1f}">{"".join(marks)}</g><g fill="{LIGHT["text"]}">{"".join(labels)}</g>'
        f'<g fill="{LIGHT["muted"]}">{titles}</g></g></svg>'
    )


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
