"""What telemetry and the client cost the engine: throughput with them and without, paired on one engine.

    python -m tests.benchmarks.bench_overhead [--blocks 40] [--limit 0.01] [--json FILE] [WORD ...]

Not a test: it takes minutes, and its figures belong to the machine. One engine is started, and four arms put the same
prompts on it at the same concurrency, in a closed loop:

    telemetry   our client, and the sampler watches the engine's processes at its default rates
    client      our client alone, its readings of the engine's /metrics included
    streaming   the leanest reader of the same streams: one thread, nothing stamped, parsed, counted or kept
    plain       the same without streaming: each answer comes whole, once

A client cannot be switched off, because something must send the requests. So its cost is taken against a reader that
does nothing but find the end of an answer; streaming itself, which no client that measures TTFT can do without, is
shown apart. Throughput is the engine's: the output tokens that its own counters gained, from first sending to last
byte.

A block holds every arm twice, there and back, so that linear drift cancels; each block begins one arm later and has
prompts of its own. An arm's value in a block is the geometric mean of its two runs. The change between two arms is the
mean log ratio over blocks, with a 95 % interval (Student's t). It is `shown` to be within the limit where the whole
interval is, `refuted` where the whole interval is beyond it, else `undecided`; then the number of blocks that would
decide is given, if change and spread stay as they are. On a machine with few cores the client shares them with the
engine: that is part of what is measured.

WORDs are Hydra overrides of the engine and of telemetry, as in `telemetry.hz=50`.

Exit code: 0 where both telemetry and client are shown to be within --limit, 1 where not or where a run failed, 2 for a
bad request.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import environment
from bench.errors import BadRequest, BenchError
from bench.request import Request
from bench.telemetry.sampler import Sampler
from tests.benchmarks import engines, lean
from tests.benchmarks.load import Load, drive, prompts
from tests.benchmarks.paired import Change, alternating, geometric_mean
from tests.benchmarks.report import QUICK_NOTE, add_common_arguments, checked, opening, write_json

ARMS = ("telemetry", "client", "streaming", "plain")
CONTRASTS = {
    "telemetry": ("telemetry", "client", "sampler on against off, our client"),
    "client": ("client", "streaming", "our client against the leanest streaming one"),
    "streaming": ("streaming", "plain", "streaming against whole answers, leanest client"),
    "all": ("telemetry", "plain", "sampler, our client and streaming together"),
}
FEWEST_BLOCKS = 4
JUDGED = ("telemetry", "client")
# Two answers a slot. On shared cores runs of 2 s and of 10 s scatter alike (8 % on two), so many short ones tell
# more in the same time; with one answer a slot, no request would follow another.
FULL = Load(concurrency=8, requests=16, input_tokens=128, output_tokens=64, warmup=0)
QUICK = Load(concurrency=4, requests=8, input_tokens=64, output_tokens=8, warmup=0)


class Arms:
    """Runs of every arm on one engine."""

    def __init__(self, request: Request, engine: engines.LiveEngine, load: Load, folder: Path) -> None:
        self.request, self.engine, self.load, self.folder = request, engine, load, folder
        self._samplers = itertools.count()
        self.sampler_shares: list[float] = []

    def run(self, arm: str, seed: int) -> float:
        """Output tokens a second of one run. Raises `BenchError` where the engine did other work than asked for."""
        before = self.engine.counted()
        with self._telemetry() if arm == "telemetry" else contextlib.nullcontext():
            seconds = self._drive(arm, seed)
        gained = tuple(now - then for now, then in zip(self.engine.counted(), before, strict=True))
        asked = (self.load.requests * self.load.input_tokens, self.load.requests * self.load.output_tokens)
        if gained != asked:
            raise BenchError(f"{arm}: the engine counted {gained[0]} prompt and {gained[1]} output tokens instead of "
                             f"{asked[0]} and {asked[1]}; another client may be using it")  # fmt: skip
        return gained[1] / seconds

    def _drive(self, arm: str, seed: int) -> float:
        engine = self.engine
        if arm in ("telemetry", "client"):
            return drive(engine.base_url, engine.model, self.load, seed, engine.vocab_size).duration_s
        asked = prompts(self.load, seed, engine.vocab_size)
        wires = lean.requests_for(self.load, engine.model, engine.server.port, asked, streaming=arm == "streaming")
        return lean.run(engine.server.port, wires, self.load.concurrency)

    @contextlib.contextmanager
    def _telemetry(self) -> Any:
        cfg = self.request.cfg
        names = environment.gpu_names(cfg.device) if self.request.device_kind == "cuda" else ()
        gpus = [int(name) if name.isdecimal() else name for name in names]
        folder = self.folder / f"telemetry-{next(self._samplers)}"
        with Sampler(folder, gpus, cfg.telemetry.hz, cfg.telemetry.pss_hz) as sampler:
            sampler.watch(self.engine.pid, self.engine.session_id)
            sampler.mark("load")
            yield
            told = sampler.stop()
        if not told.complete:
            raise BenchError(f"telemetry: the sampler did not see the run to its end ({'; '.join(told.errors)})")
        self.sampler_shares.append(told.sampler_cpu_share or 0.0)


def run_blocks(arms: Arms, count: int, seed: int) -> list[dict[str, list[float]]]:
    """Tokens a second of every arm's two runs in every block."""
    blocks: list[dict[str, list[float]]] = []
    for number in range(count):
        busy = engines.others_busy(arms.engine.session_id)
        block: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for arm in alternating(ARMS, number):
            block[arm].append(arms.run(arm, seed + number))
        blocks.append(block)
        cells = "  ".join(f"{arm} {' '.join(f'{value:.1f}' for value in block[arm])}" for arm in ARMS)
        print(f"block {number + 1} of {count} (others used {busy:.0%} of the machine before it), tokens/s: {cells}",
              flush=True)  # fmt: skip
    return blocks


