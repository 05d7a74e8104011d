"""The engine under both sides of a comparison: as the harness composes it, alone on the device, ended by its PID."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import checkpoint, environment
from bench.config import DeviceConfig
from bench.engine.base import LaunchRequest
from bench.engine.command import engine_env, serve_argv
from bench.engine.gate import DeviceBusy, device_lock, end_orphans, wait_clean
from bench.engine.guard import Guard, session_members
from bench.engine.lifecycle import StartFailed, stop, wait_ready
from bench.engine.server import Server, free_port
from bench.engine.shared_memory import remove_leaked_shared_memory, shared_memory_names
from bench.engine.spawn import SpawnLauncher
from bench.errors import BadRequest, BenchError
from bench.request import Request, load_request
from bench.telemetry.procfs import cpu_s

ROOT = Path(__file__).resolve().parents[2]

DEFAULTS = {
    "cpu": ("model=tiny-llama", "quantization=fp32", "engine=cpu", "device=cpu", "workload=none"),
    "cuda": ("model=qwen2.5-0.5b", "quantization=bf16", "engine=default", "device=cuda", "workload=none"),
}
"""What is served where the command line does not say: the smallest thing worth timing on each kind of device."""


OWN = frozenset({"set", "repeats", "repeat", "rerun", "dry_run", "sweep", "engine.port"})
"""Settings that would change what is compared."""


def words_for(kind: str, said: list[str]) -> list[str]:
    """The words of a request: what a person `said`, and the defaults of this kind of device for the rest."""
    chosen = {}
    for word in (*DEFAULTS[kind], *said):
        name, equals, value = word.lstrip("+").partition("=")
        if not equals or name in OWN or (word in said and name.startswith(("workload", "hydra", "paths"))):
            raise BadRequest(f"{word}: not a setting that a benchmark takes; write one of the engine's as KEY=VALUE")
        if "," in value and value[0] not in "[{'\"":
            raise BadRequest(f"{word}: one value; a benchmark is of one engine")
        chosen[name] = word
    return list(chosen.values())


def installed_kind() -> str:
    """`cuda` or `cpu`: what the installed vLLM was built for."""
    return environment.device_kind(DeviceConfig())


def compose(words: list[str]) -> Request:
    """The request that `python -m bench WORDS` would measure. Raises `BadRequest` for what it would refuse."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from bench.cli import _register, _sentence

    _register()
    try:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return load_request(hydra_compose("config", overrides=words))
    except (HydraException, OmegaConfBaseException) as error:
        raise BadRequest(_sentence(error)) from error


@contextlib.contextmanager
def device(request: Request, patience_s: float) -> Iterator[None]:
    """Hold the device as a sweep does, so that nothing else measures on it meanwhile; waits for whoever does."""
    gpus = environment.gpu_names(request.cfg.device) if request.device_kind == "cuda" else ()
    names = [f"gpu-{gpu}" for gpu in gpus] or ["cpu"]
    deadline, told = time.monotonic() + patience_s, False
    with contextlib.ExitStack() as held:
        while True:
            try:
                with contextlib.ExitStack() as taking:
                    for name in names:
                        taking.enter_context(device_lock(name))
                    held.push(taking.pop_all())
                break
            except DeviceBusy as busy:
                if time.monotonic() > deadline:
                    raise
                if not told:
                    print(f"waiting: {busy}", file=sys.stderr, flush=True)
                told = True
                time.sleep(1)
        end_orphans()
        yield


@dataclass(frozen=True)
class LiveEngine:
    """An engine that answers, and what a client must know of it."""

    server: Server
    model: str
    vocab_size: int
    pid: int
    session_id: int
    startup_s: float

    @property
    def base_url(self) -> str:
        """http://HOST:PORT."""
        return self.server.base_url

    def counted(self) -> tuple[int, int]:
        """Prompt and output tokens since the start, by the engine's own counters, once they stand still."""
        seen = self._counters()
        for _ in range(50):
            time.sleep(0.05)
            now = self._counters()
            if now == seen:
                break
            seen = now
        return seen

    def _counters(self) -> tuple[int, int]:
        page = self.server.metrics()

        def total(name: str) -> int:
            values = re.findall(rf"^vllm:{name}(?:_total)?(?:\{{.*\}})? (\S+)$", page, re.MULTILINE)
            return round(sum(map(float, values)))

        return total("prompt_tokens"), total("generation_tokens")


