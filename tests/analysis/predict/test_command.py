"""Command lines as people type them."""

from __future__ import annotations

import pytest

from analysis.predict.command import parse_command
from analysis.predict.request import AUTO_LENGTH, RequestError, human_integer


def test_a_whole_command_line():
    r = parse_command(
        "CUDA_VISIBLE_DEVICES=0 nohup vllm serve Qwen/Qwen2.5-7B-Instruct \\\n --max-num-seqs 64 -tp=2 "
        "--gpu_memory_utilization=0.85 --kv-cache-dtype fp8 --enforce-eager --served-model-name a b "
        "--port 8000 > server.log 2>&1 &"
    )
    assert r.model == "Qwen/Qwen2.5-7B-Instruct"
    assert (r.max_num_seqs, r.tensor_parallel_size, r.gpu_memory_utilization) == (64, 2, 0.85)
    assert (r.kv_cache_dtype, r.enforce_eager) == ("fp8", True)
    assert r.ignored == ("CUDA_VISIBLE_DEVICES", "--served-model-name", "--port")
    assert r.notes == ()


@pytest.mark.parametrize(
    "line",
    [
        "vllm serve m --max-num-seqs 3",
        "vllm serve --model m --max-num-seqs 3",
        "vllm serve --max-num-seqs 3 m",
        "/opt/venv/bin/vllm serve m --max_num_seqs=3",
        "python3 -m vllm.entrypoints.openai.api_server --model m --max-num-seqs=3",
        "python -u /x/vllm/entrypoints/openai/api_server.py --model=m --max-num-seqs 3",
        "docker run --gpus all -v /data/vllm:/models -p 8000:8000 vllm/vllm-openai:latest --model m --max-num-seqs 3",
        "env A=b vllm serve m --max-num-seqs 3 # a comment",
        "m --max-num-seqs 3",
        ["vllm", "serve", "m", "--max-num-seqs", "3"],
    ],
)
def test_ways_to_start_the_server(line):
    r = parse_command(line)
    assert (r.model, r.max_num_seqs) == ("m", 3)


def test_the_image_names_the_version():
    assert parse_command("docker run vllm/vllm-openai:v0.10.2 --model m").vllm_version == "0.10.2"
    r = parse_command("docker run vllm/vllm-openai:v0.10.2 --model m", {"vllm_version": "0.11.0"})
    assert r.vllm_version == "0.11.0" and "replaces" in r.notes[0]


def test_options_may_be_shortened_while_they_are_unique():
    # vLLM's own log recommends this spelling.
    assert parse_command("vllm serve m --kv-cache-memory=4294967296").kv_cache_memory_bytes == 2**32
    with pytest.raises(RequestError, match="could be"):
        parse_command("vllm serve m --max-num 3")


@pytest.mark.parametrize(
    ("text", "value"),
    [("4096", 4096), ("4k", 4000), ("4K", 4096), ("25.6k", 25600), ("2M", 2**21), ("1g", 10**9), ("3G", 3 * 2**30),
     ("1T", 2**40)],
)  # fmt: skip
def test_human_numbers_as_vllm_reads_them(text, value):
    assert human_integer("x", text) == value


def test_decimals_need_a_decimal_unit():
    with pytest.raises(RequestError, match="4.5g"):
        parse_command("vllm serve m --kv-cache-memory-bytes 4.5G")


def test_graph_settings():
    r = parse_command("""vllm serve m --compilation-config '{"cudagraph_mode": "PIECEWISE", "pass_config": {}}'""")
    assert (r.cudagraph_mode, r.ignored) == ("PIECEWISE", ("--compilation-config pass_config",))
    assert parse_command("vllm serve m -cc.cudagraph_mode=none").cudagraph_mode == "NONE"
    dotted = parse_command("vllm serve m --compilation-config.max_cudagraph_capture_size 64")
    assert dotted.max_cudagraph_capture_size == 64
    assert parse_command("vllm serve --cudagraph-capture-sizes 1 2 8 --model m").cudagraph_capture_sizes == (1, 2, 8)
    assert parse_command("vllm serve m -O0").optimization_level == 0
    assert parse_command("vllm serve m -O 1").optimization_level == 1
    assert parse_command("vllm serve m --no-enforce-eager").enforce_eager is False


