"""`python -m analysis advise`: a card, models, a load and targets in, a ranked list with reasons out."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.advise.ask import Ask
    from analysis.advise.candidates import Candidate

EXAMPLES = """\
examples:
  python -m analysis advise --gpu h100 --model qwen2.5-14b --concurrency 64 --input-tokens 1024 --output-tokens 256
  python -m analysis advise --gpu l40s --model qwen2.5-7b --model qwen2.5-14b --rate 4 --ttft 1s --tpot 50ms
  python -m analysis advise --gpu 96gb --together --model deepseek-coder-33b --model mistral-7b --concurrency 8

Several models are alternatives, unless --together asks for all of them on one card; then targets are held against each
engine alone, which is the best that it can do beside others. Targets are means. Quality is the user's: a CSV file with
the columns model, quantization, quality, higher is better.
Exit code: 0 something serves the load, 1 nothing is predicted to, 2 the question cannot be answered as written.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.allow_abbrev = False
    parser.add_argument("--model", action="append", default=[], metavar="NAME", help="catalogue name, hub id or path")
    parser.add_argument("--together", action="store_true", help="all models on one card, not one of them")
    parser.add_argument("--gpu", metavar="NAME", help="such as h100-80gb, l40s, 96gb")
    parser.add_argument("--gpu-total-gib", metavar="GIB", help="the device's true total, for one that is not known")
    parser.add_argument("--vllm-version", metavar="VERSION", help="whose defaults and accounting apply")
    parser.add_argument("--concurrency", metavar="N", help="closed loop: so many requests at once")
    parser.add_argument("--rate", metavar="PER_S", help="open loop: requests a second, arriving at random")
    parser.add_argument("--input-tokens", default="1024", metavar="TOKENS", help="of a prompt (default 1024)")
    parser.add_argument("--output-tokens", default="256", metavar="TOKENS", help="of an answer (default 256)")
    parser.add_argument("--ttft", metavar="TIME", help="target for the mean time to first token, such as 500ms")
    parser.add_argument("--tpot", metavar="TIME", help="target for the mean time per output token, such as 40ms")
    parser.add_argument("--formats", metavar="A,B", help="weight formats to try (default: bf16,fp8,int8-w8a8,awq,gptq)")
    parser.add_argument("--quality", type=Path, metavar="FILE", help="scores of your own by model and format")
    parser.add_argument("--min-quality", metavar="SCORE", help="leave out what scores lower, or is not scored")
    parser.add_argument("--json", action="store_true", help="JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Prints the advice; returns the exit code."""
    from analysis.predict.request import RequestError

    try:
        return _together(args) if args.together else _alternatives(args)
    except RequestError as refused:
        print(f"error: {refused}", file=sys.stderr)
        return 2


def _ask(args: argparse.Namespace) -> Ask:
    from analysis.advise.ask import FORMATS, Ask, Slo, read_quality, seconds
    from analysis.predict.request import human_integer

    return Ask(
        models=tuple(args.model),
        gpu=args.gpu,
        gpu_total_gib=_number("--gpu-total-gib", args.gpu_total_gib),
        vllm_version=args.vllm_version,
        concurrency=_whole("--concurrency", args.concurrency),
        rate_per_s=_number("--rate", args.rate),
        input_tokens=human_integer("--input-tokens", args.input_tokens),
        output_tokens=human_integer("--output-tokens", args.output_tokens),
        slo=Slo(
            seconds("--ttft", args.ttft) if args.ttft else None, seconds("--tpot", args.tpot) if args.tpot else None
        ),
        formats=tuple(args.formats.split(",")) if args.formats else FORMATS,
        quality=read_quality(args.quality) if args.quality else {},
        least_quality=_number("--min-quality", args.min_quality, above=None),
    )


def _alternatives(args: argparse.Namespace) -> int:
    from analysis.advise import instead, render
    from analysis.advise.candidates import candidates
    from analysis.advise.rank import ranked, steps
    from analysis.predict.request import RequestError

    ask = _ask(args)
    order = ranked(candidates(ask), ask)
    if not order:
        raise RequestError(f"--min-quality {args.min_quality}: no candidate scores as high; lower it or add scores")
    if all(one.grade == "unknown" for one in order):
        raise RequestError(order[0].why)
    if all(one.prediction and one.prediction.obstacle and one.prediction.obstacle.phase == "config" for one in order):
        # vLLM refuses the settings whatever the format and the card: the question is at fault, not what was tried.
        raise RequestError(_refused(order, ask))
    why = steps(order, ask)
    serves = order[0].grade in ("meets", "likely")
    changes = [] if serves else instead.changes(ask)
    if args.json:
        print(json.dumps(render.as_json(order, why, ask, changes), indent=2))
    else:
        sys.stdout.write(render.text(order, why, ask, changes))
    return 0 if serves else 1


def _refused(order: list[Candidate], ask: Ask) -> str:
    """One sentence on settings that vLLM refuses for every model."""
    limits = {one.model: one.prediction.settings.length_limit for one in order if one.prediction}
    if all(limit < ask.length for limit in limits.values()):
        named = ", ".join(f"{limit:,} of {model}" for model, limit in limits.items())
        return (
            f"--input-tokens {ask.input_tokens} and --output-tokens {ask.output_tokens} make requests of "
            f"{ask.length:,} tokens, more than config.json allows ({named}); ask for shorter ones or another model"
        )
    return order[0].why


def _together(args: argparse.Namespace) -> int:
    from analysis.advise.together import pairs, text

    ask = _ask(args)
    found = pairs(ask)
    if args.json:
        print(json.dumps([one.fields() for one in found], indent=2))
    else:
        sys.stdout.write(text(found, ask))
    return 0 if found[0].plan.verdict == "fits" and not found[0].misses else 1


def _whole(field: str, value: str | None) -> int | None:
    from analysis.predict.request import RequestError, human_integer

    if value is None:
        return None
    number = human_integer(field, value)
    if not 1 <= number <= 10**6:
        raise RequestError(f"{field} is {number}; it must be from 1 to 1,000,000")
    return number


def _number(field: str, value: str | None, above: float | None = 0.0) -> float | None:
    import math

    from analysis.predict.request import RequestError

    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (above is not None and number <= above):
        raise RequestError(f"{field} is {value!r}; give a number" + (" above 0" if above is not None else ""))
    return number
