"""Does our throughput agree with `vllm bench serve` on one live engine, the same prompts and the same concurrency?

    python -m tests.benchmarks.bench_agreement [--pairs 5] [--limit 0.03] [--json FILE] [WORD ...]

Not a test: it takes minutes, and its figures belong to the machine. One engine is started; then the two tools run in
turn, in pairs whose order alternates. Within a pair both send the same token ids in the same order; each pair has
prompts of its own, and the engine's prefix cache is off. Both are closed loops, warm up with as many requests, ask for
the same output length whatever the model says, and sample greedily. Throughput is output tokens over the whole window:
theirs runs from before the first sending to the last answer, ours from the first sending to the last byte. Means of
TTFT, TPOT and E2E are over requests. The engine's own counters must have gained exactly the tokens of both tools.

What stays different: their client is aiohttp in an interpreter of its own, ours asks for the running token count in
every chunk; on a machine with few cores both share those with the engine.

WORDs are Hydra overrides of the engine, as in `engine.max_num_seqs=16`.

Exit code: 0 where the medians of output tokens/s differ by at most --limit, 1 where not or where a run failed, 2 for a
bad request. Latencies are shown, and marked where they differ by more; they do not decide.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.errors import BadRequest, BenchError
from bench.request import Request
from tests.benchmarks import engines, peer
from tests.benchmarks.load import Load, Measured, drive, prompts
from tests.benchmarks.paired import Change
from tests.benchmarks.report import QUICK_NOTE, add_common_arguments, checked, opening, write_json
from tests.benchmarks.tools import run_tool

FULL = Load(concurrency=8, requests=96, input_tokens=128, output_tokens=64, warmup=8)
QUICK = Load(concurrency=4, requests=8, input_tokens=64, output_tokens=8, warmup=4)
FIGURES: dict[str, tuple[str, float, Callable[[Measured], float | None]]] = {
    "output_tokens_per_s": ("output tokens/s", 1, lambda run: run.output_tokens_per_s),
    "ttft_mean_s": ("TTFT mean, ms", 1000, lambda run: run.ttft_mean_s),
    "tpot_mean_s": ("TPOT mean, ms", 1000, lambda run: run.tpot_mean_s),
    "e2e_mean_s": ("E2E mean, ms", 1000, lambda run: run.e2e_mean_s),
}


class Pairs:
    """Runs of both tools on one engine."""

    def __init__(self, request: Request, engine: engines.LiveEngine, load: Load, folder: Path, seed: int) -> None:
        self.request, self.engine, self.load, self.folder, self.seed = request, engine, load, folder, seed

    def run(self, number: int) -> dict[str, Measured]:
        """Pair `number`: ours first where it is even, theirs where it is odd."""
        seed = self.seed + number
        asked = prompts(self.load, seed, self.engine.vocab_size)
        pair = {}
        for side in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
            before = self.engine.counted()
            if side == "ours":
                pair[side] = drive(self.engine.base_url, self.engine.model, self.load, seed, self.engine.vocab_size)
            else:
                pair[side] = self._peer(number, asked)
            pair[side].check(self.load, side)
            self._check_counters(side, before)
        return pair

    def _peer(self, number: int, asked: list[list[int]]) -> Measured:
        file, out = self.folder / f"prompts-{number}.jsonl", self.folder / f"peer-{number}.json"
        words = peer.bench_serve(self.engine.model, self.engine.server.port, self.load, peer.write_prompts(file, asked))
        words += ["--save-result", "--save-detailed", "--result-dir", str(out.parent), "--result-filename", out.name]
        run_tool(words, self.request, self.folder, self.folder / "peer.log", 600)
        return peer.PeerFile.read(out).measured()

    def _check_counters(self, side: str, before: tuple[int, int]) -> None:
        """The engine must have worked as much as the tool says."""
        requests = self.load.requests + self.load.warmup
        asked = (requests * self.load.input_tokens, requests * self.load.output_tokens)
        gained = tuple(now - then for now, then in zip(self.engine.counted(), before, strict=True))
        if gained != asked:
            raise BenchError(f"{side}: the engine counted {gained[0]} prompt and {gained[1]} output tokens instead of "
                             f"{asked[0]} and {asked[1]}; another client may be using it")  # fmt: skip


def show_pair(number: int, pair: dict[str, Measured], busy: float) -> None:
    """Both runs of a pair on one line each, the first run first."""
    for side, run in pair.items():
        cells = "  ".join(f"{label} {_scaled(of(run), scale)}" for label, scale, of in FIGURES.values())
        flags = f"  flags: {', '.join(run.flags)}" if run.flags else ""
        print(f"pair {number + 1} {side}: {run.duration_s:6.2f} s  {cells}{flags}", flush=True)
    ratio = pair["ours"].output_tokens_per_s / pair["peer"].output_tokens_per_s
    print(f"       ours / peer {ratio:.4f} (others used {busy:.0%} of the machine before the pair)", flush=True)


def summary(pairs: list[dict[str, Measured]], limit: float) -> tuple[dict[str, Any], bool]:
    """The table of medians; whether throughput agrees."""
    print(f"\n{'median of ' + str(len(pairs)):<18}{'ours':>10}{'peer':>10}{'difference':>12}{'pairs, median':>15}"
          "   95 % interval of the mean over pairs")  # fmt: skip
    figures: dict[str, Any] = {}
    for name, (label, scale, of) in FIGURES.items():
        ours, theirs = ([of(pair[side]) for pair in pairs] for side in ("ours", "peer"))
        if None in ours or None in theirs:
            continue
        medians = statistics.median(ours), statistics.median(theirs)
        difference = medians[0] / medians[1] - 1
        paired = statistics.median(one / other for one, other in zip(ours, theirs, strict=True)) - 1
        change = Change.of(ours, theirs)
        mark = "" if abs(difference) <= limit else f"   beyond {limit:.0%}"
        interval = f"{change.low:+.2%} to {change.high:+.2%}" if change.pairs > 1 else "-"
        print(f"{label:<18}{medians[0] * scale:>10.2f}{medians[1] * scale:>10.2f}{difference:>+12.2%}{paired:>+15.2%}"
              f"   {interval}{mark}")  # fmt: skip
        figures[name] = {"ours": medians[0], "peer": medians[1], "difference": difference, "paired_median": paired,
                         "ours_runs": ours, "peer_runs": theirs, **asdict(change)}  # fmt: skip
    agrees = abs(figures["output_tokens_per_s"]["difference"]) <= limit
    print(f"\nthroughput: {'agrees' if agrees else 'does not agree'} within {limit:.1%}")
    return figures, agrees


def _scaled(value: float | None, scale: float) -> str:
    return "-" if value is None else f"{value * scale:.2f}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="alternating runs of each tool (default 5)")
    parser.add_argument("--limit", type=float, default=0.03, help="largest difference of throughput (default 0.03)")
    parser.add_argument("--concurrency", type=int, help=f"requests in flight (default {FULL.concurrency})")
    parser.add_argument("--requests", type=int, help=f"measured requests a run (default {FULL.requests})")
    add_common_arguments(parser)
    options = checked(parser.parse_args(), ("pairs", "concurrency", "requests"))
    if not options.limit > 0:
        raise BadRequest(f"--limit {options.limit}: a share greater than 0, as in 0.03 for 3 %")
    return options


def run() -> int:
    options = parse()
    peer.require_vllm()
    request = engines.compose(engines.words_for(engines.installed_kind(), options.words))
    load = QUICK if options.quick else FULL
    load = Load(**asdict(load) | {"requests": options.requests or load.requests,
                                  "concurrency": options.concurrency or load.concurrency})  # fmt: skip
    count = 2 if options.quick else options.pairs
    facts = opening(request, load, f"each run {load}; {count} pairs on one engine")
    pairs: list[dict[str, Measured]] = []
    with (
        engines.device(request, options.patience),
        engines.scratch_folder() as folder,
        engines.live_engine(request, folder, folder / "engine.log") as engine,
    ):
        print(f"engine ready after {engine.startup_s:.1f} s", flush=True)
        tools = Pairs(request, engine, load, folder, options.seed)
        # Once each, untimed: files of both tools in the page cache, the engine past its first requests.
        small = Load(load.concurrency, load.concurrency, load.input_tokens, 4, 0)
        Pairs(request, engine, small, folder, options.seed).run(10_000)
        for number in range(count):
            busy = engines.others_busy(engine.session_id)
            pairs.append(tools.run(number))
            show_pair(number, pairs[-1], busy)
    figures, agrees = summary(pairs, options.limit)
    if options.quick:
        print(QUICK_NOTE.strip())
    told = [{side: asdict(run) for side, run in pair.items()} for pair in pairs]
    write_json(options.json, {"facts": facts, "load": asdict(load), "limit": options.limit, "agrees": agrees,
                              "summary": figures, "pairs": told})  # fmt: skip
    return 0 if agrees or options.quick else 1


if __name__ == "__main__":
    sys.exit(engines.main(run))
