"""Bytes with the time at which the kernel had them, whatever the event loop was doing."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time

import pytest

from bench.load import receive
from bench.load.receive import Receiver
from tests.fakes.sim_server import SimServer

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the kernel's stamps are read as Linux gives them"
)


class Notes:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.pieces: list[tuple[bytes, int]] = []
        self.ends: list[OSError | None] = []

    def arrived(self, data: bytes, at_ns: int) -> None:
        self.pieces.append((data, at_ns))

    def ended(self, error: OSError | None) -> None:
        self.ends.append(error)

    @property
    def text(self) -> bytes:
        return b"".join(data for data, _ in self.pieces)


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection: ours, and the other side's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    ours.setblocking(False)
    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs


def watching(scenario, sockets: int = 1):
    """Runs `scenario(receiver, watched, loop's sleep)` with so many connections watched; returns what it returns."""

    async def main():
        receiver = Receiver.open()
        assert receiver is not None
        watched = []
        for _ in range(sockets):
            ours, theirs = pair()
            notes = Notes()
            receiver.watch(ours.fileno(), notes)
            watched.append((ours, theirs, notes))
        await asyncio.sleep(0.05)  # the kernel begins to stamp a moment after it was first asked to
        try:
            return await scenario(receiver, watched)
        finally:
            receiver.close()
            for ours, theirs, _ in watched:
                ours.close()
                theirs.close()

    return asyncio.run(main())


def test_a_stamp_is_of_the_arrival_and_not_of_the_loop():
    """The loop is blocked for 200 ms, and the bytes come 50 ms after it was."""

    async def scenario(receiver, watched):
        _, theirs, notes = watched[0]
        sent: list[int] = []

        def send() -> None:
            sent.append(time.perf_counter_ns())
            theirs.send(b"token")
            sent.append(time.perf_counter_ns())

        threading.Timer(0.05, send).start()
        time.sleep(0.2)
        blocked_until_ns = time.perf_counter_ns()
        await asyncio.sleep(0.05)
        (data, at_ns), before_ns, after_ns = notes.pieces[0], *sent
        assert data == b"token" and (receiver.stamped, receiver.unstamped, receiver.stamped_share) == (1, 0, 1.0)
        assert before_ns - 200_000 <= at_ns <= after_ns + 200_000, (at_ns - before_ns, at_ns - after_ns)
        assert blocked_until_ns - at_ns > 100_000_000

    watching(scenario)


def test_a_clock_that_was_set_is_not_believed(monkeypatch):
    """The stamps are of the wall clock. Set between arrival and reading, it would move a latency by as much."""

    async def scenario(receiver, watched):
        _, theirs, notes = watched[0]
        theirs.send(b"a")
        await asyncio.sleep(0.02)
        real = time.time_ns
        monkeypatch.setattr(receive.time, "time_ns", lambda: real() + 3_600_000_000_000)
        before_ns = time.perf_counter_ns()
        theirs.send(b"b")
        await asyncio.sleep(0.02)
        monkeypatch.undo()
        assert notes.text == b"ab" and (receiver.stamped, receiver.unstamped) == (1, 1)
        assert before_ns <= notes.pieces[1][1] <= time.perf_counter_ns()

    watching(scenario)


def test_clocks_that_were_read_far_apart_are_not_taken_for_a_pair(monkeypatch):
    """Half the distance is what the offset may be wrong by, and with it every stamp of that reading."""

    async def scenario(receiver, watched):
        known = receiver._offset()
        real = time.time_ns

        def late() -> int:
            time.sleep(0.005)  # a core that was lost just then
            return real()

        monkeypatch.setattr(receive.time, "time_ns", late)
        assert receiver._offset() == known
        monkeypatch.undo()
        assert abs(receiver._offset() - known) < 10_000

    watching(scenario)


def test_a_flood_is_read_in_order_and_whole():
    """Enough readings that the receiver looks only now and then; nothing is lost when it goes back to waiting."""

    async def scenario(receiver, watched):
        rounds, held = 300, False
        for at in range(rounds):
            for _, theirs, _ in watched:
                theirs.send(b"%06d" % at)
            await asyncio.sleep(0)
            held |= receiver._holding is not None
        await asyncio.sleep(0.1)
        assert held and receiver._holding is None
        for _, theirs, notes in watched:
            theirs.send(b"last")
            stamps = [at_ns for _, at_ns in notes.pieces]
            assert stamps == sorted(stamps)
        await asyncio.sleep(0.05)
        expected = b"".join(b"%06d" % at for at in range(rounds)) + b"last"
        assert all(notes.text == expected for _, _, notes in watched)

    watching(scenario, sockets=30)


def test_an_end_is_told_once_and_after_the_last_bytes():
    async def scenario(receiver, watched):
        (_, closing, of_closed), (_, resetting, of_reset), (_, _, of_quiet) = watched
        closing.send(b"last words")
        closing.close()
        resetting.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        resetting.close()
        await asyncio.sleep(0.05)
        assert (of_closed.text, of_closed.ends) == (b"last words", [None])
        assert len(of_reset.ends) == 1 and isinstance(of_reset.ends[0], ConnectionResetError)
        assert not of_quiet.ends and not of_quiet.pieces

    watching(scenario, sockets=3)


def test_a_forgotten_socket_is_its_owners_alone():
    async def scenario(receiver, watched):
        ours, theirs, notes = watched[0]
        receiver.forget(ours.fileno())
        receiver.forget(ours.fileno())
        theirs.send(b"not yours")
        await asyncio.sleep(0.02)
        assert not notes.pieces and ours.recv(100) == b"not yours"
        receiver.close()
        receiver.close()

    watching(scenario)


def test_a_reader_may_end_what_comes_next():
    """What one socket brings can close another that has something in the same turn."""

    async def scenario(receiver, watched):
        ours = [one for one, _, _ in watched]

        class Ender(Notes):
            def arrived(self, data: bytes, at_ns: int) -> None:
                super().arrived(data, at_ns)
                for one in ours:
                    receiver.forget(one.fileno())

        enders = [Ender() for _ in watched]
        for one, ender in zip(ours, enders, strict=True):
            receiver.forget(one.fileno())
            receiver.watch(one.fileno(), ender)
        for _, theirs, _ in watched:
            theirs.send(b"x")
        time.sleep(0.02)
        await asyncio.sleep(0.05)
        assert sorted(len(ender.pieces) for ender in enders) == [0, 0, 1]

    watching(scenario, sockets=3)


def test_a_reader_that_fails_is_ended_and_the_others_are_not():
    async def scenario(receiver, watched):
        class Failing(Notes):
            def arrived(self, data: bytes, at_ns: int) -> None:
                raise ValueError("a defect")

        told: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(str(context["exception"])))
        (ours, theirs, _), (_, other, of_other) = watched
        failing = Failing()
        receiver.forget(ours.fileno())
        receiver.watch(ours.fileno(), failing)
        theirs.send(b"x")
        other.send(b"y")
        await asyncio.sleep(0.05)
        assert told == ["a defect"] and isinstance(failing.ends[0], ValueError) and of_other.text == b"y"

    watching(scenario, sockets=2)


def test_without_stamps_no_reading_is_put_off(monkeypatch):
    monkeypatch.setattr(receive, "_SO_TIMESTAMPNS", 9999)

    async def scenario(receiver, watched):
        for at in range(200):
            for _, theirs, _ in watched:
                theirs.send(b"%06d" % at)
            await asyncio.sleep(0)
            assert receiver._holding is None
        assert receiver.unstamped > 200 and receiver.stamped_share == 0.0

    watching(scenario, sockets=30)


def test_a_load_says_whose_stamps_it_has(run_load, monkeypatch):
    with SimServer(ttft_s=0.02, itl_s=0.005) as sim:
        stamped = run_load(sim.base_url, num_requests=4)
        monkeypatch.setattr(Receiver, "open", classmethod(lambda cls: None))
        own = run_load(sim.base_url, num_requests=4)
    assert stamped.completed == own.completed == 4
    assert stamped.client.kernel_stamped_share > 0.9 and own.client.kernel_stamped_share == 0.0
    assert own.to_row()["client_kernel_stamped_share"] == 0.0
