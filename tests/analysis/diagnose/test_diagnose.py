"""Failed starts as rows, and the ladder of changes: order, sufficiency, honesty about what is not known."""

from __future__ import annotations

import json

import pytest

from analysis.catalogue import compose, load_model, load_quantization
from analysis.cli import main
from analysis.diagnose.case import MEMORY_CAUSES, Case, NotForMemory
from analysis.diagnose.ladder import first_working, ladder
from analysis.diagnose.terms import CpuTerms, CudaTerms, Unpredictable

GIB = 2**30


WEIGHTS = {"qwen2.5-14b": 27.5 * GIB, "deepseek-coder-33b": 62 * GIB, "llama-3.3-70b": 131 * GIB, "tiny-llama": 5e7}


def row(model="qwen2.5-14b", quantization="bf16", *, cpu=False, **columns):
    config = compose(load_model(model), load_quantization(quantization))
    made = {
        "run_id": "p-r0-1", "status": "failed", "failure_phase": "kv_allocation", "failure_cause": "no_kv_memory",
        "failure_sentence": "No available memory for the cache blocks", "model": model, "quantization": quantization,
        "dtype": config["torch_dtype"], "model_config_json": json.dumps(config),
        "device_kind": "cpu" if cpu else "cuda",
        "device_name": "Test CPU" if cpu else "NVIDIA L40S", "device_memory_total_bytes": 24 * GIB if cpu else None,
        "vllm_version": "0.32.0", "max_num_seqs": 256, "max_num_batched_tokens": 8192, "max_model_len": 8192,
        "enforce_eager": False, "kv_cache_dtype": "auto", "tensor_parallel_size": 1, "pipeline_parallel_size": 1,
        "cpu_offload_gb": 0.0, "expected_weights_bytes": int(WEIGHTS[model]),
    }  # fmt: skip
    return {**made, **columns}


@pytest.mark.parametrize("cause", ["missing_kernel", "timeout", "bad_checkpoint"])
def test_what_is_no_matter_of_memory_is_not_diagnosed_as_one(cause):
    with pytest.raises(NotForMemory, match=cause):
        Case.of_row(row(failure_cause=cause))
    with pytest.raises(NotForMemory, match="did not fail"):
        Case.of_row(row(status="ok", failure_cause=None))


