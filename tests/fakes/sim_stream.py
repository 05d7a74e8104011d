"""The inside of the simulated completions server: how a request is answered, step by step."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from dataclasses import dataclass, field, fields, replace
from typing import IO, Any

_HEAD = "HTTP/1.1 {status} {reason}\r\ncontent-type: {kind}\r\n{length}{close}\r\n"


@dataclass(frozen=True)
class Behaviour:
    """How a request is answered. Counts in tokens sent before the event, -1: never. Times in seconds."""

    ttft_s: float = 0.02
    itl_s: float = 0.01
    coalesce: int = 1  # tokens per chunk; a chunk of k comes k times itl_s after the last
    merge: int = 1  # events per TCP segment, held back until there are so many
    split: int = 1  # TCP segments per event, split_gap_s apart
    split_gap_s: float = 0.002
    status: int = 200
    error_body: str = '{"error":{"message":"simulated failure","type":"Simulated","code":0}}'
    drop: int = -1  # close the connection; 0: before the first chunk, but after the headers
    reset: bool = False  # close it before a byte of the answer
    stall: int = -1  # say no more, but keep the connection
    malformed: int = -1  # an event that is not JSON
    bad_framing: int = -1  # a chunk header that is not hexadecimal
    error_event: int = -1
    stop_after: int = -1  # end well, with only so many tokens
    extra: int = 0  # so many tokens more than asked for
    done: bool = True  # send [DONE]
    usage: str = "continuous"  # or "final", or "none"
    close: str = (
        ""  # after the response: "header" says so and closes, "silent" closes, "late" once the next comes in
    )


@dataclass
class Settings:
    """A server: its nominal behaviour, what happens to single requests, and where the truth goes."""

    port: int = 0
    truth_path: str = ""
    tick_s: float = (
        0.0  # > 0: all streams send together at every tick, as a decode loop does; itl_s is not used
    )
    behaviour: Behaviour = field(default_factory=Behaviour)
    faults: dict[int, Behaviour] = field(default_factory=dict)

    @classmethod
    def of(cls, **options: Any) -> Settings:
        """From plain options; those of :class:`Behaviour` hold for all requests, ``faults`` for one."""
        names = {item.name for item in fields(Behaviour)}
        behaviour = Behaviour(**{key: options.pop(key) for key in list(options) if key in names})
        faults = {int(n): replace(behaviour, **change) for n, change in options.pop("faults", {}).items()}
        return cls(behaviour=behaviour, faults=faults, **options)


class Server:
    def __init__(self, settings: Settings, truth: IO[str] | None) -> None:
        self.settings, self.truth = settings, truth
        self.requests = self.prompt_tokens = self.output_tokens = 0
        self.connections = 0
        self.running: set[_Answer] = set()
        self.ticking: set[_Answer] = set()

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(
            lambda: _Connection(self), "127.0.0.1", self.settings.port, backlog=4096
        )
        stop = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_reader(sys.stdin, stop.set)
        print(listener.sockets[0].getsockname()[1], flush=True)
        if self.settings.tick_s:
            loop.call_later(self.settings.tick_s, self._tick, loop.time() + self.settings.tick_s)
        await stop.wait()

    def _tick(self, due_s: float) -> None:
        loop = asyncio.get_running_loop()
        for answer in list(self.ticking):
            answer.step()
        due_s += self.settings.tick_s
        loop.call_later(max(0.0, due_s - loop.time()), self._tick, due_s)

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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.server.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        if self.answer is not None:
            self.answer.end("connection lost")

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
        if head.startswith(b"GET "):
            page = self.server.metrics() if b"/metrics" in head.split(b"\r\n")[0] else b""
            self.plain(200, "text/plain", page)
            return
        number = self.server.requests
        self.server.requests += 1
        behaviour = self.server.settings.faults.get(number, self.server.settings.behaviour)
        self.answer = _Answer(self, number, json.loads(body[:length]), behaviour, received_ns)
        self.answer.begin()

    def plain(self, status: int, kind: str, page: bytes, close: str = "") -> None:
        head = _HEAD.format(
            status=status,
            reason="Simulated",
            kind=kind,
            length=f"content-length: {len(page)}\r\n",
            close=close,
        )
        self.transport.write(head.encode() + page)


class _Answer:
    """One completion: a series of steps, each due at a set time after the one before it."""

    def __init__(
        self, connection: _Connection, number: int, request: dict[str, Any], how: Behaviour, received_ns: int
    ) -> None:
        self.connection, self.number, self.request, self.how = connection, number, request, how
        self.received_ns = received_ns
        self.sends: list[tuple[int, int]] = []  # (time_ns, tokens)
        self.sent = 0
        self.total = how.stop_after if how.stop_after >= 0 else request["max_tokens"] + how.extra
        self.over = False
        self._held: list[bytes] = []
        self._held_tokens = 0
        self._due_s = 0.0
        self._loop = asyncio.get_running_loop()

    def begin(self) -> None:
        how, connection = self.how, self.connection
        server = connection.server
        server.running.add(self)
        server.prompt_tokens += len(self.request["prompt"])
        if how.reset:
            connection.transport.abort()
            return
        close = "connection: close\r\n" if how.close == "header" else ""
        if how.status != 200:
            connection.plain(how.status, "application/json", how.error_body.encode(), close)
            self._finish()
            return
        head = _HEAD.format(
            status=200,
            reason="OK",
            kind="text/event-stream; charset=utf-8",
            length="transfer-encoding: chunked\r\n",
            close=close,
        )
        connection.transport.write(head.encode())
        self._due_s = self._loop.time() + how.ttft_s
        if server.settings.tick_s:
            self._loop.call_at(self._due_s, server.ticking.add, self)
        else:
            self._loop.call_at(self._due_s, self.step)

    def step(self) -> None:
        """Send the next chunk, or do what is due instead of it, and set the time of the one after."""
        if self.over:
            return
        how, transport = self.how, self.connection.transport
        if how.drop == self.sent:
            transport.abort()
        elif how.stall == self.sent:
            self.connection.server.ticking.discard(self)
        elif how.bad_framing == self.sent:
            transport.write(b"zz\r\nnot a chunk\r\n")
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
                "head": self.request["prompt"][:2],
                "prompt_tokens": len(self.request["prompt"]),
                "received_ns": self.received_ns,
                "sends": self.sends,
                "end_ns": time.perf_counter_ns(),
                "ended": how,
                "connections": server.connections,
            }
            server.truth.write(json.dumps(line) + "\n")

    def _wait(self, steps: int) -> None:
        if not self.connection.server.settings.tick_s:
            self._due_s += steps * self.how.itl_s
            self._loop.call_at(self._due_s, self.step)

    def _event(self, last: bool) -> bytes:
        choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": "length" if last else None}
        event: dict[str, Any] = {
            "id": "cmpl-0123456789abcdef",
            "object": "text_completion",
            "created": 1700000000,
            "model": self.request["model"],
            "choices": [choice | {"stop_reason": None, "token_ids": None}],
        }
        if self.how.usage == "continuous":
            event["usage"] = self._usage()
        return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"

    def _usage(self) -> dict[str, int]:
        prompt = len(self.request["prompt"])
        return {"prompt_tokens": prompt, "total_tokens": prompt + self.sent, "completion_tokens": self.sent}

    def _send(self, event: bytes, tokens: int, flush: bool = True) -> None:
        """Write an event, or hold it until it can share a segment, or write it in several segments."""
        how, transport = self.how, self.connection.transport
        if how.split > 1 and tokens:
            # The truth is when the last part goes out: only then is the event whole.
            size = -(-len(event) // how.split)
            parts = [event[at : at + size] for at in range(0, len(event), size)]
            for part in parts[:-1]:
                transport.write(b"%x\r\n%b\r\n" % (len(part), part))
                time.sleep(how.split_gap_s)  # blocks: nothing else may write to this stream in between
            event = parts[-1]
        self._held.append(b"%x\r\n%b\r\n" % (len(event), event))
        self._held_tokens += tokens
        if flush or len(self._held) >= how.merge:
            data, self._held = b"".join(self._held), []
            if self._held_tokens:
                self.sends.append((time.perf_counter_ns(), self._held_tokens))
            self._held_tokens = 0
            transport.write(data)

    def _close_stream(self) -> None:
        how = self.how
        tail = b""
        if how.usage != "none":
            final = {"id": "cmpl-sim", "object": "text_completion", "choices": [], "usage": self._usage()}
            tail += b"data: " + json.dumps(final, separators=(",", ":")).encode() + b"\n\n"
        if how.done:
            tail += b"data: [DONE]\n\n"
        if tail:
            self.connection.transport.write(b"%x\r\n%b\r\n" % (len(tail), tail))
        self.connection.transport.write(b"0\r\n\r\n")
        self._finish()

    def _finish(self) -> None:
        self.end("complete")
        if self.how.close in ("header", "silent"):
            self.connection.transport.close()
        elif self.how.close == "late":
            self.connection.close_on_next = True
