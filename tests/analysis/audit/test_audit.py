"""The audit: claims by name, verdicts that follow figures, sources read without import, bytes that repeat."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from analysis import guide
from analysis.audit import installed
from analysis.audit.cli import found_by
from analysis.audit.finding import VERDICTS, Context, Finding, within
from analysis.cli import main
from analysis.tables.evidence import Evidence
from analysis.tables.measured import Measured

GIB = 2**30
H100, CARD, VLLM = "h100-80gb", "rtx-pro-6000", "0.33.0"


def findings(*rows: dict[str, Any], source: installed.Source | None = None) -> dict[str, Finding]:
    evidence = Evidence(H100, VLLM, Measured(rows, H100, VLLM))
    found = found_by(Context(evidence, Evidence(CARD, VLLM), source, "No vLLM"))
    by_id = {one.id: one for one in found}
    assert len(by_id) == len(found), "ids must differ"
    return by_id


@pytest.fixture(scope="module")
def plain() -> dict[str, Finding]:
    return findings()


def start(run_id: str, **changes: Any) -> dict[str, Any]:
    return {
        "run_id": run_id, "point_id": run_id, "environment_id": "e", "status": "ok", "device_kind": "cuda",
        "device_name": "NVIDIA H100 80GB HBM3", "device_memory_total_bytes": 81559 * 2**20, "vllm_version": VLLM,
        "model": "qwen2.5-7b", "quantization": "awq", "kv_pool_mode": "auto", "effective_max_model_len": 4096,
        "effective_max_num_seqs": 256, "effective_max_num_batched_tokens": 8192, "available_kv_cache_bytes": 60 * GIB,
        **changes,
    }  # fmt: skip


def a_vllm(folder: Path, *, old: bool) -> Path:
    """A package with the files the audit looks at, which cannot be imported."""
    server = folder / "vllm" / "entrypoints"
    server.mkdir(parents=True)
    (folder / "vllm" / "config").mkdir()
    (folder / "vllm" / "__init__.py").write_text("raise SystemExit('imported')\n")
    routes = '"/stats"' if old else '"/metrics"'
    (server / "routes.py").write_text(f"@router.get({routes})\ndef answer(): ...\n")
    (folder / "vllm" / "config" / "cache.py").write_text(
        f"class CacheConfig:\n    gpu_memory_utilization: float = {'0.9' if old else 'Field(default=0.92, gt=0)'}\n"
    )
    if old:
        (server / "api_server.py").write_text('log.warning("GPU is running out of memory")\n')
    (folder / f"vllm-{'0.1.0' if old else '9.9.0'}.dist-info").mkdir()
    return folder


@pytest.mark.parametrize(("name", "verdict"), [
    ("weights-formula", "wrong"), ("bytes-per-parameter-bf16", "right"), ("bytes-per-parameter-gptq", "wrong"),
    ("bytes-per-parameter-awq", "misleading"), ("multiplier-33b", "wrong"), ("multiplier-7b", "misleading"),
    ("weights-33b-bf16", "right"), ("weights-33b-awq", "right"), ("weights-33b-gptq", "wrong"),
    ("weights-7b-awq", "wrong"), ("weights-14b-awq", "wrong"), ("awq-against-gptq-weights", "wrong"),
    ("kv-per-token-formula", "wrong"), ("kv-by-weight-format", "wrong"), ("max-num-seqs-64", "wrong"),
    ("max-num-seqs-128", "wrong"), ("context-8192-per-request", "wrong"), ("context-8192-pool", "wrong"),
    ("max-num-batched-tokens", "wrong"), ("default-utilization", "wrong"), ("two-at-0.88", "wrong"),
    ("two-at-0.85", "wrong"), ("single-fp16-33b", "right"), ("8-bit-pair", "wrong"), ("flags", "right"),
    ("lower-utilization-cures-oom", "misleading"), ("accuracy-98.9", "not measured yet"),
    ("stats-endpoint", "not measured yet"), ("api-server-module", "not measured yet"),
])  # fmt: skip
def test_verdicts(name: str, verdict: str, plain: dict[str, Finding]) -> None:
    assert plain[name].verdict == verdict, plain[name]


def test_every_finding_is_complete(plain: dict[str, Finding]) -> None:
    for one in plain.values():
        assert one.verdict in VERDICTS
        assert one.section and one.claim and one.guide and one.ours and one.unit and one.how, one
        assert one.why.endswith("."), one
        assert (one.low is None) == (one.high is None)
        if one.low is not None and one.high is not None and one.id != "lower-utilization-cures-oom":
            assert one.low <= one.high


def test_figures_are_those_computed_by_hand(plain: dict[str, Finding]) -> None:
    # KV of Qwen2.5-7B, 57,344 B, over 2 x 3584 x 2; of Qwen2.5-Coder-32B, 2 x 64 x 8 x 128 x 2, over 2 x 5120 x 2
    formula = plain["kv-per-token-formula"]
    assert (formula.low, formula.high) == (57_344 / 14_336, 262_144 / 20_480) == (4.0, 12.8)
    assert plain["context-8192-per-request"].low == 1.0
    assert plain["kv-33b-at-4096"].low == pytest.approx(253_952 * 4096 / 1e9)
    two = plain["two-at-0.88"]
    assert two.guide_low == pytest.approx(0.88 * 94.97, abs=0.01)
    assert two.high is not None and 0 < two.high < 0.12 * 94.97
    assert plain["usable-memory"].low == pytest.approx(0.9 * 94.97 * GIB / 1e9, abs=0.01)
    pool = plain["max-num-seqs-64"]
    assert pool.low is not None and 0 < pool.low < 0.05  # it grows a little


def test_a_verdict_follows_the_figures() -> None:
    assert within([15.0, 16.0], 15, 16) == "right"
    assert within([15.5, 18.0], 15, 16) == "misleading"
    assert within([14.0, 18.0], 15, 16) == "wrong"
    assert within([16.4], 15, 16) == "right" and within([16.6], 15, 16) == "wrong"


def test_the_8_bit_pair_does_not_start_on_this_card_and_fp8_stands_beside_it(plain: dict[str, Finding]) -> None:
    one = plain["8-bit-pair"]
    assert one.verdict == "wrong" and "does not start on this card" in one.ours
    assert "int8-w8a8 does not run on NVIDIA RTX PRO 6000" in one.why and "In fp8 the same models take" in one.why
    assert "does not start" not in plain["scenario-1"].ours + plain["scenario-1"].why


def test_scenarios_are_those_of_the_96_gb_card() -> None:
    rows = [start("h", model="mistral-7b", weights_bytes=50 * GIB)]
    assert not findings(*rows)["scenario-1"].run_ids, "rows of another card say nothing of this one"


def test_verdicts_follow_rows() -> None:
    saved = findings(start("a"), start("b", effective_max_num_seqs=64, available_kv_cache_bytes=15 * GIB))
    assert saved["max-num-seqs-64"].verdict == "right"
    assert saved["max-num-seqs-64"].run_ids == ("a", "b") and saved["max-num-seqs-64"].how == "rows"
    assert saved["max-num-seqs-128"].how == "calibration"
    kept = findings(start("a"), start("b", effective_max_num_seqs=64, available_kv_cache_bytes=61 * GIB))
    assert kept["max-num-seqs-64"].verdict == "wrong" and kept["max-num-seqs-64"].low == pytest.approx(1 / 60)


def test_rows_that_differ_in_two_settings_are_no_pair() -> None:
    both = {"effective_max_num_seqs": 64, "effective_max_num_batched_tokens": 2048}
    found = findings(start("a"), start("b", **both))
    assert found["max-num-seqs-64"].how == "calibration" and not found["max-num-seqs-64"].run_ids
    fixed = findings(start("a"), start("b", effective_max_num_seqs=64, kv_pool_mode="fixed"))
    assert fixed["max-num-seqs-64"].how == "calibration"


def test_measured_weights_decide_a_claim() -> None:
    rows = [start(f"w-{model}", model=model, quantization="gptq", weights_bytes=round(15.5e9))
            for model in ("deepseek-coder-33b", "qwen2.5-coder-32b")]  # fmt: skip
    one = findings(*rows)["weights-33b-gptq"]
    assert one.verdict == "right" and one.how == "rows"
    assert one.run_ids == ("w-deepseek-coder-33b", "w-qwen2.5-coder-32b")


def test_overhead_of_both_formats_is_compared_once_measured() -> None:
    rows = [start(name, quantization=name, activation_peak_bytes=size)
            for name, size in (("awq", GIB), ("gptq", 2 * GIB))]  # fmt: skip
    assert findings(*rows)["awq-lower-overhead"].verdict == "right"
    rows[0]["activation_peak_bytes"] = 2 * GIB
    assert findings(*rows)["awq-lower-overhead"].verdict == "wrong"


def test_a_source_is_read_and_never_imported(tmp_path: Path) -> None:
    old = findings(source=installed.at(a_vllm(tmp_path / "old", old=True)))
    new = findings(source=installed.at(a_vllm(tmp_path / "new", old=False)))
    for name in ("stats-endpoint", "api-server-module", "running-out-warning"):
        assert (old[name].verdict, new[name].verdict) == ("right", "wrong"), name
    assert "vLLM 0.1.0" in old["stats-endpoint"].why and "vLLM 9.9.0" in new["stats-endpoint"].why
    assert "says 0.9." in old["default-utilization"].why and "says 0.92." in new["default-utilization"].why


def test_the_command_imports_neither_vllm_nor_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from analysis.cli import main; assert main(['audit', '--out', sys.argv[1]]) == 0; "
        "assert not {'vllm', 'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False,
                          cwd=Path(__file__).parents[3])  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_installed_vllm_agrees_with_the_table_of_defaults() -> None:
    from analysis import defaults

    source = installed.find()
    if source is None:
        pytest.skip("no vLLM beside this Python")
    assert source.cache_default("gpu_memory_utilization") == defaults.gpu_memory_utilization(
        defaults.parsed(source.version)
    )
    assert {"/metrics", "/health"} <= source.routes and source.module("vllm.entrypoints.openai.api_server")


def test_the_same_data_makes_the_same_bytes(tmp_path: Path) -> None:
    fake = a_vllm(tmp_path / "source", old=False)
    for out in ("one", "two"):
        assert main(["audit", "--vllm-source", str(fake), "--out", str(tmp_path / out)]) == 0
    for name in ("audit.md", "audit.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    rows = pq.read_table(tmp_path / "one" / "audit.parquet").to_pylist()
    assert {row["id"] for row in rows} == set(findings())
    text = (tmp_path / "one" / "audit.md").read_text(encoding="utf-8")
    assert all(f"| `{row['id']}` |" in text for row in rows)


@pytest.mark.parametrize(("words", "said"), [
    (["no-such-set"], "there is no result set 'no-such-set'"), (["--card", "h1000"], "gpu 'h1000' is not in the table"),
    (["--vllm-source", "/nonexistent"], "/nonexistent holds no vLLM"),
])  # fmt: skip
def test_bad_requests_are_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", *words, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1


def test_the_guide_is_consistent_where_it_sums_up() -> None:
    for (size, quantization), said in guide.TABLE.items():
        low = said.weights.low + said.kv.low + said.overhead.low
        assert low == pytest.approx(said.total.low, abs=3), (size, quantization)
