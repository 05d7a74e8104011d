"""Claims about the size of weights, on the GPU and on disk."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from analysis import arithmetic, catalogue, guide
from analysis.audit.finding import Context, Finding, how, span, within
from analysis.tables.cells import FORMATS, MODELS

GB = guide.GB
_LABELS = dict(FORMATS)


def checks(context: Context) -> Iterator[Finding]:
    yield _formula(context)
    yield from _bytes_per_parameter(context)
    yield _example(context)
    for (size, quantization), said in guide.TABLE.items():
        yield _weights(context, size, quantization, said.weights)
    yield _awq_against_gptq(context)
    yield from _disk()


@cache
def parameters(model: str) -> int:
    """Parameters of a catalogue model, unquantized."""
    return arithmetic.weight_bytes(catalogue.load_model(model).config, dtype="bfloat16").parameters // 2


def _models(size: str) -> list[str]:
    return [model for of, model, _ in MODELS if of == size]


def _formula(context: Context) -> Finding:
    model = "deepseek-coder-33b"
    billions = parameters(model) / 1e9
    as_written = billions * 2 / 1024**3
    right = context.evidence.weights(model, "bf16")
    return Finding(
        "weights-formula", guide.FORMULA, "Weights in GB are parameters in billions x bytes each / 1024^3", "wrong",
        f"{as_written:.1e} GB for DeepSeek-Coder-33B in FP16, computed as written", span([right.value / GB], "GB"),
        "GB", how([right.basis]),
        "Billions of parameters x bytes each is already GB. Only without the billions does / 1024^3 give GiB.",
        right.value / GB, right.value / GB, as_written, as_written, right.run_ids,
    )  # fmt: skip


def _bytes_per_parameter(context: Context) -> Iterator[Finding]:
    for quantization, said in guide.BYTES_PER_PARAMETER.items():
        figures = {model: context.evidence.weights(model, quantization) for _, model, _ in MODELS}
        each = {model: one.value / parameters(model) for model, one in figures.items()}
        most = max(each, key=each.__getitem__)
        plain = quantization == "bf16"
        yield Finding(
            f"bytes-per-parameter-{quantization}", said.section,
            f"{_LABELS[quantization]} takes {said.text().removesuffix(' x')} byte{'' if said.high == 1 else 's'} per "
            "parameter",
            within(list(each.values()), said.low, said.high),
            said.text().removesuffix(" x"), span(list(each.values()), "B per parameter", 3), "B",
            how([one.basis for one in figures.values()]),
            "Two bytes each, and the RoPE table on top." if plain else
            "Scales and zero points come with the weights, and embeddings and head stay 16-bit: the smaller the model "
            f"and the larger its vocabulary, the more that counts (most: {most}).",
            min(each.values()), max(each.values()), said.low, said.high,
            tuple(sorted({name for one in figures.values() for name in one.run_ids})),
        )  # fmt: skip


def _example(context: Context) -> Finding:
    said = guide.EXAMPLE_33B_AWQ_WEIGHTS
    billions = parameters("deepseek-coder-33b") / 1e9
    product = 0.5 * 33
    ours = context.evidence.weights("deepseek-coder-33b", "awq")
    return Finding(
        "example-33b-awq", said.section, "DeepSeek-Coder-33B AWQ takes 18 GB because 0.5 bytes x 33 B parameters is 18",
        "misleading" if within([ours.value / GB], said.low, said.high) == "right" else "wrong",
        f"{said.text()}; its own product is {product:.1f} GB", span([ours.value / GB], "GB"), "GB", how([ours.basis]),
        f"The result is near, its reason is not: {billions:.2f} B parameters take "
        f"{ours.value / parameters('deepseek-coder-33b'):.3f} bytes each.",
        ours.value / GB, ours.value / GB, said.low, said.high, ours.run_ids,
    )  # fmt: skip


def _weights(context: Context, size: str, quantization: str, said: guide.Range) -> Finding:
    figures = {model: context.evidence.weights(model, quantization) for model in _models(size)}
    values = [one.value / GB for one in figures.values()]
    verdict = within(values, said.low, said.high)
    listed = "; ".join(f"{model} {one.value / GB:.2f} GB" for model, one in figures.items())
    return Finding(
        f"weights-{size.lower()}-{quantization}", said.section,
        f"The weights of a {size} model in {_LABELS[quantization]} take {said.text()}", verdict, said.text(),
        span(values, "GB", 2), "GB", how([one.basis for one in figures.values()]),
        f"{listed}." + (" Which model it is matters as much as its class." if verdict == "misleading" else ""),
        min(values), max(values), said.low, said.high,
        tuple(sorted({name for one in figures.values() for name in one.run_ids})),
    )  # fmt: skip


def _awq_against_gptq(context: Context) -> Finding:
    awq, gptq = guide.TABLE["33B", "awq"].weights, guide.TABLE["33B", "gptq"].weights
    low, high = awq.low - gptq.high, awq.high - gptq.low
    pairs = [(context.evidence.weights(model, "awq"), context.evidence.weights(model, "gptq"))
             for model in _models("33B")]  # fmt: skip
    values = [(one.value - other.value) / GB for one, other in pairs]
    return Finding(
        "awq-against-gptq-weights", awq.section, "At 33B, AWQ weights are 2 to 5 GB larger than GPTQ weights",
        within(values, low, high), f"{low:g} to {high:g} GB", span(values, "GB", 2), "GB",
        how([one.basis for pair in pairs for one in pair]),
        "Both hold 4 bits a weight with scales and zero points for groups of 128; the same tensors in another order.",
        min(values), max(values), low, high, tuple(sorted({name for pair in pairs for one in pair
                                                            for name in one.run_ids})),
    )  # fmt: skip


def _disk() -> Iterator[Finding]:
    for size, said in guide.DISK_GB.items():
        sizes = {}
        for model in _models(size):
            for quantization in ("awq", "gptq"):
                shape = catalogue.compose(catalogue.load_model(model), catalogue.load_quantization(quantization))
                sizes[f"{model} {quantization}"] = arithmetic.checkpoint_bytes(shape) / GB
        values = list(sizes.values())
        yield Finding(
            f"disk-{size.lower()}-4-bit", said.section, f"A {size} 4-bit checkpoint takes {said.text()} on disk",
            within(values, said.low, said.high), said.text(), span(values, "GB", 2), "GB", "arithmetic",
            "; ".join(f"{name} {value:.2f} GB" for name, value in sizes.items()) + ".",
            min(values), max(values), said.low, said.high,
        )  # fmt: skip
