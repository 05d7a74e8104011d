"""vLLM worker extension: `--worker-extension-cls bench.engine.probe.worker.MemoryProbe`.

vLLM imports this module in every worker process before the worker is built, so importing it is enough to see
all phases from `init_device` on. Two ways out: a JSON file per worker in `$CALIBRATE_PROBE_DIR`, rewritten at
the begin and end of every phase (it survives failed starts and killed processes), and the `calibrate_*`
methods over `POST /collective_rpc` (needs `VLLM_SERVER_DEV_MODE=1`).

The one rule: nothing here may break or slow the engine. Hooks act at start-up and on demand, never per step;
whatever fails in a hook becomes a sentence in the report's `problems`.

The wrapped names exist in vLLM 0.25.1, 0.26.0, 0.32.0 and 0.33.0, in both model runners (read in their
sources).
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from bench.engine.probe import describe, snapshot, tensors
from bench.engine.probe.report import Report

REPORT = Report()

_WORKER_PHASES = (
    "__init__",
    "init_device",
    "load_model",
    "determine_available_memory",
    "initialize_from_config",
    "compile_or_warm_up_model",
)
_RUNNER_PHASES = (
    "load_model",
    "profile_run",
    "profile_cudagraph_memory",
    "initialize_kv_cache",
    "capture_model",
    "warming_up_model",
)
_MARK = "_calibrate_wrapped"


def _guarded(what: str, action: Callable[[], Any]) -> Any:
    """Run one piece of the probe; its failure is a sentence in the report and None."""
    try:
        return action()
    except Exception as error:
        with contextlib.suppress(Exception):
            REPORT.problem(f"{what}: {error!r}")
        return None


def _wrap_phase(owner: type, method: str, phase: str, after: Callable[[Any], None] | None = None) -> None:
    """Replace `owner.method` by one that records `phase`; `after(self)` runs once it has returned."""
    original = owner.__dict__.get(method)
    if not callable(original) or getattr(original, _MARK, False):
        return

    @functools.wraps(original)
    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        # A subclass's method calling its parent's is one phase, not two.
        if phase in (_guarded("active", REPORT.active) or ()):
            return original(self, *args, **kwargs)
        where = f"{owner.__module__}.{owner.__qualname__}.{method}"
        plain = {key: value for key, value in kwargs.items() if isinstance(value, (bool, int, float, str))}
        entry = _guarded(f"begin of {phase}", lambda: REPORT.begin(phase, where, plain))
        if phase == "runner.profile_run" and not REPORT.engine_profiles:
            # With a fixed KV pool vLLM runs the profiling forward without measuring it: the peak is then
            # ours to take. Its own profiling resets the same counter at the same place.
            _guarded("resetting torch's peak", lambda: snapshot.reset_torch_peaks(REPORT.problems))
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            failure = error  # `error` is unbound when this block ends
            _guarded(f"end of {phase}", lambda: _finish(entry, None, failure))
            del failure
            raise
        _guarded(f"end of {phase}", lambda: _finish(entry, result, None))
        if after is not None:
            _guarded(f"after {phase}", lambda: after(self))
        _guarded(f"writing after {phase}", REPORT.write)
        return result

    setattr(recorded, _MARK, True)
    setattr(owner, method, recorded)


def _finish(entry: dict[str, Any] | None, result: Any, error: BaseException | None) -> None:
    if entry is None:
        return
    REPORT.end(entry, result, error)
    if error is not None:
        REPORT.write()


def _after_worker_phase(phase: str, worker: Any) -> None:
    """Read what this phase has just fixed. Each part is guarded: half a report is better than none."""
    data = REPORT.data

    def put(key: str, read: Callable[[], Any]) -> None:
        value = _guarded(key, read)
        if value is not None:
            data[key] = value

    data["rank"] = getattr(worker, "rank", None)
    data["local_rank"] = getattr(worker, "local_rank", None)
    runner = getattr(worker, "model_runner", None)
    if phase == "init_device":
        put("versions", describe.versions)
        put("device", lambda: describe.device(worker))
        _guarded("hooking the model runner", lambda: _wrap_runner(runner))
    put("runner", lambda: describe.runner(worker))
    put("config", lambda: describe.config(getattr(worker, "vllm_config", None)))
    put("budget", lambda: describe.budget(worker))
    if phase in ("load_model", "initialize_from_config", "compile_or_warm_up_model"):
        put("kernels", lambda: describe.kernels(runner))
    if phase in ("initialize_from_config", "compile_or_warm_up_model"):
        put("kv_cache", lambda: tensors.kv_cache(runner))


def _wrap_runner(runner: Any) -> None:
    """Hook the model runner that was really built, on every class of its line that vLLM defines."""
    for owner in type(runner).__mro__:
        if owner.__module__.startswith("vllm."):
            for method in _RUNNER_PHASES:
                _wrap_phase(owner, method, f"runner.{method}")


def _wrap_workers(base: type) -> None:
    pending = [base]
    while pending:
        owner = pending.pop()
        pending.extend(owner.__subclasses__())
        for method in _WORKER_PHASES:
            name = "worker_init" if method == "__init__" else method
            _wrap_phase(owner, method, name, functools.partial(_after_worker_phase, name))


def _wrap_memory_profiling(gpu_worker: Any) -> None:
    """Keep vLLM's own profiling result: it corrects fields after the context ends, so it is read again at
    each phase.
    """
    original = gpu_worker.memory_profiling
    if getattr(original, _MARK, False):
        return

    @contextlib.contextmanager
    def recorded(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with original(*args, **kwargs) as result:
            _guarded("memory_profiling", lambda: describe.remember_profile(result))
            REPORT.engine_profiles = True
            try:
                yield result
            finally:
                REPORT.engine_profiles = False

    setattr(recorded, _MARK, True)
    gpu_worker.memory_profiling = recorded


def _wrap_weight_processing() -> None:
    """See the weights before and after kernels repack them, wherever a loader holds the function's name."""
    name = "process_weights_after_loading"
    original = getattr(sys.modules["vllm.model_executor.model_loader.utils"], name)
    if getattr(original, _MARK, False):
        return

    @functools.wraps(original)
    def recorded(model: Any, *args: Any, **kwargs: Any) -> Any:
        load: dict[str, Any] = {"model_class": type(model).__qualname__}
        before = _guarded("weights before repack", lambda: tensors.tensor_bytes(model))
        load["before_repack"] = before
        load["before"] = _guarded("reading before repack", lambda: snapshot.take(REPORT.problems))
        _guarded("weights", lambda: REPORT.data["weights"]["loads"].append(load))
        _guarded("writing before repack", REPORT.write)
        result = original(model, *args, **kwargs)
        load["after_repack"] = _guarded("weights after repack", lambda: tensors.tensor_bytes(model))
        load["after"] = _guarded("reading after repack", lambda: snapshot.take(REPORT.problems))
        _guarded("writing after repack", REPORT.write)
        return result

    setattr(recorded, _MARK, True)
    for module_name, module in list(sys.modules.items()):
        in_loader = module_name.startswith("vllm.model_executor.model_loader")
        if in_loader and getattr(module, name, None) is original:
            setattr(module, name, recorded)


