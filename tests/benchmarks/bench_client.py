"""What does a streamed token cost the load client, and up to which rate are its times right? Ours beside its peers.

    python -m tests.benchmarks.bench_client [--clients ours,vllm,guidellm,aiperf,bare] [--streams 1000] [--repeats 3]
                                            [--rates 5000,10000,20000,40000] [--cache FOLDER] [--json FILE]

All of them drive the same simulated server, whose CPU is not counted, in turn and not one after the other. CPU is user
and system time of all the client's processes, from the kernel. The cost of a token is the slope between a short and a
long run of as many requests, so that imports, connections and prompts drop out of it while reading and statistics stay
in. A rate is sustained if every token arrived and the p99 ITL that the client reports is within 3 ms of the server's
own, taken over tokens where the client reports on tokens, and over the means of requests where it reports on those.

``bare`` is none of them: it takes the bytes from the kernel and drops them, and its cost is the floor on this machine.

Not a test: it takes long, and its figures belong to the machine it runs on. guidellm and aiperf are installed into
virtual environments under --cache the first time (gigabytes); one that cannot be is named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.client_peers import CLIENTS, Load  # noqa: E402
from tests.fakes.sim_server import SimServer  # noqa: E402

SHORT_TOKENS, LONG_TOKENS = 20, 100
RATE_SECONDS = 4.0
ITL_LIMIT_S = 0.003
TARGET_US, TARGET_RATIO = 10.0, 3.0
FLOOR = "bare"  # reports nothing, so it sustains no rate and is nobody's peer
# Adopts what the client leaves behind, so that the kernel's account at the end is of all its processes.
WATCH = """
import ctypes, json, os, resource, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
code = subprocess.call(sys.argv[2:])
try:
    while True:
        os.wait()
except ChildProcessError:
    pass
used = resource.getrusage(resource.RUSAGE_CHILDREN)
json.dump([code, used.ru_utime + used.ru_stime], open(sys.argv[1], "w"))
"""


@dataclass(frozen=True)
class Run:
    """One run of a client. ``problem`` is empty where every token asked for was sent and every request reported."""

    cpu_s: float
    tokens: int
    wall_s: float
    itl_p99_s: float | None
    true_itl_p99_s: float | None
    problem: str

    @property
    def itl_error_s(self) -> float | None:
        if self.itl_p99_s is None or self.true_itl_p99_s is None:
            return None
        return abs(self.itl_p99_s - self.true_itl_p99_s)


def run_client(name: str, cache: Path, streams: int, tokens: int, itl_s: float, timeout_s: float) -> Run:
    """Run a client once against a fresh server of ``streams`` streams and a token every ``itl_s`` on each."""
    client = CLIENTS[name]
    with tempfile.TemporaryDirectory(dir=cache) as text, SimServer(ttft_s=1.0, itl_s=itl_s) as sim:
        folder = Path(text)
        command, environment = client.command(Load(sim.base_url, streams, tokens), folder)
        usage, log = folder / "usage.json", folder / "log.txt"
        began_s = time.monotonic()
        problem = ""
        with log.open("w") as output:
            watch = subprocess.Popen(
                [sys.executable, "-c", WATCH, str(usage), *command], cwd=ROOT, env=os.environ | environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                watch.wait(timeout_s)
            except subprocess.TimeoutExpired:
                problem = f"no end within {timeout_s:g} s"
            finally:
                end_session(watch)
        wall_s = time.monotonic() - began_s
        truth = sim.truth()
        sent = sum(tokens for line in truth for _, tokens in line["sends"] if len(line["sends"]) > 1)
        if problem or not usage.exists():
            return Run(0.0, sent, wall_s, None, None, problem or f"died: {last_line(log)}")
        code, cpu_s = json.loads(usage.read_text())
        try:
            said = client.said(folder)
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            problem = f"exit code {code}, no report ({type(error).__name__}: {error}): {last_line(log)}"
            return Run(cpu_s, sent, wall_s, None, None, problem)
        gaps = [np.diff([at for at, _ in line["sends"]]) / 1e9 for line in truth if len(line["sends"]) > 1]
        samples = np.concatenate(gaps) if said.per_token else np.array([gap.mean() for gap in gaps])
        if said.requests != streams or sent < streams * tokens:
            problem = f"{said.requests} of {streams} requests reported, {sent} of {streams * tokens} tokens sent"
        return Run(cpu_s, sent, wall_s, said.itl_p99_s, float(np.percentile(samples, 99)), problem)


def end_session(watch: subprocess.Popen[bytes]) -> None:
    """Leave nothing of a client behind."""
    import psutil

    try:
        family = [*psutil.Process(watch.pid).children(recursive=True), psutil.Process(watch.pid)]
    except psutil.NoSuchProcess:
        family = []
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    watch.wait()


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def cost_us(short: Run, long: Run) -> float | None:
    """CPU per token between a short and a long run, in microseconds."""
    more = long.tokens - short.tokens
    return (long.cpu_s - short.cpu_s) * 1e6 / more if more > 0 and not short.problem and not long.problem else None


def measure_cost(names: list[str], options: argparse.Namespace, cache: Path) -> dict[str, list[float]]:
    """CPU per token of each client, one value for each repetition, the clients in turn."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(options.repeats):
        for name in names:
            runs = [
                run_client(name, cache, options.streams, tokens, options.streams / options.cost_rate, options.timeout)
                for tokens in (SHORT_TOKENS, LONG_TOKENS)
            ]
            value = cost_us(*runs)
            problems = "; ".join(run.problem for run in runs if run.problem)
            said = f"{value:.1f} us CPU per token" if value is not None else problems
            wall_s = runs[0].wall_s + runs[1].wall_s
            print(f"  {repeat + 1}/{options.repeats} {name:<9} {said} ({wall_s:.0f} s)", flush=True)
            if value is not None:
                found[name].append(value)
    return found


