"""A socket and its association: timers, back-pressure and ends, with a clock that the test moves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from scp_server.net.association_transport import (
    MOST_FLUSHES_PUT_OFF,
    SMALL_READ_BYTES,
    AssociationTransport,
    TransportConfig,
)
from scp_server.protocol.association import Role, State
from scp_server.protocol.events import AssociateRequested, CommandReceived, Event
from scp_server.protocol.limits import Limits
from scp_server.protocol.negotiation import negotiate
from scp_server.testing import wire
from scp_server.testing.acceptor_scene import ANY_SIZE, associate_rq, dataset, echo_rq, settle, store_rq
from scp_server.testing.fake_transport import ClockedLoop, FakeTransport

LIMITS = Limits(artim_seconds=10, idle_seconds=100, dimse_seconds=60, minimum_bytes_per_second=0)
CONFIG = TransportConfig(send_buffer_bytes=10_000, write_seconds=30)


class Recorder(AssociationTransport):
    """Accepts whatever asks, and remembers its events; `on_event` may do more."""

    def __init__(self, limits: Limits, config: TransportConfig) -> None:
        super().__init__(Role.ACCEPTOR, limits, config)
        self.clocked = ClockedLoop()
        self._loop = self.clocked.as_loop
        self.events: list[str] = []
        self.on_event: Callable[[Event], None] = lambda _event: None

    def handle_event(self, event: Event) -> None:
        self.events.append(type(event).__name__)
        if isinstance(event, AssociateRequested):
            self.association.accept(negotiate(event.request, ANY_SIZE).answer, self._loop.time())
        self.on_event(event)

    def transport_ended(self) -> None:
        self.events.append("transport ended")

    def advance(self, seconds: float) -> None:
        self.clocked.advance(seconds)

    def write(self, size_bytes: int) -> None:
        """Queue so many bytes, as an answer would."""
        self.association._outbox.add(bytes(size_bytes))
        self.flush()


Connect = Callable[..., tuple[Recorder, FakeTransport]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Make connections with an association, or without; whatever is left at the end is reset."""
    made: list[Recorder] = []

    def connect(
        *, limits: Limits = LIMITS, config: TransportConfig = CONFIG, associated: bool = True
    ) -> tuple[Recorder, FakeTransport]:
        recorder = Recorder(limits, config)
        transport = FakeTransport(recorder)
        recorder.connection_made(transport)
        made.append(recorder)
        if associated:
            recorder.data_received(associate_rq())
            transport.written.clear()
        return recorder, transport

    yield connect
    for recorder in made:
        recorder.reset()
    await settle()
    for recorder in made:
        assert recorder.events[-1] == "transport ended"
        assert recorder.events.count("transport ended") == 1
        assert recorder.events.count("TransportClosed") == 1
        assert recorder.clocked.timers == [], "a timer outlives its connection"


# -- timers -------------------------------------------------------------------------------------------------


async def test_artim_is_absolute_whatever_arrives(connect: Connect) -> None:
    recorder, transport = connect(associated=False)
    for byte in associate_rq()[:9]:
        recorder.data_received(bytes([byte]))
        recorder.advance(1)
    assert transport.fate == "open"
    recorder.advance(1)
    assert transport.fate == "closed"
    assert transport.written == b"", "there is nothing to abort in Sta2"


async def test_the_idle_timer_is_armed_anew_by_every_message(connect: Connect) -> None:
    recorder, transport = connect()
    for _ in range(5):
        recorder.advance(90)
        recorder.data_received(store_rq() + dataset(b"", last=True))
        assert isinstance(recorder.association.state, State)
        recorder.association._requests_received = 0
    assert not transport.eof_written
    recorder.advance(100)
    assert transport.written.endswith(wire.abort(0, 0))
    assert transport.eof_written


async def test_there_is_one_timer_for_each_connection_however_much_happens(connect: Connect) -> None:
    recorder, _ = connect()
    for _ in range(50):
        recorder.data_received(store_rq() + dataset(b"", last=True))
        recorder.write(10)
        recorder.advance(0.1)
    assert len(recorder.clocked.timers) == 1


