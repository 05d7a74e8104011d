"""A short way to run a load against a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.load.result import LoadResult
from bench.load.run import run_load as run_one_load
from bench.load.spec import LoadSpec

VOCAB_SIZE = 2048


@pytest.fixture
def run_load() -> Callable[..., LoadResult]:
    """``run_load(base_url, on_progress=..., should_abort=..., **spec fields)``; small defaults."""

    def run(base_url: str, *, on_progress: Any = None, should_abort: Any = None, **fields: Any) -> LoadResult:
        sizes: dict[str, Any] = {"input_tokens": 8, "output_tokens": 5}
        if "duration_s" not in fields and "trace_file" not in fields:
            sizes["num_requests"] = 4
        if fields.get("pattern", "closed_loop") == "closed_loop":
            sizes["concurrency"] = 2
        spec = LoadSpec(**{**sizes, **fields})
        return run_one_load(
            base_url, "sim", spec, VOCAB_SIZE, on_progress=on_progress, should_abort=should_abort
        )

    return run
