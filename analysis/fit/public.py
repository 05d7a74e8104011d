"""The public H100 set as starts: llm-d-planner's accuracy study of vLLM v0.19.0 (Apache-2.0), one CSV row per start.

It names models by hub id; their shapes come from config.json files (`--configs`) or from the catalogue, whose formats
stand in for quantized derivatives that the folder does not have.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from analysis import catalogue
from analysis.arithmetic import ArithmeticRefusal, weight_bytes
from analysis.estimate import Features
from analysis.fit.starts import GIB, Origin, Start, kind_of, setting_of, weight_bits, weights_of
from analysis.predict.features import features_of

SOURCE: Final = "llm-d-planner accuracy study, vLLM v0.19.0 starts on H100 80 GB (Apache-2.0)"
ORIGIN: Final = Origin("0.19.0", "v1", "h100-80gb")

NOTES: Final = (
    "every row has max_num_seqs 1024 and max_num_batched_tokens 8192: how the terms follow these two is the formulas' "
    "structure, not measured",
    "rows of pipeline-parallel engines are not fitted to; multimodal models are not fitted to",
    "figures were read from a log with two decimals of a GiB",
)

MAX_NUM_SEQS: Final = 1024
MAX_NUM_BATCHED_TOKENS: Final = 8192
"""That version's defaults on this card, in every row."""


def capture_sizes(largest: int) -> list[int]:
    """Sizes captured up to the largest. The file counts 51 piecewise and 51 full graphs up to 512 tokens, and 83 up to
    1024.
    """
    return [size for size in (1, 2, 4, *range(8, 256, 8), *range(256, 1025, 16)) if size <= largest]


_DERIVED: Final = (
    ("-quantized.w8a8", "int8-w8a8"), ("-quantized.w4a16", "w4a16"), ("-fp8-dynamic", "fp8-dynamic"),
)  # fmt: skip
_MXFP4: Final = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
    ],
}  # fmt: skip
"""The block of gpt-oss' own config.json, which the catalogue keeps apart from shapes."""
_COLUMNS: Final = {
    "activation": "activation_memory_gib", "non_torch": "non_torch_forward_gib",
    "cuda_graph": "cuda_graph_actual_gib", "cuda_graph_estimate": "cuda_graph_estimated_gib",
}  # fmt: skip
_NEEDED: Final = (
    "log_file", "status", "model", "tp", "pp", "dtype", "quantization", "max_model_len", "init_free_memory_gib",
    "init_total_memory_gib", "requested_memory_gib", "weight_memory_gib", "kv_cache_memory_gib",
    "cudagraph_piecewise_largest", *_COLUMNS.values(),
)  # fmt: skip


class PublicDataError(ValueError):
    """The CSV is not the one that is meant; the sentence says what is missing."""


