"""What the benchmarks against peers have in common on the command line and in print."""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

from bench.errors import BadRequest, BenchError
from bench.request import Request
from tests.benchmarks import engines
from tests.benchmarks.load import Load

QUICK_NOTE = " (--quick: too little work to conclude anything from)"


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """--quick, --json, --seed, --patience and the overrides."""
    parser.add_argument("--quick", action="store_true", help="a smoke run: little work, figures mean nothing, exit 0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here too")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts (default 0)")
    parser.add_argument("--patience", type=float, default=1800.0, help="longest wait for the device, s (default 1800)")
    parser.add_argument("words", nargs="*", metavar="WORD", help="engine settings, as `python -m bench` takes them")


def checked(options: argparse.Namespace, at_least_1: tuple[str, ...]) -> argparse.Namespace:
    """The options, or `BadRequest`: minutes of measuring must not end in a mistake of the command line."""
    for name in at_least_1:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise BadRequest(f"--{name} {value}: at least 1")
    if options.seed < 0:
        raise BadRequest(f"--seed {options.seed}: at least 0")
    if options.json is not None and (options.json.is_dir() or not os.access(options.json.parent, os.W_OK)):
        raise BadRequest(f"--json {options.json}: cannot be written; name a file in a folder that can")
    return options


def opening(request: Request, load: Load, what: str) -> dict[str, Any]:
    """Print and return what the figures belong to. Raises `BadRequest` for a load that the engine could not take."""
    room, need = request.cfg.engine.max_model_len, load.input_tokens + load.output_tokens
    if room is not None and room < need:
        raise BadRequest(f"engine.max_model_len={room}: the load's requests have {need} tokens; ask for {need} or more")
    facts = engines.facts(request) | {"model": request.cfg.model.name, "quantization": request.cfg.quantization.name}
    threads = f", {facts['cpu_threads']} engine threads" if facts.get("cpu_threads") else ""
    print(f"vLLM {facts['vllm_version']} on {facts['device_name']} ({facts['host_cpu_count']} cores{threads})\n"
          f"{facts['model']} {facts['quantization']}; {what}", flush=True)  # fmt: skip
    return facts


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    """Write all figures, where asked for. Raises `BenchError` where the file cannot be written."""
    if path is None:
        return
    try:
        path.write_text(json.dumps(_finite(figures), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise BenchError(f"--json {path}: cannot be written ({error.strerror}); name a file that can") from error
    print(f"figures in {path}")


def _finite(value: Any) -> Any:
    """The same with null for what no number is known of: JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