async def test_the_peers_timers_stand_still_while_we_do_not_read(connect: Connect) -> None:
    recorder, transport = connect()
    recorder.data_received(store_rq() + dataset(b"half"))
    recorder.stop_reading("full")
    recorder.advance(500)
    assert not transport.eof_written
    recorder.go_on_reading("full")
    recorder.advance(59)
    assert not transport.eof_written
    recorder.advance(1)
    assert transport.written.endswith(wire.abort(0, 0))


# -- reading ------------------------------------------------------------------------------------------------


async def test_reading_goes_on_only_when_every_reason_to_stop_is_gone(connect: Connect) -> None:
    recorder, transport = connect()
    recorder.stop_reading("one")
    recorder.stop_reading("two")
    recorder.stop_reading("one")
    recorder.go_on_reading("one")
    recorder.go_on_reading("never given")
    assert not transport.is_reading()
    recorder.go_on_reading("two")
    assert transport.is_reading()


async def test_what_was_read_already_waits_while_reading_is_stopped_and_then_comes_in_order(
    connect: Connect,
) -> None:
    recorder, transport = connect()
    commands: list[int] = []

    def stop_at_each(event: Event) -> None:
        if isinstance(event, CommandReceived):
            commands.append(event.message.message_id)  # type: ignore[attr-defined]
            recorder.stop_reading("busy")

    recorder.on_event = stop_at_each
    recorder.data_received(echo_rq(1) + echo_rq(2)[:20])
    recorder.data_received(echo_rq(2)[20:] + echo_rq(3) + echo_rq(4))
    assert commands == [1]
    recorder.go_on_reading("busy")
    assert commands == [1, 2]
    recorder.go_on_reading("busy")
    recorder.go_on_reading("busy")
    assert commands == [1, 2, 3, 4]
    recorder.go_on_reading("busy")
    assert transport.is_reading()


async def test_nothing_of_what_was_read_is_kept_once_it_was_fed(connect: Connect) -> None:
    recorder, _ = connect()
    recorder.data_received(echo_rq(1) + echo_rq(2))
    assert recorder._unfed.nbytes == 0
    assert recorder._unfed.obj == b"", "an idle association would keep its last read alive"


async def test_reading_that_stops_and_goes_on_inside_an_event_loses_and_repeats_nothing(
    connect: Connect,
) -> None:
    recorder, _ = connect()

    def stop_and_go(event: Event) -> None:
        recorder.stop_reading("for a moment")
        recorder.go_on_reading("for a moment")

    recorder.on_event = stop_and_go
    recorder.data_received(b"".join(echo_rq(number) for number in range(10)))
    assert recorder.events.count("CommandReceived") == 10


# -- writing ------------------------------------------------------------------------------------------------


async def test_a_peer_that_takes_nothing_is_reset_when_the_write_timer_ends(connect: Connect) -> None:
    recorder, transport = connect()
    transport.deaf = True
    recorder.write(100)
    recorder.advance(29.9)
    assert transport.fate == "open"
    recorder.advance(0.1)
    assert transport.fate == "aborted"
    assert (socket.SOL_SOCKET, socket.SO_LINGER) in transport.sock.options


async def test_a_slow_peer_is_kept_as_long_as_it_takes_something(connect: Connect) -> None:
    recorder, transport = connect(limits=replace(LIMITS, idle_seconds=0))
    transport.deaf = True
    recorder.write(9_000)
    for _ in range(20):
        recorder.advance(29)
        transport.take_waiting(10)
        recorder.write(500)
        assert not transport.aborted
    recorder.advance(61)
    assert transport.aborted


async def test_a_peer_that_stops_below_the_low_mark_is_reset_too(connect: Connect) -> None:
    recorder, transport = connect(limits=replace(LIMITS, idle_seconds=0))
    transport.deaf = True
    recorder.write(20_000)
    transport.take_waiting(18_000)
    assert transport.is_reading()
    recorder.advance(61)
    assert transport.aborted


