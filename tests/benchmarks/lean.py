"""The leanest client that still puts the same load on an engine: what is left to compare a real client with.

One thread, one `epoll`, one `recv` into the same buffer for every piece that comes; nothing is time-stamped, parsed,
counted or kept but the last bytes, which tell the end of an answer.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator

from bench.errors import BenchError
from bench.load.wire import Target, completion_body
from tests.benchmarks.load import Load

END_OF_CHUNKS = b"0\r\n\r\n"
SILENCE_S = 60.0


def requests_for(load: Load, model: str, port: int, prompts: list[list[int]]) -> list[bytes]:
    """Whole HTTP requests, the same bodies as our client sends."""
    target = Target("127.0.0.1", port)
    return [target.post_json("/v1/completions", completion_body(model, ids, load.output_tokens)) for ids in prompts]


class _Slot:
    """One connection and what is known of the answer it waits for."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.head = bytearray()
        self.tail = b""
        self.in_body = False

    def send(self, wire: bytes) -> None:
        self.head.clear()
        self.in_body, self.tail = False, b""
        self.socket.sendall(wire)

    def take(self, piece: memoryview) -> bool:
        """Look at a piece only as far as needed; True where it ends the answer."""
        if not self.in_body:
            self.head += piece
            split = self.head.find(b"\r\n\r\n")
            if split < 0:
                return False
            if not self.head.startswith(b"HTTP/1.1 200"):
                raise BenchError(f"lean client: the engine answered {bytes(self.head[:200])!r}")
            self.in_body = True
            piece = memoryview(bytes(self.head[split + 4 :]))
        # Five bytes may come in two pieces.
        self.tail = bytes(piece[-5:]) if len(piece) >= 5 else (self.tail + bytes(piece))[-5:]
        return self.tail == END_OF_CHUNKS


def run(port: int, wires: list[bytes], concurrency: int, took: Callable[[int], object] = lambda pieces: None) -> float:
    """Send all requests, `concurrency` at a time; seconds from the first sending to the last byte.

    `took` is told how many pieces have come, whenever some have.

    Raises `BenchError` for an answer other than 200 and for `SILENCE_S` without a byte.
    """
    queue: Iterator[bytes] = iter(wires)
    slots = [_Slot(port) for _ in range(min(concurrency, len(wires)))]
    by_handle = {slot.socket.fileno(): slot for slot in slots}
    buffer = bytearray(1 << 18)
    view = memoryview(buffer)
    try:
        with select.epoll() as poll:
            for handle in by_handle:
                poll.register(handle, select.EPOLLIN)
            began = time.perf_counter()
            for slot in slots:
                slot.send(next(queue))
            busy = len(slots)
            while busy:
                events = poll.poll(SILENCE_S)
                if not events:
                    raise BenchError(f"lean client: no byte from the engine for {SILENCE_S:.0f} s")
                for handle, _ in events:
                    slot = by_handle[handle]
                    got = slot.socket.recv_into(buffer)
                    if not got:
                        raise BenchError("lean client: the engine closed a connection within an answer")
                    if slot.take(view[:got]):
                        wire = next(queue, None)
                        if wire is None:
                            busy -= 1
                        else:
                            slot.send(wire)
                took(len(events))
            return time.perf_counter() - began
    finally:
        for slot in slots:
            slot.socket.close()
