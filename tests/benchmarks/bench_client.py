"""CPU cost of the load client per token, against the simulated server.

Not a test: ``python tests/benchmarks/bench_client.py [streams] [tokens_per_s_per_stream] [seconds]``. The
server sends to all streams at every tick, as a decode loop does. The figures are good for comparing two
states of the client on one machine; the CPU time of a shared machine varies by tens of per cent between runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.load.closed_loop import run_closed_loop  # noqa: E402
from bench.load.spec import LoadSpec  # noqa: E402
from tests.fakes.sim_server import SimServer  # noqa: E402


def measure(streams: int, rate_hz: float, seconds: float) -> None:
    """Print one line for ``streams`` concurrent streams of ``rate_hz`` tokens per second each."""
    tokens = max(2, int(seconds * rate_hz / 2))
    spec = LoadSpec(streams, 2 * streams, 64, tokens, warmup_requests=streams)
    with SimServer(ttft_s=0.05, tick_s=1 / rate_hz) as sim:
        result = run_closed_loop(sim.base_url, "sim", spec, 32000)
    client, itl = result.client, result.itl_s
    read_us = client.parse_cpu_s * 1e6 / max(1, result.whole.counted_output_tokens)
    print(
        f"{streams:5d} streams x {rate_hz:g} Hz ({client.event_loop}): "
        f"{result.whole.output_tokens_per_s or 0:8.0f} tokens/s, "
        f"client {client.cpu_us_per_token or 0:5.1f} us CPU/token (+ {read_us:.1f} reading afterwards), "
        f"{client.core_share or 0:.0%} of a core; "
        f"ITL p50 {1e3 * (itl.p50 or 0):.1f} p99 {1e3 * (itl.p99 or 0):.1f} ms; "
        f"loop lag p99 {1e3 * (client.loop_lag_p99_s or 0):.1f} ms; failed {result.failed}; "
        f"flags {result.flags}"
    )


if __name__ == "__main__":
    arguments = [float(argument) for argument in sys.argv[1:]]
    if arguments:
        measure(int(arguments[0]), *((arguments[1:] + [40.0, 8.0][len(arguments) - 1 :])[:2]))
    else:
        for streams in (1, 16, 128, 512):
            measure(streams, 40.0, 8.0)
