"""A result set loses nothing: whole files, typed columns, a full disk that leaves earlier results as they were."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bench.record.document import markdown
from bench.record.store import ResultSet, StoreError
from bench.record.tables import SCHEMA_VERSION, TABLES, table_schema


def _row(**changes):
    row = {"run_id": "a", "point_id": "p", "environment_id": "e", "repeat": 0, "status": "ok", "weights_bytes": 3}
    return row | changes


def test_a_written_run_is_read_back_with_units_and_schema_version(tmp_path):
    results = ResultSet(tmp_path / "s")
    results.create()
    results.write("a", _row(flags=["throttled"]), [{"run_id": "a", "workload": "w"}], [{"run_id": "a", "t_s": 0.5}])
    assert results.rows("engines")[0]["weights_bytes"] == 3
    assert results.rows("engines")[0]["flags"] == ["throttled"]
    assert results.rows("workloads")[0]["workload"] == "w"
    assert results.rows("samples")[0]["t_s"] == 0.5
    schema = pq.read_schema(tmp_path / "s/engines/a.parquet")
    assert schema.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()
    assert schema.field("weights_bytes").metadata[b"unit"] == b"B"
    (recorded,) = results.recorded()
    assert (recorded.point_id, recorded.repeat, recorded.status) == ("p", 0, "ok")


@pytest.mark.parametrize("table", TABLES)
def test_every_column_has_a_meaning_and_one_name(table):
    schema = table_schema(table)
    assert len(set(schema.names)) == len(schema.names)
    for field in schema:
        assert field.metadata[b"meaning"], field.name
        suffix_units = {"_bytes": b"B", "_s": b"s", "_w": b"W", "_mhz": b"MHz", "_pct": b"%"}
        for suffix, unit in suffix_units.items():
            if field.name.endswith(suffix) and not field.name.endswith("_per_s"):
                assert field.metadata[b"unit"] == unit, field.name


def test_a_column_that_the_schema_lacks_is_an_error(tmp_path):
    results = ResultSet(tmp_path)
    results.create()
    with pytest.raises(ValueError, match="weigths_bytes"):
        results.write("a", _row(weigths_bytes=1), [], [])
    assert results.recorded() == []


def test_a_set_that_a_newer_program_wrote_is_refused(tmp_path):
    results = ResultSet(tmp_path)
    results.create()
    results.write("a", _row(), [], [])
    path = tmp_path / "engines/a.parquet"
    newer = pq.read_table(path, partitioning=None).replace_schema_metadata({b"schema_version": b"99"})
    pq.write_table(newer, path)
    with pytest.raises(StoreError, match=r"a\.parquet: written with schema 99"):
        results.recorded()


def test_requests_are_a_table_of_their_own_and_only_where_asked_for(tmp_path):
    results = ResultSet(tmp_path)
    results.create()
    results.write("a", _row(), [{"run_id": "a", "workload": "w"}], [])
    assert not (tmp_path / "requests").exists() and results.rows("requests") == []
    results.write("b", _row(run_id="b"), [], [], [{"run_id": "b", "position": 0, "index": 3, "chunk_s": [0.5, 0.75]}])
    (row,) = results.rows("requests")
    assert (row["index"], row["chunk_s"], row["ttft_s"]) == (3, [0.5, 0.75], None)
    schema = pq.read_schema(tmp_path / "requests/b.parquet")
    assert schema.field("scheduled_s").metadata[b"unit"] == b"s"


def test_a_set_of_the_first_version_is_read_together_with_rows_of_today(tmp_path):
    """results/reference-cpu was written with version 1 and stays as it is."""
    source = Path("results/reference-cpu")
    results = ResultSet(tmp_path)
    results.create()
    old = {table: sorted((source / table).glob("*.parquet"))[0] for table in ("engines", "workloads")}
    for table, path in old.items():
        assert pq.read_schema(path).metadata[b"schema_version"] == b"1"
        shutil.copy(path, tmp_path / table)
    results.write("new", _row(run_id="new"), [{"run_id": "new", "workload": "w", "rate_per_s": 4.0}], [])
    first, today = sorted(results.rows("workloads"), key=lambda row: row["run_id"] == "new")
    assert list(first) == list(today) == table_schema("workloads").names
    assert first["rate_per_s"] is None and first["output_tokens_per_s"] > 0
    assert today["rate_per_s"] == 4.0 and today["output_tokens_per_s"] is None
    assert {row.run_id for row in results.recorded()} == {"new", old["engines"].stem}
    # Every column of the first version is still there, with its type.
    for table, path in old.items():
        for field in pq.read_schema(path):
            assert table_schema(table).field(field.name).type == field.type, field.name


@pytest.mark.parametrize("table", ["engines", "workloads"])
def test_a_broken_file_of_any_table_is_named_in_the_summary(tmp_path, table):
    results = ResultSet(tmp_path)
    results.create()
    (tmp_path / table / "b.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(StoreError, match=r"b\.parquet: not a readable " + table):
        results.rows(table)


def test_a_file_that_is_not_parquet_is_named(tmp_path):
    results = ResultSet(tmp_path)
    results.create()
    results.write("a", _row(), [], [])
    (tmp_path / "engines/b.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(StoreError, match=r"b\.parquet: not a readable engines file"):
        results.recorded()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        ResultSet(tmp_path / "file" / "set").create()


FULL_DISK = """
import os, sys
from pathlib import Path
from bench.record.store import ResultSet, StoreError
results = ResultSet(Path(sys.argv[1]) / "s")
results.create()
row = dict(run_id="a", point_id="p", environment_id="e", repeat=0, status="ok")
results.write("a", row, [], [])
filler = os.open(Path(sys.argv[1]) / "filler", os.O_WRONLY | os.O_CREAT)
try:
    while True:
        os.write(filler, os.urandom(4096))
except OSError:
    pass
try:
    results.write("b", row | {"run_id": "b", "log_file": os.urandom(60000).hex()}, [], [])
except StoreError as error:
    print("SENTENCE", error)
print("FILES", sorted(os.listdir(results.root / "engines")), len(results.recorded()))
"""


def test_a_full_disk_is_one_sentence_and_earlier_results_stay(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    script = f'mount -t tmpfs -o size=512k none {mount} && exec {sys.executable} -c "$0" {mount}'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, textwrap.dedent(FULL_DISK)],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    if "SENTENCE" not in done.stdout and ("unshare" in done.stderr or "mount:" in done.stderr):
        pytest.skip(f"needs a private mount: {done.stderr.strip()[:100]}")
    assert "the disk is full" in done.stdout, done.stdout + done.stderr
    assert "FILES ['a.parquet'] 1" in done.stdout


def test_the_documentation_names_every_column():
    text = markdown()
    for table in TABLES:
        for name in table_schema(table).names:
            assert f"`{name}`" in text


def test_the_committed_documentation_is_current():
    with open("results/README.md") as committed:
        assert committed.read() == markdown(), "run: python -m bench.record.document"
