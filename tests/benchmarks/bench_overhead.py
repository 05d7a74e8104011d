"""What telemetry and the client cost the engine: throughput with them and without, switched within one load.

    python -m tests.benchmarks.bench_overhead [--loads 16] [--limit 0.01] [--json FILE] [WORD ...]

Not a test: it takes minutes, and its figures belong to the machine. One engine is started, and loads of long answers
are put on it, all slots at once, in turn for the two questions:

    telemetry   the leanest reader takes the answers; the sampler, which watches the engine's processes at its default
                rates, is stopped and continued
    client      our client takes them, its readings of the engine's gauges included; while it is off the leanest reader
                empties the same sockets: nothing is stamped, unframed, counted or kept

A client cannot be switched off, because something must take the tokens: so it is compared with a reader that only does
that. What is switched changes every quarter of a second (tests/benchmarks/toggled.py says why). Throughput is tokens
over time between the switchings. The change is the mean log ratio over groups of four such windows, two with and two
without, with a 95 % interval (Student's t). It is `shown` to be within the limit where the whole interval is, `refuted`
where the whole interval is beyond it, else `undecided`; then the number of groups that would decide is given, if change
and spread stay as they are. On a machine with few cores the client shares them with the engine: that is part of what
is measured.

WORDs are Hydra overrides of the engine and of telemetry, as in `telemetry.hz=50`.

Exit code: 0 where both are shown to be within --limit, 1 where not or where a run failed, 2 for a bad request.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import environment
from bench.errors import BadRequest, BenchError
from bench.request import Request
from bench.telemetry.procfs import cpu_s
from bench.telemetry.sampler import Sampler
from tests.benchmarks import engines, lean
from tests.benchmarks.load import Load, drive, prompts
from tests.benchmarks.paired import Change
from tests.benchmarks.report import QUICK_NOTE, add_common_arguments, checked, opening, write_json
from tests.benchmarks.toggled import GROUP, Windows, our_reader_switched

WINDOW_S = 0.25
QUESTIONS = {
    "telemetry": "sampler on against off, leanest client",
    "client": "our client against the leanest streaming one",
}
FEWEST_GROUPS = 20
LONGEST = 880  # output tokens: much longer, and the growing KV cache changes the speed more than anything else
FULL = Load(concurrency=8, requests=8, input_tokens=128, output_tokens=LONGEST, warmup=0)
RAMP_STEPS = 16  # tokens a slot until all are in step, prompts behind them


class Loads:
    """Loads on one engine, within which something is switched."""

    def __init__(self, request: Request, engine: engines.LiveEngine, load: Load, folder: Path) -> None:
        self.request, self.engine, self.load, self.folder = request, engine, load, folder
        self.window_tokens = load.concurrency
        self.sampler_cpu_s = self.sampler_on_s = 0.0

    def settle_window(self, seed: int) -> None:
        """One load untimed, which says how many tokens come in a window's time."""
        seconds = self._lean(seed)
        steps = self.load.output_tokens / seconds * WINDOW_S
        self.window_tokens = max(2, round(steps)) * self.load.concurrency

    def run(self, question: str, seed: int) -> list[tuple[float, float]]:
        """Tokens a second with and without, of each group of windows of one load."""
        return self._telemetry(seed) if question == "telemetry" else self._client(seed)

    def _telemetry(self, seed: int) -> list[tuple[float, float]]:
        with self._sampler(seed) as sampler:
            assert sampler.pid is not None
            pid = sampler.pid
            windows = self._windows(lambda on: os.kill(pid, signal.SIGCONT if on else signal.SIGSTOP))
            before_s = cpu_s(pid) or 0.0
            try:
                self._lean(seed, windows.took)
            finally:
                os.kill(pid, signal.SIGCONT)  # or it could not be told to end
            self.sampler_cpu_s += (cpu_s(pid) or 0.0) - before_s
            self.sampler_on_s += windows.on_s
        return windows.pairs()

    def _client(self, seed: int) -> list[tuple[float, float]]:
        engine, windows = self.engine, self._windows()
        with our_reader_switched(windows):
            self._counted(lambda: drive(engine.base_url, engine.model, self.load, seed, engine.vocab_size).duration_s)
        return windows.pairs()

    def _windows(self, switch: Callable[[bool], object] = lambda on: None) -> Windows:
        slots = self.load.concurrency
        last = slots * (self.load.output_tokens - 2)  # the ends of the answers are not tokens
        return Windows(self.window_tokens, slots * RAMP_STEPS, last, switch)

    def _lean(self, seed: int, took: Callable[[int], object] = lambda pieces: None) -> float:
        """Seconds of a load that the leanest reader takes."""
        port = self.engine.server.port
        wires = lean.requests_for(self.load, self.engine.model, port, prompts(self.load, seed, self.engine.vocab_size))
        return self._counted(lambda: lean.run(port, wires, self.load.concurrency, took))

    def _counted(self, run: Callable[[], float]) -> float:
        """Seconds of a load. Raises `BenchError` where the engine did other work than asked for."""
        before = self.engine.counted()
        seconds = run()
        gained = tuple(now - then for now, then in zip(self.engine.counted(), before, strict=True))
        asked = (self.load.requests * self.load.input_tokens, self.load.requests * self.load.output_tokens)
        if gained != asked:
            raise BenchError(f"the engine counted {gained[0]} prompt and {gained[1]} output tokens instead of "
                             f"{asked[0]} and {asked[1]}; another client may be using it")  # fmt: skip
        return seconds

    @contextlib.contextmanager
    def _sampler(self, seed: int) -> Iterator[Sampler]:
        cfg = self.request.cfg
        names = environment.gpu_names(cfg.device) if self.request.device_kind == "cuda" else ()
        gpus = [int(name) if name.isdecimal() else name for name in names]
        hz = cfg.telemetry.samples_per_s(self.request.device_kind)
        with Sampler(self.folder / f"telemetry-{seed}", gpus, hz, cfg.telemetry.pss_hz) as sampler:
            sampler.watch(self.engine.pid, self.engine.session_id)
            sampler.mark("load")
            yield sampler


