"""One run of a client that has no program of its own: ``client_run ours|vllm|bare URL STREAMS TOKENS REPORT``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

PROMPT_TOKENS = 32
VOCAB_SIZE = 32000


def ours(base_url: str, streams: int, tokens: int) -> dict[str, object]:
    """This project's closed loop, one request for each stream."""
    from bench.load.run import run_load
    from bench.load.spec import LoadSpec

    spec = LoadSpec(concurrency=streams, num_requests=streams, input_tokens=PROMPT_TOKENS, output_tokens=tokens)
    result = run_load(base_url, "sim", spec, VOCAB_SIZE)
    client = result.client
    detail = {"loop_us_per_token": client.cpu_us_per_token, "flags": result.flags}
    print(json.dumps(detail), file=sys.stderr)
    return {"requests": result.completed, "itl_p99_s": result.itl_s.p99, "per_token": True}


def vllm(base_url: str, streams: int, tokens: int) -> dict[str, object]:
    """vLLM's request function with the session that ``vllm bench serve`` gives it."""
    import asyncio

    import aiohttp
    import numpy
    from vllm.benchmarks.lib.endpoint_request_func import RequestFuncInput, async_request_openai_completions

    from bench.load.prompts import prompt_token_ids

    async def main() -> list:
        connector = aiohttp.TCPConnector(
            limit=streams, limit_per_host=streams, ttl_dns_cache=300, use_dns_cache=True, keepalive_timeout=60,
            force_close=False, ssl=False,
        )  # fmt: skip
        timeout = aiohttp.ClientTimeout(total=6 * 60 * 60)
        async with aiohttp.ClientSession(connector=connector, trust_env=True, timeout=timeout) as session:
            requests = [
                RequestFuncInput(
                    prompt=prompt_token_ids(0, index, PROMPT_TOKENS, VOCAB_SIZE), api_url=f"{base_url}/v1/completions",
                    prompt_len=PROMPT_TOKENS, output_len=tokens, model="sim", ignore_eos=True,
                )  # fmt: skip
                for index in range(streams)
            ]
            return await asyncio.gather(*(async_request_openai_completions(r, session) for r in requests))

    outputs = [output for output in asyncio.run(main()) if output.success]
    gaps = [gap for output in outputs for gap in output.itl]
    p99_s = float(numpy.percentile(gaps, 99)) if gaps else None
    return {"requests": len(outputs), "itl_p99_s": p99_s, "per_token": True}


def bare(base_url: str, streams: int, tokens: int) -> dict[str, object]:
    """Take the bytes from the kernel and drop them: no framing, no JSON, no time, no statistics.

    It looks once a millisecond, as our client does when it is busy, instead of waking up for every token.
    """
    import select
    import socket
    import time

    from bench.load.pool import allow_connections
    from bench.load.prompts import prompt_token_ids
    from bench.load.receive import HOLD_S
    from bench.load.wire import Target, completion_body

    allow_connections(streams)
    target = Target.parse(base_url)
    with select.epoll() as ready:
        open_sockets = {}
        for index in range(streams):
            connection = socket.create_connection((target.host, target.port))
            body = completion_body("sim", prompt_token_ids(0, index, PROMPT_TOKENS, VOCAB_SIZE), tokens)
            connection.sendall(target.post_json("/v1/completions", body))
            ready.register(connection, select.EPOLLIN)
            open_sockets[connection.fileno()] = connection
        while open_sockets:
            time.sleep(HOLD_S)
            for fd, _ in ready.poll():
                data = open_sockets[fd].recv(1 << 16)
                if not data or data.endswith(b"\r\n0\r\n\r\n"):
                    open_sockets.pop(fd).close()
    return {"requests": streams, "itl_p99_s": None, "per_token": True}


if __name__ == "__main__":
    name, url, streams, tokens, report = sys.argv[1:]
    run = {"ours": ours, "vllm": vllm, "bare": bare}[name]
    Path(report).write_text(json.dumps(run(url, int(streams), int(tokens))))
