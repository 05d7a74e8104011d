"""HTTP/1.1 over a raw asyncio protocol: stamp each piece of a response on arrival, look inside it later.

While the clock runs nothing is done per token but take the piece out of its framing (``httptools``, C) and append
it and its time to lists. All times are ``time.perf_counter_ns()``; those of arrivals are the kernel's where a
:class:`~bench.load.receive.Receiver` reads, else those at which the event loop came to the bytes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from array import array
from dataclasses import dataclass, field
from typing import Any

import httptools

from bench.load.receive import Receiver
from bench.load.wire import Target

ERROR_BODY_CHARS = 2000
ERROR_BODY_BYTES = 4 * ERROR_BODY_CHARS  # kept of an answer that is no stream, and the piece they end in


@dataclass(slots=True)
class Exchange:
    """One request and what came back, still unparsed.

    ``failure`` is empty when a whole HTTP response arrived, whatever its status; else one of
    ``connection_error``, ``timeout``, ``stalled``, ``malformed`` (not HTTP) and ``aborted``, and ``error`` is
    a sentence. ``scheduled_ns`` is when the request was due, ``sent_ns`` when its first byte was handed to
    the kernel (0: never sent), ``end_ns`` when the outcome was known. ``pieces`` are body bytes without their
    framing, ``arrivals_ns`` the arrival of each. ``resends`` counts sends on a kept connection that the
    server had already closed.
    """

    scheduled_ns: int
    sent_ns: int = 0
    end_ns: int = 0
    status: int | None = None
    failure: str = ""
    error: str = ""
    resends: int = 0
    pieces: list[bytes] = field(default_factory=list)
    arrivals_ns: array[int] = field(default_factory=lambda: array("q"))

    @property
    def body_bytes(self) -> int:
        return sum(map(len, self.pieces))

    def body_text(self, limit_chars: int = ERROR_BODY_CHARS) -> str:
        """The beginning of the body as text, e.g. of an error page."""
        return b"".join(self.pieces)[: 4 * limit_chars].decode(errors="replace")[:limit_chars]


class Stream(asyncio.Protocol):
    """One TCP connection, one response at a time."""

    def __init__(self) -> None:
        self.exchange: Exchange | None = None
        self.reusable = True
        self.touched = False  # a byte of the current response was seen
        self.answered = False  # a whole response came before: the server may be closing it as idle
        self._transport: Any = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[None] | None = None
        self._receiver: Receiver | None = None  # None: the event loop reads
        self._fd = -1
        self._now_ns = 0
        self._until_close = True  # no length announced: the body ends with the connection
        self._headers_complete = False

    def read_by(self, receiver: Receiver) -> None:
        """Let ``receiver`` read from now on. Not before the connection is made: uvloop begins to read only then."""
        if not self._transport.is_closing():
            self._transport.pause_reading()
            self._receiver = receiver
            receiver.watch(self._fd, self)

    def send(self, wire: bytes, exchange: Exchange) -> asyncio.Future[None]:
        """Write a whole request. The future returned never fails; it ends with ``exchange`` filled in."""
        self.exchange = exchange
        self.touched = self._headers_complete = False
        self._until_close = True
        self._done = asyncio.get_running_loop().create_future()
        self._now_ns = exchange.sent_ns = time.perf_counter_ns()
        if self._transport.is_closing():  # closed since it was made, and nobody will say so again
            self._closed(None)
        else:
            self._write_now(wire)
        return self._done

    def _write_now(self, wire: bytes) -> None:
        """Hand ``wire`` to the kernel in this instant, and the rest, if any, to the transport.

        uvloop's ``write`` waits for the end of the loop's turn, and with many streams a turn takes
        milliseconds that would count as latency.
        """
        try:
            sent = os.write(self._fd, wire)
        except OSError:  # full, or closed: the transport knows what to do, and reports it
            sent = 0
        if sent < len(wire) and not self._transport.is_closing():
            self._transport.write(wire[sent:])

    def fail(self, failure: str, error: str) -> None:
        """End the exchange under way as failed, if there is one, and drop the connection."""
        self._drop()
        self._finish(failure, error)

    def close(self) -> None:
        """Drop the connection; an exchange under way ends as ``aborted``."""
        self.fail("aborted", "The connection was closed by this client.")

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._fd = transport.get_extra_info("socket").fileno()

    def data_received(self, data: bytes) -> None:
        self.arrived(data, time.perf_counter_ns())

    def eof_received(self) -> None:
        self._closed(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._receiver is not None:  # the transport failed to write; an answer may have come before
            self._receiver.drain(self._fd)
        self._unwatch()
        self._closed(exc)

    # the receiver's

    def arrived(self, data: bytes, at_ns: int) -> None:
        """Take in bytes that came at ``at_ns``."""
        if at_ns > self._now_ns:  # two clocks are read apart by microseconds
            self._now_ns = at_ns
        self.touched = True
        if self.exchange is None:  # bytes nobody asked for: whatever they are, they are not the next response
            self._drop()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail("malformed", f"The answer is not HTTP ({error}): {data[:80]!r}")

    def ended(self, error: Exception | None) -> None:
        """The other side closed the connection, or reset it."""
        self._closed(error)
        self._drop()

    def _drop(self) -> None:
        self.reusable = False
        self._unwatch()
        self._transport.abort()

    def _unwatch(self) -> None:
        """Before the transport closes the file, whose number the next connection may get."""
        if self._receiver is not None:
            self._receiver.forget(self._fd)
            self._receiver = None

    def _closed(self, exc: Exception | None) -> None:
        self.reusable = False
        exchange = self.exchange
        if exchange is None:
            return
        self._now_ns = time.perf_counter_ns()
        if exc is None and self._headers_complete and self._until_close:
            self._finish("", "")
            return
        how = f"reset the connection ({exc})" if exc is not None else "closed the connection"
        seen = exchange.body_bytes
        where = "without an answer" if not self.touched else f"after {seen} bytes of the response body"
        self._finish("connection_error", f"The server {how} {where}.")

    # httptools' callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._until_close = False

    def on_headers_complete(self) -> None:
        self._headers_complete = True
        assert self.exchange is not None
        self.exchange.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            return
        if exchange.status != 200 and exchange.body_bytes >= ERROR_BODY_BYTES:  # a page that may have no end
            exchange.arrivals_ns[-1] = self._now_ns
            return
        exchange.arrivals_ns.append(self._now_ns)
        exchange.pieces.append(body)

    def on_message_complete(self) -> None:
        exchange = self.exchange
        if exchange is None or (exchange.status is not None and exchange.status < 200):
            return  # "100 Continue" and its like precede the response
        if not self._parser.should_keep_alive():
            self.reusable = False
        self._finish("", "")

    def _finish(self, failure: str, error: str) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return
        exchange.failure, exchange.error = failure, error
        self.answered = not failure
        # A response that ended by itself ended with its last byte; a failure when it was noticed.
        exchange.end_ns = self._now_ns if not failure else time.perf_counter_ns()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


class Channel:
    """A slot's way to the server: one kept-alive connection, replaced when it is gone.

    ``receiver`` reads its connections; None: the event loop does.
    """

    def __init__(self, target: Target, receiver: Receiver | None = None) -> None:
        self._target, self._receiver = target, receiver
        self._stream: Stream | None = None
        self._connecting: asyncio.Task[Any] | None = None
        self._interrupt: tuple[str, str] | None = None
        self.begun_ns = 0  # start of the exchange under way; 0 when idle

    @property
    def is_open(self) -> bool:
        """A connection stands and its last answer left it fit for another request."""
        return self._stream is not None and self._stream.reusable

    async def open(self) -> bool:
        """Connect now, so that the first exchange need not. False if that fails; the exchange tries again."""
        return await self._connect(Exchange(0))

    async def exchange(self, wire: bytes, scheduled_ns: int) -> Exchange:
        """Send ``wire`` and take its whole response. Never raises for what the network or the server did.

        A kept connection may be closed by the server just as the request goes out. If so, and only if no byte
        of an answer was seen, it is sent once more on a new connection; ``sent_ns`` is then the second
        sending.
        """
        exchange = Exchange(scheduled_ns)
        self.begun_ns, self._interrupt = time.perf_counter_ns(), None
        try:
            kept = self._stream is not None and self._stream.reusable and self._stream.answered
            while await self._connect(exchange):
                assert self._stream is not None
                await self._stream.send(wire, exchange)
                if exchange.failure != "connection_error" or not kept or self._stream.touched:
                    break
                kept = False
                exchange.failure = exchange.error = ""
                exchange.sent_ns = exchange.end_ns = 0
                exchange.resends += 1
            return exchange
        except BaseException:
            self.close()  # else the answer still on its way would be taken for the next one
            raise
        finally:
            self.begun_ns = 0

    def interrupt(self, failure: str, error: str) -> None:
        """End the exchange under way, if any, as ``failure``."""
        if self.begun_ns == 0:
            return
        self._interrupt = (failure, error)
        if self._connecting is not None:
            self._connecting.cancel()
        elif self._stream is not None:
            self._stream.fail(failure, error)

    def last_body_byte_ns(self) -> int | None:
        """When the response under way last brought body bytes; None before its first."""
        exchange = self._stream.exchange if self._stream is not None else None
        return exchange.arrivals_ns[-1] if exchange is not None and exchange.arrivals_ns else None

    def close(self) -> None:
        """Drop the connection and whatever was under way on it."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    async def _connect(self, exchange: Exchange) -> bool:
        if self._stream is not None and self._stream.reusable:
            return True
        self.close()
        failure, error = "", ""
        loop = asyncio.get_running_loop()
        self._connecting = asyncio.ensure_future(
            loop.create_connection(Stream, self._target.host, self._target.port)
        )
        try:
            _, self._stream = await self._connecting
        except OSError as problem:
            failure, error = (
                "connection_error",
                f"No connection to {self._target.authority}: {_reason(problem)}.",
            )
        except asyncio.CancelledError:
            if self._interrupt is None:
                raise
            failure, error = self._interrupt
        finally:
            self._connecting = None
        if not failure and self._interrupt is not None:  # it came between the connection and this line
            failure, error = self._interrupt
            self.close()
        if self._receiver is not None and self._stream is not None:
            self._stream.read_by(self._receiver)
        if failure:
            exchange.failure, exchange.error, exchange.end_ns = failure, error, time.perf_counter_ns()
        return not failure


def _reason(error: OSError) -> str:
    """The plain words for a connect error, without the event loop's own wording around it."""
    if error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
