"""The calculator's tables hold what `predict` works with; the page around them is safe and complete."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import calculator, calibration, defaults, gpus
from analysis.calculator import __main__ as program
from analysis.calculator.page import _html, fragment, standalone
from analysis.calculator.tables import TENSOR_PARALLEL_SIZES, offered, tables
from analysis.estimate import TERMS
from analysis.fit.drivers import DRIVERS
from analysis.predict import settings
from analysis.predict.facts import of_arithmetic
from analysis.predict.models import resolve
from analysis.predict.request import Request, RequestError

HERE = Path(calculator.__file__).parent
SOME = ["gpt-oss-20b", "gemma-3-4b", "qwen2.5-0.5b", "deepseek-v2-lite"]


@pytest.fixture(scope="module")
def data():
    return tables(SOME)


def plan_of(layout: dict, element_bytes: int, block: int) -> tuple[int, int, dict]:
    """As predict.js makes it."""
    groups: dict[tuple[int | None, int], int] = {}
    for window, stretch, count in layout["groups"]:
        groups[(window, stretch * block)] = groups.get((window, stretch * block), 0) + count
    return (
        layout["elements_per_token"] * element_bytes,
        layout["elements_per_block_token"] * element_bytes * block,
        groups,
    )


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize(
    ("kv_dtype", "block", "quantization"), [("auto", 16, None), ("fp8", 64, None), ("auto", 32, "fp32")]
)
def test_weights_and_kv_layout_are_those_of_predict(data, name, kv_dtype, block, quantization):
    form = data["models"][name]["forms"][quantization or ""]
    for tp in TENSOR_PARALLEL_SIZES:
        request = Request(
            model=name, quantization=quantization, tensor_parallel_size=tp, kv_cache_dtype=kv_dtype, block_size=block
        )
        try:
            model = resolve(request)
            facts = of_arithmetic(model, settings.resolve(request, model)[0], 0)
        except RequestError as refused:
            assert form == str(refused)
            continue
        except ValueError as refused:
            assert str(refused) in (form["weights"][str(tp)], data["models"][name]["kv"][str(tp)])
            continue
        assert form["weights"][str(tp)] == facts.weights_bytes
        element = data["kv_dtypes"][kv_dtype] if kv_dtype != "auto" else form["kv_element_bytes"]
        per_token, per_block, groups = plan_of(data["models"][name]["kv"][str(tp)], element, block)
        assert (per_token, per_block) == (facts.kv_bytes_per_token, facts.plan.bytes_per_block)
        expected: dict[tuple[int | None, int], int] = {}
        for group in facts.plan.groups:
            expected[(group.window, group.block_tokens)] = expected.get((group.window, group.block_tokens), 0) + 1
        assert groups == expected


def test_every_driver_and_term_of_the_fits_is_in_the_script():
    """A driver added to the fits must be added to factors.js, or a calibration with it breaks the page."""
    script = (HERE / "factors.js").read_text()
    block = script.split("const DRIVERS = {")[1].split("\n};")[0]
    assert set(re.findall(r"^  (\w+):", block, re.MULTILINE)) == set(DRIVERS)
    assert tuple(json.loads(re.search(r"const TERMS = (\[.*?\]);", (HERE / "defaults.js").read_text())[1])) == TERMS
    assert {
        k: int(v) for k, v in re.findall(r"(\w+): (\d)", script.split("const RANK = {")[1].split("}")[0])
    } == calibration.RANK


def test_the_choices_are_those_of_the_catalogue(data):
    assert [one["name"] for one in data["gpus"]] == gpus.names()
    assert set(data["models"]) == set(SOME) and not any(name.startswith("tiny-") for name in offered())
    assert {one["name"] for one in data["calibrations"]} == {
        one.name for one in calibration.shipped() if one.gpu != "cpu"
    }
    assert isinstance(data["models"]["gpt-oss-20b"]["forms"]["awq"], str), "a refusal is a sentence"
    assert "14 does not divide over tensor_parallel_size=4" in data["models"]["qwen2.5-0.5b"]["kv"]["4"]


@pytest.mark.parametrize("minor", range(defaults.OLDEST[1], defaults.NEWEST[1] + 1))
def test_what_changes_with_the_version_changes_at_the_same_release(data, minor):
    for name in SOME:
        form = data["models"][name]["forms"][""]
        request = Request(model=name, vllm_version=f"0.{minor}.0")
        resolved, _ = settings.resolve(request, resolve(request))
        runner = [value for since, value in form["runners"] if since <= minor][-1]
        length = [value for since, value in data["models"][name]["lengths"] if since <= minor][-1]
        assert (runner, length) == (resolved.runner, [resolved.max_model_len, resolved.length_limit]), name


def test_a_calibration_of_ones_own_is_taken():
    one = next(found for found in calibration.shipped() if found.kind == "public")
    only = tables(["qwen2.5-0.5b"], [one])
    assert [found["name"] for found in only["calibrations"]] == [one.name]
    assert only["calibrations"][0]["groups"]["activation"]["0"]["branches"] == [
        dict(branch) for branch in one.groups["activation"][0].branches
    ]


def test_the_section_keeps_the_pages_rules(data):
    section = fragment(["qwen2.5-0.5b"])
    assert section.anchor == "calculator" and json.loads(json.dumps(section.data)) == section.data
    rules = re.sub(r"/\*.*?\*/", "", section.style, flags=re.DOTALL)
    for selector in re.findall(r"(?:^|[{}])\s*([^{}@]+)\{", rules):
        assert all("#calculator" in one or ":is(" in selector for one in selector.split(",")), selector
    for text in (section.script, section.style, section.html):
        assert "</script" not in text and not re.search(r"(https?:)?//[a-z]+\.[a-z]", text.replace("// ", ""))
    assert "innerHTML" not in section.script and "eval(" not in section.script


def test_what_a_catalogue_says_is_escaped(data):
    evil = "<script>alert(1)</script>"
    renamed = {**data, "models": {"evil": {**data["models"]["qwen2.5-0.5b"], "title": evil}}, "plain": {}}
    html = _html(renamed)
    assert evil not in html and "&lt;script&gt;" in html
    section = fragment(["qwen2.5-0.5b"])
    section.data["models"]["qwen2.5-0.5b"]["title"] = evil
    assert evil not in standalone(section)


def test_the_page_of_its_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(program, "fragment", lambda: fragment(["qwen2.5-0.5b"]))
    target = tmp_path / "c.html"
    assert program.main([str(target)]) == 0 and "opens from disk" in capsys.readouterr().out
    text = target.read_text()
    assert text.startswith("<!doctype html>") and "/*" not in text.split("<style>")[0] and "/*data*/" not in text
    assert program.main([str(tmp_path / "no/such/c.html")]) == 1
    assert "cannot be written: No such file" in capsys.readouterr().err


def test_importing_it_costs_nothing():
    code = "import sys, analysis.calculator; print(sorted({'yaml', 'pandas', 'pyarrow', 'duckdb'} & set(sys.modules)))"
    root = HERE.parents[1]
    assert subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True) == "[]\n"
