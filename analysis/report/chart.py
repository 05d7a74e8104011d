"""From a Vega-Lite specification to SVG in the page and to picture files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Final

from analysis.report.lettering import width as text_width
from analysis.report.palette import LIGHT, variables
from analysis.report.workers import Job, Workers

NARROW, WIDE = 326, 1040
"""Widths drawn, px: what a phone of 390 px and a desktop leave for a chart."""

FONT: Final = "Arial, Helvetica, 'Liberation Sans', sans-serif"
"""Metrically equal faces, as wide in a browser as where they were laid out. Some readers have none of them: room that
text must fit into is reckoned with `lettering`, never with these."""

SHAPES: Final = {
    "circle": "M6 1A5 5 0 1 1 6 11A5 5 0 1 1 6 1Z", "square": "M1 1H11V11H1Z", "cross": "M4 1H8V4H11V8H8V11H4V8H1V4H4Z",
    "diamond": "M6 0L11 6L6 12L1 6Z", "triangle-up": "M6 1L12 11H0Z", "triangle-down": "M6 11L12 1H0Z",
    "triangle-right": "M11 6L1 0V12Z", "triangle-left": "M1 6L11 0V12Z",
}  # fmt: skip
"""Vega's names of the marks that tell series apart, as they stand in the legend, in a box of 12 x 12."""
_LINES: Final = {
    "tick": 'd="M6 0V12" stroke-width="2.5"', "line": 'd="M0 6H12" stroke-width="2"',
    "dashes": 'd="M0 6H12" stroke-width="2" stroke-dasharray="3 1.5"',
    "hollow": f'd="{SHAPES["circle"]}" fill="none" stroke-width="1.5"',
}  # fmt: skip
"""Entries of a legend that are drawn, not filled."""

Spec = dict[str, Any]
Build = Callable[[int], Spec | str]
"""A chart at a width in px; narrow ones may stack what wide ones set side by side."""


@dataclass(frozen=True)
class Chart:
    """One picture: `name` is its file, `title` its heading there, `legend` (label, colour) in the page's own markup.

    `build` gives a Vega-Lite specification, or, for what Vega would only make slow and long, SVG of that width.
    """

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
    shapes: Mapping[str, str] = field(default_factory=dict)
    """How an entry of the legend is drawn, by its label: a name of SHAPES or a line; a coloured field without one."""


def config() -> Spec:
    """What every chart has in common: hairlines, one quiet face, no frame."""
    axis = {
        "labelColor": LIGHT["text"], "titleColor": LIGHT["muted"], "gridColor": LIGHT["grid"],
        "domainColor": LIGHT["line"], "tickColor": LIGHT["line"], "labelFontSize": 11, "titleFontSize": 11,
        "titleFontWeight": "normal", "labelOverlap": True, "labelSeparation": 5, "titlePadding": 8, "tickSize": 4,
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
    return [_begin(chart.build(width), workers) for width in chart.widths]


def _begin(built: Spec | str, workers: Workers) -> Job:
    return Job(None, str, built) if isinstance(built, str) else workers.start(svg, built)


def inline(chart: Chart, drawings: Sequence[Job], titled: bool = False) -> str:
    """At its widths, of which CSS shows the one that fits, with heading and legend above."""
    kinds = ("",) if len(chart.widths) == 1 else ("narrow", "wide")
    drawn = "".join(
        f'<div class="{kind}">{_tidy(drawing.result(), chart.title)}</div>'
        for kind, drawing in zip(kinds, drawings, strict=True)
    )
    heading = f"<h3>{escape(chart.heading or chart.title)}</h3>" if titled else ""
    note = _note("" if chart.quiet else chart.note)
    return f'<figure class="chart">{heading}{legend(chart.legend, chart.shapes)}{drawn}{note}</figure>'


def legend(entries: tuple[tuple[str, str], ...], shapes: Mapping[str, str] | None = None) -> str:
    """Swatches and their meaning, in markup that wraps."""
    if not entries:
        return ""
    shapes = shapes or {}
    return '<ul class="legend">' + "".join(
        f'<li><svg class="swatch" viewBox="0 0 12 12" aria-hidden="true">{_swatch(shapes.get(label), colour)}</svg>'
        f"{escape(label)}</li>" for label, colour in entries
    ) + "</ul>"  # fmt: skip


def _swatch(shape: str | None, colour: str) -> str:
    if shape is None:
        drawn = f'<rect width="12" height="12" rx="2" fill="{colour}"/>'
    elif shape in _LINES:
        drawn = f'<path {_LINES[shape]} stroke="{colour}"/>'
    else:
        drawn = f'<path d="{SHAPES[shape]}" fill="{colour}"/>'
    return variables(drawn)


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
    # Thousands of marks would stand between a reader with a keyboard and the tables, which lead to the same rows.
    drawn = _BASE.sub('tabindex="-1" href="#', drawn)
    drawn = _short_numbers(drawn)
    drawn = re.sub(
        r"<svg[^>]*?width=\"([\d.]+)\" height=\"([\d.]+)\"[^>]*?>",
        lambda found: f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {found[1]} {found[2]}" '
        f'style="max-width:{found[1]}px">', drawn, count=1,
    )  # fmt: skip
    return variables(drawn)


_LONG = re.compile(r"(?<![\d.])(-?\d+\.\d{2})\d+(?![\w%])")


def _short_numbers(drawn: str) -> str:
    """Coordinates to a hundredth of a pixel, inside tags only: text keeps every digit."""
    return re.sub(r'(?<=[ ])(d|transform|x|y|x1|x2|y1|y2|width|height|opacity)="[^"]*"',
                  lambda tag: _LONG.sub(r"\1", tag[0]), drawn)  # fmt: skip


def picture(chart: Chart) -> Spec | str:
    """The chart as a picture that stands alone, with title, legend and note of its own."""
    built = chart.build(chart.widths[-1])
    if isinstance(built, str):
        return _framed(built, chart)
    body = dict(built)
    body.pop("background", None)
    title: Spec = {"text": chart.title, "fontSize": 15, "offset": 14}
    if chart.note:
        title["subtitle"] = _wrapped(chart.note, 150)
    rows: list[Spec] = [_legend_strip(chart.legend, chart.shapes)] if chart.legend else []
    return {
        "title": title, "vconcat": [*rows, body], "spacing": 12,
        "background": LIGHT["bg"], "padding": 16, "resolve": {"scale": {"color": "independent"}},
        "config": config(),
    }  # fmt: skip


def _framed(body: str, chart: Chart) -> str:
    """SVG with title and note around it; whatever the reader's face, no line is wider than the picture."""
    across, down = (float(one) for one in re.findall(r'<svg[^>]*? width="([\d.]+)" height="([\d.]+)"', body)[0])
    lines = [(chart.title, 15, "bold", LIGHT["text"]), *((one, 11, "normal", LIGHT["muted"])
                                                        for one in _wrapped(chart.note, 75))]  # fmt: skip
    # Bold letters are some 10 % wider.
    whole = max(across, *(text_width(text, size) * (1.1 if weight == "bold" else 1)
                          for text, size, weight, _ in lines)) + 32  # fmt: skip
    at, words = 16.0, []
    for text, size, weight, colour in lines:
        at += size + 3
        words.append(f'<text x="16" y="{at:.0f}" font-size="{size}" font-weight="{weight}" fill="{colour}">'
                     f"{escape(text)}</text>")  # fmt: skip
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole:.0f}" height="{at + down + 32:.0f}" '
        f'font-family="{FONT}"><rect width="100%" height="100%" fill="{LIGHT["bg"]}"/>{"".join(words)}'
        f'<g transform="translate(16,{at + 14:.0f})">{body}</g></svg>'
    )


