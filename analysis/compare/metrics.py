"""The metrics that can be compared: a short name, the column behind it, and the unit people read it in."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from analysis.compare.model import CompareError

GIB = 2.0**-30


@dataclass(frozen=True)
class Metric:
    """One quantity.

    Attributes:
        name: as in `--metric` and `--fail-on`.
        kind: table it is read from, `engine` or `workload`.
        columns: candidates for the column, the first that a set has; or (numerator, *factors of the denominator).
        unit: unit it is shown in. scale: stored value times this is the shown one.
        better: `lower`, `higher` or None where neither is.
        exact_from: restarts on each side from which a difference without any spread may count without a test; None for
            timings, which never do.
        by_nature: where the quantity is arithmetic and cannot jitter: `always`, in a `fixed pool`, or nowhere.
            Elsewhere only a metric without spread in any cell counts as deterministic: allocators' steps hide jitter.
        formula: `column`, or `per_token` for energy.
    """

    name: str
    kind: str
    columns: tuple[str, ...]
    unit: str
    scale: float = 1.0
    better: str | None = None
    exact_from: int | None = None
    by_nature: str = ""
    formula: str = "column"
    default: bool = True


def _size(name: str, column: str, better: str | None = "lower", exact_from: int | None = 2, **more: object) -> Metric:
    return Metric(name, "engine", (column,), "GiB", GIB, better, exact_from, **more)  # type: ignore[arg-type]


def _latencies() -> tuple[Metric, ...]:
    return tuple(
        Metric(f"{name}_{part}", "workload", (f"{name}_{part}_s",), "ms", 1e3, "lower", default=part in ("p50", "p99"))
        for name in ("ttft", "tpot", "itl", "e2e")
        for part in ("p50", "p99", "mean", "p90", "p95", "max")
    )


METRICS = (
    _size("weights", "weights_bytes", exact_from=1, by_nature="always"),
    _size("activation", "activation_peak_bytes"),
    _size("load_adds", "runtime_activation_peak_bytes"),
    _size("non_torch", "non_torch_bytes"),
    _size("cuda_graphs", "cuda_graph_bytes"),
    _size("kv_pool", "kv_cache_bytes", "higher", by_nature="fixed pool"),
    Metric("kv_tokens", "engine", ("kv_cache_tokens",), "tokens", 1.0, "higher", 2, "fixed pool"),
    _size("device_peak", "device_memory_peak_bytes"),
    _size("tree_peak", "tree_pss_peak_bytes"),
    _size("torch_peak", "torch_allocated_peak_bytes", default=False),
    _size("weights_resident", "weights_resident_bytes", default=False),
    _size("process_peak", "process_memory_peak_bytes", default=False),
    Metric("startup", "engine", ("startup_s",), "s", 1.0, "lower"),
    Metric("load", "engine", ("load_s",), "s", 1.0, "lower", default=False),
    Metric("graph_capture", "engine", ("graph_capture_s",), "s", 1.0, "lower", default=False),
    Metric("throughput", "workload", ("output_tokens_per_s",), "tokens/s", 1.0, "higher"),
    Metric("steady_throughput", "workload", ("steady_output_tokens_per_s",), "tokens/s", 1.0, "higher", default=False),
    Metric("total_throughput", "workload", ("total_tokens_per_s",), "tokens/s", 1.0, "higher", default=False),
    Metric("requests", "workload", ("requests_per_s",), "requests/s", 1.0, "higher", default=False),
    Metric("goodput", "workload", ("goodput_requests_per_s", "goodput_per_s", "goodput"), "requests/s", 1.0, "higher"),
    *_latencies(),
    Metric("queue_time", "workload", ("queue_time_mean_s",), "ms", 1e3, "lower", default=False),
    Metric(
        "energy_per_token",
        "workload",
        ("energy_j", "output_tokens_per_s", "window_s"),
        "J/token",
        1.0,
        "lower",
        formula="per_token",
    ),
    Metric("power", "workload", ("power_mean_w",), "W", default=False),
    Metric("preemptions", "workload", ("preemptions",), "", 1.0, "lower", default=False),
)
"""Default ones come in the order in which they are shown."""

_UNITS = {
    "_bytes": ("GiB", GIB),
    "_tokens_per_s": ("tokens/s", 1.0),
    "_requests_per_s": ("requests/s", 1.0),
    "_per_s": ("1/s", 1.0),
    "_s": ("s", 1.0),
    "_w": ("W", 1.0),
    "_j": ("J", 1.0),
    "_mhz": ("MHz", 1.0),
    "_hz": ("Hz", 1.0),
    "_c": ("degC", 1.0),
    "_pct": ("%", 1.0),
    "_tokens": ("tokens", 1.0),
    "_us_per_token": ("us/token", 1.0),
}


def columns_of(names: Sequence[str]) -> set[str]:
    """Columns that the metrics of these names are read from; of the default ones for none."""
    meant = [m for m in METRICS if (m.name in names or m.columns[0] in names if names else m.default)]
    return {column for metric in meant for column in metric.columns} | set(names)


def choose(
    names: Sequence[str],
    engine: Iterable[str],
    workload: Iterable[str],
    rules: Mapping[str, str] | None = None,
) -> list[Metric]:
    """The metrics that are meant: known names, or any numeric column of the sets.

    Args:
        names: as given; empty for the default metrics.
        engine, workload: numeric columns that the tables of the sets have.
        rules: of names that a rule of `--fail-on` asks for, the rule's text.

    Raises:
        CompareError: a name that is neither, with the nearest one there is.
    """
    engine, workload = list(engine), list(workload)
    if not names:
        return [metric for metric in METRICS if metric.default]
    chosen = []
    for name in names:
        known = next((metric for metric in METRICS if metric.name == name or name in metric.columns[:1]), None)
        if known is None and name in workload:
            known = of_column(name, "workload")
        if known is None and name in engine:
            known = of_column(name, "engine")
        if known is None:
            asked = f"--fail-on {rules[name]!r}" if rules and name in rules else "--metric"
            raise CompareError(
                f"{asked}: no metric and no numeric column of these sets is named {name!r}; "
                + nearest(name, [*engine, *workload])
            )
        if known not in chosen:
            chosen.append(known)
    return chosen


def nearest(name: str, columns: Sequence[str] = ()) -> str:
    """What may have been meant by an unknown name, and where all metrics are listed."""
    every = [*(metric.name for metric in METRICS), *columns]
    near = difflib.get_close_matches(name, every, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]}" if near else f"the nearest is {_closest(name, every)}"
    return f"{guess} (`compare --help` lists the metrics)"


def _closest(name: str, every: Sequence[str]) -> str:
    return difflib.get_close_matches(name, every, n=1, cutoff=0.0)[0]


def of_column(name: str, kind: str) -> Metric:
    """A metric for a column that has no short name; its unit is read off the column's name."""
    ending = max((end for end in _UNITS if name.endswith(end)), key=len, default="")
    unit, scale = _UNITS.get(ending, ("", 1.0))
    better = "higher" if ending.endswith("_per_s") else None
    return Metric(
        name, kind, (name,), unit, scale, better, 2 if kind == "engine" and unit in ("GiB", "tokens") else None
    )
