"""What was measured, on what, and how far the rows can be trusted: it comes before any figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape

from analysis import rows as result_rows
from analysis.report.context import Context, Section
from analysis.report.flags import meaning
from analysis.report.points import GIB
from analysis.report.read import ResultSet, Row
from analysis.report.table import Column, Table
from analysis.rows import held_back

STATUSES = ("ok", "memory_only", "failed", "pruned")


def section(context: Context) -> Section:
    out = Section("quality", "Provenance and data quality")
    out.notes += context.problems + [problem for one in context.sets for problem in one.problems]
    out.html = "".join(_card(one) for one in context.sets)
    differing = result_rows.differences(row for point in context.points for row in point.rows)
    if differing:
        out.notes.append(
            "The starts come from several environments. They are never pooled: every point stays within one, and names "
            "say which."
        )
        out.tables.append(_environments(context, differing))
    starts = [row for point in context.points for row in point.rows]
    if starts and not context.good:
        out.notes.append("No start was successful: there is no measured memory and no speed, only the failures below.")
    if single := [point for point in context.good if len(point.good) == 1]:
        out.notes.append(
            f"{_share(len(single), len(context.good))} points were started once: their spread over restarts is not "
            "known."
        )
    loads = [load for point in context.points for load in point.workloads]
    out.notes += _client(loads)
    if any(row.get("device_kind") == "cpu" for row in starts):
        out.notes.append("Rows of a CPU engine calibrate nothing about GPUs and are never mixed with theirs.")
    if flags := _flags(starts, loads):
        out.tables.append(flags)
    if starts:
        out.tables.append(_starts(context))
    return out


def _share(part: int, whole: int) -> str:
    return f"All {whole:,}" if part == whole else f"{part:,} of {whole:,}"


def _values(rows: Iterable[Row], column: str, most: int = 4) -> str:
    found = sorted({str(row[column]) for row in rows if row.get(column) not in (None, "")})
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def _card(one: ResultSet) -> str:
    rows = one.engines
    if not rows:
        return f"<div class=card><h3>{escape(one.name)}</h3><p>No engine start could be read.</p></div>"
    counts = Counter(str(row.get("status")) for row in rows)
    began = [row["started_unix_s"] for row in rows if isinstance(row.get("started_unix_s"), int | float)]
    memory = {row.get("device_memory_total_bytes") for row in rows} - {None}
    device = _values(rows, "device_name")
    if len(memory) == 1:
        device += f", {next(iter(memory)) / GIB:.1f} GiB"  # type: ignore[operator]
    schema = ", ".join(map(str, sorted(one.schema_versions)))
    old = " (older: columns that came later are empty)" if one.schema_versions and max(one.schema_versions) < 2 else ""
    facts = [
        ("Starts", " · ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in STATUSES)),
        ("Workloads", f"{len(one.workloads):,}"),
        ("Single requests", _requests(one)),
        ("Points", f"{len({row.get('point_id') for row in rows}):,}"),
        ("Models", _values(rows, "model", 6)),
        ("Formats", _values(rows, "quantization", 8)),
        ("Device", device),
        ("Driver, CUDA", " · ".join(filter(None, (_values(rows, "driver_version"),
                                                  _values(rows, "cuda_driver_version"))))),
        ("vLLM", _values(rows, "vllm_version")),
        ("torch, transformers", f"{_values(rows, 'torch_version')} · {_values(rows, 'transformers_version')}"),
        ("Launcher, runner", f"{_values(rows, 'launcher')} · {_values(rows, 'model_runner')}"),
        ("Measured", f"{_day(min(began))} to {_day(max(began))}" if began else ""),
        ("Harness", f"{_values(rows, 'harness_version')}, commit {_values(rows, 'harness_commit') or 'unknown'}"),
        ("Host", f"{_values(rows, 'host_cpu')}, {_values(rows, 'host_cpu_count')} CPUs, "
                 f"{_values(rows, 'container') or 'no container'}"),
        ("Schema", (schema or "unknown") + old),
        ("Superseded rows", f"{one.superseded:,}, left aside for newer ones" if one.superseded else ""),
        ("Folder", str(one.root)),
    ]  # fmt: skip
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts if text.strip(" ·"))
    return f"<div class=card><h3>{escape(one.name)}</h3><dl>{lines}</dl></div>"


def _requests(one: ResultSet) -> str:
    count = sum(1 for _ in (one.root / "requests").glob("*.parquet"))
    return f"of {count:,} starts, in the requests table (SELECT * FROM requests)" if count else ""


def _day(unix_s: float) -> str:
    try:
        return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, OSError, ValueError):
        return "an impossible date"


def _client(loads: list[Row]) -> list[str]:
    bound = [load for load in loads if held_back(load)]
    if not bound:
        return []
    return [f"{_share(len(bound), len(loads))} workloads were held back by the client, not the engine: their "
            "throughput and latency are lower bounds of what the engine can do."]  # fmt: skip


def _flags(starts: list[Row], loads: list[Row]) -> Table | None:
    rows: list[list[object]] = []
    for kind, found in (("workload", loads), ("start", starts)):
        counts: Counter[str] = Counter()
        example: dict[str, str] = {}
        for row in found:
            for flag in dict.fromkeys(map(str, row.get("flags") or ())):  # type: ignore[call-overload]
                counts[flag] += 1
                example.setdefault(flag, str(row.get("run_id")))
        told = {row[0] for row in rows}  # a start repeats the flags of its workloads
        rows += [[flag, kind, count, 100 * count / len(found), meaning(flag), example[flag]]
                 for flag, count in counts.most_common() if flag not in told]  # fmt: skip
    if not rows:
        return None
    columns = [Column("Flag", "id"), Column("Of a"), Column("Rows", "0"), Column("%", "1"), Column("Meaning"),
               Column("such as run_id", "id")]  # fmt: skip
    return Table("flags", "Flags: reasons not to trust a row blindly", columns, rows, open=True)


def _environments(context: Context, differing: dict[str, list[str]]) -> Table:
    columns = [Column("Set"), Column("Environment"), *(Column(name) for name in differing), Column("Starts", "0"),
               Column("environment_id", "id")]  # fmt: skip
    groups: dict[tuple[str, str], list[Row]] = {}
    for point in context.points:
        groups.setdefault((point.set_name, point.environment_id), []).extend(point.rows)
    rows = []
    for (set_name, environment), mine in groups.items():
        ids = context.naming.environments.get(set_name, [environment])
        rows.append([set_name, f"environment {ids.index(environment) + 1}",
                     *(_values(mine, name) or "none" for name in differing), len(mine), environment])  # fmt: skip
    return Table("environments", "What differs between the environments", columns, rows, open=True)


def _starts(context: Context) -> Table:
    unit = context.unit
    columns = [Column("Set"), Column("Status"), Column("Model"), Column("Format"), Column("Pool, ranks"),
               Column("T", "0"), Column("S", "0"), Column("Restart", "0"), Column("start, s", "1"),
               Column(f"weights, {unit.name}", str(unit.decimals)), Column("KV tokens", "0"), Column("Flags"),
               Column("point_id", "id"), Column("run_id", "id")]  # fmt: skip
    rows = [
        [point.set_name, row.get("status"), context.naming.group(point), point.quantization, point.other,
         point.tokens or None, point.seqs or None, row.get("repeat"), row.get("startup_s"),
         unit.of(row.get("weights_bytes")), row.get("kv_cache_tokens"),  # type: ignore[arg-type]
         ", ".join(map(str, row.get("flags") or ())), point.point_id, row.get("run_id")]  # type: ignore[call-overload]
        for point in context.points for row in point.rows
    ]  # fmt: skip
    return Table("starts", "Every engine start", columns, rows,
                 "The marks of every chart lead here. T: max-num-batched-tokens, S: max-num-seqs.",
                 "SELECT * FROM engines WHERE run_id = 'RUN_ID'", sets=context.roots, most=20_000)  # fmt: skip
