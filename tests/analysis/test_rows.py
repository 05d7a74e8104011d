"""Reading result sets: newest rows, one environment at a time, and refusals in one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

from analysis import rows  # noqa: E402
from bench.record.store import ResultSet  # noqa: E402
from bench.record.tables import SCHEMA_VERSION, table_schema  # noqa: E402


def engine(run_id: str, **values: object) -> dict:
    return {"run_id": run_id, "point_id": "p", "environment_id": "e", "repeat": 0, "status": "ok", **values}


def written(root: Path, *engines: dict) -> Path:
    made = ResultSet(root)
    made.create()
    for row in engines:
        made.write(row["run_id"], row, [], [])
    return root


def test_reads_what_the_harness_writes(tmp_path: Path) -> None:
    assert rows.SCHEMA_VERSION == SCHEMA_VERSION
    root = written(tmp_path / "set", engine("a", weights_bytes=5, flags=["x"]), engine("b", status="failed"))
    read = rows.read_table(root)
    assert [row["run_id"] for row in read] == ["a", "b"]
    assert read[0]["weights_bytes"] == 5 and read[0]["flags"] == ["x"]
    assert [row["run_id"] for row in rows.started(read)] == ["a"]
    assert rows.read_table(root, columns=["run_id", "not_there_yet"]) == [
        {"run_id": "a", "not_there_yet": None}, {"run_id": "b", "not_there_yet": None},
    ]  # fmt: skip
    assert rows.read_table(root / "engines" / "a.parquet")[0]["run_id"] == "a"


def test_a_newer_schema_is_one_clear_sentence(tmp_path: Path) -> None:
    root = written(tmp_path / "set", engine("a"))
    newer = table_schema("engines").with_metadata({"table": "engines", "schema_version": str(SCHEMA_VERSION + 1)})
    pq.write_table(pa.table({"run_id": ["b"]}, schema=pa.schema([("run_id", pa.string())], newer.metadata)),
                   root / "engines" / "b.parquet")  # fmt: skip
    with pytest.raises(rows.RowsError) as refused:
        rows.read_table(root)
    assert f"schema {SCHEMA_VERSION + 1} and this program reads up to {SCHEMA_VERSION}" in str(refused.value)
    assert "b.parquet" in str(refused.value) and "\n" not in str(refused.value)


def test_what_is_no_result_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(rows.RowsError, match="there is no result set"):
        rows.read_table(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(rows.RowsError, match="holds no engines"):
        rows.read_table(tmp_path / "empty")
    with pytest.raises(rows.RowsError, match="not a table"):
        rows.read_table(tmp_path, "engine")
    (tmp_path / "broken" / "engines").mkdir(parents=True)
    (tmp_path / "broken" / "engines" / "a.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(rows.RowsError, match="a.parquet is not a readable Parquet file"):
        rows.read_table(tmp_path / "broken")
    pq.write_table(pa.table({"run_id": ["b"]}), tmp_path / "other.parquet")
    with pytest.raises(rows.RowsError, match="names no schema version"):
        rows.read_table(tmp_path / "other.parquet")


def test_the_newest_row_of_every_restart_counts() -> None:
    read = [
        engine("late", started_unix_s=3.0), engine("early", started_unix_s=1.0),
        engine("again", started_unix_s=2.0, repeat=1), engine("elsewhere", started_unix_s=0.0, environment_id="f"),
        engine("log", started_unix_s=None, point_id="q"),
    ]  # fmt: skip
    assert {row["run_id"] for row in rows.newest(read)} == {"late", "again", "elsewhere", "log"}


def test_environments_are_never_pooled_silently() -> None:
    read = [
        engine("a", driver_version="1", host_cpu="x"),
        engine("b", environment_id="f", driver_version="2", host_cpu="x"),
    ]
    assert rows.one_environment(read[:1]) == []
    with pytest.raises(rows.RowsError, match=r"never pooled silently \(driver_version: 1 \| 2\)"):
        rows.one_environment(read)
    assert rows.one_environment(read, pool=True) == ["pooled over several environments (driver_version: 1 | 2)"]
    assert list(rows.by_environment(read)) == ["e", "f"]
    alike = [engine("a"), engine("b", environment_id="f")]
    assert rows.differences(alike) == {"environment_id": ["e", "f"]}


def test_sets_of_every_schema_version_are_read_together(tmp_path: Path) -> None:
    """results/reference-cpu is of version 1; what it lacks is null beside rows of today."""
    root = tmp_path / "set"
    made = ResultSet(root)
    made.create()
    old = sorted((Path(__file__).parents[2] / "results/reference-cpu/workloads").glob("*.parquet"))[0]
    assert pq.read_schema(old).metadata[b"schema_version"] == b"1"
    shutil.copy(old, root / "workloads" / old.name)
    today = {"run_id": "z", "workload": "w", "rate_per_s": 4.0, "energy_j_per_token": 0.25, "input_tokens": 8}
    made.write("z", engine("z"), [today], [])
    read = rows.read_table(root, "workloads")
    assert len(read) == 2 and read[0].keys() == read[1].keys()
    first, second = read
    assert first["rate_per_s"] is None and first["energy_j_per_token"] is None and first["output_tokens_per_s"] > 0
    assert (second["rate_per_s"], second["input_tokens"], second["output_tokens_per_s"]) == (4.0, 8, None)
    with pytest.raises(rows.RowsError, match="holds no requests"):
        rows.read_table(root, "requests")
