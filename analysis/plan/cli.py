"""`python -m analysis plan`: models and loads in, shares and commands for one card out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.plan.card import Mode

EXAMPLES = """\
examples:
  python -m analysis plan --gpu 96gb --model deepseek-coder-33b:awq --model mistral-7b:awq --concurrency 8 --length 4096
  python -m analysis plan --gpu h100 --model qwen2.5-7b,concurrency=32 --model llama-3.1-8b:fp8,length=8192
  python -m analysis plan --gpu l40s --model qwen2.5-7b:awq --model qwen2.5-1.5b --pool bytes --format compose
  python -m analysis plan --scenarios

--model is NAME[:QUANTIZATION][,option=value ...] with a catalogue name, hub id or path; options are concurrency,
length, checkpoint, max_num_seqs, max_num_batched_tokens, kv_cache_dtype, enforce_eager. `length` counts prompt and
answer together.
Exit code: 0 it fits or is tight, 1 it does not fit or does not start, 2 the request cannot be answered as written.
"""

CONCURRENCY, LENGTH = "8", "4096"
"""The load of an engine that states none."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.allow_abbrev = False
    parser.add_argument("--model", action="append", default=[], metavar="MODEL", help="once for each engine")
    parser.add_argument("--gpu", metavar="NAME", help="such as 96gb, h100-80gb, l40s")
    parser.add_argument("--gpu-total-gib", metavar="GIB", help="the device's true total, for one that is not known")
    parser.add_argument("--vllm-version", metavar="VERSION", help="whose defaults and accounting apply")
    # Defaults are filled in later, so that --scenarios can refuse what it would not use.
    parser.add_argument("--concurrency", metavar="N", help=f"requests at once per engine (default {CONCURRENCY})")
    parser.add_argument("--length", metavar="TOKENS", help=f"of prompt and answer (default {LENGTH})")
    parser.add_argument(
        "--pool", choices=["utilization", "bytes"],
        help="size KV pools by --gpu-memory-utilization (default), or fix them with --kv-cache-memory-bytes",
    )  # fmt: skip
    parser.add_argument("--spare-gib", metavar="GIB", help="of the card, left to others (default 0)")
    parser.add_argument("--keep-order", action="store_true", help="start in the order given, not largest first")
    parser.add_argument(
        "--format", choices=["text", "json", "script", "compose"], default="text", help="text (default), json, a shell "
        "script, or a compose file",
    )  # fmt: skip
    parser.add_argument("--scenarios", action="store_true", help="the guide's budget table, its figures beside ours")
    parser.add_argument("--out", type=Path, metavar="DIR", help="with --scenarios: write scenarios.md, .parquet")
    parser.add_argument("sets", nargs="*", metavar="SET", help="with --scenarios: result sets whose rows count first")


def run(args: argparse.Namespace) -> int:
    """Prints the answer; returns the exit code."""
    from analysis.gpus import UnknownGpu
    from analysis.predict.request import RequestError
    from analysis.rows import RowsError

    try:
        return _scenarios(args) if args.scenarios else _plan(args)
    except (RequestError, UnknownGpu, RowsError) as refused:
        # A table takes no --gpu-total-gib, so the way out of an unknown card that only predictions have is left out.
        sentence = str(refused).partition("; for any other")[0] if args.scenarios else str(refused)
        print(f"error: {sentence}", file=sys.stderr)
        return 2


def _plan(args: argparse.Namespace) -> int:
    from analysis.plan import commands, instead, render
    from analysis.plan.card import plan
    from analysis.plan.engine import Card, Engine
    from analysis.predict.request import RequestError, human_integer

    if args.sets:
        raise RequestError(f"{args.sets[0]!r} is no option; name models with --model")
    if args.out:
        raise RequestError("--out is where --scenarios writes its table; a plan goes to standard output")
    concurrency = human_integer("--concurrency", args.concurrency or CONCURRENCY)
    length = human_integer("--length", args.length or LENGTH)
    mode: Mode = args.pool or "utilization"
    engines = [Engine.parse(text, concurrency, length) for text in args.model]
    card = Card(args.gpu, _real("--gpu-total-gib", args.gpu_total_gib), args.vllm_version)
    spare_bytes = round((_real("--spare-gib", args.spare_gib) or 0.0) * 2**30)
    done = plan(engines, card, mode=mode, spare_bytes=spare_bytes, keep_order=args.keep_order)
    changes = [] if done.verdict == "fits" else instead.changes(
        engines, card, spare_bytes, mode=mode, keep_order=args.keep_order
    )
    if args.format == "json":
        import json

        print(json.dumps(as_json(done, [one.sentence for one in changes]), indent=2))
    elif args.format == "text":
        sys.stdout.write(render.text(done, changes))
    elif not done.works:  # there is nothing to run, and prose must not end in a file of commands
        sys.stderr.write(render.text(done, changes))
    else:
        sys.stdout.write(commands.script(done) if args.format == "script" else commands.compose(done))
    return 0 if done.works else 1


