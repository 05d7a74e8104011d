"""The virtual environment of one checkout, and the stamp that says what it holds."""

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from bench.setup import SetupError
from bench.setup.machine import Engine

RECIPE = 1  # raise it when a change in bench/setup makes environments set up before it wrong
LOCK, LOG, STAMP = "setup.lock", "setup.log", "setup.json"


def requirement_files(kind: str, extras: "set[str]", folder: Path) -> "dict[str, list[Path]]":
    """Layer name to its pinned files: `engine` is everything a measurement needs, each extra is one more."""
    layers = {"engine": [folder / "base.txt", folder / f"{kind}.txt"]}
    layers.update({extra: [folder / f"{extra}.txt"] for extra in sorted(extras)})
    return layers


def pins(path: Path) -> "list[str]":
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def layer_hash(files: "list[Path]") -> str:
    """Changes with a pin, not with a comment."""
    text = json.dumps([RECIPE, [[path.name, pins(path)] for path in files]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def python_tag() -> str:
    return "{}.{}".format(*sys.version_info[:2])


class Environment:
    """The virtual environment of one checkout and the stamp that says what it holds."""

    def __init__(self, root: Path, engine: Engine, extras: "set[str]") -> None:
        self.root, self.venv, self.engine = root, root / ".venv", engine
        self.python = self.venv / "bin" / "python"
        self.stamp = self._read_stamp()
        folder = root / "bench" / "requirements"
        # Extras installed earlier come back when the environment is made again.
        earlier = {layer for layer in self.stamp.get("layers", {}) if (folder / f"{layer}.txt").exists()}
        self.files = requirement_files(engine.kind, extras | earlier, folder)
        self.hashes = {layer: layer_hash(files) for layer, files in self.files.items()}

    def _read_stamp(self) -> "dict[str, Any]":
        try:
            stamp = json.loads((self.venv / STAMP).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stamp if isinstance(stamp, dict) and isinstance(stamp.get("layers"), dict) else {}

    def write_stamp(self) -> None:
        """Last of all and in one step: an environment without it is unfinished."""
        stamp = {
            "venv": str(self.venv),
            "engine": self.engine.kind,
            "python": python_tag(),
            "layers": self.hashes,
        }
        partial = self.venv / (STAMP + ".partial")
        partial.write_text(json.dumps(stamp), encoding="utf-8")
        partial.replace(self.venv / STAMP)

    def why_rebuild(self) -> str:
        """Why the environment must be made from scratch; empty when it need not be."""
        if not self.venv.exists() or {entry.name for entry in self.venv.iterdir()} <= {LOCK}:
            return "there is none yet"
        if not (self.venv / LOCK).exists():
            raise SetupError(
                f"{self.venv} exists and was not made by this set-up: move it away, or let "
                "`make setup ARGS=--recreate` replace it."
            )
        if not self.stamp:
            return "an earlier set-up did not finish"
        if self.stamp.get("venv") != str(self.venv):
            return f"it was made for {self.stamp.get('venv')}"
        if not self.python.exists():
            return "the Python it was made with is gone"
        if self.stamp.get("python") != python_tag():
            return f"it was made with Python {self.stamp.get('python')}, now it is {python_tag()}"
        if self.stamp.get("engine") != self.engine.kind:
            if self.engine.kind == "cpu" and not self.engine.asked:
                raise SetupError(
                    f"{self.venv} was set up for cuda, but no GPU is usable now ({self.engine.reason}): "
                    "make it visible again, or let `make setup CALIBRATE_ENGINE=cpu` replace it."
                )
            return f"it was made for {self.stamp.get('engine')}"
        changed = [layer for layer, known in self.stamp["layers"].items() if known != self.hashes.get(layer)]
        return "pinned requirements changed ({})".format(", ".join(changed)) if changed else ""

    def missing(self) -> "list[str]":
        return [layer for layer in self.hashes if layer not in self.stamp.get("layers", {})]

    def users(self) -> "list[int]":
        """Processes running on this environment's Python, this script's own aside (Linux; elsewhere none)."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                program = os.path.normpath(os.path.join(os.readlink(str(entry / "cwd")), words[0]))
                own = any("bootstrap.py" in word for word in words)
                if os.path.dirname(program) == str(self.venv / "bin") and not own:
                    found.append(int(entry.name))
        return found
