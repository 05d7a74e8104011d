"""A plan for people: terms by engine and for the card, what it holds, the commands."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from analysis.estimate import Estimate
from analysis.plan import commands
from analysis.plan.card import Placed, Plan
from analysis.plan.instead import Change
from analysis.predict.prediction import GIB, total

_VERDICTS = {"fits": "FITS", "tight": "TIGHT", "does_not_fit": "DOES NOT FIT", "does_not_start": "DOES NOT START"}
_WIDTH = 110


def text(plan: Plan, changes: Sequence[Change] = ()) -> str:
    """The whole answer. Sizes in GiB of 2^30 bytes, with 90 % intervals where they are not exact."""
    first = plan.placed[0].prediction
    device = first.settings.device
    many = f"{len(plan.placed)} engines" if len(plan.placed) > 1 else "1 engine"
    lines = [
        f"{many} on one {device.name} ({_gib(device.total_bytes)} GiB) with vLLM {first.settings.version_text}",
        "",
        *_table(plan),
        "",
        *_wrapped(f"{_VERDICTS[plan.verdict]}: ", _verdict(plan)),
        *_wrapped("order: ", _order(plan)),
        *_wrapped("basis: ", _basis(plan)),
    ]
    for warning in dict.fromkeys(warning for one in plan.placed for warning in one.prediction.warnings):
        lines += _wrapped("warning: ", warning)
    if plan.verdict != "fits":
        lines += ["", *_instead(changes)]
    if plan.works:
        lines += ["", "start them in this order, each when the one before it answers:"]
        lines += [f"  {line}" for line in commands.serve_commands(plan)]
        for note in commands.notes(plan):
            lines += _wrapped("note: ", note)
    return "\n".join(lines) + "\n"


def _table(plan: Plan) -> list[str]:
    columns = [one.engine.name for one in plan.placed] + ["the card"]
    width = max(23, *(len(name) + 2 for name in columns))
    rows: list[tuple[str, list[str]]] = [
        ("weights", _summed(plan, lambda one: Estimate.exact(one.prediction.weights_bytes))),
        ("activations, non-torch, graphs", _summed(plan, _overheads)),
        ("KV pool", _summed(plan, lambda one: one.prediction.kv_pool)),
        ("budget", _summed(plan, lambda one: Estimate.exact(one.budget_bytes)) if plan.mode == "utilization" else []),
        ("outside the budget", _summed(plan, lambda one: one.need.outside)),
        ("device peak", [*(_interval(one.prediction.device_peak) for one in plan.placed), _interval(plan.peak)]),
        ("headroom", [*("" for _ in plan.placed), _interval(plan.headroom)]),
        ("", []),
        ("free when it starts", [*(_interval(one.free) for one in plan.placed), ""]),
        ("gpu-memory-utilization", [*(f"{one.share:.3f}" for one in plan.placed),
                                    f"{sum(one.share for one in plan.placed):.3f}"]),
        ("requests asked for at once", [f"{one.engine.concurrency} x {one.engine.length:,}" for one in plan.placed]),
        ("requests that fit at once", [_requests(one) for one in plan.placed]),
        ("max-num-seqs", [str(one.engine.max_num_seqs) for one in plan.placed]),
    ]  # fmt: skip
    out = [f"{'GiB (2^30 bytes)':<32}" + "".join(f"{name:>{width}}" for name in columns)]
    for name, cells in rows:
        if not name:
            out.append("")
        elif cells:
            out.append((f"{name:<32}" + "".join(f"{cell:>{width}}" for cell in cells)).rstrip())
    return out


def _overheads(one: Placed) -> Estimate:
    found = one.prediction
    return total([found.activation, found.non_torch, found.cuda_graph_estimate])


def _summed(plan: Plan, of: Callable[[Placed], Estimate]) -> list[str]:
    parts = [of(one) for one in plan.placed]
    return [*(_interval(part) for part in parts), _interval(total(parts))]


def _requests(one: Placed) -> str:
    found = one.prediction.full_length_requests
    if found.low == found.high:
        return f"{found.value:.1f}"
    return f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}]"


def _verdict(plan: Plan) -> str:
    if plan.verdict == "does_not_fit" and plan.shortfall_bytes > 0:
        return f"{_gib(plan.shortfall_bytes)} GiB short: {plan.reason}"
    if plan.verdict == "does_not_start" and plan.memory == "fits":
        return f"{plan.reason}. The memory would do"
    return plan.reason


def _order(plan: Plan) -> str:
    names = ", then ".join(one.engine.name for one in plan.placed)
    return f"{names}. Each share is of the whole card, and vLLM refuses to start with less free"


def _basis(plan: Plan) -> str:
    origins = dict.fromkeys(f"{one.prediction.basis}, {one.prediction.origin}" for one in plan.placed)
    together = ". No set holds these engines together on one card" if len(plan.placed) > 1 else ""
    return "; ".join(origins) + together


def _instead(changes: Sequence[Change]) -> list[str]:
    if not changes:
        return ["no single change of load, KV type or weight format is predicted to fit"]
    lines = ["each of these alone is predicted to fit:"]
    for change in changes:
        room = ", ".join(f"{one.prediction.full_length_requests.value:.1f}" for one in change.plan.placed)
        said = f"{change.sentence} (room for {room} requests at once)"
        lines += [f"  - {line}" if not place else f"    {line}"
                  for place, line in enumerate(textwrap.wrap(said, _WIDTH - 4))]  # fmt: skip
    return lines


def _wrapped(head: str, body: str) -> list[str]:
    return textwrap.wrap(head + body, _WIDTH, subsequent_indent=" " * min(len(head), 10))


def _interval(one: Estimate) -> str:
    if one.low == one.high:
        return _gib(one.value)
    return f"{_gib(one.value)} [{_gib(one.low)}, {_gib(one.high)}]"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"
