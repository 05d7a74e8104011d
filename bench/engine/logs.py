"""Reads vLLM's log: the fallback for what the probe and /metrics did not tell.

Patterns were checked against the format strings of vLLM 0.25.1, 0.26.0, 0.32.0 and 0.33.0. They are searched,
not matched, in lines freed of colours and of the `(EngineCore pid=1) INFO 01-02 03:04:05 [core.py:1]` prefix,
so their order does not matter and a log cut anywhere gives what it has. vLLM rounds to 0.01 GiB in most
lines; a figure read here is therefore up to `ROUNDING_BYTES` off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

GIB = 2**30
ROUNDING_BYTES = round(0.005 * GIB)
"""Largest error of a byte figure read from a log."""

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PREFIX = re.compile(
    r"^(?:\((?P<process>[\w.\-/ ]+?) pid=(?P<pid>\d+)\)\s?)?"
    r"(?:(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)\s+"
    r"\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d+)?\s+\[(?P<where>[^\]]*)\]\s?)?"
)
_NUMBER = r"(-?\d[\d,]*(?:\.\d+)?)"
_GIB = rf"{_NUMBER} ?GiB"


@dataclass(frozen=True)
class LogLine:
    """One line without its prefix. `process`, `level` and `where` (`file.py:12`) are empty if it had none."""

    process: str
    pid: int | None
    level: str
    where: str
    text: str


@dataclass
class LogFacts:
    """What a log says. Byte fields come from GiB with two decimals unless the comment says exact; seconds are
    floats.

    With several ranks a field holds the largest value, `weights_by_rank_bytes` all of them.
    """

    vllm_version: str | None = None
    model_runner: str | None = None
    weights_bytes: int | None = None
    weights_by_rank_bytes: list[int] = field(default_factory=list)
    load_s: float | None = None
    weights_read_s: float | None = None
    load_peak_bytes: int | None = None
    available_kv_cache_bytes: int | None = None
    kv_cache_fixed_bytes: int | None = None
    kv_cache_tokens: int | None = None
    max_concurrency: float | None = None
    max_concurrency_tokens: int | None = None
    num_gpu_blocks_profiled: int | None = None
    num_gpu_blocks_override: int | None = None
    cuda_graph_estimate_bytes: int | None = None
    cuda_graph_bytes: int | None = None
    graph_capture_s: float | None = None
    activation_peak_with_graphs_bytes: int | None = None  # 0.32 and later: includes the graph estimate
    activation_peak_bytes: int | None = None
    non_torch_bytes: int | None = None
    total_consumed_bytes: int | None = None
    suggested_kv_cache_bytes: int | None = None  # exact
    init_free_bytes: int | None = None
    init_total_bytes: int | None = None
    requested_bytes: int | None = None
    gpu_memory_utilization: float | None = None
    profile_s: float | None = None
    compile_s: float | None = None
    init_engine_s: float | None = None
    attention_backend: str | None = None
    linear_kernels: list[str] = field(default_factory=list)
    moe_backends: list[str] = field(default_factory=list)
    arguments: str | None = None
    warnings: list[str] = field(default_factory=list)


def clean_lines(text: str | bytes) -> Iterator[LogLine]:
    """The lines of a log without colours and prefixes. Bytes that are no UTF-8 become replacement
    characters.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    for raw in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        line = _ANSI.sub("", raw).rstrip()
        prefix = _PREFIX.match(line)
        if prefix is None or not prefix.group(0):
            yield LogLine("", None, "", "", line)
            continue
        pid = prefix["pid"]
        yield LogLine(
            prefix["process"] or "", int(pid) if pid else None, prefix["level"] or "", prefix["where"] or "",
            line[prefix.end() :],
        )  # fmt: skip


def _bytes(gib: str) -> int:
    return round(float(gib.replace(",", "")) * GIB)


def _count(digits: str) -> int:
    return int(digits.replace(",", ""))


def _largest(facts: LogFacts, name: str, value: Any) -> None:
    known = getattr(facts, name)
    setattr(facts, name, value if known is None else max(known, value))


def _weights(facts: LogFacts, found: re.Match[str]) -> None:
    facts.weights_by_rank_bytes.append(_bytes(found[1]))
    _largest(facts, "weights_bytes", _bytes(found[1]))
    _largest(facts, "load_s", float(found[2]))


