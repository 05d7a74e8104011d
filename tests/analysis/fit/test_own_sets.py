"""Fitting result sets of our own: rows of the harness' schema in, a calibration file out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("scipy")
pytest.importorskip("pyarrow")

from analysis import catalogue  # noqa: E402
from analysis.calibration import load, select  # noqa: E402
from analysis.fit import cli, design_cli  # noqa: E402
from analysis.fit.starts import from_rows, measured_on_cpu, measured_on_gpu, weight_bits  # noqa: E402
from bench.record.store import ResultSet  # noqa: E402

MIB = 2**20


def cpu_row(model: str, quantization: str, seqs: int, tokens: int, **values: object) -> dict:
    config = catalogue.compose(catalogue.load_model(model), catalogue.load_quantization(quantization))
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    run_id = f"{model}-{quantization}-{seqs}-{tokens}"
    return {
        "run_id": run_id, "point_id": run_id, "environment_id": "e", "set_name": "mine", "repeat": 0, "status": "ok",
        "model": model, "quantization": quantization, "weight_bits": 16, "dtype": "bfloat16", "device_kind": "cpu",
        "device_name": "Some CPU", "model_runner": "v1", "vllm_version": "0.32.0+cpu", "kv_pool_mode": "fixed",
        "model_config_json": json.dumps(config), "enforce_eager": True, "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1, "effective_max_num_seqs": seqs, "effective_max_num_batched_tokens": tokens,
        "effective_max_model_len": 1024, "weights_bytes": 20 * MIB, "kv_cache_bytes": 128 * MIB,
        "worker_rss_start_bytes": 480 * MIB, "worker_rss_ready_bytes": 660 * MIB,
        "runtime_activation_peak_bytes": 10 * MIB + 6 * tokens * hidden + 4 * seqs * vocabulary, **values,
    }  # fmt: skip


def rows() -> list[dict]:
    return [
        cpu_row(model, "bf16", seqs, tokens)
        for model in ("tiny-llama", "tiny-qwen2", "tiny-mistral") for seqs in (4, 16) for tokens in (256, 1024)
    ]  # fmt: skip


def written(root: Path, engines: list[dict]) -> Path:
    made = ResultSet(root)
    made.create()
    for row in engines:
        made.write(str(row["run_id"]), row, [], [])
    return root


def test_a_cpu_set_is_fitted_and_its_held_out_error_stated(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = written(tmp_path / "mine", [*rows(), cpu_row("tiny-llama", "bf16", 2, 2, status="failed")])
    out = tmp_path / "mine.json"
    assert cli.main([str(root), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "unseen model: mean" in told and "unseen setting: mean" in told and "12 of 12 rows, 3 models" in told
    made = load(out)
    assert (made.kind, made.gpu, made.vllm_version, made.runner) == ("own", "cpu", "0.32.0", "v1")
    chosen = select("0.32.0", "v1", "cpu", candidates=[made, load_prior()]).calibration
    assert chosen.origin("context") == "mine" and chosen.origin("activation") == "prior-cpu"
    start = next(iter(from_rows(rows()).values()))[0]
    assert chosen.estimate("context", start.features).value == pytest.approx(480 * MIB, rel=0.01)
    assert chosen.estimate("non_torch", start.features).value == pytest.approx(32 * MIB, rel=0.05)


def load_prior():  # noqa: ANN201
    from analysis.calibration import FOLDER

    return load(FOLDER / "prior-cpu.json")


def test_environments_are_pooled_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    mixed = rows()
    mixed[0] |= {"environment_id": "f", "host_memory_bytes": 1}
    root = written(tmp_path / "mixed", mixed)
    assert cli.main([str(root), "--dry-run"]) == 2
    assert "never pooled silently (host_memory_bytes" in capsys.readouterr().err
    assert cli.main([str(root), "--dry-run", "--pool"]) == 0
    assert "note: pooled over several environments" in capsys.readouterr().out


def test_what_cannot_be_fitted_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    failed = written(tmp_path / "failed", [cpu_row("tiny-llama", "bf16", 4, 256, status="failed")])
    two = written(tmp_path / "two", [*rows(), cpu_row("tiny-llama", "bf16", 8, 8, vllm_version="0.33.0")])
    cases = (
        ([], "name at least one result set"),
        ([str(tmp_path / "none")], "there is no result set"),
        ([str(failed)], "none of the rows is of an engine that started"),
        ([str(two), "--out", str(tmp_path / "x.json")], "--out is one file and these rows make 2"),
        ([str(two), "--public-csv", "x.csv"], "leave the result sets out"),
    )
    for words, sentence in cases:
        assert cli.main(words) == 2
        told = capsys.readouterr().err
        assert sentence in told and told.count("\n") == 1


def test_rows_without_their_settings_are_left_out() -> None:
    without = cpu_row("tiny-llama", "bf16", 4, 256, effective_max_num_seqs=None)
    broken = cpu_row("tiny-llama", "bf16", 4, 256, model_config_json="{")
    assert from_rows([without, broken, cpu_row("tiny-llama", "bf16", 4, 256, status="failed")]) == {}


def test_terms_of_a_cuda_row() -> None:
    row = {"activation_peak_bytes": 100, "total_consumed_bytes": 70, "weights_bytes": 50, "init_total_bytes": 1000,
           "init_free_bytes": 900, "device_memory_baseline_bytes": 40, "cuda_graph_bytes": 7, "enforce_eager": False,
           "runtime_activation_peak_bytes": 130, "status": "ok"}  # fmt: skip
    assert measured_on_gpu(row) == {
        "activation": 100, "cuda_graph": 7, "cuda_graph_estimate": None, "non_torch": 20.0, "context": 60.0,
        "runtime": 30.0,
    }  # fmt: skip
    assert measured_on_gpu({**row, "enforce_eager": True, "non_torch_bytes": 3})["cuda_graph"] == 0
    assert measured_on_gpu({**row, "non_torch_bytes": 3})["non_torch"] == 3
    assert measured_on_gpu({})["runtime"] is None
    assert measured_on_gpu({**row, "status": "memory_only"})["runtime"] is None


def test_terms_of_a_cpu_row() -> None:
    row = cpu_row("tiny-llama", "bf16", 4, 256)
    assert measured_on_cpu(row)["non_torch"] == 32 * MIB
    assert measured_on_cpu({**row, "worker_rss_ready_bytes": None})["non_torch"] is None
    assert measured_on_cpu({**row, "worker_rss_ready_bytes": 600 * MIB})["non_torch"] is None, "reclaimed memory"
    assert measured_on_cpu({**row, "status": "memory_only"})["runtime"] is None, "it never had a load"


@pytest.mark.parametrize(
    ("name", "bits"), [("bf16", 16), ("awq", 4), ("gptq-int8", 8), ("w4a16", 4), ("int8-w8a8", 8), ("fp8-block", 8)]
)
def test_nominal_bits(name: str, bits: int) -> None:
    config = {"quantization_config": catalogue.load_quantization(name).config}
    assert weight_bits(config, 2) == bits
    assert weight_bits({"quantization_config": {"quant_method": "mxfp4"}}, 2) == 4


def test_the_design_of_a_set_after_the_sweep(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = written(tmp_path / "mine", rows())
    assert design_cli.main([str(root)]) == 1
    told = capsys.readouterr().out
    assert "12 points" in told and "3 models" in told and "1 more models" in told