def read(path: Path, configs: Path | None = None, conf: Path = catalogue.CONF) -> list[Start]:
    """Every successful start, those without a known shape too (`refusal` says why). Order of the file.

    Raises PublicDataError if the file cannot be read or lacks a column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as unreadable:
        raise PublicDataError(f"{path} cannot be read: {unreadable}") from None
    if missing := [name for name in _NEEDED if not rows or name not in rows[0]]:
        raise PublicDataError(f"{path} is not the public H100 set: it has no column {missing[0]!r}")
    shapes = Shapes(configs, conf)
    return [start for row in rows if row["status"] == "ok" if (start := _start(row, shapes)) is not None]


class Shapes:
    """config.json by hub id, upper and lower case alike."""

    def __init__(self, configs: Path | None, conf: Path = catalogue.CONF) -> None:
        self._known: dict[str, dict[str, Any]] = {}
        self._conf = conf
        for name in catalogue.model_names(conf):
            model = catalogue.load_model(name, conf)
            if model.hub_id:
                self._known[model.hub_id.lower()] = model.config
        if configs is not None:
            if not configs.is_dir():
                raise PublicDataError(f"{configs} is not a folder of ORG--NAME/config.json")
            for file in sorted(configs.glob("*/config.json")):
                hub_id = file.parent.name.replace("--", "/", 1).lower()
                self._known[hub_id] = json.loads(file.read_text(encoding="utf-8"))

    def find(self, hub_id: str, quantization: str = "None") -> tuple[str, dict[str, Any]] | None:
        """Name of the model whose shape it is, and the config.json; None if the shape is not known."""
        wanted = hub_id.lower()
        for suffix, node in _DERIVED:
            if wanted.endswith(suffix):
                base = self._base(wanted.removesuffix(suffix))
                if base is None:
                    return None
                config = self._known.get(wanted) or self._quantized(self._known[base], node)
                return base, config
        if wanted not in self._known:
            return None
        config = self._known[wanted]
        if quantization == "fp8" and not config.get("quantization_config"):  # quantized as it is loaded
            config = self._quantized(config, "fp8")
        if quantization == "mxfp4" and not config.get("quantization_config"):
            config = {**config, "quantization_config": dict(_MXFP4)}
        return wanted, config

    def _base(self, wanted: str) -> str | None:
        name = wanted.rpartition("/")[2].removeprefix("meta-")
        return next((one for one in sorted(self._known) if one.rpartition("/")[2].removeprefix("meta-") == name), None)

    def _quantized(self, config: Mapping[str, Any], node: str) -> dict[str, Any]:
        block = catalogue.load_quantization(node, self._conf).config
        return {**config, "quantization_config": block}


def _start(row: Mapping[str, str], shapes: Shapes) -> Start | None:
    if not row["model"] or not row["activation_memory_gib"]:
        return None
    found = shapes.find(row["model"], row["quantization"])
    dtype = row["dtype"].removeprefix("torch.")
    tp, pp = int(row["tp"]), int(row["pp"])
    measured = {term: float(row[column]) * GIB for term, column in _COLUMNS.items() if row[column]}
    measured["context"] = (float(row["init_total_memory_gib"]) - float(row["init_free_memory_gib"])) * GIB
    common: dict[str, Any] = {
        "row_id": row["log_file"], "measured": measured, "weights": float(row["weight_memory_gib"]) * GIB,
        "requested": float(row["requested_memory_gib"]) * GIB, "kv_pool": float(row["kv_cache_memory_gib"]) * GIB,
    }  # fmt: skip
    if found is None:
        return Start(
            model=row["model"].lower(), setting="", features=_NO_FEATURES, kind="unknown",
            refusal=f"the shape of {row['model']} is not in the catalogue", **common,
        )  # fmt: skip
    model, config = found
    settings = {
        "max_num_seqs": MAX_NUM_SEQS, "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS,
        "max_model_len": int(row["max_model_len"]), "tensor_parallel_size": tp, "pipeline_parallel_size": pp,
        "cudagraph_capture_sizes": capture_sizes(int(row["cudagraph_piecewise_largest"] or 512)), "dtype": dtype,
    }  # fmt: skip
    features = features_of(config, settings)
    options: dict[str, Any] = {
        "dtype": dtype, "tensor_parallel_size": tp, "pipeline_parallel_size": pp,
        "vllm_version": ORIGIN.vllm_version, "max_model_len": int(row["max_model_len"]),
    }  # fmt: skip
    expected, refusal = weights_of(config, **options)
    return Start(
        model=model, setting=setting_of(features), features=features, kind=kind_of(config, features),
        expected_weights=expected, refusal=refusal, parameters=parameters(config),
        weight_bits=weight_bits(config, features.dtype_bytes), **common,
    )  # fmt: skip


def parameters(config: Mapping[str, Any]) -> int | None:
    """Parameters of the unquantized model, as a person would look them up."""
    try:
        return weight_bytes(config, dtype="bfloat16", quantization_config=None).parameters // 2
    except ArithmeticRefusal:
        return None


def _no_features() -> Features:
    zero: dict[str, Any] = dict.fromkeys(Features.__dataclass_fields__, 0)
    return Features(**{**zero, "architecture": "", "quantization": "", "enforce_eager": False})


_NO_FEATURES: Final = _no_features()
