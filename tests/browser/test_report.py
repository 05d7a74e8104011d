"""The report in a real browser: it opens from disk, asks for nothing, fits phone and desktop, and answers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from analysis import cli
from analysis.report import sections

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference-cpu"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of the real starts of one model."""
    import pandas

    folder = tmp_path_factory.mktemp("report")
    engines = pandas.read_parquet(REFERENCE / "engines", columns=["run_id", "model"])
    for table in ("engines", "workloads", "samples"):
        (folder / "set" / table).mkdir(parents=True)
        for run_id in engines[engines.model.isin(["tiny-llama", "tiny-qwen2"])].run_id:
            shutil.copy(REFERENCE / table / f"{run_id}.parquet", folder / "set" / table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "begin_calculator", lambda workers: lambda: None)  # has browser tests of its own
        assert cli.main(["report", str(folder / "set"), "--out", str(folder / "index.html"), "--no-files"]) == 0
    return folder / "index.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_it_opens_clean_and_nothing_is_cut(browser: Any, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width=width, height=900, dark=dark)
    assert browser.console_errors() == [] and browser.requests() == []
    assert browser.layout_problems("body") == []
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert browser.layout_problems("body") == []
    for name in browser.run("return [...document.querySelectorAll('main>section')].map((one) => one.id)"):
        browser.screenshot(f"report-{name}-{width}-{'dark' if dark else 'light'}", f"#{name}")


def test_every_choice_fits_too(browser: Any, page: Path) -> None:
    for width in (390, 1440):
        browser.open(page, width=width, height=900)
        for anchor in browser.run("return [...document.querySelectorAll('select[data-views]')].map((one) => one.id)"):
            count = browser.run(f"return document.getElementById('{anchor}').length")
            browser.run(f"const s = document.getElementById('{anchor}'); s.selectedIndex = {count - 1}; s.onchange()")
        assert browser.layout_problems("main") == []
    assert browser.console_errors() == []


def test_any_run_can_be_chosen(browser: Any, page: Path) -> None:
    browser.open(page, width=390, height=900)
    before = browser.run("return document.querySelector('#timeline figure svg[role=img]').outerHTML")
    drawn = browser.driver.execute_async_script(
        "const done = arguments[0], s = document.getElementById('timeline-run'),"
        " f = document.querySelector('#timeline figure');"
        "s.selectedIndex = s.selectedIndex === 0 ? 1 : 0;"
        "new MutationObserver(() => setTimeout(() => done(f.querySelector('svg[role=img]').outerHTML)))"
        ".observe(f, {childList: true}); s.onchange();"
    )  # fmt: skip
    assert drawn != before and "var(--c1)" in drawn
    assert browser.console_errors() == [] and browser.requests() == []
    assert browser.layout_problems("#timeline") == []


def test_tables_page_sort_and_filter(browser: Any, page: Path) -> None:
    browser.open(page, width=1440, height=900)
    table = "document.getElementById('table-starts')"
    browser.run(f"{table}.open = true; {table}.dispatchEvent(new Event('toggle'))")
    assert browser.run(f"return {table}.querySelectorAll('tbody tr').length") == 20
    assert browser.run(f"return {table}.querySelector('.tools span').textContent") == "1–20 of 48"
    heads = browser.run(f"return [...{table}.querySelectorAll('th')].map((one) => one.textContent)")
    place = heads.index("T")
    for order in (sorted, lambda values: sorted(values, reverse=True)):
        browser.run(f"{table}.querySelectorAll('th button')[{place}].click()")
        cells = f"[...{table}.querySelectorAll('tbody tr')].map((one) => one.cells[{place}].textContent)"
        shown = browser.run(f"return {cells}")
        numbers = [int(one.replace(",", "")) for one in shown]
        assert numbers == order(numbers)
    browser.run(f"const i = {table}.querySelector('input'); i.value = 'qwen2 int8'; i.oninput()")
    assert browser.run(f"return {table}.querySelector('.tools span').textContent") == "1–12 of 12"


def test_a_mark_leads_to_its_rows(browser: Any, page: Path) -> None:
    browser.open(page, width=1440, height=900)
    point = browser.run(
        "const mark = [...document.querySelectorAll('#memory .view.on .wide a')][0];"
        "mark.dispatchEvent(new MouseEvent('click', {bubbles: true, cancelable: true}));"
        "return mark.getAttribute('href').slice('#find:'.length);"
    )
    rows = browser.run("return [...document.querySelectorAll('#table-starts tbody tr')].map((one) => one.textContent)")
    assert len(rows) == 1 and point in rows[0]