async def test_a_peer_that_was_idle_has_the_whole_time_for_what_is_new(connect: Connect) -> None:
    recorder, transport = connect(limits=replace(LIMITS, idle_seconds=0))
    recorder.write(100)
    recorder.advance(29)
    transport.deaf = True
    recorder.write(100)
    recorder.advance(29)
    assert not transport.aborted
    recorder.advance(1)
    assert transport.aborted


async def test_a_closed_connection_whose_peer_never_takes_the_rest_is_reset(connect: Connect) -> None:
    recorder, transport = connect()
    transport.deaf = True
    recorder.write(100)
    assert recorder.eof_received() is False
    recorder.close_now()
    assert not transport.lost
    recorder.advance(30)
    assert transport.lost


async def test_write_seconds_of_zero_is_never(connect: Connect) -> None:
    recorder, transport = connect(
        limits=replace(LIMITS, idle_seconds=0), config=replace(CONFIG, write_seconds=0)
    )
    transport.deaf = True
    recorder.write(100)
    recorder.advance(10_000)
    assert not transport.aborted


async def test_nothing_is_read_and_writers_wait_while_too_much_waits_for_the_peer(connect: Connect) -> None:
    recorder, transport = connect()
    transport.deaf = True
    recorder.write(10_001)
    waiting = [asyncio.create_task(recorder.writable()) for _ in range(2)]
    await settle()
    assert not transport.is_reading()
    assert not any(task.done() for task in waiting)
    transport.take_waiting(9_000)
    await asyncio.gather(*waiting)
    assert transport.is_reading()


async def test_writers_are_let_go_when_the_connection_ends(connect: Connect) -> None:
    recorder, transport = connect()
    transport.deaf = True
    recorder.write(10_001)
    waiting = asyncio.create_task(recorder.writable())
    await settle()
    transport.vanish()
    await waiting
    await recorder.writable()


