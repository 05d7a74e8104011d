"""The warm parent: imports vLLM once, then forks an engine for each request line on its socket.

Started by `bench.engine.warm.WarmLauncher`. It must stay a process that is safe to fork: one thread, no CUDA
context. Each request is checked against that, and refused with the reason rather than forked unsafely.

Requests and answers are JSON lines. In: `{"op": "launch", "argv", "env", "log", "cwd"}`. Out: `{"event": "ready",
"import_s", ...}` once, then `{"event": "started", "pid"}` or `{"event": "refused", "reason"}` for each launch and
`{"event": "exited", "pid", "returncode"}` when a forked engine ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import multiprocessing
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from typing import Any

PR_SET_PDEATHSIG = 1
CUDA_ERROR_NOT_INITIALIZED = 3

# What an engine's three processes import on their way to serving. A name that this vLLM lacks is passed over:
# the forked engine then imports what it needs by itself, a little later.
COMMON_MODULES = (
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.engine.utils",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.gpu_worker",
    "vllm.model_executor.model_loader.dummy_loader",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.models.qwen2",
    "vllm.model_executor.models.qwen3",
    "vllm.model_executor.models.mistral",
    "uvicorn",
    "uvloop",
)
CPU_MODULES = ("vllm.v1.worker.cpu_worker", "vllm.v1.attention.backends.cpu_attn")


def preload(modules: tuple[str, ...]) -> dict[str, str]:
    """Import `modules`; returns those that failed, with the reason."""
    failed = {}
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # a module this vLLM lacks, or that needs a device
            failed[name] = f"{type(error).__name__}: {error}"[:200]
    return failed


def unsafe_to_fork() -> str | None:
    """Why a fork of this process would not be safe now, or None."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        return f"the warm parent has {threads} threads; a fork would copy locks held by the others"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "torch has initialised CUDA in the warm parent"
    # The driver may have been initialised past torch's knowledge. Ask it only where it is loaded already:
    # loading it would itself be a step towards a context.
    with open("/proc/self/maps") as maps:
        if "libcuda.so" not in maps.read():
            return None
    context = ctypes.c_void_p()
    with contextlib.suppress(OSError, AttributeError):
        code = ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(ctypes.byref(context))
        if code != CUDA_ERROR_NOT_INITIALIZED:
            return f"the CUDA driver is initialised in the warm parent (cuCtxGetCurrent answered {code})"
    return None


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def become_engine(request: dict[str, Any]) -> None:
    """In the forked child: turn into `vllm` with the request's arguments. Never returns."""
    code = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.chdir(request["cwd"])
        for key, value in request["env"].items():
            os.environ.pop(key, None) if value is None else os.environ.__setitem__(key, value)
        import tempfile

        tempfile.tempdir = None  # cached before TMPDIR was set for this engine

        # The CPU platform insists on `spawn` for its workers, and the CLI on `spawn` for the core: both would
        # import everything again, which is what this parent exists to save.
        ordinary = multiprocessing.get_context
        multiprocessing.get_context = lambda method=None: ordinary("fork")  # type: ignore[assignment]
        sys.argv = ["vllm", *request["argv"]]
        from vllm.entrypoints.cli.main import main as vllm_main

        vllm_main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else (0 if error.code is None else 1)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class WarmParent:
    """Serves launch requests on one connected socket until the other end closes it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""
        self._children: set[int] = set()

    def send(self, **event: Any) -> None:
        """One event to the harness."""
        self._connection.sendall(json.dumps(event).encode() + b"\n")

    def launch(self, request: dict[str, Any]) -> None:
        """Fork an engine, or refuse."""
        if reason := unsafe_to_fork():
            self.send(event="refused", reason=reason)
            return
        pid = os.fork()
        if pid == 0:
            self._connection.close()
            become_engine(request)
        self._children.add(pid)
        self.send(event="started", pid=pid)

    def reap(self) -> None:
        """Report engines that ended."""
        for pid in list(self._children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self._children.discard(pid)
                self.send(event="exited", pid=pid, returncode=os.waitstatus_to_exitcode(status))

    def serve(self) -> None:
        """Answer requests; ends the engines it forked when the harness hangs up."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        os.set_blocking(wake_read, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write)
        selector = selectors.DefaultSelector()
        selector.register(self._connection, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select(timeout=1.0):
                if key.fileobj == wake_read:
                    os.read(wake_read, 4096)
                    continue
                chunk = self._connection.recv(1 << 16)
                if not chunk:
                    self._end_children()
                    return
                *lines, self._buffer = (self._buffer + chunk).split(b"\n")
                for line in lines:
                    self.launch(json.loads(line))
            self.reap()

    def _end_children(self) -> None:
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)


def main() -> None:
    """Connect back to the harness's socket (a file descriptor number in argv), import, serve."""
    die_with_parent()
    connection = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(connection.fileno(), False)
    began = time.monotonic()
    kind = sys.argv[2]
    failed = preload(COMMON_MODULES + (CPU_MODULES if kind == "cpu" else ()))
    parent = WarmParent(connection)
    parent.send(event="ready", import_s=time.monotonic() - began, failed=failed, unsafe=unsafe_to_fork())
    parent.serve()


if __name__ == "__main__":
    main()
