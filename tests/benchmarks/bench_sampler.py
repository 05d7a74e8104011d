"""What does the sampler cost? Prints its share of one core while it watches a process tree of some GiB.

    python tests/benchmarks/bench_sampler.py [--gib 2] [--processes 4] [--seconds 20] [--hz 20] [--pss-hz 4]

Not a test: it takes long, and its figures belong to the machine it runs on.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.telemetry.sampler import Sampler, read_log  # noqa: E402

TREE = """
import os, sys, time
processes, size = int(sys.argv[1]), int(sys.argv[2])
for _ in range(processes - 1):
    if os.fork() == 0:
        break
block = bytearray(size // processes)
for position in range(0, len(block), 4096):
    block[position] = 1
time.sleep(3600)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the sampler's CPU share.")
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--hz", type=float, default=20.0)
    parser.add_argument("--pss-hz", type=float, default=4.0)
    options = parser.parse_args()
    size = int(options.gib * 2**30)
    tree = subprocess.Popen(
        [sys.executable, "-c", TREE, str(options.processes), str(size)], start_new_session=True
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            before = time.monotonic()
            with Sampler(Path(folder), hz=options.hz, pss_hz=options.pss_hz) as sampler:
                print(f"ready after {time.monotonic() - before:.3f} s")
                sampler.watch(tree.pid, tree.pid)
                while (sampler.latest() is None) or (sampler.latest().tree_rss_bytes or 0) < size:
                    time.sleep(0.1)
                before = time.monotonic()
                sampler.mark("load")
                print(f"a mark takes {time.monotonic() - before:.3f} s")
                time.sleep(options.seconds)
                summary = sampler.stop()
                stats = read_log(sampler.path).stats
    finally:
        os.killpg(tree.pid, signal.SIGKILL)
        tree.wait()
    print(f"share of a core   {summary.sampler_cpu_share:.2%}")
    print(f"ticks a second    {summary.achieved_hz:.2f} (wanted {options.hz}), missed {summary.missed_ticks}")
    print(f"99 % of intervals {summary.interval_p99_s * 1000:.1f} ms or shorter")
    print(f"PSS a second      {summary.pss_hz:.2f} (at most {options.pss_hz})")
    pss_gib = summary.tree_pss_peak_bytes / 2**30
    print(f"tree              {pss_gib:.2f} GiB PSS in {summary.tree_processes_peak} processes")
    for name, (readings, cpu_s) in stats["readings"].items():
        print(f"{name:<17} {readings} readings, {cpu_s / stats['t_s']:.2%} of a core")
    for error in summary.errors:
        print("error:", error)


if __name__ == "__main__":
    main()
