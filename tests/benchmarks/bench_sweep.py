"""One grid through `vllm bench sweep serve` and through `python -m bench`: wall seconds per point and their ratio.

    python -m tests.benchmarks.bench_sweep [--rounds 3] [--json FILE] [WORD ...]

Not a test: it takes minutes, and its figures belong to the machine. The grid is two `max-num-seqs` settings x one
closed loop x three measured runs: six points. All sides serve the same config.json with the same `vllm serve` settings
and threads, and measure the same number of requests of the same lengths, with as many to warm up, before every run.
The sides alternate, and turn about from round to round:

    peer       vllm bench sweep serve --num-runs 3 as documented: one server a setting, three client runs on it with
               `--dataset-name random`, which needs the model's tokenizer
    peer lean  the same in its leanest form: token ids from a file, no tokenizer on either end, no progress bar
    one start  ours, as the peer does it: one engine start a setting, three workloads on it
    restarts   ours with repeats=3: an engine start for every run, interleaved over the grid, as `make sweep` repeats

A wall time runs from the start of the command to its exit. Overhead is what of it is not measured window: imports,
engine starts, warm-up, stops. The peer and ours get one untimed start before the first round, so that files and byte
code are in the page cache; on the CPU engine nothing is compiled (enforce_eager). Every timed command begins without a
running engine or warm parent. A result whose requests or tokens differ from what was asked ends the benchmark. The
ratio depends on how long the measured work is, which no tool can shorten: --requests sets it, and the overheads are
compared apart.

WORDs are Hydra overrides for all sides, as in `model=tiny-qwen3`.

Exit code: 0 where `one start` takes at most --target of the peer's wall time (median of the rounds), 1 where not or
where a run failed, 2 for a bad request.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.engine.server import free_port
from bench.errors import BenchError
from bench.request import Request
from tests.benchmarks import engines, peer
from tests.benchmarks.load import Load, Measured, prompts
from tests.benchmarks.report import QUICK_NOTE, add_common_arguments, checked, opening, write_json
from tests.benchmarks.tools import run_tool

SETTINGS = (4, 16)
RUNS = 3
SIDES = ("peer", "peer lean", "one start", "restarts")
OURS = ("one start", "restarts")
PEERS = ("peer", "peer lean")
PARTS = ("startup", "workloads", "stop", "total")
FULL = Load(concurrency=16, requests=56, input_tokens=128, output_tokens=32, warmup=8)
QUICK = Load(concurrency=8, requests=16, input_tokens=64, output_tokens=8, warmup=4)
PRIMING = Load(concurrency=2, requests=2, input_tokens=16, output_tokens=2, warmup=0)


@dataclass(frozen=True)
class Swept:
    """One command over the whole grid."""

    side: str
    wall_s: float
    measured_s: float
    points: int
    engine_starts: int
    output_tokens_per_s: float
    parts_s: dict[str, float] = field(default_factory=dict)
    """Where the wall time of ours went, see `_parts`."""

    @property
    def wall_per_point_s(self) -> float:
        """Seconds of a person's time per measured run."""
        return self.wall_s / self.points

    @property
    def overhead_per_point_s(self) -> float:
        """What is not measurement: starts, imports, warm-up, stops."""
        return (self.wall_s - self.measured_s) / self.points

    @classmethod
    def of(cls, side: str, wall_s: float, runs: list[Measured], engine_starts: int, load: Load, points: int) -> Swept:
        """Raises `BenchError` where the work was not what the load asks for."""
        if len(runs) != points:
            raise BenchError(f"{side}: {len(runs)} measured runs instead of {points}")
        for run in runs:
            run.check(load, side)
        measured_s = sum(run.duration_s for run in runs)
        return cls(side, wall_s, measured_s, points, engine_starts, sum(r.output_tokens for r in runs) / measured_s)


