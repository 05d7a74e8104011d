"""Reading only the columns of a file that say something gives what reading all of them gives."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.compare.load import MANY, _Columns

ROWS = 2 * MANY


def table(**changes: pa.Array) -> pa.Table:
    columns = {
        "number": pa.array(range(ROWS)), "text": pa.array([None if at % 3 else "x" for at in range(ROWS)]),
        "flags": pa.array([[]] * ROWS, pa.list_(pa.string())), "empty": pa.nulls(ROWS, pa.float64()),
        "first_half": pa.array([1.5] * MANY + [None] * MANY), "unwanted": pa.nulls(ROWS, pa.string()),
    }  # fmt: skip
    return pa.table(columns | changes)


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("row_group_size", [ROWS, MANY])
def test_columns_that_are_null_throughout_come_back_as_null(tmp_path, statistics, row_group_size):
    first, other = table(), table(empty=pa.array([2.5] * ROWS)).select(["flags", "empty", "text", "number", "unwanted"])
    columns = _Columns({"number", "text", "flags", "empty", "first_half"}, use_threads=False)
    for at, one in enumerate((first, other, first)):
        path = tmp_path / f"{at}.parquet"
        pq.write_table(one, path, row_group_size=row_group_size, write_statistics=statistics)
        with pq.ParquetFile(path) as file:
            read = columns.read(file, file.schema_arrow)
        assert read.equals(one.drop_columns("unwanted"))
