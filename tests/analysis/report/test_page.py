"""The whole page, from real rows of the CPU reference set and from hostile ones."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from analysis import cli
from analysis.report import sections, workers
from tests.analysis.report.conftest import GIB, gpu_row, load_row

REFERENCE = Path(__file__).resolve().parents[3] / "results" / "reference-cpu"
EVIL = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def without_calculator(monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs no set and has tests of its own; here it would only take time."""
    monkeypatch.setattr(sections, "begin_calculator", lambda workers: lambda: None)
    monkeypatch.setattr(workers, "MOST", 1)  # small pages are drawn sooner than processes start


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a report of sixteen real starts: two models, two formats, two values of T and of S."""
    import pandas

    folder = tmp_path_factory.mktemp("real")
    root = folder / "reference"
    engines = pandas.read_parquet(REFERENCE / "engines")
    chosen = engines[engines.model.isin(["tiny-llama", "tiny-qwen3"]) & engines.max_num_batched_tokens.isin([128, 2048])
                     & engines.max_num_seqs.isin([2, 16])]  # fmt: skip
    for table in ("engines", "workloads", "samples"):
        (root / table).mkdir(parents=True)
        for run_id in chosen.run_id:
            shutil.copy(REFERENCE / table / f"{run_id}.parquet", root / table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "begin_calculator", lambda workers: lambda: None)
        assert cli.main(["report", str(root), "--out", str(folder / "out" / "index.html")]) == 0
    return folder / "out"


def test_it_asks_nothing_of_any_network(real: Path) -> None:
    page = (real / "index.html").read_text()
    own = re.sub(r'<script type="text/plain" id="vega">.*?</script>', "", page, flags=re.S)  # the policy holds it
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", own)
    assert not re.findall(r"@import|url\(", own)
    assert "default-src 'none'" in page and "connect-src" not in page
    assert str(Path.cwd()) not in own


def test_sections_stand_in_their_order_with_provenance_first(real: Path) -> None:
    page = (real / "index.html").read_text()
    found = re.findall(r'<section id="([a-z]+)">', page)
    wanted = ["quality", "memory", "predicted", "speed", "roofline", "maps", "timeline", "failures", "multipliers",
              "claims"]  # fmt: skip
    assert found == [one for one in wanted if one in found] and len(set(wanted) - set(found) - {"roofline"}) == 0
    assert "could not be made" not in page
    assert "16 ok" in page and "0 failed" in page


def test_every_chart_has_its_files_and_every_table_its_csv(real: Path) -> None:
    page = (real / "index.html").read_text()
    svgs, pngs = (sorted(one.stem for one in (real / "pictures").glob(f"*.{kind}")) for kind in ("svg", "png"))
    maps = [one for one in svgs if one.startswith("map-")]
    assert sorted([*pngs, *maps]) == svgs, "heat maps, of which there are many, as SVG alone"
    assert len(svgs) == page.count('<figure class="chart">')
    for one in ("memory-1", "speed-1-ttft", "map-1-1", "predicted-1-weights", "timeline"):
        assert one in svgs
    assert {one.stem for one in (real / "tables").glob("*.csv")} == set(re.findall(r'id="table-([a-z-]+)"', page))


def test_figures_are_those_of_the_rows(real: Path) -> None:
    import pandas

    rows = pandas.read_parquet(real.parent / "reference" / "engines").set_index("point_id")
    with (real / "tables" / "memory.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows) == 16
    for line in table:
        row = rows.loc[line["point_id"]]
        for name, column in (("weights", "weights_bytes"), ("process before the model", "worker_rss_start_bytes"),
                             ("measured peak", "worker_rss_runtime_peak_bytes")):  # fmt: skip
            assert float(line[f"{name}, MiB"]) == pytest.approx(row[column] / 2**20, abs=0.01)


def test_the_timeline_of_every_run_is_embedded(real: Path) -> None:
    page = (real / "index.html").read_text()
    data = json.loads(re.search(r'id="timeline-data">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    assert len(data["runs"]) == 16
    assert all("launch" in {phase[2] for phase in run["phases"]} for run in data["runs"])
    assert "var(--c1)" in json.dumps(data["spec"]) and "@activity@" in json.dumps(data["spec"])


def report(root: Path, *more: str) -> tuple[int, str, Path]:
    out = root.parent / "out" / "index.html"
    code = cli.main(["report", str(root), *more, "--out", str(out), "--no-files"])
    return code, out.read_text() if out.exists() else "", out


def test_what_logs_and_configs_say_is_escaped(made: Any) -> None:
    rows = [
        gpu_row(0, model=EVIL, quantization='"><img src=x onerror=alert(2)>', flags=[EVIL], device_name=EVIL,
                vllm_version=EVIL, harness_commit="</script><b>"),
        gpu_row(1, model=EVIL, quantization="bf16", flags=[EVIL]),
        gpu_row(2, model=EVIL, status="failed", failure_phase="load", failure_cause="</style>" + EVIL,
                failure_sentence="</script>" + EVIL, environment_id="</script>"),
    ]  # fmt: skip
    root = made(engines=rows, workloads=[load_row("run0000", "point0000", workload=EVIL),
                                         load_row("run0001", "point0001", workload="</title>")])  # fmt: skip
    code, page, _ = report(root)
    assert code == 0 and "could not be made" not in page
    assert "alert(1)" in page  # it is shown
    assert EVIL not in page and "<img src=x" not in page and "<b>" not in page
    assert len(re.findall(r"<script[ >]", page)) == len(re.findall(r"</script>", page))


def test_no_successful_row_still_makes_a_page(made: Any) -> None:
    rows = [gpu_row(i, status="failed", failure_phase="kv_allocation", failure_cause="out_of_memory",
                    failure_sentence="3.00 GiB are missing", shortfall_bytes=3 * GIB) for i in range(2)]
    rows.append(gpu_row(2, status="pruned", failure_sentence="weights alone exceed the card"))
    code, page, _ = report(made(engines=rows))
    assert code == 0 and "could not be made" not in page
    assert "No start was successful" in page and "3.00 GiB are missing" in page
    assert "weights alone exceed the card" in page and "0 ok · 0 memory only · 2 failed · 1 pruned" in page


def test_an_empty_set_makes_a_page_that_says_so_and_fails(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, page, _ = report(made())
    assert code == 1 and "No engine start could be read" in page and "could not be made" not in page
    assert "holds no engines" in capsys.readouterr().err


def test_a_gpu_set_is_drawn_against_its_card(made: Any) -> None:
    from analysis.report import memory
    from analysis.report.context import Context
    from analysis.report.points import points_of
    from analysis.report.read import read_sets

    sets, _ = read_sets([str(made(engines=[gpu_row(i) for i in range(6)]))])
    section = memory.section(Context(sets, points_of(sets), []))
    (chart,) = section.views[0].charts
    assert ("the device's memory", "#b3261e") in chart.legend
    spec = json.dumps(chart.build(1000))
    assert f'"at": {round(81559 / 1024, 4)}' in spec
    assert section.tables[0].rows[0][-3] == round(81559 / 1024, 4)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [(["report", "no-such-set"], 2, "there is no result set 'no-such-set'"),
     (["report", str(REFERENCE), "--out", "page.txt"], 2, "not an HTML file"),
     (["report"], 2, "SET")],
)  # fmt: skip
def test_bad_requests_are_one_sentence(
    words: list[str], code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == code
    assert sentence in capsys.readouterr().err
