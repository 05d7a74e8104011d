"""The transport by itself, against servers that answer with given bytes."""

from __future__ import annotations

import asyncio
import time

import pytest

from bench.load import receive
from bench.load.http import Channel, Exchange
from bench.load.receive import Receiver
from bench.load.records import to_record
from bench.load.schedule import PlannedRequest
from bench.load.wire import Target

EVENT = (
    b'data: {"choices":[{"text":""}],"usage":{"prompt_tokens":8,"completion_tokens":5}}\n\ndata: [DONE]\n\n'
)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
READ_BY = {"receiver": True}


@pytest.fixture(params=["receiver", "loop"], autouse=True)
def read_by(request):
    """Every test with both ways of reading: the kernel's stamps, and the loop's."""
    READ_BY["receiver"] = request.param == "receiver"


def channel_to(target: Target) -> Channel:
    return Channel(target, Receiver.open() if READ_BY["receiver"] else None)


class Canned:
    """Gives each request, as they arrive, the next of ``answers``; None: says nothing. Counts connections."""

    def __init__(self, *answers: bytes | None, close: bool = True) -> None:
        self.answers = list(answers)
        self.connections = 0
        self.close = close

    async def __aenter__(self) -> Canned:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.target = Target("127.0.0.1", self.server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await reader.read(1 << 16):
                answer = self.answers.pop(0)
                if answer is None:
                    continue
                writer.write(answer)
                await writer.drain()
                if self.close:
                    break
        finally:
            writer.close()


def ask(*answers: bytes) -> Exchange:
    async def main() -> Exchange:
        async with Canned(*answers) as server:
            channel = channel_to(server.target)
            try:
                return await asyncio.wait_for(channel.exchange(b"GET / HTTP/1.1\r\n\r\n", 1), 5)
            finally:
                channel.close()

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "outcome", "sentence"),
    [
        (
            b"HTTP/1.0 500 Oops\r\n\r\nno length, ends with the connection",
            "http_error",
            "500: no length, ends",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n" + EVENT, "ok", ""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK % len(EVENT) + EVENT, "ok", ""),
        (OK % 500 + EVENT, "connection_error", f"closed the connection after {len(EVENT)} bytes"),
        (OK % 2 + b"{}", "malformed", "without [DONE] after 0 events"),
        (OK % 0, "malformed", "without [DONE] after 0 events"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "http_error", "HTTP 204: (empty body)"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata",
            "connection_error",
            "after 4 bytes",
        ),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "malformed", "not HTTP"),
        (b"\x16\x03\x01\x00", "malformed", "not HTTP"),
        (b"HTTP/1.1 200", "connection_error", "after 0 bytes"),
        (b"", "connection_error", "without an answer"),
    ],
)
def test_odd_answers(answer, outcome, sentence):
    record = to_record(PlannedRequest(0, 0, 8, 5), 0, 0, ask(answer), 1)
    assert record.outcome == outcome, record.error
    assert sentence in record.error


def test_of_an_error_page_without_end_only_the_beginning_is_kept():
    page = b"HTTP/1.1 500 X\r\nContent-Length: 50000000\r\n\r\n" + b"x" * 50_000_000
    exchange = ask(page)
    assert (exchange.failure, exchange.status) == ("", 500) and exchange.body_text() == "x" * 2000
    assert 8000 <= exchange.body_bytes < 2_000_000 and len(exchange.pieces) == len(exchange.arrivals_ns)


def test_bytes_nobody_asked_for_are_not_the_next_response():
    """A second response behind the first must not answer the next request."""

    async def main() -> tuple[Exchange, Exchange, int]:
        async with Canned(OK % 1 + b"1" + OK % 1 + b"?", OK % 1 + b"2", close=False) as server:
            channel = channel_to(server.target)
            first = await channel.exchange(b"x", 0)
            await asyncio.sleep(0.05)
            second = await channel.exchange(b"x", 0)
            channel.close()
            return first, second, server.connections

    first, second, connections = asyncio.run(main())
    assert (first.body_text(), second.body_text(), connections) == ("1", "2", 2)