def run_loads(loads: Loads, count: int, seed: int) -> dict[str, list[tuple[float, float]]]:
    """The groups of both questions, from `count` loads for each, in turn."""
    found: dict[str, list[tuple[float, float]]] = {question: [] for question in QUESTIONS}
    for number in range(count):
        for question in QUESTIONS if number % 2 == 0 else reversed(QUESTIONS):
            busy = engines.others_busy(loads.engine.session_id)
            groups = loads.run(question, seed + number)
            if not groups:
                raise BenchError(f"{question}: a load of {loads.load.output_tokens} tokens an answer has no "
                                 f"{GROUP} windows of {loads.window_tokens} tokens; take a longer one")  # fmt: skip
            found[question] += groups
            here = Change.of(*zip(*groups, strict=True))
            print(f"load {number + 1} of {count}, {question:<9} {here.change:+.2%} over {here.pairs} groups "
                  f"(others used {busy:.0%} of the machine before it)", flush=True)  # fmt: skip
    return found


def summary(found: dict[str, list[tuple[float, float]]], limit: float) -> tuple[dict[str, Any], bool]:
    """The table of changes; whether both are shown to be within the limit."""
    print(f"\n{'change of throughput':<50}{'mean':>9}   95 % interval        within {limit:.1%}")
    figures: dict[str, Any] = {}
    for question, about in QUESTIONS.items():
        change = Change.of(*zip(*found[question], strict=True))
        verdict, needed = change.verdict(limit), change.pairs_needed(limit)
        figures[question] = asdict(change) | {"verdict": verdict, "groups_needed": needed}
        # Of a few groups the spread itself is hardly known.
        hint = verdict == "undecided" and needed and change.pairs >= FEWEST_GROUPS
        note = f"; about {needed} groups would decide, these were {change.pairs}" if hint else ""
        interval = f"{change.low:+.2%} to {change.high:+.2%}" if change.pairs > 1 else "unknown"
        print(f"{about:<50}{change.change:>+9.2%}   {interval:<20} {verdict}{note}")
    return figures, all(figures[question]["verdict"] == "shown" for question in QUESTIONS)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=int, default=16, help="loads for each question (default 16)")
    parser.add_argument("--limit", type=float, default=0.01, help="largest change of throughput (default 0.01)")
    parser.add_argument("--concurrency", type=int, help=f"requests in flight (default {FULL.concurrency})")
    add_common_arguments(parser)
    options = checked(parser.parse_args(), ("loads", "concurrency"))
    if not 0 < options.limit < 1:
        raise BadRequest(f"--limit {options.limit}: a share between 0 and 1, as in 0.01 for 1 %")
    return options


def the_load(request: Request, options: argparse.Namespace) -> Load:
    """As long answers as the engine takes, one for every slot."""
    slots = options.concurrency or FULL.concurrency
    room = (request.cfg.engine.max_model_len or LONGEST) - FULL.input_tokens
    longest = min(LONGEST, room) // (4 if options.quick else 1)
    return replace(FULL, concurrency=slots, requests=slots, output_tokens=longest)


def run() -> int:
    options = parse()
    request = engines.compose(engines.words_for(engines.installed_kind(), options.words))
    load = the_load(request, options)
    count = 1 if options.quick else options.loads
    telemetry = request.cfg.telemetry
    rates = f"sampler at {telemetry.samples_per_s(request.device_kind):g} Hz, PSS at most {telemetry.pss_hz:g} Hz"
    facts = opening(request, load, f"each load {load}; {count} loads for each question; {rates}")
    with (
        engines.device(request, options.patience),
        engines.scratch_folder() as folder,
        engines.live_engine(request, folder, folder / "engine.log") as engine,
    ):
        print(f"engine ready after {engine.startup_s:.1f} s", flush=True)
        loads = Loads(request, engine, load, folder)
        loads.settle_window(options.seed + 10_000)
        print(f"a window is {loads.window_tokens} tokens", flush=True)
        found = run_loads(loads, count, options.seed)
    figures, shown = summary(found, options.limit)
    share = loads.sampler_cpu_s / loads.sampler_on_s
    print(f"the sampler used {share:.2%} of a core while it was on{QUICK_NOTE if options.quick else ''}")
    write_json(options.json, {"facts": facts, "load": asdict(load), "limit": options.limit, "shown": shown,
                              "window_tokens": loads.window_tokens, "sampler_cpu_share": share, "summary": figures,
                              "groups": found})  # fmt: skip
    return 0 if shown or options.quick else 1


if __name__ == "__main__":
    sys.exit(engines.main(run))
