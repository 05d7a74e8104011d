"""The multiplier tables: hand-checked cells, rows that win, rows that do not count, bytes that repeat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.cli import main
from analysis.tables.cells import FORMATS, LOADS, MODELS, Cell, cells
from analysis.tables.evidence import Evidence, Figure, added
from analysis.tables.measured import COLUMNS, Measured
from analysis.tables.render import markdown

GIB = 2**30
H100, VLLM = "h100-80gb", "0.33.0"
FILES = ("multipliers.md", "multipliers.parquet")


def gpu_row(**changes: Any) -> dict[str, Any]:
    """A clean start of Qwen2.5-7B AWQ at the tables' settings."""
    row = dict.fromkeys(COLUMNS)
    row |= {
        "run_id": "run-a", "point_id": "p", "environment_id": "e", "repeat": 0, "started_unix_s": 1.0, "status": "ok",
        "model": "qwen2.5-7b", "quantization": "awq", "kv_pool_mode": "auto", "effective_max_model_len": 4096,
        "effective_max_num_seqs": 256, "effective_max_num_batched_tokens": 8192, "enforce_eager": False,
        "tensor_parallel_size": 1, "pipeline_parallel_size": 1, "weights_bytes": 5 * GIB,
        "activation_peak_bytes": 1 * GIB, "non_torch_bytes": GIB // 4, "cuda_graph_bytes": GIB // 2,
        "cuda_graph_estimate_bytes": GIB // 2, "init_total_bytes": 79 * GIB, "init_free_bytes": 78 * GIB,
        "device_memory_baseline_bytes": 0, "runtime_activation_peak_bytes": 1 * GIB + GIB // 8,
        "kv_bytes_per_block": 57344 * 16, "kv_block_size_tokens": 16, "device_kind": "cuda",
        "device_name": "NVIDIA H100 80GB HBM3", "device_memory_total_bytes": 81559 * 2**20, "vllm_version": VLLM,
    }  # fmt: skip
    assert set(changes) <= set(COLUMNS), changes
    return row | changes


def write_set(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "engines").mkdir(parents=True)
    for row in rows:
        table = pa.Table.from_pylist([{name: value for name, value in row.items() if value is not None}])
        path = folder / "engines" / f"{row['run_id']}.parquet"
        pq.write_table(table.replace_schema_metadata({"schema_version": "1"}), path)
    return folder


def evidence(*rows: dict[str, Any], **options: Any) -> Evidence:
    return Evidence(H100, VLLM, Measured(rows, H100, VLLM, **options))


def find(found: list[Cell], model: str, quantization: str, quantity: str, sequences: int | None = None) -> Cell:
    chosen = [
        cell for cell in found
        if (cell.model, cell.quantization, cell.quantity) == (model, quantization, quantity)
        and sequences in (None, cell.sequences)
    ]  # fmt: skip
    assert len(chosen) == 1, chosen
    return chosen[0]


@pytest.fixture(scope="module")
def plain() -> list[Cell]:
    return list(cells(Evidence(H100, VLLM)))


