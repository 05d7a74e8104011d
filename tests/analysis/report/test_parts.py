"""The parts of a report by themselves: figures, escaping, limits."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.report import palette
from analysis.report.chart import NARROW, WIDE, Chart, inline
from analysis.report.context import Context
from analysis.report.loads import front, loads_of
from analysis.report.points import points_of, short, spread, unit_for
from analysis.report.read import ResultSet, read_sets
from analysis.report.table import PAGE, Column, Table, text_of, to_json
from analysis.report.timeline import SLICES, decimated
from tests.analysis.report.conftest import GIB, gpu_row, load_row


def a_set(engines: list[dict[str, Any]], workloads: list[dict[str, Any]] | None = None, name: str = "a") -> ResultSet:
    return ResultSet(name, Path(name), engines, workloads or [])


def test_json_in_a_script_cannot_end_it_and_holds_no_nan() -> None:
    text = to_json({"a": "</script><!--&", "b": float("nan"), "c": [float("inf"), 1.5]})
    assert "<" not in text and ">" not in text and "&" not in text
    assert json.loads(text) == {"a": "</script><!--&", "b": None, "c": [None, 1.5]}


def test_a_cell_shows_dashes_never_none_and_rounds_to_its_column() -> None:
    assert [text_of(one, "2") for one in (None, float("nan"), 0, 1234.5)] == ["–", "–", "0.00", "1,234.50"]
    assert text_of(True, "text") == "yes" and text_of("", "text") == "–"


def test_a_table_shows_a_page_keeps_its_limit_and_says_so(tmp_path: Path) -> None:
    table = Table("t", "T", [Column("n", "0"), Column("word")], [[i, "<b>"] for i in range(100)], most=50)
    html = table.html()
    assert html.count("<tr>") == PAGE + 1 and "<b>" not in html
    assert "first 50; all are in tables/t.csv" in html
    data = json.loads(html.split('<script type="application/json">')[1].split("</script>")[0])
    assert data[0]["v"] == list(range(50)) and data[1]["d"] == ["<b>"] and len(data[1]["i"]) == 50
    assert len(table.write(tmp_path).read_text().splitlines()) == 101


def test_colours_become_variables_and_unknown_ones_stay() -> None:
    drawn = f'<rect fill="{palette.LIGHT["c1"]}" stroke="#123456"/><text>#0072b2</text>'
    assert palette.variables(drawn) == '<rect fill="var(--c1)" stroke="#123456"/><text>#0072b2</text>'
    assert set(palette.LIGHT) == set(palette.DARK)


@pytest.mark.parametrize("theme", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_text_can_be_read_on_its_background(theme: dict[str, str]) -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    def contrast(a: str, b: str) -> float:
        high, low = sorted((luminance(theme[a]), luminance(theme[b])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for ink in ("text", "muted", "accent", "good", "warn", "bad"):
        assert contrast(ink, "bg") >= 4.5, ink
        assert contrast(ink, "surface") >= 4.5, ink
    for step in range(1, 8):  # the figures in the maps
        assert contrast("ink1" if step < 5 else "ink2", f"h{step}") >= 3, step


def test_a_chart_is_drawn_at_both_widths_and_its_text_is_escaped() -> None:
    def build(width: int) -> dict[str, Any]:
        return {"width": width, "data": {"values": [{"a": 1.0, "b": "<script>alert(1)</script>", "d": '"><b>'}]},
                "mark": {"type": "bar", "color": palette.LIGHT["c1"]},
                "encoding": {"x": {"field": "a", "type": "quantitative"}, "y": {"field": "b", "type": "nominal"},
                             "description": {"field": "d"}, "href": {"field": "d"}}}  # fmt: skip

    html = inline(Chart("x", "<i>", build, (("<u>", palette.LIGHT["c2"]),)))
    assert NARROW < WIDE and html.count("<svg role") == 2
    assert "var(--c1)" in html and "#0072b2" not in html
    assert "<script" not in html and "<i>" not in html and "<u>" not in html and "<b>" not in html


def test_restarts_are_medians_and_environments_are_never_pooled() -> None:
    rows = [
        gpu_row(0, run_id=f"r{i}", repeat=i, point_id="p", environment_id=env, activation_peak_bytes=size * GIB)
        for i, (env, size) in enumerate((("x", 1), ("x", 2), ("x", 9), ("y", 50)))
    ]
    points = points_of([a_set(rows)])
    assert [point.terms["activation"] / GIB for point in points] == [2, 50]
    assert [len(point.good) for point in points] == [3, 1]
    naming = Context([], points, []).naming
    assert [naming.where(point) for point in points] == ["environment 1", "environment 2"]


def test_points_of_equal_id_in_two_sets_stay_apart() -> None:
    sets = [a_set([gpu_row()], [load_row("run0000", "point0000")], "a"), a_set([gpu_row()], name="b")]
    points = points_of(sets)
    assert [(point.set_name, len(point.workloads)) for point in points] == [("a", 1), ("b", 0)]


def test_the_front_is_what_nothing_beats_in_both() -> None:
    loads = [load_row("run0000", "p", workload=name, output_tokens_per_s=rate, tpot_p50_s=tpot)
             for name, rate, tpot in (("a", 100.0, 0.01), ("b", 200.0, 0.02), ("worse", 150.0, 0.03),
                                      ("tie", 200.0, 0.04), ("c", 300.0, 0.05), ("none", 900.0, None))]  # fmt: skip
    found = loads_of(points_of([a_set([gpu_row()], loads)]))
    assert [one.name for one in front(found, "tpot_p50_s")] == ["a", "b", "c"]


def test_decimation_keeps_every_peak_and_every_phase() -> None:
    samples = [{"t_s": i / 10, "phase": "launch" if i < 500 else "load:x", "device_index": 0,
                "device_memory_used_bytes": (70 if i == 777 else 10) * GIB, "gpu_utilization_pct": 50.0}
               for i in range(1000)]  # fmt: skip
    point = points_of([a_set([gpu_row()])])[0]
    run = decimated(samples, point, point.row)
    assert run is not None and len(run["t"]) == SLICES and max(run["a"]) == 70 * 1024
    assert [phase[2] for phase in run["phases"]] == ["launch", "load:x"]
    assert run["phases"][0][1] == run["phases"][1][0] == 5000
    assert decimated(samples[:1], point, point.row) is None


def test_small_helpers() -> None:
    assert short("abcdefghij", 10) == "abcdefghij" and len(short("a" * 50, 20)) == 20
    assert spread(list(range(100)), 3) == [0, 50, 99]  # type: ignore[arg-type]
    assert unit_for(GIB).name == "MiB" and unit_for(80 * GIB).name == "GiB"
    assert unit_for(80 * GIB).text(None) == "–"


def test_a_corrupt_file_is_named_and_the_rest_is_read(made: Any) -> None:
    root = made(engines=[gpu_row(i) for i in range(4)], workloads=[load_row("run0001", "point0001")])
    (root / "engines" / "00002.parquet").write_bytes(b"PAR1 not at all")
    sets, problems = read_sets([str(root), "no-such-set"])
    assert [row["run_id"] for row in sets[0].engines] == ["run0000", "run0001", "run0003"]
    assert len(sets[0].workloads) == 1
    assert any("00002.parquet is not a readable Parquet file" in one for one in sets[0].problems)
    assert problems == ["there is no result set 'no-such-set': neither a folder of that path nor results/no-such-set"]


def test_an_empty_set_and_a_newer_schema_are_sentences(made: Any) -> None:
    empty = made("empty")
    newer = made("newer", engines=[gpu_row()], version=9)
    (first, second), _ = read_sets([str(empty), str(newer)])
    assert any("holds no engines" in one for one in first.problems)
    assert any("newer schema" in one for one in second.problems) and len(second.engines) == 1


def test_a_run_id_that_is_a_path_opens_nothing(made: Any) -> None:
    root = made(engines=[gpu_row()])
    assert ResultSet("a", root).timeline("../engines/00000") == []


def test_predictions_are_the_ones_of_predict(made: Any) -> None:
    from analysis.predict.answer import predict
    from analysis.predict.request import Request
    from analysis.report.predicted import _question, pairs_of

    points = points_of([a_set([gpu_row(i) for i in range(3)])])
    pairs, notes = pairs_of(points)
    pool = {pair.point.point_id: pair for pair in pairs if pair.term == "kv_pool"}
    answer = predict(Request.of(_question(points[0])))
    assert pool[points[0].point_id].predicted == answer.kv_pool.value
    assert pool[points[0].point_id].low < pool[points[0].point_id].predicted < pool[points[0].point_id].high
    assert any("one model only" in note for note in notes)
    assert all(pair.predicted == pair.measured for pair in pairs if pair.term == "weights")


def test_a_section_that_fails_costs_only_itself() -> None:
    from analysis.report.sections import _guarded

    def broken() -> Any:
        raise KeyError("<b>")

    section = _guarded("x", "X", broken)
    assert section is not None and "KeyError" in section.lead  # type: ignore[union-attr]
    assert SimpleNamespace  # the page escapes it: tests of the whole page
