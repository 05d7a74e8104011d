"""`python -m analysis audit`: result sets (or none) to audit.md and audit.parquet."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.tables import cli as tables_cli

if TYPE_CHECKING:
    from analysis.audit.finding import Context, Finding
    from analysis.audit.installed import Source

CARD = "rtx-pro-6000"
"""A card of the guide's 96 GB class."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    tables_cli.add_arguments(parser)
    parser.add_argument("--card", default=CARD, metavar="NAME", help=f"the guide's 96 GB card (default {CARD})")
    parser.add_argument(
        "--vllm-source", type=Path, metavar="DIR", help="look routes and modules up in this vLLM (an unpacked wheel or "
        "a checkout) instead of the installed one; nothing is imported",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Exit code 0, whatever the verdicts; 2 with one sentence on what cannot be used."""
    from analysis import gpus
    from analysis.audit import installed, render
    from analysis.audit.finding import VERDICTS, Context
    from analysis.tables import store
    from analysis.tables.evidence import Evidence
    from analysis.tables.measured import Measured

    try:
        source = installed.at(args.vllm_source) if args.vllm_source else installed.find()
        evidence = tables_cli.gathered(args)
        card_name = gpus.find(args.card).name
        rows = Measured.read(args.sets, card_name, evidence.vllm_version, pool=args.pool)
        card = Evidence(card_name, evidence.vllm_version, rows)
        missing = "No vLLM is installed beside this Python, and --vllm-source names none"
        context = Context(evidence, card, source, missing)
        findings = found_by(context)
        args.out.mkdir(parents=True, exist_ok=True)
        text = render.markdown(findings, evidence.gpu, evidence.vllm_version, card.gpu, _looked_up(source))
        store.write_text(args.out / "audit.md", text)
        store.write_table(args.out / "audit.parquet", *render.table(findings, evidence.gpu, evidence.vllm_version))
    except (ValueError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    counts = ", ".join(f"{sum(one.verdict == verdict for one in findings)} {verdict}" for verdict in VERDICTS)
    print(f"{len(findings)} claims: {counts}: {args.out / 'audit.md'}")
    return 0


def found_by(context: Context) -> list[Finding]:
    """Every check's finding, in the order of the guide's subjects."""
    from analysis.audit import budget, cache, server, weights

    return [found for module in (weights, cache, budget, server) for found in module.checks(context)]


def _looked_up(source: Source | None) -> str:
    return f"vLLM {source.version}" if source else "no vLLM"
