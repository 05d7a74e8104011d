"""The YAML catalogue: complete, self-consistent, readable without Hydra."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from analysis import catalogue
from analysis.arithmetic import UnsupportedPartition, kv_bytes_per_token, weight_bytes

MODELS = catalogue.model_names()
SMALL = [name for name in MODELS if name.startswith("tiny-")]
FORMATS = catalogue.quantization_names()

# Parameters of the base shapes as published (billions).
PUBLISHED = {
    "qwen2.5-0.5b": 0.494, "qwen2.5-1.5b": 1.544, "qwen2.5-7b": 7.616, "qwen2.5-14b": 14.77,
    "qwen2.5-coder-32b": 32.764, "deepseek-coder-33b": 33.343, "mistral-7b": 7.248, "llama-3.1-8b": 8.030,
    "qwen3-8b": 8.191, "qwen3-30b-a3b": 30.532, "codellama-7b": 6.739, "deepseek-v2-lite": 15.706,
    "gemma-2-2b": 2.614, "gemma-2-9b": 9.242, "gemma-2-27b": 27.227, "gemma-3-4b": 4.300, "gemma-3-12b": 12.187,
    "gemma-3-27b": 27.432, "gemma-7b": 8.538, "gpt-oss-20b": 20.915, "granite-3.1-2b": 2.534,
    "granite-3.1-8b": 8.171, "granite-3.3-8b": 8.171, "kimi-dev-72b": 72.706, "qwen2.5-72b": 72.706,
    "llama-3.3-70b": 70.554, "mixtral-8x7b": 46.703, "phi-4": 14.660, "phi-2": 2.780,
}  # fmt: skip


UNALIGNED = {
    (name, fmt)
    for name in ("deepseek-v2-lite", "gemma-3-4b", "gemma-3-12b", "gemma-3-27b", "gpt-oss-20b")
    for fmt in ("awq", "w4a16")
}


def test_every_known_model_is_there() -> None:
    assert set(PUBLISHED) | set(SMALL) == set(MODELS)
    assert len(SMALL) == 5


@pytest.mark.parametrize("name", MODELS)
def test_model_nodes_are_complete(name: str) -> None:
    model = catalogue.load_model(name)
    assert model.source == "config" and model.path is None and model.family
    assert "torch_dtype" not in model.config and "quantization_config" not in model.config
    assert (model.hub_id is None) == (name in SMALL)
    for value in model.config.values():
        assert not (isinstance(value, str) and value.replace(".", "").replace("e-", "").isdigit()), (
            "a number as text"
        )


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_have_the_published_parameter_count(name: str) -> None:
    counted = weight_bytes(catalogue.load_model(name).config, dtype="bfloat16").parameters / 2
    assert counted / 1e9 == pytest.approx(PUBLISHED[name], rel=1e-3)


@pytest.mark.parametrize("name", FORMATS)
def test_quantization_nodes_are_complete(name: str) -> None:
    node = catalogue.load_quantization(name)
    assert node.label and node.dtype in ("float32", "bfloat16", "float16")
    assert (node.config is None) == (node.weight_bits >= 16)
    if node.config is not None:
        assert node.config["quant_method"]
        # Formats whose activations vLLM refuses in float32.
        assert node.dtype != "float32"


def test_small_models_differ_where_it_matters() -> None:
    weights = [weight_bytes(catalogue.load_model(name).config, dtype="float32").total for name in SMALL]
    cache = [kv_bytes_per_token(catalogue.load_model(name).config, dtype="float32") for name in SMALL]
    assert all(20e6 < size < 62e6 for size in weights)
    assert len(set(weights)) == len(SMALL) and len(set(cache)) == len(SMALL)
    for name in SMALL:
        config = catalogue.load_model(name).config
        assert config["num_key_value_heads"] < config["num_attention_heads"]


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_every_pair_composes_and_counts(name: str, fmt: str) -> None:
    node = catalogue.load_quantization(fmt)
    model = catalogue.load_model(name)
    config = catalogue.compose(model, node)
    assert config["torch_dtype"] == node.dtype
    assert config.get("quantization_config") == node.config
    assert "torch_dtype" not in model.config, "composing must not change the catalogue"
    if (name, fmt) in UNALIGNED:
        # vLLM refuses these too: a layer's width is not a multiple of the format's group of 128.
        with pytest.raises(UnsupportedPartition, match="128"):
            weight_bytes(config, dtype=node.dtype)
        return
    size = weight_bytes(config, dtype=node.dtype).parameters
    plain = weight_bytes(model.config, dtype=node.dtype).parameters
    assert size == plain if node.config is None else 0.2 * plain < size < 0.8 * plain


def test_gptq_names_its_layers() -> None:
    """Without names, vLLM before 0.32 builds a plain model from dummy weights."""
    for name in ("gptq", "gptq-int8"):
        named = catalogue.load_quantization(name).config["modules_in_block_to_quantize"][0]
        assert {part.split(".")[-1] for part in named} == {
            "q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj",
            "dense", "fc1", "fc2",
        }  # fmt: skip


def write(folder: Path, text: str) -> Path:
    (folder / "model").mkdir()
    (folder / "model" / "mine.yaml").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "name: other\nhub_id: null\nfamily: x\nsource: config\npath: null\nrevision: null\nconfig: {}\n",
            "'other'",
        ),
        ("name: mine\n", "'config' is missing"),
        ("name: mine\nnmae: mine\n", "'nmae' is not known"),
        ("- 1\n", "not keys and values"),
        ("a: [", "not YAML"),
    ],
)
def test_a_broken_entry_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(catalogue.CatalogueError, match="mine.yaml") as refusal:
        catalogue.load_model("mine", write(tmp_path, text))
    assert said in str(refusal.value)


def test_an_unknown_entry_lists_the_known() -> None:
    with pytest.raises(catalogue.CatalogueError, match="'qwen9' is not in the catalogue.*qwen3-8b"):
        catalogue.load_model("qwen9")
    with pytest.raises(catalogue.CatalogueError, match="int3.*int8-w8a8"):
        catalogue.load_quantization("int3")
    with pytest.raises(catalogue.CatalogueError):
        catalogue.load_model("../quantization/awq")


def test_importing_needs_the_standard_library_only() -> None:
    """Starts in a blink: neither YAML, numpy nor anything heavier is imported."""
    code = (
        "import sys; import analysis.catalogue, analysis.arithmetic; "
        "own = {n.split('.')[0] for n in sys.modules} - set(sys.stdlib_module_names); print(sorted(own))"
    )
    root = Path(catalogue.__file__).parent.parent
    shown = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert set(eval(shown.stdout)) <= {"__main__", "analysis"}
