"""Joining the files of a set changes how many there are, and nothing that anybody reads."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.rows import read_table
from bench.record import compact as module
from bench.record.compact import compact, main
from bench.record.store import ResultSet, StoreError


def made(root, starts=5):
    results = ResultSet(root)
    results.create()
    for at in range(starts):
        add(results, f"run{at}", at)
    return results


def add(results, run_id, at):
    row = {"run_id": run_id, "point_id": f"p{at}", "environment_id": "e", "repeat": 0, "status": "ok",
           "weights_bytes": at, "flags": ["throttled"] if at % 2 else []}  # fmt: skip
    loads = [{"run_id": run_id, "workload": name, "output_tokens_per_s": at + 0.5} for name in ("w", "v")]
    results.write(run_id, row, loads, [{"run_id": run_id, "t_s": 0.5}])


def everything(root):
    return {table: sorted(read_table(root, table), key=lambda row: (row["run_id"], str(row.get("workload"))))
            for table in ("engines", "workloads", "samples")}  # fmt: skip


def files(root, table):
    return sorted(path.name for path in (root / table).iterdir())


def test_rows_schema_and_meaning_stay_and_files_become_one(tmp_path):
    results = made(tmp_path)
    before, schema = everything(tmp_path), pq.read_schema(tmp_path / "engines/run0.parquet")
    done, problems = compact(tmp_path)
    assert not problems
    assert [(one.table, one.files, one.rows) for one in done] == [("engines", 5, 5), ("workloads", 5, 10)]
    assert everything(tmp_path) == before
    assert len(files(tmp_path, "engines")) == len(files(tmp_path, "workloads")) == 1
    assert len(files(tmp_path, "samples")) == 5
    assert pq.read_schema(done[0].target).equals(schema, check_metadata=True)
    assert [one.run_id for one in results.recorded()] == [f"run{at}" for at in range(5)]
    assert results.engine("run3")["weights_bytes"] == 3
    with pytest.raises(StoreError, match="run9"):
        results.engine("run9")


def test_a_set_that_goes_on_is_joined_again(tmp_path, capsys):
    results = made(tmp_path)
    compact(tmp_path)
    add(results, "run7", 7)
    before = everything(tmp_path)
    assert results.engine("run7")["weights_bytes"] == 7
    assert main([str(tmp_path)]) == 0 and "2 files of engines" in capsys.readouterr().out
    assert everything(tmp_path) == before and len(files(tmp_path, "engines")) == 1
    assert main([str(tmp_path)]) == 0 and "nothing to join" in capsys.readouterr().out


def test_files_of_an_older_schema_stay_apart_and_columns_that_some_lack_are_null(tmp_path):
    results = made(tmp_path, starts=3)
    old = pq.read_table(tmp_path / "engines/run0.parquet").drop_columns(["weights_bytes"])
    for at in range(2):
        renamed = old.set_column(old.column_names.index("run_id"), old.schema.field("run_id"), pa.array([f"old{at}"]))
        pq.write_table(renamed.replace_schema_metadata({"table": "engines", "schema_version": "1"}),
                       tmp_path / f"engines/old{at}.parquet")  # fmt: skip
    lean = pq.read_table(tmp_path / "engines/run1.parquet").drop_columns(["weights_bytes"])
    pq.write_table(lean, tmp_path / "engines/run1.parquet")
    before = everything(tmp_path)
    done, _ = compact(tmp_path)
    assert [one.files for one in done if one.table == "engines"] == [2, 3]
    assert everything(tmp_path) == before
    assert {row["run_id"]: row["weights_bytes"] for row in results.rows("engines")} == {
        "old0": None, "old1": None, "run0": 0, "run1": None, "run2": 2}  # fmt: skip


def test_what_cannot_be_read_stays_and_is_named(tmp_path, capsys):
    made(tmp_path)
    (tmp_path / "engines/broken.parquet").write_bytes(b"no parquet")
    assert main([str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "broken.parquet stays as it is" in said.err and "5 files of engines" in said.out
    assert (tmp_path / "engines/broken.parquet").read_bytes() == b"no parquet"


def test_a_disk_that_is_full_costs_nothing(tmp_path, monkeypatch):
    made(tmp_path)
    before = everything(tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.pq, "write_table", full)
    with pytest.raises(StoreError, match="No space left"):
        compact(tmp_path)
    monkeypatch.undo()
    assert everything(tmp_path) == before and len(files(tmp_path, "engines")) == 5


def test_what_is_written_wrongly_deletes_nothing(tmp_path, monkeypatch):
    made(tmp_path)
    before, write = everything(tmp_path), pq.write_table
    monkeypatch.setattr(module.pq, "write_table", lambda table, out, **how: write(table.slice(1), out, **how))
    with pytest.raises(StoreError, match="does not read back"):
        compact(tmp_path)
    monkeypatch.undo()
    assert everything(tmp_path) == before


@pytest.mark.parametrize("who", ["joins", "measures"])
def test_a_joining_that_was_cut_short_is_finished_by_who_comes_next(tmp_path, monkeypatch, who):
    """Killed when the joined file stands and its parts do too."""

    def again():
        return compact(tmp_path) if who == "joins" else ResultSet(tmp_path).create()

    made(tmp_path)
    before = everything(tmp_path)
    monkeypatch.setattr(module, "finish_joining", lambda folder: None)
    compact(tmp_path)
    monkeypatch.undo()
    assert len(read_table(tmp_path, "engines")) == 10
    again()
    assert everything(tmp_path) == before and len(files(tmp_path, "engines")) == 1


def test_what_was_measured_again_after_the_joining_is_the_newer(tmp_path):
    """The joined file's name sorts after those of runs, and its rows are older all the same."""
    results = made(tmp_path, starts=2)
    compact(tmp_path)
    add(results, "run0-later", 0)
    assert [one.run_id for one in results.recorded()] == ["run0", "run0-later", "run1"]


def test_two_do_not_join_one_set_at_once(tmp_path):
    made(tmp_path)
    with module._alone(tmp_path), pytest.raises(StoreError, match="another process"):
        compact(tmp_path)
    assert len(files(tmp_path, "engines")) == 5


def test_a_figure_that_is_no_number_does_not_keep_a_set_from_being_joined(tmp_path):
    results = made(tmp_path, starts=1)
    row = {"run_id": "nan", "point_id": "p", "environment_id": "e", "repeat": 0, "status": "ok",
           "startup_s": float("nan")}  # fmt: skip
    results.write("nan", row, [], [])
    (done,), _ = compact(tmp_path)
    assert (done.rows, len(files(tmp_path, "engines"))) == (2, 1)


def test_a_folder_that_is_no_set_is_refused(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    assert "no result set" in capsys.readouterr().err


def test_what_is_left_of_a_joining_that_got_nowhere_is_cleared_away(tmp_path):
    """Killed before its joined file stood: a list of parts and half a file."""
    made(tmp_path)
    before = everything(tmp_path)
    (tmp_path / "engines/joined-v2-20260101T000000000.parts").write_text("run0.parquet\n")
    (tmp_path / "engines/.joined-v2-20260101T000000000.parquet.partial").write_bytes(b"half")
    ResultSet(tmp_path).create()
    assert everything(tmp_path) == before, "a sweep leaves it to whoever joins"
    compact(tmp_path)
    assert everything(tmp_path) == before and len(files(tmp_path, "engines")) == 1
