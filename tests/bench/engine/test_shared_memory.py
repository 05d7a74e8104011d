"""Only segments that are new and that nobody maps are removed."""

from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from bench.engine.shared_memory import remove_leaked_shared_memory, shared_memory_names


def test_a_leaked_segment_goes_and_those_in_use_or_older_stay():
    older = Path("/dev/shm/psm_calibrate_test_older")
    leaked = Path("/dev/shm/psm_calibrate_test_leaked")
    older.write_bytes(b"x")
    try:
        before = shared_memory_names()
        in_use = SharedMemory(name="psm_calibrate_test_in_use", create=True, size=4096)
        leaked.write_bytes(b"x")
        assert remove_leaked_shared_memory(before) == [leaked.name]
        assert older.exists() and not leaked.exists() and Path("/dev/shm/psm_calibrate_test_in_use").exists()
    finally:
        in_use.close()
        in_use.unlink()
        older.unlink()
        leaked.unlink(missing_ok=True)
