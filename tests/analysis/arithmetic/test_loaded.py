"""The load check: catches a model that came out unquantized, accepts what real starts report."""

from __future__ import annotations

import pytest

from analysis import catalogue
from analysis.arithmetic import UnsupportedPartition, check_loaded, expected_loaded_bytes, weight_bytes
from analysis.arithmetic.allocator import MIB, allocated_bytes
from analysis.arithmetic.loaded import TOLERANCE

QUANTIZED = [n for n in catalogue.quantization_names() if catalogue.load_quantization(n).config]


def composed(model: str, quantization: str) -> dict:
    return catalogue.compose(catalogue.load_model(model), catalogue.load_quantization(quantization))


@pytest.mark.parametrize("platform", ["cuda", "cpu"])
@pytest.mark.parametrize("quantization", QUANTIZED)
@pytest.mark.parametrize("model", catalogue.model_names())
def test_a_plain_model_never_passes_as_a_quantized_one(model: str, quantization: str, platform: str) -> None:
    config = composed(model, quantization)
    try:
        expected = expected_loaded_bytes(config, platform=platform)
    except UnsupportedPartition as cut:
        pytest.skip(f"no such checkpoint can be: {cut}")
    plain = expected_loaded_bytes({**config, "quantization_config": None}, platform=platform)
    assert check_loaded(expected.bytes, expected).ok
    found = check_loaded(plain.bytes, expected)
    assert not found.ok and "was not applied" in found.sentence and found.relative_error > 0.1
    # And the other way round: a quantized model where a plain one was asked for.
    assert not check_loaded(expected.bytes, plain).ok


def test_the_known_silent_case() -> None:
    """Qwen2.5-7B GPTQ-Int4 with unnamed layers: 14.19 GiB where 5.20 GiB were expected."""
    expected = expected_loaded_bytes(composed("qwen2.5-7b", "gptq"), platform="cpu")
    found = check_loaded(15239622080, expected)
    assert not found.ok
    assert found.sentence == (
        "gptq was not applied, the weights are those of the unquantized model: "
        "14.19 GiB loaded, 5.20 GiB expected (+173.15%)"
    )


def test_within_tolerance_and_beyond() -> None:
    expected = expected_loaded_bytes(composed("llama-3.1-8b", "w4a16"), vllm_version="0.19.0")
    # The public start measured 5.38 GiB.
    assert check_loaded(int(5.38 * 1024**3), expected).ok
    assert expected.tolerance == TOLERANCE
    assert check_loaded(int(expected.bytes * 1.019), expected).ok
    beyond = check_loaded(int(expected.bytes * 1.03), expected)
    assert not beyond.ok and "tolerance 2.00%" in beyond.sentence and "+3.00%" in beyond.sentence
    assert not check_loaded(0, expected).ok


def test_platforms() -> None:
    config = composed("qwen2.5-7b", "bf16")
    made = weight_bytes(config)
    assert expected_loaded_bytes(config, platform="cpu").bytes == made.total
    assert expected_loaded_bytes(config, platform="cuda").bytes == made.allocator_rounded > made.total


def test_no_quantization_expects_itself() -> None:
    expected = expected_loaded_bytes(composed("tiny-qwen2", "fp32"), platform="cpu")
    assert expected.label == "unquantized" and expected.bytes == expected.unquantized_bytes
    found = check_loaded(expected.bytes // 2, expected)  # bf16 where fp32 was asked for
    assert not found.ok and "not unquantized as asked" in found.sentence


@pytest.mark.parametrize(
    ("sizes", "held"),
    [
        ([1], 512),
        ([0], 0),
        ([512, 513], 512 + 1024),
        ([MIB], MIB),
        # 12.5 MiB: its segment of 14 MiB leaves 1.5, which is cut off and used again.
        ([12 * MIB + MIB // 2], 12 * MIB + MIB // 2),
        # 11.5 MiB: half a MiB of the 12 remains and is charged.
        ([11 * MIB + MIB // 2], 12 * MIB),
        ([10 * MIB], 10 * MIB),
        # Two of 9 MiB share a segment of 20; the third takes a new one; the last finds the 2 MiB that are
        # left.
        ([9 * MIB] * 2, 18 * MIB),
        ([9 * MIB, 9 * MIB, 9 * MIB, 2 * MIB], 29 * MIB),
        ([9 * MIB, 10 * MIB + MIB // 2], 9 * MIB + 11 * MIB),
    ],
)
def test_the_allocator(sizes: list[int], held: int) -> None:
    assert allocated_bytes(sizes) == held
