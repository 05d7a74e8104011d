"""`python -m analysis`: subcommands, exit codes, and how little it imports."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from analysis import cli

ROOT = Path(__file__).resolve().parents[2]


def run(*words, stdin=None):
    return subprocess.run(
        [sys.executable, "-m", "analysis", *words], cwd=ROOT, capture_output=True, text=True, input=stdin, timeout=60,
        check=False,
    )  # fmt: skip


def test_predict_from_a_quoted_command_line():
    done = run("predict", "vllm serve Qwen/Qwen2.5-7B-Instruct --max-num-seqs 64 --port 80", "--gpu", "h100-80gb")
    assert done.returncode == 0 and done.stderr == ""
    assert "FITS" in done.stdout and "2^30" in done.stdout and "--port" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith(("weights", "KV pool", "device peak"))]
    assert len(rows) == 3 and len({line.rindex("  ") for line in rows}) == 1  # one column under the other


def test_predict_from_an_unquoted_command_line_in_json():
    done = run("predict", "vllm", "serve", "llama-3.1-8b", "--tensor-parallel-size", "2", "--port", "80",
               "--gpu", "a100-40gb", "--json")  # fmt: skip
    found = json.loads(done.stdout)
    assert found["settings"]["gpu"] == "a100-40gb" and found["settings"]["tensor_parallel_size"] == 2
    assert found["ignored_options"] == ["--port"]


def test_predict_from_flags():
    done = run("predict", "--model", "llama-3.1-8b", "--quantization", "awq", "--gpu", "rtx-4090", "--json",
               "--vllm-version", "0.19.0", "--enforce-eager", "--max-model-len", "8192")  # fmt: skip
    found = json.loads(done.stdout)
    assert found["settings"]["quantization"] == "awq" and found["cuda_graph_gib"] == 0
    assert found["settings"]["gpu_memory_utilization"] == 0.9


def test_flags_go_over_the_command_line():
    done = run("predict", "vllm serve llama-3.1-8b --max-num-seqs 8", "--max-num-seqs", "16", "--json")
    assert json.loads(done.stdout)["settings"]["max_num_seqs"] == 16


def test_a_batch_from_standard_input_and_from_a_file(tmp_path):
    lines = '{"id": 1, "model": "qwen2.5-7b"}\n{"id": 2, "model": "no-such-thing"}\n'
    done = run("predict", "--batch", "-", stdin=lines)
    assert done.returncode == 0
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["verdict"] and set(second) == {"id", "error"}
    file = tmp_path / "requests.jsonl"
    file.write_text(lines)
    assert run("predict", "--batch", str(file)).stdout == done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict"], "nothing to predict"),
        (["predict", "vllm serve qwen2.5-7b", "--gpu", "potato"], "gpu 'potato' is not in the table"),
        (["predict", "vllm serve qwen2.5-7b --max-num-sequences 3"], "did you mean --max-num-seqs?"),
        (["predict", "--max-num-sequences", "3"], "did you mean --max-num-seqs?"),
        (["predict", "--model", "qwen2.5-7b", "--max-num-seqs", "-3"], "max_num_seqs is -3"),
        (["predict", "--model", "qwen2.5-7b", "--gpu-total-gib", "much"], "gpu_total_gib is 'much'"),
        (["predict", "--batch", "/nowhere.jsonl"], "--batch /nowhere.jsonl cannot be read"),
        (["predict", "--batch", "-", "vllm serve m"], "give one of them"),
        (["predicted"], "'predicted' is no subcommand"),
    ],
)
def test_bad_requests_are_one_sentence_and_exit_2(words, said):
    done = run(*words, stdin="")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert said in done.stderr


def test_help():
    assert run().returncode == 2
    overview = run("--help")
    assert overview.returncode == 0 and all(name in overview.stdout for name in cli.SUBCOMMANDS)
    assert "examples:" in run("predict", "--help").stdout


def test_a_missing_subcommand_breaks_only_itself(monkeypatch, capsys):
    monkeypatch.setitem(cli.SUBCOMMANDS, "gone", ("analysis.no_such_module.cli", "nothing"))
    assert cli.main(["gone"]) == 1
    assert "gone is not part of this installation" in capsys.readouterr().err
    assert cli.main(["--help"]) == 0


def test_a_missing_package_is_named(monkeypatch, capsys):
    def imported(name):
        raise ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow")

    monkeypatch.setattr(cli.importlib, "import_module", imported)
    assert cli.main(["fit"]) == 1
    assert "fit needs the Python package 'pyarrow'" in capsys.readouterr().err


def test_a_subcommand_gets_its_words_and_gives_the_exit_code(monkeypatch):
    seen = []
    module = types.SimpleNamespace(
        add_arguments=lambda parser: parser.add_argument("--n", type=int),
        run=lambda args: seen.append(args.n) or 7,
    )
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)
    assert cli.main(["fit", "--n", "3"]) == 7 and seen == [3]


def test_predicting_imports_nothing_heavy():
    code = (
        "import sys; from analysis.cli import main; "
        "main(['predict', 'vllm serve qwen2.5-7b', '--gpu', 'l4', '--json']); "
        "print(sorted({'torch', 'vllm', 'transformers', 'numpy', 'pandas', 'pyarrow', 'scipy', 'bench', 'hydra'} "
        "& set(sys.modules)), file=sys.stderr)"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    "words", [("query", "SELECT count(*) AS n FROM engines", "results/reference-cpu"),
              ("compare", "results/reference-cpu", "results/reference-cpu"),
              ("history", "--metric", "startup", "results/reference-cpu", "results/reference-cpu"),
              ("fit", "results/reference-cpu", "--dry-run"), ("tables", "results/reference-cpu", "--out", "{tmp}"),
              ("report", "results/reference-cpu", "--no-files", "--out", "{tmp}/index.html")]
)  # fmt: skip
def test_reading_sets_imports_no_pandas(words, tmp_path):
    """pyarrow would, for half a second; and a command must do without it."""
    code = ("import atexit, runpy, sys; atexit.register(lambda: print(sys.modules.get('pandas'), file=sys.stderr)); "
            "runpy.run_module('analysis', run_name='__main__', alter_sys=True)")  # fmt: skip
    words = [word.replace("{tmp}", str(tmp_path)) for word in words]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout and done.stderr.splitlines()[-1] == "None", done.stderr
