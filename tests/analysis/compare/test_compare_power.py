"""What the comparison finds and what it does not: seeded trials through the real code, files included."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")

from analysis.compare import Comparison, Options, compare_sets  # noqa: E402
from tests.analysis.compare import make_sets  # noqa: E402

CELLS, TRIALS, PLANTED = 40, 200, 7
OPTIONS = Options(metrics=("throughput",))


class Trials:
    """Two sets of forty cells whose measured values are exchanged between trials."""

    def __init__(self, root: Path, repeats: int) -> None:
        self.sets = [make_sets.write_set(root / name, CELLS, repeats) for name in ("a", "b")]
        self.points = [(cell, repeat) for cell in range(CELLS) for repeat in range(repeats)]

    def compare(self, seed: int, planted: float, options: Options = OPTIONS) -> Comparison:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for at, root in enumerate(self.sets):
            path = root / "workloads" / "rows.parquet"
            table = pq.read_table(path, partitioning=None)
            values = 1000.0 * (1 + 0.01 * np.random.default_rng([seed, at]).standard_normal(len(self.points)))
            if at:
                values *= [planted if cell == PLANTED else 1.0 for cell, _ in self.points]
            column = table.schema.names.index("output_tokens_per_s")
            pq.write_table(table.set_column(column, table.schema.field(column), pa.array(values)), path)
        return compare_sets(self.sets, options)


def reported(comparison: Comparison) -> list[dict]:
    return [one for one in comparison.records() if one["verdict"] in ("changed", "exact")]


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    return Trials(tmp_path_factory.mktemp("eight"), 8)


def test_a_planted_change_of_three_per_cent_is_found(eight: Trials) -> None:
    found = 0
    for seed in range(TRIALS):
        comparison = eight.compare(seed, 1.03)
        cells = [comparison.cells[one["cell_index"]].key for one in reported(comparison)]
        found += any(key["max_num_seqs"] == 8 and key["max_num_batched_tokens"] == 256 for key in cells)
    assert found >= 0.9 * TRIALS


def test_without_a_change_hardly_anything_is_reported(eight: Trials) -> None:
    false_alarms = sum(bool(reported(eight.compare(1000 + seed, 1.0))) for seed in range(TRIALS))
    assert false_alarms <= 0.08 * TRIALS


def test_mann_whitney_alone_holds_its_level(eight: Trials) -> None:
    options = Options(metrics=("throughput",), test="mann-whitney", correction="holm")
    false_alarms = sum(bool(reported(eight.compare(5000 + seed, 1.0, options))) for seed in range(60))
    assert false_alarms <= 0.1 * 60


def test_three_restarts_say_why_they_cannot_decide(tmp_path: Path) -> None:
    from analysis.compare import render

    comparison = Trials(tmp_path, 3).compare(0, 1.5)
    assert comparison.tests == 0 and not reported(comparison)
    assert {one["verdict"] for one in comparison.records()} == {"undecided"}
    text = " ".join(render.page(comparison).split())
    assert "3 against 3 restarts can reach p = 0.1 at the least by Mann-Whitney, never 0.05" in text
    assert "Needs at least 5 restarts on both sides" in text
    shutil.rmtree(tmp_path)


def memory(root: Path, repeats: int, steps: Callable[[int, int], int], cells: int = 12) -> Path:
    """A memory term in an allocator's steps of 2 MiB."""

    def values(c: int, r: int) -> dict[str, int]:
        return {"runtime_activation_peak_bytes": (20 + steps(c, r)) * 2**21}

    root.mkdir(exist_ok=True)
    make_sets.write(root, "engines", [make_sets.engine(c, r, **values(c, r)) for c in range(cells)
                                      for r in range(repeats)])  # fmt: skip
    return root


@pytest.mark.parametrize(("repeats", "cells", "share"), [(2, 12, 0.5), (2, 24, 0.2), (3, 2, 0.5), (5, 12, 0.5)])
def test_steps_of_an_allocator_are_no_change(tmp_path: Path, repeats: int, cells: int, share: float) -> None:
    def alarm(seed: int) -> bool:
        rng = np.random.default_rng([seed, repeats, cells])
        sets = [memory(tmp_path / side, repeats, lambda c, r: int(rng.random() < share), cells) for side in ("a", "b")]
        return bool(reported(compare_sets(sets, Options(metrics=("load_adds",)))))

    trials = 25
    assert sum(alarm(seed) for seed in range(trials)) <= 0.08 * trials