def test_an_answer_given_up_on_is_not_taken_for_the_next():
    """Cancelled while waiting: what is then on its way must not answer the next request."""

    async def main() -> tuple[str, int]:
        async with Canned(None, OK % 1 + b"2", close=False) as server:
            channel = channel_to(server.target)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(channel.exchange(b"x", 0), 0.05)
            text = (await channel.exchange(b"x", 0)).body_text()
            channel.close()
            return text, server.connections

    assert asyncio.run(main()) == ("2", 2)


def test_a_connection_is_kept_and_its_pieces_are_stamped_in_order():
    async def main() -> tuple[list[Exchange], int]:
        async with Canned(*[OK % 3 + b"abc"] * 3, close=False) as server:
            channel = channel_to(server.target)
            exchanges = [await channel.exchange(b"x", time.perf_counter_ns()) for _ in range(3)]
            channel.close()
            return exchanges, server.connections

    exchanges, connections = asyncio.run(main())
    assert connections == 1
    for exchange in exchanges:
        assert exchange.status == 200 and exchange.body_text() == "abc" and not exchange.failure
        assert exchange.scheduled_ns <= exchange.sent_ns <= exchange.arrivals_ns[0] <= exchange.end_ns


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_request_larger_than_the_socket_takes_arrives_whole(loop):
    """The part that the kernel does not take at once must follow, once and in order."""
    wire = bytes(range(256)) * (64 << 10)  # 16 MiB

    async def main() -> bytes:
        got = bytearray()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.05)  # lets the sender's socket fill
            got.extend(await reader.readexactly(len(wire)))
            writer.write(OK % 0)

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            channel = channel_to(Target("127.0.0.1", server.sockets[0].getsockname()[1]))
            exchange = await channel.exchange(wire, 0)
            channel.close()
            assert exchange.status == 200 and not exchange.failure
            return bytes(got)

    factory = asyncio.new_event_loop if loop == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(main()) == wire


def test_interrupting_while_connecting_gives_the_reason():
    """A server that accepts nothing (its queue is full) leaves the client connecting."""
    import socket

    async def main() -> Exchange:
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            port = full.getsockname()[1]
            fillers = []
            for _ in range(8):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
                fillers.append(filler)
            channel = channel_to(Target("127.0.0.1", port))
            asyncio.get_running_loop().call_later(0.1, channel.interrupt, "timeout", "Too late.")
            exchange = await asyncio.wait_for(channel.exchange(b"x", 0), 5)
            for filler in fillers:
                filler.close()
            return exchange

    exchange = asyncio.run(main())
    assert (exchange.failure, exchange.error, exchange.sent_ns) == ("timeout", "Too late.", 0)
    assert exchange.end_ns > 0


def test_interrupting_an_idle_channel_does_nothing():
    async def main() -> Exchange:
        async with Canned(OK % 0) as server:
            channel = channel_to(server.target)
            channel.interrupt("aborted", "No.")
            exchange = await channel.exchange(b"x", 0)
            channel.close()
            return exchange

    assert asyncio.run(main()).failure == ""


def test_an_answer_is_not_lost_when_the_rest_of_the_request_cannot_be_written(monkeypatch):
    """A server that refuses a large request answers and closes before it has read all of it."""
    monkeypatch.setattr(receive, "HOLD_S", 0.2)
    monkeypatch.setattr(receive, "BUSY_READINGS", 0)  # always holding: the transport fails before the receiver looks

    async def main() -> Exchange:
        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1000)
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.close()

        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            channel = channel_to(Target("127.0.0.1", server.sockets[0].getsockname()[1]))
            return await asyncio.wait_for(channel.exchange(b"x" * (32 << 20), 0), 5)

    assert asyncio.run(main()).status == 413


def test_an_upgrade_is_no_answer():
    exchange = ask(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nx")
    assert exchange.failure == "malformed"


def test_a_server_that_closes_each_connection_at_once_fails_the_request():
    async def main() -> Exchange:
        async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
            channel = channel_to(Target("127.0.0.1", server.sockets[0].getsockname()[1]))
            await channel.open()
            await asyncio.sleep(0.05)
            return await asyncio.wait_for(channel.exchange(b"x", 0), 5)

    assert asyncio.run(main()).failure == "connection_error"
