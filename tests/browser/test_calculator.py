"""The calculator in a real browser gives the answers of `predict`, from a page on disk that asks for nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from analysis import catalogue, cli, gpus
from analysis.calculator import fragment, standalone
from analysis.calculator.tables import KV_DTYPES, TENSOR_PARALLEL_SIZES, offered
from analysis.predict.answer import predict
from analysis.predict.request import AUTO_LENGTH, Request, RequestError

MIB = 2**20
ESTIMATES = (
    "activation", "non_torch", "cuda_graph", "cuda_graph_estimate", "context", "runtime", "kv_pool", "device_peak",
)  # fmt: skip
VERSIONS = (
    "0.8.5", "0.9.2", "0.10.1.1", "0.11.0", "0.11.1", "0.12.0", "0.16.0", "0.17.1", "0.19.0", "0.19.1", "0.20.0",
    "0.20.2", "0.22.1", "0.23.0", "0.24.0", "0.25.1", "0.26.0", "0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0",
    "0.33.0", "0.34.1", "0.7.3",
)  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calculator") / "calculator.html"
    path.write_text(standalone(fragment()), encoding="utf-8")
    return path


@pytest.fixture
def calculator(browser, page):
    browser.open(page)
    return browser


def cases(count: int, seed: int = 20) -> list[dict[str, Any]]:
    """Requests as the form makes them: every model, then settings drawn at random, defaults as often as not."""
    draw = random.Random(seed)
    models = offered()
    some = lambda *values: draw.choice([None, *values])  # noqa: E731
    made = []
    for place in range(count):
        gpu = draw.choice([*gpus.names(), "other"])
        total = draw.choice([11.6, 16.0, 31.36, 47.5, 79.25, 191.5])
        made.append(
            {
                "model": models[place % len(models)],
                "quantization": some(*catalogue.quantization_names()),
                "gpu": None if gpu == "other" else gpu,
                "gpu_total_gib": total if gpu == "other" or draw.random() < 0.05 else None,
                "tensor_parallel_size": draw.choice((1, 1, *TENSOR_PARALLEL_SIZES)),
                "max_num_seqs": some(1, 8, 48, 100, 256, 300, 1024, 3000),
                "max_num_batched_tokens": some(16, 512, 2048, 5000, 8192, 32768),
                "max_model_len": some(128, 2048, 4097, 8192, 32768, 131072, AUTO_LENGTH),
                "gpu_memory_utilization": some(0.3, 0.5, 0.8, 0.9, 0.97, 1.0),
                "kv_cache_dtype": some("auto", *KV_DTYPES),
                "kv_cache_memory_bytes": draw.choice([None] * 6 + [1, 2**28, 4 * 2**30, 60 * 10**9]),
                "block_size": some(8, 16, 32, 64),
                "enforce_eager": draw.random() < 0.2,
                "vllm_version": draw.choice(["0.32.0"] * 8 + list(VERSIONS)),
            }
        )
    return made


def sliding_cases() -> list[dict[str, Any]]:
    """Steps so small that one token more or less in flight moves a block of a sliding window, in every version."""
    return [
        {
            "model": model, "gpu": "h100-80gb", "max_num_seqs": 8, "max_num_batched_tokens": 17, "max_model_len": 8192,
            "tensor_parallel_size": 1, "enforce_eager": False, "vllm_version": version,
        }
        for model in ("gemma-2-9b", "gemma-3-12b", "gpt-oss-20b") for version in VERSIONS
    ]  # fmt: skip


ASK = """
return arguments[0].map((request) => {
  try {
    const a = document.querySelector("#calculator").calculator.predict(request);
    return { ...a, settings: { ...a.settings } };
  } catch (problem) { return { refused: problem.message, field: problem.field ?? null }; }
});
"""


def test_the_same_cases_through_both(calculator):
    """Every term and both ends of every interval within 1 MiB; verdict, sentence, KV tokens and warnings equal."""
    asked = cases(600) + sliding_cases()
    answered = calculator.run(ASK, asked)
    verdicts: dict[str, int] = {}
    worst = 0.0
    for request, theirs in zip(asked, answered, strict=True):
        told = json.dumps(request)
        try:
            ours = predict(Request.of(request))
        except RequestError as refused:
            assert theirs.get("refused") == str(refused), told
            assert theirs["field"] in ("quantization", "tensor_parallel_size"), told
            verdicts["refused"] = verdicts.get("refused", 0) + 1
            continue
        assert "refused" not in theirs, f"{told}: {theirs}"
        assert theirs["weights_bytes"] == ours.weights_bytes, told
        assert theirs["kv_bytes_per_token"] == ours.kv_bytes_per_token, told
        assert theirs["budget_bytes"] == ours.budget_bytes, told
        for name in ESTIMATES:
            mine, other = getattr(ours, name), theirs[name]
            for end in ("value", "low", "high"):
                apart = abs(getattr(mine, end) - other[end])
                worst = max(worst, apart)
                assert apart < MIB, f"{told}: {name}.{end}"
            assert mine.basis == other["basis"], f"{told}: {name}"
        for name in ("kv_cache_tokens", "full_length_requests"):
            mine = getattr(ours, name)
            assert [mine.value, mine.low, mine.high] == [theirs[name][end] for end in ("value", "low", "high")], told
        assert theirs["kv_cache_blocks"] == ours.kv_cache_blocks, told
        assert (theirs["verdict"], theirs["reason"]) == (ours.verdict, ours.reason), told
        assert theirs["phase"] == (ours.obstacle.phase if ours.obstacle else None), told
        assert theirs["shortfall_bytes"] == pytest.approx(ours.obstacle.shortfall_bytes if ours.obstacle else 0, abs=1)
        assert (theirs["basis"], theirs["origin"]) == (ours.basis, ours.origin), told
        assert tuple(theirs["warnings"]) == ours.warnings, told
        verdicts[ours.verdict] = verdicts.get(ours.verdict, 0) + 1
    # The grid means nothing if it never reaches an answer: each verdict must have come up often.
    assert min(verdicts[name] for name in ("fits", "tight", "does_not_start", "refused")) >= 30, verdicts
    assert worst < 1.0, "both are the same sums of the same doubles: a byte is already too much"


def fill(browser, **values: str) -> None:
    """Types into the form as a person would."""
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.select import Select

    for name, value in values.items():
        field = browser.find(f'#calculator [data-field="{name}"]')
        details = browser.run("return arguments[0].closest('details')", field)
        if details is not None and not details.get_attribute("open"):
            details.find_element("css selector", "summary").click()
        if field.tag_name == "select":
            Select(field).select_by_value(value)
        elif field.get_attribute("type") == "checkbox":
            field.click()
        else:
            field.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.DELETE, value)


def out(browser, name: str) -> str:
    return browser.find(f'#calculator [data-out="{name}"]').text


def on_the_command_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert cli.main(["predict", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def terms(browser) -> dict[str, list[str]]:
    rows = browser.find_all('#calculator [data-out="terms"] tr')
    return {row.find_element("css selector", "th").text: [cell.text for cell in row.find_elements("css selector", "td")]
            for row in rows}  # fmt: skip


@pytest.mark.parametrize(
    "typed",
    [
        {"model": "llama-3.1-8b", "gpu": "l4", "max_num_seqs": "64", "max_model_len": "8K", "vllm_version": "0.19.0"},
        {"model": "gemma-3-27b", "gpu": "h100-80gb", "tensor_parallel_size": "2", "kv_cache_dtype": "fp8"},
        {"model": "qwen2.5-72b", "gpu": "a100-80gb", "quantization": "fp16"},
        {"model": "phi-4", "gpu": "rtx-4090", "quantization": "fp8", "gpu_memory_utilization": "0.95",
         "max_model_len": "4096", "enforce_eager": "1", "max_num_batched_tokens": "4k"},
    ],
    ids=["llama-8b", "gemma-27b-tp2", "too-large", "phi-4-eager"],
)  # fmt: skip
def test_the_form_and_its_command_answer_like_predict(calculator, capsys, typed):
    """What is typed is what `predict` is asked, and the command shown means the same start."""
    fill(calculator, **typed)
    command = out(calculator, "command")
    flags = ["--gpu", typed["gpu"]]
    flags += ["--vllm-version", typed["vllm_version"]] if "vllm_version" in typed else []
    expected = on_the_command_line([*flags, command], capsys)
    verdict = calculator.find('#calculator [data-out="verdict"]').get_attribute("data-verdict")
    assert verdict == expected["verdict"]
    shown = terms(calculator)
    for title, name in (("KV pool", "kv_pool"), ("Device peak", "device_peak"), ("Activation peak", "activation")):
        value, interval, _ = shown[title]
        assert float(value.replace(",", "")) == pytest.approx(expected[f"{name}_gib"], abs=0.00501)
        if interval:
            low, high = (float(end.replace(",", "")) for end in interval.split(" – "))
            assert low == pytest.approx(expected[f"{name}_gib_low"], abs=0.00501)
            assert high == pytest.approx(expected[f"{name}_gib_high"], abs=0.00501)
    assert f"{expected['kv_cache_tokens']:,}\n" in out(calculator, "figures")
    if verdict != "fits":
        assert expected["reason"].lower() in out(calculator, "reason").lower()
    assert calculator.console_errors() == [] and calculator.requests() == []


def test_the_bar_ends_at_the_peak_and_the_parts_add_up(calculator):
    fill(calculator, model="mixtral-8x7b", gpu="h200-141gb")
    ends = calculator.run(
        """const bar = document.querySelector('[data-out=bar]').getBoundingClientRect();
        const parts = [...document.querySelectorAll('.c-part')].map((one) => one.getBoundingClientRect());
        const a = document.querySelector('#calculator').calculator.predict({model: 'mixtral-8x7b', gpu: 'h200-141gb',
          tensor_parallel_size: 1, vllm_version: '0.32.0', enforce_eager: false});
        return [parts.at(-1).right - bar.left, bar.width * a.device_peak.value / a.settings.device.total_bytes];"""
    )
    assert ends[0] == pytest.approx(ends[1], abs=2.5)  # the border takes a pixel on each side


@pytest.mark.parametrize(
    ("typed", "field", "says"),
    [
        ({"max_num_seqs": "many"}, "max_num_seqs", "max_num_seqs is 'many', not a whole number"),
        ({"max_num_seqs": "0"}, "max_num_seqs", "max_num_seqs is 0; it must be 1 or more"),
        ({"gpu_memory_utilization": "92"}, "gpu_memory_utilization", "is 92; it must be at most 1"),
        ({"gpu_memory_utilization": "0,9"}, "gpu_memory_utilization", "is '0,9', not a number"),
        ({"gpu": "other"}, "gpu_total_gib", "needs its total memory"),
        ({"vllm_version": "latest"}, "vllm_version", "'latest', not a version such as 0."),
        ({"model": "phi-4", "tensor_parallel_size": "4"}, "tensor_parallel_size", "num_key_value_heads = 10"),
        ({"model": "gpt-oss-20b", "quantization": "awq"}, "quantization", "vLLM refuses that"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_said_under_its_field(calculator, typed, field, says):
    fill(calculator, **typed)
    assert says in calculator.find(f'#calculator [data-error="{field}"]').text
    assert calculator.find(f'#calculator [data-field="{field}"]').get_attribute("aria-invalid") == "true"
    others = [e.text for e in calculator.find_all("#calculator [data-error]") if e.get_attribute("data-error") != field]
    assert not any(others) and out(calculator, "verdict") == "No answer"
    calculator.find('#calculator [data-out="reset"]').click()
    assert out(calculator, "verdict") == "Fits" and not calculator.find(f'#calculator [data-error="{field}"]').text


def test_a_link_brings_the_calculation_back(calculator, page):
    fill(
        calculator,
        model="qwen3-8b",
        quantization="awq",
        gpu="l4",
        max_model_len="16k",
        enforce_eager="1",
        typical="900",
    )
    before = (out(calculator, "figures"), out(calculator, "command"), terms(calculator))
    fragment_of_link = calculator.run("return location.hash").removeprefix("#")
    assert fragment_of_link.startswith("calculator?") and "max_model_len=16k" in fragment_of_link
    calculator.open(page, fragment=fragment_of_link)
    assert (out(calculator, "figures"), out(calculator, "command"), terms(calculator)) == before
    assert calculator.console_errors() == []


def test_a_link_from_elsewhere_cannot_do_harm(browser, page):
    browser.open(
        page, fragment="calculator?model=<script>alert(1)</script>&max_num_seqs=<img src=x onerror=alert(2)>&nonsense=1"
    )
    assert "model=<script>alert(1)</script>" in out(browser, "link-note") and "nonsense" in out(browser, "link-note")
    assert "max_num_seqs is '<img src=x onerror=alert(2)>'" in browser.find('[data-error="max_num_seqs"]').text
    assert browser.find_all("#calculator img") == [] and browser.requests() == []
    assert browser.console_errors() == []


def test_every_field_has_a_label_and_is_reached_by_the_keyboard(calculator):
    from selenium.webdriver.common.keys import Keys

    calculator.find("#calculator form summary").click()
    names = calculator.run(
        "return [...document.querySelectorAll('#calculator [data-field]')].map(e => e.dataset.field)"
    )
    labels = calculator.run(
        "return [...document.querySelectorAll('#calculator [data-field]')].map(e => e.labels.length)"
    )
    assert set(labels) == {1} and len(names) == 15
    calculator.run("document.querySelector('[data-field=model]').focus()")
    reached = []
    for _ in range(len(names) + 2):
        active = calculator.driver.switch_to.active_element
        reached.append(active.get_attribute("data-field"))
        active.send_keys(Keys.TAB)
    assert [name for name in reached if name] == names


def test_the_command_is_copied(calculator):
    calculator.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})
    fill(calculator, max_num_seqs="32")
    calculator.find('#calculator [data-out="copy"]').click()
    copied = calculator.driver.execute_async_script(
        "navigator.clipboard.readText().then(arguments[0], e => arguments[0](String(e)))"
    )
    assert copied == "vllm serve Qwen/Qwen2.5-7B-Instruct \\\n  --max-num-seqs 32"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1440])
def test_nothing_is_cut_or_lies_over_something_else(browser, page, width, dark):
    long = "calculator?model=deepseek-v2-lite&quantization=fp8-dynamic&gpu=rtx-6000-ada&max_model_len=32k&typical=2k"
    browser.open(page, width, dark=dark, fragment=long)
    for summary in browser.find_all("#calculator summary"):
        if not browser.run("return arguments[0].parentElement.open", summary):
            summary.click()
    assert browser.layout_problems() == []
    browser.screenshot(f"calculator-{width}-{'dark' if dark else 'light'}")
    assert browser.console_errors() == [] and browser.requests() == []


def test_it_can_be_printed(browser, page):
    browser.open(page, 794, media="print")
    assert browser.layout_problems() == []
    assert not browser.find('[data-out="copy"]').is_displayed()
    browser.screenshot("calculator-print")
