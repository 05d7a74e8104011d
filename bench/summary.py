"""The table at the end of a sweep, from the recorded rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.progress import gib

STATUSES = ("ok", "memory_only", "pruned", "failed")


def peak_bytes(row: dict[str, Any]) -> int | None:
    """The peak a person asks for: the device's on a GPU, the process tree's on a CPU."""
    return row.get("device_memory_peak_bytes") or row.get("tree_pss_peak_bytes")


def best_speed(workloads: Iterable[dict[str, Any]]) -> float | None:
    """Highest throughput of the workloads on one engine, generated tokens/s."""
    return max((w["output_tokens_per_s"] for w in workloads if w.get("output_tokens_per_s")), default=None)


def figures(row: dict[str, Any], workloads: Iterable[dict[str, Any]]) -> str:
    """One engine start in a line: what it held and how fast it was, or why not."""
    if row["status"] in ("failed", "pruned"):
        return f"{row['failure_cause']}: {row['failure_sentence']}"
    parts = [f"weights {gib(row['weights_bytes'])}", f"KV {gib(row['kv_cache_bytes'])}", f"peak {gib(peak_bytes(row))}"]
    if speed := best_speed(workloads):
        parts.append(f"{speed:,.0f} tokens/s")
    if row.get("missing_kernel"):
        parts.append(f"cannot generate here: lacks {row['missing_kernel']}")
    elif row["status"] == "memory_only":
        parts.append(str(row["failure_sentence"]))
    return ", ".join(parts)


_COLUMNS = ("model", "weights as", "T", "S", "weights", "KV pool", "KV tokens", "peak", "load adds", "start",
            "tokens/s", "TTFT p50", "TPOT p50", "status")  # fmt: skip
_SIZES = {"weights": "weights_bytes", "KV pool": "kv_cache_bytes", "load adds": "runtime_activation_peak_bytes"}


def print_summary(console: Console, rows: list[dict[str, Any]], workloads: list[dict[str, Any]], where: str) -> None:
    """All rows of a set, one line a point, in the order they were started."""
    by_run: dict[str, list[dict[str, Any]]] = {}
    for workload in workloads:
        by_run.setdefault(workload["run_id"], []).append(workload)
    # One unit a column, so that figures line up and compare at a glance.
    units = {name: _unit(row[column] for row in rows) for name, column in _SIZES.items()}
    units["peak"] = _unit(peak_bytes(row) for row in rows)
    table = Table(box=None, pad_edge=False, header_style="bold")
    left = ("model", "weights as", "status")
    for name in _COLUMNS:
        title = f"{name}, {units[name][0]}" if name in units else name
        table.add_column(title, justify="left" if name in left else "right", no_wrap=name != "status")
    for row in sorted(rows, key=lambda r: (r["model"], r["quantization"], r["started_unix_s"])):
        table.add_row(*_cells(row, by_run.get(row["run_id"], []), units))
    console.print(table)
    device = next((row["device_name"] for row in rows), None)
    kinds = {row["device_kind"] for row in rows}
    peak = "device memory (NVML)" if kinds == {"cuda"} else "the engine's process tree (PSS)"
    about = f"T: max-num-batched-tokens, S: max-num-seqs. peak: {peak}. load adds: the worker's peak under load above"
    console.print(Text(f"{about} its idle level. GiB = 2^30 bytes. Device: {device}"))
    counts = {status: sum(row["status"] == status for row in rows) for status in STATUSES}
    told = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    console.print(Text(f"{len(rows)} engine starts in {where}: {told}"))


def _unit(sizes: Iterable[int | None]) -> tuple[str, int]:
    """GiB where the smallest figure of a column has some, else MiB."""
    known = [size for size in sizes if size]
    return ("GiB", 2**30) if known and min(known) >= 2**30 else ("MiB", 2**20)


def _cells(row: dict[str, Any], workloads: list[dict[str, Any]], units: dict[str, tuple[str, int]]) -> list[str]:
    best = max(workloads, key=lambda w: w.get("output_tokens_per_s") or 0.0, default={})
    speed, ttft, tpot = (best.get(name) for name in ("output_tokens_per_s", "ttft_p50_s", "tpot_p50_s"))
    tokens, seqs = (row[f"effective_{k}"] or row[k] for k in ("max_num_batched_tokens", "max_num_seqs"))

    def size(name: str, value: int | None) -> str:
        unit, scale = units[name]
        return "-" if value is None else f"{value / scale:,.{2 if unit == 'GiB' else 1}f}"

    return [
        row["model"], row["quantization"], _int(tokens), _int(seqs),
        *(size(name, row[_SIZES[name]]) for name in ("weights", "KV pool")),
        _int(row["kv_cache_tokens"]), size("peak", peak_bytes(row)),
        size("load adds", row["runtime_activation_peak_bytes"]),
        "-" if row["startup_s"] is None else f"{row['startup_s']:.1f} s",
        "-" if speed is None else f"{speed:,.0f}",
        "-" if ttft is None else f"{ttft * 1e3:,.0f} ms",
        "-" if tpot is None else f"{tpot * 1e3:,.1f} ms",
        _status(row),
    ]  # fmt: skip


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
