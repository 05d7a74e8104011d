"""Bad requests end with exit code 2 and one sentence before anything starts; plans come in the right order."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs an installed vLLM")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["engine.max_num_seqs=-1"], "engine.max_num_seqs=-1: must be greater than 0"),
        (["engine.max_num_seqs=8,-2"], "engine.max_num_seqs=-2: must be greater than 0"),
        (["model=gpt-17"], "model=gpt-17: no such option; choose one of "),
        (["sweep=nightly"], "sweep=nightly: no such option; choose one of cpu, "),
        (["engine.max_num_seq=4"], "engine.max_num_seq: no such setting; did you mean engine.max_num_seqs?"),
        (["+engine.max_num_seq=4"], "engine.max_num_seq: no such setting"),
        (["engine.max_num_seqs=many"], "engine.max_num_seqs: "),
        (["engine.max_model_len=99999999"], "engine.max_model_len=99999999: tiny-qwen2 takes at most 8192 tokens"),
        (["engine.max_model_len=70"], "workload.points[c4-i64-o8]=prompt and output of 72 tokens: a request may"),
        (["model.source=path", "model.path=/no/such/checkpoint"], "model.path=/no/such/checkpoint: no such folder"),
        (["model.config.hidden_size=null"], "hidden_size"),
        (['engine.extra_args=["--port=3"]'], "engine.extra_args=--port=3: this flag belongs to a setting"),
        (["engine.max_num_seqs=interval(1,2)"], "a grid needs a list of values"),
        (["engine.max_num_seqs=[1"], "engine.max_num_seqs=[1: cannot be read"),
        (["engine.env={A:b}"], "engine.env: takes no whole mapping here"),
        (["paths.scratch=/tmp/" + "x" * 60], "too long for the engine's sockets"),
        (["set=a/b"], "set=a/b: name a result set in letters"),
    ],
)
def test_a_bad_request_is_one_sentence_and_starts_nothing(bench, tmp_path, words, sentence):
    done = bench(*words, f"paths.results={tmp_path}/results")
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and sentence in lines[0]
    assert not (tmp_path / "results").exists()


def _checkpoint(tmp_path, **changes):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128,
              "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
              "vocab_size": 256,
              "max_position_embeddings": 512, "torch_dtype": "float32"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    return f"model.path={tmp_path}"


def _weights(path, size_bytes):
    header = json.dumps({"w": {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size_bytes))


def test_a_checkpoint_under_the_name_of_another_format_is_refused(bench, tmp_path):
    words = ["model.source=path", _checkpoint(tmp_path), f"paths.results={tmp_path}/results", "dry_run=true"]
    _weights(tmp_path / "model.safetensors", 854_736)
    done = bench(*words, "quantization=gptq")
    assert done.returncode == 2 and "quantization=gptq: the checkpoint stores weights as they are" in done.stderr


def test_hydras_single_run_mode_does_not_pass_by_the_plan(bench, tmp_path):
    done = bench("hydra.mode=RUN", "dry_run=true", f"paths.results={tmp_path}/results")
    assert done.returncode == 2 and "hydra.mode=RUN: leave it out" in done.stderr


def test_a_set_that_is_a_file_is_one_sentence(bench, tmp_path):
    (tmp_path / "taken").touch()
    done = bench(f"paths.results={tmp_path}", "set=taken")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: paths.results=")
    assert "Traceback" not in done.stderr


def test_a_checkpoint_without_weights_with_broken_ones_or_of_another_size_is_refused(bench, tmp_path):
    words = ["model.source=path", _checkpoint(tmp_path), "quantization=fp32", f"paths.results={tmp_path}/results"]
    assert "no *.safetensors file in it" in bench(*words).stderr
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{not json at all")
    assert "model.safetensors cannot be read" in bench(*words).stderr
    _weights(tmp_path / "model.safetensors", 1000)
    done = bench(*words)
    assert done.returncode == 2
    assert "the checkpoint is incomplete or not the one its config describes" in done.stderr
    (tmp_path / "config.json").write_text("{")
    assert "its config.json cannot be read" in bench(*words).stderr


def _planned(bench, tmp_path, *words):
    done = bench("dry_run=true", f"paths.results={tmp_path}/results", *words)
    assert done.returncode == 0, done.stderr
    return [line.split("  ", 1)[1] for line in done.stdout.strip().splitlines()]


def test_sequences_are_inner_token_budgets_outer_and_restarts_are_interleaved(bench, tmp_path):
    planned = _planned(bench, tmp_path, "engine.max_num_seqs=4,16", "repeats=2", "engine.max_num_batched_tokens=64,256",
                       "engine=cpu", "model=tiny-qwen2,tiny-llama")  # fmt: skip
    settings = [f"{model} fp32 T={t} S={s} fixed" for model in ("tiny-qwen2", "tiny-llama") for t in (64, 256)
                for s in (4, 16)]  # fmt: skip
    assert planned == [f"{point} #1" for point in settings] + [f"{point} #2" for point in settings]


def test_points_that_come_out_the_same_are_planned_once(bench, tmp_path):
    assert len(_planned(bench, tmp_path, "engine.max_num_seqs=4,4")) == 1


def test_the_cpu_sweep_is_the_promised_grid(bench, tmp_path):
    planned = _planned(bench, tmp_path, "sweep=auto")
    assert len(planned) == len(set(planned)) == 40


@pytest.mark.parametrize(("sweep", "points"), [("gpu", 20), ("gpu-memory", 75), ("gpu-smoke", 2)])
def test_the_gpu_sweeps_compose_and_validate(bench, tmp_path, sweep, points):
    planned = _planned(bench, tmp_path, f"sweep={sweep}", "device=cpu", "model=qwen2.5-7b")
    assert len(planned) == points
    assert any(" auto" in point for point in planned) and any(" fixed" in point for point in planned)


def test_a_listed_points_setting_can_be_overridden_on_the_command_line(bench, tmp_path):
    planned = _planned(bench, tmp_path, "sweep=gpu", "device=cpu", "model=qwen2.5-7b", "quantization=bf16",
                       "engine.max_num_seqs=32")  # fmt: skip
    assert planned and all("S=32" in point for point in planned)


def test_help_teaches_and_cfg_shows_the_job(bench):
    done = bench("--help")
    assert done.returncode == 0
    assert "python -m bench sweep=cpu" in done.stdout and "deepseek-coder-33b" in done.stdout
    shown = bench("sweep=cpu", "--cfg", "job")
    assert shown.returncode == 0 and "max_num_batched_tokens" in shown.stdout


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m bench sweep=gpu device=cpu dry_run=true | head -1"
    done = subprocess.run(command, shell=True, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 1 and "Traceback" not in done.stderr, done.stderr
