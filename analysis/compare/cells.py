"""Rows to cells: which side and which configuration every row belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from analysis import rows
from analysis.compare import keys
from analysis.compare.filters import Filter
from analysis.compare.load import SET, Data, value_text
from analysis.compare.model import Cell, CompareError, Options

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


class Frame:
    """The rows of all sets, each with the side that it is on.

    Attributes:
        sides: labels of what is set against each other, the baseline first.
        engine_side, workload_side: side per row. engine_of: row of `engines` per row of `workloads`.
        started: engine starts that were measured. ok: workloads that completed.
    """

    def __init__(self, data: Data, col: str) -> None:
        import numpy as np

        self.data, self.col = data, col
        self.engines, self.workloads, self.engine_of = data.engines, data.workloads, data.engine_of
        if col == "set":
            self.sides = list(data.labels)
            self.engine_side = keys.floats(self.engines.column(SET)).astype(np.int64)
        elif col in self.engines.column_names:
            codes, values = keys.encode(self.engines.column(col))
            order = sorted(range(len(values)), key=lambda at: natural(value_text(values[at])))
            rank = np.argsort(order)
            self.sides = [value_text(values[at]) for at in order]
            self.engine_side = rank[codes]
        else:
            raise CompareError(f"--col {col}: a column of the engines table is needed, or `set`")
        self.workload_side = self.engine_side[self.engine_of]
        self.engine_metrics = True
        self._states()

    def _states(self) -> None:
        import numpy as np

        self.started = matches(self.engines, "status", lambda text: text in rows.STARTED)
        self.ok = matches(self.workloads, "status", lambda text: text == "ok") & (
            self.started[self.engine_of] if len(self.engine_of) else np.zeros(0, bool)
        )

    def keep(self, wanted: Filter) -> None:
        """Leaves the rows that a filter wants."""
        own = set(self.workloads.column_names) - {SET}
        only_workloads = [key for key in wanted.keys if key not in self.engines.column_names]
        self.engine_metrics = not only_workloads
        index = keys_index(self.data.labels)

        def of_engine(key: str, test: Callable[[str], bool]) -> np.ndarray:
            return matches(self.engines, key, test, index)

        def of_workload(key: str, test: Callable[[str], bool]) -> np.ndarray:
            # `status:ok` and the like ask about the engine start, as they do in the engines table.
            if key in own and key not in self.engines.column_names:
                return matches(self.workloads, key, test, index)
            return of_engine(key, test)[self.engine_of]

        workloads = wanted.rows(of_workload, self.workloads.num_rows)
        if only_workloads:
            import numpy as np

            engines = np.zeros(self.engines.num_rows, bool)
            engines[self.engine_of[workloads]] = True
        else:
            engines = wanted.rows(of_engine, self.engines.num_rows)
        if not engines.any():
            raise CompareError(f"--filter {wanted.text!r}: no row matches")
        self.drop(~engines, ~workloads)
        used = [side for side in range(len(self.sides)) if (self.engine_side == side).any()]
        if self.col != "set" and len(used) < len(self.sides):
            self.sides = [self.sides[side] for side in used]
            import numpy as np

            self.engine_side = np.searchsorted(used, self.engine_side)
            self.workload_side = self.engine_side[self.engine_of]

    def drop(self, engines: np.ndarray, workloads: np.ndarray) -> None:
        """Takes rows out; a workload goes with its engine start."""
        import numpy as np

        workloads = workloads | engines[self.engine_of] if len(self.engine_of) else workloads
        place = np.cumsum(~engines) - 1
        self.engine_of = place[self.engine_of[~workloads]]
        self.engines, self.workloads = self.engines.filter(~engines), self.workloads.filter(~workloads)
        self.engine_side = self.engine_side[~engines]
        self.workload_side = self.engine_side[self.engine_of]
        self._states()

    def sets_of(self, side: int) -> tuple[str, ...]:
        """Paths of the sets that a side has rows of."""
        import numpy as np

        at = np.unique(keys.floats(self.engines.column(SET))[self.engine_side == side]).astype(int)
        return tuple(str(self.data.paths[one]) for one in at)


def natural(text: str) -> tuple:
    """Sorts 0.9 before 0.10."""
    import re

    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part)


def keys_index(labels: Sequence[str]) -> dict[str, str]:
    """Text of a set's index to its label, so that filters can name sets."""
    return {str(at): label for at, label in enumerate(labels)}


