from __future__ import annotations

import pytest

from bench.telemetry.gpu_processes import NOT_REPORTED, PID_NAMESPACE, process_memory
from bench.telemetry.nvml import ProcessMemory

OURS = {100, 101}


class Listed:
    """The one call that `process_memory` makes of a device."""

    def __init__(self, listed):
        self._listed = listed

    def processes(self):
        return None if self._listed is None else [ProcessMemory(*item) for item in self._listed]


@pytest.mark.parametrize(
    ("listed", "used_bytes", "reason", "foreign_pids", "foreign_bytes"),
    [
        ([(100, 5), (101, 7)], 12, None, [], 0),
        ([(100, 5), (9, 3)], 5, None, [9], 3),
        ([(8, 2), (9, 3)], None, PID_NAMESPACE, [8, 9], 5),
        ([(9, None)], None, PID_NAMESPACE, [9], None),
        ([(100, 5), (101, None), (9, None)], None, NOT_REPORTED, [9], None),
        ([(100, 5), (8, 2), (9, None)], 5, None, [8, 9], 2),
        ([], None, NOT_REPORTED, [], 0),
        (None, None, NOT_REPORTED, [], 0),
    ],
)
def test_ours_foreign_and_hidden_are_told_apart(listed, used_bytes, reason, foreign_pids, foreign_bytes):
    reading = process_memory(Listed(listed), OURS)
    assert (reading.used_bytes, reading.hidden_reason) == (used_bytes, reason)
    assert [process.pid for process in reading.foreign] == foreign_pids
    assert reading.foreign_used_bytes == foreign_bytes