def _usage(facts: LogFacts, found: re.Match[str]) -> None:
    """The summary of the budget; its terms changed meaning between 0.26 and 0.32."""
    first, kind, activation, non_torch, graphs = found.groups()
    if kind == "weight":
        _largest(facts, "weights_bytes", _bytes(first))
        _largest(facts, "activation_peak_bytes", _bytes(activation))
    else:
        _largest(facts, "total_consumed_bytes", _bytes(first))
        _largest(facts, "activation_peak_with_graphs_bytes", _bytes(activation))
    if non_torch is not None:
        _largest(facts, "non_torch_bytes", _bytes(non_torch))
    _largest(facts, "cuda_graph_bytes", _bytes(graphs))


def _startup_memory(facts: LogFacts, found: re.Match[str]) -> None:
    facts.init_free_bytes, facts.init_total_bytes = _bytes(found[1]), _bytes(found[2])
    facts.gpu_memory_utilization, facts.requested_bytes = float(found[3]), _bytes(found[4])


def _profiled(facts: LogFacts, found: re.Match[str]) -> None:
    facts.profile_s = float(found[1])
    _largest(facts, "weights_bytes", _bytes(found[5]))
    old = found[3].startswith("non-torch")
    _largest(facts, "non_torch_bytes" if old else "total_consumed_bytes", _bytes(found[4]))
    if old:  # later versions charge the transient headroom instead of this increase
        _largest(facts, "activation_peak_bytes", _bytes(found[2]))


def _graph_pool(facts: LogFacts, found: re.Match[str]) -> None:
    _largest(facts, "cuda_graph_bytes", _bytes(found[1]))
    _largest(facts, "cuda_graph_estimate_bytes", _bytes(found[2]))


def _captured(facts: LogFacts, found: re.Match[str]) -> None:
    # Estimating captures a few graphs too and prints the same line: the real capture is the last one.
    facts.graph_capture_s, facts.cuda_graph_bytes = float(found[1]), _bytes(found[2])


def _blocks(facts: LogFacts, found: re.Match[str]) -> None:
    facts.num_gpu_blocks_profiled, facts.num_gpu_blocks_override = int(found[1]), int(found[2])


def _concurrency(facts: LogFacts, found: re.Match[str]) -> None:
    facts.max_concurrency_tokens, facts.max_concurrency = _count(found[1]), float(found[2])


def _kernel(facts: LogFacts, found: re.Match[str]) -> None:
    entry = f"{found[2]}: {found[1]}"
    if entry not in facts.linear_kernels:
        facts.linear_kernels.append(entry)


def _moe(facts: LogFacts, found: re.Match[str]) -> None:
    entry = f"{found[2].strip()}: {found[1]}" if found[2].strip() else found[1]
    if entry not in facts.moe_backends:
        facts.moe_backends.append(entry)


def _attention(facts: LogFacts, found: re.Match[str]) -> None:
    facts.attention_backend = facts.attention_backend or found[1]


def _store(name: str, convert: Callable[[str], Any]) -> Callable[[LogFacts, re.Match[str]], None]:
    return lambda facts, found: _largest(facts, name, convert(found[1]))


def _once(name: str, convert: Callable[[str], Any] = str) -> Callable[[LogFacts, re.Match[str]], None]:
    def keep_first(facts: LogFacts, found: re.Match[str]) -> None:
        if getattr(facts, name) is None:
            setattr(facts, name, convert(found[1]))

    return keep_first


