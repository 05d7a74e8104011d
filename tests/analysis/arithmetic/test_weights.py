"""Weights: what a tensor list promises, tensor and pipeline parallelism, refusals."""

from __future__ import annotations

import random
from math import prod
from typing import Any

import pytest

from analysis import catalogue
from analysis.arithmetic import (
    ARCHITECTURES,
    MalformedConfig,
    UnknownArchitecture,
    UnsupportedPartition,
    UnsupportedQuantization,
    kv_bytes_per_token,
    weight_bytes,
    weight_tensors,
)
from analysis.arithmetic.parallel import Shard
from analysis.arithmetic.weights import parse_version

LLAMA = catalogue.load_model("llama-3.1-8b").config
MIXTURE = catalogue.load_model("qwen3-30b-a3b").config
AWQ = catalogue.load_quantization("awq").config
GPTQ = catalogue.load_quantization("gptq").config


def random_config(seed: int) -> dict[str, Any]:
    """A valid small shape of a random architecture; every dimension splits over 4 ranks and into groups of
    128."""
    draw = random.Random(seed)
    kv = draw.choice([1, 2, 4])
    size = draw.choice([64, 128])
    heads = 4 * draw.randint(1, 4) * (128 // size)
    config = {
        "architectures": [draw.choice(ARCHITECTURES)],
        "hidden_size": 512 * draw.randint(1, 4),
        "intermediate_size": 512 * draw.randint(1, 6),
        "moe_intermediate_size": 512,
        "num_experts": 8 * draw.randint(1, 4),
        "num_local_experts": 8 * draw.randint(1, 4),
        "shared_expert_intermediate_size": 0,
        "num_hidden_layers": draw.randint(4, 9),
        "num_attention_heads": heads,
        "num_key_value_heads": kv if heads % kv == 0 else 1,
        "head_dim": size,
        "vocab_size": draw.randint(1000, 40000),
        "max_position_embeddings": draw.choice([2048, 8192]),
        "tie_word_embeddings": draw.random() < 0.5,
        "attention_bias": draw.random() < 0.5,
    }
    name = config["architectures"][0]
    if name in ("Qwen2ForCausalLM", "Qwen2MoeForCausalLM", "GraniteMoeForCausalLM"):
        config["head_dim"] = None
        config["hidden_size"] = heads * size
    if name == "GptOssForCausalLM":
        config["rope_scaling"] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    if name.startswith("Deepseek"):
        config |= {
            "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
            "q_lora_rank": draw.choice([None, 256]), "n_routed_experts": 8, "n_shared_experts": draw.choice([1, 2]),
            "first_k_dense_replace": draw.randint(0, 2), "topk_method": draw.choice(["greedy", "noaux_tc"]),
        }  # fmt: skip
    if name == "Gemma3ForConditionalGeneration":
        tower = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4}
        return {"architectures": [name], "text_config": config, "vision_config": tower}
    return config