def as_json(plan: Any, changes: list[str]) -> dict[str, Any]:
    """Everything a program may want; sizes in bytes, intervals as [low, high]."""
    from analysis.plan import commands

    def size(one: Any) -> dict[str, Any]:
        return {"bytes": round(one.value), "interval_bytes": [round(one.low), round(one.high)]}

    lines = commands.serve_commands(plan)
    return {
        "verdict": plan.verdict,
        "verdict_by_memory": plan.memory,
        "reason": plan.reason,
        "shortfall_bytes": round(plan.shortfall_bytes),
        "device": plan.placed[0].prediction.settings.device.name,
        "device_total_bytes": plan.total_bytes,
        "device_peak": size(plan.peak),
        "headroom": size(plan.headroom),
        "engines": [
            {
                "model": one.engine.model,
                "quantization": one.engine.quantization,
                "concurrency": one.engine.concurrency,
                "length_tokens": one.engine.length,
                "gpu_memory_utilization": one.share,
                "kv_cache_memory_bytes": one.pool_bytes,
                "weights_bytes": one.prediction.weights_bytes,
                "kv_pool": size(one.prediction.kv_pool),
                "device_peak": size(one.prediction.device_peak),
                "free_at_start": size(one.free),
                "requests_at_once": round(one.prediction.full_length_requests.value, 2),
                "requests_at_once_interval": [
                    round(one.prediction.full_length_requests.low, 2),
                    round(one.prediction.full_length_requests.high, 2),
                ],
                "command": line if plan.works else None,
            }
            for one, line in zip(plan.placed, lines, strict=True)
        ],
        "changes_predicted_to_fit": changes,
        "notes": commands.notes(plan),
        "warnings": list(dict.fromkeys(text for one in plan.placed for text in one.prediction.warnings)),
    }


def _scenarios(args: argparse.Namespace) -> int:
    from analysis.plan import scenarios
    from analysis.predict.request import RequestError

    refused = {
        "--model": args.model, "--concurrency": args.concurrency, "--length": args.length, "--pool": args.pool,
        "--spare-gib": args.spare_gib, "--keep-order": args.keep_order, "--gpu-total-gib": args.gpu_total_gib,
    }  # fmt: skip
    if given := [name for name, value in refused.items() if value]:
        raise RequestError(f"--scenarios has models, loads and settings of its own; leave out {', '.join(given)}")
    if args.format in ("script", "compose"):
        raise RequestError(f"--scenarios is a table and nothing to run; leave out --format {args.format}")
    if args.format == "json" and args.out:
        raise RequestError("--scenarios writes scenarios.md and .parquet into --out; leave out --format json")
    gpu = args.gpu or scenarios.CARD
    cells = scenarios.cells(args.sets, gpu, args.vllm_version)
    if args.format == "json":
        import json
        from dataclasses import asdict

        print(json.dumps([asdict(cell) for cell in cells], indent=2))
        return 0
    markdown = scenarios.markdown(cells, gpu, args.vllm_version)
    if args.out:
        try:
            scenarios.write(args.out, cells, markdown)
        except OSError as problem:
            raise RequestError(f"--out {args.out} cannot be written: {problem.strerror or problem}") from None
        print(f"{len(cells)} cells: {args.out / 'scenarios.md'}")
    else:
        sys.stdout.write(markdown)
    return 0


def _real(field: str, value: str | None) -> float | None:
    from analysis.predict.request import RequestError

    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not 0 <= number <= 4096:
        raise RequestError(f"{field} is {value!r}; give a number of GiB from 0 to 4096")
    return number
