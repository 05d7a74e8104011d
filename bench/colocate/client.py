"""One stream's load client, as a process of its own, so that streams driven at once share no event loop and no GIL.

`python -m bench.colocate.client JOB RESULT`: JOB is the pickled arguments of `run_load`, RESULT gets what it returns.
It prints `ready`, waits for the line `go`, and then prints its progress as JSON lines; the line `stop WHY` calls the
load off. When its input closes, whoever started it is gone, and it ends at once.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import threading
from dataclasses import asdict
from pathlib import Path


def main() -> int:
    from bench.load.monitor import Progress
    from bench.load.run import run_load

    job = pickle.loads(Path(sys.argv[1]).read_bytes())
    go, stop = threading.Event(), []

    def listen() -> None:
        for line in sys.stdin:
            word, _, rest = line.strip().partition(" ")
            if word == "go":
                go.set()
            elif word == "stop":
                stop.append(rest)
                go.set()
        os._exit(1)

    def show(now: Progress) -> None:
        print(json.dumps(asdict(now)), flush=True)

    def called_off() -> str | None:
        go.wait()
        return stop[0] if stop else None

    threading.Thread(target=listen, daemon=True).start()
    print("ready", flush=True)
    result = run_load(**job, on_progress=show, should_abort=called_off)
    partial = Path(f"{sys.argv[2]}.partial")
    partial.write_bytes(pickle.dumps(result))
    partial.replace(sys.argv[2])
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # the listening thread still waits for input
