"""The calculator inside a report, whose rows have names that would be scripts if they were not escaped."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis import cli

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference-cpu"
EVIL = "<script>window.fired = 1</script><img src=x onerror='window.fired = 2'>"
NAMED = ("model", "hub_id", "quantization", "workload", "failure_sentence")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of four real starts, with every name replaced."""
    folder = tmp_path_factory.mktemp("report")
    for table in ("engines", "workloads", "samples"):
        (folder / "evil" / table).mkdir(parents=True)
        for path in sorted((REFERENCE / table).glob("*.parquet"))[:4]:
            content = pq.read_table(path)
            for name in set(NAMED) & set(content.column_names):
                place, kind = content.column_names.index(name), content.schema.field(name)
                values = [None if value is None else EVIL for value in content.column(name).to_pylist()]
                content = content.set_column(place, kind, pa.array(values, kind.type))
            pq.write_table(content, folder / "evil" / table / path.name)
    page = folder / "index.html"
    assert cli.main(["report", str(folder / "evil"), "--out", str(page), "--no-files"]) == 0
    return page


def test_a_model_named_like_a_script_is_text(browser: Any, report: Path) -> None:
    browser.open(report)
    assert browser.run("return document.body.textContent.includes(arguments[0])", "<script>window.fired = 1</script>")
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert browser.run("return window.fired === undefined && !document.querySelector('img[src=x]')")
    assert browser.console_errors() == [] and browser.requests() == []


@pytest.mark.parametrize("width", [390, 1440])
def test_it_answers_there_like_predict(browser: Any, report: Path, width: int, capsys: Any) -> None:
    browser.open(report, width, fragment="calculator?model=llama-3.1-8b&gpu=l4&max_model_len=8192")
    far = "return Math.abs(document.querySelector('#calculator').getBoundingClientRect().top)"
    until = time.monotonic() + 10
    while browser.run(far) > 200:  # the page may glide there
        assert time.monotonic() < until, "the link does not lead to the calculator"
        time.sleep(0.05)
    browser.find('#calculator [data-field="max_num_seqs"]').send_keys("128")
    command = browser.find('#calculator [data-out="command"]').text
    assert cli.main(["predict", "--json", "--gpu", "l4", command]) == 0
    expected = json.loads(capsys.readouterr().out)
    verdict = browser.find('#calculator [data-out="verdict"]').get_attribute("data-verdict")
    figures = browser.find('#calculator [data-out="figures"]').text
    assert verdict == expected["verdict"] and expected["settings"]["max_num_seqs"] == 128
    assert f"{expected['kv_cache_tokens']:,}\n" in figures and f"{expected['full_length_requests']:.2f}\n" in figures
    assert browser.run("return location.hash").endswith("max_num_seqs=128&max_model_len=8192")
    assert browser.layout_problems("#calculator") == []
    browser.screenshot(f"report-calculator-{width}", "#calculator")
    assert browser.console_errors() == [] and browser.requests() == []


def test_the_whole_report_can_be_printed(browser: Any, report: Path) -> None:
    browser.open(report, 794, media="print", fragment="calculator?model=llama-3.1-8b&gpu=l4&max_model_len=8192")
    assert browser.find('#calculator [data-out="verdict"]').text
    assert browser.layout_problems("#calculator") == []
    browser.screenshot("report-print")


def test_an_empty_form_is_not_printed(browser: Any, report: Path) -> None:
    browser.open(report, 794, media="print")
    shown = "return document.querySelector('#calculator').checkVisibility()"
    assert not browser.run(shown)
    browser.run("document.querySelector('#calculator [data-field=\"max_num_seqs\"]')"
                ".dispatchEvent(new Event('input', {bubbles: true}))")  # fmt: skip
    assert browser.run(shown)
    assert not browser.run("return document.querySelector('#calculator form').checkVisibility()")