def _install() -> None:
    from vllm.v1.worker import gpu_worker

    _guarded("hooking the worker", lambda: _wrap_workers(gpu_worker.Worker))
    _guarded("hooking memory_profiling", lambda: _wrap_memory_profiling(gpu_worker))
    _guarded("hooking the weight loader", _wrap_weight_processing)


class MemoryProbe:
    """Methods mixed into vLLM's worker. Results are plain dicts; none of them raises."""

    def calibrate_report(self) -> dict[str, Any]:
        """The whole report with a fresh reading in `runtime.current`; closes nothing. Call while the engine
        is idle.
        """

        def read() -> dict[str, Any]:
            REPORT.data["runtime"]["current"] = snapshot.take(REPORT.problems)
            _after_worker_phase("compile_or_warm_up_model", self)
            REPORT.write()
            return REPORT.data

        return _guarded("calibrate_report", read) or {"problems": list(REPORT.problems)}

    def calibrate_reset_peaks(self, label: str = "") -> dict[str, Any]:
        """End the current window of peaks and begin another, named `label`.

        Returns `{"closed": window or None, "opened": window}`; a window is `{"label", "begin": reading,
        "end": reading or None}`. The `end` reading's peaks (`allocated_peak_bytes`, `rss_peak_bytes`) belong
        to that window alone.
        """

        def reset() -> dict[str, Any]:
            windows = REPORT.data["runtime"]["windows"]
            closed = windows[-1] if windows else None
            if closed is not None:
                closed["end"] = snapshot.take(REPORT.problems)
            snapshot.reset_peaks(REPORT.problems)
            opened = {"label": str(label), "begin": snapshot.take(REPORT.problems), "end": None}
            windows.append(opened)
            REPORT.write()
            return {"closed": closed, "opened": opened, "problems": list(REPORT.problems)}

        return _guarded("calibrate_reset_peaks", reset) or {"problems": list(REPORT.problems)}


_guarded("installing the probe", _install)
_guarded("fork hook", lambda: os.register_at_fork(after_in_child=lambda: _guarded("clearing", REPORT.clear)))
_guarded("first write", REPORT.write)
