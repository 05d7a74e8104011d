"""The guide's six scenarios: every cell marked, nothing called measured that no row measured."""

from __future__ import annotations

from pathlib import Path

from analysis import gpus, guide
from analysis.audit.cli import found_by
from analysis.audit.finding import Context
from analysis.cli import main
from analysis.plan import scenarios
from analysis.tables.evidence import Evidence

TABLES = Path(__file__).parents[3] / "results" / "tables"


def by_quantity(name: str) -> dict[str, scenarios.Cell]:
    return {one.quantity: one for one in scenarios.cells() if one.scenario == name}


def test_every_figure_of_the_guide_stands_beside_ours():
    cells = scenarios.cells()
    assert {one.scenario for one in cells} == {row.name for row in guide.SUMMARY_ROWS}
    for row in guide.SUMMARY_ROWS:
        mine = {one.quantity: one for one in cells if one.scenario == row.name}
        assert mine["total"].said == f"{row.total_gb:g} GB"
        assert mine["headroom"].said == f"{row.headroom_gb:g} GB"
        known = {"predicted", "refuted", "tight: neither", "not checked"}
        assert {one.mark for one in mine.values()} <= known, "no row measured it"
        assert len([name for name in mine if name.startswith("requests at once")]) == len(row.models)


def test_a_total_is_refuted_exactly_where_it_is_out_of_reach():
    for one in scenarios.cells():
        if one.quantity == "total":
            said = float(one.said.removesuffix(" GB"))
            upheld = one.low <= said <= one.high or abs(said / one.value - 1) <= scenarios.TOLERANCE
            assert (one.mark == "refuted") != upheld, one


def test_the_written_table_says_what_the_cells_say(tmp_path):
    import pyarrow.parquet as pq

    cells = scenarios.cells()
    text = scenarios.markdown(cells)
    scenarios.write(tmp_path, cells, text)
    assert (tmp_path / "scenarios.md").read_text() == text
    rows = pq.read_table(tmp_path / "scenarios.parquet").to_pylist()
    assert [row["ours"] for row in rows] == [one.ours for one in cells]
    for one in cells:
        assert f"| {one.quantity} | {one.said} | {one.ours} | {one.mark} |" in text


def test_the_published_table_is_what_the_command_prints(capsys):
    assert main(["plan", "--scenarios"]) == 0
    published = (TABLES / "scenarios.md").read_text(encoding="utf-8")
    assert published == capsys.readouterr().out, "make tables writes it anew"


def test_scenarios_and_audit_read_the_guide_alike_and_give_one_figure():
    card = Evidence(scenarios.CARD, scenarios.DEFAULT_VLLM)
    found = {one.id: one for one in found_by(Context(card, card, None, "No vLLM"))}
    cells = scenarios.cells()
    for row in guide.SUMMARY_ROWS:
        if row.scenario is None:
            continue
        total = next(one for one in cells if one.scenario == row.name and one.quantity == "total")
        audited = found[row.scenario.name]
        assert row.total_gb == row.scenario.total_gb, "the guide's own figures"
        assert total.ours in audited.ours, row.name
        assert row.scenario.reading in audited.why
        assert row.scenario.reading in scenarios.markdown(cells)


def test_the_7b_of_the_qwen_family_is_read_as_awq_by_the_guides_own_ranges():
    said = guide.SCENARIO_LIST[2].second
    assert said[:2] == ("qwen2.5-7b", "awq")
    awq, fp16 = guide.TABLE["7B", "awq"].total, guide.TABLE["7B", "bf16"].total
    assert awq.low <= said[2] <= awq.high and not fp16.low <= said[2] <= fp16.high
    assert guide.SUMMARY_ROWS[2].models == guide.SCENARIO_LIST[2].models


def test_every_gb_that_the_guide_gives_a_model_has_its_row():
    for row in guide.SUMMARY_ROWS:
        if row.scenario is None:
            continue
        mine = by_quantity(row.name)
        for model, _, said in (row.scenario.first, row.scenario.second):
            one = mine[f"memory of {model}"]
            assert one.said == f"{said:g} GB" and one.low <= one.value <= one.high
            upheld = one.low <= said <= one.high or abs(said / one.value - 1) <= scenarios.TOLERANCE
            assert (one.mark == "refuted") != upheld


def test_no_batching_is_held_against_the_requests_that_fit():
    mine = by_quantity("8-bit Both")
    for quantity in ("batching", "in fp8: batching"):
        assert mine[quantity].said == "no batching" and mine[quantity].mark == "refuted"
        assert mine[quantity].low >= scenarios.CONCURRENCY
    assert "batching" not in by_quantity("Recommended")


def test_an_answer_within_the_interval_is_neither_upheld_nor_refuted():
    fit = by_quantity("Budget FP16")["fit"]
    assert fit.ours.startswith("tight: ") and fit.mark == "tight: neither"
    assert "`tight: neither`:" in scenarios.markdown(scenarios.cells()), "the legend says what it means"


def test_int8_does_not_start_on_the_96_gb_card_and_fp8_stands_beside_it():
    mine = by_quantity("8-bit Both")
    assert mine["fit"].ours.startswith("does not start: ") and mine["fit"].ours.endswith("by memory alone: fits")
    assert mine["fit"].mark == "refuted" and mine["in fp8: fit"].ours.startswith("fits: ")
    elsewhere = [one for one in scenarios.cells(gpu="h200") if one.scenario == "8-bit Both"]
    assert not [one for one in elsewhere if one.quantity.startswith("in fp8")]
    assert gpus.find(scenarios.CARD).capability >= (10, 0)


def test_the_scenarios_as_json(capsys):
    import json

    assert main(["plan", "--scenarios", "--format", "json"]) == 0
    assert [one["ours"] for one in json.loads(capsys.readouterr().out)] == [one.ours for one in scenarios.cells()]
