"""The guide's six scenarios: every cell marked, nothing called measured that no row measured."""

from __future__ import annotations

from analysis import guide
from analysis.plan import scenarios


def test_every_figure_of_the_guide_stands_beside_ours():
    cells = scenarios.cells()
    assert {one.scenario for one in cells} == {row.name for row in guide.SUMMARY_ROWS}
    for row in guide.SUMMARY_ROWS:
        mine = {one.quantity: one for one in cells if one.scenario == row.name}
        assert mine["total"].said == f"{row.total_gb:g} GB"
        assert mine["headroom"].said == f"{row.headroom_gb:g} GB"
        assert {one.mark for one in mine.values()} <= {"predicted", "refuted", "not checked"}, "no row measured it"
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
