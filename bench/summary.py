"""The table at the end of a sweep, from the recorded rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bench import drift
from bench.config.knee import SHARE_OBJECTIVES
from bench.knee import Knee
from bench.load_summary import print_loads
from bench.progress import gib

STATUSES = ("ok", "memory_only", "pruned", "failed")


def peak_bytes(row: dict[str, Any]) -> int | None:
    """The peak a person asks for: the device's on a GPU, the process tree's on a CPU."""
    return row.get("device_memory_peak_bytes") or row.get("tree_pss_peak_bytes")


def fastest(workloads: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The row with the highest throughput of one engine; of a knee search only the load that holds counts."""
    standing = (w for w in workloads if w.get("knee_trial") is None or w.get("knee_answer"))
    return max(standing, key=lambda w: w.get("output_tokens_per_s") or 0.0, default={})


def best_speed(workloads: Iterable[dict[str, Any]]) -> float | None:
    """Highest throughput of the workloads on one engine, generated tokens/s."""
    return fastest(workloads).get("output_tokens_per_s") or None


def knees(workloads: Iterable[dict[str, Any]]) -> list[str]:
    """The answer of each knee search, a sentence each."""
    found: dict[tuple[str, str], str] = {}
    for row in workloads:
        if row.get("knee_outcome"):
            knee = Knee(row["knee_outcome"], row["knee_highest_met"], row["knee_lowest_broken"], row["knee_trials"])
            notes = f"; {row['knee_notes']}" if row.get("knee_notes") else ""
            slo = " and ".join(_objective(*pair) for pair in json.loads(row["knee_slo_json"]).items())
            sentence = f"{row['workload']}, {slo}: {knee.sentence(row['knee_axis'])}{notes}"
            found[row["run_id"], row["workload"]] = sentence
    return list(found.values())


