"""SQL over the reference set and over sets made to be awkward."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis import cli
from analysis.query.cli import EXAMPLES
from analysis.rows import SCHEMA_VERSION

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = ROOT / "results/reference-cpu"


@pytest.fixture
def ask(capsys, monkeypatch):
    """The command itself: (exit code, standard output, standard error)."""
    monkeypatch.chdir(ROOT)

    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main(["query", *words])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    """Eight starts of the reference set, where it does not matter how many there are."""
    folder = tmp_path_factory.mktemp("sets") / "small"
    for table in ("engines", "workloads", "samples"):
        (folder / table).mkdir(parents=True)
        for path in sorted((REFERENCE / table).glob("*.parquet"))[:8]:
            (folder / table / path.name).symlink_to(path)
    return str(folder)


def rows(out: str) -> list[dict]:
    return json.loads(out)


def write(path: Path, columns: dict[str, list], version: object = 1, units: dict[str, str] | None = None) -> Path:
    table = pa.table(columns)
    fields = [
        one.with_metadata({"unit": (units or {}).get(one.name, ""), "meaning": f"Meaning of {one.name}"})
        for one in table.schema
    ]
    metadata = {} if version is None else {"table": path.parent.name, "schema_version": str(version)}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.cast(pa.schema(fields, metadata=metadata)), path)
    return path


def test_counts_are_those_of_the_rows(ask):
    code, out, err = ask("SELECT model, count(*) AS n FROM engines GROUP BY ALL", "reference-cpu", "--format", "json")
    assert (code, err) == (0, "")
    table = pq.read_table(REFERENCE / "engines", columns=["model"]).column("model").to_pylist()
    assert {row["model"]: row["n"] for row in rows(out)} == {model: table.count(model) for model in set(table)}


def test_workloads_join_their_engines(ask):
    _, out, _ = ask(
        "SELECT count(*) n, count(DISTINCT run_id) runs FROM workloads JOIN engines USING (result_set, run_id)",
        "results/reference-cpu", "--format", "json",
    )  # fmt: skip
    assert rows(out) == [{"n": 96, "runs": 96}]


@pytest.mark.parametrize("example", EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_every_example_runs(ask, small, example):
    code, out, err = ask(example[1], small)
    assert (code, err) == (0, "") and out.count("\n") >= 2


def test_the_table_is_aligned_and_bears_units(ask, small):
    _, out, _ = ask("SELECT model, max(weights_bytes) AS weights_bytes FROM engines GROUP BY ALL ORDER BY 1", small)
    head, unit, rule, first, *_ = out.splitlines()
    assert head.split() == ["model", "weights_bytes"] and unit.split() == ["B"] and set(rule) == {"-", " "}
    assert unit.rstrip().endswith("B") and len(head) == len(unit) == len(first)
    assert first.startswith("tiny-llama") and first.split()[1].isdigit()


def test_a_long_answer_says_how_much_is_left(ask):
    code, out, _ = ask("SELECT run_id FROM engines", "reference-cpu", "--limit", "5")
    assert code == 0 and out.splitlines()[-1] == "5 of 96 rows; --limit 0 shows all" and len(out.splitlines()) == 8
    _, out, _ = ask("SELECT run_id FROM engines", "reference-cpu", "--limit", "0")
    assert len(out.splitlines()) == 98


def test_formats_hold_the_same_rows(ask, small, tmp_path):
    sql = "SELECT model, weights_bytes, flags, failure_sentence FROM engines ORDER BY run_id LIMIT 7"
    _, as_json, _ = ask(sql, small, "--format", "json")
    _, as_csv, _ = ask(sql, small, "--format", "csv")
    _, as_md, _ = ask(sql, small, "--format", "markdown")
    target = tmp_path / "out.parquet"
    code, out, _ = ask(sql, small, "--out", str(target))
    assert code == 0 and out == f"7 rows: {target}\n"
    expected = rows(as_json)
    kept = pq.read_table(target)
    assert kept.to_pylist() == expected
    assert kept.schema.field("weights_bytes").metadata[b"unit"] == b"B"
    read = list(csv.DictReader(io.StringIO(as_csv)))
    assert [(int(row["weights_bytes"]), json.loads(row["flags"])) for row in read] == [
        (row["weights_bytes"], row["flags"]) for row in expected
    ]
    head, rule, *_ = as_md.splitlines()
    assert head == "| model | weights_bytes (B) | flags | failure_sentence |" and rule == "| --- | ---: | --- | --- |"
    assert len(as_md.splitlines()) == 9


def test_json_is_strict(ask, small):
    _, out, _ = ask("SELECT 1/0 AS a, 'nan'::DOUBLE AS b, 1.5::DECIMAL(3,1) AS c, 1 AS c, DATE '2026-01-02' AS d",
                    small, "--format", "json")  # fmt: skip
    assert rows(out) == [{"a": None, "b": None, "c": 1.5, "c_2": 1, "d": "2026-01-02"}]


def test_the_schema_says_type_unit_and_meaning(ask):
    _, out, _ = ask("--schema", "engines", "--set", "reference-cpu")
    assert out.splitlines()[0] == "engines: 154 columns, 96 files in reference-cpu"
    line = next(line for line in out.splitlines() if line.split()[:1] == ["weights_bytes"])
    assert line.split()[1:3] == ["int", "B"] and len(line.split()) > 4
    _, some, _ = ask("--schema", "engines.kv_cache", "--set", "reference-cpu")
    assert "kv_cache_tokens" in some and "python_version" not in some
    _, everything, _ = ask("--schema", "--set", "reference-cpu")
    assert [line.split(":")[0] for line in everything.splitlines() if " files in " in line] == [
        "engines", "workloads", "samples",
    ]  # fmt: skip


def test_sets_of_several_schemas_are_one_table(ask, tmp_path):
    write(tmp_path / "old/engines/a.parquet", {"run_id": ["1"], "model": ["m"], "gone": [7]})
    write(tmp_path / "new/engines/b.parquet", {"model": ["m"], "added_s": [1.5], "run_id": ["2"]}, 2, {"added_s": "s"})
    write(tmp_path / "new/requests/b.parquet", {"run_id": ["2", "2"], "ttft_s": [0.1, 0.2]}, 2)
    sets = [str(tmp_path / "old"), str(tmp_path / "new")]
    _, out, err = ask("SELECT * FROM engines ORDER BY run_id", *sets, "--format", "json")
    assert err == "" and rows(out) == [
        {"result_set": "old", "run_id": "1", "model": "m", "gone": 7, "added_s": None},
        {"result_set": "new", "run_id": "2", "model": "m", "gone": None, "added_s": 1.5},
    ]
    _, out, _ = ask("SELECT result_set, avg(ttft_s) AS t FROM requests GROUP BY ALL", *sets, "--format", "json")
    assert rows(out) == [{"result_set": "new", "t": pytest.approx(0.15)}]
    _, out, _ = ask("--schema", "engines", "--set", sets[0], "--set", sets[1])
    assert "Meaning of gone" in out and "Meaning of added_s" in out


def test_what_cannot_be_read_is_named_and_the_rest_answers(ask, tmp_path):
    good = write(tmp_path / "x/engines/a.parquet", {"run_id": ["1"]})
    (tmp_path / "x/engines/torn.parquet").write_bytes(good.read_bytes()[:100])
    (tmp_path / "x/engines/empty.parquet").write_bytes(b"")
    write(tmp_path / "x/engines/newer.parquet", {"run_id": ["9"]}, SCHEMA_VERSION + 1)
    write(tmp_path / "x/engines/foreign.parquet", {"run_id": ["9"]}, None)
    code, out, err = ask("SELECT run_id FROM engines", str(tmp_path / "x"), "--format", "csv")
    assert (code, out) == (0, "run_id\n1\n")
    notes = err.splitlines()
    assert len(notes) == 4 and all(note.startswith("note: ") and "left out" in note for note in notes)
    assert f"has schema {SCHEMA_VERSION + 1} and this program reads up to {SCHEMA_VERSION}" in err
    for name in ("torn", "empty", "newer", "foreign"):
        assert f"x/engines/{name}.parquet" in err


def test_a_set_with_nothing_readable_is_one_sentence(ask, tmp_path):
    (tmp_path / "x/engines").mkdir(parents=True)
    (tmp_path / "x/engines/torn.parquet").write_bytes(b"PAR1")
    code, out, err = ask("SELECT * FROM engines", str(tmp_path / "x"))
    assert code == 2 and out == ""
    assert err.splitlines()[-1] == "error: these sets hold no engines: no readable file engines/*.parquet"


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELECT weights_byte FROM engines", "column 'weights_byte' is not there; did you mean 'weights_bytes'?"),
        ("SELECT model FROM engine", "table 'engine' is not there; did you mean 'engines'?"),
        ("SELEC model FROM engines", 'syntax error at or near "SELEC" (line 1)'),
        ("SELECT model\nFROM engines\nWHERE AND", "(line 3)"),
        ("SELECT model + 1 FROM engines", "No function matches the given name and argument types '+(VARCHAR,"),
        ("SELECT 'x' + weights_bytes FROM engines", "Could not convert string 'x'"),
        ("SELECT 1; SELECT 2", "these are 2 statements; give one"),
        ("  ", "the query is empty"),
        ("-- only a remark", "there is no query"),
        ("SELECT ttft_s FROM requests", "these sets hold no requests"),
    ],
)
def test_a_mistake_is_one_sentence(ask, small, sql, says):
    code, out, err = ask(sql, small)
    assert code == 2 and out == "" and says in err
    assert err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '{folder}/x.csv'",
        "COPY (SELECT 1 AS run_id) TO '{file}'",
        "EXPLAIN ANALYZE COPY (SELECT 1 AS run_id) TO '{file}'",
        "CREATE TABLE t AS SELECT 1",
        "DROP VIEW engines",
        "ATTACH '{folder}/x.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "PRAGMA database_list",
        "EXPORT DATABASE '{folder}/x'",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM read_parquet('https://example.com/x.parquet')",
        "SELECT * FROM '{other}'",
        "SELECT * FROM glob('/etc/*')",
    ],
)
def test_nothing_is_written_and_nothing_else_is_read(ask, tmp_path, sql):
    file = write(tmp_path / "x/engines/a.parquet", {"run_id": ["1"]})
    other = write(tmp_path / "other.parquet", {"secret": ["s"]})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, out, err = ask(sql.format(folder=tmp_path, file=file, other=other), str(tmp_path / "x"))
    assert (code == 2 and out == "" and err.count("\n") == 1) or out.splitlines()[1:] == ["----"], (out, err)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_set_whose_name_is_sql_does_no_harm(ask, tmp_path):
    write(tmp_path / "it's; DROP" / "engines/a.parquet", {"run_id": ["1"]})
    _, out, _ = ask("SELECT result_set FROM engines", str(tmp_path / "it's; DROP"), "--format", "csv")
    assert out == "result_set\nit's; DROP\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["SELECT 1", "nonesuch"], "there is no result set 'nonesuch': it is no folder and no name in results/"),
        (["SELECT 1", "conf"], "conf is no result set: it holds none of engines/"),
        (["SELECT 1", "reference-cpu", "--format", "parquet"], "parquet goes into a file: give --out FILE"),
        (["SELECT 1", "reference-cpu", "--out", "/nonexistent/x.csv"], "cannot be written: No such file"),
        (["--file", "/nonexistent/q.sql"], "--file /nonexistent/q.sql cannot be read: No such file"),
        (["--schema", "engine"], "'engine' is not a table of a result set"),
        (["--schema", "engines.zzz"], "no column of engines holds 'zzz'"),
        ([], "nothing is asked"),
    ],
)
def test_a_bad_request_is_one_sentence(ask, words, says):
    code, out, err = ask(*words)
    assert (code, out, err.count("\n")) == (2, "", 1) and says in err


def test_two_sets_of_one_name_are_refused(ask, tmp_path):
    for place in ("a", "b"):
        write(tmp_path / place / "x/engines/a.parquet", {"run_id": ["1"]})
    code, _, err = ask("SELECT 1", str(tmp_path / "a/x"), str(tmp_path / "b/x"))
    assert code == 2 and "two sets are called 'x'" in err


def test_without_a_set_all_are_asked(ask, tmp_path, monkeypatch):
    for name in ("one", "two"):
        write(tmp_path / "results" / name / "engines/a.parquet", {"run_id": [name]})
    (tmp_path / "results/tables").mkdir()
    monkeypatch.chdir(tmp_path)
    _, out, _ = ask("SELECT result_set, run_id FROM engines ORDER BY 1", "--format", "csv")
    assert out == "result_set,run_id\none,one\ntwo,two\n"
    monkeypatch.chdir(tmp_path / "results/one")
    code, _, err = ask("SELECT 1")
    assert code == 2 and "there is no result set in results/" in err


def test_from_standard_input_and_from_a_file(ask, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT count(*) AS n\nFROM engines;\n"))
    assert ask("-", "reference-cpu", "--format", "csv")[1] == "n\n96\n"
    (tmp_path / "q.sql").write_text("SELECT count(*) AS n FROM workloads -- all of them\n")
    assert ask("--file", str(tmp_path / "q.sql"), "reference-cpu", "--format", "csv")[1] == "n\n96\n"


def test_control_characters_of_a_log_do_not_reach_the_terminal(ask, tmp_path):
    write(tmp_path / "x/engines/a.parquet", {"failure_sentence": ["red \x1b[31m\nsecond line"]})
    _, out, _ = ask("SELECT failure_sentence FROM engines", str(tmp_path / "x"))
    assert "\x1b" not in out and len(out.splitlines()) == 3


def test_a_reader_that_goes_away_is_no_traceback():
    words = [sys.executable, "-m", "analysis", "query", "SELECT * FROM samples", "reference-cpu", "--format", "csv"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    process.wait(60)
    process.stderr.close()
    assert b"Traceback" not in error


def test_help_needs_no_database():
    code = (
        "import sys, contextlib, io\nfrom analysis.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    main(['query', '--help']); main(['query', '--examples'])\n"
        "print(sorted({'duckdb', 'pyarrow', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"


def test_a_value_that_parquet_cannot_hold_is_one_sentence(ask, small, tmp_path):
    code, _, error = ask("SELECT interval 1 day AS lag", small, "--out", str(tmp_path / "x.parquet"))
    assert code == 2 and error.startswith("error: ") and "Parquet cannot hold this" in error and error.count("\n") == 1
