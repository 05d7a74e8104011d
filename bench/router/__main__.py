"""`python -m bench.router FILE`: serve the engines of a YAML file under one address until it is ended."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TextIO

from bench.errors import BenchError
from bench.router.config import RouterConfig

EXAMPLES = """\
examples:
  python -m bench.router conf/router/pair.yaml --port 9000
  curl http://127.0.0.1:9000/v1/completions -H 'X-Task: code' -d '{"prompt": "def f(x):", "max_tokens": 16}'
  curl http://127.0.0.1:9000/router/stats
A client that cannot set a header writes the task into its base URL: http://127.0.0.1:9000/task/code/v1
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.router", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("file", type=Path, help="engines and rules, see conf/router")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=9000, help="0 for a free one, which is then printed (default 9000)")
    parser.add_argument("--records", type=Path, help="append one JSON line per request to this file")
    args = parser.parse_args()
    if not 0 <= args.port <= 65535:  # the system would take the lower 16 bits of it
        print(f"error: --port={args.port}: choose one of 1 to 65535, or 0 for a free one", file=sys.stderr)
        return 2
    try:
        config = RouterConfig.read(args.file)
        records = args.records.open("a", encoding="utf-8", buffering=1) if args.records else None
    except BenchError as refused:
        print(f"error: {refused}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: --records={args.records}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    return _serve(config, args.host, args.port, records)


def _serve(config: RouterConfig, host: str, port: int, records: TextIO | None) -> int:
    import asyncio
    import contextlib
    import signal

    import uvloop
    from aiohttp import web

    from bench.router.proxy import Record, Router

    def note(record: Record) -> None:
        if records is not None:
            records.write(json.dumps(record) + "\n")

    async def serve() -> int:
        router = Router(config, note)
        # Without this a client that went away would keep its engine generating for nobody.
        runner = web.AppRunner(router.app(), handler_cancellation=True, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, host, port, backlog=4096)
        try:
            await site.start()
        except OSError as error:
            print(f"error: --port={port}: {error.strerror or error}; choose another", file=sys.stderr)
            await runner.cleanup()
            return 2
        bound = runner.addresses[0][1]
        print(f"router on http://{host}:{bound} for {', '.join(router.backends)}", flush=True)
        ended = asyncio.Event()
        again = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, lambda: (again if ended.is_set() else ended).set())
        await ended.wait()
        # Answers under way may end, for so long as aiohttp lets them (a minute); a second signal ends them now.
        cleaning, hurry = asyncio.create_task(runner.cleanup()), asyncio.create_task(again.wait())
        await asyncio.wait((cleaning, hurry), return_when=asyncio.FIRST_COMPLETED)
        for task in (cleaning, hurry):
            task.cancel()
        await asyncio.gather(cleaning, hurry, return_exceptions=True)
        return 0

    with contextlib.ExitStack() as stack:
        if records is not None:
            stack.callback(records.close)
        return uvloop.run(serve())


if __name__ == "__main__":
    sys.exit(main())
