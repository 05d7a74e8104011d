"""Why an engine did not start or did not go on: phase, cause, and one sentence for a person."""

from __future__ import annotations

import re
import signal as signals
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.engine.causes import Cause, recognise
from bench.engine.logs import clean_lines
from bench.engine.phases import WORKER_PHASES, phase_of
from bench.engine.readings import startup_phases
from bench.engine.tracebacks import LoggedException, exceptions, root_exception

PHASES = (
    "config", "import", "init_device", "load", "profile", "kv_allocation", "graph_capture", "api", "runtime",
    "unknown",
)  # fmt: skip
CAUSES = (
    "out_of_memory", "insufficient_free_memory", "no_kv_memory", "max_model_len_exceeds_kv", "missing_kernel",
    "unsupported_quantization", "bad_argument", "bad_checkpoint", "port_in_use", "timeout", "crash",
    "engine_error", "unknown",
)  # fmt: skip
_SENTENCE_CHARACTERS = 400
_DETAIL_CHARACTERS = 4000
_DETAIL_FRAMES = 12

_ARGPARSE = re.compile(r"^(?:\S+\.py|vllm[\w ]*): error: (.+)$")
_WORKER_DIED = re.compile(r"(?:Worker proc|Engine core proc) \S+ died unexpectedly")
_WORKER_KILLED = re.compile(r"died unexpectedly \(exit code: -(\d+)\)")
_CORE_KILLED = re.compile(r"Failed core proc\(s\): \{.*?'[\w-]+': -(\d+)")
_FATAL = re.compile(r"Fatal Python error: (.+)|^(Segmentation fault|Illegal instruction|Bus error|Aborted)\b")
_IMPORT_ERRORS = ("ImportError", "ModuleNotFoundError")


@dataclass(frozen=True)
class Failure:
    """`phase` is one of PHASES, `cause` of CAUSES; `sentence` is the root cause in words.

    `detail` are the lines of the log that say so. `missing_kernel` names the kernel or operator for that
    cause; `shortfall_bytes` is the memory that was missing where the message says how much (rounded as it
    rounds).
    """

    phase: str
    cause: str
    sentence: str
    detail: str = ""
    missing_kernel: str | None = None
    shortfall_bytes: int | None = None


def diagnose(
    log_text: str | bytes = "",
    probe_reports: Sequence[Mapping[str, Any]] = (),
    exit_code: int | None = None,
    signal: int | None = None,
    timed_out: bool = False,
    ready: bool = False,
    timeout_s: float | None = None,
    oom_killed: bool | None = None,
) -> Failure:
    """Find the root cause from everything that is left of an engine. Never raises for odd or empty input.

    Args:
        log_text: the engine's combined output, whole or cut.
        probe_reports: the workers' reports as read from their files.
        exit_code, signal: how the launched process ended; both None while it runs.
        timed_out: the harness gave up waiting after `timeout_s`.
        ready: the engine had been ready, so this is about running.
        oom_killed: whether the cgroup's `oom_kill` counter rose (None: not known).
    """
    found = exceptions(log_text)
    root = root_exception(found) or _reported_error(probe_reports)
    text = f"{root.type}: {root.message}" if root else ""
    known = _recognise_chain(root) if root else None
    phase = "runtime" if ready else _phase(log_text, probe_reports, root)
    killed = signal or _killed_by(log_text)

    if oom_killed and killed in (None, int(signals.SIGKILL)) and (known is None or killed):
        sentence = f"the host's out-of-memory killer ended the engine{_while(phase)}"
        return Failure(phase, "out_of_memory", sentence, _detail(log_text, root))
    if known is not None and root is not None:
        return _from_known(known, root, _phase_of_cause(known, root, phase), log_text)
    usage = _usage_error(log_text)
    if usage is not None:
        return Failure("config", "bad_argument", _one_line(usage), usage)
    if root is not None:
        if root.type.rsplit(".", 1)[-1] in _IMPORT_ERRORS and phase in ("config", "unknown", "import"):
            phase = "import"
        return Failure(phase, "engine_error", _one_line(text), _detail(log_text, root))
    vanished = any(exception.second_hand for exception in found)
    crash = _crash(log_text, signal, exit_code, phase, vanished, oom_killed)
    if crash is not None:
        return Failure(phase, "crash", crash, _detail(log_text, None))
    if timed_out:
        after = f"within {timeout_s:g} s" if timeout_s is not None else "in time"
        sentence = f"the engine was not ready {after}{_stuck(phase)}"
        return Failure(phase, "timeout", sentence, _detail(log_text, None))
    if exit_code is not None:
        sentence = f"the engine ended with exit code {exit_code} and named no error{_while(phase)}"
        cause = "unknown" if exit_code == 0 else "engine_error"
        return Failure(phase, cause, sentence, _detail(log_text, None))
    return Failure(phase, "unknown", "the engine named no error", _detail(log_text, None))