class Grid:
    """The grid and the ways to run it. `folder` receives results, models and logs."""

    def __init__(self, request: Request, words: list[str], folder: Path, options: argparse.Namespace) -> None:
        self.request, self.words, self.folder, self.options = request, words, folder, options
        self.commands = 0

    def run(self, side: str, load: Load, settings: tuple[int, ...] = SETTINGS, runs: int = RUNS) -> Swept:
        """One command of one side over the grid."""
        self.commands += 1
        folder = self.folder / f"{self.commands}"
        folder.mkdir()
        return (self._peer if side in PEERS else self._ours)(side, load, settings, runs, folder)

    def _peer(self, side: str, load: Load, settings: tuple[int, ...], runs: int, folder: Path) -> Swept:
        port = free_port()
        model = engines.model_folder(self.request, folder)
        name, vocabulary, seed = self.request.cfg.model.name, engines.vocabulary(self.request), self.options.seed
        serve = [peer.VLLM, *engines.plain_serve(self.request, model, port)]
        if side == "peer":
            serve.remove("--skip-tokenizer-init")
            tokenizer = Path(model)
            if self.request.source.argument is None:
                peer.write_tokenizer(tokenizer, vocabulary)
            bench = peer.bench_serve_random(name, port, load, tokenizer, seed)
        else:
            asked = peer.write_prompts(folder / "prompts.jsonl", prompts(load, seed, vocabulary))
            bench = peer.bench_serve(name, port, load, asked)
        (folder / "settings.json").write_text(json.dumps([{"max_num_seqs": seqs} for seqs in settings]))
        words = peer.bench_sweep_serve(serve, bench, folder / "settings.json", folder / "out", runs)
        with engines.device(self.request, self.options.patience):
            wall_s = run_tool(words, self.request, folder, folder / "log", self.options.timeout)
        results = sorted((folder / "out").rglob("run=*.json"))
        measured = [peer.PeerFile.read(file).measured() for file in results]
        return Swept.of(side, wall_s, measured, len(settings), load, len(settings) * runs)

    def _ours(self, side: str, load: Load, settings: tuple[int, ...], runs: int, folder: Path) -> Swept:
        repeats, workloads = (runs, 1) if side == "restarts" else (1, runs)
        points = ",".join(
            f"{{name:run-{run},concurrency:{load.concurrency},num_requests:{load.requests},"
            f"warmup_requests:{load.warmup},input_tokens:{load.input_tokens},output_tokens:{load.output_tokens},"
            f"seed:{self.options.seed + run}}}"
            for run in range(workloads)
        )
        words = [
            sys.executable, "-m", "bench", *self.words, f"engine.max_num_seqs={','.join(map(str, settings))}",
            f"workload.points=[{points}]", f"repeats={repeats}", "set=benchmark",
            f"paths.results={folder}", f"paths.scratch={folder}",
        ]  # fmt: skip
        wall_s = self._undisturbed(words, folder)
        measured, engine_rows = _recorded(folder / "benchmark")
        swept = Swept.of(side, wall_s, measured, len(engine_rows), load, len(settings) * runs)
        return replace(swept, parts_s=_parts(wall_s, engine_rows))


    def _undisturbed(self, words: list[str], folder: Path) -> float:
        """Run a command of ours, which takes the device itself; once more where another sweep was quicker to it."""
        deadline = time.monotonic() + self.options.patience
        while True:
            with engines.device(self.request, self.options.patience):
                pass  # only to wait for whoever has it now
            try:
                return run_tool(words, self.request, folder, folder / "log", self.options.timeout)
            except BenchError as error:
                if "another sweep" not in str(error) or time.monotonic() > deadline:
                    raise


def _recorded(results: Path) -> tuple[list[Measured], list[dict[str, Any]]]:
    """The measured workloads of a result set, and its engine rows."""
    import pyarrow.parquet as pq

    names = ["status", "completed", "window_s", "output_tokens_per_s", "total_tokens_per_s", "flags"]
    files = sorted((results / "workloads").glob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file, columns=names, partitioning=None).to_pylist()]
    runs = [
        Measured(
            duration_s=row["window_s"],
            completed=row["completed"],
            input_tokens=round((row["total_tokens_per_s"] - row["output_tokens_per_s"]) * row["window_s"]),
            output_tokens=round(row["output_tokens_per_s"] * row["window_s"]),
            flags=row["flags"] or [],
        )
        for row in rows
        if row["status"] == "ok"
    ]
    files = sorted((results / "engines").glob("*.parquet"))
    names = [f"{part}_s" for part in PARTS]
    return runs, [row for file in files for row in pq.read_table(file, columns=names, partitioning=None).to_pylist()]


def _parts(wall_s: float, engine_rows: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of our wall time: engine starts, workloads with their warm-up, stops, the rest of the engines' rows (the
    warm parent's import of vLLM before the first, gates, idle baseline, reports), and the harness around all rows."""
    sums = {part: sum(row[f"{part}_s"] or 0.0 for row in engine_rows) for part in PARTS}
    total_s = sums.pop("total")
    return sums | {"rest of the rows": total_s - sum(sums.values()), "around the rows": wall_s - total_s}


def show(swept: Swept) -> None:
    """One line for one command."""
    print(f"  {swept.side:<10} {swept.wall_s:7.1f} s wall, {swept.measured_s:6.1f} s measured, "
          f"{swept.wall_per_point_s:6.2f} s a point ({swept.overhead_per_point_s:5.2f} s not measuring), "
          f"{swept.engine_starts} engine starts, {swept.output_tokens_per_s:6.0f} tokens/s", flush=True)  # fmt: skip
    if swept.parts_s:
        print(f"  {'':<10} of it " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in swept.parts_s.items()))


