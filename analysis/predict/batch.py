"""Many requests: one JSON object a line in, one out, in order. A line that cannot be answered says why."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from analysis.predict.answer import predict
from analysis.predict.facts import Source, of_arithmetic
from analysis.predict.request import Request, RequestError


def answers(
    lines: Iterable[str], defaults: dict[str, Any] | None = None, *, details: bool = False,
    facts: Source = of_arithmetic,
) -> Iterator[str]:  # fmt: skip
    """One answer, as JSON, for every line that is not blank.

    Args:
        lines: JSON objects with the fields of `request.BATCH_FIELDS`.
        defaults: fields for the lines that do not give them.
        details: also what `Prediction.details` holds.
        facts: where weights and KV cache come from.
    """
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield json.dumps(answer(line, number, defaults or {}, details=details, facts=facts), ensure_ascii=False)


def answer(
    line: str, number: int, defaults: dict[str, Any], *, details: bool = False, facts: Source = of_arithmetic
) -> dict[str, Any]:
    """The fields of one answer; `id` and `error` where there is none."""
    try:
        asked = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as broken:
        return {"id": None, "error": f"line {number} is not JSON: {broken}"}
    if not isinstance(asked, dict):
        return {"id": None, "error": f"line {number} is {type(asked).__name__}, not an object"}
    identity = asked.get("id")
    try:
        request = Request.of({**defaults, **{name: value for name, value in asked.items() if value is not None}})
        found = predict(request, facts)
    except RequestError as refused:
        return {"id": identity, "error": str(refused)}
    except Exception as unforeseen:  # a defect on one line must not cost the others their answers
        return {"id": identity, "error": f"internal error, {type(unforeseen).__name__}: {unforeseen}"}
    result = {"id": identity, **found.fields()}
    return result | found.details() if details else result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