# -- cause -----------------------------------------------------------------------------------------------


def _recognise_chain(root: LoggedException) -> Cause | None:
    """The cause of an exception, or of the one it was raised from. An earlier one may know the amount of
    memory.
    """
    known = None
    for exception in (root, *reversed(root.before)):
        cause = recognise(f"{exception.type}: {exception.message}")
        if known is None or (cause and cause.cause == known.cause and known.shortfall_bytes is None):
            known = cause or known
    return known


def _from_known(known: Cause, root: LoggedException, phase: str, log_text: str | bytes) -> Failure:
    said = root.message.split("\n", 1)[0] if root.message else root.type
    sentence = _one_line(known.sentence or said or root.line)
    if known.cause == "out_of_memory":
        sentence += _while(phase)
    detail = _detail(log_text, root)
    return Failure(phase, known.cause, sentence, detail, known.missing_kernel, known.shortfall_bytes)


def _reported_error(reports: Sequence[Mapping[str, Any]]) -> LoggedException | None:
    """The first exception that a worker's probe saw: the log may be cut where it stood."""
    for report in reports:
        for phase in startup_phases(report):
            error = phase.get("error")
            if error:
                place = [f"  {error['at']}"] if error.get("at") else []
                return LoggedException(str(error.get("type")), str(error.get("message")), "Worker", place)
    return None


def _usage_error(log_text: str | bytes) -> str | None:
    for line in clean_lines(log_text):
        found = _ARGPARSE.match(line.text)
        if found:
            return found[1]
    return None


def _killed_by(log_text: str | bytes) -> int | None:
    """The signal that ended a worker or the engine core, where its parent says so."""
    for line in clean_lines(log_text):
        for pattern in (_WORKER_KILLED, _CORE_KILLED):
            found = pattern.search(line.text)
            if found:
                return int(found[1])
    return None


def _crash(
    log_text: str | bytes,
    signal: int | None,
    exit_code: int | None,
    phase: str,
    vanished: bool,
    oom_killed: bool | None,
) -> str | None:
    """A sentence about a process that ended without a word, or None.

    `vanished`: other processes say that something failed, and nothing says what.
    """
    lines = [line.text for line in clean_lines(log_text)]
    fatal = next((found for text in lines if (found := _FATAL.search(text))), None)
    died = next((found for text in lines if (found := _WORKER_DIED.search(text))), None)
    by_shell = exit_code - 128 if exit_code is not None and exit_code > 128 else None
    by = signal or _killed_by(log_text) or by_shell
    if died is None and fatal is None and by is None and not vanished:
        return None
    who = "a process of the engine" if died is not None or signal is None else "the engine"
    how = f"was killed by {_signal_name(by)}" if by else "ended without naming an error"
    sentence = f"{who} {how}{_while(phase)}"
    if fatal is not None:
        sentence += f": {fatal[1] or fatal[2]}"
    if fatal is None and by == signals.SIGKILL and oom_killed is not False:
        sentence += " (as by the host's out-of-memory killer)"
    elif fatal is None and by is None:
        # Nobody says how it ended: what is known is only that it left no traceback.
        killer = "" if oom_killed is False else ", as by the host's out-of-memory killer,"
        sentence += f" (killed from outside{killer} or crashed in native code)"
    return sentence


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"