def test_the_theme_can_be_chosen_and_paper_is_light(browser: Any, page: Path) -> None:
    browser.open(page, width=1440, height=900, dark=True)
    colour = "return getComputedStyle(document.body).backgroundColor"
    dark = browser.run(colour)
    browser.run("document.getElementById('theme').click()")
    light = browser.run(colour)
    assert dark != light
    browser.open(page, width=800, height=900, dark=True, media="print")
    assert browser.run(colour) == light


@pytest.mark.parametrize("width", [390, 1440])
def test_wider_letters_are_not_cut_either(browser: Any, page: Path, width: int) -> None:
    """A reader may have none of the faces that charts are laid out for; these are the widest that are common."""
    browser.open(page, width=width, height=900)
    browser.run("const s = document.createElement('style');"
                "s.textContent = 'svg text { font-family: \"DejaVu Sans\", Verdana, sans-serif !important }';"
                "document.head.append(s)")  # fmt: skip
    assert browser.layout_problems("main") == []


def test_room_for_labels_is_what_the_browser_needs(browser: Any, page: Path) -> None:
    from analysis.report.lettering import width

    browser.open(page)
    words = ["int8-w8a8 T 16,384 S 1,024", "failed, kv allocation, out of memory", "MWmw%@#&{}[]()<>", "ABCDEFGHIJKL",
             "NOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz", "0123456789.,:;-_/+*=~^|!?", "\"$`'\\"]  # fmt: skip
    needed = browser.run("const c = document.createElement('canvas').getContext('2d');"
                         "c.font = '100px \"DejaVu Sans\", Verdana, Arial, sans-serif';"
                         "return arguments[0].map((word) => c.measureText(word).width)", words)  # fmt: skip
    for word, room in zip(words, needed, strict=True):
        assert room <= width(word, 100) <= 1.35 * max(room, 1), word


def test_a_keyboard_reaches_tables_and_not_every_mark(browser: Any, page: Path) -> None:
    browser.open(page, width=1440, height=900)
    stops = browser.run(
        "return [...document.querySelectorAll('a[href], button, select, input, summary, [tabindex]')]"
        ".filter((one) => one.tabIndex >= 0 && one.checkVisibility())"
        ".map((one) => one.closest('figure') ? 'mark' : one.className || one.localName)"
    )
    assert "mark" not in stops and len(stops) < 60
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    boxes = browser.run(
        "return [...document.querySelectorAll('.scroll')].map((one) => [one.tabIndex, one.getAttribute('aria-label')])"
    )
    assert boxes and all(place == 0 and name for place, name in boxes)


def test_print_names_what_it_shows_and_what_it_leaves_out(browser: Any, page: Path) -> None:
    import base64
    import re

    browser.open(page, width=794, height=900, media="print")
    visible = "return [...document.querySelectorAll(arguments[0])].filter((one) => one.checkVisibility())"
    for anchor in ("memory", "speed", "maps"):
        names = browser.run(f"{visible}.map((one) => one.textContent)", f"#{anchor} h3.printed")
        label, options = browser.run(
            "const s = document.getElementById(arguments[0]);"
            "return [s.labels[0].textContent, [...s.options].map((one) => one.title || one.textContent)]",
            f"choose-{anchor}",
        )
        assert names == [f"{label}: {one}" for one in options]
        assert browser.run(f"{visible}.length", f"#{anchor} .view") == len(options)
    assert browser.run(f"{visible}.map((one) => one.textContent)", "#timeline-printed")[0].startswith("Run: tiny-")
    # Tables stand open while it is printed, and as they were after it.
    before = browser.run("return document.querySelectorAll('details.table[open]').length")
    browser.run("dispatchEvent(new Event('beforeprint'))")
    counts = dict(browser.run(
        "return [...document.querySelectorAll('details.table')].map((one) => ["
        "one.open && one.querySelector('table').checkVisibility() ? one.id : '',"
        "[one.querySelectorAll('tbody tr').length,"
        "[...one.querySelectorAll('.rest:not([hidden])')].map((word) => word.textContent)]])"
    ))  # fmt: skip
    assert "" not in counts
    assert counts["table-claims"] == [60, []]
    assert counts["table-multipliers"] == [20, ["Rows 1–20 of 200; all are in tables/multipliers.csv beside the page."]]
    assert browser.layout_problems("main") == []
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run("return document.querySelectorAll('details.table[open]').length") == before
    assert browser.run("return document.querySelectorAll('#table-claims tbody tr').length") == 20
    paper = base64.b64decode(browser.driver.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert paper.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", paper)) > 5