def text(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("text_config", config)


SEEDS = range(40)
STACKS = {f"{stack}_{leaf}" for stack in ("w13", "w2") for leaf in ("weight", "qweight", "weight_packed")}
REPLICATED = {"fused_qkv_a_proj", "kv_a_proj_with_mqa", "shared_expert_gate", "patch_embedding", "position_embedding"}
MATRICES = {"weight", "qweight", "weight_packed"} | STACKS


@pytest.mark.parametrize("seed", SEEDS)
def test_names_are_unique_and_sizes_positive(seed: int) -> None:
    made = weight_tensors(random_config(seed), dtype="bfloat16")
    assert len({t.name for t in made}) == len(made)
    assert all(t.bytes > 0 and t.group for t in made)


@pytest.mark.parametrize("seed", SEEDS)
def test_totals_are_the_sum_of_the_tensors(seed: int) -> None:
    config = random_config(seed)
    made = weight_tensors(config, dtype="float16")
    total = weight_bytes(config, dtype="float16")
    assert total.parameters == sum(t.bytes for t in made if t.kind == "parameter")
    assert total.buffers == sum(t.bytes for t in made if t.kind == "buffer")
    assert sum(total.by_group.values()) == total.total
    assert total.total <= total.allocator_rounded <= total.total + len(made) * 2**20


@pytest.mark.parametrize("seed", SEEDS)
def test_float32_takes_twice_the_bytes_of_its_tensors(seed: int) -> None:
    config = random_config(seed)
    half = {t.name: t.bytes for t in weight_tensors(config, dtype="bfloat16") if t.dtype == "bfloat16"}
    full = {t.name: t.bytes for t in weight_tensors(config, dtype="float32") if t.name in half}
    assert full == {name: 2 * size for name, size in half.items()}


@pytest.mark.parametrize("quantization", ["none", "awq", "gptq", "int8-w8a8", "fp8", "fp8-block", "w4a16"])
@pytest.mark.parametrize("seed", range(12))
def test_tensor_parallelism_splits_the_matrices_and_nothing_else(seed: int, quantization: str) -> None:
    config = random_config(seed)
    block = None if quantization == "none" else catalogue.load_quantization(quantization).config
    tp = 4
    whole = {t.name: t for t in weight_tensors(config, dtype="bfloat16", quantization_config=block)}
    part = {
        t.name: t
        for t in weight_tensors(config, dtype="bfloat16", quantization_config=block, tensor_parallel_size=tp)
    }
    assert whole.keys() == part.keys()
    replicated_kv = text(config)["num_key_value_heads"] < tp
    for name, tensor in whole.items():
        share = prod(part[name].shape) / prod(tensor.shape) if tensor.shape else 1.0
        leaf, owner = name.rsplit(".", 1)[-1], name.rsplit(".", 2)[-2]
        if "norm" in name or tensor.kind == "buffer" or leaf == "weight_shape" or tensor.group == "kv_scales":
            assert share == 1.0, name
        elif owner in ("embed_tokens", "embedding", "lm_head"):
            # The padded vocabulary, split.
            assert part[name].shape[0] * tp == tensor.shape[0], name
        elif leaf in MATRICES and owner == "qkv_proj":
            assert (share > 1 / tp) if replicated_kv and tensor.group != "vision" else share == 1 / tp, name
        elif owner in REPLICATED:
            assert share == 1.0, name
        elif leaf in MATRICES and owner not in ("gate", "router"):
            assert share == 1 / tp, name
        else:
            assert 1 / tp <= share <= 1, name


@pytest.mark.parametrize("seed", SEEDS)
def test_pipeline_ranks_hold_every_layer_once(seed: int) -> None:
    config = random_config(seed)
    whole = {t.name for t in weight_tensors(config, dtype="bfloat16")}
    layers = {name for name in whole if ".layers." in name and "rotary" not in name and "vision" not in name}
    for pp in (2, 3, 4):
        ranks = [
            {
                t.name
                for t in weight_tensors(
                    config, dtype="bfloat16", pipeline_parallel_size=pp, pipeline_rank=rank
                )
            }
            for rank in range(pp)
        ]
        held = [name for rank in ranks for name in rank if name in layers]
        assert sorted(held) == sorted(layers)
        tables = [sum("cos_sin_cache" in name for name in rank) for rank in ranks]
        assert all(1 <= count <= ("Gemma3" in config["architectures"][0]) + 1 for count in tables)


def test_spare_layers_go_to_the_ranks_before_the_last() -> None:
    """The last rank already carries the head, so vLLM fills up from the one before it."""

    def counts(layers: int, pp: int) -> list[int]:
        return [len(Shard(1, pp, rank).layers(layers)) for rank in range(pp)]

    assert counts(32, 3) == [11, 11, 10]
    assert counts(62, 4) == [15, 16, 16, 15]
    assert counts(36, 4) == [9, 9, 9, 9]


@pytest.mark.parametrize(
    ("scaling", "rows"),
    [
        (None, 16384),
        ({"type": "linear", "factor": 4.0}, 65536),
        ({"rope_type": "linear", "factor": 2.5}, 40960),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        ({"rope_type": "dynamic", "factor": 2.0}, 16384),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}, 16384),
    ],
)
def test_the_rope_table(scaling: dict[str, Any] | None, rows: int) -> None:
    config = {**LLAMA, "max_position_embeddings": 16384, "rope_scaling": scaling}
    tables = [t for t in weight_tensors(config, dtype="bfloat16") if t.name.endswith("cos_sin_cache")]
    assert [(t.shape, t.dtype, t.kind) for t in tables] == [((rows, 128), "bfloat16", "buffer")]


