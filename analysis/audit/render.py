"""The audit as Markdown and as columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis import gpus
from analysis.audit.finding import VERDICTS, Finding


def markdown(findings: Sequence[Finding], gpu: str, vllm_version: str, card_name: str, looked_up: str) -> str:
    """The whole document; nothing in it depends on the time."""
    card, device = gpus.find(card_name), gpus.find(gpu)
    out = [
        "# The guide's claims, audited",
        "",
        f"Every claim of the VRAM guide that can be checked, against vLLM {vllm_version}. Memory terms are those of "
        f"one {device.title}; claims about a 96 GB card are checked for one {card.title}, which has "
        f"{card.total_bytes / 2**30:.2f} GiB = {card.total_bytes / 1e9:.1f} GB. Figures were computed when this file "
        "was written; `make tables` writes it again. GB are 10^9 bytes, GiB 2^30.",
        "",
        "- `right`: our figure lies in the guide's range, give or take 3 % (scenario totals: 10 %). `wrong`: it does "
        "not, for any model. `misleading`: it does for some models, or is true and leads to a wrong choice.",
        "- How: `arithmetic` from config.json, `calibration` (fitted or prior memory terms, see multipliers.md), "
        f"`rows` of GPU result sets, vLLM's source or CLI ({looked_up} looked into, as text).",
        "",
        _line(["Verdict", "Claims"]),
        _line(["---", "---:"]),
        *(_line([verdict, str(sum(one.verdict == verdict for one in findings))]) for verdict in VERDICTS),
    ]  # fmt: skip
    for section in dict.fromkeys(one.section.partition(",")[0].partition(";")[0] for one in findings):
        mine = [one for one in findings if one.section.partition(",")[0].partition(";")[0] == section]
        out += ["", f"## {section}", "", _line(["Check", "Claim", "Verdict", "Guide", "Ours", "How", "Why"]),
                _line(["---"] * 7)]  # fmt: skip
        out += [_line([f"`{one.id}`", one.claim, f"**{one.verdict}**", one.guide, one.ours, one.how, one.why])
                for one in mine]  # fmt: skip
    measured = [one for one in findings if one.run_ids]
    if measured:
        out += ["", "## Engine starts behind the figures", ""]
        out += [f"- `{one.id}`: {', '.join(f'`{name}`' for name in one.run_ids)}" for one in measured]
    else:
        out += ["", "No figure is from rows: no row of a GPU result set was given for this card and this vLLM."]
    return "\n".join(out) + "\n"


def table(
    findings: Sequence[Finding], gpu: str, vllm_version: str
) -> tuple[tuple[tuple[str, str], ...], list[tuple[Any, ...]]]:
    """Columns and rows of audit.parquet."""
    columns = (
        ("gpu", "string"), ("vllm_version", "string"), ("id", "string"), ("section", "string"), ("claim", "string"),
        ("verdict", "string"), ("guide", "string"), ("ours", "string"), ("unit", "string"), ("guide_low", "double"),
        ("guide_high", "double"), ("ours_low", "double"), ("ours_high", "double"), ("how", "string"),
        ("why", "string"), ("run_ids", "strings"),
    )  # fmt: skip
    rows = [
        (gpu, vllm_version, one.id, one.section, one.claim, one.verdict, one.guide, one.ours, one.unit,
         *(_round(size) for size in (one.guide_low, one.guide_high, one.low, one.high)), one.how, one.why,
         list(one.run_ids))
        for one in findings
    ]  # fmt: skip
    return columns, rows


def _round(value: float | None) -> float | None:
    """Six significant digits at least, and no noise of the last bits."""
    return None if value is None else float(f"{value:.9g}")


def _line(words: Sequence[str]) -> str:
    return f"| {' | '.join(word.replace('|', '/') for word in words)} |"
