"""How long `python -m analysis compare` takes over 1,000,000 workload rows, and its peak memory.

Two sets of 500 engine configurations x 50 restarts with 20 workloads each: 10,000 cells, 1,000,000 workload rows and
50,000 engine starts, in the harness's own schema. The sets are consolidated: one file per round of restarts and table,
200 files in all. `--small-files N` also times sets of N engine starts as the harness writes them, a file per start and
table. Files are written first and not timed; the page cache is warm. Peak memory is the process's own high-water mark.

    .venv/bin/python tests/benchmarks/bench_compare.py [--restarts 50] [--configurations 500] [--workloads 20]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.record.tables import table_schema

ROOT = Path(__file__).resolve().parents[2]
LATENCIES = [f"{name}_{part}_s" for name in ("ttft", "tpot", "itl", "e2e") for part in ("mean", "p50", "p90", "p99")]


def filled(table: str, count: int, columns: dict[str, object]) -> pa.Table:
    """A table of the harness's schema; what is not given is null."""
    schema = table_schema(table)
    arrays = []
    for field in schema:
        value = columns.get(field.name)
        if value is None:
            arrays.append(pa.nulls(count, field.type))
        elif isinstance(value, np.ndarray | list):
            arrays.append(pa.array(value).cast(field.type))
        else:
            arrays.append(pa.repeat(pa.scalar(value, field.type), count))
    return pa.table(arrays, schema=schema)


def write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")


def round_of(rng: np.random.Generator, version: str, configs: np.ndarray, workloads: int, repeat: int, shift: float
             ) -> tuple[pa.Table, pa.Table]:  # fmt: skip
    """Engines and workloads of one restart of every configuration, 1 % noise around `shift`."""
    count = len(configs)
    runs = [f"{version}-{config:04d}-r{repeat}" for config in configs]

    def noisy(base: np.ndarray | float, size: int) -> np.ndarray:
        return base * shift * (1 + 0.01 * rng.standard_normal(size))

    flat = np.zeros(count)
    engines = filled("engines", count, {
        "run_id": runs, "point_id": [f"{config:04d}" for config in configs], "environment_id": version,
        "set_name": version, "repeat": repeat, "started_unix_s": 1.7e9 + repeat * 1e4 + configs, "status": "ok",
        "flags": [[]] * count, "model": [f"model-{config % 10}" for config in configs], "quantization": "bf16",
        "max_num_seqs": 2 ** (configs // 10 % 10), "max_num_batched_tokens": 1024 * (1 + configs // 100),
        "kv_pool_mode": "auto", "gpu_memory_utilization": 0.9, "enforce_eager": False, "tensor_parallel_size": 1,
        "launcher": "spawn", "device_kind": "cuda", "device_name": "NVIDIA H100 80GB HBM3", "vllm_version": version,
        "driver_version": "580.65", "weights_bytes": (15e9 + flat).astype(np.int64),
        "activation_peak_bytes": noisy(1e9, count).astype(np.int64),
        "non_torch_bytes": noisy(4e8, count).astype(np.int64), "kv_cache_bytes": noisy(5e10, count).astype(np.int64),
        "device_memory_peak_bytes": noisy(7.5e10, count).astype(np.int64), "startup_s": noisy(40.0, count),
    })  # fmt: skip
    size = count * workloads
    which = np.tile(np.arange(workloads), count)
    rows = filled("workloads", size, {
        "run_id": np.repeat(runs, workloads).tolist(), "workload": [f"w{at}" for at in which], "position": which,
        "pattern": "closed_loop", "concurrency": 2 ** (which % 10), "num_requests": 256,
        "input_tokens": 1024 * (1 + which // 10), "output_tokens": 128, "temperature": 0.0, "top_p": 1.0, "seed": 0,
        "status": "ok", "flags": [[]] * size, "window_s": noisy(30.0, size),
        "output_tokens_per_s": noisy(2000.0, size), "total_tokens_per_s": noisy(18000.0, size),
        "requests_per_s": noisy(16.0, size), "energy_j": noisy(15000.0, size),
        **{name: noisy(0.05, size) for name in LATENCIES},
    })  # fmt: skip
    return engines, rows


def generate(root: Path, version: str, seed: int, args: argparse.Namespace) -> Path:
    rng = np.random.default_rng(seed)
    configs = np.arange(args.configurations)
    for repeat in range(args.restarts):
        engines, rows = round_of(rng, version, configs, args.workloads, repeat, 1.0 + 0.002 * seed)
        write(root / version / "engines" / f"round-{repeat:03d}.parquet", engines)
        write(root / version / "workloads" / f"round-{repeat:03d}.parquet", rows)
    return root / version


def generate_small(root: Path, version: str, seed: int, starts: int) -> Path:
    rng = np.random.default_rng(seed)
    for at in range(starts):
        engines, rows = round_of(rng, version, np.array([at % 50]), 3, at // 50, 1.0)
        write(root / version / "engines" / f"run-{at:05d}.parquet", engines)
        write(root / version / "workloads" / f"run-{at:05d}.parquet", rows)
    return root / version


def timed(a: Path, b: Path) -> tuple[float, float, str]:
    """Wall seconds, peak GiB of the process, and its summary."""
    begin = time.perf_counter()
    # As `python -m analysis`. The child measures its own peak: of all children it would be that of the largest repeat.
    code = (
        "import atexit, resource, runpy, sys; atexit.register(lambda: "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)); "
        "runpy.run_module('analysis', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", code, "compare", str(a), str(b), "--width", "120"], cwd=ROOT,
                          capture_output=True, text=True, check=False)  # fmt: skip
    wall = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(done.stderr)
    return wall, int(done.stderr.split()[-1]) * 1024 / 2**30, done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configurations", type=int, default=500)
    parser.add_argument("--restarts", type=int, default=50)
    parser.add_argument("--workloads", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="how often the comparison is timed")
    parser.add_argument("--small-files", type=int, default=0, metavar="N", help="also time N one-row files per table")
    parser.add_argument("--keep", type=Path, help="make the sets in this folder and leave them there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = args.keep or Path(scratch)
        cases = [("consolidated", generate(root, "0.31.0", 0, args), generate(root, "0.32.0", 1, args),
                  2 * args.configurations * args.restarts * args.workloads)]  # fmt: skip
        if args.small_files:
            small = root / "small"
            cases.append(("a file per start", generate_small(small, "0.31.0", 0, args.small_files),
                          generate_small(small, "0.32.0", 1, args.small_files), 6 * args.small_files))  # fmt: skip
        for name, a, b, rows in cases:
            results = [timed(a, b) for _ in range(args.repeats)]
            walls = ", ".join(f"{wall:.2f}" for wall, _, _ in results)
            print(f"{name}: {rows:,} workload rows: {walls} s, peak {max(peak for _, peak, _ in results):.2f} GiB")
            print("\n".join("    " + line for line in results[-1][2].splitlines()[-6:]))
    print(f"(generator's own peak: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB)")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main())