@pytest.mark.parametrize("cause", MEMORY_CAUSES)
def test_every_cause_of_memory_gets_a_ladder(cause):
    assert ladder(Case.of_row(row(failure_cause=cause, shortfall_bytes=GIB // 4)))


def test_rungs_come_in_the_order_of_least_harm():
    names = [rung.name for rung in ladder(Case.of_row(row(shortfall_bytes=GIB // 4)))]
    order = [
        "fewer sequences", "fewer batched tokens", "no CUDA graphs", "another share of the device", "shorter requests",
        "fp8 KV cache", "smaller weights", "weights in host memory",
    ]  # fmt: skip
    assert names == order


def test_a_working_rung_gains_the_shortfall_and_is_the_smallest_that_does():
    case = Case.of_row(row(shortfall_bytes=GIB // 4, failure_phase="graph_capture", failure_cause="out_of_memory"))
    terms = CudaTerms(case)
    before = {name: case.row[name] for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len",
              "kv_cache_dtype", "enforce_eager", "quantization")}  # fmt: skip
    tried = 0
    for rung in ladder(case):
        if not rung.works:
            continue
        assert rung.gain_bytes >= case.shortfall_bytes + case.margin_bytes
        assert terms.lacking(before) - terms.lacking({**before, **rung.settings}) == pytest.approx(rung.gain_bytes)
        if "gpu_memory_utilization" in rung.settings:
            tried += 1
            gentler = {"gpu_memory_utilization": round(rung.settings["gpu_memory_utilization"] + 0.01, 2)}
            gain = terms.lacking(before) - terms.lacking({**before, **gentler})
            assert gain < case.shortfall_bytes + case.margin_bytes
    assert tried


def test_the_share_goes_up_for_the_kv_cache_and_down_for_what_lies_beside_the_budget():
    def share(**columns):
        rungs = ladder(Case.of_row(row(shortfall_bytes=GIB // 2, **columns)))
        return next(r for r in rungs if r.name == "another share of the device").settings["gpu_memory_utilization"]

    assert share() > 0.92
    assert share(failure_phase="graph_capture", failure_cause="out_of_memory") < 0.92
    assert share(failure_phase="init_device", failure_cause="insufficient_free_memory") < 0.92


def test_shorter_requests_never_refuse_the_rows_own_workload():
    request = {"workload": {"points": [{"input_tokens": 6000, "output_tokens": 500}]}}
    case = Case.of_row(row(
        failure_cause="max_model_len_exceeds_kv", shortfall_bytes=8 * GIB, request_json=json.dumps(request)
    ))  # fmt: skip
    shorter = next(rung for rung in ladder(case) if rung.name == "shorter requests")
    assert shorter.settings["max_model_len"] == 6500
    assert not shorter.works


def test_weights_that_do_not_fit_are_answered_by_smaller_weights():
    # 62 GiB of weights on 44: only 4-bit weights, or most of them in host memory, can help.
    rungs = ladder(Case.of_row(row(
        "deepseek-coder-33b", failure_phase="load", failure_cause="out_of_memory", shortfall_bytes=GIB,
        quantization="bf16",
    )))  # fmt: skip
    best = first_working(rungs)
    assert best is not None
    assert best.settings == {"quantization": "fp8"} or best.settings == {"quantization": "awq"}
    gentle = [rung for rung in rungs if rung.name in ("fewer sequences", "fewer batched tokens")]
    assert gentle and not any(rung.works for rung in gentle), "no number of sequences shrinks the weights"


def test_where_no_single_change_is_enough_the_gentlest_pair_is():
    # 4-bit weights leave too little for one request of 32768 tokens; a share of 0.98 is not enough for it either.
    rungs = ladder(Case.of_row(row(
        "llama-3.3-70b", failure_phase="load", failure_cause="out_of_memory", max_model_len=32768
    )))  # fmt: skip
    assert not any(rung.works for rung in rungs[:-1])
    best = rungs[-1]
    assert best.works and best.settings["quantization"] == "awq" and len(best.settings) == 2
    assert "+" in best.name


def test_a_failure_that_no_change_can_cure_says_so():
    rungs = ladder(Case.of_row(row(
        "llama-3.3-70b", failure_phase="load", failure_cause="out_of_memory", device_name="NVIDIA L4",
    )))  # fmt: skip
    assert rungs and first_working(rungs) is None


def test_no_length_helps_where_there_is_no_memory_for_any_block():
    names = {rung.name: rung for rung in ladder(Case.of_row(row(shortfall_bytes=GIB // 4)))}
    assert not names["shorter requests"].works and not names["fp8 KV cache"].works


def cpu_row(**columns):
    return row("tiny-llama", "fp32", cpu=True, **{
        "failure_cause": "insufficient_free_memory", "shortfall_bytes": 40 * GIB, "kv_cache_memory_bytes": 60 * GIB,
        "max_model_len": 1024, "max_num_seqs": 4, "max_num_batched_tokens": 256, "enforce_eager": True,
        **columns,
    })  # fmt: skip


def test_a_cpu_pool_larger_than_memory_is_answered_by_what_can_be_used():
    case = Case.of_row(cpu_row(kv_block_size_tokens=128))
    best = first_working(ladder(case))
    assert best is not None and best.name == "no more KV cache than can be used"
    # 4 requests of 8 blocks and the null block, at 3 layers x 2 x 4 heads x 64 x 4 bytes a token.
    assert best.settings == {"kv_cache_memory_bytes": 25 * 2**20}
    assert 33 * 128 * 6144 <= 25 * 2**20 < 33 * 128 * 6144 + 2**20
    assert best.overrides() == {"engine.kv_cache_memory_bytes": 25 * 2**20}


def test_with_a_prefix_cache_a_cpu_pool_is_cut_to_what_leaves_the_host_room():
    case = Case.of_row(cpu_row(enable_prefix_caching=True))
    rungs = ladder(case)
    best = first_working(rungs)
    assert best is not None and best.name == "smaller KV pool"
    assert best.settings["kv_cache_memory_bytes"] == 19 * GIB, "20 GiB were there, one is the host's"
    assert not any(rung.name in ("no CUDA graphs", "fp8 KV cache", "weights in host memory") for rung in rungs)
    assert CpuTerms(case).starts({"kv_cache_memory_bytes": 1024, "max_model_len": 1024, "dtype": "float32"})
    assert "too little of the host's memory" in CpuTerms(case).starts({"kv_cache_memory_bytes": 24 * GIB})


def test_a_cpu_share_larger_than_what_is_free_is_answered_by_a_pool_that_can_be_used_or_a_smaller_share():
    case = Case.of_row(cpu_row(kv_cache_memory_bytes=None, shortfall_bytes=2 * GIB, failure_phase="init_device"))
    rungs = {rung.name: rung for rung in ladder(case)}
    assert rungs["no more KV cache than can be used"].works
    share = rungs["another share of the device"]
    assert share.works and share.settings["gpu_memory_utilization"] == pytest.approx(0.92 - 0.13)
    assert share.gain_bytes == pytest.approx(0.13 * 24 * GIB)


def test_a_share_of_everything_is_answered_by_a_smaller_one():
    case = Case.of_row(cpu_row(kv_cache_memory_bytes=None, shortfall_bytes=GIB, gpu_memory_utilization=1.0))
    share = next(rung for rung in ladder(case) if rung.name == "another share of the device")
    assert share.works and share.settings["gpu_memory_utilization"] == pytest.approx(0.91)


@pytest.mark.parametrize("cpu", [True, False])
def test_a_pool_too_small_for_one_request_is_answered_by_a_larger_one(cpu):
    made = row("tiny-llama", "fp32", cpu=cpu, failure_cause="max_model_len_exceeds_kv", shortfall_bytes=5 * 2**20,
               kv_cache_memory_bytes=2**20, max_model_len=1024, enforce_eager=True, dtype="float32")  # fmt: skip
    rungs = {rung.name: rung for rung in ladder(Case.of_row(made))}
    larger = rungs["larger KV pool"]
    assert larger.works and 6 * 2**20 <= larger.settings["kv_cache_memory_bytes"] <= 17 * 2**20
    assert "smaller KV pool" not in rungs and "no more KV cache than can be used" not in rungs


def test_another_weight_format_brings_its_own_dtype():
    case = Case.of_row(cpu_row(failure_cause="max_model_len_exceeds_kv", kv_cache_memory_bytes=4 * 2**20,
                               max_num_seqs=1, shortfall_bytes=2 * 2**20, max_num_batched_tokens=None))  # fmt: skip
    weights = next(rung for rung in ladder(case) if rung.name == "smaller weights")
    assert weights.gain_bytes == 1024 * 6144 / 2, "16-bit KV entries instead of 32-bit ones"


def test_a_row_without_a_configuration_is_said_to_be_beyond_prediction():
    with pytest.raises(Unpredictable, match=r"config\.json"):
        ladder(Case.of_row(row(model_config_json=None)))


@pytest.fixture
def result_set(tmp_path):
    from bench.record.store import ResultSet

    results = ResultSet(tmp_path / "set")
    results.create()
    failed = row(shortfall_bytes=GIB // 4)
    fine = {**row(), "run_id": "p-r0-2", "status": "ok", "failure_cause": None, "repeat": 1}
    other = {**row(failure_cause="missing_kernel"), "run_id": "p-r0-3", "repeat": 2}
    for made in (failed, fine, other):
        results.write(made["run_id"], {"point_id": "p", "started_unix_s": 1.0, **made}, [], [])
    return tmp_path / "set"


def test_the_command_answers_what_failed_for_memory_and_counts_the_rest(result_set, capsys):
    assert main(["diagnose", str(result_set)]) == 0
    text = capsys.readouterr().out
    assert "failed at kv_allocation: no_kv_memory, 0.25 GiB short" in text
    assert "smallest change predicted to work" in text
    assert "1 more failed for reasons" in text
    assert main(["diagnose", str(result_set), "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["run_id"] == "p-r0-1" and answer["smallest_change"]


def test_what_bench_has_tried_already_is_told_beside_the_prediction(result_set, capsys):
    from bench.record.store import ResultSet

    rung = {**row(), "run_id": "q-r0-9", "point_id": "q", "status": "ok", "failure_cause": None, "started_unix_s": 2.0,
            "mitigates_run_id": "p-r0-1", "mitigation_rung": 1, "mitigation_change": "max_num_seqs 64"}  # fmt: skip
    ResultSet(result_set).write("q-r0-9", rung, [], [])
    assert main(["diagnose", str(result_set), "--run", "p-r0-1"]) == 0
    assert "measured: max_num_seqs 64: ok (q-r0-9)" in capsys.readouterr().out
    main(["diagnose", str(result_set), "--json"])
    (answer,) = json.loads(capsys.readouterr().out)
    assert [one["run_id"] for one in answer["walked"]] == ["q-r0-9"]


def test_one_of_several_engines_is_said_to_be_one():
    from analysis.diagnose.render import text
    from analysis.diagnose.walked import Answer

    none = Answer([], [])
    alone, member = (Case.of_row(row(shortfall_bytes=GIB, colocation_id=group)) for group in (None, "g"))
    assert "one of several engines" in text(member, none) and "one of several engines" not in text(alone, none)


@pytest.mark.parametrize("words", [["nowhere"], ["{set}", "--run", "nobody"]])
def test_a_bad_request_is_one_sentence(words, result_set, capsys):
    assert main(["diagnose", *(word.format(set=result_set) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("cpu", [False, True])
@pytest.mark.parametrize("odd", [{"vllm_version": None}, {"vllm_version": "dev"}, {"model_config_json": "{cut"},
                                 {"model_config_json": "[]"}])  # fmt: skip
def test_an_odd_row_is_answered_or_refused_in_words(cpu, odd):
    made = row(cpu=cpu, shortfall_bytes=GIB, **odd)
    try:
        assert ladder(Case.of_row(made))
    except Unpredictable as why:
        assert str(why) and "vllm_version" not in odd or odd["vllm_version"] == "dev"


def test_a_card_that_is_not_in_the_table_is_answered_by_its_total():
    made = row(device_name="NVIDIA Newest", device_memory_total_bytes=24 * GIB, shortfall_bytes=GIB)
    assert ladder(Case.of_row(made))


# -- the node that a CPU engine is bound to ------------------------------------------------------------------------

SENTENCE = (
    "Available memory on node 0 (6.18/9.21 GiB) on startup is less than desired CPU memory utilization "
    "(0.92, 8.47 GiB)."
)


def test_a_cpu_share_is_of_its_node_and_not_of_the_host():
    made = cpu_row(kv_cache_memory_bytes=None, failure_phase="init_device", failure_sentence=SENTENCE,
                   shortfall_bytes=round(2.29 * GIB))  # fmt: skip
    case = Case.of_row(made)
    rungs = {rung.name: rung for rung in ladder(case)}
    share = rungs["another share of the device"]
    assert share.works and share.settings["gpu_memory_utilization"] * 9.21 <= 6.18 - 1
    assert share.settings["gpu_memory_utilization"] == pytest.approx(0.56), "one GiB is the host's; 0.57 is too much"
    assert all(rung.gain_bytes < 9.21 * GIB for rung in rungs.values()), "nothing frees more than the node has"
    starts = CpuTerms(case).starts
    assert "too little of the host's memory" in starts({"kv_cache_memory_bytes": 6 * GIB, "quantization": "fp32"})
    assert "does not hold weights and one request" in starts({"gpu_memory_utilization": 0.001, "max_model_len": 1024})


def test_a_pool_is_measured_against_what_the_node_has_free():
    said = "Available memory on node 1 (6.35/9.46 GiB) on kv cache allocation is less than requested memory for kv"
    made = cpu_row(enable_prefix_caching=True, failure_sentence=said, shortfall_bytes=round(53.65 * GIB))
    best = first_working(ladder(Case.of_row(made)))
    assert best is not None and 5 * GIB <= best.settings["kv_cache_memory_bytes"] <= 5.35 * GIB


def test_the_nodes_memory_is_the_engines_and_a_lower_limit_wins(tmp_path):
    from bench.telemetry.numa import engine_memory_bytes, node_of_cpu

    for number, kib, cores in ((0, 4096, "0-63"), (1, 2048, "64-127")):
        node = tmp_path / f"node{number}"
        node.mkdir()
        (node / "meminfo").write_text(f"Node {number} MemTotal:       {kib} kB\nNode {number} MemFree:  1 kB\n")
        (node / "cpulist").write_text(f"{cores}\n")
    assert (node_of_cpu(3, tmp_path), node_of_cpu(64, tmp_path), node_of_cpu(200, tmp_path)) == (0, 1, None)
    assert engine_memory_bytes(tmp_path) == 4096 * 1024
    whole = engine_memory_bytes(tmp_path / "none")
    assert whole > 4096 * 1024, "no nodes: the machine"
    (tmp_path / "node0" / "meminfo").write_text("Node 0 MemTotal: 999999999999 kB\n")
    assert engine_memory_bytes(tmp_path) == whole, "never more than the machine or its container has"


# -- what was tried already ----------------------------------------------------------------------------------------


def tried(change, gain, number=1, **columns):
    return row() | {
        "run_id": f"q{number}-r0-9", "point_id": f"q{number}", "started_unix_s": 1.0 + number, "status": "failed",
        "failure_cause": "no_kv_memory", "shortfall_bytes": GIB, "mitigates_run_id": "p-r0-1",
        "mitigation_rung": number, "mitigation_change": change, "mitigation_name": "a name",
        "mitigation_cost": "a cost", "mitigation_gain_bytes": gain,
    } | columns  # fmt: skip


def test_a_change_recorded_as_failed_is_not_advised_again(result_set, capsys):
    from bench.record.store import ResultSet

    first = first_working(ladder(Case.of_row(row(shortfall_bytes=GIB // 4))))
    assert first is not None
    made = tried(first.change, round(first.gain_bytes))
    ResultSet(result_set).write(made["run_id"], made, [], [])
    assert main(["diagnose", str(result_set), "--run", "p-r0-1"]) == 0
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith(f"  {first.change} "))
    assert " failed " in line and "measured: failed, no_kv_memory" in line
    head = next((line for line in text.splitlines() if line.startswith("smallest change")), "")
    assert not head.startswith(f"smallest change predicted to work: {first.change} (")
    main(["diagnose", str(result_set), "--run", "p-r0-1", "--json"])
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["smallest_change"] != first.overrides() and answer["measured_to_work"] is None
    again = next(one for one in answer["rungs"] if one["settings"] == dict(first.settings))
    assert not again["works"]


def test_the_headline_names_what_was_measured_to_work(result_set, capsys):
    from bench.record.store import ResultSet

    working = [rung for rung in ladder(Case.of_row(row(shortfall_bytes=GIB // 4))) if rung.works]
    last = working[-1]
    for number, (change, columns) in enumerate([
        (working[0].change, {}), (last.change, {"status": "ok", "failure_cause": None, "shortfall_bytes": None}),
    ], 1):  # fmt: skip
        made = tried(change, 0, number, **columns)
        ResultSet(result_set).write(made["run_id"], made, [], [])
    assert main(["diagnose", str(result_set), "--run", "p-r0-1"]) == 0
    text = capsys.readouterr().out
    assert f"change measured to work: {last.change} (a name; a cost)" in " ".join(text.split())
    assert "predicted to work:" not in text
    main(["diagnose", str(result_set), "--run", "p-r0-1", "--json"])
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["measured_to_work"] == last.change


def test_a_pruned_row_did_not_fail_at_unknown():
    from analysis.diagnose.render import text
    from analysis.diagnose.walked import Answer

    pruned = row(status="pruned", failure_phase="unknown", failure_cause="cannot_fit", shortfall_bytes=GIB)
    said = text(Case.of_row(pruned), Answer([], []))
    assert "pruned before the start: cannot_fit, 1.00 GiB short" in said and "failed at" not in said