def test_tied_embeddings_have_one_table() -> None:
    tied = {**LLAMA, "tie_word_embeddings": True}
    saved = weight_bytes(LLAMA, dtype="bfloat16").parameters - weight_bytes(tied, dtype="bfloat16").parameters
    assert saved == 128256 * 4096 * 2
    last = weight_tensors(tied, dtype="bfloat16", pipeline_parallel_size=2, pipeline_rank=1)
    assert [t.name for t in last if "embed" in t.name] == ["model.embed_tokens.weight"]


def test_the_vocabulary_is_padded_to_64() -> None:
    sizes = {64: 64, 65: 128, 128256: 128256, 151936: 151936, 32001: 32064}
    for declared, held in sizes.items():
        made = weight_tensors({**LLAMA, "vocab_size": declared}, dtype="bfloat16")
        assert next(t for t in made if t.name == "lm_head.weight").shape == (held, 4096)


def test_max_model_len_changes_nothing() -> None:
    assert weight_tensors(LLAMA, max_model_len=128) == weight_tensors(LLAMA)


def test_dtype_follows_the_config_and_auto_avoids_float32() -> None:
    def held(**options: Any) -> str:
        return weight_tensors({**LLAMA, **options.pop("config", {})}, **options)[0].dtype

    assert held(config={"torch_dtype": "float16"}) == "float16"
    assert held(config={"dtype": "bfloat16"}) == "bfloat16"
    assert held(config={"torch_dtype": "float32"}) == "bfloat16"
    assert held(config={"torch_dtype": "float16"}, dtype="torch.bfloat16") == "bfloat16"
    assert held(dtype="float32") == "float32"


def test_gptq_holds_an_order_tensor_before_0_30() -> None:
    old = weight_tensors(LLAMA, dtype="float16", quantization_config=GPTQ, vllm_version="0.29.0")
    new = weight_tensors(LLAMA, dtype="float16", quantization_config=GPTQ, vllm_version="0.30.0")
    order = [t for t in old if t.name.endswith(".g_idx")]
    assert len(order) == 32 * 4 and {t.name for t in old} - {t.name for t in new} == {t.name for t in order}
    assert sum(t.bytes for t in order) == 32 * (3 * 4096 + 14336) * 4


def test_expert_tensors_of_old_versions() -> None:
    """0.25 keeps order and sort indices and half-wide zero points; biases came with 0.26 or 0.27."""

    def expert_leaves(version: str) -> dict[str, str]:
        made = weight_tensors(MIXTURE, dtype="float16", quantization_config=GPTQ, vllm_version=version)
        return {t.name.rsplit(".", 1)[-1]: t.dtype for t in made if ".layers.0.mlp.experts" in t.name}

    assert expert_leaves("0.25.1")["w13_qzeros"] == "float16" and "w13_bias" not in expert_leaves("0.25.1")
    assert expert_leaves("0.27.1")["w2_qzeros"] == "int32" and "w2_bias" in expert_leaves("0.27.1")
    assert "w2_g_idx_sort_indices" in expert_leaves("0.29.0") and "w2_g_idx" not in expert_leaves("0.30.0")


@pytest.mark.parametrize(
    ("version", "parsed"), [("0.32.0+cpu", (0, 32, 0)), ("0.25.1rc2.dev3", (0, 25, 1)), ("1.0", (1, 0))]
)
def test_versions(version: str, parsed: tuple[int, ...]) -> None:
    assert parse_version(version) == parsed


def test_a_version_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="'newest'"):
        parse_version("newest")


def test_an_unknown_architecture_is_named_and_the_known_listed() -> None:
    with pytest.raises(UnknownArchitecture) as refusal:
        weight_tensors({**LLAMA, "architectures": ["FalconForCausalLM"]})
    assert refusal.value.named == "FalconForCausalLM" and refusal.value.known == ARCHITECTURES
    assert "FalconForCausalLM" in str(refusal.value) and "Qwen3MoeForCausalLM" in str(refusal.value)


