"""What the closing table has no room for: open-loop workloads, with the rate asked and served, and knees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]

MOST_LINES = 40


def print_loads(console: Console, engines: Sequence[Row], by_run: Mapping[str, Sequence[Row]]) -> None:
    """One line per open-loop workload, trials of knee searches left to their rows."""
    lines = [
        (engine, row)
        for engine in engines
        for row in by_run.get(engine["run_id"], ())
        if row.get("rate_per_s") is not None or row.get("pattern") == "trace"
        if row.get("knee_trial") is None or row.get("knee_answer")
    ]
    if not lines:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = ("model", "weights as", "T", "S", "workload", "asked/s", "served/s", "in flight", "TTFT p50", "p99",
             "TPOT p50", "p99", "goodput", "notes")  # fmt: skip
    for name in names:
        table.add_column(name, justify="left" if name in ("model", "weights as", "workload", "notes") else "right")
    for engine, row in lines[:MOST_LINES]:
        asked = row.get("rate_per_s")
        # A ramp or a trace has no one rate: what was due over the time is what was asked.
        offered = row.get("offered_requests_per_s") if asked is None or row.get("rate_end_per_s") else asked
        cells = (
            str(engine["model"]), str(engine["quantization"]), _whole(engine["effective_max_num_batched_tokens"]),
            _whole(engine["effective_max_num_seqs"]), str(row["workload"]), _rate(offered),
            _rate(_served(row)), _rate(row.get("mean_in_flight")),
            _ms(row, "ttft_p50_s"), _ms(row, "ttft_p99_s"), _ms(row, "tpot_p50_s"), _ms(row, "tpot_p99_s"),
            "-" if row.get("goodput_share") is None else f"{row['goodput_share']:.0%}", notes(row),
        )  # fmt: skip
        table.add_row(*(Text(cell) for cell in cells))
    console.print(Text(f"open loop ({'first ' if len(lines) > MOST_LINES else ''}{min(len(lines), MOST_LINES)} of "
                       f"{len(lines)} workloads; latencies: of the steady state, where there is one)"))  # fmt: skip
    console.print(table)


def notes(row: Row) -> str:
    """What makes the row worth less than it looks."""
    flags = row.get("flags") or ()
    told = ["client-bound"] if row.get("client_bound") else []
    told += [name.replace("_", " ") for name in ("not_steady", "no_steady_state", "held_back") if name in flags]
    if row.get("failed") or row.get("not_sent"):
        told.append(f"{(row.get('failed') or 0) + (row.get('not_sent') or 0)} requests failed")
    return ", ".join(told)


def _served(row: Row) -> float | None:
    """Requests/s of the steady state; without one, between the first and the last completion, which few distort."""
    for name in ("steady_requests_per_s", "served_requests_per_s", "requests_per_s"):
        if (value := row.get(name)) is not None:
            return float(value)
    return None


def _ms(row: Row, name: str) -> str:
    """Steady-state latency where there is one."""
    value = row.get(f"steady_{name}")
    value = row.get(name) if value is None else value
    return "-" if value is None else f"{value * 1e3:,.0f} ms"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3g}"


def _whole(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
