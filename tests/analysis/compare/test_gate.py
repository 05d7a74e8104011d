"""Gates on candidates that fail: an exit code of 0 must mean that something was judged."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

pytest.importorskip("scipy")

from analysis.cli import main  # noqa: E402
from analysis.compare import Options, compare_sets  # noqa: E402
from tests.analysis.compare import make_sets  # noqa: E402
from tests.analysis.compare.make_sets import noisy, write_set  # noqa: E402

CELLS = 4
OOM = {"status": "failed", "failure_cause": "out_of_memory", "failure_phase": "kv_allocation"}


def candidate(root: Path, broken: Collection[int], repeats: int = 8) -> Path:
    """A set whose starts of these cells fail, with no workload row, as the harness leaves it."""
    write_set(root, CELLS, repeats, noisy(2), lambda c, r: OOM if c in broken else {})
    values = noisy(2)
    make_sets.write(
        root,
        "workloads",
        [make_sets.workload(c, r, **values(c, r)) for c in range(CELLS) for r in range(repeats) if c not in broken],
    )
    return root


def gate(tmp_path: Path, broken: Collection[int], rules: str, *more: str) -> int:
    a, b = write_set(tmp_path / "a", CELLS, 8, noisy(1)), candidate(tmp_path / "b", broken)
    return main(["compare", str(a), str(b), "--fail-on", rules, *more])


@pytest.mark.parametrize("undecided", ["pass", "fail"])
def test_a_candidate_that_never_starts_fails_the_gate(
    undecided: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate(tmp_path, range(CELLS), "throughput<-5%", "--undecided", undecided) == 1
    out = capsys.readouterr().out
    assert "TRIPPED: throughput<-5%: it has nothing to judge, since 4 cells that start in a do not in b" in out


def test_nothing_left_to_judge_fails_beside_a_failures_rule_too(tmp_path: Path) -> None:
    assert gate(tmp_path, range(CELLS), "throughput<-5%,failures>9") == 1


def test_cells_that_broke_trip_the_rules_that_would_have_judged_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate(tmp_path, [1, 3], "throughput<-5%,weights>1%") == 1
    out = capsys.readouterr().out
    assert "ok: throughput<-5%: none of 2 comparisons" in out
    assert (
        "TRIPPED: 2 cells that start in a do not in b and are not judged by throughput<-5% and weights>1%; "
        "add failures>0 to fail on" in out
    )


@pytest.mark.parametrize(("rules", "code"), [("failures>2", 0), ("failures>1", 1), ("failures>0", 1)])
def test_a_failures_rule_alone_decides_about_failures(
    rules: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate(tmp_path, [1, 3], f"throughput<-5%,{rules}") == code
    assert (
        f"note: 2 cells that start in a do not in b and are not judged by throughput<-5%; {rules} decides about"
        in capsys.readouterr().out
    )


def test_a_load_that_fails_on_an_engine_that_starts_trips_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, values = write_set(tmp_path / "a", CELLS, 8, noisy(1)), noisy(2)
    b = write_set(tmp_path / "b", CELLS, 8, lambda c, r: {"status": "failed"} if c == 1 else values(c, r))
    assert main(["compare", str(a), str(b), "--fail-on", "throughput<-5%,weights>1%"]) == 1
    out = capsys.readouterr().out
    assert "TRIPPED: 1 load that completes in a fails in b and is not judged by throughput<-5%;" in out


def test_a_metric_that_one_set_lacks_is_undecided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [write_set(tmp_path / "a", 2, 8, noisy(1)), write_set(tmp_path / "b", 2, 8)]
    assert main(["compare", *map(str, sets), "--fail-on", "throughput<-5%"]) == 0
    assert "UNDECIDED, passed: throughput<-5%: nothing was compared for it" in capsys.readouterr().out
    assert main(["compare", *map(str, sets), "--fail-on", "throughput<-5%", "--undecided", "fail"]) == 1


def test_what_fails_is_listed_once(tmp_path: Path) -> None:
    sets = [write_set(tmp_path / "a", CELLS, 3, noisy(1)), candidate(tmp_path / "b", [1, 3], 3)]
    comparison = compare_sets(sets)
    assert [one.kind for one in comparison.outcomes] == ["breaks", "breaks"] and comparison.only == []
    # The same where the start fails on the baseline, and where only some restarts of the cell fail.
    assert compare_sets(sets[::-1]).only == []
    some = write_set(tmp_path / "c", CELLS, 3, of_engine=lambda c, r: OOM if r == 0 else {})
    make_sets.write(some, "workloads", [make_sets.workload(0, 1)])
    comparison = compare_sets([sets[0], some], Options(metrics=("throughput",)))
    assert {one.kind for one in comparison.outcomes} == {"worse"} and len(comparison.only) == CELLS - 1