def _drifts(engines: Iterable[dict[str, Any]], by_run: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Memory over time, where a load was held; what grows comes first and is never left out."""
    found = [
        (verdict, f"memory over time of {engine['model']} {engine['quantization']}: {said}")
        for engine in engines
        for verdict, said in drift.sentences(by_run.get(engine["run_id"], []))
    ]
    found.sort(key=lambda pair: pair[0] != "leak")
    leaks = sum(verdict == "leak" for verdict, _ in found)
    shown = [sentence for _, sentence in found[: max(leaks, drift.MOST_LINES)]]
    left = len(found) - len(shown)
    return [*shown, f"memory over time: {left} more loads, none of them a leak"] if left else shown


def _objective(name: str, limit: float) -> str:
    return f"{name} {'>=' if name in SHARE_OBJECTIVES else '<='} {limit:g}"


def figures(row: dict[str, Any], workloads: Iterable[dict[str, Any]]) -> str:
    """One engine start in a line: what it held and how fast it was, or why not."""
    if row["status"] in ("failed", "pruned"):
        return f"{row['failure_cause']}: {row['failure_sentence']}"
    workloads = list(workloads)
    parts = [f"weights {gib(row['weights_bytes'])}", f"KV {gib(row['kv_cache_bytes'])}", f"peak {gib(peak_bytes(row))}"]
    if speed := best_speed(workloads):
        parts.append(f"{speed:,.0f} tokens/s{' (client-bound)' if fastest(workloads).get('client_bound') else ''}")
    if row.get("missing_kernel"):
        parts.append(f"cannot generate here: lacks {row['missing_kernel']}")
    elif row["status"] == "memory_only":
        parts.append(str(row["failure_sentence"]))
    return ", ".join(parts)


_STATUS_WIDTH = 14


def print_summary(console: Console, rows: list[dict[str, Any]], workloads: list[dict[str, Any]], where: str) -> None:
    """All rows of a set, one line an engine start. Columns that would not fit are left out, never cut."""
    by_run: dict[str, list[dict[str, Any]]] = {}
    for workload in workloads:
        by_run.setdefault(workload["run_id"], []).append(workload)
    columns = _columns(rows)
    ordered = sorted(rows, key=lambda r: (r["model"], r["quantization"], r["started_unix_s"]))
    dropped = []
    while True:
        table = _table(columns, ordered, by_run)
        # The status, last, may wrap; everything before it must fit.
        figures_only = _table(columns[:-1], ordered, by_run)
        unlimited = console.options.update(max_width=1000)
        needed = Measurement.get(console, unlimited, figures_only).maximum + _STATUS_WIDTH
        spare = [column for column in columns if column.spare]
        if needed <= console.width or not spare:
            break
        last = max(spare, key=lambda column: column.spare)
        columns.remove(last)
        dropped.append(last.title)
    console.print(table)
    device = next((row["device_name"] for row in rows), None)
    kinds = {row["device_kind"] for row in rows}
    peak = "device memory (NVML)" if kinds == {"cuda"} else "the engine's process tree (PSS)"
    about = f"T: max-num-batched-tokens, S: max-num-seqs. peak: {peak}. load adds: the worker's peak under load above"
    console.print(Text(f"{about} its idle level. GiB = 2^30 bytes. Device: {device}"))
    if dropped:
        console.print(Text(f"left out for want of width: {', '.join(reversed(dropped))}"))
    if any(fastest(by_run.get(row["run_id"], [])).get("client_bound") for row in rows):
        console.print(Text("*: client-bound: the client may be part of these figures; the row's flags say how"))
    print_loads(console, ordered, by_run)
    for engine in ordered:
        for sentence in knees(by_run.get(engine["run_id"], [])):
            console.print(Text(f"knee of {engine['model']} {engine['quantization']}: {sentence}"))
    for sentence in _drifts(ordered, by_run):
        console.print(Text(sentence))
    counts = {status: sum(row["status"] == status for row in rows) for status in STATUSES}
    told = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    console.print(Text(f"{len(rows)} engine start{'s' if len(rows) > 1 else ''} in {where}: {told}"))


@dataclass(frozen=True)
class _Column:
    """`cell` makes the text from an engine row and its fastest workload. `spare`: left out the sooner the higher."""

    title: str
    cell: Callable[[dict[str, Any], dict[str, Any]], str]
    spare: int = 0
    left: bool = False


def _columns(rows: list[dict[str, Any]]) -> list[_Column]:
    def varies(name: str) -> bool:
        return len({row[name] for row in rows}) > 1

    def setting(name: str) -> Callable[[dict, dict], str]:
        return lambda row, _: _int(row[f"effective_{name}"] or row[name])

    def plain(name: str) -> Callable[[dict, dict], str]:
        return lambda row, _: str(row[name] if row[name] is not None else "-")

    def size(title: str, value: Callable[[dict], int | None], spare: int = 0) -> _Column:
        # One unit a column, so that figures line up and compare at a glance.
        known = [v for v in map(value, rows) if v]
        unit, scale, digits = ("GiB", 2**30, 2) if known and min(known) >= 2**30 else ("MiB", 2**20, 1)

        def cell(row: dict, _: dict) -> str:
            number = value(row)
            return "-" if number is None else f"{number / scale:,.{digits}f}"

        return _Column(f"{title}, {unit}", cell, spare)

    def milliseconds(name: str, digits: int) -> Callable[[dict, dict], str]:
        return lambda _, best: "-" if best.get(name) is None else f"{best[name] * 1e3:,.{digits}f} ms"

    def speed(_: dict, best: dict) -> str:
        if best.get("output_tokens_per_s") is None:
            return "-"
        return _int(round(best["output_tokens_per_s"])) + ("*" if best.get("client_bound") else "")

    return [
        _Column("model", plain("model"), left=True),
        _Column("weights as", plain("quantization"), left=True),
        _Column("T", setting("max_num_batched_tokens")),
        _Column("S", setting("max_num_seqs")),
        *([_Column("pool", plain("kv_pool_mode"), left=True)] if varies("kv_pool_mode") else []),
        *([_Column("launcher", plain("launcher"), left=True)] if varies("launcher") else []),
        *([_Column("restart", lambda row, _: str(row["repeat"] + 1))] if varies("repeat") else []),
        size("weights", lambda row: row["weights_bytes"]),
        size("KV pool", lambda row: row["kv_cache_bytes"]),
        _Column("KV tokens", lambda row, _: _int(row["kv_cache_tokens"]), spare=3),
        size("peak", peak_bytes),
        size("load adds", lambda row: row["runtime_activation_peak_bytes"], spare=1),
        _Column("start", lambda row, _: "-" if row["startup_s"] is None else f"{row['startup_s']:.1f} s", spare=4),
        _Column("tokens/s", speed),
        _Column("TTFT p50", milliseconds("ttft_p50_s", 0), spare=5),
        _Column("TPOT p50", milliseconds("tpot_p50_s", 1), spare=2),
        _Column("status", lambda row, _: _status(row), left=True),
    ]


def _table(columns: list[_Column], rows: list[dict[str, Any]], by_run: dict[str, list[dict[str, Any]]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.title, justify="left" if column.left else "right", no_wrap=column.title != "status")
    for row in rows:
        best = fastest(by_run.get(row["run_id"], []))
        # Text, because square brackets in a cell would be read as markup.
        table.add_row(*(Text(column.cell(row, best)) for column in columns))
    return table


def _status(row: dict[str, Any]) -> str:
    status = str(row["status"])
    if status == "memory_only":
        lacks = f"lacks {row['missing_kernel']}" if row["missing_kernel"] else row["failure_cause"]
        status = f"memory only ({lacks})"
    elif status in ("failed", "pruned"):
        status = f"{status}: {row['failure_cause']} ({row['failure_phase']})"
    return status + (f" [{', '.join(row['flags'])}]" if row["flags"] else "")


def _int(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
