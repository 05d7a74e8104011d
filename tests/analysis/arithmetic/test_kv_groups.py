"""Pools that serve layers with and without windows: by hand, and against vLLM's own planner."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.arithmetic import KVLayer, KVPlan, MalformedConfig, kv_bytes_per_block, kv_capacity, kv_layers, kv_plan

PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text())
GEMMA = PUBLISHED["google/gemma-3-27b-it"]["config"]
OSS = PUBLISHED["openai/gpt-oss-20b"]["config"]
LITE = PUBLISHED["deepseek-ai/DeepSeek-V2-Lite-Chat"]["config"]
FULL, SLIDING = KVLayer("full", None, 1024), KVLayer("sliding", 512, 1024)


def test_layers_of_a_hybrid() -> None:
    layers = kv_layers(GEMMA)
    assert len(layers) == 62 and layers[0] == KVLayer("sliding", 1024, 2 * 16 * 128 * 2)
    assert [place for place, layer in enumerate(layers) if layer.kind == "full"] == list(range(5, 62, 6))
    oss = kv_layers(OSS, "fp8", 2)
    assert oss[:2] == [KVLayer("sliding", 128, 2 * 4 * 64), KVLayer("full", None, 2 * 4 * 64)]


def test_latent_layers_are_the_same_on_every_rank() -> None:
    assert set(kv_layers(LITE)) == set(kv_layers(LITE, tensor_parallel_size=8)) == {KVLayer("mla", None, 1152)}
    assert set(kv_layers(LITE, "fp8")) == {KVLayer("mla", None, 576)}
    assert set(kv_layers(LITE, "fp8_ds_mla")) == {KVLayer("mla", None, 656)}
    with pytest.raises(MalformedConfig, match="latent"):
        kv_layers(OSS, "fp8_ds_mla")


def test_a_hybrid_pool_is_cut_into_blocks_of_one_group() -> None:
    """10 full and 52 sliding layers: 1 group and 6 groups of up to 10 layers."""
    plan = kv_plan(GEMMA)
    assert [len(group.layers) for group in plan.groups] == [9, 9, 9, 9, 8, 8, 10]
    assert plan.bytes_per_block == kv_bytes_per_block(GEMMA) == 10 * 16 * 8192
    assert kv_plan(GEMMA, hybrid_manager=False).bytes_per_block == 62 * 16 * 8192


def test_a_request_holds_windows_and_what_is_in_flight() -> None:
    plan = KVPlan.of([FULL, SLIDING] * 4, 16)
    assert [group.window for group in plan.groups] == [None, 512] and plan.bytes_per_block == 4 * 16 * 1024
    # 4096 tokens: 256 blocks in the full group, cdiv(511 + 2048, 16) + 1 in the sliding one.
    assert plan.blocks_per_request(4096, 2048) == 256 + 161
    assert plan.blocks_per_request(4096) == 512
    assert plan.full_length_requests(417 * plan.bytes_per_block, 4096, 2048) == 1.0


def test_tokens_of_a_hybrid_follow_from_full_length_requests() -> None:
    pool = 20 * 2**30
    plain = kv_capacity(pool, OSS)
    assert plain.tokens == plain.blocks // 2 * 16
    aware = kv_capacity(pool, OSS, max_model_len=131072, max_num_batched_tokens=8192, batches_in_flight=2)
    per_request = 131072 // 16 + -(-(127 + 16384) // 16) + 1
    assert aware == (plain.blocks, int(plain.blocks / per_request * 131072))
    assert aware.tokens > 1.7 * plain.tokens
    # Where every layer keeps every token, the length changes nothing.
    assert kv_capacity(pool, LITE, max_model_len=8192).tokens == kv_capacity(pool, LITE).tokens


def test_pipeline_ranks_take_their_share_of_every_group() -> None:
    whole = kv_plan(GEMMA)
    ranks = [kv_plan(GEMMA, pipeline_parallel_size=2, pipeline_rank=rank) for rank in (0, 1)]
    assert all(rank.groups == whole.groups for rank in ranks)
    assert all(whole.bytes_per_block // 2 <= rank.bytes_per_block < whole.bytes_per_block for rank in ranks)


def test_impossible_plans() -> None:
    assert KVPlan.of([], 16).blocks(1 << 30) == 0
    for call in (lambda: KVPlan.of([FULL], 0), lambda: KVPlan.of([FULL], 16).blocks(-1),
                 lambda: KVPlan.of([FULL], 16).blocks_per_request(0)):  # fmt: skip
        with pytest.raises(MalformedConfig):
            call()


def mixed(*runs: tuple[int, KVLayer]) -> list[KVLayer]:
    return [layer for count, layer in runs for _ in range(count)]


CASES: dict[str, list[KVLayer]] = {
    "all full": mixed((5, FULL)),
    "all sliding": mixed((5, SLIDING)),
    "latent": mixed((4, KVLayer("mla", None, 1152))),
    "one to one": [SLIDING, FULL] * 6,
    "five to one": ([SLIDING] * 5 + [FULL]) * 3,
    "five to one and two": ([SLIDING] * 5 + [FULL]) * 3 + [SLIDING] * 2,
    "nearly as many": [SLIDING, FULL] * 4 + [SLIDING],
    "half as many again": [FULL] * 4 + [SLIDING] * 6,
    "two windows": [SLIDING, KVLayer("sliding", 256, 1024), FULL] * 3,
    "full layers of two widths": mixed((2, FULL), (3, KVLayer("full", None, 2048))),
    "narrow sliding layers": mixed((4, FULL), (4, KVLayer("sliding", 512, 512))),
    "sliding layers that do not divide": mixed((4, FULL), (4, KVLayer("sliding", 512, 768))),
    "gemma-3-27b": kv_layers(GEMMA),
    "gpt-oss-20b": kv_layers(OSS),
}
PLANNER = """
import json, sys, tempfile, os
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.core.kv_cache_utils import get_kv_cache_capacity, get_kv_cache_configs
from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec, SlidingWindowSpec
request = json.load(open(sys.argv[1]))
folder = tempfile.mkdtemp(dir=os.path.dirname(sys.argv[1]))
json.dump(request["model"], open(folder + "/config.json", "w"))
answers = {}
for disabled in (False, True):
    config = EngineArgs(
        model=folder, skip_tokenizer_init=True, load_format="dummy", dtype="bfloat16", enforce_eager=True,
        max_model_len=4096, max_num_batched_tokens=512, block_size=16, disable_hybrid_kv_cache_manager=disabled,
    ).create_engine_config()
    config.cache_config.block_size, config.cache_config.kv_cache_layout = 16, "LBNHC"
    for name, layers in request["cases"].items():
        specs = {}
        for place, (kind, window, size) in enumerate(layers):
            common = dict(block_size=16, num_kv_heads=1, dtype=torch.uint8)
            if kind == "mla":
                spec = MLAAttentionSpec(head_size=size, **common)
            elif kind == "sliding":
                spec = SlidingWindowSpec(head_size=size // 2, sliding_window=window, **common)
            else:
                spec = FullAttentionSpec(head_size=size // 2, **common)
            specs[f"model.layers.{place}.attn"] = spec
        try:
            made = get_kv_cache_configs(config, [specs], [request["pool_bytes"]])[0]
            tokens, concurrency = get_kv_cache_capacity(config, made)
            answers[f"{name}/{disabled}"] = [made.num_blocks, tokens, concurrency, len(made.kv_cache_groups)]
        except Exception as refusal:
            answers[f"{name}/{disabled}"] = f"{type(refusal).__name__}: {refusal}"[:300]
print(json.dumps({"in_flight": config.max_in_flight_tokens, "answers": answers}))
"""
POOL_BYTES = 3 * 2**30 + 12345


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    tiny = json.loads(Path(__file__).with_name("tiny.json").read_text())["granite"]
    path = tmp_path_factory.mktemp("planner") / "request.json"
    cases = {name: [[one.kind, one.window, one.bytes_per_token] for one in case] for name, case in CASES.items()}
    path.write_text(json.dumps({"model": tiny, "cases": cases, "pool_bytes": POOL_BYTES}))
    done = subprocess.run([sys.executable, "-c", PLANNER, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("disabled", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_vllm_plans_the_same_pool(planned: dict[str, Any], name: str, disabled: bool) -> None:
    """Blocks, groups, printed tokens and full-length requests of vLLM's own `get_kv_cache_configs`."""
    answer = planned["answers"][f"{name}/{disabled}"]
    if name == "two windows" and disabled:
        assert "same window size" in answer, "vLLM has no plan for this one"
        return
    assert not isinstance(answer, str), answer
    plan = KVPlan.of(CASES[name], 16, hybrid_manager=not disabled)
    concurrency = plan.full_length_requests(POOL_BYTES, 4096, planned["in_flight"])
    made = [plan.blocks(POOL_BYTES), int(concurrency * 4096), concurrency, len(plan.groups)]
    assert made == answer
