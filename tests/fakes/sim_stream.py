"""The inside of the simulated completions server: how a request is answered, step by step.

One core must do for 20,000 tokens/s on 1,000 streams, so that the rest of a small machine is the client's. Hence one
clock for all streams instead of a timer for each, writes that go straight to the kernel, and events whose constant
parts are made once for each request.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
import time
from array import array
from typing import IO, Any

from tests.fakes.sim_behaviour import Behaviour, Settings
from tests.fakes.sim_clock import Clock

_HEAD = "HTTP/1.1 {status} {reason}\r\ncontent-type: {kind}\r\n{length}{close}\r\n"
_CHOICE: dict[str, Any] = {
    "index": 0, "text": " w7", "logprobs": None, "finish_reason": None, "stop_reason": None, "token_ids": None,
    "prompt_logprobs": None, "prompt_token_ids": None,
}  # fmt: skip


class Server:
    def __init__(self, settings: Settings, truth: IO[str] | None) -> None:
        self.settings, self.truth = settings, truth
        self.requests = self.prompt_tokens = self.output_tokens = 0
        self.connections = 0
        self.running: set[_Answer] = set()
        self.ticking: set[_Answer] = set()
        self.clock: Clock

    async def serve(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        loop = asyncio.get_running_loop()
        self.clock = Clock(loop)
        listener = await loop.create_server(
            lambda: _Connection(self), "127.0.0.1", self.settings.port, backlog=4096
        )
        stop = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_reader(sys.stdin, stop.set)
        print(listener.sockets[0].getsockname()[1], flush=True)
        if self.settings.tick_s:
            self._tick(time.perf_counter_ns())
        await stop.wait()

    def plan_freezes(self, now_ns: int) -> None:
        for start_s, length_s in self.settings.freezes:
            self.clock.at(now_ns + round(start_s * 1e9), lambda length_s=length_s: self._freeze(length_s))

    def _freeze(self, length_s: float) -> None:
        began_ns = time.perf_counter_ns()
        time.sleep(length_s)
        self.clock.shift(time.perf_counter_ns() - began_ns)

    def _tick(self, due_ns: int) -> None:
        for answer in list(self.ticking):
            answer.step()
        due_ns += round(self.settings.tick_s * 1e9)
        self.clock.at(due_ns, lambda: self._tick(due_ns))

    def metrics(self) -> bytes:
        lines = [
            'vllm:num_preemptions_total{engine="0"} 0.0',
            f'vllm:prompt_tokens_total{{engine="0"}} {self.prompt_tokens}.0',
            f'vllm:generation_tokens_total{{engine="0"}} {self.output_tokens}.0',
            f'vllm:num_requests_running{{engine="0"}} {len(self.running)}.0',
            f'vllm:kv_cache_usage_perc{{engine="0"}} {min(1.0, len(self.running) / 100)}',
            'vllm:cache_config_info{block_size="16",num_gpu_blocks="1000"} 1.0',
        ]
        return "\n".join(lines).encode() + b"\n"


class _Connection(asyncio.Protocol):
    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: Any = None
        self.answer: _Answer | None = None
        self.close_on_next = False
        self._buffer = bytearray()
        self._fd = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._fd = transport.get_extra_info("socket").fileno()
        self.server.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._fd = -1
        if self.answer is not None:
            self.answer.end("connection lost")

    def write(self, data: bytes) -> None:
        """Hand ``data`` to the kernel now; what it does not take, and what comes behind that, to the transport."""
        sent = 0
        if self._fd >= 0 and not self.transport.is_closing() and not self.transport.get_write_buffer_size():
            try:
                sent = os.write(self._fd, data)
            except OSError:
                sent = 0
        if sent < len(data):
            self.transport.write(data[sent:])

    def data_received(self, data: bytes) -> None:
        received_ns = time.perf_counter_ns()
        if self.close_on_next:
            self.transport.abort()
            return
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = 0
        for line in head.split(b"\r\n")[1:]:
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        if len(body) < length:
            return
        self._buffer = body[length:]
        method, path = bytes(head).split(b" ", 2)[:2]
        if method != b"POST":
            self._page(path if method == b"GET" else b"")
            return
        server = self.server
        number = server.requests
        server.requests += 1
        if number == 0:
            server.plan_freezes(received_ns)
        behaviour = server.settings.faults.get(number, server.settings.behaviour)
        self.answer = _Answer(self, number, json.loads(body[:length]), behaviour, received_ns)
        self.answer.begin()

    def _page(self, path: bytes) -> None:
        if path.endswith(b"/metrics"):
            self.plain(200, "text/plain", self.server.metrics())
        elif path.endswith(b"/models"):
            models = {"object": "list", "data": [{"id": "sim", "object": "model", "root": "sim"}]}
            self.plain(200, "application/json", json.dumps(models).encode())
        else:
            self.plain(200, "text/plain", b"")

    def plain(self, status: int, kind: str, page: bytes, close: str = "") -> None:
        length = f"content-length: {len(page)}\r\n"
        head = _HEAD.format(status=status, reason="Simulated", kind=kind, length=length, close=close)
        self.write(head.encode() + page)


class _Answer:
    """One completion: a series of steps, each due at a set time after the one before it."""

    def __init__(
        self, connection: _Connection, number: int, request: dict[str, Any], how: Behaviour, received_ns: int
    ) -> None:
        self.connection, self.number, self.how = connection, number, how
        self.prompt: str | list[int] = request["prompt"]
        # Words stand for the tokens of a prompt that is text.
        self.prompt_tokens = len(self.prompt if isinstance(self.prompt, list) else self.prompt.split())
        self.received_ns = received_ns
        self.send_ns, self.send_tokens = array("q"), array("i")
        self.sent = 0
        self.total = how.stop_after if how.stop_after >= 0 else request["max_tokens"] + how.extra
        self.over = False
        self.ttft_s = how.ttft_s if isinstance(how.ttft_s, float | int) else how.ttft_s[number % len(how.ttft_s)]
        self._itl_ns = [round(s * 1e9) for s in ([how.itl_s] if isinstance(how.itl_s, float | int) else how.itl_s)]
        asked = request.get("stream_options") or {}
        running, final = asked.get("continuous_usage_stats"), asked.get("include_usage")
        self._usage = how.usage if how.usage != "asked" else "continuous" if running else "final" if final else "none"
        self._plain = how.split == how.merge == how.coalesce == 1 and self._stop_at() < 0
        self._held: list[bytes] = []
        self._held_tokens = 0
        self._due_ns = 0
        event = {"id": f"cmpl-{number:032x}", "object": "text_completion", "created": 1700000000}
        event |= {"model": request.get("model", "sim"), "choices": [_CHOICE]}
        text = json.dumps(event, separators=(",", ":"))[:-1]
        self._begin = b"data: " + text.encode()
        self._begin_last = self._begin.replace(b'"finish_reason":null', b'"finish_reason":"length"')

    def _stop_at(self) -> int:
        how = self.how
        return max(how.drop, how.stall, how.bad_framing, how.malformed, how.error_event)

    def begin(self) -> None:
        how, connection = self.how, self.connection
        server = connection.server
        server.running.add(self)
        server.prompt_tokens += self.prompt_tokens
        if how.reset:
            connection.transport.abort()
            return
        close = "connection: close\r\n" if how.close == "header" else ""
        if how.status != 200:
            connection.plain(how.status, "application/json", how.error_body.encode(), close)
            self._finish()
            return
        kind, length = "text/event-stream; charset=utf-8", "transfer-encoding: chunked\r\n"
        connection.write(_HEAD.format(status=200, reason="OK", kind=kind, length=length, close=close).encode())
        self._due_ns = time.perf_counter_ns() + round(self.ttft_s * 1e9)
        start = self.step if not server.settings.tick_s else lambda: server.ticking.add(self)
        server.clock.at(self._due_ns, start)

    def step(self) -> None:
        """Send the next chunk, or do what is due instead of it, and set the time of the one after."""
        if self.over:
            return
        if self._plain and self.sent + 1 < self.total:
            self.sent += 1
            event = self._event(False)
            self.send_tokens.append(1)
            self.send_ns.append(time.perf_counter_ns())
            self.connection.write(b"%x\r\n%b\r\n" % (len(event), event))
            self._wait(1)
            return
        how, connection = self.how, self.connection
        if how.drop == self.sent:
            connection.transport.abort()
        elif how.stall == self.sent:
            connection.server.ticking.discard(self)
        elif how.bad_framing == self.sent:
            connection.write(b"zz\r\nnot a chunk\r\n")
            self._wait(1)
        elif how.malformed == self.sent:
            self._send(b'data: {"id": "cmpl-sim", "choices": [\n\n', 0)
            self._close_stream()
        elif how.error_event == self.sent:
            self._send(b'data: {"error":{"message":"simulated engine failure","code":500}}\n\n', 0)
            self._close_stream()
        elif self.sent >= self.total:  # only with no tokens at all to send
            self._close_stream()
        else:
            tokens = min(how.coalesce, self.total - self.sent)
            self.sent += tokens
            last = self.sent >= self.total
            self._send(self._event(last), tokens, flush=last)
            if last:
                self._close_stream()
            else:
                self._wait(min(how.coalesce, self.total - self.sent))

    def end(self, how: str) -> None:
        """Write the truth about this request, once."""
        if self.over:
            return
        self.over = True
        server = self.connection.server
        server.running.discard(self)
        server.ticking.discard(self)
        server.output_tokens += self.sent
        self.connection.answer = None
        if server.truth is not None:
            line = {
                "number": self.number,
                "head": self.prompt[:2],
                "prompt_tokens": self.prompt_tokens,
                "received_ns": self.received_ns,
                "sends": list(zip(self.send_ns, self.send_tokens, strict=True)),
                "end_ns": time.perf_counter_ns(),
                "ended": how,
                "connections": server.connections,
            }
            server.truth.write(json.dumps(line) + "\n")

    def _wait(self, steps: int) -> None:
        server = self.connection.server
        if not server.settings.tick_s:
            itl_ns, done = self._itl_ns, self.sent - 1
            # The schedule is kept even where a send was late; only a freeze moves it.
            self._due_ns += sum(itl_ns[(done + step) % len(itl_ns)] for step in range(steps))
            server.clock.at(self._due_ns, self.step)

    def _event(self, last: bool) -> bytes:
        begin = self._begin_last if last else self._begin
        if self._usage != "continuous":
            return begin + b"}\n\n"
        prompt, sent = self.prompt_tokens, self.sent
        return b'%b,"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}}\n\n' % (
            begin, prompt, prompt + sent, sent,
        )  # fmt: skip

    def _send(self, event: bytes, tokens: int, flush: bool = True) -> None:
        """Write an event, or hold it until it can share a segment, or write it in several segments."""
        how, connection = self.how, self.connection
        if how.split > 1 and tokens:
            # The truth is when the last part goes out: only then is the event whole.
            size = -(-len(event) // how.split)
            parts = [event[at : at + size] for at in range(0, len(event), size)]
            for part in parts[:-1]:
                connection.write(b"%x\r\n%b\r\n" % (len(part), part))
                time.sleep(how.split_gap_s)  # blocks: nothing else may write to this stream in between
            event = parts[-1]
        self._held.append(b"%x\r\n%b\r\n" % (len(event), event))
        self._held_tokens += tokens
        if flush or len(self._held) >= how.merge:
            data, self._held = b"".join(self._held), []
            if self._held_tokens:
                self.send_ns.append(time.perf_counter_ns())
                self.send_tokens.append(self._held_tokens)
            self._held_tokens = 0
            connection.write(data)

    def _close_stream(self) -> None:
        how = self.how
        tail = b""
        if self._usage != "none":
            prompt, sent = self.prompt_tokens, self.sent
            usage = {"prompt_tokens": prompt, "total_tokens": prompt + sent, "completion_tokens": sent}
            final = {"id": "cmpl-sim", "object": "text_completion", "choices": [], "usage": usage}
            tail += b"data: " + json.dumps(final, separators=(",", ":")).encode() + b"\n\n"
        if how.done:
            tail += b"data: [DONE]\n\n"
        end = b"%x\r\n%b\r\n" % (len(tail), tail) if tail else b""
        self.connection.write(end + b"0\r\n\r\n")
        self._finish()

    def _finish(self) -> None:
        self.end("complete")
        if self.how.close in ("header", "silent"):
            self.connection.transport.close()
        elif self.how.close == "late":
            self.connection.close_on_next = True
