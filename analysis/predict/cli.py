"""`python -m analysis predict`: a command line or flags in, a table or JSON out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.predict.facts import Source

SUMMARY = "GPU memory, KV tokens and start verdict of a `vllm serve` command"

EXAMPLES = """\
examples:
  python -m analysis predict "vllm serve Qwen/Qwen2.5-7B-Instruct --max-num-seqs 64" --gpu l4
  python -m analysis predict --model llama-3.1-8b --quantization awq --gpu rtx-4090 --max-model-len 8192
  python -m analysis predict --gpu h100-80gb --json -- vllm serve ./my-model -tp 2
  python -m analysis predict --model llama-3.1-8b --gpu h100 --concurrency 64 --input-tokens 1024 --output-tokens 256
  python -m analysis predict --batch requests.jsonl > answers.jsonl

A model is a catalogue entry (conf/model), its hub id, a folder or config.json, or a hub id where a hub can be reached.
Sizes are GiB of 2^30 bytes and belong to one GPU. Intervals hold 90 % of measurements. `tight` means that the verdict
changes within the interval, or that fewer than 2 requests of max-model-len fit at once.
With a load it also says how fast: mean TTFT and TPOT, output tokens/s, what bounds them.
Exit code: 0 answered, 2 the request cannot be answered as written, 1 anything else.
"""

_OWN: tuple[tuple[str, str, str], ...] = (
    ("model", "MODEL", "catalogue entry, hub id or path"),
    ("quantization", "NAME", "catalogue quantization, or a value of vLLM's --quantization"),
    ("dtype", "DTYPE", "as vLLM's"),
    ("kv-cache-dtype", "DTYPE", "as vLLM's"),
    ("tensor-parallel-size", "N", "as vLLM's"),
    ("pipeline-parallel-size", "N", "as vLLM's"),
    ("gpu-memory-utilization", "SHARE", "as vLLM's"),
    ("kv-cache-memory-bytes", "BYTES", "as vLLM's; 4G is 2^32"),
    ("max-model-len", "TOKENS", "as vLLM's"),
    ("max-num-seqs", "N", "as vLLM's"),
    ("max-num-batched-tokens", "TOKENS", "as vLLM's"),
    ("block-size", "TOKENS", "as vLLM's"),
)
_LOAD: tuple[tuple[str, str, str], ...] = (
    ("concurrency", "N", "closed loop: so many clients, each with one request at a time"),
    ("rate", "PER_S", "open loop instead: requests a second, arriving at random (Poisson)"),
    ("input-tokens", "TOKENS", "length of a prompt"),
    ("output-tokens", "TOKENS", "tokens generated for it"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.allow_abbrev = False
    parser.add_argument(
        "command", nargs="*", metavar="COMMAND", help="a whole `vllm serve ...` command line, quoted or after --"
    )
    parser.add_argument("--gpu", metavar="NAME", help="such as h100-80gb, l4, 'NVIDIA L40S'")
    parser.add_argument("--gpu-total-gib", metavar="GIB", help="the device's true total, for one that is not known")
    parser.add_argument("--vllm-version", metavar="VERSION", help="whose defaults and accounting apply")
    parser.add_argument("--batch", metavar="FILE", help="JSON lines in, JSON lines out; - is standard input")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument(
        "--oracle", choices=["vllm"], help="take weights and KV cache from vLLM's own model class, built without a GPU "
        "where vLLM is installed: any architecture it knows; 10 s and more",
    )  # fmt: skip
    parser.add_argument("--oracle-python", metavar="PYTHON", help="the Python that has vLLM, if it is not this one")
    parser.add_argument("--details", action="store_true", help="with --batch: also settings, phase, shortfall, blocks")
    group = parser.add_argument_group("instead of a command line (or over it)")
    for name, metavar, meaning in _OWN:
        group.add_argument(f"--{name}", metavar=metavar, help=meaning)
    load = parser.add_argument_group("a load, for throughput and latency")
    for name, metavar, meaning in _LOAD:
        load.add_argument(f"--{name}", metavar=metavar, help=meaning)
    group.add_argument("--enforce-eager", action="store_true", default=None, help="as vLLM's")


_TAKEN = {
    "--gpu": 1, "--gpu-total-gib": 1, "--vllm-version": 1, "--json": 0, "--oracle": 1, "--oracle-python": 1,
    **{f"--{name}": 1 for name, _, _ in _LOAD},
}  # fmt: skip
"""Options of ours inside an unquoted `vllm serve ...`; whatever else stands there is vLLM's."""


def rearranged(words: list[str]) -> list[str]:
    """Lets a command line be typed without quotes: our own options go first, the rest stands after --."""
    begins = any(word == "vllm" or word.endswith("vllm.entrypoints.openai.api_server") for word in words)
    if not begins or "--" in words:
        return words
    own: list[str] = []
    rest: list[str] = []
    place = 0
    while place < len(words):
        name, equals, _ = words[place].partition("=")
        count = 1 + (0 if equals else _TAKEN.get(name, 0))
        (own if name in _TAKEN else rest).extend(words[place : place + count])
        place += count
    return [*own, "--", *rest]


def run(args: argparse.Namespace) -> int:
    """Prints the answer; returns the exit code."""
    from analysis.predict.request import RequestError

    try:
        return _batch(args) if args.batch else _single(args)
    except RequestError as refused:
        print(f"error: {refused}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone: head, less
        sys.stderr.close()
        return 1


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    names = [name.replace("-", "_") for name, _, _ in (*_OWN, *_LOAD)]
    names += ["gpu", "gpu_total_gib", "vllm_version", "enforce_eager"]
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def _facts(args: argparse.Namespace) -> Source:
    from analysis.predict import facts

    return facts.Oracle(args.oracle_python) if args.oracle else facts.of_arithmetic


def _single(args: argparse.Namespace) -> int:
    from analysis.predict.answer import predict
    from analysis.predict.command import parse_command
    from analysis.predict.render import text
    from analysis.predict.request import Request, RequestError

    given = _fields(args)
    words = list(args.command)
    if words:
        command: str | list[str] = words[0] if len(words) == 1 else words
        request = parse_command(command, given)
    elif "model" in given:
        request = Request.of(given)
    else:
        raise RequestError("nothing to predict: give a `vllm serve ...` command line, --model, or --batch FILE")
    answer = predict(request, _facts(args))
    if args.json:
        print(json.dumps({**answer.fields(), **answer.details()}, indent=2, ensure_ascii=False))
    else:
        sys.stdout.write(text(answer))
    return 0


def _batch(args: argparse.Namespace) -> int:
    from analysis.predict.batch import answers
    from analysis.predict.request import RequestError

    if args.command:
        raise RequestError("a command line and --batch are two requests; give one of them")
    lines = sys.stdin if args.batch == "-" else _lines(Path(args.batch))
    for line in answers(lines, _fields(args), details=args.details, facts=_facts(args)):
        print(line)
    return 0


def _lines(path: Path) -> Iterator[str]:
    from analysis.predict.request import RequestError

    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from file
    except OSError as unreadable:
        raise RequestError(f"--batch {path} cannot be read: {unreadable.strerror}") from None