async def test_a_writer_that_is_cancelled_does_not_disturb_another(connect: Connect) -> None:
    recorder, transport = connect()
    transport.deaf = True
    recorder.write(10_001)
    first, second = (asyncio.create_task(recorder.writable()) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    assert not second.done()
    transport.take_waiting(10_001)
    await second


@pytest.mark.parametrize("sizes", [[10, 20], [40_000, 40_000], [100_000]])
async def test_what_is_sent_together_is_written_together(connect: Connect, sizes: list[int]) -> None:
    recorder, transport = connect()
    for number, size in enumerate(sizes):
        recorder.association._outbox.add(bytes([number]) * size)
    recorder.flush()
    assert transport.written == b"".join(bytes([number]) * size for number, size in enumerate(sizes))


# -- ends ---------------------------------------------------------------------------------------------------


async def test_after_an_abort_the_write_side_is_shut_and_reading_goes_on_until_the_peers_end(
    connect: Connect,
) -> None:
    recorder, transport = connect()
    recorder.stop_reading("full")
    recorder.abort_association("enough")
    assert transport.written == wire.abort(0, 0)
    assert transport.eof_written
    assert transport.is_reading()
    assert not transport.closed
    recorder.data_received(echo_rq())
    recorder.advance(9.9)
    assert not transport.closed
    if not recorder.eof_received():
        transport.close()
    await settle()
    assert recorder.events[-3:] == ["Aborted", "TransportClosed", "transport ended"]


async def test_after_an_abort_artim_closes_whatever_the_peer_sends(connect: Connect) -> None:
    recorder, transport = connect()
    recorder.abort_association("enough")
    for _ in range(10):
        recorder.data_received(bytes(1000))
        recorder.advance(1)
    assert transport.closed


async def test_a_deaf_peer_does_not_stop_reading_after_an_abort(connect: Connect) -> None:
    recorder, transport = connect()
    transport.deaf = True
    recorder.write(9_990)
    recorder.abort_association("enough")
    recorder.pause_writing()
    assert transport.is_reading()


async def test_a_second_abort_neither_sends_nor_closes(connect: Connect) -> None:
    recorder, transport = connect()
    recorder.abort_association("once")
    recorder.abort_association("twice")
    assert transport.written == wire.abort(0, 0)
    assert not transport.closed


async def test_without_an_association_an_abort_just_closes(connect: Connect) -> None:
    recorder, transport = connect(associated=False)
    recorder.abort_association("nobody there")
    assert transport.closed
    assert transport.written == b""


async def test_an_abort_sent_while_reading_is_stopped_has_what_was_left_unread_dropped(
    connect: Connect,
) -> None:
    recorder, transport = connect()
    recorder.on_event = lambda event: recorder.stop_reading("busy")
    recorder.data_received(echo_rq(1) + echo_rq(2) + wire.abort())
    recorder.abort_association("enough")
    assert recorder.events.count("CommandReceived") == 1
    assert transport.closed, "the A-ABORT behind it is the peer's end"


async def test_what_handling_raises_aborts_and_is_logged_once(
    connect: Connect, logs: list[dict[str, Any]]
) -> None:
    recorder, transport = connect()

    def fail(event: Event) -> None:
        raise ZeroDivisionError

    recorder.on_event = fail
    recorder.data_received(echo_rq(1) + echo_rq(2))
    assert transport.written == wire.abort(2, 0)
    assert [line["event"] for line in logs].count("association.failed") == 2, "the command and the abort"


async def test_primitives_after_the_end_do_nothing(connect: Connect) -> None:
    recorder, transport = connect()
    transport.vanish(ConnectionResetError())
    await settle()
    recorder.stop_reading("late")
    recorder.go_on_reading("late")
    recorder.abort_association("late")
    recorder.close_now()
    recorder.reset()
    recorder.flush()
    assert recorder.peer_address == ("", 0)
    assert transport.written == b""


async def test_a_reset_asks_for_no_linger(connect: Connect) -> None:
    recorder, transport = connect()
    recorder.reset()
    assert transport.aborted
    assert (socket.SOL_SOCKET, socket.SO_LINGER) in transport.sock.options


async def test_every_socket_sends_at_once_and_keeps_alive(connect: Connect) -> None:
    _, transport = connect()
    assert (socket.IPPROTO_TCP, socket.TCP_NODELAY) in transport.sock.options
    assert (socket.SOL_SOCKET, socket.SO_KEEPALIVE) in transport.sock.options


async def test_half_a_message_in_a_small_read_is_acknowledged_at_once(connect: Connect) -> None:
    """A peer with Nagle's algorithm on sends the rest only then: 40 ms later, left to the kernel."""
    recorder, transport = connect()
    quick = (socket.IPPROTO_TCP, socket.TCP_QUICKACK)
    transport.sock.options.clear()
    recorder.data_received(store_rq(1))
    assert quick in transport.sock.options
    transport.sock.options.clear()
    recorder.data_received(dataset(bytes(2 * SMALL_READ_BYTES), last=False))
    assert quick not in transport.sock.options, "several segments are acknowledged by themselves"
    recorder.data_received(dataset(b"end", last=True))
    recorder.data_received(echo_rq(2))
    assert quick not in transport.sock.options, "whole messages are answered"


async def test_what_is_put_off_shares_a_write_with_what_comes_before_the_loop_goes_on(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, transport = connect()
    writes: list[int] = []
    write = transport.write

    def counted(data: bytes) -> None:
        writes.append(len(data))
        write(data)

    monkeypatch.setattr(transport, "write", counted)

    def put_off(count: int) -> None:
        for _ in range(count):
            recorder.association._outbox.add(bytes(100))
            recorder.flush_soon()

    put_off(3)
    assert writes == []
    await settle()
    assert writes == [300]
    put_off(MOST_FLUSHES_PUT_OFF + 2)
    assert writes == [300, 100 * MOST_FLUSHES_PUT_OFF]
    recorder.flush()
    assert writes[2:] == [200]
    await settle()
    assert len(writes) == 3


async def test_nothing_is_asked_of_a_transport_whose_last_write_has_failed(connect: Connect) -> None:
    """The A-ABORT finds the peer gone: then there is no write side to shut and nothing to read."""
    recorder, transport = connect()
    transport.is_broken = True
    recorder.abort_association("no more")
    await settle()
    assert transport.lost
    assert not transport.eof_written
    assert recorder.events[-1] == "transport ended"
