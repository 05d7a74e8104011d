"""The engine's own counters, from vLLM's Prometheus page ``/metrics``.

The names differ between versions of vLLM and some are missing in some, so every field may be None.
"""

from __future__ import annotations

import http.client
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from bench.errors import BenchError
from bench.load.wire import Target

_LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*$")
_LABEL = re.compile(r'\s*([A-Za-z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*,?')
_ESCAPE = re.compile(r"\\(.)")
_KV_USAGE = re.compile(rb"^vllm:(?:kv|gpu)_cache_usage_perc(?:\{.*\})? (\S+)", re.MULTILINE)
_RUNNING = re.compile(rb"^vllm:num_requests_running(?:\{.*\})? (\S+)", re.MULTILINE)
_WAITING = re.compile(rb"^vllm:num_requests_waiting(?:\{.*\})? (\S+)", re.MULTILINE)

# Field -> names to look for, newest first. Counters end in "_total" on the page.
_COUNTERS: dict[str, tuple[str, ...]] = {
    "num_preemptions": ("vllm:num_preemptions",),
    "prefix_cache_queries_tokens": ("vllm:prefix_cache_queries", "vllm:gpu_prefix_cache_queries"),
    "prefix_cache_hits_tokens": ("vllm:prefix_cache_hits", "vllm:gpu_prefix_cache_hits"),
    "prompt_tokens": ("vllm:prompt_tokens",),
    "generation_tokens": ("vllm:generation_tokens",),
    "requests_succeeded": ("vllm:request_success",),
    "request_queue_time_sum_s": ("vllm:request_queue_time_seconds_sum",),
    "request_queue_time_count": ("vllm:request_queue_time_seconds_count",),
}
_GAUGES: dict[str, tuple[str, ...]] = {
    "num_requests_running": ("vllm:num_requests_running",),
    "num_requests_waiting": ("vllm:num_requests_waiting",),
}


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """Counters since the engine's start, summed over its replicas. Prefix-cache counts are in tokens.

    ``kv_cache_usage_ratio`` is the fullest replica's, from 0 to 1. ``cache_config`` are the labels of
    ``vllm:cache_config_info``, as text.
    """

    num_preemptions: float | None = None
    prefix_cache_queries_tokens: float | None = None
    prefix_cache_hits_tokens: float | None = None
    prompt_tokens: float | None = None
    generation_tokens: float | None = None
    requests_succeeded: float | None = None
    request_queue_time_sum_s: float | None = None
    request_queue_time_count: float | None = None
    num_requests_running: float | None = None
    num_requests_waiting: float | None = None
    kv_cache_usage_ratio: float | None = None
    cache_config: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MetricsDelta:
    """Gains of the counters between snapshots; None if a name is missing or a counter fell (a restart)."""

    num_preemptions: float | None = None
    prefix_cache_queries_tokens: float | None = None
    prefix_cache_hits_tokens: float | None = None
    prompt_tokens: float | None = None
    generation_tokens: float | None = None
    requests_succeeded: float | None = None
    request_queue_time_sum_s: float | None = None
    request_queue_time_count: float | None = None
    kv_cache_usage_max_ratio: float | None = None

    def lost_tokens(self, received_tokens: int) -> int | None:
        """Tokens the engine says it generated less those the client received; None if the engine does not say.

        Anything but 0 in a run without failures means that one of the two counts wrongly, or that somebody else used
        the engine. A request cut off leaves a positive rest: the engine generates until it notices.
        """
        return None if self.generation_tokens is None else round(self.generation_tokens) - received_tokens

    @property
    def request_queue_time_mean_s(self) -> float | None:
        """Mean seconds a request waited in the engine's queue."""
        if not self.request_queue_time_count or self.request_queue_time_sum_s is None:
            return None
        return self.request_queue_time_sum_s / self.request_queue_time_count


def parse_samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Samples of a page in Prometheus' text format as (name, labels, value); other lines are skipped."""
    for line in text.splitlines():
        if not line or line[0] == "#":
            continue
        match = _LINE.match(line)
        if match is None:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        yield match[1], {key: _unescape(raw) for key, raw in _LABEL.findall(match[2] or "")}, value


def parse_metrics(text: str) -> MetricsSnapshot:
    """The snapshot on a ``/metrics`` page; fields whose names are not on it are None."""
    totals: dict[str, float] = {}
    usage: float | None = None
    cache_config: dict[str, str] = {}
    for name, labels, value in parse_samples(text):
        if not name.startswith("vllm:"):
            continue
        if name == "vllm:cache_config_info":
            cache_config = cache_config or labels
        elif name in ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"):
            usage = value if usage is None else max(usage, value)
        elif math.isfinite(value):
            name = name.removesuffix("_total")
            totals[name] = totals.get(name, 0.0) + value
    found = {
        key: next((totals[name] for name in names if name in totals), None)
        for key, names in (_COUNTERS | _GAUGES).items()
    }
    return MetricsSnapshot(**found, kv_cache_usage_ratio=usage, cache_config=cache_config)


@dataclass(frozen=True, slots=True)
class Gauges:
    """The gauges worth polling: KV use of the fullest replica (0 to 1), requests of all replicas together."""

    kv_cache_usage_ratio: float | None = None
    num_requests_running: int | None = None
    num_requests_waiting: int | None = None


def parse_gauges(page: bytes) -> Gauges:
    """Only the gauges of a page, quickly: for reading them while requests are being timed."""
    running, waiting = _numbers(_RUNNING, page), _numbers(_WAITING, page)
    return Gauges(
        max(_numbers(_KV_USAGE, page), default=None),
        round(sum(running)) if running else None,
        round(sum(waiting)) if waiting else None,
    )


def _numbers(pattern: re.Pattern[bytes], page: bytes) -> list[float]:
    """Finite values of one metric; a page that is not of this format has none."""
    values = []
    for text in pattern.findall(page):
        try:
            value = float(text)
        except ValueError:
            continue
        if math.isfinite(value):
            values.append(value)
    return values


def delta(
    before: MetricsSnapshot, after: MetricsSnapshot, kv_cache_usage_max_ratio: float | None = None
) -> MetricsDelta:
    """What the counters gained, and the highest KV-cache use seen in between, if it was watched."""
    gained: dict[str, float | None] = {}
    for item in fields(MetricsDelta):
        if item.name in _COUNTERS:
            old, new = getattr(before, item.name), getattr(after, item.name)
            gained[item.name] = None if old is None or new is None or new < old else new - old
    return MetricsDelta(**gained, kv_cache_usage_max_ratio=kv_cache_usage_max_ratio)


def snapshot(base_url: str, timeout_s: float = 10.0) -> MetricsSnapshot:
    """Read the engine's ``/metrics`` now. Raises :class:`BenchError` if it cannot be had."""
    target = Target.parse(base_url)
    connection = http.client.HTTPConnection(target.host, target.port, timeout=timeout_s)
    try:
        connection.request("GET", f"{target.prefix}/metrics")
        response = connection.getresponse()
        page = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise BenchError(f"No metrics from {base_url}/metrics: {error or type(error).__name__}.") from error
    finally:
        connection.close()
    if response.status != 200:
        raise BenchError(f"No metrics from {base_url}/metrics: HTTP {response.status}.")
    return parse_metrics(page.decode(errors="replace"))


def _unescape(raw: str) -> str:
    return _ESCAPE.sub(lambda match: "\n" if match[1] == "n" else match[1], raw) if "\\" in raw else raw
