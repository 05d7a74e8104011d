"""Comparisons of sets on disk: matching, warnings, bad input, gates and output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy")
pq = pytest.importorskip("pyarrow.parquet")

from analysis.cli import main  # noqa: E402
from analysis.compare import CompareError, Options, compare_sets  # noqa: E402
from analysis.compare.filters import Filter  # noqa: E402
from tests.analysis.compare import make_sets  # noqa: E402
from tests.analysis.compare.make_sets import noisy, write_set  # noqa: E402

REFERENCE = Path(__file__).resolve().parents[3] / "results" / "reference-cpu"


def pair(tmp_path: Path, repeats: int = 8, planted: float = 0.9, **of_b: Any) -> list[Path]:
    a = write_set(tmp_path / "a", 4, repeats, noisy(1))
    b = write_set(tmp_path / "b", 4, repeats, noisy(2, planted={2: planted}), lambda c, r: dict(of_b))
    return [a, b]


def test_finds_the_cell_that_changed_and_by_how_much(tmp_path: Path) -> None:
    comparison = compare_sets(pair(tmp_path), Options(metrics=("throughput",)))
    (found,) = [one for one in comparison.records() if one["verdict"] == "changed"]
    assert comparison.cells[found["cell_index"]].key["max_num_seqs"] == 4
    assert found["change"] == pytest.approx(-100, abs=15) and found["low"] < found["change"] < found["high"]
    assert (found["n_a"], found["unit"]) == (8, "tokens/s")
    assert comparison.tests == 4 and comparison.warnings == []


def test_deterministic_quantities_differ_without_a_test(tmp_path: Path) -> None:
    comparison = compare_sets(pair(tmp_path, 2, weights_bytes=61_356_080 + 2**20), Options(metrics=("weights",)))
    assert {one["verdict"] for one in comparison.records()} == {"exact"} and comparison.tests == 0
    assert all(one["p"] is None and one["change"] == pytest.approx(2**20 / 2**30) for one in comparison.records())
    same = compare_sets([tmp_path / "a", tmp_path / "a"], Options(metrics=("weights",)))
    assert {one["verdict"] for one in same.records()} == {"same"}


def test_the_one_difference_is_the_question_and_others_are_warned_of(tmp_path: Path) -> None:
    sets = pair(tmp_path, vllm_version="0.33.0")
    one = compare_sets(sets)
    assert (one.axis, one.warnings) == ("vllm_version", [])
    both = pair(tmp_path / "2", vllm_version="0.33.0", cpu_threads=4)
    make_sets.write_set(both[0], 4, 8, noisy(1), lambda c, r: {"cpu_threads": 2})
    two = compare_sets(both)
    assert two.axis is None and len(two.warnings) == 2 and "--axis" in two.warnings[0]
    named = compare_sets(both, Options(axis="vllm_version"))
    assert named.axis == "vllm_version"
    assert named.warnings == ["cpu_threads differs (a: 2; b: 4) besides vllm_version: a change may come from either"]


def metadata(root: Path, **of_all: Any) -> Path:
    return write_set(root, 2, 8, noisy(1), lambda c, r: of_all)


def test_metadata_that_only_one_side_states_is_warned_of(tmp_path: Path) -> None:
    known = metadata(tmp_path / "a", driver_version="999.1", host_cpu="Xeon")
    sets = [known, metadata(tmp_path / "b"), metadata(tmp_path / "c", host_cpu="Xeon")]
    assert compare_sets(sets[:2]).warnings == [
        "driver_version (999.1), host_cpu (Xeon) are stated by a and unknown in b: a difference cannot be excluded"
    ]
    assert [one.split(":")[0] for one in compare_sets(sets).warnings] == [
        "driver_version (999.1) is stated by a and unknown in b, c",
        "host_cpu (Xeon) is stated by a, c and unknown in b",
    ]
    (told,) = compare_sets([sets[0], sets[2]], Options(axis="driver_version")).warnings
    assert "unknown in c" in told and "the same in all rows" not in told


def test_a_name_for_several_cells_covers_no_others(tmp_path: Path) -> None:
    """T is 128, 256 or 384 and S is 1, 2, 4 or 8: four cells of each T."""
    from analysis.compare import render

    a = write_set(tmp_path / "a", 12, 2)

    def changed(name: str, cells: range | list[int]) -> str:
        b = write_set(tmp_path / name, 12, 2, of_engine=lambda c, r: {"weights_bytes": 2**30} if c in cells else {})
        return " ".join(render.page(compare_sets([a, b], Options(metrics=("weights",)))).split())

    assert "T=256 (4 cells)" in changed("all", range(4, 8))
    few = changed("few", [5, 6])
    assert "cells)" not in few and "T=256 S=2 " in few and "T=256 S=4 " in few
    many = changed("many", range(8))
    assert "(8 of 12 cells): T=128 S=1; T=128 S=2;" in many and many.count("T=256 S=8") == 1


def test_failures_and_missing_cells_are_compared(tmp_path: Path) -> None:
    sets = [write_set(tmp_path / "a", 3, 3, noisy(1)), write_set(tmp_path / "b", 4, 3, noisy(2))]
    rows = [make_sets.engine(c, r) for c in (0, 2, 3) for r in range(3)]
    rows += [
        make_sets.engine(1, r, status="failed", failure_cause="out_of_memory", failure_phase="kv_allocation")
        for r in range(3)
    ]
    make_sets.write(sets[1], "engines", rows)
    comparison = compare_sets(sets)
    broken = comparison.outcomes[0]
    assert broken.kind == "breaks" and broken.after == {"out_of_memory in kv_allocation": 3}
    assert {one.present for one in comparison.only} == {("b",)}
    assert main(["compare", *map(str, sets), "--fail-on", "failures>0"]) == 1


def test_projections_filters_and_mixed_cells(tmp_path: Path) -> None:
    sets = pair(tmp_path)
    coarse = compare_sets(sets, Options(row=("model",), metrics=("throughput",)))
    assert len(coarse.changes) == 1
    assert any("mix several values of max_num_seqs" in warning for warning in coarse.warnings)
    fine = compare_sets(sets, Options(filter="max_num_seqs:>=4 -max_num_seqs:8", metrics=("throughput",)))
    assert [cell.key["max_num_seqs"] for cell in fine.cells if cell.kind == "engine"] == [4]
    within = compare_sets(sets[:1], Options(col="max_num_seqs", metrics=("throughput",)))
    assert [column.label for column in within.columns] == ["1", "2", "4", "8"] and len(within.changes) == 3
    tables = compare_sets(sets, Options(table=("quantization",), metrics=("throughput",)))
    assert {cell.table for cell in tables.cells} == {"quantization bf16"}


@pytest.mark.parametrize(("text", "expected"), [
    ("model:tiny", "tiny"), ("model:(tiny OR big)", "tiny big"), ("-model:tiny", "big none"), ("model:/^b/", "big"),
    ("model:none OR model:big", "big none"), ('model:"tiny" seqs:<10', "tiny"), ("*", "tiny big none"),
    ("NOT (model:tiny OR model:big)", "none"),
])  # fmt: skip
def test_filter_syntax(text: str, expected: str) -> None:
    import numpy as np

    rows = {"model": ["tiny", "big", "none"], "seqs": ["4", "16", "none"]}
    kept = Filter(text, set(rows)).rows(lambda key, test: np.array([test(value) for value in rows[key]]), 3)
    assert [name for name, keep in zip(rows["model"], kept, strict=True) if keep] == expected.split()


@pytest.mark.parametrize(("arguments", "told"), [
    (["--filter", "modle:x"], "did you mean model"), (["--filter", "(model:x"], "not closed"),
    (["--filter", "model:/(/"], "no regular expression"), (["--metric", "troughput"], "did you mean throughput"),
    (["--fail-on", "tpot_p99"], "write metric>number%"), (["--fail-on", "kv_pol<-1%"], "did you mean kv_pool"),
    (["--fail-on", "kv_pool>5ms"], "is in GiB"),
    (["--fail-on", "tpot_p9>5%"], "--fail-on 'tpot_p9>5%': no metric"), (["--metric", "zzz"], "the nearest is"),
    (["--fail-on", "tpot_p9>5%"], "did you mean tpot_p9"), (["--fail-on", "zzz>5%"], "`compare --help` lists"),
    (["--fail-on", "energy_per_token>5%"], "neither a nor b has a value of energy_per_token"),
    (["--fail-on", "tpot_p99>5%"], "'tpot_p99>5%': neither a nor b has"),
    (["--row", "modl"], "did you mean model"),
    (["--alpha", "2"], "between 0 and 1"), (["--format", "parquet"], "--out"), (["--filter", "model:nobody"], "no row"),
])  # fmt: skip
def test_bad_requests_are_one_sentence(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *map(str, pair(tmp_path, 2)), *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and error.count("\n") == 1


def test_broken_files_are_named_and_the_rest_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = pair(tmp_path)
    (sets[1] / "workloads" / "broken.parquet").write_bytes(b"PAR1 this is not Parquet PAR1")
    newer = make_sets.write(sets[1], "engines", [make_sets.engine(9, 0)], "newer")
    table = pq.read_table(newer, partitioning=None)
    pq.write_table(table.replace_schema_metadata({"schema_version": "99"}), newer)
    comparison = compare_sets(sets, Options(metrics=("throughput",)))
    assert len(comparison.changes) == 4
    assert any("broken.parquet is left out" in one for one in comparison.warnings)
    assert any("newer.parquet is left out: it has schema 99" in one for one in comparison.warnings)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["compare", *map(str, [*sets, empty, tmp_path / "none"])]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "empty is an empty folder" in out and "there is no result set" in out
    assert main(["compare", str(sets[0]), str(empty)]) == 2
    assert "two result sets are needed" in capsys.readouterr().err


def test_an_older_schema_is_compared_with_a_newer(tmp_path: Path) -> None:
    sets = pair(tmp_path)
    for table in ("engines", "workloads"):
        path = sets[0] / table / "rows.parquet"
        old = pq.read_table(path, partitioning=None)
        dropped = [name for name in ("rate_per_s", "burstiness", "shared_prefix_ratio") if name in old.column_names]
        pq.write_table(old.drop_columns(dropped).replace_schema_metadata({"schema_version": "1"}), path)
    comparison = compare_sets(sets, Options(metrics=("throughput",)))
    assert len(comparison.changes) == 4


def test_sets_without_success_or_without_common_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = pair(tmp_path)
    failed = write_set(
        tmp_path / "failed", 4, 2, of_engine=lambda c, r: {"status": "failed", "failure_cause": "timeout"}
    )
    other = write_set(tmp_path / "other", 2, 2, noisy(3), lambda c, r: {"model": "another"})
    comparison = compare_sets([*sets, failed, other], Options(metrics=("throughput",)))
    assert any("failed has no successful engine start" in one for one in comparison.warnings)
    assert {one["other"] for one in comparison.records()} == {"b"}
    assert main(["compare", str(sets[0]), str(other)]) == 1
    assert "have no configuration in common" in " ".join(capsys.readouterr().out.split())


def test_strict_leaves_disturbed_rows_out_and_keeps_what_the_engine_did(tmp_path: Path) -> None:
    a = write_set(tmp_path / "a", 2, 6, noisy(1))
    values = noisy(2)
    flags = {0: ["client_bound"], 1: ["preemptions"]}
    b = write_set(tmp_path / "b", 2, 6, lambda c, r: {**values(c, r), "flags": flags.get(r, [])})
    loose = compare_sets([a, b], Options(metrics=("throughput",)))
    strict = compare_sets([a, b], Options(metrics=("throughput",), strict=True))
    assert {one["n_b"] for one in loose.records()} == {6} and {one["n_b"] for one in strict.records()} == {5}
    assert {one.flag: one.left_out for one in strict.quality} == {"client_bound": True, "preemptions": False}


@pytest.mark.parametrize(("rules", "more", "code"), [
    ("throughput<-5%", [], 1), ("throughput<-20%", [], 0), ("throughput<-50tokens/s", [], 1),
    ("throughput>0.01%", [], 0), ("throughput>0.01%!", [], 1), ("throughput>0.01%", ["--fail-on-any"], 1),
    ("goodput<-1%", [], 2), ("goodput<-1%", ["--undecided", "fail"], 2), ("failures>0", [], 0),
])  # fmt: skip
def test_gate(rules: str, more: list[str], code: int, tmp_path: Path) -> None:
    words = ["compare", *map(str, pair(tmp_path)), "--metric", "throughput", "--fail-on", rules, *more]
    assert main(words) == code


def test_a_gate_says_what_restarts_leave_undecided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", *map(str, pair(tmp_path, 3)), "--fail-on", "throughput<-5%"]
    assert main(words) == 0
    assert "UNDECIDED, passed: throughput<-5%: 1 of 4" in capsys.readouterr().out
    assert main([*words, "--undecided", "fail"]) == 1


def test_a_gate_in_per_cent_trips_on_a_rise_from_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [write_set(tmp_path / str(n), 2, 8, lambda c, r, n=n: {"preemptions": n}) for n in (0, 5)]
    assert main(["compare", *map(str, sets), "--fail-on", "preemptions>5%"]) == 1
    assert "TRIPPED: preemptions>5%: 2 of 2 comparisons, from 0 to 5 in" in capsys.readouterr().out
    assert main(["compare", *map(str, sets[::-1]), "--fail-on", "preemptions>5%"]) == 0


def test_a_gate_does_not_pass_where_nothing_could_be_compared(tmp_path: Path) -> None:
    sets = [write_set(tmp_path / "a", 2, 8, noisy(1)),
            write_set(tmp_path / "b", 2, 8, noisy(2), lambda c, r: {"model": "another"})]  # fmt: skip
    assert main(["compare", *map(str, sets), "--fail-on", "throughput<-5%"]) == 1


def test_a_gate_on_failures_says_what_fails_now_and_then(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_set(tmp_path / "a", 2, 8, noisy(1))
    b = write_set(tmp_path / "b", 2, 8, noisy(2), lambda c, r: {"status": "failed"} if c == 1 and r == 0 else {})
    assert main(["compare", str(a), str(b), "--fail-on", "failures>0"]) == 0
    assert "ok: failures>0; 1 cells fail more often without failing always" in capsys.readouterr().out


def test_text_of_logs_and_wide_figures_leave_the_terminal_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def values(seconds: float) -> Any:
        return lambda c, r: {"tpot_p99_s": seconds + 1e-6 * r, "preemptions": 3}

    sets = [write_set(tmp_path / name, 2, 8, values(s), lambda c, r: {"model": "x\x1b[31mred"})
            for name, s in (("baseline-of-last-week", 0.01), ("candidate-of-today", 0.02))]  # fmt: skip
    assert main(["compare", *map(str, sets), "--width", "80", "--all", "--metric", "tpot_p99,preemptions"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and max(map(len, out.splitlines())) <= 80 and "\npreemptions (lower is better)" in out


def test_a_terminal_without_the_characters_is_no_traceback(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    for words in (["compare"], ["history", "--metric", "throughput"], ["query", "SELECT '±'"]):
        done = subprocess.run(
            [sys.executable, "-m", "analysis", *words, *map(str, pair(tmp_path))], cwd=REFERENCE.parents[1],
            env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def test_outputs_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [str(one) for one in pair(tmp_path)]
    assert main(["compare", *sets, "--out", str(tmp_path / "c.json")]) == 0
    told = json.loads((tmp_path / "c.json").read_text())
    assert main(["compare", *sets, "--out", str(tmp_path / "c.parquet")]) == 0
    table = pq.read_table(tmp_path / "c.parquet")
    assert table.num_rows == len(told["comparisons"]) and "key_model" in table.column_names
    assert table.column("change").to_pylist() == [one["change"] for one in told["comparisons"]]
    capsys.readouterr()
    assert main(["compare", *sets, "--format", "markdown"]) == 0
    assert "| cell | a | b |" in capsys.readouterr().out
    assert main(["compare", *sets, "--width", "80"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference set is not in this checkout")
def test_the_reference_set_against_itself_has_no_change() -> None:
    comparison = compare_sets([REFERENCE, REFERENCE])
    assert comparison.count("changed") + comparison.count("exact") == 0 and comparison.count("same") == 96
    assert any("are the same set" in one for one in comparison.warnings)


def test_one_set_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompareError, match="name a second one"):
        compare_sets([write_set(tmp_path / "a", 1, 1)])


def test_what_is_estimated_later_is_what_would_have_been_at_once(tmp_path):
    """Where nothing changed the shift is left until somebody asks; the text does not, files do."""
    import numpy as np

    from analysis.compare import render
    from analysis.compare.model import VERDICTS

    sets = [write_set(tmp_path / name, 12, 8, noisy(seed, planted=planted)) for name, seed, planted in
            (("a", 1, {}), ("b", 2, {3: 1.5}))]  # fmt: skip
    compared = compare_sets(sets, Options(metrics=("throughput",), test="mann-whitney"))
    changes = compared.changes
    unchanged = changes.verdict == VERDICTS.index("no_change")
    assert unchanged.any() and not unchanged.all()
    render.page(compared)
    assert changes.later is not None and not np.isfinite(changes.shifts["change"][unchanged]).any()
    assert np.isfinite(changes.shifts["change"][~unchanged]).all()
    records = compared.records()
    assert changes.later is None and all(one["change"] is not None and one["low"] is not None for one in records)
    assert len(render.page(compared, every=True).splitlines()) > len(render.page(compared).splitlines()) + 8
