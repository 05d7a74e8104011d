"""Claims about the KV cache and the settings that are said to size it."""

from __future__ import annotations

from collections.abc import Iterator

from analysis import catalogue, guide
from analysis.audit.finding import Context, Finding, Verdict, how, span, within
from analysis.tables.cells import FORMATS, LOADS, MODELS

GB, GIB = guide.GB, 2**30
_LABELS = dict(FORMATS)
_PROBE = ("qwen2.5-7b", "bf16")
"""Whose KV pool stands for all, where a claim is about a setting: it fits every card of the guide's class."""


def checks(context: Context) -> Iterator[Finding]:
    yield _formula(context)
    yield _by_format(context)
    yield from _ranges(context)
    yield _at_4096(context)
    for seqs, saved in guide.SEQUENCE_SAVINGS.items():
        yield _pool(
            context, f"max-num-seqs-{seqs}", f"{guide.TUNING}, Max Sequences",
            f"--max-num-seqs {seqs} needs {saved:.0%} less KV memory than {guide.DEFAULT_MAX_NUM_SEQS}",
            ("max_num_seqs", "effective_max_num_seqs"), guide.DEFAULT_MAX_NUM_SEQS, seqs, -saved,
            "vLLM sizes the pool before any request comes. Fewer sequences leave it a little larger, because profiling "
            "and CUDA graphs take less; they cap concurrency.",
        )  # fmt: skip
    yield from _context_length(context)
    before, after = guide.TOKEN_BUDGETS
    yield _pool(
        context, "max-num-batched-tokens", f"{guide.TUNING}, Token Batching",
        "--max-num-batched-tokens controls the size of the KV cache",
        ("max_num_batched_tokens", "effective_max_num_batched_tokens"), before, after, after / before - 1,
        "It is the token budget of one step. A smaller one makes the activation peak smaller, and the pool gets what "
        "that frees.",
    )  # fmt: skip


def _formula(context: Context) -> Finding:
    ratios, ids, bases = {}, set(), []
    for _, model, _ in MODELS:
        said = 2 * catalogue.load_model(model).config["hidden_size"] * 2
        ours = context.evidence.kv(model, "bf16", 1, 16)
        ratios[model] = ours.value / 16 / said
        ids |= set(ours.run_ids)
        bases.append(ours.basis)
    values = list(ratios.values())
    return Finding(
        "kv-per-token-formula", f"{guide.TUNING}, Token Batching",
        "A token's KV cache takes about 2 x hidden size x 2 bytes", within(values, 1, 1, 0.1), "1 x its formula",
        span(values, "x its formula"), "1", how(bases),
        "The number of layers is missing, and the width is KV heads x head size, not the hidden size: "
        + "; ".join(f"{model} {value:.1f} x" for model, value in ratios.items()) + ".",
        min(values), max(values), 1.0, 1.0, tuple(sorted(ids)),
    )  # fmt: skip


def _by_format(context: Context) -> Finding:
    model = "deepseek-coder-33b"
    figures = [context.evidence.kv(model, quantization, 1, 4096) for quantization in ("bf16", "awq", "gptq")]
    values = [one.value / GB for one in figures]
    ours = max(values) / min(values)
    said = guide.TABLE["33B", "gptq"].kv.high / guide.TABLE["33B", "bf16"].kv.low
    return Finding(
        "kv-by-weight-format", guide.TABLE["33B", "awq"].kv.section,
        "The KV cache depends on the weight format: FP16 8-10, AWQ 25-30, GPTQ 28-35 GB at 33B",
        "wrong" if ours < 1.05 else "right", f"up to {said:.1f} x as much with GPTQ as with FP16",
        f"{ours:.2f} x; {span(values, 'GB', 2)} per 4096 tokens in each", "1",
        how([one.basis for one in figures]),
        "Keys and values are kept in the model's 16-bit type (or --kv-cache-dtype) whatever format the weights have. "
        "What differs is only how much room the weights leave.",
        ours, ours, said, said, tuple(sorted({i for one in figures for i in one.run_ids})),
    )  # fmt: skip