def verdicts(*sets: Path, metric: str = "load_adds") -> list[str]:
    return [one["verdict"] for one in compare_sets(sets, Options(metrics=(metric,))).records()]


def test_a_difference_is_exact_only_where_no_cell_has_spread(tmp_path: Path) -> None:
    quiet = memory(tmp_path / "a", 2, lambda c, r: 0, 3)
    moved = memory(tmp_path / "b", 2, lambda c, r: int(c == 1), 3)
    assert verdicts(quiet, moved) == ["same", "exact", "same"]
    jitters = memory(tmp_path / "c", 2, lambda c, r: int(c == 1 or c + r == 3), 3)
    assert verdicts(quiet, jitters) == ["same", "undecided", "undecided"]
    # Spread in a cell that only one side has counts as well, and one cell of two restarts is no evidence.
    further = memory(tmp_path / "d", 2, lambda c, r: int(c == 1 or c + r == 4), 4)
    assert verdicts(quiet, further) == ["same", "undecided", "same"]
    one = [memory(tmp_path / name, 2, lambda c, r, step=step: step, 1) for step, name in enumerate("ef")]
    assert verdicts(*one) == ["undecided"]


def test_restarts_that_all_agree_beside_one_that_does_not_are_tested_by_rank(tmp_path: Path) -> None:
    quiet = memory(tmp_path / "a", 5, lambda c, r: int(c + r == 0), 3)
    moved = memory(tmp_path / "b", 5, lambda c, r: int(c == 1 or c + r == 0), 3)
    comparison = compare_sets([quiet, moved], Options(metrics=("load_adds",)))
    assert [one["verdict"] for one in comparison.records()] == ["no_change", "changed", "same"]
    assert "Mann-Whitney alone decides" in comparison.test_note


def test_arithmetic_is_exact_beside_what_is_sized_by_free_memory(tmp_path: Path) -> None:
    def pool(root: Path, more: int) -> Path:
        rows = [
            make_sets.engine(
                c, r, kv_pool_mode="auto" if c % 2 else "fixed", kv_cache_bytes=2**30 + (r * 2**21 if c % 2 else more)
            )
            for c in range(4) for r in range(2)
        ]  # fmt: skip
        root.mkdir()
        make_sets.write(root, "engines", rows)
        return root

    assert verdicts(pool(tmp_path / "a", 0), pool(tmp_path / "b", 2**20), metric="kv_pool") == [
        "exact", "undecided", "exact", "undecided"
    ]  # fmt: skip


def test_a_noisier_side_with_fewer_restarts_is_no_change(tmp_path: Path) -> None:
    def alarm(seed: int) -> bool:
        sets = [
            make_sets.write_set(tmp_path / str(at), 20, n, make_sets.noisy(10 * seed + at, noise=noise))
            for at, (n, noise) in enumerate([(12, 0.01), (5, 0.03)])
        ]
        return bool(reported(compare_sets(sets, OPTIONS)))

    assert sum(alarm(seed) for seed in range(12)) <= 2


def test_moderated_t_compares_by_factors(tmp_path: Path) -> None:
    values = np.exp(np.random.default_rng(1).normal(size=(2, 6, 5)))
    sets = [
        make_sets.write_set(tmp_path / str(at), 6, 5, lambda c, r, at=at: {"output_tokens_per_s": values[at, c, r]})
        for at in range(2)
    ]
    comparison = compare_sets(sets, Options(metrics=("throughput",), test="moderated-t"))
    means = np.exp(np.log(values).mean(axis=2))
    for one in comparison.records():
        assert one["change"] == pytest.approx(means[1, one["cell_index"] - 6] - means[0, one["cell_index"] - 6])
        assert one["low"] > -means[0, one["cell_index"] - 6]  # no throughput falls by more than all of it
