"""Claims about totals, utilization and two models on one card."""

from __future__ import annotations

from collections.abc import Iterator

from analysis import defaults, gpus, guide
from analysis.audit.finding import Context, Finding, Verdict, how, span, within
from analysis.plan import hardware, scenarios
from analysis.predict.request import Request
from analysis.tables.cells import FORMATS, LOADS, MODELS
from analysis.tables.evidence import Figure, added

GB, GIB = guide.GB, 2**30
_LABELS = dict(FORMATS)
_LOAD = LOADS[0]
_AT = f"{_LOAD[0]} x {_LOAD[1]} tokens"
_TOTAL_TOLERANCE = 0.10
"""Totals are rough on either side: a scenario within a tenth counts as right."""


def checks(context: Context) -> Iterator[Finding]:
    yield from _multipliers(context)
    yield _batching(context)
    for (size, quantization), said in guide.TABLE.items():
        yield _total(context, size, quantization, said.total)
    yield _default_utilization(context)
    yield _usable(context)
    for name, share in (("two-at-0.88", guide.TWO_MODELS_UTILIZATION), ("two-at-0.85", guide.TWO_MODELS_ADVICE)):
        yield _two_processes(context, name, share)
    for scenario in guide.SCENARIO_LIST:
        yield _scenario(context, scenario)
    yield _single_fp16(context)
    yield _default_sequences(context)
    yield _lower_utilization(context)


def _multipliers(context: Context) -> Iterator[Finding]:
    for size, said in guide.MULTIPLIERS.items():
        found = {}
        for of, model, _ in MODELS:
            if of == size:
                for quantization in ("bf16", "awq"):
                    for load in LOADS:
                        one = context.evidence.multiplier(model, quantization, *load)
                        found[f"{model} {_LABELS[quantization]} {load[0]} x {load[1]}"] = one
        values = {name: one.value for name, one in found.items()}
        least, most = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
        yield Finding(
            f"multiplier-{size.lower()}", said.section, f"A {size} model takes {said.text()} the size of its weights",
            within(list(values.values()), said.low, said.high), said.text(), span(list(values.values()), "x", 2), "1",
            how([one.basis for one in found.values()]),
            f"There is no such constant: it follows the load, and the weight format. Least: {least}; most: {most}.",
            min(values.values()), max(values.values()), said.low, said.high,
            tuple(sorted({name for one in found.values() for name in one.run_ids})),
        )  # fmt: skip


def _batching(context: Context) -> Finding:
    said, shares, ids, bases = guide.BATCHING_SHARE, {}, set(), []
    for _, model, title in MODELS:
        for quantization in ("bf16", "awq"):
            over = context.evidence.overhead(model, quantization)
            base = context.evidence.total(model, quantization, *_LOAD).value - over.value
            shares[f"{title} {_LABELS[quantization]}"] = over.value / base
            ids |= set(over.run_ids)
            bases.append(over.basis)
    values = list(shares.values())
    return Finding(
        "batching-overhead", said.section, "Batching adds 10-20 % for per-request overhead",
        within(values, said.low, said.high), "10 to 20 %",
        f"{min(values):.0%} to {max(values):.0%} of weights and KV cache at {_AT}", "1", how(bases),
        "What comes on top belongs to the engine and its settings (activation peak, CUDA graphs, context), not to the "
        "requests, and is no share of the model: a small or quantized one pays as many GiB.",
        min(values), max(values), said.low, said.high, tuple(sorted(ids)),
    )  # fmt: skip


def _total(context: Context, size: str, quantization: str, said: guide.Range) -> Finding:
    figures = {(model, load): context.evidence.total(model, quantization, *load)
               for of, model, _ in MODELS if of == size for load in LOADS}  # fmt: skip
    values = [one.value / GB for one in figures.values()]
    return Finding(
        f"total-{size.lower()}-{quantization}", said.section,
        f"A {size} model in {_LABELS[quantization]} takes {said.text()} in total", within(values, said.low, said.high),
        said.text(), span(values, "GB"), "GB", how([one.basis for one in figures.values()]),
        "; ".join(f"{model} {one.value / GB:.1f} GB at {load[0]} x {load[1]}"
                  for (model, load), one in figures.items()) + ".",
        min(values), max(values), said.low, said.high,
        tuple(sorted({name for one in figures.values() for name in one.run_ids})),
    )  # fmt: skip