@pytest.mark.parametrize(
    "field",
    ["architectures", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
     "vocab_size", "max_position_embeddings"],
)  # fmt: skip
def test_a_missing_field_is_named(field: str) -> None:
    for absent in ({key: v for key, v in LLAMA.items() if key != field}, {**LLAMA, field: None}):
        with pytest.raises(MalformedConfig, match="is missing") as refusal:
            weight_tensors(absent)
        assert refusal.value.field == field and repr(field) in str(refusal.value)


@pytest.mark.parametrize("field", ["head_dim", "num_experts", "moe_intermediate_size", "num_key_value_heads"])
def test_a_missing_field_of_a_mixture_is_named(field: str) -> None:
    with pytest.raises(MalformedConfig) as refusal:
        weight_tensors({key: v for key, v in MIXTURE.items() if key != field})
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"hidden_size": "4096"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 4096.5}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({"num_attention_heads": 30, "hidden_size": 4096}, "hidden_size"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"rope_scaling": {"type": "mystery", "factor": 2.0}}, "rope_scaling"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"torch_dtype": "int8"}, "torch_dtype"),
        ({"torch_dtype": 16}, "torch_dtype"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"partial_rotary_factor": 2.0}, "partial_rotary_factor"),
    ],
)
def test_a_field_that_cannot_be_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(MalformedConfig) as refusal:
        weight_tensors({**LLAMA, "torch_dtype": "bfloat16", **change})
    assert refusal.value.field == field


def test_a_config_that_is_no_object() -> None:
    with pytest.raises(MalformedConfig, match="not an object"):
        kv_bytes_per_token([LLAMA])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tensor_parallel_size": 3}, "num_attention_heads = 32"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size is 0"),
        ({"pipeline_parallel_size": 40}, "num_hidden_layers = 32"),
        ({"pipeline_parallel_size": 2, "pipeline_rank": 2}, "ranks 0 to 1"),
    ],
)
def test_a_split_that_does_not_divide_is_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(UnsupportedPartition, match=said):
        weight_tensors(LLAMA, **options)


def test_groups_that_a_shard_would_cut_are_refused() -> None:
    narrow = {**LLAMA, "intermediate_size": 14336 + 64}
    with pytest.raises(UnsupportedPartition, match="groups of 128"):
        weight_tensors(narrow, dtype="float16", quantization_config=AWQ)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes' is not known; known are .*awq"),
        ({}, None),
        ({"bits": 4}, "quant_method None"),
        ({"quant_method": "awq", "group_size": 128}, "'bits' is missing"),
        ({"quant_method": "awq", "bits": 3, "group_size": 128}, "bits = 3"),
        ({"quant_method": "awq", "bits": 4, "group_size": 0}, "group_size = 0"),
        ({"quant_method": "gptq", "bits": 2, "group_size": 128}, "bits = 2"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "lm_head": True}, "lm_head"),
        ({"quant_method": "fp8", "activation_scheme": "maybe"}, "activation_scheme = 'maybe'"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size"),
        ({"quant_method": "compressed-tensors"}, "'config_groups' is missing"),
        (
            {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized",
             "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "float"}}}},
            "nvfp4-pack-quantized",
        ),
    ],
)  # fmt: skip
def test_a_quantization_without_a_layout_is_refused(block: dict[str, Any], said: str | None) -> None:
    if said is None:  # an empty block is none
        assert weight_tensors(LLAMA, dtype="float16", quantization_config=block) == weight_tensors(
            LLAMA, dtype="float16"
        )
        return
    with pytest.raises(UnsupportedQuantization, match=said):
        weight_tensors(LLAMA, dtype="float16", quantization_config=block)


def test_the_block_in_config_json_is_used_unless_another_is_given() -> None:
    config = {**LLAMA, "torch_dtype": "float16", "quantization_config": AWQ}
    inherited, plain = weight_bytes(config), weight_bytes(config, quantization_config=None)
    assert inherited == weight_bytes(LLAMA, dtype="float16", quantization_config=AWQ)
    assert plain == weight_bytes(LLAMA, dtype="float16")
