"""Which tests need the machine to themselves: `make test` runs the others first, on all cores.

A real engine, a clock that is read to the millisecond, or a device lock does not go with a neighbour that computes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
ALONE = (
    "bench/colocate", "bench/load", "bench/router", "bench/telemetry", "bench/test_cuda_path.py",
    "bench/test_mitigate.py", "bench/test_soak.py", "bench/test_workload_run.py", "bench/test_workload_rows.py",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        place = item.path.relative_to(HERE).as_posix() if item.path.is_relative_to(HERE) else ""
        if place.startswith(ALONE) or item.get_closest_marker("engine"):
            item.add_marker("alone")
