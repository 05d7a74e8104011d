"""Put on PYTHONPATH, makes the first Python process that is told to leak memory at a stated rate.

FAKE_LEAK_BYTES_PER_S: the rate. FAKE_LEAK_WHEN: a path; the leak begins when it exists. Processes without them, and
the children of the leaking one, are left alone.
"""

import os
import threading
import time

_EVERY_S = 0.05
_PAGE = 4096


def _leak(bytes_per_s: float, when: str) -> None:
    while not os.path.exists(when):
        time.sleep(_EVERY_S)
    held, began, taken = [], time.monotonic(), 0
    while True:
        size = int((time.monotonic() - began) * bytes_per_s) - taken
        block = bytearray(size)
        block[::_PAGE] = b"\1" * len(block[::_PAGE])  # a page that nobody touched is no memory
        held.append(block)
        taken += size
        time.sleep(_EVERY_S)


if rate := os.environ.pop("FAKE_LEAK_BYTES_PER_S", None):
    threading.Thread(target=_leak, args=(float(rate), os.environ.pop("FAKE_LEAK_WHEN")), daemon=True).start()