def bytes_of(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def test_kv_cells_are_hand_checked(plain: list[Cell]) -> None:
    # Qwen2.5-7B: 2 x 28 layers x 4 KV heads x 128 x 2 bytes = 57,344 bytes a token
    assert find(plain, "qwen2.5-7b", "awq", "kv", 8).value == 57_344 * 8 * 4096
    assert find(plain, "qwen2.5-7b", "bf16", "kv", 64).value == 57_344 * 64 * 4096
    # DeepSeek-Coder-33B: 2 x 62 x 8 x 128 x 2
    assert find(plain, "deepseek-coder-33b", "gptq", "kv", 8).value == 253_952 * 8 * 4096


def test_weights_cells_are_hand_checked(plain: list[Cell]) -> None:
    awq = find(plain, "deepseek-coder-33b", "awq", "weights")
    assert awq.value is not None and 16.7 * GIB < awq.value < 17.0 * GIB
    assert (awq.low, awq.high, awq.basis) == (awq.value, awq.value, "exact")
    # 18-20 GB = 16.76-18.63 GiB; ours over the upper and over the lower end
    assert awq.guide_bounds == (18e9, 20e9)
    assert awq.ratio == (pytest.approx(awq.value / 20e9), pytest.approx(awq.value / 18e9))
    # 7,615,616,512 parameters of two bytes, and the RoPE table
    qwen = find(plain, "qwen2.5-7b", "bf16", "weights").value
    assert qwen is not None and qwen == pytest.approx(7_615_616_512 * 2, rel=0.006)


def test_every_cell_is_there_and_says_where_it_is_from(plain: list[Cell]) -> None:
    assert len(plain) == len(MODELS) * len(FORMATS) * (2 + 3 * len(LOADS))
    for cell in plain:
        assert cell.value is not None and cell.low is not None and cell.high is not None
        assert cell.low <= cell.value <= cell.high
        assert cell.basis == "exact" or (cell.basis.startswith("predicted (") and cell.calibrations), cell


def test_totals_are_the_sum_of_their_parts(plain: list[Cell]) -> None:
    for _, model, _ in MODELS:
        parts = [find(plain, model, "awq", "weights"), find(plain, model, "awq", "kv", 8),
                 find(plain, model, "awq", "overhead")]  # fmt: skip
        total = find(plain, model, "awq", "total", 8)
        assert total.value == pytest.approx(sum(part.value or 0 for part in parts))
        assert find(plain, model, "awq", "multiplier", 8).value == pytest.approx(total.value / parts[0].value)


def test_a_total_is_what_a_prediction_with_that_pool_says_of_the_device(plain: list[Cell]) -> None:
    from analysis.predict.answer import predict
    from analysis.predict.request import Request

    kv = find(plain, "qwen2.5-7b", "bf16", "kv", 8).value
    assert kv is not None
    asked = {"model": "qwen2.5-7b", "quantization": "bf16", "gpu": H100, "vllm_version": VLLM, "max_num_seqs": 256,
             "max_num_batched_tokens": 8192, "max_model_len": 4096, "kv_cache_memory_bytes": int(kv)}  # fmt: skip
    peak = predict(Request.of(asked)).device_peak
    total = find(plain, "qwen2.5-7b", "bf16", "total", 8)
    assert (total.value, total.low, total.high) == pytest.approx((peak.value, peak.low, peak.high))


def test_rows_win_and_are_named() -> None:
    found = list(cells(evidence(gpu_row(), gpu_row(run_id="run-b", repeat=1, weights_bytes=5 * GIB + 1000))))
    weights = find(found, "qwen2.5-7b", "awq", "weights")
    assert (weights.value, weights.low, weights.high) == (5 * GIB + 500, 5 * GIB, 5 * GIB + 1000)
    assert weights.basis == "measured" and weights.run_ids == ("run-a", "run-b")
    overhead = find(found, "qwen2.5-7b", "awq", "overhead")
    # activation 1 + graphs 0.5 + non-torch 0.25 + context 1 + runtime 0.125 GiB
    assert overhead.value == pytest.approx(2.875 * GIB) and overhead.basis == "measured"
    total = find(found, "qwen2.5-7b", "awq", "total", 8)
    assert total.value == pytest.approx(5 * GIB + 500 + 2.875 * GIB + 57_344 * 8 * 4096)
    # and no other model's or format's cell
    assert {(cell.model, cell.quantization) for cell in found if cell.run_ids} == {("qwen2.5-7b", "awq")}
    text = markdown(found, H100, VLLM)
    assert "`run-a`, `run-b`" in text and "No cell is measured" not in text


def test_a_term_that_rows_lack_is_predicted_and_said_so() -> None:
    found = list(cells(evidence(gpu_row(cuda_graph_bytes=None))))
    overhead = find(found, "qwen2.5-7b", "awq", "overhead")
    assert overhead.basis.startswith("measured + predicted (") and overhead.run_ids == ("run-a",)
    assert overhead.low is not None and overhead.value is not None and overhead.low < overhead.value


def test_rows_at_other_settings_give_weights_but_no_overhead() -> None:
    found = list(cells(evidence(gpu_row(effective_max_num_seqs=64))))
    assert find(found, "qwen2.5-7b", "awq", "weights").basis == "measured"
    assert find(found, "qwen2.5-7b", "awq", "overhead").basis.startswith("predicted (")


def test_sixteen_bit_rows_stand_for_both_types() -> None:
    found = list(cells(evidence(gpu_row(quantization="fp16", weights_bytes=15 * GIB))))
    assert find(found, "qwen2.5-7b", "bf16", "weights").value == 15 * GIB


@pytest.mark.parametrize("changes", [
    {"device_kind": "cpu", "device_name": "Some CPU"}, {"vllm_version": "0.32.0"}, {"status": "failed"},
    {"device_name": "NVIDIA L4", "device_memory_total_bytes": 23034 * 2**20}, {"tensor_parallel_size": 2},
    {"quantization_applied": False}, {"cpu_offload_gb": 2.0},
])  # fmt: skip
def test_rows_that_answer_another_question_change_nothing(changes: dict[str, Any], plain: list[Cell]) -> None:
    aside = evidence(gpu_row(**changes))
    assert list(cells(aside)) == plain
    assert len(aside.rows.notes) == 1 and aside.rows.notes[0].startswith("left aside: ")


def test_environments_are_not_pooled_silently() -> None:
    two = (gpu_row(driver_version="1"), gpu_row(run_id="run-b", environment_id="f", driver_version="2"))
    with pytest.raises(ValueError, match=r"driver_version: 1 \| 2.*--pool"):
        evidence(*two)
    assert any("pooled over several environments" in note for note in evidence(*two, pool=True).rows.notes)


def test_cells_without_data_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from analysis.predict.request import RequestError

    def refuse(*_: Any, **__: Any) -> Any:
        raise RequestError("nothing is known of it")

    monkeypatch.setattr("analysis.tables.evidence._predicted", refuse)
    found = list(cells(evidence(gpu_row())))
    assert find(found, "mistral-7b", "awq", "weights").basis == "no data"
    assert find(found, "qwen2.5-7b", "awq", "weights").value == 5 * GIB  # rows need no formula
    text = markdown(found, H100, VLLM)
    assert "| no data |" in text and "nothing is known of it" in text


def test_errors_add_in_quadrature_and_exact_ones_not_at_all() -> None:
    parts = [Figure(10, 7, 14, "predicted (x)", "f", (), ("x",)), Figure(20, 16, 23, "predicted (y)", "f", (), ("y",)),
             Figure.exact(5, "f")]  # fmt: skip
    whole = added(parts, "sum")
    assert (whole.value, whole.low, whole.high) == (35, 30, 40)
    assert whole.basis == "predicted (x, y)" and whole.calibrations == ("x", "y")


def test_the_same_data_makes_the_same_bytes(tmp_path: Path) -> None:
    made = write_set(tmp_path / "gpu", gpu_row(), gpu_row(run_id="run-b", point_id="q", effective_max_num_seqs=64))
    for out in ("one", "two"):
        assert main(["tables", str(made), "--out", str(tmp_path / out)]) == 0
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert main(["tables", "--out", str(tmp_path / "none")]) == 0
    assert bytes_of(tmp_path / "none") != bytes_of(tmp_path / "one")


def test_a_set_of_cpu_rows_changes_no_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = write_set(tmp_path / "cpu", gpu_row(device_kind="cpu", device_name="Some CPU"))
    assert main(["tables", str(made), "--out", str(tmp_path / "with")]) == 0
    assert "left aside: not measured on a GPU (rows: 1)" in capsys.readouterr().err
    assert main(["tables", "--out", str(tmp_path / "without")]) == 0
    assert bytes_of(tmp_path / "with") == bytes_of(tmp_path / "without")


def test_the_parquet_holds_what_the_markdown_says(tmp_path: Path) -> None:
    assert main(["tables", "--out", str(tmp_path)]) == 0
    rows = pq.read_table(tmp_path / "multipliers.parquet").to_pylist()
    chosen = [row for row in rows if (row["model"], row["quantization"], row["quantity"]) ==
              ("deepseek-coder-33b", "awq", "weights")]  # fmt: skip
    assert len(chosen) == 1 and chosen[0]["guide_text"] == "18-20 GB" and chosen[0]["guide_low"] == 18e9
    assert f"| {chosen[0]['value'] / GIB:.2f} |" in (tmp_path / "multipliers.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("words", "said"), [
    (["no-such-set"], "there is no result set 'no-such-set'"), (["--gpu", "h1000"], "gpu 'h1000' is not in the table"),
    (["--vllm", "newest"], "vllm_version is 'newest'"),
])  # fmt: skip
def test_bad_requests_are_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tables", *words, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1
    assert not list(tmp_path.iterdir())
