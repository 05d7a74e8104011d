"""A prediction for people: one aligned table, plain text."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from analysis.estimate import Estimate
from analysis.predict.prediction import GIB, Prediction

if TYPE_CHECKING:
    from analysis.throughput.predict import Speed

_VERDICTS = {"fits": "FITS", "tight": "TIGHT", "does_not_start": "DOES NOT START"}
_WIDTH = 110


def text(p: Prediction) -> str:
    """The whole answer. Sizes in GiB of 2^30 bytes."""
    s = p.settings
    parallel = f", {s.tensor_parallel_size} x tensor parallel" if s.tensor_parallel_size > 1 else ""
    parallel += f", {s.pipeline_parallel_size} x pipeline parallel" if s.pipeline_parallel_size > 1 else ""
    each = " per GPU" if parallel else ""
    weights = "not quantized" if s.quantization == "none" else s.quantization
    lines = [
        f"{p.model} ({p.source}; {weights}) with vLLM {s.version_text} "
        f"on {s.device.name} ({_gib(s.device.total_bytes)} GiB){parallel}",
        "",
        f"{f'GiB{each} (2^30 bytes)':<34}{'value':>11}{'90% interval':>24}   basis",
        _row("weights", Estimate.exact(p.weights_bytes)),
        _row("activation peak", p.activation),
        _row("non-torch", p.non_torch),
    ]
    if s.estimate_in_budget:
        lines.append(_row("CUDA graphs, reserved", p.cuda_graph_estimate))
    given = " (given)" if p.fixed_pool else ""
    lines += [
        _row(f"KV pool{given}", p.kv_pool),
        _row("CUDA graphs, taken", p.cuda_graph),
        _row("context, outside the budget", p.context),
        _row("device peak", p.device_peak),
        "",
        _count("KV tokens", p.kv_cache_tokens, 0),
        _count(f"requests of {s.max_model_len:,} tokens at once", p.full_length_requests, 2),
        f"{'KV bytes per token' + each:<34}{p.kv_bytes_per_token:>11,}",
        "",
        *(_speed(p.speed) if p.speed else ()),
        *_wrapped(f"{_VERDICTS[p.verdict]}: ", p.reason if p.verdict != "fits" else _comfort(p)),
        *_wrapped("settings: ", _settings(p)),
        *_wrapped("basis: ", f"{p.basis}, {p.origin}"),
    ]
    if p.speed:
        lines += _wrapped("basis of the speed: ", f"{p.speed.basis}, {p.speed.origin}")
    for warning in p.warnings:
        lines += _wrapped("warning: ", warning)
    if p.ignored:
        lines += _wrapped("no effect on GPU memory: ", " ".join(dict.fromkeys(p.ignored)))
    return "\n".join(lines) + "\n"


def _speed(s: Speed) -> list[str]:
    """The block on throughput and latency: means, in ms."""
    lines = [f"at {s.load}:", _count("output tokens/s", s.tokens_per_s, 0)]
    if s.ttft is None:
        lines.append(f"{'TTFT, ms':<34}{'grows without end':>17}")
    else:
        lines.append(_time("TTFT, ms", s.ttft))
    if s.tpot is not None:
        lines += [
            _time("TPOT, ms", s.tpot), _time("ITL of a step without prompts, ms", s.itl),
            _time("ITL of a step with prompts, ms", s.itl_prefill),
        ]  # fmt: skip
    if s.ideal_tokens_per_s is not None:
        lines.append(f"{'by the GPU sheet alone, tokens/s':<34}{s.ideal_tokens_per_s:>11,.0f}   (MBU = MFU = 1)")
    limited = {"load": "", "max_num_seqs": ", all that max-num-seqs admits", "kv_capacity": ", all that the KV pool "
               "holds"}[s.limited_by]  # fmt: skip
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in sorted(s.shares.items(), key=_by_share))
    lines += [
        f"{'requests in service':<34}{s.in_service:>11,.1f}{limited}",
        f"{'saturates at, requests/s':<34}{s.most_requests_per_s:>11,.2f}",
        *_wrapped("bound by ", f"{s.bound}; time goes into {shares}"),
        "",
    ]
    return lines


def _by_share(pair: tuple[str, float]) -> float:
    return -pair[1]


def _time(name: str, e: Estimate) -> str:
    ends = [f"{1e3 * end:,.1f}" if end != float("inf") else "no end" for end in (e.low, e.high)]
    return f"{name:<34}{1e3 * e.value:>11,.1f}{' - '.join(ends):>24}   {e.basis}"


def _row(name: str, e: Estimate) -> str:
    interval = "" if e.low == e.high else f"{_gib(e.low)} - {_gib(e.high)}"
    return f"{name:<34}{_gib(e.value):>11}{interval:>24}   {e.basis}"


def _count(name: str, e: Estimate, places: int) -> str:
    interval = "" if e.low == e.high else f"{e.low:,.{places}f} - {e.high:,.{places}f}"
    return f"{name:<34}{e.value:>11,.{places}f}{interval:>24}"


def _comfort(p: Prediction) -> str:
    s = p.settings
    free = s.device.total_bytes - p.device_peak.value
    return (
        f"it starts, serves {p.full_length_requests.value:.1f} requests of {s.max_model_len:,} tokens at once "
        f"and leaves {_gib(free)} GiB of the device"
    )


def _settings(p: Prediction) -> str:
    s = p.settings
    graphs = "eager" if s.enforce_eager else f"graphs {s.cudagraph_mode} of {len(s.capture_sizes)} sizes"
    pool = "" if p.fixed_pool else f" = {_gib(p.budget_bytes)} GiB"
    return (
        f"gpu-memory-utilization {s.gpu_memory_utilization:g}{pool}, max-model-len {s.max_model_len}, "
        f"max-num-seqs {s.max_num_seqs}, max-num-batched-tokens {s.max_num_batched_tokens}, "
        f"block-size {s.block_size}, KV cache {s.kv_cache_dtype}, {graphs}, model runner {s.runner}"
    )


def _wrapped(head: str, body: str) -> list[str]:
    return textwrap.wrap(head + body, _WIDTH, subsequent_indent=" " * min(len(head), 10))


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"
