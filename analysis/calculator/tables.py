"""What the page's calculator knows exactly: weights and KV layout of every catalogue model, and the calibrations.

Everything that needs a model's config.json is worked out here, by the same functions `predict` calls, so that the page
has only sums left to do. Tables run over quantizations and tensor-parallel sizes; a combination that vLLM refuses holds
the sentence of the refusal instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from analysis import arithmetic, calibration, catalogue, defaults, gpus
from analysis.arithmetic.dtypes import SIZE_BYTES, kv_size_bytes, model_dtype
from analysis.arithmetic.errors import ArithmeticRefusal
from analysis.arithmetic.kv_groups import KVPlan
from analysis.arithmetic.weights import DEFAULT_VLLM_VERSION
from analysis.predict.features import dtype_source, features_of, text_config
from analysis.predict.models import PLAIN_DTYPES, Model, resolve, unquantized
from analysis.predict.request import Request, RequestError

TENSOR_PARALLEL_SIZES = (1, 2, 4, 8)
KV_DTYPES = ("bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2")
"""Values of --kv-cache-dtype on offer, beside `auto`."""
PUBLISHED = ""
"""The form a model is published in: what `predict` takes where no quantization is named."""

_MINORS = range(defaults.OLDEST[1], defaults.NEWEST[1] + 1)
_SHAPE = ("architecture", "hidden_size", "intermediate_size", "layers", "vocab_size", "experts",
          "attention_heads", "kv_heads", "head_dim")  # fmt: skip


def offered() -> list[str]:
    """Catalogue models to choose from: all but the tiny ones, which exist to try the harness on a CPU."""
    return [name for name in catalogue.model_names() if not name.startswith("tiny-")]


def tables(
    models: Iterable[str] | None = None, calibrations: Iterable[calibration.Calibration] | None = None
) -> dict[str, Any]:
    """The calculator's data, JSON all through. Sizes in bytes.

    `calibrations` defaults to those that `predict` uses; a CPU's never count. Takes about 4 s for the catalogue.
    Raises RequestError or CalibrationError where the catalogue or a calibration is broken.
    """
    known = calibration.shipped() if calibrations is None else calibrations
    return {
        "vllm_version": DEFAULT_VLLM_VERSION,
        "versions": [list(defaults.OLDEST), list(defaults.NEWEST)],
        "models": {name: _model(name) for name in (offered() if models is None else models)},
        "quantizations": {
            PUBLISHED: "as published", **{name: catalogue.load_quantization(name).label
                                          for name in catalogue.quantization_names()},
        },
        "kv_dtypes": {name: kv_size_bytes(name, "bfloat16") for name in KV_DTYPES},
        "gpus": [
            {"name": gpu.name, "title": gpu.title, "total_bytes": gpu.total_bytes, "nvml_bytes": gpu.nvml_bytes,
             "blackwell": gpu.data_center_blackwell}
            for gpu in gpus.GPUS
        ],
        "calibrations": [_calibration(one) for one in known if one.gpu != "cpu"],
        "term_changes": {term: list(minors) for term, minors in calibration._CHANGES.items()},
        "widening": {
            "extrapolated": calibration._EXTRAPOLATED_SHARE, "borrowed": calibration._BORROWED_SHARE,
            "least": calibration._LEAST_EXTRAPOLATED,
        },
    }  # fmt: skip


def _calibration(one: calibration.Calibration) -> dict[str, Any]:
    groups = {
        term: {
            str(size): {
                "branches": [dict(branch) for branch in group.branches],
                "low": group.low, "high": group.high, "ranges": {k: list(v) for k, v in group.ranges.items()},
                "relative_low": group.relative_low, "relative_high": group.relative_high,
            }
            for size, group in sizes.items()
        }
        for term, sizes in one.groups.items()
    }  # fmt: skip
    return {
        "name": one.name, "kind": one.kind, "source": one.source, "vllm_version": one.vllm_version,
        "runner": one.runner, "gpu": one.gpu, "tensor_parallel_sizes": list(one.tensor_parallel_sizes),
        "groups": groups,
    }  # fmt: skip


def _model(name: str) -> dict[str, Any]:
    entry = catalogue.load_model(name)
    published = resolve(Request(model=name))
    text = text_config(published.config)
    lengths = [defaults.length_limit((0, minor), text) for minor in _MINORS]
    sizes = {"max_num_seqs": 1, "max_num_batched_tokens": 1, "max_model_len": 1}
    features = asdict(features_of(published.config, sizes))
    return {
        "title": entry.hub_id or name,
        "hub_id": entry.hub_id,
        "architecture": features["architecture"],
        "shape": {one: features[one] for one in _SHAPE},
        "lengths": _changes([[limit.default, limit.most] for limit in lengths]),
        "kv": {str(tp): _kv(published, tp) for tp in TENSOR_PARALLEL_SIZES},
        "forms": {form: _form(name, form or None) for form in (PUBLISHED, *catalogue.quantization_names())},
    }


def _changes(values: list[Any]) -> list[list[Any]]:
    """[first minor release, value] wherever the value changes, over `_MINORS`; the first holds for older ones too."""
    found: list[list[Any]] = []
    for minor, value in zip(_MINORS, values, strict=True):
        if not found or found[-1][1] != value:
            found.append([minor if found else 0, value])
    return found


def _form(name: str, quantization: str | None) -> dict[str, Any] | str:
    try:
        model = resolve(Request(model=name, quantization=quantization))
    except RequestError as refused:
        return str(refused)
    dtype = PLAIN_DTYPES.get(quantization or "")
    shape = features_of(
        model.config, {"max_num_seqs": 1, "max_num_batched_tokens": 1, "max_model_len": 1, "dtype": dtype}
    )
    runners = [
        defaults.model_runner(
            (0, minor), shape.architecture, mixture=shape.experts > 0,
            quantized=bool(model.config.get("quantization_config")),
        )
        for minor in _MINORS
    ]  # fmt: skip
    form: dict[str, Any] = {
        "method": shape.quantization,
        "dtype": dtype or model_dtype(dtype_source(model.config)),
        "dtype_bytes": shape.dtype_bytes,
        "kv_element_bytes": SIZE_BYTES[model_dtype(unquantized(model).config, dtype)],
        "notes": list(model.notes),
        "runners": _changes(runners),
        "weights": _weights(model, dtype, "0.30.0"),
    }
    if shape.quantization == "gptq":  # the only tensors that changed between releases
        form["weights_before_0_30"] = _weights(model, dtype, "0.29.0")
    return form


def _weights(model: Model, dtype: str | None, version: str) -> dict[str, int | str]:
    def of(tp: int) -> int:
        return arithmetic.weight_bytes(
            model.config, dtype=dtype, tensor_parallel_size=tp, vllm_version=version
        ).allocator_rounded

    return {str(tp): _or_refusal(of, tp) for tp in TENSOR_PARALLEL_SIZES}


def _or_refusal(of: Callable[[int], Any], tp: int) -> Any:
    try:
        return of(tp)
    except ArithmeticRefusal as refusal:
        return str(refusal)


def _kv(model: Model, tensor_parallel_size: int) -> dict[str, Any] | str:
    """The layout of the KV cache in elements: pages and groups scale with the element's size and the block's."""

    def of(tp: int) -> dict[str, Any]:
        # With one byte per element and one token per block, bytes are elements and groups say their stretch.
        layers = arithmetic.kv_layers(unquantized(model).config, "fp8", tp)
        plan = KVPlan.of(layers, 1)
        groups: dict[tuple[int | None, int], int] = {}
        for group in plan.groups:
            key = (group.window, group.block_tokens)
            groups[key] = groups.get(key, 0) + 1
        return {
            "elements_per_token": sum(layer.bytes_per_token for layer in layers),
            "elements_per_block_token": plan.bytes_per_block,
            "groups": [[window, stretch, count] for (window, stretch), count in groups.items()],
        }

    return _or_refusal(of, tensor_parallel_size)