_PATTERNS: tuple[tuple[re.Pattern[str], Callable[[LogFacts, re.Match[str]], None]], ...] = tuple(
    (re.compile(pattern), action)
    for pattern, action in (
        (r"Initializing a V1 LLM engine \(v([^)\s]+)\)", _once("vllm_version")),
        (r"█.*\bversion (\d+\.\d+\S*)$", _once("vllm_version")),
        (r"Using (V2) Model Runner", _once("model_runner", str.lower)),
        (r"Model Runner V2 .*using the (V1) model runner instead", _once("model_runner", str.lower)),
        (r"non-default args: (\{.*)", _once("arguments")),
        # The V2 runner of 0.25.1 and 0.26.0 lacks the word "memory".
        (rf"Model loading took {_GIB}(?: memory)? and {_NUMBER} seconds", _weights),
        (rf"Loading weights took {_NUMBER} seconds", _store("weights_read_s", float)),
        (rf"Peak GPU memory after loading weights: {_GIB}", _store("load_peak_bytes", _bytes)),
        (rf"Available KV cache memory: {_GIB}", _store("available_kv_cache_bytes", _bytes)),
        (r"KV cache size: ([\d,]+) tokens", _store("kv_cache_tokens", _count)),
        (rf"Maximum concurrency for ([\d,]+) tokens per request: {_NUMBER}x", _concurrency),
        (rf"Estimated CUDA graph memory: {_GIB} total", _store("cuda_graph_estimate_bytes", _bytes)),
        (rf"Graph capturing finished in {_NUMBER} secs, took {_GIB}", _captured),
        (rf"CUDA graph pool memory: {_GIB} \(actual\), {_GIB} \(estimated\)", _graph_pool),
        (
            rf"Actual usage is {_GIB} for (weight|consumed memory \(weights \+ non-torch\)), {_GIB} for peak "
            rf"activation,(?: {_GIB} for non-torch memory,)? and {_GIB} for CUDAGraph memory",
            _usage,
        ),
        (r"--kv-cache-memory=(-?\d+)", _once("suggested_kv_cache_bytes", int)),
        (
            rf"Free memory on device \({_NUMBER}/{_NUMBER} GiB\) on startup\. "
            rf"Desired GPU memory utilization is \({_NUMBER}, {_GIB}\)",
            _startup_memory,
        ),
        (rf"Initial free memory:? {_GIB}", _once("init_free_bytes", _bytes)),
        (rf"Requested memory: {_NUMBER} \(util\), {_GIB}",
         lambda facts, found: setattr(facts, "requested_bytes", _bytes(found[2]))),
        (
            rf"Memory profiling takes {_NUMBER} seconds\. Total non KV cache memory: [-\d.]+GiB; torch peak "
            rf"memory increase: {_NUMBER}GiB; "
            rf"(non-torch forward increase memory|total consumed \(from mem_get_info\)): {_NUMBER}GiB; "
            rf"weights memory: {_NUMBER}GiB",
            _profiled,
        ),
        (rf"reserved {_GIB} memory for KV Cache as specified by kv_cache_memory_bytes",
         _store("kv_cache_fixed_bytes", _bytes)),
        (rf"Explicitly set \({_NUMBER}/{_NUMBER}\) GiB for KV cache on node",
         _store("kv_cache_fixed_bytes", _bytes)),
        (rf"Auto set \({_NUMBER}/{_NUMBER}\) GiB for KV cache on node",
         _store("available_kv_cache_bytes", _bytes)),
        (r"Overriding num_gpu_blocks=(\d+) with num_gpu_blocks_override=(\d+)", _blocks),
        (rf"torch\.compile took {_NUMBER} s in total", _store("compile_s", float)),
        (rf"init engine \(profile, create kv cache, warmup model\) took {_NUMBER} s",
         _store("init_engine_s", float)),
        (r"Using (\w+) for ((?:AutoAWQ|AutoGPTQ|CompressedTensors)\w*)", _kernel),
        (r"Selected (\w+) for (\w+)$", _kernel),
        (r"Using (\w+) for (mixed-precision linear|(?:MX|NV)FP\d+ GEMM)", _kernel),
        (r"Using (\w+) (?:attention )?backend out of potential backends", _attention),
        (r"Using ((?:AMX|CPU)_\w+) backend\.", _attention),
        (r"Using AttentionBackendEnum\.(\w+) backend", _attention),
        (r"Using '?(\w+)'? ([\w ]*)MoE backend", _moe),
    )
)  # fmt: skip

_WARNINGS_OF_INTEREST = re.compile(
    r"out of memory|OOM|Failed to create oneDNN linear|fall(?:ing)? ?back|sub-optimal|not supported"
    r"|Add \d+ padding|memory profiling is disabled|downcast|Casting torch|Upcasting torch|preempt",
    re.IGNORECASE,
)
_MAX_WARNINGS = 20


def parse_log(text: str | bytes) -> LogFacts:
    """Everything of interest in a vLLM log, whole or cut, from any of its processes."""
    facts = LogFacts()
    for line in clean_lines(text):
        if not line.text:
            continue
        for pattern, action in _PATTERNS:
            found = pattern.search(line.text)
            if found:
                action(facts, found)
        wanted = line.level == "WARNING" and _WARNINGS_OF_INTEREST.search(line.text)
        if wanted and line.text not in facts.warnings and len(facts.warnings) < _MAX_WARNINGS:
            facts.warnings.append(line.text[:500])
    if facts.activation_peak_bytes is None and facts.activation_peak_with_graphs_bytes is not None:
        pure = facts.activation_peak_with_graphs_bytes - (facts.cuda_graph_estimate_bytes or 0)
        facts.activation_peak_bytes = max(pure, 0)
    return facts
