"""The page: sections to one HTML file that asks nothing of any network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Final

from analysis.report import palette
from analysis.report.chart import Chart, begin, inline
from analysis.report.context import Context, Section, View
from analysis.report.fragment import Fragment
from analysis.report.lettering import fitted
from analysis.report.sections import sections
from analysis.report.table import Table, to_json
from analysis.report.timeline import bundle, template
from analysis.report.workers import Job, Workers

PRINTED: Final = 40
"""Charts of a section that are printed whatever is chosen; of more, the choice alone is."""

OPTION: Final = 310.0
"""Room for the words of a choice on a phone, px."""

Drawings = dict[str, list[Job]]
"""Charts by name, each at its widths, under way."""

HERE: Final = Path(__file__).resolve().parent

POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
"""The browser itself refuses every request of the page; Vega makes functions of its expressions."""


def build(
    context: Context, made_unix_s: float, workers: Workers, calculator: Callable[[], Fragment | None],
    say: Callable[[str], None] = lambda _: None, drawn: Callable[[Chart], None] = lambda _: None,
) -> tuple[str, list[Table]]:  # fmt: skip
    """The whole page, and the tables in it for their files; `drawn` is told of every chart once it is known."""
    tables: list[Table] = []
    bodies, links, styles, scripts = [], [], [], []
    every = []
    for one in sections(context, say, workers, calculator):
        drawings: Drawings = {}
        if isinstance(one, Section):
            for chart in [chart for view in one.views for chart in view.charts]:
                drawings[chart.name] = begin(chart, workers)
                drawn(chart)
            if one.anchor == "timeline" and one.data:
                drawings["vega"] = [workers.start(bundle), workers.start(template)]
        every.append((one, drawings))
    say("drawing")
    for one, drawings in every:
        links.append(f'<a href="#{escape(one.anchor)}">{escape(one.title)}</a>')
        if isinstance(one, Fragment):
            bodies.append(_section(one.anchor, one.title, one.html))
            styles.append(one.style)
            scripts.append(_of_fragment(one))
            continue
        bodies.append(_section(one.anchor, one.title, _inside(one, drawings)))
        tables += one.tables
    names = ", ".join(one.name for one in context.sets) or "no set"
    made = datetime.fromtimestamp(made_unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = [
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>",
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name=viewport content="width=device-width,initial-scale=1">',
        f"<title>{escape(names)}: vllm-calibrate report</title>",
        "<link rel=icon href=data:,>",
        f"<style>{palette.css()}{_asset('page.css')}{_style(styles)}</style>",
        '<script>document.documentElement.classList.add("js")</script></head><body>',
        f"<header class=top><div><h1>{escape(names)}</h1><p>{escape(_summary(context))}</p></div>"
        "<button class=theme id=theme type=button hidden>Dark theme</button></header>",
        f'<div class=layout><nav class=contents aria-label="Sections">{"".join(links)}</nav><main>',
        *bodies,
        f"<footer>Made by vllm-calibrate on {made}. GiB and MiB are powers of two. Pictures are beside this file in "
        "pictures/, tables in tables/.</footer></main></div>",
        f"<script>{_script(_asset('page.js'))}</script>",
        *scripts,
        "</body></html>\n",
    ]
    return "".join(parts), tables


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _script(code: str) -> str:
    """Code that may stand inside a script element."""
    return code.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _style(styles: list[str]) -> str:
    return "".join(styles).replace("</style", "")


def _section(anchor: str, title: str, inside: str) -> str:
    return f'<section id="{escape(anchor)}"><h2>{escape(title)}</h2>{inside}</section>'


def _of_fragment(one: Fragment) -> str:
    if not one.script:
        return ""
    name = escape(one.anchor)
    return (
        f'<script type="application/json" id="data-{name}">{to_json(one.data)}</script>'
        f'<script>(function(root,data){{{_script(one.script)}\n}})(document.getElementById("{name}"),'
        f'JSON.parse(document.getElementById("data-{name}").textContent));</script>'
    )


def _inside(one: Section, drawings: Drawings) -> str:
    parts = [f"<p>{escape(one.lead)}</p>"] if one.lead else []
    if one.notes:
        parts.append(f"<ul class=notes>{''.join(f'<li>{escape(note)}</li>' for note in one.notes)}</ul>")
    parts.append(one.html)
    if one.anchor == "timeline" and one.data:
        parts.append('<div class=choose id=timeline-choose hidden><label for=timeline-run>Run</label>'
                     "<select id=timeline-run></select> <span class=id id=timeline-id></span></div>")  # fmt: skip
        chosen = one.data["runs"][one.data["chosen"]]  # type: ignore[index, call-overload]
        named = escape(f"Run: {chosen['name']}, {chosen['run']}")
        parts.append(f"<p class=printed id=timeline-printed>{named}</p>")
    parts.append(_views(one, drawings))
    parts += [table.html() for table in one.tables]
    if one.anchor == "timeline" and one.data:
        code, spec = (job.result() for job in drawings["vega"])
        data = to_json({**one.data, "spec": spec})
        parts.append(f'<script type="application/json" id="timeline-data">{data}</script>'
                     f'<script type="text/plain" id="vega">{_script(code)}</script>')  # fmt: skip
    return "".join(parts)


def _views(one: Section, drawings: Drawings) -> str:
    if not one.views:
        return ""
    out = []
    several_views = len(one.views) > 1
    whole = sum(len(view.charts) for view in one.views) <= PRINTED
    if several_views:
        options = "".join(map(_option, one.views))
        out.append(f'<div class=choose><label for="choose-{one.anchor}">{escape(one.choose)}</label>'
                   f'<select id="choose-{one.anchor}" data-views="views-{one.anchor}">{options}</select>'
                   "</div>")  # fmt: skip
        if not whole:
            names = "; ".join(view.name for view in one.views)
            out.append(f"<p class=printed>One of {len(one.views)} choices is printed, the one named below; the others "
                       f"are in the page, and as files in pictures/. All of them: {escape(names)}.</p>")  # fmt: skip
    blocks = []
    for place, view in enumerate(one.views):
        several = len(view.charts) > 1 or one.anchor in ("maps", "predicted")
        shape = ("two" if one.anchor == "speed" else "") if several else "one"
        head = f"<div class=head>{view.head}</div>" if view.head else ""
        drawn = "".join(inline(chart, drawings[chart.name], titled=several) for chart in view.charts)
        # On paper there is no choice to be read above the picture.
        named = f"<h3 class=printed>{escape(f'{one.choose}: {view.name}')}</h3>" if several_views else ""
        blocks.append(f'<div class="view {shape}{" on" if place == 0 else ""}">{named}{head}{drawn}</div>')
    kind = ' class="whole"' if whole else ""
    return f'{"".join(out)}<div id="views-{one.anchor}"{kind}>{"".join(blocks)}</div>'


def _option(view: View) -> str:
    """A phone cuts what is longer, and always at its end, where names differ."""
    shown = fitted(view.name, 13.8, OPTION)
    title = f' title="{escape(view.name)}"' if shown != view.name else ""
    return f"<option{title}>{escape(shown)}</option>"


def _summary(context: Context) -> str:
    rows = [row for point in context.points for row in point.rows]
    if not rows:
        return "No engine start could be read; what could not is told below."
    counts = Counter(str(row.get("status")) for row in rows)
    words = [f"{counts[name]:,} {name.replace('_', ' ')}" for name in ("ok", "memory_only", "failed", "pruned")
             if counts[name]]  # fmt: skip
    models = len({point.model for point in context.points})
    versions = sorted({str(row["vllm_version"]) for row in rows if row.get("vllm_version")})
    devices = sorted({str(row["device_name"]) for row in rows if row.get("device_name")})
    return (f"{len(rows):,} engine starts ({', '.join(words)}) of {len(context.points):,} points, {models} "
            f"{'model' if models == 1 else 'models'}; vLLM {', '.join(versions[:3]) or 'unknown'} on "
            f"{', '.join(devices[:3]) or 'an unknown device'}.")  # fmt: skip
