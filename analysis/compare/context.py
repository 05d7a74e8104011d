"""What the figures are worth: environments, flags, outcomes, cells that only some sides have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis import rows
from analysis.compare import keys
from analysis.compare.cells import Frame, Grid, matches
from analysis.compare.load import value_text
from analysis.compare.model import Difference, Only, Outcome, Quality

if TYPE_CHECKING:
    import numpy as np

DESIGN_FLAGS = frozenset(
    {
        "few_samples_p95",
        "few_samples_p99",
        "few_requests_per_slot",
        "fewer_requests_than_slots",
        "no_steady_state",
        "not_steady",
        "held_back",
        "preemptions",
        "coalesced_tokens",
        "resends",
        "failed_requests",
        "aborted",
        "no_completed_requests",
    }
)
"""Flags about the load or what the engine made of it, not about what disturbed the measurement: counted, never a
reason to leave a row out. An engine that preempts is what a comparison must show."""

FOLLOWERS = {
    "vllm_version": {"torch_version", "transformers_version"},
    "device_name": {
        "device_memory_total_bytes",
        "gpu_power_limit_w",
        "device_kind",
        "driver_version",
        "cuda_driver_version",
    },
    "driver_version": {"cuda_driver_version"},
}
"""Metadata that comes with other metadata: a new vLLM brings its torch."""


def environment(frame: Frame, axis: str | None) -> tuple[list[Difference], list[str], list[str]]:
    """Metadata that differs, columns by which cells must be split, and sentences of warning."""
    found: list[Difference] = []
    split: list[str] = []
    told: list[str] = []
    stated: dict[tuple[bool, ...], dict[str, str]] = {}
    for column in (*rows.ENVIRONMENT, *keys.MINOR):
        if column not in frame.engines.column_names:
            continue
        values = values_of(frame, column)
        known = [set(one) for one in values if one]
        if column == frame.col:
            continue
        if len(set().union(*known)) < 2:
            if known and len(known) < len(values) and column not in keys.MINOR:
                stated.setdefault(tuple(map(bool, values)), {})[column] = known[0].copy().pop()
            continue
        role = "minor" if column in keys.MINOR else "question" if column == axis else "warning"
        if role == "warning" and any(len(one) > 1 for one in known):
            if set.intersection(*known):
                split.append(column)
                told.append(f"{column} varies within a set ({_told(frame, values)}): cells are kept apart by it")
                continue
            told.append(f"{column} varies within a set ({_told(frame, values)}): its restarts are pooled")
        found.append(Difference(column, values, role))
    if frame.col != "set":
        axis = axis or frame.col
    # Of an axis that only some sides state it cannot be said that it is the same everywhere.
    told += _questions(frame, found, axis, any(axis in columns for columns in stated.values()))
    told += [_unstated(frame, sides, columns) for sides, columns in stated.items()]
    return found, split, told


def _unstated(frame: Frame, sides: Sequence[bool], columns: dict[str, str]) -> str:
    """Metadata that some sides state and others do not know: no difference is shown by it, and none excluded."""
    lack, have = (
        [label for label, known in zip(frame.sides, sides, strict=True) if known is one] for one in (False, True)
    )
    what = ", ".join(f"{column} ({value})" for column, value in columns.items())
    return (
        f"{what} {'are' if len(columns) > 1 else 'is'} stated by {', '.join(have)} and unknown in {', '.join(lack)}: "
        "a difference cannot be excluded"
    )


def _questions(frame: Frame, found: list[Difference], axis: str | None, unstated: bool) -> list[str]:
    """Settles which difference is the question; warns of those that are not. `unstated`: some side lacks the axis."""
    open_ones = [one for one in found if one.role == "warning"]
    told = []
    if axis is None and open_ones:
        leader = next(
            (
                one
                for one in open_ones
                if {o.column for o in open_ones} - {one.column} <= FOLLOWERS.get(one.column, set())
            ),
            None,
        )
        if len(open_ones) == 1 or leader:
            axis = (leader or open_ones[0]).column
            at = next(i for i, one in enumerate(found) if one.column == axis)
            found[at] = Difference(axis, found[at].values, "question")
            open_ones = [one for one in open_ones if one.column != axis]
    if axis is not None and frame.col == "set" and not unstated and not any(one.column == axis for one in found):
        told.append(f"--axis {axis}: it is the same in all rows, so it explains no change")
    companions = FOLLOWERS.get(axis or "", set())
    for one in open_ones:
        detail = _told(frame, one.values)
        if axis is None:
            told.append(
                f"{one.column} differs ({detail}): any change may come from it; --axis names the one in question"
            )
        elif one.column in companions:
            told.append(f"{one.column} differs too ({detail}), as it does with {axis}")
        else:
            told.append(f"{one.column} differs ({detail}) besides {axis}: a change may come from either")
    return told


def values_of(frame: Frame, column: str) -> tuple[tuple[str, ...], ...]:
    """Known values of a column on every side."""
    codes, values = keys.encode(frame.engines.column(column))
    import numpy as np

    out = []
    for side in range(len(frame.sides)):
        here = [values[code] for code in np.unique(codes[frame.engine_side == side])]
        # A failed start may not know its driver; that is no other driver.
        out.append(tuple(sorted(value_text(value) for value in here if value is not None)))
    return tuple(out)


def _told(frame: Frame, values: Sequence[Sequence[str]]) -> str:
    return "; ".join(f"{label}: {' | '.join(one) or 'unknown'}" for label, one in zip(frame.sides, values, strict=True))


def quality(frame: Frame, strict: bool) -> list[Quality]:
    """Counts flags per side; with `strict` takes the rows out that carry one that matters."""
    import numpy as np

    out = []
    drops = []
    for table, side in (("engines", frame.engine_side), ("workloads", frame.workload_side)):
        part = getattr(frame, table)
        drop = np.zeros(part.num_rows, bool)
        if "flags" in part.column_names and part.num_rows:
            codes, values = keys.encode(part.column("flags"))
            carried = [set((value or "").split()) for value in values]
            for flag in sorted(set().union(*carried)):
                has = np.array([flag in one for one in carried])[codes]
                out_of_it = strict and flag not in DESIGN_FLAGS
                drop |= has & out_of_it
                for at, label in enumerate(frame.sides):
                    if count := int((has & (side == at)).sum()):
                        out.append(Quality(label, table, flag, count, int((side == at).sum()), out_of_it))
        drops.append(drop)
    if strict and any(drop.any() for drop in drops):
        # A flag of one workload is on its engine start too; only the start's own flags condemn all its workloads.
        own = drops[0].copy()
        if len(frame.engine_of):
            own[frame.engine_of[drops[1]]] = False
        frame.drop(own, drops[1])
    return out


def unusable(frame: Frame) -> list[str]:
    """Sides that have no successful row."""
    out = []
    for side, label in enumerate(frame.sides):
        here = frame.engine_side == side
        if not here.any():
            out.append(f"{label} has no row left")
        elif not (here & frame.started).any():
            out.append(
                f"{label} has no successful engine start ({int(here.sum())} rows, all failed or pruned): only "
                "its outcomes can be compared"
            )
    return out


def outcomes(grid: Grid) -> list[Outcome]:
    """Cells whose starts or workloads end differently than on the baseline."""
    frame = grid.frame
    out = []
    words = [_outcome_words(frame.engines, frame.started), _outcome_words(frame.workloads, frame.ok)]
    for (codes, names), cell, side in zip(
        words, (grid.engine_cell, grid.workload_cell), (frame.engine_side, frame.workload_side), strict=True
    ):
        if not len(cell) or len(names) < 2:
            continue
        import numpy as np

        counts = np.zeros((len(grid.cells), len(frame.sides), len(names)), np.int64)
        np.add.at(counts, (cell, side, codes), 1)
        good = np.array([name.startswith("ok") for name in names])
        for other in range(1, len(frame.sides)):
            both = (counts[:, 0].sum(axis=1) > 0) & (counts[:, other].sum(axis=1) > 0)
            differs = ((counts[:, 0] > 0) != (counts[:, other] > 0)).any(axis=1)
            for at in np.flatnonzero(both & differs):
                before, after = counts[at, 0], counts[at, other]
                share_before, share_after = before[good].sum() / before.sum(), after[good].sum() / after.sum()
                kind = (
                    "breaks"
                    if share_before and not share_after
                    else "mends"
                    if share_after and not share_before
                    else "worse"
                    if share_after < share_before
                    else "better"
                    if share_after > share_before
                    else "other"
                )
                out.append(
                    Outcome(
                        grid.cells[at].name,
                        frame.sides[other],
                        _counted(before, names),
                        _counted(after, names),
                        kind,
                        int(at),
                    )
                )
    rank = {"breaks": 0, "worse": 1, "other": 2, "better": 3, "mends": 4}
    return sorted(out, key=lambda one: rank[one.kind])


def _counted(counts: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count}


def _outcome_words(table: object, good: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Per row a code of how it ended: ok, `out_of_memory in kv_allocation`, pruned, ..."""
    import numpy as np

    parts = {}
    for name in ("status", "failure_cause", "failure_phase", "missing_kernel"):
        if name in table.column_names and table.num_rows:  # type: ignore[attr-defined]
            parts[name] = keys.encode(table.column(name))  # type: ignore[attr-defined]
    codes = keys.Codes(len(good))
    for code, values in parts.values():
        codes.add_codes(code, len(values))
    group, first = codes.groups() if len(good) else (np.zeros(0, np.int64), np.zeros(0, np.int64))
    names = []
    for row in first:
        here = {name: values[code[row]] for name, (code, values) in parts.items()}
        status = str(here.get("status"))
        if status == "failed":
            cause, phase = here.get("failure_cause") or "failed", here.get("failure_phase")
            names.append(f"{cause} in {phase}" if phase else str(cause))
        elif status == "memory_only":
            kernel = here.get("missing_kernel")
            names.append(f"memory only (no {kernel})" if kernel else "memory only")
        else:
            names.append(status)
    unique = list(dict.fromkeys(names))
    return np.array([unique.index(name) for name in names], np.int64)[group] if names else group, unique