def test_settings_from_the_environment():
    variables = "VLLM_USE_V2_MODEL_RUNNER=0 VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=1 VLLM_USE_V1=0"
    r = parse_command(f"{variables} vllm serve m")
    assert (r.v2_model_runner, r.estimate_cudagraphs) == (False, True)
    assert "V0 engine" in r.notes[0]


def test_overrides_of_the_config():
    r = parse_command("""vllm serve m --hf-overrides '{"rope_scaling": {"factor": 2.0}}' --hf-overrides.a.b=3""")
    assert r.hf_overrides == {"rope_scaling": {"factor": 2.0}, "a": {"b": 3}}


def test_auto_length():
    assert parse_command("vllm serve m --max-model-len auto").max_model_len == AUTO_LENGTH
    assert parse_command("vllm serve m --max-model-len -1").max_model_len == AUTO_LENGTH
    assert parse_command("vllm serve m --max-model-len 32k").max_model_len == 32000


def test_options_that_move_memory_and_are_not_modelled_are_said():
    r = parse_command("vllm serve m --enable-lora --data-parallel-size 1 --speculative-config '{}'")
    assert len(r.notes) == 2
    assert r.notes[0].startswith("--enable-lora: ")


def test_a_config_file_and_the_command_line_over_it(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("model: inside\nmax-num-seqs: 3\nenforce_eager: true\nmax-model-len: 1024\nport: 80\n")
    r = parse_command(f"vllm serve --config {file} --max-model-len 2048")
    assert (r.model, r.max_num_seqs, r.max_model_len, r.enforce_eager) == ("inside", 3, 2048, True)
    assert parse_command(f"vllm serve outside --config={file}").model == "outside"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("vllm serve m --max-num-sequence 3", "did you mean --max-num-seqs?"),
        ("vllm serve m --frobnicate", "--frobnicate is no option of vllm serve"),
        ("vllm serve m -x 3", "-x is no option"),
        ("vllm serve m --max-num-seqs", "--max-num-seqs has no value"),
        ("vllm serve m --max-num-seqs --port 3", "--max-num-seqs has no value"),
        ("vllm serve m --max-num-seqs many", "max_num_seqs is 'many', not a whole number"),
        ("vllm serve m --max-num-seqs -4", "max_num_seqs is -4; it must be 1 or more"),
        ("vllm serve m --gpu-memory-utilization 1.5", "gpu_memory_utilization is 1.5; it must be at most 1"),
        ("vllm serve m --gpu-memory-utilization 0", "gpu_memory_utilization is 0; it must be above 0"),
        ("vllm serve m --gpu-memory-utilization nan", "gpu_memory_utilization is nan, not a number"),
        ("vllm serve m --dtype int3", "dtype is 'int3'"),
        ("vllm serve m --kv-cache-dtype fp3", "kv_cache_dtype"),
        ("vllm serve m --enforce-eager=yes", "--enforce-eager takes no value"),
        ("vllm serve a b", "'b' is one word too many"),
        ("vllm serve", "there is no model"),
        ("vllm serve --port 80", "there is no model"),
        ("vllm bench latency", "`vllm bench` starts no server"),
        ("python train.py --model m", "is not known to start vLLM's server"),
        ("vllm serve 'm", "No closing quotation"),
        ("vllm serve m --compilation-config {x", "--compilation-config is '{x', which is not JSON"),
        ("vllm serve m --hf-overrides [1]", "not a JSON object"),
        ("vllm serve m --config /nowhere/x.yaml", "--config /nowhere/x.yaml cannot be read"),
        ("vllm serve m --help", "asks vLLM for help"),
    ],
)
def test_mistakes_are_one_sentence(line, said):
    with pytest.raises(RequestError) as refused:
        parse_command(line)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