def find_rate(name: str, options: argparse.Namespace, cache: Path) -> tuple[float | None, str]:
    """The highest of the rates that ``name`` sustains, and what stopped it; None: not even the lowest."""
    best: float | None = None
    for rate in options.rates:
        tokens = max(2, round(RATE_SECONDS * rate / options.streams))
        run = run_client(name, cache, options.streams, tokens, options.streams / rate, options.timeout)
        error_s, true_s = run.itl_error_s, run.true_itl_p99_s
        said = "" if error_s is None else f"p99 ITL {1e3 * (run.itl_p99_s or 0):.1f} ms, true {1e3 * (true_s or 0):.1f}"
        print(f"  {name:<9} {rate:7,.0f} tokens/s: {said or run.problem}", flush=True)
        if run.problem:
            return best, run.problem
        if error_s is None or error_s > ITL_LIMIT_S:
            return best, f"at {rate:,.0f} tokens/s {said}"
        best = rate
    return best, "the highest rate tried"


def table(names: list[str], costs: dict[str, list[float]], rates: dict[str, tuple[float | None, str]]) -> list[str]:
    """The result in lines."""
    middle = {name: median(costs[name]) for name in names if costs.get(name)}
    own = middle.get("ours")
    head = f"{'client':<10}{'us CPU/token':>13}{'(min - max)':>18}{'x ours':>8}{'sustained tokens/s':>20}"
    lines = [f"{head}  stopped by"]
    for name in names:
        cost = f"{middle[name]:.1f}" if name in middle else "-"
        spread = f"({min(costs[name]):.1f} - {max(costs[name]):.1f})" if name in middle else ""
        ratio = f"{middle[name] / own:.1f}" if own and name in middle else "-"
        rate, why = rates.get(name, (None, "not tried"))
        lines.append(f"{name:<10}{cost:>13}{spread:>18}{ratio:>8}{f'{rate:,.0f}' if rate else '-':>20}  {why}")
    peers = {name: value for name, value in middle.items() if name not in ("ours", FLOOR)}
    if own is not None:
        lines.append(f"ours: {own:.1f} us per token (target: at most {TARGET_US:g}): {verdict(own <= TARGET_US)}")
    if own is not None and FLOOR in middle:
        floor = middle[FLOOR]
        lines.append(f"taking bytes from the kernel and dropping them: {floor:.1f} us; ours adds {own - floor:.1f}")
    if own and peers:
        best = min(peers, key=peers.__getitem__)
        times = peers[best] / own
        met = verdict(times >= TARGET_RATIO)
        lines.append(f"best peer: {best}, {times:.1f} x ours (target: at least {TARGET_RATIO:g}): {met}")
    return lines


def verdict(met: bool) -> str:
    return "met" if met else "NOT met"


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="CPU per streamed token and highest sustained rate of load clients.")
    parser.add_argument("--clients", default=",".join(CLIENTS), help="some of " + ", ".join(CLIENTS))
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--cost-rate", type=float, default=10_000.0, help="tokens/s at which the cost is taken")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rates", default="5000,10000,20000,30000,40000", help="tokens/s to try; empty: none")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one run of a client")
    parser.add_argument("--cache", type=Path, help="where guidellm and aiperf are installed (default: temporary)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    options.clients = [name for name in options.clients.split(",") if name]
    unknown = sorted(set(options.clients) - CLIENTS.keys())
    if unknown or not options.clients:
        parser.error(f"--clients {','.join(unknown) or '(none)'}: give some of {', '.join(CLIENTS)}")
    if options.streams < 1 or options.repeats < 1 or options.cost_rate <= 0 or options.timeout <= 0:
        parser.error("--streams, --repeats, --cost-rate and --timeout must be above 0")
    try:
        options.rates = sorted(float(rate) for rate in options.rates.split(",") if rate)
    except ValueError:
        parser.error(f"--rates {options.rates}: give numbers of tokens per second, separated by commas")
    return options


def main() -> int:
    options = read_options()
    with tempfile.TemporaryDirectory(prefix="bench-client-") as temporary:
        cache = (options.cache or Path(temporary)).resolve()
        cache.mkdir(parents=True, exist_ok=True)
        left_out = {}
        for name in options.clients:
            print(f"preparing {name} ...", flush=True)
            why = CLIENTS[name].prepare(cache)
            if why:
                left_out[name] = why
                print(f"  left out: {why}")
        names = [name for name in options.clients if name not in left_out]
        print(f"CPU per token: {options.streams} streams, {options.cost_rate:,.0f} tokens/s", flush=True)
        costs = measure_cost(names, options, cache)
        rates = {}
        if options.rates:
            print(f"highest sustained rate: {options.streams} streams", flush=True)
            rates = {name: find_rate(name, options, cache) for name in names if name != FLOOR}
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    print(f"\n{machine}")
    print("\n".join(table(names, costs, rates)))
    for name, why in left_out.items():
        print(f"{name}: {why}")
    if options.json:
        figures = {name: {"us_cpu_per_token": costs[name], "sustained_tokens_per_s": rates.get(name, (None, ""))[0],
                          "stopped_by": rates.get(name, (None, ""))[1]} for name in names}  # fmt: skip
        document = {"machine": machine, "streams": options.streams, "cost_rate_tokens_per_s": options.cost_rate,
                    "clients": figures, "left_out": left_out}  # fmt: skip
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if costs.get("ours") or "ours" not in names else 1


if __name__ == "__main__":
    sys.exit(main())