def _ranges(context: Context) -> Iterator[Finding]:
    for (size, quantization), said in guide.TABLE.items():
        models = [model for of, model, _ in MODELS if of == size]
        figures = {model: context.evidence.kv(model, quantization, 1, 4096) for model in models}
        low = min(said.kv.low * GB / one.value for one in figures.values())
        high = max(said.kv.high * GB / one.value for one in figures.values())
        least, most = min(load[0] for load in LOADS), max(load[0] for load in LOADS)
        yield Finding(
            f"kv-range-{size.lower()}-{quantization}", said.kv.section,
            f"The KV cache (max seq) of a {size} model in {_LABELS[quantization]} takes {said.kv.text()}", "misleading",
            said.kv.text(),
            f"enough for {low:.0f} to {high:.0f} sequences of 4096 tokens", "sequences",
            how([one.basis for one in figures.values()]),
            "A size without a number of sequences says nothing: "
            + "; ".join(
                f"{model} {least * one.value / GB:.1f} GB for {least} and {most * one.value / GB:.1f} GB for {most}"
                for model, one in figures.items()
            ) + " sequences of 4096.",
            low, high, None, None, tuple(sorted({i for one in figures.values() for i in one.run_ids})),
        )  # fmt: skip


def _at_4096(context: Context) -> Finding:
    said = guide.EXAMPLE_33B_KV_AT_4096
    one = context.evidence.kv("deepseek-coder-33b", "awq", 1, 4096)
    count = said.low * GB / one.value
    return Finding(
        "kv-33b-at-4096", said.section, "A 33B model needs about 44 GB for 4096 tokens and batching", "misleading",
        said.text(), f"{one.value / GB:.2f} GB per sequence of 4096 tokens", "GB", how([one.basis]),
        f"44 GB are {count:.0f} such sequences at once; the guide does not say how many it means.",
        one.value / GB, one.value / GB, said.low, said.high, one.run_ids,
    )  # fmt: skip


def _context_length(context: Context) -> Iterator[Finding]:
    before, after, said = guide.LONGER_CONTEXT
    short, long = (context.evidence.kv(*_PROBE, 1, tokens) for tokens in (before, after))
    change = long.value / short.value - 1
    section = f"{guide.TUNING}, Context Length"
    yield Finding(
        "context-8192-per-request", section,
        f"The KV cache is about {said:.0%} larger at {after} tokens than at {before}",
        within([change], said, said), f"+{said:.0%}", f"{change:+.0%} for one full-length request", "1",
        how([short.basis]), "A request's KV cache is proportional to its tokens: twice the length takes twice as much.",
        change, change, said, said, tuple(sorted({*short.run_ids, *long.run_ids})),
    )  # fmt: skip
    yield _pool(
        context, "context-8192-pool", section, f"The KV cache that vLLM reserves grows by about {said:.0%} with it",
        ("max_model_len", "effective_max_model_len"), before, after, said,
        "vLLM gives the pool what the budget leaves, whatever the longest request is.",
    )  # fmt: skip


def _pool(
    context: Context, name: str, section: str, claim: str, settings: tuple[str, str], before: int, after: int,
    said: float, why: str,
) -> Finding:  # fmt: skip
    """A claim that a setting changes the KV pool by a share `said`: from pairs of rows, else predicted."""
    option, column = settings
    guess = f"{said:+.0%}"
    ids: tuple[str, ...] = ()
    if pairs := context.evidence.rows.pairs(column, before, after):
        changes = [pair.change for pair in pairs]
        ids = tuple(sorted({one for pair in pairs for one in pair.run_ids}))
        found = f"{_shares(changes)} over {len(pairs)} pairs of starts"
        means = "rows"
    else:
        model, quantization = _PROBE
        pools = [context.evidence.predicted(model, quantization, **{option: value}).kv_pool
                 for value in (before, after)]  # fmt: skip
        changes = [pools[1].value / pools[0].value - 1]
        gib = (pools[1].value - pools[0].value) / GIB
        found = f"{changes[0]:+.1%} of the pool ({gib:+.2f} GiB; {_PROBE[0]}, {context.evidence.gpu})"
        means = "calibration"
    verdict: Verdict = within(changes, min(said * 0.9, said * 1.1), max(said * 0.9, said * 1.1), 0.0)
    return Finding(name, section, claim, verdict, f"{guess} of KV memory", found, "1", means, why,
                   min(changes), max(changes), said, said, ids)  # fmt: skip


def _shares(changes: list[float]) -> str:
    first, last = f"{min(changes):+.1%}", f"{max(changes):+.1%}"
    return first if first == last else f"{first} to {last}"
