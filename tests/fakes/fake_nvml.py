"""Build and steer the stand-in for libnvidia-ml.so.1 (source and state-file format: nvml/fake_nvml.c).

The real Python binding loads it when its folder is on LD_LIBRARY_PATH of a *new* process (the loader reads
the variable once, at start), so use it with subprocesses:

    folder = fake_nvml.build(tmp_path)
    state = fake_nvml.State(tmp_path / "nvml.txt")
    state.gpu(0, used=10 * 2**30, compute={4242: 9 * 2**30})
    subprocess.run([...], env=os.environ | state.env(folder))
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml") / "fake_nvml.c"

GPU_DEFAULTS = {
    "name": "NVIDIA H100 80GB HBM3", "total": 80 * 2**30, "reserved": 600 * 2**20, "used": 0,
    "power_mw": 120_000, "limit_mw": 700_000, "energy_mj": 1_000_000, "sm_mhz": 1980, "mem_mhz": 2619,
    "gpu_util": 0, "mem_util": 0, "temp": 35, "throttle": 1,
}  # fmt: skip


def compiler() -> str | None:
    """Path of a C compiler, or None: then tests that need the library skip."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build(folder: Path) -> Path:
    """Compile the library into `folder` and return the folder to put on LD_LIBRARY_PATH."""
    cc = compiler()
    if cc is None:
        raise RuntimeError("no C compiler (cc, gcc or clang) on PATH to build the fake libnvidia-ml.so.1")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "libnvidia-ml.so.1"
    subprocess.run([cc, "-shared", "-fPIC", "-O1", "-o", str(target), str(SOURCE)], check=True)
    return folder


def _processes(value: Mapping[int, int | None] | str) -> str:
    if isinstance(value, str):
        return value
    return ",".join(f"{pid}:{'na' if used is None else used}" for pid, used in value.items())


class State:
    """The state file. Every change is written whole and renamed into place, so a reader sees old or new."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, str] = {}
        self.set(count=0)

    def set(self, **values: object) -> State:
        """Set top-level keys: count, init_error, driver, cuda, migs."""
        self._lines |= {key: str(value) for key, value in values.items()}
        return self._write()

    def gpu(self, index: int, **fields: object) -> State:
        """Set fields of GPU `index`, adding it (and those below it) when new.

        `compute` and `graphics` take {pid: bytes, or None for "not available"}; `err={"power_mw": 3}` and
        `sleep_ms={"memory_v2": 50}` take a mapping from call name to NVML code or milliseconds.
        """
        for new in range(int(self._lines["count"]), index + 1):
            self._block(f"gpu.{new}", {"uuid": f"GPU-{new:08x}-0000-4000-8000-000000000000", **GPU_DEFAULTS})
            self._lines["count"] = str(new + 1)
        return self._block(f"gpu.{index}", fields)._write()

    def mig(self, index: int, parent: int, **fields: object) -> State:
        """Set fields of MIG instance `index`, a slice of GPU `parent`, which is put into MIG mode."""
        self.gpu(parent, mig_mode=1)
        self._lines["migs"] = str(max(int(self._lines.get("migs", "0")), index + 1))
        defaults = {
            "uuid": f"MIG-{index:08x}-0000-5000-8000-000000000000", "name": "NVIDIA H100 MIG 1g.10gb",
            "parent": parent, "total": 10 * 2**30, "reserved": 0, "used": 0,
        }  # fmt: skip
        if f"mig.{index}.uuid" in self._lines:
            defaults = {}
        return self._block(f"mig.{index}", defaults | fields)._write()

    def env(self, folder: Path) -> dict[str, str]:
        """Environment for a process that is to load the library."""
        paths = [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]
        return {"LD_LIBRARY_PATH": ":".join(filter(None, paths)), "FAKE_NVML_STATE": str(self.path)}

    def _block(self, prefix: str, fields: Mapping[str, object]) -> State:
        for key, value in fields.items():
            if key in ("compute", "graphics"):
                self._lines[f"{prefix}.{key}"] = _processes(value)  # type: ignore[arg-type]
            elif isinstance(value, Mapping):
                self._lines |= {f"{prefix}.{key}.{call}": str(code) for call, code in value.items()}
            else:
                self._lines[f"{prefix}.{key}"] = str(value)
        return self

    def _write(self) -> State:
        temporary = self.path.with_name(self.path.name + ".new")
        temporary.write_text("".join(f"{key} {value}\n" for key, value in self._lines.items()))
        temporary.replace(self.path)
        return self
