"""How long the report of many points takes, how large it is, and how it opens in a real browser.

    python tests/benchmarks/bench_report.py [--points 10000] [--keep FOLDER] [--no-browser]

The rows are made up, in the schema, one file per start and table as the harness writes them: models, formats, T, S,
flags, failures and pruned points in the shares of a large sweep. They are no measurement of any GPU. The report is made
twice: of these files, and of the same set joined (`python -m bench.record.compact`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HERE))

from bench.record.compact import compact  # noqa: E402

GIB = 2**30
MODELS = tuple((f"model-{size}b-{kind}", size * 10**9) for size in (1, 3, 7, 14) for kind in ("a", "b"))
FORMATS = (("bf16", 2.0), ("awq", 0.6), ("gptq", 0.6), ("int8-w8a8", 1.1), ("fp8", 1.1))
TOKENS = (512, 1024, 2048, 4096, 8192, 16384)
SEQS = (8, 16, 32, 64, 128, 256)
CARD = 79.2 * GIB


def row_of(number: int) -> tuple[dict[str, Any], dict[str, Any] | None, list[dict[str, Any]]]:
    """Engine row, workload row and samples of one made-up start; the same for the same number."""
    rng = random.Random(number)
    model, parameters = MODELS[number % len(MODELS)]
    fmt, width = FORMATS[number // len(MODELS) % len(FORMATS)]
    grid = number // (len(MODELS) * len(FORMATS))
    tokens, seqs = TOKENS[grid % len(TOKENS)], SEQS[grid // len(TOKENS) % len(SEQS)]
    layers, hidden = 16 + parameters // 10**9 * 2, 1024 + 256 * (parameters // 10**9)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "vocab_size": 32000,
        "intermediate_size": 4 * hidden, "num_hidden_layers": layers, "num_attention_heads": hidden // 128,
        "num_key_value_heads": hidden // 128, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
    }  # fmt: skip
    point = f"{number:016x}"
    run = f"{point}-r0-20260101T000000000"
    status = "pruned" if number % 25 == 0 else "failed" if number % 40 == 1 else "ok"
    weights = int(parameters * width)
    activation = int(tokens * hidden * 12 + seqs * 32000 * 14 * rng.uniform(0.97, 1.03))
    pool = int(CARD * 0.9 - weights - activation - 0.4 * GIB)
    row: dict[str, Any] = {
        "run_id": run, "point_id": point, "environment_id": "made-up", "set_name": "made-up", "repeat": 0,
        "started_unix_s": 1.767e9 + 60 * number, "status": status, "model": model, "quantization": fmt,
        "quantization_label": fmt.upper(), "model_config_json": json.dumps(config), "dtype": "bfloat16",
        "kv_pool_mode": "auto", "max_num_seqs": seqs, "max_num_batched_tokens": tokens, "max_model_len": 8192,
        "effective_max_num_seqs": seqs, "effective_max_num_batched_tokens": tokens, "effective_max_model_len": 8192,
        "gpu_memory_utilization": 0.9, "tensor_parallel_size": 1, "pipeline_parallel_size": 1, "enforce_eager": True,
        "device_kind": "cuda", "device_name": "NVIDIA H100 80GB HBM3", "device_memory_total_bytes": 81559 * 2**20,
        "vllm_version": "0.32.0", "model_runner": "v1", "driver_version": "made up", "flags": [], "warnings": [],
    }  # fmt: skip
    if status != "ok":
        row |= {"failure_phase": "kv_allocation", "failure_cause": "out_of_memory", "shortfall_bytes": 3 * GIB,
                "failure_sentence": "3.00 GiB are missing for the KV cache (made up)"}  # fmt: skip
        return row, None, []
    row |= {
        "weights_bytes": weights, "expected_weights_bytes": weights, "activation_peak_bytes": activation,
        "non_torch_bytes": int(0.2 * GIB), "kv_cache_bytes": pool, "available_kv_cache_bytes": pool,
        "requested_bytes": int(CARD * 0.9), "kv_cache_tokens": pool // 100_000, "init_total_bytes": int(CARD),
        "init_free_bytes": int(CARD - 0.5 * GIB), "device_memory_baseline_bytes": 0, "startup_s": rng.uniform(20, 90),
        "device_memory_peak_bytes": int(CARD * 0.9 + 0.6 * GIB), "runtime_activation_peak_bytes": activation + 2**26,
        "flags": ["throttled"] if number % 11 == 0 else [],
    }  # fmt: skip
    rate = 900.0 * seqs**0.6 * width**-0.3 * (7e9 / parameters) ** 0.8 * rng.uniform(0.95, 1.05)
    load = {
        "run_id": run, "point_id": point, "workload": f"c{seqs}", "position": 0, "pattern": "closed_loop",
        "concurrency": seqs, "num_requests": 256, "input_tokens": 1024, "output_tokens": 128, "status": "ok",
        "completed": 256, "failed": 0, "flags": [], "output_tokens_per_s": rate, "ttft_p50_s": 0.05 + seqs / 500,
        "ttft_mean_s": 0.06 + seqs / 500, "tpot_p50_s": seqs / rate, "tpot_mean_s": seqs / rate,
    }  # fmt: skip
    samples = [
        {"run_id": run, "t_s": 0.5 * i, "phase": "launch" if i < 60 else f"load:c{seqs}", "device_index": 0,
         "device_memory_used_bytes": int(CARD * 0.9 * min(i / 60, 1)), "gpu_utilization_pct": float(min(i, 99))}
        for i in range(120)
    ]  # fmt: skip
    return row, load, samples


def write_part(root: str, numbers: range) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from bench.record.tables import table_schema

    schemas = {table: table_schema(table) for table in ("engines", "workloads", "samples")}
    for number in numbers:
        row, load, samples = row_of(number)
        for table, rows in (("engines", [row]), ("workloads", [load] if load else []), ("samples", samples)):
            if rows:
                names = set(schemas[table].names)
                known = [{name: value for name, value in one.items() if name in names} for one in rows]
                pq.write_table(pa.Table.from_pylist(known, schema=schemas[table]),
                               Path(root) / table / f"{row['run_id']}.parquet", compression="zstd")  # fmt: skip
    return len(numbers)


def generate(root: Path, points: int) -> None:
    """The set, one file per start and table."""
    for table in ("engines", "workloads", "samples"):
        (root / table).mkdir(parents=True, exist_ok=True)
    parts: Iterator[range] = (range(low, min(low + 250, points)) for low in range(0, points, 250))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for part in [pool.submit(write_part, str(root), part) for part in parts]:
            part.result()


def browse(page: Path, folder: Path) -> dict[str, Any]:
    """How the page opens: milliseconds until loaded, and its tasks of more than 50 ms."""
    from tests.browser.driver import Browser

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        return {"browser": "none here"}
    browser = Browser.start(Path(chromium), Path(driver), folder)
    try:
        found: dict[str, Any] = {}
        for width in (390, 1440):
            browser.open(page, width=width, height=900)
            found[f"loaded_ms_{width}"] = round(browser.run(
                "return performance.getEntriesByType('navigation')[0].loadEventEnd"))  # fmt: skip
            tasks = browser.driver.execute_async_script(
                "const done = arguments[0], seen = [];"
                "new PerformanceObserver((list) => list.getEntries().forEach("
                "(one) => seen.push(Math.round(one.duration)))).observe({type: 'longtask', buffered: true});"
                "const step = (at) => { if (at > document.body.scrollHeight) return setTimeout(() => done(seen), 300);"
                "scrollTo({top: at, behavior: 'instant'}); requestAnimationFrame(() => step(at + 600)); }; step(0);"
            )
            found[f"long_tasks_ms_{width}"] = tasks
            found["nodes"] = browser.run("return document.querySelectorAll('*').length")
            found["console"] = browser.console_errors()
        return found
    finally:
        browser.quit()


def report(root: Path, page: Path) -> bool:
    """Makes the report and prints what it took; whether that is within the limits."""
    page.unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "report", str(root), "--out", str(page)], cwd=HERE, check=False,
    )  # fmt: skip
    if not page.is_file():
        print(f"{root.name}: exit {done.returncode}, no page: NOT met")
        return False
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    met = done.returncode == 0 and wall < 30 and page.stat().st_size < 10e6
    print(f"{root.name}: exit {done.returncode}; wall {wall:.1f} s, CPU {cpu:.1f} s, peak of all so far "
          f"{after.ru_maxrss / 2**20:.2f} GiB, page {page.stat().st_size / 1e6:.2f} MB (limits: 30 s, 10 MB): "
          f"{'met' if met else 'NOT met'}")  # fmt: skip
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--keep", type=Path, help="make the set and the report here, and use a set that is there")
    parser.add_argument("--no-browser", action="store_true")
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp()) if args.keep is None else args.keep
    try:
        root, page = scratch / f"made-up-{args.points}", scratch / "report" / "index.html"
        if not root.is_dir():
            began = time.monotonic()
            generate(root, args.points)
            print(f"{args.points:,} points made in {time.monotonic() - began:.0f} s")
        joined = scratch / f"made-up-{args.points}-joined"
        if not joined.is_dir():
            shutil.copytree(root, joined, copy_function=os.link)
            began = time.monotonic()
            for one in compact(joined)[0]:
                print(one)
            print(f"joined in {time.monotonic() - began:.0f} s")
        met = [report(one, page) for one in (root, joined)]
        if not args.no_browser:
            print(json.dumps(browse(page, scratch / "profile"), indent=1))
        return 0 if all(met) else 1
    finally:
        if args.keep is None:
            shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main())