def contrast(blocks: list[dict[str, list[float]]], treated: str, reference: str) -> Change:
    """Change of one arm against another over the blocks."""
    return Change.of(*([geometric_mean(block[arm]) for block in blocks] for arm in (treated, reference)))


def summary(blocks: list[dict[str, list[float]]], limit: float) -> tuple[dict[str, Any], bool]:
    """The table of changes; whether everything judged is shown to be within the limit."""
    print(f"\n{'change of throughput':<50}{'mean':>9}   95 % interval        within {limit:.1%}")
    figures: dict[str, Any] = {}
    for name, (treated, reference, about) in CONTRASTS.items():
        change = contrast(blocks, treated, reference)
        verdict = change.verdict(limit)
        needed = change.pairs_needed(limit)
        figures[name] = asdict(change) | {"verdict": verdict, "blocks_needed": needed}
        # Of a few blocks the spread itself is hardly known.
        hint = verdict == "undecided" and needed and change.pairs >= FEWEST_BLOCKS
        note = f"; about {needed} blocks would decide" if hint else ""
        told = f"{verdict}{note}" if name in JUDGED else f"({verdict}; not judged)"
        interval = f"{change.low:+.2%} to {change.high:+.2%}" if change.pairs > 1 else "unknown"
        print(f"{about:<50}{change.change:>+9.2%}   {interval:<20} {told}")
    return figures, all(figures[name]["verdict"] == "shown" for name in JUDGED)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=40, help="blocks of eight runs (default 40)")
    parser.add_argument("--limit", type=float, default=0.01, help="largest change of throughput (default 0.01)")
    parser.add_argument("--concurrency", type=int, help=f"requests in flight (default {FULL.concurrency})")
    parser.add_argument("--requests", type=int, help=f"requests a run (default {FULL.requests})")
    add_common_arguments(parser)
    options = checked(parser.parse_args(), ("blocks", "concurrency", "requests"))
    if not 0 < options.limit < 1:
        raise BadRequest(f"--limit {options.limit}: a share between 0 and 1, as in 0.01 for 1 %")
    return options


def run() -> int:
    options = parse()
    request = engines.compose(engines.words_for(engines.installed_kind(), options.words))
    load = QUICK if options.quick else FULL
    load = Load(**asdict(load) | {"requests": options.requests or load.requests,
                                  "concurrency": options.concurrency or load.concurrency})  # fmt: skip
    count = 2 if options.quick else options.blocks
    telemetry = request.cfg.telemetry
    rates = f"sampler at {telemetry.hz:g} Hz, PSS at most {telemetry.pss_hz:g} Hz"
    facts = opening(request, load, f"each run {load}; {count} blocks of {2 * len(ARMS)} runs; {rates}")
    with (
        engines.device(request, options.patience),
        engines.scratch_folder() as folder,
        engines.live_engine(request, folder, folder / "engine.log") as engine,
    ):
        print(f"engine ready after {engine.startup_s:.1f} s", flush=True)
        arms = Arms(request, engine, load, folder)
        for arm in ARMS:  # once each, untimed
            arms.run(arm, options.seed + 10_000)
        arms.sampler_shares.clear()
        blocks = run_blocks(arms, count, options.seed)
    figures, shown = summary(blocks, options.limit)
    share = sum(arms.sampler_shares) / len(arms.sampler_shares)
    print(f"the sampler used {share:.2%} of a core while it ran{QUICK_NOTE if options.quick else ''}")
    write_json(options.json, {"facts": facts, "load": asdict(load), "limit": options.limit, "shown": shown,
                              "sampler_cpu_share": share, "summary": figures, "blocks": blocks})  # fmt: skip
    return 0 if shown or options.quick else 1


if __name__ == "__main__":
    sys.exit(engines.main(run))
