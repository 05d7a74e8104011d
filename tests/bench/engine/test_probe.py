"""The probe: in a stand-in for vLLM's worker (a tiny package with the same names, run in a process of its
own), and in a real engine where vLLM is installed."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

import pytest

from bench.engine import memory, phases
from bench.engine.probe import snapshot
from bench.engine.probe.report import Report, plain
from bench.engine.readings import phase_named, read_probe_reports

ROOT = Path(__file__).resolve().parents[3]

STAND_IN = {
    "vllm/__init__.py": "__version__ = '0.0.1'",
    "vllm/v1/__init__.py": "",
    "vllm/v1/worker/__init__.py": "",
    "vllm/v1/worker/gpu_worker.py": """
        import contextlib
        from vllm.model_executor.model_loader import base_loader
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        class Result:
            transient_peak_headroom = 0
            profile_time = 0.5

        @contextlib.contextmanager
        def memory_profiling(*args):
            yield Result()

        class Worker:
            rank = 3
            fail_in = None
            vllm_config = None

            def __init__(self):
                self.step("__init__")

            def step(self, name):
                if self.fail_in == name:
                    raise RuntimeError(f"no luck in {name}")

            def init_device(self):
                self.step("init_device")
                self.model_runner = GPUModelRunner()

            def load_model(self, *, load_dummy_weights=False):
                self.step("load_model")
                return base_loader.load(load_dummy_weights)

            def determine_available_memory(self):
                with memory_profiling() as result:
                    self.model_runner.profile_run()
                result.transient_peak_headroom = 42  # vLLM corrects its result after the context, too
                return 1 << 30

            def initialize_from_config(self, config):
                self.model_runner.initialize_kv_cache(config)

            def compile_or_warm_up_model(self):
                return self.model_runner.capture_model()
        """,
    "vllm/v1/worker/gpu_model_runner.py": """
        class GPUModelRunner:
            model_memory_usage = 7
            def profile_run(self): pass
            def initialize_kv_cache(self, config): pass
            def capture_model(self): return 11
        """,
    "vllm/v1/worker/cpu_worker.py": """
        from vllm.v1.worker.gpu_worker import Worker
        class CPUWorker(Worker):
            def init_device(self):
                super().init_device()
        """,
    "vllm/model_executor/__init__.py": "",
    "vllm/model_executor/model_loader/__init__.py": "",
    "vllm/model_executor/model_loader/utils.py": """
        def process_weights_after_loading(model, *rest):
            model.packed = True
        """,
    "vllm/model_executor/model_loader/base_loader.py": """
        from .utils import process_weights_after_loading
        class Model: packed = False
        def load(dummy):
            model = Model()
            process_weights_after_loading(model, None, None)
            return ("loaded", dummy, model.packed)
        """,
}  # fmt: skip
PRELUDE = """
import json, os, signal, sys
from vllm.v1.worker.cpu_worker import CPUWorker
from bench.engine.probe.worker import MemoryProbe
CPUWorker.__bases__ += (MemoryProbe,)
"""


@pytest.fixture
def stand_in(tmp_path):
    """Runs a script as a worker process; returns its completed process and the reports it left."""
    for name, text in STAND_IN.items():
        path = tmp_path / "packages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    out = tmp_path / "probe"
    out.mkdir()

    def run(script: str, **env: str):
        environment = os.environ | {
            "PYTHONPATH": f"{tmp_path / 'packages'}:{ROOT}", "CALIBRATE_PROBE_DIR": str(out), **env,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(script)],
            env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return done, read_probe_reports(out)

    return run


START = """
worker = CPUWorker()
worker.init_device()
assert worker.load_model(load_dummy_weights=True) == ("loaded", True, True)
assert worker.determine_available_memory() == 1 << 30
worker.initialize_from_config(None)
assert worker.compile_or_warm_up_model() == 11
"""


def test_every_phase_is_recorded_once_and_results_pass_through(stand_in):
    done, (report,) = stand_in(START)
    assert done.returncode == 0, done.stderr
    assert [(p["name"], p["inside"]) for p in report["phases"]] == [
        ("worker_init", []),
        ("init_device", []),
        ("load_model", []),
        ("determine_available_memory", []),
        ("runner.profile_run", ["determine_available_memory"]),
        ("initialize_from_config", []),
        ("runner.initialize_kv_cache", ["initialize_from_config"]),
        ("compile_or_warm_up_model", []),
        ("runner.capture_model", ["compile_or_warm_up_model"]),
    ]
    assert all(p["end_unix_s"] >= p["begin_unix_s"] and p["error"] is None for p in report["phases"])
    assert phase_named(report, "determine_available_memory")["result"] == 1 << 30
    assert phase_named(report, "load_model")["arguments"] == {"load_dummy_weights": True}
    assert report["rank"] == 3
    assert report["budget"]["model_memory_usage"] == 7
    assert report["budget"]["profile"]["transient_peak_headroom"] == 42, "read again after vLLM corrected it"
    assert report["runner"]["version"] == "v1"
    assert report["phases"][0]["after"]["host"]["rss_bytes"] > 2**20


def test_what_the_stand_in_lacks_is_a_problem_told_not_an_error(stand_in):
    """Its model has no parameters(): the weights cannot be read, and everything else goes on."""
    done, (report,) = stand_in(START)
    assert done.returncode == 0
    assert any(problem.startswith("weights before repack") for problem in report["problems"])


def test_an_exception_is_recorded_and_raised_unchanged(stand_in):
    done, (report,) = stand_in("""
        CPUWorker.fail_in = "load_model"
        worker = CPUWorker()
        worker.init_device()
        try:
            worker.load_model()
        except RuntimeError as error:
            assert str(error) == "no luck in load_model"
        else:
            raise SystemExit("it was swallowed")
        """)
    assert done.returncode == 0, done.stderr
    phase = phase_named(report, "load_model")
    assert phase["error"]["type"] == "RuntimeError"
    assert phase["error"]["message"] == "no luck in load_model"
    assert phase["error"]["at"].startswith("vllm/v1/worker/gpu_worker.py:"), "no path of this machine"
    assert phase["after"]["host"]["rss_bytes"] > 0


def test_a_failing_constructor_is_recorded(stand_in):
    _, (report,) = stand_in("""
        CPUWorker.fail_in = "__init__"
        try:
            CPUWorker()
        except RuntimeError:
            pass
        """)
    assert phase_named(report, "worker_init")["error"]["message"] == "no luck in __init__"


def test_a_killed_worker_leaves_the_phase_it_was_in(stand_in):
    done, (report,) = stand_in("""
        from vllm.model_executor.model_loader import base_loader
        base_loader.load = lambda dummy: os.kill(os.getpid(), signal.SIGKILL)
        worker = CPUWorker()
        worker.init_device()
        worker.load_model()
        """)
    assert done.returncode == -signal.SIGKILL
    assert report["phases"][-1]["name"] == "load_model"
    assert report["phases"][-1]["end_unix_s"] is None


@pytest.mark.parametrize("directory", ["/proc/no/such/place", ""])
def test_a_directory_that_cannot_be_written_does_not_stop_the_engine(stand_in, directory):
    done, reports = stand_in(
        START + "\nprint(json.dumps(worker.calibrate_report()))", CALIBRATE_PROBE_DIR=directory
    )
    assert done.returncode == 0, done.stderr
    assert reports == []
    assert len(json.loads(done.stdout)["phases"]) == 9, "the answer over RPC still has everything"


def test_a_probe_that_is_broken_inside_does_not_stop_the_engine(stand_in):
    done, (report,) = stand_in(
        """
        from bench.engine.probe import describe, snapshot, tensors
        def broken(*args, **kwargs):
            raise ZeroDivisionError("inside the probe")
        for name in ("config", "budget", "runner", "kernels", "versions", "device"):
            setattr(describe, name, broken)
        tensors.kv_cache = tensors.tensor_bytes = broken
        snapshot.take = broken
        """
        + textwrap.indent(START, "        ")
    )
    assert done.returncode == 0, done.stderr
    assert any("inside the probe" in problem for problem in report["problems"])


def test_without_vllm_the_import_is_harmless(tmp_path):
    script = (
        "from bench.engine.probe.worker import MemoryProbe as M; print(M().calibrate_report()['problems'])"
    )
    blocked = tmp_path / "vllm"
    blocked.mkdir()
    (blocked / "__init__.py").write_text("raise ImportError('not today')")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not today" in done.stdout


def test_the_import_is_light():
    script = (
        "import sys, bench.engine.probe.report, bench.engine.probe.tensors; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "False", done.stderr


def test_windows_of_peaks(stand_in):
    done, (report,) = stand_in(
        START
        + """
