"""Result sets for a report: whatever can be read is read, whatever cannot becomes a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from analysis.rows import ENVIRONMENT, RowsError, newest
from analysis.tables.measured import find_set

Row = dict[str, object]

ENGINE_COLUMNS = (
    "colocation_id",
    "run_id", "point_id", "environment_id", "set_name", "repeat", "started_unix_s", "status",
    "failure_phase", "failure_cause", "failure_sentence", "missing_kernel", "shortfall_bytes", "flags", "warnings",
    "model", "model_hub_id", "model_config_json", "quantization",
    "weight_bits", "dtype", "kv_pool_mode", "max_num_seqs", "max_num_batched_tokens", "max_model_len",
    "gpu_memory_utilization", "kv_cache_memory_bytes", "kv_cache_dtype", "block_size", "enforce_eager",
    "tensor_parallel_size", "pipeline_parallel_size", "cpu_offload_gb", "extra_args",
    "effective_config_json", "launcher", "model_runner", "effective_max_num_seqs",
    "effective_max_num_batched_tokens", "effective_max_model_len", "startup_s", "weights_bytes",
    "kv_bytes_per_block", "kv_block_size_tokens",
    "activation_peak_bytes", "non_torch_bytes", "total_consumed_bytes", "cuda_graph_estimate_bytes",
    "cuda_graph_bytes", "requested_bytes", "available_kv_cache_bytes", "kv_cache_bytes", "kv_cache_tokens",
    "runtime_activation_peak_bytes", "init_free_bytes", "init_total_bytes", "worker_rss_start_bytes",
    "worker_rss_ready_bytes", "worker_rss_runtime_peak_bytes", "expected_weights_bytes", "quantization_applied",
    "device_memory_baseline_bytes", "device_memory_peak_bytes", "tree_pss_peak_bytes", "harness_version",
    "harness_commit", "container", *ENVIRONMENT,
)  # fmt: skip
"""What the report shows of an engine start; the long texts of a row stay in its file."""

WORKLOAD_COLUMNS = (
    "run_id", "point_id", "workload", "position", "pattern", "concurrency", "rate_per_s", "rate_end_per_s",
    "num_requests",
    "input_tokens", "output_tokens", "status", "failure_cause", "failure_sentence", "completed", "failed", "flags",
    "output_tokens_per_s", "total_tokens_per_s", "requests_per_s", "steady_output_tokens_per_s", "ttft_p50_s",
    "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "itl_p50_s", "itl_p99_s", "e2e_p50_s", "e2e_p99_s", "preemptions",
    "steady_rule", "steady_requests", "steady_window_s", "steady_tpot_mean_s", "steady_ttft_mean_s", "tpot_mean_s",
    "ttft_mean_s", "input_tokens_json", "output_tokens_json", "shared_prefix_ratio",
    "kv_cache_usage_peak", "client_share_of_machine", "loop_lag_p99_s", "send_delay_p99_s", "client_bound",
    "knee_trial", "knee_axis", "knee_value", "knee_met", "knee_reason", "knee_answer", "knee_slo_json", "knee_outcome",
    "knee_highest_met", "knee_lowest_broken", "knee_notes",
)  # fmt: skip

SAMPLE_COLUMNS = (
    "run_id", "t_s", "phase", "device_index", "device_memory_used_bytes", "process_memory_used_bytes", "power_w",
    "sm_clock_mhz", "gpu_utilization_pct", "tree_pss_bytes", "tree_rss_bytes", "cgroup_bytes", "tree_cpu_s",
)  # fmt: skip

NEWEST_SCHEMA = 2
"""Newest schema of a result set whose columns are known here; later ones may have renamed some."""

TOLD: Final = 5
"""Broken files that are named; of more, the count is."""


@dataclass
class ResultSet:
    """One set: its rows, newest of every restart, and what kept the rest from being read."""

    name: str
    root: Path
    engines: list[Row] = field(default_factory=list)
    workloads: list[Row] = field(default_factory=list)
    superseded: int = 0
    """Rows left aside because a newer row measured the same restart of the same point again."""
    schema_versions: set[int] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def timeline(self, run_id: str) -> list[Row]:
        """The samples of one run in the order of time; empty if there are none that can be read."""
        path = self.root / "samples" / f"{run_id}.parquet"
        if not path.is_file() or Path(run_id).name != run_id:
            return []
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(path)
            present = [name for name in SAMPLE_COLUMNS if name in file.schema_arrow.names]
            rows = file.read(columns=present).to_pylist()
        except (pa.ArrowException, OSError):
            return []
        return sorted((row for row in rows if row.get("t_s") is not None), key=lambda row: row["t_s"])  # type: ignore[arg-type,return-value]


def read_sets(names: Iterable[str]) -> tuple[list[ResultSet], list[str]]:
    """Every set that can be read, and a sentence for every name that is none."""
    sets, problems = [], []
    for name in dict.fromkeys(names):
        try:
            root = find_set(name)
        except RowsError as missing:
            problems.append(str(missing))
            continue
        if any(root.resolve() == one.root.resolve() for one in sets):
            problems.append(f"{name} is a result set that was named already; it is read once")
            continue
        sets.append(_read(root))
    same = {one.name for one in sets if sum(other.name == one.name for other in sets) > 1}
    for one in sets:
        if one.name in same:
            one.name = str(one.root)
    return sets, problems


def _read(root: Path) -> ResultSet:
    found = ResultSet(root.resolve().name, root)
    with ThreadPoolExecutor(2) as pool:
        wanted = [pool.submit(_table, found, *one) for one in
                  (("engines", ENGINE_COLUMNS), ("workloads", WORKLOAD_COLUMNS))]  # fmt: skip
        rows, every = (one.result() for one in wanted)
    found.problems.sort()  # the two tables are read at once
    whole = len(rows)
    # Figures of a shared device are no engine's own.
    rows = [row for row in rows if row.get("colocation_id") is None]
    if len(rows) < whole:
        found.problems.append(f"{root}: {whole - len(rows)} engines that shared the device with others are left aside")
    found.engines = newest(rows)  # type: ignore[arg-type,assignment]
    found.superseded = len(rows) - len(found.engines)
    known = {row.get("run_id") for row in found.engines}
    found.workloads = [row for row in every if row.get("run_id") in known]
    return found


def _table(found: ResultSet, table: str, columns: Sequence[str]) -> list[Row]:
    files = sorted((found.root / table).glob("*.parquet"))
    if not files:
        found.problems.append(f"{found.root} holds no {table}: there is no file {table}/*.parquet")
        return []
    alike = _same_schema(found, files)
    for union in (False, True) if alike else (True,):
        try:
            return _in_parts(files, columns, union)
        except RowsError:
            continue
    rows: list[Row] = []
    broken: list[str] = []
    for path in files:  # one of them is broken: find out which, and keep the others
        try:
            rows += _rows([path], columns)
        except RowsError as problem:
            broken.append(str(problem))
    found.problems += broken[:TOLD]
    if len(broken) > TOLD:
        found.problems.append(f"{len(broken) - TOLD} more files of {table} in {found.root} cannot be read either")
    return rows


def _same_schema(found: ResultSet, files: list[Path]) -> bool:
    """Whether all files have the same columns; notes their schema versions.

    Of many files the oldest, the newest and a sample between are looked at: names end in the time of the start, and
    the program that writes a set only grows newer. Files alike are read in half the time.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    step = max(len(files) // 64, 1)
    in_time = sorted(files, key=lambda path: path.stem.rpartition("-")[2])
    looked = [*in_time[::step], in_time[-1]]
    newer, seen = [], set()
    for path in looked:
        try:
            schema = pq.read_schema(path)
            seen.add(str(schema.remove_metadata()))
            version = int((schema.metadata or {}).get(b"schema_version", b"0"))
        except (pa.ArrowException, OSError, ValueError):
            continue  # named when it is read
        found.schema_versions.add(version)
        if version > NEWEST_SCHEMA:
            newer.append(path)
    if newer:
        found.problems.append(
            f"{newer[0]} was written with a newer schema than {NEWEST_SCHEMA}, which this program knows: what was "
            "renamed since is missing below; update the program"
        )
    return len(seen) == 1


def _in_parts(files: Sequence[Path], columns: Sequence[str], union: bool) -> list[Row]:
    """Rows of many files, on two cores: opening files is what takes the time. Raises RowsError."""
    if len(files) < 400:
        return _rows(files, columns, union)
    half = len(files) // 2
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda part: _rows(part, columns, union), (files[:half], files[half:]))
    return first + second


def _rows(files: Sequence[Path], columns: Sequence[str], union: bool = True) -> list[Row]:
    """Rows of the files with the wanted columns; one that a file lacks is null. Raises RowsError."""
    import duckdb

    wanted = ", ".join(f"'{name}'" for name in columns)
    con = duckdb.connect()
    con.execute("SET threads = 1")  # most of it is opening files, which more threads of one query only slow down
    try:
        query = f"SELECT COLUMNS(lambda c: c IN ({wanted})) FROM read_parquet($files, union_by_name = {union})"
        table = con.sql(query, params={"files": [str(path) for path in files]}).to_arrow_table()
    except (duckdb.Error, OSError) as broken:
        first = (str(broken).strip().splitlines() or [type(broken).__name__])[0]
        raise RowsError(f"{files[0]} is not a readable Parquet file: {first}") from None
    finally:
        con.close()
    return table.to_pylist()