def only(grid: Grid, outcomes: Sequence[Outcome]) -> list[Only]:
    """Cells that some side lacks; no workload cell whose start fails there, as `outcomes` says already."""
    import numpy as np

    frame, sides = grid.frame, grid.frame.sides
    generates = np.zeros(grid.seen.shape, bool)
    ok = matches(frame.engines, "status", lambda text: text == "ok")
    generates[grid.engine_cell[ok], frame.engine_side[ok]] = True
    told = np.zeros(len(grid.cells), bool)
    told[[one.cell_index for one in outcomes]] = True
    explained = (told[:, None] & (grid.seen > 0) & ~generates)[grid.start_of]
    out = []
    for cell in grid.cells:
        have = (grid.seen[cell.index] > 0) | ((cell.kind == "workload") & explained[cell.index])
        if not have.all() and have.any():
            out.append(
                Only(
                    cell.name,
                    tuple(s for s, n in zip(sides, grid.seen[cell.index], strict=True) if n),
                    tuple(s for s, h in zip(sides, have, strict=True) if not h),
                )
            )
    return out


def observed(grid: Grid) -> list[str]:
    """Where the engine chose another kernel, backend or runner than on the baseline."""
    import numpy as np

    frame, out = grid.frame, []
    for column in keys.OBSERVED:
        if column not in frame.engines.column_names:
            continue
        codes, values = keys.encode(frame.engines.column(column))
        if len(values) < 2:
            continue
        counts = np.zeros((len(grid.cells), len(frame.sides), len(values)), bool)
        usable = frame.started
        counts[grid.engine_cell[usable], frame.engine_side[usable], codes[usable]] = True
        for other in range(1, len(frame.sides)):
            both = counts[:, 0].any(axis=1) & counts[:, other].any(axis=1)
            cells = np.flatnonzero(both & (counts[:, 0] != counts[:, other]).any(axis=1))
            if len(cells):
                at = cells[0]
                a, b = (" | ".join(value_text(values[i]) for i in np.flatnonzero(counts[at, s])) for s in (0, other))
                out.append(
                    f"{column} chosen by the engine differs in {len(cells)} cells of {frame.sides[other]}, "
                    f"as in {grid.cells[at].name}: {a} -> {b}"
                )
    return out
