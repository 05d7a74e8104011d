"""Tables of the page: the first rows as markup, all rows as data that the page's script pages, sorts and filters."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Final

PAGE: Final = 20
"""Rows shown at once."""

MOST: Final = 2_000
"""Rows of one table in the page; the rest is in its CSV file."""


@dataclass(frozen=True)
class Column:
    """`kind`: text, prose (a sentence, given more room), id (monospaced), or the number of decimals as a digit."""

    label: str
    kind: str = "text"

    @property
    def numeric(self) -> bool:
        return self.kind.isdigit()


@dataclass
class Table:
    """`name` is its file and its anchor. Rows hold plain values in the order of the columns; None shows as a dash."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    query: str = ""
    """SQL over the result set that gives these rows, for `python -m analysis query`."""
    open: bool = False
    sets: Sequence[str] = field(default_factory=tuple)
    most: int = MOST

    def html(self) -> str:
        """Collapsed, with its first page readable without any script."""
        shown = self.rows[: self.most]
        head = "".join(
            f'<th scope="col"{" class=n" if one.numeric else ""}>{escape(one.label)}</th>' for one in self.columns
        )
        body = "".join(f"<tr>{''.join(map(_cell, self.columns, row))}</tr>" for row in shown[:PAGE])
        left = ""
        if len(self.rows) > len(shown):
            left = f" The page holds the first {len(shown):,}; all are in tables/{self.name}.csv beside it."
        more = f'<script type="application/json">{self._data(shown)}</script>' if len(shown) > PAGE else ""
        # On paper nobody can turn the page; page.js keeps the words true to what is shown.
        rest = ""
        if len(self.rows) > PAGE:
            words = f"Rows 1–{PAGE} of {len(self.rows):,}; all are in tables/{self.name}.csv beside the page."
            rest = f"<p class=rest>{escape(words)}</p>"
        # With few rows all of them are in the markup already, and the script reads them from there.
        return (
            f'<details class="table" id="table-{escape(self.name)}" data-rows={len(self.rows)}'
            f"{' open' if self.open else ''}>"
            f"<summary>{escape(self.title)} <span class=count>{len(self.rows):,} "
            f"{'row' if len(self.rows) == 1 else 'rows'}</span></summary>"
            f"{_paragraph(self.note + left)}"
            f'{box(self.title)}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}{rest}'
            f"{self._trace()}</details>"
        )

    def _trace(self) -> str:
        if not self.query:
            return ""
        sets = "".join(f" {_shell(one)}" for one in self.sets)
        return f'<p class="trace">The rows behind it: <code>python -m analysis query {escape(_shell(self.query))}{escape(sets)}</code></p>'  # noqa: E501

    def _data(self, rows: Sequence[Sequence[Any]]) -> str:
        columns = []
        for place, column in enumerate(self.columns):
            values = [_plain(row[place], column) for row in rows]
            names = list(dict.fromkeys(values))
            if not column.numeric and len(names) * 2 < len(values):
                number = {name: index for index, name in enumerate(names)}
                columns.append({"k": column.kind, "d": names, "i": [number[value] for value in values]})
            else:
                columns.append({"k": column.kind, "v": values})
        return to_json(columns)

    def write(self, folder: Path) -> Path:
        """All rows as CSV."""
        path = folder / f"{self.name}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow([one.label for one in self.columns])
            out.writerows(self.rows)
        return path


def box(title: str) -> str:
    """The start of what a wide table scrolls in; a keyboard reaches it, and a screen reader hears its name."""
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(title)}">'


def text_of(value: Any, kind: str) -> str:
    """A value as the page shows it; page.js has the same rules."""
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if kind.isdigit() and isinstance(value, int | float):
        return f"{value:,.{int(kind)}f}"
    return str(value)


def to_json(value: Any) -> str:
    """JSON that may stand inside a script element: no markup can end it, and no number is one that JSON lacks."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u2028", "\\u2028"),
                       ("\u2029", "\\u2029")):  # fmt: skip
        text = text.replace(char, code)
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def _plain(value: Any, column: Column) -> Any:
    if value is None or not column.numeric:
        return None if value is None else text_of(value, column.kind)
    if isinstance(value, int | float) and math.isfinite(value):
        rounded = round(float(value), int(column.kind))
        return int(rounded) if rounded == int(rounded) else rounded
    return None


def _cell(column: Column, value: Any) -> str:
    kind = ' class="n"' if column.numeric else f' class="{column.kind}"' if column.kind in ("id", "prose") else ""
    return f"<td{kind}>{escape(text_of(value, column.kind))}</td>"


def _paragraph(text: str) -> str:
    return f"<p class=note>{escape(text.strip())}</p>" if text.strip() else ""


def _shell(text: str) -> str:
    """One word of a command; in double quotes where the text has single ones, which is easier to read."""
    import shlex

    return f'"{text}"' if "'" in text and not set(text) & set('"$`\\!') else shlex.quote(text)
