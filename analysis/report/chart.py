"""From a Vega-Lite specification to SVG in the page and to picture files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

from analysis.report.palette import LIGHT, variables
from analysis.report.workers import Job, Workers

NARROW, WIDE = 326, 1040
"""Widths drawn, px: what a phone of 390 px and a desktop leave for a chart."""

FONT: Final = "Arial, Helvetica, 'Liberation Sans', sans-serif"
"""Metrically equal faces, so that labels are as wide in a browser as where they were laid out."""

Spec = dict[str, Any]
Build = Callable[[int], Spec]
"""A chart at a width in px; narrow ones may stack what wide ones set side by side."""


@dataclass(frozen=True)
class Chart:
    """One picture: `name` is its file, `title` its heading there, `legend` (label, colour) in the page's own markup."""

    name: str
    title: str
    build: Build
    legend: tuple[tuple[str, str], ...] = ()
    note: str = ""
    widths: tuple[int, ...] = (NARROW, WIDE)
    """Widths drawn for the page: one for small multiples, which stand side by side where there is room."""
    heading: str = ""
    """Shorter title among its neighbours on the page."""
    quiet: bool = False
    """The note is for the picture file alone: the page says it elsewhere."""


def config() -> Spec:
    """What every chart has in common: hairlines, one quiet face, no frame."""
    axis = {
        "labelColor": LIGHT["text"], "titleColor": LIGHT["muted"], "gridColor": LIGHT["grid"],
        "domainColor": LIGHT["line"], "tickColor": LIGHT["line"], "labelFontSize": 11, "titleFontSize": 11,
        "titleFontWeight": "normal", "labelOverlap": True, "titlePadding": 8, "tickSize": 4,
    }  # fmt: skip
    return {
        "font": FONT, "background": None, "view": {"stroke": None}, "axis": axis,
        "header": {"labelColor": LIGHT["text"], "labelFontSize": 12, "labelFontWeight": "bold", "title": None,
                   "labelAnchor": "start"},
        "title": {"color": LIGHT["text"], "fontSize": 12, "anchor": "start", "fontWeight": "bold",
                  "subtitleColor": LIGHT["muted"], "subtitleFontSize": 11},
        "legend": {"labelColor": LIGHT["text"], "titleColor": LIGHT["muted"], "labelFontSize": 11},
    }  # fmt: skip


def svg(spec: Mapping[str, Any]) -> str:
    """A specification drawn. The locale is fixed: a report looks the same wherever it is made."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg({"config": config(), **spec}, show_warnings=False))


def begin(chart: Chart, workers: Workers) -> list[Job]:
    """Drawing at each of its widths begins."""
    return [workers.start(svg, chart.build(width)) for width in chart.widths]


def inline(chart: Chart, drawings: Sequence[Job], titled: bool = False) -> str:
    """At its widths, of which CSS shows the one that fits, with heading and legend above."""
    kinds = ("",) if len(chart.widths) == 1 else ("narrow", "wide")
    drawn = "".join(
        f'<div class="{kind}">{_tidy(drawing.result(), chart.title)}</div>'
        for kind, drawing in zip(kinds, drawings, strict=True)
    )
    heading = f"<h3>{escape(chart.heading or chart.title)}</h3>" if titled else ""
    note = _note("" if chart.quiet else chart.note)
    return f'<figure class="chart">{heading}{legend(chart.legend)}{drawn}{note}</figure>'


def legend(entries: tuple[tuple[str, str], ...]) -> str:
    """Swatches and their meaning, in markup that wraps."""
    if not entries:
        return ""
    return '<ul class="legend">' + "".join(
        f'<li><svg class="swatch" viewBox="0 0 12 12" aria-hidden="true">{_swatch(label, colour)}</svg>'
        f"{escape(label)}</li>" for label, colour in entries
    ) + "</ul>"  # fmt: skip


def _swatch(label: str, colour: str) -> str:
    shape = '<path d="M6 0V12" stroke-width="2.5" stroke="{}"/>' if label.startswith("measured") else (
        '<rect width="12" height="12" rx="2" fill="{}"/>'
    )  # fmt: skip
    return variables(shape.format(colour))


def _note(text: str) -> str:
    return f"<figcaption>{escape(text)}</figcaption>" if text else ""


_DROPPED = re.compile(
    r' (?:role="graphics-(?:symbol|object)"|aria-roledescription="[^"]*"|aria-hidden="true"|pointer-events="none"'
    r'|xmlns:xlink="[^"]*"|version="1.1"|stroke-miterlimit="10"|font-weight="normal")'
)
_BASE = re.compile(r'href="[^"#]*#')
"""Vega's loader makes a fragment into an address under a base of its own; in the page it is a fragment again."""
_GROUP_CLASS = re.compile(r' class="(?:mark-[^"]*|role-[^"]*|background|foreground)"')


