"""The table at the end of a sweep, from the recorded rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.progress import gib


def peak_bytes(row: dict[str, Any]) -> int | None:
    """The peak a person asks for: the device's on a GPU, the process tree's on a CPU."""
    return row.get("device_memory_peak_bytes") or row.get("tree_pss_peak_bytes")


def figures(row: dict[str, Any], workloads: Iterable[dict[str, Any]]) -> str:
    """One engine start in a line: what it held and how fast it was, or why not."""
    if row["status"] in ("failed", "pruned"):
        return f"{row['failure_cause']}: {row['failure_sentence']}"
    parts = [f"weights {gib(row['weights_bytes'])}", f"KV {gib(row['kv_cache_bytes'])}", f"peak {gib(peak_bytes(row))}"]
    speeds = [w["output_tokens_per_s"] for w in workloads if w.get("output_tokens_per_s")]
    if speeds:
        parts.append(f"{max(speeds):,.0f} tokens/s")
    if row.get("missing_kernel"):
        parts.append(f"cannot generate here: lacks {row['missing_kernel']}")
    elif row["status"] == "memory_only":
        parts.append(str(row["failure_sentence"]))
    return ", ".join(parts)


def print_summary(console: Console, rows: list[dict[str, Any]], workloads: list[dict[str, Any]], where: str) -> None:
    """All rows of a set, one line a point, in the order they were started."""
    by_run: dict[str, list[dict[str, Any]]] = {}
    for workload in workloads:
        by_run.setdefault(workload["run_id"], []).append(workload)
    table = Table(box=None, pad_edge=False, header_style="bold")
    numeric = ("weights", "KV pool", "KV tokens", "peak", "start", "tokens/s", "TTFT p50", "TPOT p50")
    for name in ("model", "weights as", "T", "S", *numeric, "status"):
        table.add_column(name, justify="right" if name in (*numeric, "T", "S") else "left", no_wrap=name != "status")
    for row in sorted(rows, key=lambda r: (r["model"], r["quantization"], r["started_unix_s"])):
        table.add_row(*_cells(row, by_run.get(row["run_id"], [])))
    console.print(table)
    device = next((row["device_name"] for row in rows), None)
    kinds = {row["device_kind"] for row in rows}
    peak = "device memory (NVML)" if kinds == {"cuda"} else "the engine's process tree (PSS)"
    console.print(Text(f"T: max-num-batched-tokens, S: max-num-seqs. peak: {peak}. GiB = 2^30 bytes. Device: {device}"))
    counts = {
        status: sum(row["status"] == status for row in rows) for status in ("ok", "memory_only", "pruned", "failed")
    }
    told = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    console.print(Text(f"{len(rows)} engine starts in {where}: {told}"))


def _cells(row: dict[str, Any], workloads: list[dict[str, Any]]) -> list[str]:
    best = max(workloads, key=lambda w: w.get("output_tokens_per_s") or 0.0, default={})
    speed, ttft, tpot = (best.get(name) for name in ("output_tokens_per_s", "ttft_p50_s", "tpot_p50_s"))
    status = row["status"]
    if status == "memory_only":
        lacks = f"lacks {row['missing_kernel']}" if row["missing_kernel"] else row["failure_cause"]
        status = f"memory only ({lacks})"
    elif status in ("failed", "pruned"):
        status = f"{status}: {row['failure_cause']} ({row['failure_phase']})"
    if row["flags"]:
        status += f" [{', '.join(row['flags'])}]"
    tokens, seqs = (row[f"effective_{k}"] or row[k] for k in ("max_num_batched_tokens", "max_num_seqs"))
    return [
        row["model"], row["quantization"], _int(tokens), _int(seqs),
        gib(row["weights_bytes"]), gib(row["kv_cache_bytes"]), _int(row["kv_cache_tokens"]), gib(peak_bytes(row)),
        "-" if row["startup_s"] is None else f"{row['startup_s']:.1f} s",
        "-" if speed is None else f"{speed:,.0f}",
        "-" if ttft is None else f"{ttft * 1e3:,.0f} ms",
        "-" if tpot is None else f"{tpot * 1e3:,.1f} ms",
        status,
    ]  # fmt: skip


def _int(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
