"""Logs of several versions become rows; what is no log is one sentence, and the others are still taken."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from analysis import gpus  # noqa: E402
from analysis.fit.public import Shapes  # noqa: E402
from analysis.fit.starts import from_rows  # noqa: E402
from analysis.ingest import cli, older  # noqa: E402
from analysis.ingest.row import UselessLog, row_of  # noqa: E402
from analysis.rows import read_table  # noqa: E402

_SPEC = importlib.util.spec_from_file_location("log_excerpts", Path(__file__).with_name("logs.py"))
assert _SPEC is not None and _SPEC.loader is not None
logs = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(logs)

GIB = 2**30
H100 = gpus.find("h100-80gb")


def config_of(hub_id: str) -> dict:
    found = Shapes(None).find(hub_id)
    assert found is not None
    return found[1]


def test_the_v0_engine_of_0_8() -> None:
    row = row_of("log", logs.V0_ENGINE, H100, set_name="s", config=config_of("codellama/CodeLlama-7b-hf"))
    assert row["vllm_version"] == "0.8.5.post1" and row["model_runner"] == "v0" and row["status"] == "ok"
    for column, gib in (
        ("weights_bytes", 12.55), ("non_torch_bytes", 0.16), ("activation_peak_bytes", 2.38),
        ("requested_bytes", 71.27), ("available_kv_cache_bytes", 56.18),
        ("init_total_bytes", 79.19), ("cuda_graph_bytes", 0.13),
    ):  # fmt: skip
        assert row[column] == round(gib * GIB), column
    assert row["kv_cache_blocks"] == 7191 and row["gpu_memory_utilization"] == 0.9
    effective = json.loads(row["effective_config_json"])
    assert effective["max_model_len"] == 4096 and len(effective["cudagraph_capture_sizes"]) == 35
    assert (effective["max_num_seqs"], effective["max_num_batched_tokens"]) == (256, 4096)
    assert row["flags"] == ["settings_assumed"] and "not in the log" in row["warnings"][0]
    assert abs(row["weights_error"]) < 0.002


def test_the_v1_engine_of_0_10() -> None:
    row = row_of("log", logs.V1_ENGINE, H100, set_name="s", config=None)
    assert (row["vllm_version"], row["model_runner"], row["architecture"]) == ("0.10.2", "v1", "LlamaForCausalLM")
    assert row["weights_bytes"] == round(2.0513 * GIB) and row["kv_cache_tokens"] == 4836272
    assert row["kv_cache_blocks"] == 302267 and row["enforce_eager"] is True
    assert row["effective_max_num_batched_tokens"] == 2048 and row["gpu_memory_utilization"] == 0.85
    effective = json.loads(row["effective_config_json"])
    assert effective["cudagraph_capture_sizes"] == [] and effective["cudagraph_mode"] == "NONE"
    assert row["model_config_json"] is None and from_rows([row]) == {}, "a row without a shape cannot be fitted to"


def test_the_summary_of_the_budget() -> None:
    row = row_of("log", logs.V1_ENGINE + logs.V1_BUDGET, H100, set_name="s", config=None)
    assert row["activation_peak_bytes"] == round(5.58 * GIB) and row["non_torch_bytes"] == round(1.38 * GIB)
    assert row["init_free_bytes"] == round(139.21 * GIB) and row["cuda_graph_bytes"] == round(2.37 * GIB)


def test_several_ranks_give_the_largest_terms_and_the_least_pool() -> None:
    less = "model weights take 20.00GiB; non_torch_memory takes 0.50GiB; PyTorch activation peak memory takes " \
           "0.10GiB; the rest of the memory reserved for KV Cache is 1.20GiB."  # fmt: skip
    told = older.read([*logs.V0_RANKS.splitlines(), less])
    assert told.weights_bytes == round(21.21 * GIB) and told.non_torch_bytes == round(0.5 * GIB)
    assert told.activation_peak_bytes == round(0.37 * GIB) and told.available_kv_cache_bytes == round(1.2 * GIB)


def test_a_log_without_a_settings_line_needs_the_version() -> None:
    with pytest.raises(UselessLog, match="the vLLM version is not in it; give --vllm-version"):
        row_of("short", logs.V1_SHORT, H100, set_name="s", config=None)
    llama = config_of("meta-llama/Llama-3.1-8B-Instruct")
    row = row_of("short", logs.V1_SHORT, gpus.find("l40s"), set_name="s", config=llama, vllm_version="0.8.5")
    assert row["status"] == "failed" and row["failure_sentence"] == "the log ends before the engine was ready"
    assert abs(row["weights_error"]) < 0.001


@pytest.mark.parametrize(
    ("text", "version", "sentence"),
    [
        ("", None, "no memory figure"),
        ("hello\nworld", "0.10.0", "no memory figure"),
        ("\x00\xff" * 50, None, "no memory figure"),
        (logs.V1_SHORT, "latest", "is not a version"),
        (logs.V1_SHORT, "0.7.2", "older than 0.8"),
    ],
)
def test_nothing_to_learn_is_one_sentence(text: str, version: str | None, sentence: str) -> None:
    with pytest.raises(UselessLog) as refused:
        row_of("that.log", text, H100, set_name="s", config=None, vllm_version=version)
    assert sentence in str(refused.value) and "that.log" in str(refused.value) and "\n" not in str(refused.value)


def test_old_arguments_are_read() -> None:
    told = older.read([
        "INFO 04-16 09:21:54 [api_server.py:1] args: Namespace(host=None, max_num_seqs=64, "
        "max_num_batched_tokens=None, max_model_len=4096, gpu_memory_utilization=0.8, "
        "dispatch_function=<function f at 0x7ac2>)"
    ])  # fmt: skip
    assert told.settings == {"max_num_seqs": 64, "max_model_len": 4096, "gpu_memory_utilization": 0.8}


def test_arguments_that_are_no_literals_do_not_stop_the_reading() -> None:
    told = older.read(["non-default args: {'max_num_seqs': 64, 'mode': <Mode.X: 1>}", "# GPU blocks: 12"])
    assert told.settings == {} and told.kv_cache_blocks == 12


def test_good_logs_are_taken_beside_bad_ones(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, text in (("old.log", logs.V0_ENGINE), ("new.log", logs.V1_ENGINE), ("odd.log", "nothing")):
        (tmp_path / name).write_text(text)
    names = [str(tmp_path / name) for name in ("old.log", "odd.log", "missing.log", "new.log")]
    root = tmp_path / "sets" / "theirs"
    assert cli.main([*names, "--set", str(root), "--gpu", "h100"]) == 0
    told = capsys.readouterr()
    assert "2 of 4 logs are now rows" in told.out and "its shape is not known: give --model-config" in told.out
    assert len(told.err.splitlines()) == 2 and "odd.log" in told.err and "missing.log" in told.err
    rows = read_table(root)
    assert {row["model"] for row in rows} == {"codellama/CodeLlama-7b-hf", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"}
    assert all((root / row["log_file"]).is_file() and row["device_name"] == "NVIDIA H100 80GB HBM3" for row in rows)
    ((origin, starts),) = from_rows(rows).items()
    assert (origin.vllm_version, origin.runner, origin.gpu) == ("0.8.5.post1", "v0", "h100-80gb")
    assert starts[0].measured["activation"] == round(2.38 * GIB) and starts[0].features.graph_count == 35
    assert cli.main([*names, "--set", str(root), "--gpu", "h100"]) == 0
    assert len(read_table(root)) == 2, "the same log read twice is the same row"


def test_a_shape_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "new.log").write_text(logs.V1_ENGINE)
    (tmp_path / "config.json").write_text(json.dumps(config_of("meta-llama/Llama-3.1-8B-Instruct")))
    words = [str(tmp_path / "new.log"), "--set", str(tmp_path / "s"), "--gpu", "h100", "--model-config"]
    assert cli.main([*words, str(tmp_path / "config.json")]) == 0
    assert len(from_rows(read_table(tmp_path / "s"))) == 1
    (tmp_path / "config.json").write_text("[")
    assert cli.main([*words, str(tmp_path / "config.json")]) == 2
    assert "is not JSON" in capsys.readouterr().err


def test_a_bad_request_is_one_sentence_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "odd.log").write_text("nothing")
    root = tmp_path / "s"
    assert cli.main([str(tmp_path / "odd.log"), "--set", str(root), "--gpu", "h100"]) == 2
    assert cli.main([str(tmp_path / "odd.log"), "--set", str(root), "--gpu", "h1000"]) == 2
    assert "'h1000' is not in the table" in capsys.readouterr().err
    assert not root.exists()