def _default_utilization(context: Context) -> Finding:
    version = context.evidence.vllm_version
    ours = defaults.gpu_memory_utilization(defaults.parsed(version))
    why = f"vLLM {version}" + ("." if ours == guide.UTILIZATION else "; 0.90 was the default of older releases.")
    if context.source and (read := context.source.cache_default("gpu_memory_utilization")) is not None:
        why += f" The vLLM {context.source.version} installed here says {read:g}."
    return Finding(
        "default-utilization", f"{guide.TUNING}, Memory Utilization", "--gpu-memory-utilization is 0.90 by default",
        "right" if ours == guide.UTILIZATION else "wrong", f"{guide.UTILIZATION:.2f}", f"{ours:.2f}", "1",
        "vLLM's source", why, ours, ours, guide.UTILIZATION, guide.UTILIZATION,
    )  # fmt: skip


def _usable(context: Context) -> Finding:
    card = gpus.find(context.card.gpu)
    found = context.card.predicted("mistral-7b", "awq", gpu_memory_utilization=guide.UTILIZATION)
    ours = found.budget_bytes / GB
    return Finding(
        "usable-memory", f"{guide.TUNING}, Memory Utilization",
        "Of 96 GB, 0.90 leaves 86.4 GB to the engine and reserves 9.6 GB for the system", "misleading",
        f"{guide.USABLE_GB:g} GB", f"{ours:.1f} GB of {card.total_bytes / GB:.1f} GB ({card.title})", "GB",
        "arithmetic, calibration",
        f"The share is of the device's true total, which is {card.total_bytes / GIB:.2f} GiB here. Nothing reserves "
        f"the rest: the CUDA context ({found.context.value / GIB:.2f} GiB) and CUDA graphs beyond their estimate come "
        "out of it.", ours, ours, guide.USABLE_GB, guide.USABLE_GB,
    )  # fmt: skip


def _two_processes(context: Context, name: str, share: float) -> Finding:
    first = context.card.predicted("deepseek-coder-33b", "awq", gpu_memory_utilization=share, max_num_seqs=128)
    total, wanted = first.settings.device.total_bytes, first.budget_bytes
    free = total - first.device_peak.value
    starts = free >= wanted
    verdict: Verdict = "right" if starts else "wrong"
    return Finding(
        name, guide.MULTI if share == guide.TWO_MODELS_UTILIZATION else f"{guide.TUNING}, Memory Utilization",
        f"Two processes run on one card with --gpu-memory-utilization {share:g} each", verdict,
        f"{share:g} + {share:g}",
        f"the second finds {free / GIB:.1f} GiB free and asks for {wanted / GIB:.1f} GiB", "GiB",
        "arithmetic, calibration",
        "The share is of the whole card for each process, and vLLM refuses to start with less free. Give shares that "
        "sum to less than 1, with room for two CUDA contexts, and start one after the other.",
        free / GIB, free / GIB, wanted / GIB, wanted / GIB,
    )  # fmt: skip


def _scenario(context: Context, scenario: guide.Scenario) -> Finding:
    # By the figures of the 96 GB card itself, as in scenarios.md: the two documents must not differ.
    evidence = context.card
    pair = scenario.models
    needs = [evidence.total(model, quantization, *_LOAD) for model, quantization in pair]
    whole = added(needs, "sum")
    card = gpus.find(evidence.gpu).total_bytes
    fits = _fits(whole, card)
    lacking = _lacking(context, pair)
    spare = card - whole.value
    token_bytes = sum(evidence.kv(model, quantization, 1, _LOAD[1]).value for model, quantization in pair)
    more = spare / token_bytes
    names = " + ".join(f"{model} {_LABELS[quantization]}" for model, quantization in pair)
    near = within([whole.value / GB], scenario.total_gb, scenario.total_gb, _TOTAL_TOLERANCE) == "right"
    no_batching = scenario.fits and not scenario.batching
    verdict: Verdict
    if lacking and scenario.fits or fits is not None and fits != scenario.fits or no_batching and more >= _LOAD[0]:
        verdict = "wrong"
    else:
        verdict = "right" if near and fits == scenario.fits else "misleading"
    ours = f"{_FITS[fits]} by memory alone, and does not start on this card" if lacking else _FITS[fits]
    return Finding(
        scenario.name, guide.SCENARIOS, f"{names} take {scenario.total_gb:g} GB of 96 GB"
        + ("" if scenario.fits else " and do not fit") + (" and leave no room for batching" if no_batching else ""),
        verdict, f"{scenario.total_gb:g} GB, " + ("fits" if scenario.fits else "does not fit"),
        f"{whole.value / GB:.1f} GB [{whole.low / GB:.1f}, {whole.high / GB:.1f}] at {_AT} each: {ours}", "GB",
        how([one.basis for one in needs]),
        f"The card has {card / GB:.1f} GB. " + (
            f"{spare / GB:.1f} GB are left, for {more:.0f} more sequences of {_LOAD[1]} tokens of each model."
            if spare > 0 else f"{-spare / GB:.1f} GB are missing."
        ) + lacking + (f" {scenario.reading}" if scenario.reading else ""),
        whole.low / GB, whole.high / GB, scenario.total_gb, scenario.total_gb, whole.run_ids,
    )  # fmt: skip


