"""What a load run found, in one object that can become a row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from bench.load.engine_watch import GaugeReadings
from bench.load.flags import flags_of
from bench.load.latency import Distribution, Window, due_between, mean_in_flight, whole_window, window_between
from bench.load.metrics import MetricsDelta, MetricsSnapshot, delta
from bench.load.percentiles import STATISTICS, column
from bench.load.records import OUTCOMES, RequestRecord
from bench.load.request_table import request_columns
from bench.load.selfcheck import ClientCheck
from bench.load.spec import LoadSpec
from bench.load.steady import SteadyWindow, closed_loop_window, open_loop_window

_ROW_SETTINGS = (
    "pattern", "concurrency", "duration_s", "rate_per_s", "rate_end_per_s", "burstiness", "trace_file", "trace_speed",
    "shared_prefix_ratio", "prefix_groups", "slo_ttft_s", "slo_tpot_s", "slo_itl_s", "slo_e2e_s", "workers", "seed",
    "temperature", "top_p", "timeout_s", "stall_timeout_s",
)  # fmt: skip


@dataclass(frozen=True)
class LoadResult:
    """One load run. Times are seconds, rates per second; statistics are of requests with outcome ``ok`` only.

    ``outcomes`` counts every sent request by kind (all kinds are present); ``not_sent`` are those that an abort left
    over. ``errors`` has the first sentence of each kind. ``flags`` are keys of :data:`bench.load.flags.FLAGS`.

    ``start_ns`` is the start on ``time.perf_counter_ns()``; adding ``unix_offset_ns`` gives Unix time.
    ``started_unix_s`` is the wall clock at the first sending.

    ``whole`` runs from the first request's due time to the last byte, ``steady`` is the part that ``window`` found.
    ``engine`` is what the engine's own counters gained during the run, ``gauges`` what its gauges showed,
    ``cache_config`` its KV-cache configuration as reported; empty if it has no metrics page. ``abort_reason`` is empty
    unless the run was called off. ``peak_in_flight`` counts this client's requests, due and not ended.
    """

    spec: LoadSpec
    outcomes: dict[str, int]
    not_sent: int
    start_ns: int
    unix_offset_ns: int
    started_unix_s: float | None
    whole: Window
    steady: Window
    window: SteadyWindow
    send_delay_s: Distribution
    mean_in_flight: float | None
    peak_in_flight: int
    tokens_per_chunk: float | None
    client: ClientCheck
    engine: MetricsDelta
    gauges: GaugeReadings
    cache_config: dict[str, str]
    resends: int
    abort_reason: str
    errors: dict[str, str]
    flags: list[str]
    records: list[RequestRecord] = field(repr=False)

    @property
    def completed(self) -> int:
        return self.outcomes["ok"]

    @property
    def failed(self) -> int:
        return sum(self.outcomes.values()) - self.completed

    @property
    def ttft_s(self) -> Distribution:
        return self.whole.ttft_s

    @property
    def tpot_s(self) -> Distribution:
        return self.whole.tpot_s

    @property
    def itl_s(self) -> Distribution:
        return self.whole.itl_s

    @property
    def e2e_s(self) -> Distribution:
        return self.whole.e2e_s

    @property
    def window_s(self) -> float | None:
        return self.whole.window_s

    @property
    def steady_ns(self) -> tuple[int, int] | None:
        """Both ends of the steady window on ``time.perf_counter_ns()``; None where there is none."""
        begin_ns, end_ns = self.window.begin_ns, self.window.end_ns
        return (begin_ns, end_ns) if begin_ns is not None and end_ns is not None else None

    def request_columns(self, chunks: bool = False) -> dict[str, list[object]]:
        """One row per request, as columns; see :mod:`bench.load.request_table`."""
        return request_columns(self.records, self.start_ns, self.steady_ns, self.spec.slo, chunks=chunks)

    def to_row(self) -> dict[str, object]:
        """All scalars as flat columns with their units in the names; the per-request records are left out."""
        row: dict[str, object] = {name: getattr(self.spec, name) for name in _ROW_SETTINGS}
        row["num_requests"] = len(self.records) if self.spec.total is None else self.spec.total
        row |= self._length_columns("input_tokens") | self._length_columns("output_tokens")
        row |= {"completed": self.completed, "failed": self.failed, "not_sent": self.not_sent}
        row |= {"started_unix_s": self.started_unix_s, "offered_requests_per_s": self._offered_per_s()}
        row |= {f"outcome_{kind}": count for kind, count in self.outcomes.items()}
        row |= self.whole.columns() | self.steady.columns("steady_") | self._window_columns()
        row |= {column("send_delay", part): getattr(self.send_delay_s, part) for part in STATISTICS}
        row |= {"mean_in_flight": self.mean_in_flight, "peak_in_flight": self.peak_in_flight}
        row |= {"tokens_per_chunk": self.tokens_per_chunk, "resends": self.resends}
        row |= {f"client_{name}": value for name, value in asdict(self.client).items()}
        row |= {f"engine_{name}": value for name, value in asdict(self.engine).items()}
        row |= {"engine_request_queue_time_mean_s": self.engine.request_queue_time_mean_s}
        row |= {f"engine_gauge_{name}": value for name, value in asdict(self.gauges).items()}
        row |= {"abort_reason": self.abort_reason, "errors": dict(self.errors), "flags": list(self.flags)}
        return row

    def _length_columns(self, name: str) -> dict[str, object]:
        """What was asked for: the number, or mean, least and most of the requests sent, with the distribution."""
        asked = [r.input_tokens if name == "input_tokens" else r.asked_output_tokens for r in self.records]
        given = getattr(self.spec, name)
        stated = given if isinstance(given, Mapping) and not self.spec.kind.brings_lengths else None
        mean = sum(asked) / len(asked) if asked else getattr(self.spec, f"{name}_mean")
        return {
            name: mean,
            f"{name}_min": min(asked, default=None),
            f"{name}_max": max(asked, default=None),
            f"{name}_json": None if stated is None else json.dumps(dict(stated), sort_keys=True),
        }

    def _offered_per_s(self) -> float | None:
        due_ns = [record.scheduled_ns for record in self.records]
        if not self.spec.is_open or len(due_ns) < 2 or max(due_ns) == min(due_ns):
            return None
        return (len(due_ns) - 1) / ((max(due_ns) - min(due_ns)) / 1e9)

    def _window_columns(self) -> dict[str, object]:
        row: dict[str, object] = {"steady_rule": self.window.rule}
        names = ("begin_s", "end_s", "left_out_before_s", "left_out_after_s", "requests", "left_out_requests")
        values: tuple[object, ...] = (None,) * len(names)
        if self.steady_ns is not None and self.steady.window_s is not None:
            begin_ns, end_ns = self.steady_ns
            first_ns = min(record.scheduled_ns for record in self.records)
            last_ns = first_ns + round((self.whole.window_s or 0.0) * 1e9)
            inside = sum(record.outcome == "ok" for record in due_between(self.records, begin_ns, end_ns))
            before_s, after_s = (begin_ns - first_ns) / 1e9, max(0.0, (last_ns - end_ns) / 1e9)
            values = (before_s, (end_ns - first_ns) / 1e9, before_s, after_s, inside, self.completed - inside)
        return row | {f"steady_{name}": value for name, value in zip(names, values, strict=True)}


def build_result(
    spec: LoadSpec,
    records: Sequence[RequestRecord],
    client: ClientCheck,
    *,
    start_ns: int = 0,
    unix_offset_ns: int = 0,
    not_sent: int = 0,
    abort_reason: str = "",
    peak_in_flight: int = 0,
    slots: int | None = None,
    before: MetricsSnapshot | None = None,
    after: MetricsSnapshot | None = None,
    gauges: GaugeReadings | None = None,
) -> LoadResult:
    """Statistics, counts and flags for ``records``. ``slots``: those of a closed loop really used, if not all."""
    ok = [record for record in records if record.outcome == "ok"]
    kinds = Counter(record.outcome for record in records)
    sent_ns = [record.sent_ns for record in records if record.sent_ns]
    chunks = sum(len(record.chunk_ns) for record in ok)
    errors: dict[str, str] = {}
    for record in records:
        if record.error:
            errors.setdefault(record.outcome, record.error)
    gauges = gauges or GaugeReadings()
    engine = delta(before or MetricsSnapshot(), after or MetricsSnapshot(), gauges.kv_cache_usage_max_ratio)
    window = _steady_window(spec, records, slots)
    result = LoadResult(
        spec=spec,
        outcomes={kind: kinds.get(kind, 0) for kind in OUTCOMES},
        not_sent=not_sent,
        start_ns=start_ns,
        unix_offset_ns=unix_offset_ns,
        started_unix_s=min(sent_ns) / 1e9 + unix_offset_ns / 1e9 if sent_ns else None,
        whole=whole_window(records, spec.slo),
        steady=window_between(records, window.begin_ns, window.end_ns, spec.slo),
        window=window,
        send_delay_s=Distribution.of(record.send_delay_s for record in records),
        mean_in_flight=mean_in_flight(records),
        peak_in_flight=peak_in_flight,
        tokens_per_chunk=sum(record.output_tokens for record in ok) / chunks if chunks else None,
        client=client,
        engine=engine,
        gauges=gauges,
        cache_config=dict((after or before or MetricsSnapshot()).cache_config),
        resends=sum(record.resends for record in records),
        abort_reason=abort_reason,
        errors=errors,
        flags=[],
        records=list(records),
    )
    result.flags.extend(flags_of(result))
    return result


def _steady_window(spec: LoadSpec, records: Sequence[RequestRecord], slots: int | None) -> SteadyWindow:
    if not spec.kind.has_steady_state:
        return SteadyWindow("none")
    if spec.is_open:
        return open_loop_window(records)
    return closed_loop_window(records, slots or spec.concurrency or 0)
