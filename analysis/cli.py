"""The command line: `python -m analysis SUBCOMMAND`. Only the chosen subcommand's module is imported."""

from __future__ import annotations

import argparse
import difflib
import gc
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

SUBCOMMANDS = {
    "predict": ("analysis.predict.cli", "GPU memory, KV tokens and start verdict of a `vllm serve` command"),
    "fit": ("analysis.fit.cli", "fit the memory terms to result sets, with held-out errors"),
    "design": ("analysis.fit.design_cli", "what a grid can and cannot identify, and which points to add"),
    "roofline": ("analysis.throughput.cli", "fit throughput and latency to result sets, with held-out errors"),
    "compare": ("analysis.compare.cli", "compare two or more result sets, with tests and a verdict for CI"),
    "history": ("analysis.history.cli", "one metric over many result sets, with its change points"),
    "report": ("analysis.report.cli", "one self-contained HTML page and its pictures from a result set"),
    "query": ("analysis.query.cli", "SQL over result sets"),
    "plan": ("analysis.plan.cli", "several models on one card: shares, headroom, commands"),
    "advise": ("analysis.advise.cli", "rank quantizations and settings for a GPU, a load and an SLO"),
    "diagnose": ("analysis.diagnose.cli", "why a start failed, and the smallest change predicted to work"),
    "drift": ("analysis.drift.cli", "does memory grow while a load holds: slope, interval, verdict"),
    "tables": ("analysis.tables.cli", "regenerate the calibrated multiplier tables"),
    "audit": ("analysis.audit.cli", "check the guide's claims against the rows"),
    "ingest": ("analysis.ingest.cli", "turn vLLM server logs into rows of a result set"),
}
"""Subcommand to the module that has `add_arguments(parser)` and `run(args) -> int`, and what it is for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code: 0 done, 1 failed, 2 a bad request."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    name = words[0]
    if name not in SUBCOMMANDS:
        return _refuse(f"{name!r} is no subcommand; there are {', '.join(SUBCOMMANDS)}")
    module_name, summary = SUBCOMMANDS[name]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        if missing.name is None or not module_name.startswith(missing.name):
            return _refuse(f"{name} needs the Python package {missing.name!r}, which is not installed", 1)
        return _refuse(f"{name} is not part of this installation ({module_name} is missing)", 1)
    parser = _Parser(prog=f"python -m analysis {name}", description=summary)
    module.add_arguments(parser)
    words = words[1:]
    if rearranged := getattr(module, "rearranged", None):
        words = rearranged(words)
    # A command is short, and its rows are millions of objects: looking for cycles among them only costs time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        # Options may stand before, between and after the positional words.
        args = parser.parse_args(words) if "--" in words else parser.parse_intermixed_args(words)
        return int(module.run(args))
    except SystemExit as stopped:  # argparse: 0 after --help, 2 after a bad option
        return stopped.code if isinstance(stopped.code, int) else 1
    except KeyboardInterrupt:
        return 130
    finally:
        if collecting:
            gc.enable()


class _Parser(argparse.ArgumentParser):
    """argparse with one sentence per mistake, and the option that was meant."""

    def error(self, message: str) -> NoReturn:
        sentence = message
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            option = unknown.split()[0].partition("=")[0]
            known = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(option, known, n=1)
            meant = f"did you mean {near[0]}?" if near else f"`{self.prog} --help` lists those there are"
            sentence = f"{option} is no option of {self.prog}; {meant}"
        self.exit(2, f"error: {sentence}\n")


def _overview() -> str:
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in SUBCOMMANDS.items()]
    return "\n".join(["usage: python -m analysis SUBCOMMAND ...", "", *lines, "",
                      "python -m analysis SUBCOMMAND --help says more."])  # fmt: skip


def _refuse(sentence: str, code: int = 2) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return code
