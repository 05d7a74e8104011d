"""`python -m analysis tables`: result sets (or none) to multipliers.md and multipliers.parquet."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.tables.evidence import Evidence

DEFAULT_GPU = "h100-80gb"
DEFAULT_VLLM = "0.33.0"
DEFAULT_OUT = Path("results/tables")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sets", nargs="*", metavar="SET", help="result sets: folders, or names in results/; cells that their GPU rows "
        "measured win over predictions",
    )  # fmt: skip
    parser.add_argument("--gpu", default=DEFAULT_GPU, metavar="NAME", help=f"which GPU (default {DEFAULT_GPU})")
    parser.add_argument(
        "--vllm", default=DEFAULT_VLLM, metavar="VERSION", help=f"which vLLM release (default {DEFAULT_VLLM})"
    )
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help=f"where to write (default {DEFAULT_OUT})"
    )
    parser.add_argument("--pool", action="store_true", help="use rows of several environments together, and say so")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 2 with one sentence on what cannot be used."""
    from analysis.tables import cells, render, store

    try:
        evidence = gathered(args)
        found = list(cells.cells(evidence))
        args.out.mkdir(parents=True, exist_ok=True)
        store.write_text(args.out / "multipliers.md", render.markdown(found, evidence.gpu, evidence.vllm_version))
        store.write_cells(args.out / "multipliers.parquet", found, evidence.gpu, evidence.vllm_version)
    except (ValueError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    measured = sum(bool(cell.run_ids) for cell in found)
    missing = sum(cell.value is None for cell in found)
    print(f"{len(found)} cells, {measured} of them from rows, {missing} without data: {args.out / 'multipliers.md'}")
    return 0


def gathered(args: argparse.Namespace) -> Evidence:
    """What the tables and the audit draw on; says on stderr which rows were left aside. Raises ValueError."""
    from analysis import defaults, gpus
    from analysis.predict.request import Request
    from analysis.tables.evidence import Evidence
    from analysis.tables.measured import Measured

    try:
        gpu = gpus.find(args.gpu).name
    except gpus.UnknownGpu as unknown:  # without the way out that only predictions have
        raise ValueError(str(unknown).partition("; for any other")[0]) from None
    version = Request.of({"model": "any", "vllm_version": args.vllm}).vllm_version
    measured = Measured.read(args.sets, gpu, version, pool=args.pool)
    old = defaults.version_note(defaults.parsed(version))
    for note in [*([old] if old else []), *measured.notes]:
        print(f"note: {note}", file=sys.stderr)
    return Evidence(gpu, version, measured)