@contextlib.contextmanager
def live_engine(request: Request, scratch: Path, log: Path) -> Iterator[LiveEngine]:
    """Start the engine of `request` with an ordinary `vllm serve`, end it on leaving, whatever happened inside."""
    require_clean(request)
    (scratch / "probe").mkdir()
    port = free_port()
    argv = serve_argv(request, model_folder(request, scratch), port)
    env = engine_env(request, f"benchmark-{uuid.uuid4().hex[:12]}", scratch / "probe", scratch, os.getpid())
    segments = shared_memory_names()
    guard = Guard()
    try:
        process = SpawnLauncher().launch(LaunchRequest(argv, env, log, scratch))
        guard.watch(process.session_id, scratch)
        try:
            server = Server(port)
            startup_s = wait_ready(process, server, request.cfg.engine.startup_timeout_s)
            name = request.cfg.model.name
            yield LiveEngine(server, name, vocabulary(request), process.pid, process.session_id, startup_s)
        except StartFailed as error:
            lines = log.read_text(errors="replace").strip().splitlines()[-5:]
            raise BenchError(f"the engine did not start: {error}; the end of its log:\n" + "\n".join(lines)) from error
        finally:
            stop(process, request.cfg.engine.stop_timeout_s)
            remove_leaked_shared_memory(segments)
            guard.forget(process.session_id)
    finally:
        guard.close()


def model_folder(request: Request, scratch: Path) -> str:
    """What `vllm serve` is given as the model: a folder with the config.json of the dummy weights, or a checkpoint."""
    return request.source.argument or str(checkpoint.write_model_dir(request.source.config, scratch / "model"))


def vocabulary(request: Request) -> int:
    """Token ids that the model knows."""
    return checkpoint.vocabulary_size(request.source.config)


def plain_serve(request: Request, model: str, port: int) -> list[str]:
    """The words of `vllm serve` for this request as a user would type them: without the harness's memory probe."""
    words = list(serve_argv(request, model, port))
    at = words.index("--worker-extension-cls")
    return words[:at] + words[at + 2 :]


def require_clean(request: Request) -> None:
    """Wait until nothing is left on a GPU; raises `BenchError` where something stays."""
    gate = wait_clean(request.device_kind, request.cfg.device)
    if not gate.clean:
        raise BenchError(gate.sentence)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A short-named folder for sockets, models and results of one benchmark; removed on leaving."""
    with tempfile.TemporaryDirectory(prefix="vcal-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def others_busy(session_id: int | None = None, seconds: float = 1.0) -> float:
    """Share of the machine's cores that anything but this session's processes uses now: 0 on a quiet machine.

    An idle engine is left out by its session, since vLLM's workers spin for a while after their last step.
    """

    def ticks() -> tuple[int, int, float]:
        with open("/proc/stat") as stat:
            fields = [int(word) for word in stat.readline().split()[1:9]]
        engine_s = sum(cpu_s(pid) or 0.0 for pid in session_members(session_id)) if session_id else 0.0
        return sum(fields), fields[3] + fields[4], engine_s * os.sysconf("SC_CLK_TCK")

    total, idle, engine = ticks()
    time.sleep(seconds)
    total_now, idle_now, engine_now = ticks()
    return max(0.0, 1 - (idle_now - idle + engine_now - engine) / max(1, total_now - total))


def facts(request: Request) -> dict[str, Any]:
    """What a figure of this machine must be quoted with."""
    known = environment.collect(request.cfg.device)
    names = (
        "vllm_version", "device_kind", "device_name", "host_cpu", "host_cpu_count", "cpu_threads", "harness_commit",
    )  # fmt: skip
    return {name: known.get(name) for name in names}


def main(run: Callable[[], int]) -> int:
    """Run a benchmark so that SIGTERM cleans up as Ctrl-C does, and refusals are one sentence."""

    def interrupt(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, interrupt)
    try:
        return run()
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: everything that was started has been ended", file=sys.stderr)
        return 130