def matches(
    table: pa.Table, name: str, test: Callable[[str], bool], labels: dict[str, str] | None = None
) -> np.ndarray:
    """Where a column's value, as text, passes a test; a column that is not there is null everywhere."""
    import numpy as np

    if name not in table.column_names:
        return np.full(table.num_rows, test("none"))
    codes, values = keys.encode(table.column(name))
    texts = [value_text(value) for value in values]
    if name == SET and labels:
        texts = [labels[text] for text in texts]
    passing = np.array([test(text) for text in texts], bool)
    return passing[codes] if len(values) else np.zeros(table.num_rows, bool)


class Grid:
    """Cells over both tables.

    Attributes:
        cells: all of them, engine cells first. engine_cell: cell per engine row; workload_cell: per workload row.
        start_of: per cell the engine cell that it runs on; of an engine cell itself.
        matched: cells that at least two sides have. seen: (cells, sides), rows of any outcome.
        constants: identity columns with one value everywhere.
    """

    def __init__(self, frame: Frame, options: Options, split: Sequence[str]) -> None:
        import numpy as np

        self.frame, self.warnings, self.notes = frame, [], []
        out = {*options.ignore, frame.col, *([options.axis] if options.axis else [])}
        engine = [*keys.ENGINE, *split]
        workload = list(keys.WORKLOAD)
        if options.row:
            workload = [
                name
                for name in options.row
                if name in frame.workloads.column_names
                and name not in engine
                and name not in frame.engines.column_names
            ]
            engine = [name for name in options.row if name not in workload]
        engine += [name for name in options.table if name not in engine and name in frame.engines.column_names]
        workload += [name for name in options.table if name not in engine and name not in workload]
        self.engine_columns = self._usable("engines", [name for name in engine if name not in out])
        self.workload_columns = self._usable("workloads", [name for name in workload if name not in out])
        left_out = [
            name
            for name in (*keys.ENGINE, *keys.WORKLOAD)
            if name not in (*self.engine_columns, *self.workload_columns)
        ]

        codes = keys.Codes(frame.engines.num_rows)
        for name in self.engine_columns:
            codes.add(frame.engines.column(name))
        self.engine_cell, first_engine = codes.groups()
        engines = len(first_engine)
        self.workload_cell, first_workload = self._workload_groups(engines, bool(options.row))
        self.workload_cell = self.workload_cell + engines
        under = self.engine_cell[frame.engine_of[first_workload]] if len(first_workload) else np.zeros(0, np.int64)
        self.start_of = np.concatenate([np.arange(engines), under])
        self._name(first_engine, first_workload, options.table)

        sides = len(frame.sides)
        self.seen = np.zeros((len(self.cells), sides), np.int64)
        np.add.at(self.seen, (self.engine_cell, frame.engine_side), 1)
        if len(self.workload_cell):
            counts = np.bincount(self.workload_cell * sides + frame.workload_side, minlength=self.seen.size)
            self.seen += counts.reshape(self.seen.shape)
        self.matched = bool(((self.seen[:, :1] > 0) & (self.seen[:, 1:] > 0)).any())
        self._mixed([name for name in left_out if name not in out - set(options.ignore)], options)

    def _usable(self, table: str, names: Sequence[str]) -> list[str]:
        """Identity columns that tell cells apart. One that a set lacks stays only where the others vary in it."""
        import pyarrow.compute as pc

        frame, usable = self.frame, []
        present = [one for one in frame.data.present[table] if one]
        for name in names:
            part = getattr(frame, table)
            if name not in part.column_names:
                continue
            if name != SET and not all(name in one for one in present):
                if name in keys.MISSING_MEANS:
                    at = part.column_names.index(name)
                    filled = pc.fill_null(part.column(name), keys.MISSING_MEANS[name])
                    setattr(frame, table, part.set_column(at, name, filled))
                _, values = keys.encode(getattr(frame, table).column(name))
                if len([value for value in values if value is not None]) < 2:
                    continue
            usable.append(name)
        return usable

    def _workload_groups(self, engines: int, projected: bool) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        frame = self.frame

        def grouped(columns: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
            codes = keys.Codes(frame.workloads.num_rows)
            codes.add_codes(self.engine_cell[frame.engine_of], engines)
            for name in columns:
                codes.add(frame.workloads.column(name))
            return codes.groups()

        group, first = grouped(self.workload_columns)
        if not projected and len(group) and "workload" in frame.workloads.column_names:
            pairs = np.sort(frame.engine_of * (len(first) + 1) + group)
            if (pairs[1:] == pairs[:-1]).any():
                # Two workloads of one start that no known setting tells apart: their names do.
                self.workload_columns.append("workload")
                group, first = grouped(self.workload_columns)
        if len(group):
            self._one_per_start(group, len(first))
        return group, first

    def _one_per_start(self, group: np.ndarray, groups: int) -> None:
        """Restarts are the samples: of several rows of one workload on one start the last one counts."""
        import numpy as np

        ok = np.flatnonzero(self.frame.ok)
        pair = (self.frame.engine_of * groups + group)[ok]
        order = np.argsort(pair, kind="stable")
        superseded = ok[order[:-1][pair[order][1:] == pair[order][:-1]]]
        if len(superseded):
            self.frame.ok[superseded] = False
            self.notes.append(
                f"{len(superseded)} workloads ran again on the same engine start; the last of each counts, "
                "since only restarts are independent samples"
            )

    def _name(self, first_engine: np.ndarray, first_workload: np.ndarray, tables: Sequence[str]) -> None:
        frame = self.frame
        own = frame.engines.select(self.engine_columns).take(first_engine)
        under = frame.engines.select(self.engine_columns).take(frame.engine_of[first_workload])
        load = frame.workloads.select(self.workload_columns).take(first_workload)
        for name in self.workload_columns:
            under = under.append_column(name, load.column(name))
        varied: dict[str, bool] = {}
        constants: dict[str, Any] = {}
        for table in (own, under):
            for name in table.column_names:
                _, values = keys.encode(table.column(name))
                varied[name] = len(values) > 1 or varied.get(name, False)
                if values and values[0] not in (None, ""):
                    constants[name] = values[0]
        self.constants = {name: value for name, value in constants.items() if not varied[name]}
        shown = [name for name in varied if varied[name] and name not in tables]
        self.cells: list[Cell] = []
        for kind, table in (("engine", own), ("workload", under)):
            columns = _telling(table, [name for name in shown if name in table.column_names])
            # A table of no columns has lost its rows.
            rows_of = len(first_engine) if kind == "engine" else len(first_workload)
            for key in table.to_pylist() if table.num_columns else [{}] * rows_of:
                title = ", ".join(f"{name} {value_text(key.get(name))}" for name in tables if name in key)
                self.cells.append(Cell(len(self.cells), kind, title, keys.name_of(key, columns), key))

    def _mixed(self, left_out: Sequence[str], options: Options) -> None:
        """Calls out cells whose restarts are of several configurations, as benchstat does."""
        import numpy as np

        for table, cell, side in (
            ("engines", self.engine_cell, self.frame.engine_side),
            ("workloads", self.workload_cell, self.frame.workload_side),
        ):
            part = getattr(self.frame, table)
            for name in left_out:
                if name not in part.column_names or not len(cell):
                    continue
                codes, values = keys.encode(part.column(name))
                if len(values) < 2:
                    continue
                slot = (cell * len(self.frame.sides) + side) * len(values) + codes
                per_slot = np.unique(np.unique(slot) // len(values), return_counts=True)[1]
                if mixing := int((per_slot > 1).sum()):
                    told = " | ".join(sorted(value_text(value) for value in values)[:4])
                    self.warnings.append(
                        f"{mixing} samples of a cell mix several values of {name} ({told}): their "
                        "spread is not that of restarts"
                    )


def _telling(table: pa.Table, columns: Sequence[str]) -> list[str]:
    """Of these columns those that tell cells apart which the ones before them do not: dtype adds nothing to fp32."""
    codes, groups, out = keys.Codes(table.num_rows), 1, []
    for name in columns:
        codes.add(table.column(name))
        count = len(codes.groups()[1])
        if count > groups:
            out.append(name)
        groups = count
    return out
