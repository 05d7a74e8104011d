"""The worker's report and its file, rewritten whole and renamed into place after every change."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from bench.engine.probe import snapshot

#: Directory the reports go to. Without it the probe still answers over RPC.
DIRECTORY_VARIABLE = "CALIBRATE_PROBE_DIR"
SCHEMA_VERSION = 1
_MAX_PROBLEMS = 100
_MESSAGE_CHARACTERS = 2000


class Report:
    """Everything one worker process has told so far; `data` is what the file and the RPC answer hold.

    `data["phases"]` is in order of beginning. A phase without `end_unix_s` is one the process never came out
    of: it is still running, or the process was killed in it.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.data: dict[str, Any] = {}
        self.engine_profiles = False  # whether vLLM's own memory profiling is under way
        self._open: list[dict[str, Any]] = []
        self.clear()

    def clear(self) -> None:
        """Start an empty report for this process (also called in a freshly forked child)."""
        self.problems = []
        self._open = []
        now = time.time()
        self.data = {
            "schema_version": SCHEMA_VERSION,
            "pid": os.getpid(),
            "rank": None,
            "created_unix_s": now,
            "updated_unix_s": now,
            "start": snapshot.take(self.problems),
            "phases": [],
            "weights": {"loads": []},
            "runtime": {"windows": []},
            "problems": self.problems,
        }

    def problem(self, what: str) -> None:
        """Note that a reading failed; a bounded list, the first ones are the telling ones."""
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(what[:_MESSAGE_CHARACTERS])

    def active(self) -> list[str]:
        """Names of the phases that are open now, outermost first."""
        return [phase["name"] for phase in self._open]

    def begin(self, name: str, where: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Open a phase and write the file, so that a process killed inside it leaves its name."""
        phase: dict[str, Any] = {
            "name": name,
            "where": where,
            "inside": self.active(),
            "arguments": arguments,
            "begin_unix_s": time.time(),
            "end_unix_s": None,
            "before": snapshot.take(self.problems, with_smaps=False),
            "after": None,
            "result": None,
            "error": None,
        }
        self.data["phases"].append(phase)
        self._open.append(phase)
        self.write()
        return phase

    def end(self, phase: dict[str, Any], result: Any = None, error: BaseException | None = None) -> None:
        """Close a phase with what it returned or raised, and the memory as it left it. Does not write."""
        phase["end_unix_s"] = time.time()
        phase["result"] = plain(result)
        if error is not None:
            phase["error"] = describe_error(error)
        phase["after"] = snapshot.take(self.problems)
        if phase in self._open:
            self._open.remove(phase)

    def write(self) -> None:
        """Write `worker-<pid>.json` atomically; a full disk or a missing directory is a problem noted, not an
        error.
        """
        self.data["updated_unix_s"] = time.time()
        directory = os.environ.get(DIRECTORY_VARIABLE)
        if not directory:
            return
        path = os.path.join(directory, f"worker-{os.getpid()}.json")
        temporary = f"{path}.tmp"
        try:
            text = json.dumps(self.data, default=repr)
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        except Exception as error:
            self.problem(f"the report could not be written to {path}: {error!r}")


def plain(value: Any) -> Any:
    """A return value as JSON holds it: numbers, strings and shallow containers stay, other objects become
    None.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)) and hasattr(value, "_asdict"):  # such as CompilationTimes
        return {key: plain(item) for key, item in value._asdict().items()}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in list(value.items())[:50]}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value[:50]]
    return None


def describe_error(error: BaseException) -> dict[str, Any]:
    """Type, message (first 2000 characters) and the innermost frame of an exception."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return {"type": name, "message": str(error)[:_MESSAGE_CHARACTERS], "at": _innermost_frame(error)}


def _innermost_frame(error: BaseException) -> str | None:
    frame = error.__traceback__
    if frame is None:
        return None
    while frame.tb_next is not None:
        frame = frame.tb_next
    code = frame.tb_frame.f_code
    path = code.co_filename
    # Relative to the import path: what is left names the package, not the machine.
    for root in sorted(sys.path, key=len, reverse=True):
        if root and path.startswith(root.rstrip("/") + "/"):
            path = path[len(root.rstrip("/")) + 1 :]
            break
    return f"{path}:{frame.tb_lineno} in {code.co_name}"