first = worker.calibrate_reset_peaks("one")
assert first["closed"] is None and first["opened"]["label"] == "one"
block = b"x" * (64 << 20)
del block
second = worker.calibrate_reset_peaks("two")
assert second["closed"]["label"] == "one"
worker.calibrate_report()
"""
    )
    assert done.returncode == 0, done.stderr
    one, two = report["runtime"]["windows"]
    grown = one["end"]["host"]["rss_peak_bytes"] - one["begin"]["host"]["rss_bytes"]
    assert grown >= 60 << 20, "the peak of a block that was freed again"
    assert two["begin"]["host"]["rss_peak_bytes"] < one["end"]["host"]["rss_peak_bytes"], "VmHWM was reset"
    assert two["end"] is None
    assert (
        memory.runtime_peaks([report])["worker_rss_peak_bytes"]
        == report["runtime"]["current"]["host"]["rss_peak_bytes"]
    )
    assert memory.runtime_peaks([report], all_windows=True)["activation_peak_bytes"] == grown


def test_a_forked_child_reports_for_itself(stand_in):
    done, reports = stand_in("""
        pid = os.fork()
        if pid == 0:
            CPUWorker()
            os._exit(0)
        os.waitpid(pid, 0)
        """)
    assert done.returncode == 0, done.stderr
    assert sorted(len(report["phases"]) for report in reports) == [0, 1]
    assert len({report["pid"] for report in reports}) == 2


def test_extension_has_nothing_that_could_collide():
    script = (
        "from bench.engine.probe.worker import MemoryProbe as M;"
        "print([n for n in dir(M) if not n.startswith('__') and not n.startswith('calibrate_')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['vllm'] = None; " + script],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr


def test_host_reading_is_the_kernels(tmp_path):
    problems: list[str] = []
    host = snapshot.host_memory(problems)
    assert problems == []
    status = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line
    )
    assert host["rss_peak_bytes"] == pytest.approx(int(status["VmHWM"].split()[0]) * 1024, rel=0.05)
    assert 0 < host["private_dirty_bytes"] <= host["rss_bytes"] * 1.05


def test_plain_values():
    assert plain({"a": (1, 2.0, "x", None, object())}) == {"a": [1, 2.0, "x", None, None]}


def test_report_is_replaced_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBRATE_PROBE_DIR", str(tmp_path))
    report = Report()
    for number in range(5):
        report.end(report.begin(f"phase {number}", "here", {}), result=number)
        report.write()
        (read,) = read_probe_reports(tmp_path)
        assert len(read["phases"]) == number + 1
    assert [path.name for path in tmp_path.iterdir()] == [f"worker-{os.getpid()}.json"]


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_tensor_bytes_counts_each_storage_once():
    import torch

    from bench.engine.probe import tensors

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(10, 8)  # 320 bytes
            self.head = torch.nn.Linear(8, 10, bias=False)
            self.head.weight = self.embed.weight  # tied
            self.short = torch.nn.Parameter(torch.zeros(6, dtype=torch.float16))  # 12 bytes
            self.view = torch.nn.Parameter(self.embed.weight.data[:2])  # a view of the first
            self.register_buffer("scale", torch.zeros(3, dtype=torch.int8))  # 3 bytes
            self.workspace = torch.zeros(5)  # 20 bytes, not registered
            self.later = torch.nn.Parameter(torch.empty(4, device="meta"))  # 16 bytes that do not exist yet

    counted = tensors.tensor_bytes(Net())
    assert counted["parameter_bytes"] == 320 + 12 + 16
    assert counted["buffer_bytes"] == 3
    assert counted["total_bytes"] == 351
    assert counted["other_bytes"] == 20
    assert counted["parameter_bytes_by_dtype"] == {"float32": 336, "float16": 12}
    assert counted["bytes_by_device"]["meta"] == 16


# -- a real engine
# -----------------------------------------------------------------------------------------------

SHAPE = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "bfloat16",
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "vocab_size": 1024, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
POOL_BYTES = 64 * 2**20 + 12345  # no whole number of blocks


def call(port: int, path: str, body: dict | None = None, timeout_s: float = 60.0):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"} if data else {}
    )
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        text = response.read().decode()
    return json.loads(text) if text[:1] in ("{", "[") else text


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """A ready engine with the probe: `(port, probe directory, log, launched, ready)`."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    folder = tmp_path_factory.mktemp("engine")
    model, out = folder / "model", folder / "probe"
    model.mkdir()
    out.mkdir()
    (model / "config.json").write_text(json.dumps(SHAPE))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "CALIBRATE_PROBE_DIR": str(out), "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    env.pop("VLLM_CPU_KVCACHE_SPACE", None)
    argv = [
        sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--served-model-name", "tiny",
        "--load-format", "dummy", "--skip-tokenizer-init", "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "8",
        "--kv-cache-memory-bytes", str(POOL_BYTES),
        "--worker-extension-cls", "bench.engine.probe.worker.MemoryProbe",
    ]  # fmt: skip
    log, launched = folder / "log.txt", time.time()
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, stdout=output, stderr=subprocess.STDOUT, env=env, cwd=folder, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
            try:
                call(port, "/health", timeout_s=2)
                break
            except OSError:
                time.sleep(0.3)
        yield port, out, log, launched, time.time()
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.engine
def test_real_engine(engine):
    port, out, log, launched, ready = engine
    (report,) = read_probe_reports(out)
    assert report["problems"] == []
    terms = memory.from_probe(out)

    per_layer = (256 + 2 * 128) * (256 + 1) + 256 * 256 + 2 * 512 * 256 + 256 * 512 + 2 * 256
    parameters = 2 * (2 * 1024 * 256 + 2 * per_layer + 256)
    assert terms.weights_parameter_bytes == parameters
    assert terms.weights_tensor_bytes == parameters + terms.weights_buffer_bytes
    if (
        terms.init_total_bytes is None
    ):  # the CPU backend: rotary cache in bfloat16, four scales per attention layer
        assert terms.weights_buffer_bytes == 2048 * 64 * 2 + 2 * 4 * 4

    block_bytes = (
        terms.kv_block_size_tokens * 2 * 2 * 64 * 2 * 2
    )  # tokens x (K, V) x heads x dim x bfloat16 x layers
    assert terms.kv_bytes_per_block == block_bytes
    assert terms.kv_cache_bytes == POOL_BYTES // block_bytes * block_bytes
    assert terms.kv_cache_tokens == (terms.kv_cache_blocks - 1) * terms.kv_block_size_tokens
    assert terms.attention_backend and terms.linear_kernels and terms.model_runner in ("v1", "v2")
    assert (terms.effective_max_num_seqs, terms.effective_max_model_len) == (8, 512)

    columns = phases.startup_columns(out, log.read_bytes(), launched, ready)
    assert all(value is not None for value in columns.values())
    assert sum(columns.values()) == pytest.approx(ready - launched, abs=2.0)

    call(port, "/collective_rpc", {"method": "calibrate_reset_peaks", "args": ["under load"]})
    prompt = list(range(5, 405))
    answer = call(port, "/v1/completions", {
        "model": "tiny", "prompt": prompt, "max_tokens": 16, "ignore_eos": True, "temperature": 0,
    })  # fmt: skip
    assert answer["usage"]["completion_tokens"] == 16
    reports = call(port, "/collective_rpc", {"method": "calibrate_report"})["results"]
    peaks = memory.runtime_peaks(reports)
    assert peaks["activation_peak_bytes"] > 0
    assert peaks["worker_rss_peak_bytes"] > 0
    after = memory.from_probe(out)
    assert after.runtime_activation_peak_bytes == peaks["activation_peak_bytes"], "the file holds it too"
    assert reports[0]["runtime"]["windows"][-1]["label"] == "under load"
    assert reports[0]["problems"] == []
