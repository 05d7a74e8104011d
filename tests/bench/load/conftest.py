"""A short way to run a load against a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.load.closed_loop import run_closed_loop
from bench.load.result import LoadResult
from bench.load.spec import LoadSpec

VOCAB_SIZE = 2048


@pytest.fixture
def run_load() -> Callable[..., LoadResult]:
    """``run_load(base_url, on_progress=..., should_abort=..., **spec fields)``; small defaults."""

    def run(base_url: str, *, on_progress: Any = None, should_abort: Any = None, **fields: Any) -> LoadResult:
        sizes = {"concurrency": 2, "num_requests": 4, "input_tokens": 8, "output_tokens": 5}
        spec = LoadSpec(**{**sizes, **fields})
        return run_closed_loop(
            base_url, "sim", spec, VOCAB_SIZE, on_progress=on_progress, should_abort=should_abort
        )

    return run
