"""Calibrations: what an estimate is made of, how it widens, and which file answers for which start."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from analysis import calibration
from analysis.calibration import CalibrationError, from_document, load, select, shipped
from analysis.estimate import TERMS, Estimate, Features

GIB = 2**30

LLAMA = Features(
    architecture="LlamaForCausalLM", hidden_size=4096, intermediate_size=14336, layers=32, attention_heads=32,
    kv_heads=8, head_dim=128, vocab_size=128256, experts=0, tensor_parallel_size=1, pipeline_parallel_size=1,
    max_num_seqs=1024, max_num_batched_tokens=8192, max_model_len=8192, enforce_eager=False, graph_count=102,
    graph_max_size=512, dtype_bytes=2, quantization="none",
)  # fmt: skip


def group(one: float, half: float = 10.0, **ranges: list[float]) -> dict:
    return {
        "branches": [{"coefficients": {"one": {"value": one}}}],
        "interval": {"low_bytes": -half, "high_bytes": half},
        "ranges": ranges,
    }


def document(**changes: object) -> dict:
    content = {
        "format": 1, "name": "mine", "kind": "own", "source": "here", "vllm_version": "0.32.0", "runner": "v2",
        "gpu": "h100-80gb", "tensor_parallel_sizes": [1],
        "terms": {"activation": {"groups": {"any": group(1000.0, max_num_seqs=[8, 256])}},
                  "non_torch": {"groups": {"1": group(100.0), "2": group(2000.0)}}},
    }  # fmt: skip
    return {**content, **changes}


def test_largest_branch_decides_and_the_interval_is_added() -> None:
    content = document()
    content["terms"] = {"activation": {"groups": {"any": {
        "branches": [{"coefficients": {"logits": {"value": 10.0}, "logit_bytes": {"value": 1.0}}},
                     {"coefficients": {"mlp_bytes": {"value": 3.0}}}],
        "interval": {"low_bytes": -5.0, "high_bytes": 7.0}, "ranges": {},
    }}}}  # fmt: skip
    made = from_document(content)
    sampler = 1024 * 128256 * 12
    assert made.estimate("activation", LLAMA) == Estimate(sampler, sampler - 5, sampler + 7, "calibrated")
    few = replace(LLAMA, max_num_seqs=4)
    assert made.estimate("activation", few).value == 3 * 8192 * 14336 * 2


def test_outside_the_range_an_estimate_widens_and_says_so() -> None:
    content = document()
    content["terms"]["activation"]["groups"]["any"]["branches"] = [{"coefficients": {"seqs": {"value": 4.0}}}]
    made = from_document(content)
    inside = made.estimate("activation", replace(LLAMA, max_num_seqs=256))
    outside = made.estimate("activation", replace(LLAMA, max_num_seqs=512))
    far = made.estimate("activation", replace(LLAMA, max_num_seqs=4096))
    assert (inside.basis, outside.basis, far.basis) == ("calibrated", "extrapolated", "extrapolated")
    assert inside.high - inside.low == 20.0
    assert inside.high - inside.low < outside.high - outside.low < far.high - far.low


def test_a_tensor_parallel_size_never_seen_takes_the_nearest_and_widens() -> None:
    made = from_document(document())
    four = made.estimate("non_torch", replace(LLAMA, tensor_parallel_size=4))
    assert four.value == 2000.0 and four.basis == "extrapolated" and four.low < 1500.0


def test_no_graphs_take_nothing() -> None:
    eager = replace(LLAMA, enforce_eager=True, graph_count=0, graph_max_size=0)
    chosen = select("0.19.0", "v1", "h100-80gb").calibration
    assert chosen.estimate("cuda_graph", eager) == Estimate.exact(0.0)


def test_an_estimate_is_never_negative() -> None:
    content = document()
    content["terms"]["activation"]["groups"]["any"] = group(3.0, 10.0)
    found = from_document(content).estimate("activation", LLAMA)
    assert found.low == 0.0 and found.value == 3.0 and found.high == 13.0


def test_experts_have_their_own_formulas_where_they_were_fitted() -> None:
    content = document()
    content["terms"]["activation/experts"] = {"groups": {"any": group(5000.0)}}
    made = from_document(content)
    assert made.estimate("activation", replace(LLAMA, experts=8, max_num_seqs=64)).value == 5000.0
    assert made.estimate("activation", replace(LLAMA, max_num_seqs=64)).value == 1000.0


def test_own_measurements_win_and_fill_in_from_others() -> None:
    own = from_document(document())
    chosen = select("0.32.0", "v2", "h100-80gb", candidates=[*shipped(), own])
    assert chosen.calibration.name == "mine" and chosen.distance > 0  # the graph estimate is a formula only
    assert chosen.calibration.origin("activation") == "mine"
    assert chosen.calibration.estimate("activation", replace(LLAMA, max_num_seqs=64)).basis == "calibrated"
    assert chosen.calibration.origin("context") == "vllm-0.19-v1-h100-80gb-public"
    assert set(chosen.calibration.terms) == set(TERMS)


def test_a_borrowed_calibration_widens_with_its_distance() -> None:
    widths, notes = [], []
    for version in ("0.19.0", "0.21.0", "0.24.0"):
        chosen = select(version, "v1", "h100-80gb")
        found = chosen.calibration.estimate("activation", LLAMA)
        widths.append(found.high - found.low)
        notes.append(any("was fitted on vLLM 0.19.0" in note for note in chosen.notes))
    assert widths == sorted(widths) and widths[0] < widths[1] < widths[2]
    assert notes == [False, True, True]


def test_releases_that_changed_a_term_do_not_lend_it() -> None:
    chosen = select("0.15.0", "v1", "h100-80gb").calibration
    assert chosen.origin("activation") == "prior-v1-0.16"
    # 5.64 GiB for Qwen3-14B in vLLM 0.15 and 0.16 against 2.23 from 0.17 on, in llm-d-planner's records.
    qwen = replace(LLAMA, hidden_size=5120, intermediate_size=17408, vocab_size=151936, layers=40)
    assert chosen.estimate("activation", qwen).value == pytest.approx(5.64 * GIB, rel=0.02)
    later = select("0.17.0", "v1", "h100-80gb").calibration
    assert later.estimate("activation", qwen).value == pytest.approx(2.23 * GIB, rel=0.02)


def test_another_runner_or_gpu_falls_back_to_something_wide() -> None:
    chosen = select("0.32.0", "v2", "rtx-4090", 8)
    assert chosen.distance >= 1
    for term in TERMS:
        found = chosen.calibration.estimate(term, replace(LLAMA, tensor_parallel_size=8))
        assert found.basis == "extrapolated", term
        assert found.low <= found.value <= found.high
    assert chosen.notes


def test_cpu_and_gpu_never_stand_in_for_each_other() -> None:
    assert select("0.32.0", "v2", "cpu").calibration.gpu == "cpu"
    assert select("0.32.0", "v1", "h100-80gb").calibration.gpu != "cpu"
    gpus_only = [one for one in shipped() if one.gpu != "cpu"]
    with pytest.raises(CalibrationError, match="no calibration for 'cpu'"):
        select("0.32.0", "v1", "cpu", candidates=gpus_only)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 2}, "has format 2 and this program reads 1; update the program"),
        ({"format": 0}, "fit it again"),
        ({"kind": "guess"}, "kind is 'guess'"),
        ({"terms": {"weights": {"groups": {"any": group(1.0)}}}}, "term 'weights' is not known"),
        ({"terms": {"activation": {"groups": {}}}}, "a term has no groups"),
        ({"terms": {"activation": {}}}, "malformed: KeyError at 'groups'"),
        ({"terms": 3}, "malformed"),
    ],
)
def test_a_file_that_is_no_calibration_is_refused_by_name(tmp_path: Path, change: dict, sentence: str) -> None:
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(document(**change)))
    with pytest.raises(CalibrationError) as refused:
        load(path)
    assert "odd.json" in str(refused.value) and sentence in str(refused.value)


def test_what_is_no_json_or_not_there_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text("{")
    with pytest.raises(CalibrationError, match="odd.json is not JSON"):
        load(tmp_path / "odd.json")
    with pytest.raises(CalibrationError, match="cannot be read"):
        load(tmp_path / "none.json")


def test_an_unknown_driver_is_named() -> None:
    content = copy.deepcopy(document())
    content["terms"]["activation"]["groups"]["any"]["branches"] = [{"coefficients": {"moon": {"value": 1.0}}}]
    with pytest.raises(CalibrationError, match="driver 'moon' is not known"):
        from_document(content)


def test_the_shipped_files_name_their_source() -> None:
    names = {one.name for one in shipped()}
    assert {"vllm-0.19-v1-h100-80gb-public", "prior-v1", "prior-v2", "prior-cpu"} <= names
    for one in shipped():
        assert one.source and (calibration.FOLDER / f"{one.name}.json").is_file()
        assert one.kind != "public" or "llm-d-planner" in one.source


def test_choosing_a_calibration_imports_nothing_heavy() -> None:
    script = (
        "import sys; from analysis.calibration import select; select('0.19.0', 'v1', 'h100-80gb');"
        "print(sorted({'numpy', 'scipy', 'pandas', 'pyarrow', 'torch', 'vllm', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
