"""`compare_sets`: sets in, a `Comparison` out. The steps are modules of this package."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from analysis.compare.model import CORRECTIONS, TESTS, Column, CompareError, Comparison, Options


def compare_sets(paths: Sequence[Path], options: Options | None = None) -> Comparison:
    """Compares result sets, cell by cell and metric by metric; the first is the baseline.

    Args:
        paths: folders of result sets; one is enough where `options.col` or `.axis` names what to compare within it.
        options: see `Options`.

    Raises:
        CompareError: fewer sets than needed can be used, or an option means nothing here. Files and sets that cannot
            be read are left out and named in `Comparison.warnings`.
    """
    from analysis.compare import broken, cells, context, load, metrics, verdicts
    from analysis.compare.filters import Filter

    options = options or Options()
    _check(options)
    if not paths:
        raise CompareError("name the result sets to compare, as in `compare results/a results/b`")
    col = options.col if options.col != "set" or len(paths) > 1 else (options.axis or "set")
    if col == "set" and len(paths) < 2:
        raise CompareError(
            "one set has nothing to be compared with: name a second one, or what differs within it (--col quantization)"
        )
    asked = {
        *options.row,
        *options.table,
        *options.ignore,
        *metrics.columns_of(options.metrics),
        options.axis or "",
        col,
    }
    data = load.load(paths, load.named_columns(asked, options.filter), 2 if col == "set" else 1)
    known = set().union(*data.present["engines"], *data.present["workloads"], {"set"})
    for option, names in (
        ("--row", options.row),
        ("--table", options.table),
        ("--ignore", options.ignore),
        ("--col", (col,)),
        ("--axis", (options.axis,) if options.axis else ()),
    ):
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                raise CompareError(
                    f"{option} {name}: no such column in these sets" + (f"; did you mean {near[0]}?" if near else "")
                )
    chosen = metrics.choose(options.metrics, data.numeric["engines"], data.numeric["workloads"], dict(options.rules))
    frame = cells.Frame(data, col)
    if options.filter:
        frame.keep(Filter(options.filter, known))
    quality = context.quality(frame, strict=options.strict)
    if len(frame.sides) < 2:
        raise CompareError(
            f"--col {col}: all rows have the same value ({', '.join(frame.sides) or 'none'}), "
            "so there is nothing to compare"
        )
    columns = [
        Column(
            label,
            frame.sets_of(side),
            int((frame.engine_side == side).sum()),
            int((frame.started & (frame.engine_side == side)).sum()),
            int((frame.workload_side == side).sum()),
        )
        for side, label in enumerate(frame.sides)
    ]
    differences, split, told = context.environment(frame, options.axis)
    grid = cells.Grid(frame, options, split)
    judged = verdicts.judge(grid, chosen, options)
    warnings = [*data.warnings, *told, *context.unusable(frame), *grid.warnings]
    outcomes = context.outcomes(grid)
    only = context.only(grid, outcomes)
    if not grid.matched:
        warnings.append(
            f"{' and '.join(frame.sides)} have no configuration in common, so nothing is compared; "
            "--ignore or --row can make cells coarser"
        )
    return Comparison(
        columns=columns,
        col=col,
        axis=next((d.column for d in differences if d.role == "question"), None),
        alpha=options.alpha,
        test=judged.test,
        test_note=judged.note,
        correction=options.correction,
        interval=judged.interval,
        tests=judged.tests,
        cells=grid.cells,
        metrics=judged.metrics,
        changes=judged.changes,
        constants=grid.constants,
        differences=differences,
        warnings=warnings,
        notes=[*data.notes, *grid.notes, *judged.notes, *context.observed(grid)],
        quality=quality,
        outcomes=outcomes,
        only=only,
        geomeans=judged.geomeans,
        broken=broken.broken(grid, chosen, outcomes),
        unmeasured=broken.unmeasured(grid, chosen, judged.metrics),
    )


def _check(options: Options) -> None:
    if options.test not in TESTS:
        raise CompareError(f"--test {options.test}: there are {', '.join(TESTS)}")
    if options.correction not in CORRECTIONS:
        raise CompareError(f"--correction {options.correction}: there are {', '.join(CORRECTIONS)}")
    if not 0 < options.alpha < 1:
        raise CompareError(f"--alpha {options.alpha:g}: a level between 0 and 1 is needed, such as 0.05")
