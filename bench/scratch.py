"""A folder of one engine start's own."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.errors import BenchError


@contextlib.contextmanager
def scratch_dir(configured: str | None) -> Iterator[Path]:
    """A folder for one engine's model, sockets and temporary files; short, because socket paths may have 107 bytes."""
    try:
        if configured:
            Path(configured).mkdir(parents=True, exist_ok=True)
        # Absolute: the engine runs in this folder, and a relative name would mean another one there.
        folder = Path(tempfile.mkdtemp(prefix="vcal-", dir=configured)).absolute()
    except OSError as error:
        raise BenchError(f"paths.scratch={configured or tempfile.gettempdir()}: cannot be written ({error.strerror}); "
                         "name a folder that can, as in paths.scratch=/tmp") from error  # fmt: skip
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