def summary(rounds: list[dict[str, Swept]], target: float) -> tuple[dict[str, Any], bool]:
    """Medians over the rounds, and ratios of each of our shapes to each form of the peer in its own round."""
    figures: dict[str, Any] = {}
    print(f"\n{'median of ' + str(len(rounds)):<14}{'s a point':>10}{'overhead, s':>13}", end="")
    print("".join(f"{'wall / ' + name:>18}{'overhead / ' + name:>22}" for name in PEERS))
    for side in SIDES:
        row: dict[str, Any] = {
            "wall_per_point_s": statistics.median(one[side].wall_per_point_s for one in rounds),
            "overhead_per_point_s": statistics.median(one[side].overhead_per_point_s for one in rounds),
        }
        print(f"{side:<14}{row['wall_per_point_s']:>10.2f}{row['overhead_per_point_s']:>13.2f}", end="")
        for name in PEERS:
            wall = [one[side].wall_s / one[name].wall_s for one in rounds]
            over = [one[side].overhead_per_point_s / one[name].overhead_per_point_s for one in rounds]
            row[f"to {name}"] = {"wall_ratio": statistics.median(wall), "overhead_ratio": statistics.median(over),
                                 "wall_ratios": wall, "overhead_ratios": over}  # fmt: skip
            print(f"{statistics.median(wall):>18.3f}{statistics.median(over):>22.3f}", end="")
        print()
        figures[side] = row
    print()
    for side in OURS:
        for name in PEERS:
            row = figures[side][f"to {name}"]
            each = " ".join(f"{ratio:.3f}" for ratio in row["wall_ratios"])
            met = "met" if row["wall_ratio"] <= target else "not met"
            print(f"{side} / {name}: {row['wall_ratio']:.3f} of its wall time ({each}); target {target:g} {met}")
    return figures, figures["one start"]["to peer"]["wall_ratio"] <= target


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times each side sweeps the grid (default 3)")
    parser.add_argument("--target", type=float, default=0.2, help="wall time against the peer's (default 0.2)")
    parser.add_argument("--requests", type=int, help=f"measured requests a run (default {FULL.requests})")
    parser.add_argument("--timeout", type=float, default=1800.0, help="longest time of one command, s (default 1800)")
    add_common_arguments(parser)
    options = checked(parser.parse_args(), ("rounds", "requests"))
    return options


def run() -> int:
    options = parse()
    peer.require_vllm()
    words = engines.words_for(engines.installed_kind(), options.words)
    request = engines.compose(words)
    load = QUICK if options.quick else FULL
    load = Load(**asdict(load) | {"requests": options.requests or load.requests})
    rounds: list[dict[str, Swept]] = []
    count, runs = (1, 1) if options.quick else (options.rounds, RUNS)
    facts = opening(request, load, f"max-num-seqs {' and '.join(map(str, SETTINGS))} x {runs} runs; each run {load}")
    with engines.scratch_folder() as folder:
        grid = Grid(request, words, folder, options)
        for side in ("peer lean", "one start"):
            primed = grid.run(side, PRIMING, SETTINGS[:1], 1)
            print(f"untimed start: {side}, {primed.wall_s:.1f} s", flush=True)
        for number in range(count):
            busy = engines.others_busy()
            print(f"round {number + 1} of {count} (others used {busy:.0%} of the machine before it)", flush=True)
            order = SIDES[number % len(SIDES) :] + SIDES[: number % len(SIDES)]
            rounds.append({})
            for side in order:
                rounds[-1][side] = grid.run(side, load, runs=runs)
                show(rounds[-1][side])
    figures, met = summary(rounds, options.target)
    if options.quick:
        print(QUICK_NOTE.strip())
    told = [{side: asdict(swept) for side, swept in one.items()} for one in rounds]
    write_json(options.json, {"facts": facts, "load": asdict(load), "target": options.target, "met": met,
                              "summary": figures, "rounds": told})  # fmt: skip
    return 0 if met or options.quick else 1


if __name__ == "__main__":
    sys.exit(engines.main(run))
