"""The parts of a report by themselves: figures, escaping, limits."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.report import palette
from analysis.report.chart import NARROW, WIDE, Chart, begin, inline
from analysis.report.context import Context
from analysis.report.loads import front, loads_of
from analysis.report.points import points_of, short, spread, unit_for
from analysis.report.read import ResultSet, read_sets
from analysis.report.table import PAGE, Column, Table, text_of, to_json
from analysis.report.timeline import SLICES, decimated
from analysis.report.workers import Workers
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

    chart = Chart("x", "<i>", build, (("<u>", palette.LIGHT["c2"]),))
    html = inline(chart, begin(chart, Workers(1)))
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


def test_a_set_named_twice_is_read_once_and_says_so(made: Any) -> None:
    root = made(engines=[gpu_row()])
    sets, problems = read_sets([str(root), f"{root}/../{root.name}", str(root)])
    assert len(sets) == 1
    assert problems == [f"{root}/../{root.name} is a result set that was named already; it is read once"]


def test_two_sets_are_compared_as_by_compare(made: Any) -> None:
    from analysis.report import compared

    def rows(factor: float) -> list[dict[str, Any]]:
        return [gpu_row(0, run_id=f"r{i}", repeat=i, activation_peak_bytes=int(GIB * factor * (1 + i / 1000)))
                for i in range(8)]  # fmt: skip

    sets, _ = read_sets([str(made("a", rows(1.0))), str(made("b", [*rows(1.1), gpu_row(1, run_id="only")]))])
    section = compared.section(Context(sets, points_of(sets), []))
    tables = {table.name: table for table in section.tables}
    first = dict(zip([one.label for one in tables["compared"].columns], tables["compared"].rows[0], strict=True))
    assert (first["Verdict"], first["Metric"]) == ("changed", "activation") and section.lead.startswith("Against a,")
    assert first["change, %"] == pytest.approx(10, abs=0.5) and first["p, corrected"] < 0.05
    assert len(tables["only"].rows) == 1


def test_trials_of_a_knee_search_are_drawn_and_never_pooled(made: Any) -> None:
    from analysis.report import knees

    def trial(number: int, value: float, met: bool) -> dict[str, Any]:
        return load_row("run0000", "point0000", workload="knee", position=number, knee_trial=number, knee_value=value,
                        knee_axis="rate", knee_met=met, knee_reason=None if met else "TTFT <b> too long",
                        knee_slo_json='{"ttft_p99_s": 0.5, "goodput_share": 0.9}', knee_outcome="bracketed",
                        knee_highest_met=2.0, knee_lowest_broken=4.0, ttft_p99_s=0.1, pattern="poisson",
                        rate_per_s=value, concurrency=None, client_bound=number == 2)  # fmt: skip

    loads = [trial(1, 2.0, True), trial(2, 4.0, False)]
    context = Context([], points_of([a_set([gpu_row()], loads)]), [])
    section = knees.section(context)
    assert section is not None and "1 of 2 trials" in section.notes[0]
    answers, trials = section.tables
    assert "holds at 2, breaks at 4 requests/s" in answers.rows[0]
    assert "ttft_p99_s ≤ 0.5, goodput_share ≥ 0.9" in answers.rows[0]
    assert len(trials.rows) == 2
    (chart,) = section.views[0].charts
    assert palette.LIGHT["c6"] in json.dumps(chart.build(NARROW))
    assert "<b>" not in inline(chart, begin(chart, Workers(1)))
    found = loads_of(context.points)
    assert [one.name for one in found] == ["knee at 2", "knee at 4"]
    assert found[1].load == "poisson, 4 requests/s" and "client_bound" in found[1].flags
    assert knees.section(Context([], points_of([a_set([gpu_row()])]), [])) is None


def test_a_job_whose_process_is_gone_is_done_here() -> None:
    import os
    import signal

    with Workers(2) as workers:
        job = workers.start(max, 3, 4)
        assert job.result() == 4
        for process in list(workers._pool._processes.values()):  # type: ignore[union-attr]
            os.kill(process.pid, signal.SIGKILL)
        assert workers.start(max, 5, 6).result() == 6
        with pytest.raises(ValueError, match="invalid literal"):
            workers.start(int, "x").result()


def view_of(section: Any, name: str) -> Any:
    return next(view for view in section.views if view.name == name)


def grid_of(models: int = 1, formats: int = 2, loads: bool = True) -> Context:
    """Two values of T by three of S of every model and format, each with two workloads and a trial of a knee search."""
    engines, workloads = [], []
    for model in range(models):
        for fmt in range(formats):
            for i in range(6):
                ids = {"run_id": f"r{model}-{fmt}-{i}", "point_id": f"p{model}-{fmt}-{i}"}
                engines.append(gpu_row(i, model=f"m{model:02d}", quantization=f"f{fmt:02d}", **ids))
                for place, (name, rate) in enumerate((("c1", 111.0), ("c32", 3222.0), ("knee", 98765.0))):
                    trial = {"knee_trial": 1, "knee_value": 8.0} if name == "knee" else {}
                    workloads.append(load_row(*ids.values(), workload=name, position=place, output_tokens_per_s=rate,
                                              flags=["client_share"] if name == "c32" and i == 0 else [],
                                              **trial))  # fmt: skip
    return Context([], points_of([a_set(engines, workloads if loads else [])]), [])


def test_maps_are_of_one_named_workload_and_never_of_a_knee_trial() -> None:
    from analysis.report import heat

    section = heat.section(grid_of())
    names = [view.name for view in section.views]
    assert names == ["Peak memory: m00", "KV tokens: m00", "Throughput, c1: m00", "TTFT p50, c1: m00",
                     "Throughput, c32: m00", "TTFT p50, c32: m00"]  # fmt: skip
    for name, figure in (("c1", "111"), ("c32", "3,222")):
        view = view_of(section, f"Throughput, {name}: m00")
        assert [chart.title for chart in view.charts] == [f"Throughput, {name}: m00, f{fmt:02d}" for fmt in (0, 1)]
        for chart in view.charts:
            drawn = chart.build(NARROW)
            assert isinstance(drawn, str) and drawn.count(f">{figure}</text>") == 6 and "98,765" not in drawn
    assert "2 of 12 figures are flagged" in view_of(section, "Throughput, c32: m00").head
    assert "flagged" not in view_of(section, "Throughput, c1: m00").head
    (table,) = section.tables
    place = [column.label for column in table.columns].index("Workload")
    assert [row[place : place + 2] for row in table.rows[:2]] == [["c1", 111.0], ["c32", 3222.0]]
    assert len(table.rows) == 24


def test_every_model_has_a_map_of_every_format_and_what_has_no_room_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from analysis.report import heat

    context = grid_of(models=4, formats=5)  # the default GPU sweep
    section = heat.section(context)
    assert [len(view.charts) for view in section.views] == [5] * 4 * 6 and section.notes == []
    monkeypatch.setattr(heat, "MAPS", 55)
    section = heat.section(context)
    assert [len(view.charts) for view in section.views] == [5] * 11
    assert section.notes == ["The page has room for 55 maps. Left out of it, and in the table below: Throughput, c1 "
                             "(m03); TTFT p50, c1 (every model); Throughput, c32 (every model); TTFT p50, c32 (every "
                             "model)."]  # fmt: skip
    monkeypatch.setattr(heat, "FORMATS", 3)
    section = heat.section(grid_of(formats=5, loads=False))
    assert "In the table only: f03, f04." in section.views[0].head


def test_a_map_has_its_marks_once_and_stays_in_its_frame() -> None:
    import re

    from analysis.report.grid import Cell, drawn

    cells = {(t, s): Cell(6, "<b>", '"><b>', "#find:p") for t in (128, 131_072) for s in (1, 1024, 2048)}
    chart = Chart("c", "C", lambda width: drawn(cells, [128, 131_072], [1, 1024, 2048], "rows", "columns", width),
                  widths=(NARROW,))  # fmt: skip
    html = inline(chart, begin(chart, Workers(1)))
    assert html.count('<a tabindex="-1" href="#find:p"') == 6 and "<b>" not in html
    assert "var(--h7)" in html and "var(--ink2)" in html
    for x, width in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', html):
        assert 0 < float(x) < float(x) + float(width) <= NARROW


def test_labels_have_room_in_the_widest_common_face() -> None:
    from analysis.report import failures, memory
    from analysis.report.lettering import fitted, width

    assert width("0" * 10, 10) >= 63.6 and width("mmW", 10) >= 29  # DejaVu Sans: 0.636, 0.974 and 0.989 em
    assert fitted("abcdef", 10, 1000) == "abcdef" and width(fitted("a" * 90, 11, 100), 11) <= 100
    rows = [gpu_row(i, quantization="compressed-tensors-of-a-long-name", kv_pool_mode=("auto", "fixed")[i % 2],
                    tensor_parallel_size=8, effective_max_num_batched_tokens=131_072, point_id=f"p{i}",
                    run_id=f"r{i}") for i in range(4)]  # fmt: skip
    (view,) = memory.section(Context([], points_of([a_set(rows)]), [])).views
    failed = [gpu_row(i, status="failed", failure_phase="profiling_of_a_long_name", run_id=f"r{i}",
                      point_id=f"p{i}", failure_cause=f"cause_that_is_much_longer_than_a_phone_is_wide_{i}")
              for i in range(20)]  # fmt: skip
    section = failures.section(Context([], points_of([a_set(failed)]), []))
    assert section.notes == ["The picture shows the 14 most frequent of 20 causes; the table has all."]
    for chart in (*view.charts, *section.views[0].charts):
        for room in (NARROW, WIDE):
            spec: Any = chart.build(room)
            axis = spec["layer"][0]["encoding"]["y"]["axis"]
            labels = json.loads(axis["labelExpr"].removesuffix("[datum.value]"))
            assert axis["labelLimit"] == 0 and axis["minExtent"] == axis["maxExtent"] < 0.65 * room
            for label in labels:
                assert width(label, axis["labelFontSize"]) < axis["minExtent"]
            if chart.name.startswith("memory"):
                for label, seqs in zip(labels, (64, 128, 64, 128), strict=True):
                    assert f" T 131,072 S {seqs} " in label


def test_flagged_figures_take_no_part_in_the_front_and_shapes_are_in_the_legend() -> None:
    from analysis.report import loads as speed

    found = [load_row("run0000", "p", workload=name, output_tokens_per_s=rate, flags=flags, tpot_p50_s=0.01 * place)
             for place, (name, rate, flags) in enumerate(
                 (("a", 100.0, []), ("bound", 400.0, ["client_share"]), ("b", 200.0, []),
                  ("best", 900.0, ["client_lag"])), 1)]  # fmt: skip
    other = load_row("run0001", "q", workload="a", output_tokens_per_s=10.0)
    context = Context([], points_of([a_set([gpu_row(0, point_id="p"), gpu_row(1, point_id="q", quantization="awq")],
                                           [*found, other])]), [])  # fmt: skip
    assert [one.name for one in front(loads_of(context.points), "tpot_p50_s")] == ["a", "b"]
    section = speed.section(context)
    assert "hollow marks, take no part in it" in section.lead and "2 of 5 figures are flagged" in section.notes[0]
    chart = section.views[0].charts[1]
    assert chart.note == "5 workloads; 2 on the front of the 3 not flagged."
    assert [label for label, _ in chart.legend] == ["awq", "bf16", "Pareto front", speed.HOLLOW]
    assert (chart.shapes["awq"], chart.shapes["bf16"]) == ("circle", "square")
    spec = json.dumps(chart.build(NARROW))
    assert '"domain": ["awq", "bf16"], "range": ["circle", "square"]' in spec
    page = inline(chart, begin(chart, Workers(1)))
    assert page.count('class="swatch"') == 4 and 'stroke-dasharray="3 1.5"' in page
    flagged = [load_row("run0000", "p", flags=["client_lag"])]
    (view,) = speed.section(Context([], points_of([a_set([gpu_row(0, point_id="p")], flagged)]), [])).views
    assert view.charts[0].note == "No front: each of the 1 workloads is flagged."


def test_every_pair_of_colour_and_shape_is_told_apart() -> None:
    from analysis.report.chart import SHAPES
    from analysis.report.points import colours, shapes

    names = [f"f{number:02d}" for number in range(24)]
    pairs = {(colours(names)[name], shapes(names)[name]) for name in names}
    assert len(pairs) == 24 and set(shapes(names).values()) == set(SHAPES)


def test_every_flag_of_a_workload_has_a_meaning_and_client_flags_hold_rows_back() -> None:
    from analysis.report.flags import MEANING
    from analysis.rows import CLIENT_BOUND, held_back
    from bench.load.flags import CLIENT_BOUND_FLAGS, FLAGS

    assert set(FLAGS) <= set(MEANING) and set(CLIENT_BOUND_FLAGS) <= CLIENT_BOUND
    assert held_back({"flags": ["client_share"]}) and not held_back({"flags": ["few_samples_p99"]})


def test_rare_readings_are_dots_and_never_a_line() -> None:
    from analysis.report.timeline import spec

    samples = [{"t_s": i / 10, "phase": "launch", "tree_rss_bytes": GIB, "tree_cpu_s": i / 10,
                "tree_pss_bytes": GIB // 2 if i in (0, 90) else None} for i in range(100)]  # fmt: skip
    point = points_of([a_set([gpu_row(device_kind="cpu")])])[0]
    run = decimated(samples, point, point.row)
    assert run is not None
    layers = [layer for panel in spec(run, WIDE)["vconcat"] for layer in panel["layer"] if "y" in layer["encoding"]]
    marks = {layer["encoding"]["y"]["field"]: layer["mark"]["type"] for layer in layers}
    assert marks == {"a": "line", "b": "point", "c": "line"}


def test_a_table_can_be_scrolled_by_keyboard_and_says_on_paper_what_is_missing() -> None:
    table = Table("t", 'T "<b>"', [Column("n", "0")], [[i] for i in range(21)])
    html = table.html()
    assert '<div class="scroll" tabindex="0" role="group" aria-label="T &quot;&lt;b&gt;&quot;">' in html
    assert "<p class=rest>Rows 1–20 of 21; all are in tables/t.csv beside the page.</p>" in html
    assert "class=rest" not in Table("t", "T", [Column("n", "0")], [[i] for i in range(20)]).html()