_FITS = {True: "fits", False: "does not fit", None: "fits or not within the interval"}


def _fits(whole: Figure, card: int) -> bool | None:
    """None where the interval holds both."""
    return True if whole.high <= card else False if whole.low > card else None


def _lacking(context: Context, pair: scenarios.Models) -> str:
    """Sentences on what this card does not run of `pair`, and on the same models in what it runs; else empty."""
    evidence = context.card
    clauses = dict.fromkeys(
        hardware.lacking(Request.of({"model": model, "quantization": quantization, "gpu": evidence.gpu}))
        for model, quantization in pair
    )
    told = "; ".join(filter(None, clauses))
    if not told:
        return ""
    other = scenarios.runnable(pair, evidence.gpu, evidence.vllm_version)
    if other == pair:
        return f" It does not start here: {told}."
    whole = added([evidence.total(model, quantization, *_LOAD) for model, quantization in other], "sum")
    formats = " and ".join(dict.fromkeys(quantization for _, quantization in other))
    return (
        f" It does not start here: {told}. In {formats} the same models take {whole.value / GB:.1f} GB "
        f"[{whole.low / GB:.1f}, {whole.high / GB:.1f}]: {_FITS[_fits(whole, gpus.find(evidence.gpu).total_bytes)]}."
    )


def _single_fp16(context: Context) -> Finding:
    found = context.card.predicted("deepseek-coder-33b", "bf16")
    starts = found.verdict != "does_not_start"
    requests = found.full_length_requests
    return Finding(
        "single-fp16-33b", guide.TREE, "One FP16 model of 33B can be served alone on 96 GB",
        "right" if starts else "wrong", "fits",
        f"{found.verdict.replace('_', ' ')}: {requests.value:.1f} [{requests.low:.1f}, {requests.high:.1f}] requests "
        f"of {found.settings.max_model_len} tokens at once", "requests", "arithmetic, calibration",
        f"Weights take {found.weights_bytes / GIB:.1f} GiB, the KV pool gets {found.kv_pool.value / GIB:.1f} GiB.",
        requests.low, requests.high,
    )  # fmt: skip


def _default_sequences(context: Context) -> Finding:
    card = gpus.find(context.card.gpu)
    version = defaults.parsed(context.evidence.vllm_version)
    ours, _ = defaults.batch_defaults(version, card.nvml_bytes, card.title)
    return Finding(
        "default-max-num-seqs", f"{guide.TUNING}, Max Sequences", "--max-num-seqs is 256 by default",
        "right" if ours == guide.DEFAULT_MAX_NUM_SEQS else "wrong", str(guide.DEFAULT_MAX_NUM_SEQS), str(ours),
        "sequences", "vLLM's source",
        f"vLLM {context.evidence.vllm_version} chooses by the card: {ours} on one with "
        f"{card.nvml_bytes / GIB:.0f} GiB, fewer on small ones.",
        ours, ours, guide.DEFAULT_MAX_NUM_SEQS, guide.DEFAULT_MAX_NUM_SEQS,
    )  # fmt: skip


def _lower_utilization(context: Context) -> Finding:
    pools, peaks = [], []
    for share in (guide.UTILIZATION, 0.80):
        found = context.card.predicted("deepseek-coder-33b", "awq", gpu_memory_utilization=share)
        pools.append(found.kv_pool.value)
        peaks.append(found.device_peak.value)
    lost, freed = (pools[0] - pools[1]) / GIB, (peaks[0] - peaks[1]) / GIB
    return Finding(
        "lower-utilization-cures-oom", guide.TROUBLE, "Against CUDA out of memory, lower --gpu-memory-utilization",
        "misleading", "0.90 to 0.80", f"frees {freed:.1f} GiB outside the budget, and the KV pool loses {lost:.1f} GiB",
        "GiB", "arithmetic, calibration",
        "It helps where memory runs out outside the budget (graph capture, a peak under load, another process). Where "
        "weights or the KV cache do not fit, it makes the failure certain: the share has to go up, or the model, the "
        "lengths or the weight format down.", lost, freed,
    )  # fmt: skip