def write(whole: Spec | str, path: Path, png: bool) -> None:
    """A picture as SVG at `path`, and with `png` as PNG of twice the size beside it; heat maps, of which there may be
    hundreds, as SVG alone. Raises OSError."""
    import vl_convert

    made = whole if isinstance(whole, str) else vl_convert.vegalite_to_svg(whole, show_warnings=False)
    drawn = re.sub(r' (?:xlink:)?href="[^"]*"', "", made)
    path.write_text(drawn, encoding="utf-8")
    if png and not isinstance(whole, str):
        path.with_suffix(".png").write_bytes(vl_convert.svg_to_png(drawn, scale=2))


_VEGA_LINES: Final = {"tick": "M0,-1V1", "line": "M-1,0H1", "dashes": "M-1,0H-0.3M0.3,0H1", "hollow": "circle"}


def _legend_strip(entries: tuple[tuple[str, str], ...], shapes: Mapping[str, str]) -> Spec:
    """The legend as marks of its own: laid out by the length of its words, several to a line."""
    values, x, y = [], 0.0, 0
    for label, colour in entries:
        width = 18 + text_width(label, 11) + 18
        if x + width > WIDE and x:
            x, y = 0.0, y + 18
        shape = shapes.get(label, "square")
        values.append({"x": x + 6, "tx": x + 18, "y": y + 8, "label": label, "colour": colour,
                       "fill": "none" if shape in _VEGA_LINES else colour,
                       "shape": _VEGA_LINES.get(shape, shape)})  # fmt: skip
        x += width
    place = {"y": {"field": "y", "type": "quantitative", "scale": None, "axis": None}}
    across = {"type": "quantitative", "scale": None, "axis": None}
    return {
        "width": WIDE, "height": y + 16, "data": {"values": values},
        "layer": [
            {"mark": {"type": "point", "size": 110, "opacity": 1, "strokeWidth": 1.5},
             "encoding": {**place, "x": {"field": "x", **across},
                          "shape": {"field": "shape", "type": "nominal", "scale": None},
                          "fill": {"field": "fill", "type": "nominal", "scale": None},
                          "stroke": {"field": "colour", "type": "nominal", "scale": None}}},
            {"mark": {"type": "text", "align": "left", "baseline": "middle", "fontSize": 11, "color": LIGHT["text"],
                      "limit": 0},
             "encoding": {**place, "x": {"field": "tx", **across}, "text": {"field": "label"}}},
        ],
    }  # fmt: skip


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)
