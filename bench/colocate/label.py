"""What tells a group from the others of one sweep: two of the same engines differ in some setting further down."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.request import Request

_MOST = 4
"""Settings that a label names; it is one line of a table."""
_IMPLIED = ("name", "about", "model", "quantization")
"""Parts of a group that its label names already, or that follow from those."""


def group_labels(requests: Sequence[Request]) -> dict[tuple[str, str, int], str]:
    """A label for each request of a group, by its key: the group's own, and what differs from groups of that label."""
    groups: dict[str, dict[str, Request]] = {}
    for request in requests:
        if request.cfg.colocate.active:
            groups.setdefault(request.restart(0).label, {})[request.point_id] = request
    apart: dict[str, str] = {}
    for same in groups.values():
        told = differences([dataclasses.asdict(one.cfg.colocate) for one in same.values()])
        apart |= dict(zip(same, told, strict=True))
    return {one.key: " ".join(filter(None, (one.label, apart[one.point_id])))
            for one in requests if one.cfg.colocate.active}  # fmt: skip


def differences(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each of several nested settings, in words, those whose values are not the same in all."""
    flat = [dict(_flat(one, "")) for one in settings]
    names = list(dict.fromkeys(name for one in flat for name in one))
    apart = [name for name in names if len({repr(one.get(name)) for one in flat}) > 1]
    short = _shortened(apart)
    told = []
    for one in flat:
        words = [f"{short[name]}={'null' if one.get(name) is None else one[name]}" for name in apart[:_MOST]]
        more = [f"and {len(apart) - _MOST} more"] if len(apart) > _MOST else []
        told.append(" ".join(words + more))
    return told


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, part in value.items():
        if str(key) not in _IMPLIED:
            yield from _flat(part, f"{name}.{key}" if name else str(key))


_PLACES = ("engines", "engine", "members", "streams", "load")


def _shortened(names: Sequence[str]) -> dict[str, str]:
    """Without the words that only say where settings stand, where that leaves no two alike."""
    short = {name: ".".join(part for part in name.split(".") if part not in _PLACES)
             for name in names}  # fmt: skip
    return short if len(set(short.values())) == len(short) else {name: name for name in names}
