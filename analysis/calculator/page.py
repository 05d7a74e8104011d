"""The calculator as a section of the report, and as a page of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from analysis.calibration import Calibration
from analysis.report.fragment import Fragment

ANCHOR = "calculator"
SCRIPTS = ("defaults.js", "factors.js", "predict.js", "form.js")
"""In the order in which they need each other; together they are one function's body."""
_HERE = Path(__file__).parent


def fragment(models: Iterable[str] | None = None, calibrations: Iterable[Calibration] | None = None) -> Fragment:
    """The section: the arithmetic of `predict` in the browser, for the catalogue's models.

    Needs no result set. `models` are catalogue entries, `calibrations` those to predict with; both default to what
    `predict` has. About 125 KB and 4 s.
    """
    from analysis.calculator.tables import tables
    from analysis.predict.models import PLAIN_DTYPES

    data = {**tables(models, calibrations), "plain": dict(PLAIN_DTYPES)}
    parts = ["const DATA = data;", *map(_read, SCRIPTS)]
    return Fragment(
        ANCHOR, "Calculator", _html(data), style=_read("calculator.css"), script="\n".join(parts), data=data
    )


def standalone(section: Fragment) -> str:
    """One HTML page with nothing but this section; needs no network."""
    from analysis.report import palette

    data = json.dumps(section.data, separators=(",", ":")).replace("<", "\\u003c")
    return (
        _read("standalone.html")
        .replace("/*palette*/", palette.css())
        .replace("/*style*/", section.style)
        .replace("<!--title-->", escape(section.title))
        .replace("<!--section-->", section.html)
        .replace("/*data*/", data)
        .replace("/*script*/", section.script)
    )


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _options(choices: Iterable[tuple[str, str]], chosen: str = "") -> str:
    return "".join(
        f'<option value="{escape(value)}"{" selected" if value == chosen else ""}>{escape(title)}</option>'
        for value, title in choices
    )


def _select(name: str, label: str, flag: str, choices: Iterable[tuple[str, str]], chosen: str, kind: str) -> str:
    return _field(
        name, label, flag,
        f'<select id="calc-{name}" name="{name}" data-field="{name}" data-kind="{kind}" '
        f'data-standard="{escape(chosen)}" aria-describedby="calc-{name}-error">{_options(choices, chosen)}</select>',
    )  # fmt: skip


def _input(name: str, label: str, flag: str, kind: str) -> str:
    mode = {"share": "decimal", "gib": "decimal"}.get(kind, "text")
    return _field(
        name, label, flag,
        f'<input id="calc-{name}" name="{name}" data-field="{name}" data-kind="{kind}" inputmode="{mode}" '
        f'autocomplete="off" spellcheck="false" aria-describedby="calc-{name}-error">',
    )  # fmt: skip


def _field(name: str, label: str, flag: str, control: str) -> str:
    shown = f" <code>{escape(flag)}</code>" if flag else ""
    wide = " c-wide" if name in ("model", "quantization", "gpu") else ""
    return (
        f'<div class="c-field{wide}"><label for="calc-{name}">{escape(label)}{shown}</label>{control}'
        f'<span class="c-error" id="calc-{name}-error" data-error="{name}" role="alert"></span></div>'
    )


def _html(data: dict[str, Any]) -> str:
    models = sorted(((name, model["title"]) for name, model in data["models"].items()), key=lambda one: one[1].lower())
    cards = [*((gpu["name"], gpu["title"]) for gpu in data["gpus"]), ("other", "another GPU: give its memory")]
    first = "qwen2.5-7b" if "qwen2.5-7b" in data["models"] else models[0][0]
    sizes = sorted(next(iter(data["models"].values()))["kv"], key=int)
    kv = [("auto", "auto (as the model)"), *((name, name) for name in data["kv_dtypes"])]
    main = [
        _select("model", "Model", "", models, first, "text"),
        _select("quantization", "Weights as", "", data["quantizations"].items(), "", "text"),
        _select("gpu", "GPU", "", cards, "h100-80gb", "text"),
        _input("gpu_total_gib", "Memory of a GPU, GiB", "", "gib"),
        _select("tensor_parallel_size", "GPUs", "tensor parallel", ((one, one) for one in sizes), "1", "whole"),
        _input("max_num_seqs", "Sequences", "max-num-seqs", "whole"),
        _input("max_model_len", "Longest request", "max-model-len", "length"),
        _input("typical", "Typical request, tokens", "", "whole"),
    ]
    more = [
        _input("max_num_batched_tokens", "Tokens of a step", "max-num-batched-tokens", "whole"),
        _input("gpu_memory_utilization", "Share to fill", "gpu-memory-utilization", "share"),
        _select("kv_cache_dtype", "KV cache", "kv-cache-dtype", kv, "auto", "text"),
        _input("kv_cache_memory_bytes", "Fixed KV pool", "kv-cache-memory-bytes", "whole"),
        _input("block_size", "Tokens of a block", "block-size", "whole"),
        _input("vllm_version", "vLLM version", "", "text"),
        '<div class="c-field"><div class="c-check"><input type="checkbox" id="calc-enforce_eager" name="enforce_eager" '
        'data-field="enforce_eager" aria-describedby="calc-enforce_eager-error"><label for="calc-enforce_eager">No '
        'CUDA graphs <code>enforce-eager</code></label></div><span class="c-error" id="calc-enforce_eager-error" '
        'data-error="enforce_eager" role="alert"></span></div>',
    ]  # fmt: skip
    return _read("calculator.html").replace("<!--main-->", "".join(main)).replace("<!--more-->", "".join(more))
