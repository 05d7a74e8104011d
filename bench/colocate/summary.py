"""What a person reads of groups: a line for each engine and stream, what they did together, and what the router saw."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.colocate.label import differences
from bench.progress import gib

Row = Mapping[str, Any]
_MODES = ("direct", "alone", "together")


def group_peak_bytes(row: Row) -> int | None:
    """The peak of the whole device on a GPU, of all process trees together on a CPU."""
    return row.get("device_memory_peak_bytes") or row.get("tree_pss_peak_bytes")


def group_figures(row: Row) -> str:
    """One group in a line."""
    if row["status"] != "ok":
        short = f" (short by {gib(row['shortfall_bytes'])})" if row.get("shortfall_bytes") else ""
        return f"{row['failure_cause']}: {row['failure_sentence']}{short}"
    parts = [f"{len(row['members'])} engines", f"peak together {gib(group_peak_bytes(row))}"]
    if row.get("joint_output_tokens_per_s"):
        parts.append(f"{row['joint_output_tokens_per_s']:,.0f} tokens/s together")
    if row.get("joint_share"):
        parts.append(f"{row['joint_share']:.0%} of what they reach alone")
    return ", ".join(parts)


def print_groups(
    console: Console, groups: Sequence[Row], rows_of: Callable[[str], list[dict[str, Any]]], where: str
) -> None:
    """Every group of a set; `rows_of` reads a table. Nothing where there is none."""
    if not groups:
        return
    engines, workloads = rows_of("engines"), rows_of("workloads")
    titles = _titles(groups)
    for group in sorted(groups, key=lambda row: row["started_unix_s"]):
        mine = [row for row in engines if row.get("colocation_id") == group["run_id"]]
        loads = [row for row in workloads if row.get("colocation_id") == group["run_id"]]
        ordered = sorted(mine, key=lambda row: row["colocation_position"])
        _print_group(console, group, titles[group["run_id"]], ordered, loads)
    told = ", ".join(f"{sum(row['status'] == one for row in groups)} {one}" for one in ("ok", "pruned", "failed")
                     if any(row["status"] == one for row in groups))  # fmt: skip
    console.print(Text(f"\n{len(groups)} group{'s' if len(groups) > 1 else ''} of engines in {where}: {told}"))


def _titles(groups: Sequence[Row]) -> dict[str, str]:
    """Each group's name by its run, with what differs where several points have one name."""
    titles = {}
    for name in {group["colocation"] for group in groups}:
        points = {group["point_id"]: group for group in groups if group["colocation"] == name}
        told = dict(zip(points, differences([_asked(one) for one in points.values()]), strict=True))
        titles |= {group["run_id"]: " ".join(filter(None, (name, told[group["point_id"]])))
                   for group in groups if group["colocation"] == name}  # fmt: skip
    return titles


def _asked(group: Row) -> dict[str, Any]:
    """The settings of a group, without what only its run knows."""
    found = {name: json.loads(group.get(f"{name}_json") or "{}") for name in ("members", "streams", "router")}
    for member in found["members"].values():
        for name in ("run_id", "status"):
            member.pop(name, None)
    return found


def _print_group(console: Console, group: Row, title: str, engines: Sequence[Row], loads: Sequence[Row]) -> None:
    console.print(Text(f"\ngroup {title}: {group['status']}", style="bold"))
    told = any(engine["status"] in ("failed", "pruned") for engine in engines)  # in the engine's own line
    if group["status"] != "ok" and not told:
        console.print(Text(f"  {group_figures(group)}"))
    for engine in engines:
        console.print(Text(f"  {_engine_line(engine)}"))
    for name in group["not_started"] or ():
        console.print(Text(f"  {name}: its turn did not come"))
    console.print(Text(f"  {_memory_line(group)}"))
    if not loads:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("  stream", "engine", "driven"):
        table.add_column(title)
    for title in ("tokens/s", "TTFT p50", "TPOT p50", "E2E p50", "ok", "failed"):
        table.add_column(title, justify="right")
    table.add_column("notes")
    for stream in dict.fromkeys(row["workload"] for row in sorted(loads, key=lambda row: row["started_unix_s"])):
        for mode in _MODES:
            rows = [row for row in loads if (row["workload"], row["colocation_mode"]) == (stream, mode)]
            if rows:
                table.add_row(*(Text(cell) for cell in _stream_cells(stream, mode, rows)))
    console.print(table)
    if group.get("joint_output_tokens_per_s"):
        share = group.get("joint_share")
        of = f", {share:.0%} of the sum of what each reaches alone" if share else ""
        console.print(Text(f"  together: {group['joint_output_tokens_per_s']:,.1f} tokens/s{of}, over the "
                           f"{group['joint_window_s']:.1f} s in which all were under way"))  # fmt: skip
    for line in _interference_lines(group):
        console.print(Text(f"  {line}"))
    for line in _router_lines(group):
        console.print(Text(f"  {line}"))


