"""Claims about vLLM's server, flags and messages, and those that no memory figure can settle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from analysis import guide
from analysis.audit.finding import Context, Finding, Verdict

_FLAGS = Path(__file__).resolve().parent.parent / "predict" / "vllm_flags.txt"


def checks(context: Context) -> Iterator[Finding]:
    yield _route(context)
    yield _module(context)
    yield _warning(context)
    yield _flags()
    yield _accuracy()
    yield _awq_overhead(context)


def _seen(context: Context, there: bool) -> Verdict:
    return "right" if there else "wrong"


def _unchecked(context: Context, name: str, section: str, claim: str, said: str) -> Finding:
    return Finding(name, section, claim, "not measured yet", said, "not looked up", "-", "vLLM's source",
                   f"{context.why_no_source}.")  # fmt: skip


def _route(context: Context) -> Finding:
    asked = ("stats-endpoint", guide.MONITORING, "The server answers /stats with memory statistics", guide.STATS_ROUTE)
    if context.source is None:
        return _unchecked(context, *asked)
    there = guide.STATS_ROUTE in context.source.routes
    others = [name for name in ("/metrics", "/health", "/load", "/version") if name in context.source.routes]
    return Finding(
        *asked[:3], _seen(context, there), asked[3], "there is such a route" if there else "no such route", "-",
        "vLLM's source", f"vLLM {context.source.version}: the server has {', '.join(others)}"
        + ("; /metrics carries the KV cache's use and preemptions." if "/metrics" in others else "."),
    )  # fmt: skip


def _module(context: Context) -> Finding:
    asked = ("api-server-module", guide.MULTI, f"python -m {guide.OLD_SERVER_MODULE} starts a server",
             guide.OLD_SERVER_MODULE)  # fmt: skip
    if context.source is None:
        return _unchecked(context, *asked)
    there = context.source.module(guide.OLD_SERVER_MODULE) is not None
    current = context.source.module("vllm.entrypoints.openai.api_server") is not None
    return Finding(
        *asked[:3], _seen(context, there), asked[3], "there is such a module" if there else "no such module", "-",
        "vLLM's source", f"vLLM {context.source.version}: use `vllm serve`"
        + (" or python -m vllm.entrypoints.openai.api_server, which also answers the guide's /v1/completions."
           if current else "."),
    )  # fmt: skip


def _warning(context: Context) -> Finding:
    asked = ("running-out-warning", guide.MONITORING, "vLLM warns in its log when a GPU is running out of memory",
             guide.WARNING_TEXT)  # fmt: skip
    if context.source is None:
        return _unchecked(context, *asked)
    there = context.source.says(guide.WARNING_TEXT)
    return Finding(
        *asked[:3], _seen(context, there), asked[3], "in its source" if there else "not in its source", "-",
        "vLLM's source", f"vLLM {context.source.version}: watch vllm:kv_cache_usage_perc and vllm:num_preemptions on "
        "/metrics instead." if not there else f"vLLM {context.source.version}.",
    )  # fmt: skip


def _flags() -> Finding:
    text = _FLAGS.read_text(encoding="utf-8")
    current = text.partition("\n\n")[0]  # after the blank line: options of other releases
    known = {word for line in current.splitlines() if not line.startswith("#") for word in line.split()[2:]}
    missing = [flag for flag in guide.FLAGS if flag not in known]
    return Finding(
        "flags", f"{guide.MULTI}; {guide.TUNING}", "The flags that the guide names are vLLM's",
        "wrong" if missing else "right", f"{len(guide.FLAGS)} flags", f"{len(guide.FLAGS) - len(missing)} known",
        "flags", "vLLM's CLI", "Option list of analysis/predict/vllm_flags.txt"
        + (f"; unknown: {', '.join(missing)}." if missing else "."),
        len(guide.FLAGS) - len(missing), len(guide.FLAGS) - len(missing), len(guide.FLAGS), len(guide.FLAGS),
    )  # fmt: skip


def _accuracy() -> Finding:
    return Finding(
        "accuracy-98.9", f"{guide.SCENARIOS}; {guide.TREE}", "4-bit models keep 98.9 % of FP16 accuracy, AWQ and GPTQ "
        "alike", "not measured yet", f"{guide.ACCURACY:.1%}", "not measured", "1", "none",
        "Accuracy needs real weights and an evaluation, which this project does not run. It depends on the model, its "
        "calibration and the task: no one figure holds for both methods and every model.",
        None, None, guide.ACCURACY, guide.ACCURACY,
    )  # fmt: skip


def _awq_overhead(context: Context) -> Finding:
    rows = context.evidence.rows
    differences, ids = [], set()
    for model in sorted({str(row.get("model")) for row in rows.rows}):
        settings = {(int(row["effective_max_num_seqs"]), int(row["effective_max_num_batched_tokens"]))
                    for row in rows.rows if row.get("model") == model and row.get("effective_max_num_seqs")
                    and row.get("effective_max_num_batched_tokens")}  # fmt: skip
        for seqs, batched in sorted(settings):
            pair = [rows.term("activation", model, name, seqs, batched) for name in ("awq", "gptq")]
            if pair[0] is not None and pair[1] is not None:
                differences.append((pair[0].value - pair[1].value) / 2**30)
                ids |= {*pair[0].run_ids, *pair[1].run_ids}
    asked = ("awq-lower-overhead", guide.TREE, "With vLLM, AWQ has a slightly lower overhead than GPTQ")
    if not differences:
        return Finding(
            *asked, "not measured yet", "AWQ below GPTQ", "no rows of both formats", "GiB", "rows",
            "No calibration has a term for the weight format; GPU rows of both formats at equal settings decide it.",
        )  # fmt: skip
    lower = all(one < -0.01 for one in differences)
    return Finding(
        *asked, "right" if lower else "wrong", "AWQ below GPTQ",
        f"activation peak {min(differences):+.2f} to {max(differences):+.2f} GiB against GPTQ", "GiB", "rows",
        f"{len(differences)} settings measured in both formats.", min(differences), max(differences), None, None,
        tuple(sorted(ids)),
    )  # fmt: skip