# -- phase -----------------------------------------------------------------------------------------------

# The last of these lines in a log says what had been reached; used where there is no probe.
_CUES = tuple(
    (re.compile(pattern), phase)
    for pattern, phase in (
        (r"non-default args: ", "config"),
        (r"Initializing a V1 LLM engine", "init_device"),
        (r"Starting to load model|Loading model from scratch", "load"),
        (r"Model loading took|Warming up model for the compilation", "profile"),
        (r"Available KV cache memory|GiB for KV cache on node|memory for KV Cache as", "kv_allocation"),
        (r"KV cache size: [\d,]+ tokens", "graph_capture"),
        (r"init engine \(profile", "api"),
    )
)


def _phase(log_text: str | bytes, reports: Sequence[Mapping[str, Any]], root: LoggedException | None) -> str:
    """Where the start was: from the probe if a worker lived long enough, else from the log."""
    reached = [phase for phase in map(_reported_phase, reports) if phase]
    if reached:
        # With several workers the one that is least far holds up the others.
        return min(reached, key=PHASES.index)
    phase = "unknown"
    for line in clean_lines(log_text):
        for pattern, name in _CUES:
            further = phase == "unknown" or PHASES.index(name) > PHASES.index(phase)
            if further and pattern.search(line.text):
                phase = name
    if phase == "unknown" and root is not None:
        return "import" if root.type.rsplit(".", 1)[-1] in _IMPORT_ERRORS else "config"
    return phase


def _reported_phase(report: Mapping[str, Any]) -> str | None:
    """The phase a worker failed in, or is in, or would have entered next."""
    phases = startup_phases(report)
    failed = next((p for p in phases if p.get("error")), None)
    unfinished = [p for p in phases if p.get("end_unix_s") is None]
    current = failed or (unfinished[-1] if unfinished else None)
    if current is not None:
        return phase_of(current)
    finished = [phase["name"] for phase in phases if phase["name"] in WORKER_PHASES]
    if not finished:
        return "init_device"
    order = list(WORKER_PHASES)
    position = max(order.index(name) for name in finished) + 1
    return WORKER_PHASES[order[position]] if position < len(order) else "api"


def _phase_of_cause(known: Cause, root: LoggedException, phase: str) -> str:
    """Some messages say by themselves where they belong."""
    if phase == "runtime":
        return phase
    about_pool = known.cause in ("no_kv_memory", "max_model_len_exceeds_kv")
    if about_pool or "on kv cache allocation" in root.message:
        return "kv_allocation"
    if known.cause == "port_in_use":
        return "api"
    if known.cause == "bad_argument" and phase == "unknown":
        return "config"
    return phase


def _while(phase: str) -> str:
    doing = {
        "config": "reading its configuration", "import": "importing", "init_device": "setting up the device",
        "load": "loading weights", "profile": "profiling memory", "kv_allocation": "allocating the KV cache",
        "graph_capture": "compiling, warming up and capturing graphs", "api": "starting the API server",
        "runtime": "serving requests",
    }  # fmt: skip
    return f" while {doing[phase]}" if phase in doing else ""


def _stuck(phase: str) -> str:
    return f"; it was still{_while(phase).removeprefix(' while')}" if _while(phase) else ""


# -- words -----------------------------------------------------------------------------------------------


def _one_line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _SENTENCE_CHARACTERS else words[: _SENTENCE_CHARACTERS - 1] + "…"


def _detail(log_text: str | bytes, root: LoggedException | None) -> str:
    """The innermost frames and the whole message, or the log's last lines where there was no exception."""
    if root is not None:
        frames = [line for line in root.frames if line.strip() and not re.fullmatch(r"[\s^~]+", line)]
        lines = [*frames[-_DETAIL_FRAMES:], f"{root.type}: {root.message}"]
    else:
        shown = (line.text for line in clean_lines(log_text) if line.level not in ("DEBUG", "INFO"))
        lines = [text for text in shown if text.strip() and text[0] not in " \t"][-15:]
    return "\n".join(lines)[-_DETAIL_CHARACTERS:]