def _engine_line(row: Row) -> str:
    name = f"{row['colocation_position'] + 1}. {row['colocation_member']} ({row['model']} {row['quantization']})"
    if row["status"] in ("failed", "pruned"):
        short = f", short by {gib(row['shortfall_bytes'])}" if row.get("shortfall_bytes") else ""
        why = f"{row['failure_cause']}: {row['failure_sentence']}"
        return f"{name}: {row['status']} in {row['failure_phase']}, {why}{short}"
    peak = row.get("process_memory_peak_bytes") or row.get("tree_pss_peak_bytes")
    return (f"{name}: weights {gib(row['weights_bytes'])}, KV {gib(row['kv_cache_bytes'])}, own peak {gib(peak)}, "
            f"ready after {row['startup_s']:.1f} s")  # fmt: skip


def _memory_line(group: Row) -> str:
    if group.get("device_memory_peak_bytes"):
        names = ("baseline", "ready", "peak")
        before, ready, peak = (gib(group[f"device_memory_{name}_bytes"]) for name in names)
        return f"device: {before} before, {ready} with all ready, peak {peak}"
    ready, peak, own = (gib(group[f"tree_pss_{name}_bytes"]) for name in ("ready", "peak", "peaks_sum"))
    return (f"all process trees at one time (PSS): {ready} with all ready, peak {peak}; each engine's own peaks add "
            f"up to {own}")  # fmt: skip


def _stream_cells(stream: str, mode: str, rows: Sequence[Row]) -> tuple[str, ...]:
    """Speeds are of the runs that went through: a stream whose engine died has counts and no throughput to quote."""

    def middle(name: str, scale: float, form: str, unit: str = "") -> str:
        known = [row[name] for row in rows if row.get(name) is not None]
        return format(statistics.median(known) * scale, form) + unit if known else "-"

    flags = sorted({flag for row in rows for flag in row["flags"] or ()})
    notes = [name.replace("_", " ") for name in flags if name in ("sibling_died", "little_overlap")]
    notes += ["client-bound"] if any(row.get("client_bound") for row in rows) else []
    notes += sorted({str(row["failure_cause"]) for row in rows if row.get("failure_cause")})
    completed = sum(row["completed"] or 0 for row in rows)
    failed = sum((row["failed"] or 0) + (row["not_sent"] or 0) for row in rows)
    named = (f"  {stream}", str(rows[0]["colocation_member"]), f"{mode}{f' x{len(rows)}' if len(rows) > 1 else ''}")
    rows = [row for row in rows if row["status"] == "ok"]
    return (
        *named,
        middle("output_tokens_per_s", 1, ",.1f"), middle("ttft_p50_s", 1e3, ",.0f", " ms"),
        middle("tpot_p50_s", 1e3, ",.1f", " ms"), middle("e2e_p50_s", 1e3, ",.0f", " ms"),
        str(completed), str(failed), ", ".join(notes),
    )  # fmt: skip


def _interference_lines(group: Row) -> list[str]:
    found = json.loads(group["interference_json"]) if group.get("interference_json") else {}
    lines = []
    for stream, metrics in found.items():
        told = []
        for metric, one in metrics.items():
            spread = f" ({one['min']:.2f} to {one['max']:.2f})" if one["pairs"] > 1 else ""
            told.append(f"{metric} x{one['median']:.2f}{spread}")
        lines.append(f"interference on {stream}, together over alone: {', '.join(told)}")
    if lines:
        lines.append(f"it rests on {group['interference_basis']}")
    elif group.get("joint_output_tokens_per_s") is not None or group["status"] != "ok":
        lines.append("neither interference nor a joint throughput is stated: not every stream was driven whole, alone "
                     "and together, beside engines that live")  # fmt: skip
    return lines


def _router_lines(group: Row) -> list[str]:
    if group.get("router_requests") is None:
        return []
    lines = []
    for name, one in (json.loads(group["router_outcomes_json"]) if group["router_outcomes_json"] else {}).items():
        kinds = ", ".join(f"{count} {kind}" for kind, count in one["outcomes"].items() if count) or "none"
        waiting = f", at most {one['peak_queued']} waiting" if one.get("peak_queued") else ""
        lines.append(f"router -> {name}: {kinds}; at most {one['peak_in_flight']} in flight{waiting}")
    for stream, cost in (json.loads(group["router_cost_json"]) if group["router_cost_json"] else {}).items():
        parts = [f"{name[:4].upper()} {cost[f'{name[:4]}_p50_s'] * 1e3:+.1f} ms" for name in ("ttft", "tpot")
                 if f"{name}_p50_s" in cost]  # fmt: skip
        if "output_tokens_per_s_ratio" in cost:
            parts.append(f"tokens/s x{cost['output_tokens_per_s_ratio']:.2f}")
        lines.append(f"the router's cost for {stream}, through it against past it: {', '.join(parts)}")
    return lines