def _tidy(drawn: str, title: str) -> str:
    """The SVG as it stands in the page: scales to its box, has a name, refers to nothing, and is a third shorter."""
    drawn = _GROUP_CLASS.sub("", _DROPPED.sub("", drawn)).replace("xlink:href=", "href=").replace(' target="null"', "")
    drawn = _BASE.sub('href="#', drawn)
    drawn = _short_numbers(drawn)
    drawn = re.sub(
        r"<svg[^>]*?width=\"([\d.]+)\" height=\"([\d.]+)\"[^>]*?>",
        lambda found: f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {found[1]} {found[2]}" '
        f'style="max-width:{found[1]}px">', drawn, count=1,
    )  # fmt: skip
    return variables(drawn)


_LONG = re.compile(r"(?<![\w#.])(-?\d+\.\d{2})\d+(?![\w%])")


def _short_numbers(drawn: str) -> str:
    """Coordinates to a hundredth of a pixel, inside tags only: text keeps every digit."""
    return re.sub(r'(?<=[ ])(d|transform|x|y|x1|x2|y1|y2|width|height|opacity)="[^"]*"',
                  lambda tag: _LONG.sub(r"\1", tag[0]), drawn)  # fmt: skip


def picture(chart: Chart) -> Spec:
    """The chart as a picture that stands alone, with title, legend and note of its own."""
    body = dict(chart.build(chart.widths[-1]))
    body.pop("background", None)
    title: Spec = {"text": chart.title, "fontSize": 15, "offset": 14}
    if chart.note:
        title["subtitle"] = _wrapped(chart.note, 150)
    rows: list[Spec] = [_legend_strip(chart.legend)] if chart.legend else []
    return {
        "title": title, "vconcat": [*rows, body], "spacing": 12,
        "background": LIGHT["bg"], "padding": 16, "resolve": {"scale": {"color": "independent"}},
        "config": config(),
    }  # fmt: skip


def write(whole: Spec, path: Path, png: bool) -> None:
    """A picture as SVG at `path`, and as PNG of twice the size beside it. Raises OSError."""
    import vl_convert

    drawn = re.sub(r' (?:xlink:)?href="[^"]*"', "", vl_convert.vegalite_to_svg(whole, show_warnings=False))
    path.write_text(drawn, encoding="utf-8")
    if png:
        path.with_suffix(".png").write_bytes(vl_convert.svg_to_png(drawn, scale=2))


def _legend_strip(entries: tuple[tuple[str, str], ...]) -> Spec:
    """The legend as marks of its own: laid out by the length of its words, several to a line."""
    values, x, y = [], 0.0, 0
    for label, colour in entries:
        width = 22 + 6.4 * len(label) + 18
        if x + width > WIDE and x:
            x, y = 0.0, y + 18
        values.append({"x": x + 6, "tx": x + 18, "y": y + 8, "label": label, "colour": colour})
        x += width
    place = {"y": {"field": "y", "type": "quantitative", "scale": None, "axis": None}}
    across = {"type": "quantitative", "scale": None, "axis": None}
    return {
        "width": WIDE, "height": y + 16, "data": {"values": values},
        "layer": [
            {"mark": {"type": "square", "size": 120, "opacity": 1},
             "encoding": {**place, "x": {"field": "x", **across},
                          "color": {"field": "colour", "type": "nominal", "scale": None}}},
            {"mark": {"type": "text", "align": "left", "baseline": "middle", "fontSize": 11, "color": LIGHT["text"],
                      "limit": 0},
             "encoding": {**place, "x": {"field": "tx", **across}, "text": {"field": "label"}}},
        ],
    }  # fmt: skip


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)
