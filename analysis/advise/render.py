"""The advice for people."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from typing import Any

from analysis.advise.ask import Ask, targets
from analysis.advise.candidates import Candidate
from analysis.plan import hardware
from analysis.plan.checkpoints import checkpoint_of
from analysis.predict.prediction import GIB

_WIDTH = 110
_GRADES = {
    "meets": "meets", "likely": "likely", "misses": "misses SLO", "waits": "requests wait", "tight": "tight",
    "does_not_start": "does not start", "unknown": "no prediction",
}  # fmt: skip


def text(order: Sequence[Candidate], why: Sequence[str], ask: Ask, instead: Sequence[str] = ()) -> str:
    """The table of candidates, the steps, the command of the first; where nothing serves, `instead`: what would."""
    known = next((one.prediction for one in order if one.prediction), None)
    load = f"{ask.concurrency} requests at once" if ask.concurrency else f"{ask.rate_per_s:g} requests/s"
    lines = []
    if known is not None:
        device = known.settings.device
        lines.append(
            f"on one {device.name} ({device.total_bytes / GIB:.2f} GiB) with vLLM {known.settings.version_text}: "
            f"{load}, {ask.input_tokens:,} tokens in, {ask.output_tokens:,} out{targets(ask)}"
        )
    lines += ["", _row("model:format", "settings", "peak, GiB", "at once", "tokens/s", "TTFT", "TPOT", "quality", "")]
    for one in order:
        lines.append(_candidate(one).rstrip())
    lines += ["", "how this came about:"]
    for place, step in enumerate(why, start=1):
        lines += textwrap.wrap(f"{place}. {step}", _WIDTH, initial_indent="  ", subsequent_indent="     ")
    first = next((one for one in order if one.grade in ("meets", "likely")), None)
    if first is not None:
        lines += ["", f"  {shlex.join(command(first, ask))}"]
        if note := checkpoint_of(first.model, first.quantization)[1]:
            lines += textwrap.wrap(f"note: {note}", _WIDTH, initial_indent="  ", subsequent_indent="  ")
    else:
        none = "no single change of load, card or format that was tried is predicted to serve it"
        lines += ["", "each of these alone is predicted to serve it:" if instead else none]
        for change in instead:
            lines += textwrap.wrap(change, _WIDTH, initial_indent="  - ", subsequent_indent="    ")
    lines += ["", *textwrap.wrap(_foot(order), _WIDTH)]
    return "\n".join(lines) + "\n"


def command(one: Candidate, ask: Ask) -> list[str]:
    """The words of the `vllm serve` command line of a candidate."""
    words = ["vllm", "serve", checkpoint_of(one.model, one.quantization)[0]]
    if one.quantization == "fp8":
        words += ["--quantization", "fp8"]
    elif dtype := hardware.dtype_flag(one.quantization, ask.gpu):
        words += ["--dtype", dtype]
    words += ["--max-model-len", str(ask.length), "--max-num-seqs", str(one.max_num_seqs)]
    words += ["--max-num-batched-tokens", str(one.max_num_batched_tokens)]
    return words + (["--kv-cache-dtype", one.kv_cache_dtype] if one.kv_cache_dtype != "auto" else [])


def as_json(
    order: Sequence[Candidate], why: Sequence[str], ask: Ask, instead: Sequence[str] = ()
) -> dict[str, Any]:
    """Everything a program may want; sizes in bytes, times in seconds."""
    return {
        "steps": list(why),
        "changes_predicted_to_serve": list(instead),
        "candidates": [
            {
                "model": one.model, "quantization": one.quantization, "max_num_seqs": one.max_num_seqs,
                "max_num_batched_tokens": one.max_num_batched_tokens, "kv_cache_dtype": one.kv_cache_dtype,
                "grade": one.grade, "why": one.why, "quality": one.quality,
                "device_peak_bytes": round(one.prediction.device_peak.value) if one.prediction else None,
                "requests_at_once": round(one.prediction.full_length_requests.value, 2) if one.prediction else None,
                **(one.prediction.speed.fields() if one.prediction and one.prediction.speed else {}),
                # A command is only given for what is predicted to start.
                "command": None if one.grade in ("does_not_start", "unknown") else shlex.join(command(one, ask)),
            }
            for one in order
        ],
    }  # fmt: skip


def _candidate(one: Candidate) -> str:
    name, found = f"{one.model}:{one.quantization}", one.prediction
    kv = " kv fp8" if one.kv_cache_dtype == "fp8" else ""
    settings = f"S={one.max_num_seqs} T={one.max_num_batched_tokens}{kv}"
    quality = "-" if one.quality is None else f"{one.quality:g}"
    if found is None:
        return _row(name, settings, "-", "-", "-", "-", "-", quality, _GRADES[one.grade])
    speed = found.speed
    return _row(
        name, settings, f"{found.device_peak.value / GIB:.1f}", f"{found.full_length_requests.value:.0f}",
        f"{speed.tokens_per_s.value:,.0f}" if speed else "-", _time(speed.ttft if speed else None),
        _time(speed.tpot if speed else None), quality, _GRADES[one.grade],
    )  # fmt: skip


def _row(*cells: str) -> str:
    name, settings, *rest, grade = cells
    return f"{name:<30}{settings:<20}" + "".join(f"{cell:>10}" for cell in rest) + f"  {grade}"


def _time(one: Any) -> str:
    return "-" if one is None else f"{one.value * 1000:,.0f} ms"


def _foot(order: Sequence[Candidate]) -> str:
    bases = {one.prediction.speed.origin for one in order if one.prediction and one.prediction.speed}
    speeds = f"throughput by {', '.join(sorted(bases))}" if bases else "no throughput calibration applies here"
    return (
        "S: max-num-seqs, T: max-num-batched-tokens. at once: full-length requests that the KV cache holds. Memory "
        f"and speed are predictions ({speeds}); `python -m analysis predict` gives their intervals."
    )
