"""`python -m analysis ingest LOG… --set NAME --gpu NAME`: server logs to rows of a result set."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DESCRIPTION = "turn vLLM server logs (0.8 and later) into rows of a result set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ingest`."""
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="log of one engine start; - reads stdin")
    parser.add_argument("--set", required=True, metavar="NAME", help="result set to write to (results/NAME), or a path")
    parser.add_argument("--gpu", required=True, help="GPU of these logs, as in `predict --gpu`: a log does not name it")
    parser.add_argument("--model-config", type=Path, metavar="JSON", help="config.json of the model, if not catalogued")
    parser.add_argument("--configs", type=Path, metavar="DIR", help="ORG--NAME/config.json files beside the catalogue")
    parser.add_argument("--vllm-version", help="for logs that do not name it")


def run(args: argparse.Namespace) -> int:
    """Exit code 0 if at least one log became a row; 2 with one sentence a log if none did."""
    from analysis import gpus
    from analysis.fit.public import Shapes
    from analysis.ingest.row import UselessLog, row_of
    from bench.errors import BenchError
    from bench.record.store import ResultSet

    try:
        gpu = gpus.find(args.gpu)
        shapes = Shapes(args.configs)
        given = _config(args.model_config) if args.model_config else None
    except ValueError as problem:
        return _refuse(str(problem))
    name = Path(args.set).name
    root = Path(args.set) if "/" in args.set else Path("results") / args.set
    target = ResultSet(root)
    taken = 0
    for path in args.logs:
        try:
            text = _text(path)
            row = row_of(
                str(path), text, gpu, set_name=name, config=given or _shape(shapes, text),
                vllm_version=args.vllm_version,
            )  # fmt: skip
            target.create()
            row["log_file"] = f"logs/{row['run_id']}.log"
            (root / row["log_file"]).write_text(text, encoding="utf-8")
            target.write(row["run_id"], row, [], [])
        except (UselessLog, OSError, BenchError) as problem:
            print(f"ingest: {problem}", file=sys.stderr)
            continue
        taken += 1
        missing = "" if row["model_config_json"] else "; its shape is not known: give --model-config to fit to it"
        print(f"{path}: vLLM {row['vllm_version']} {row['model']} ({row['status']}){missing}")
    print(f"{taken} of {len(args.logs)} logs are now rows of {root}")
    return 0 if taken else 2


def _refuse(sentence: str) -> int:
    print(f"ingest: {sentence}", file=sys.stderr)
    return 2


def _text(path: Path) -> str:
    if str(path) == "-":
        return sys.stdin.read()
    return path.read_text(encoding="utf-8", errors="replace")


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as unreadable:
        raise ValueError(f"--model-config {path} cannot be read: {unreadable.strerror}") from None
    except ValueError as broken:
        raise ValueError(f"--model-config {path} is not JSON: {broken}") from None
    if not isinstance(found, dict):
        raise ValueError(f"--model-config {path} is no JSON object")
    return found


def _shape(shapes: Any, text: str) -> dict[str, Any] | None:
    from analysis.ingest.older import read

    told = read(line for line in text.splitlines() if "LLM engine (v" in line or "args:" in line)
    found = shapes.find(told.model, str(told.settings.get("quantization"))) if told.model else None
    return found[1] if found else None


def main(argv: Sequence[str] | None = None) -> int:
    """The command by itself, without the dispatcher."""
    parser = argparse.ArgumentParser(prog="python -m analysis ingest", description=DESCRIPTION)
    add_arguments(parser)
    return run(parser.parse_args(argv))
