"""One socket and its `Association`: bytes in, bytes out, timers, and an end that the peer gets to see.

Shared by the acceptor's `Connection` and the `Requestor`: neither knows about sockets beyond this.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast

from scp_server.errors import LocalProtocolError
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import ReadingStop
from scp_server.protocol.association import Association, Role
from scp_server.protocol.events import Event
from scp_server.protocol.limits import Limits
from scp_server.protocol.pdu import AbortSource

log = get_logger(__name__)

_LINGER_RESET = struct.pack("ii", 1, 0)
READ_BYTES = 262_144
"""The most that asyncio's transports read at once."""
_SMALL_WRITE_BYTES = 65_536
"""Up to this many bytes are joined, so that a response leaves in one segment."""
SMALL_READ_BYTES = 8_192
"""A read above this is acknowledged at once by every kernel: it is more than one segment."""
_TCP_QUICKACK = getattr(socket, "TCP_QUICKACK", 0)
"""Linux has it."""
MOST_FLUSHES_PUT_OFF = 16
"""Small messages that are sent in one write; more would keep a peer waiting for what it could work on."""

_NOTHING = memoryview(b"")


@dataclass(frozen=True, slots=True)
class TransportConfig:
    """Bounds of the sending side. `write_seconds` of 0 means never."""

    send_buffer_bytes: int = 65_536
    """What may wait for a peer that does not read, before we stop reading and producing."""
    write_seconds: float = 30.0
    """How long the peer may take no byte of what waits for it; then the connection is reset."""


class AssociationTransport(asyncio.BaseProtocol, ABC):
    """Feeds an `Association` from a transport and writes what it wants sent.

    Subclasses say how they are read (`asyncio.Protocol` or `asyncio.BufferedProtocol`). They get its events
    through `handle_event`, in order, and `transport_ended` once, last.
    """

    association: Association

    def __init__(self, role: Role, limits: Limits, config: TransportConfig) -> None:
        self._role = role
        self._limits = limits
        self._transport_config = config
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._write_deadline: float | None = None
        self._written_bytes = 0
        self._taken_bytes = 0
        self._writing_paused = False
        self._drained: asyncio.Future[None] | None = None
        self._write_side_shut = False
        self._reading_stops: set[str] = set()
        self._unfed = _NOTHING
        self._feeding = False
        self._pumping = False
        self._flushes_wanted = 0
        self._socket: socket.socket | None = None
        self.sending = asyncio.Lock()
        """Held while a message is handed on in pieces: nothing may come between them (PS3.8 E.1)."""
        self.ended = False
        self.bytes_received = 0

    @abstractmethod
    def handle_event(self, event: Event) -> None:
        """Take one event. An exception from here aborts the association."""

    @abstractmethod
    def transport_ended(self) -> None:
        """The socket is gone; nothing follows."""

    def reading_stopped(self, why: str) -> None:
        """`why` began to stop reading. For subclasses that count."""

    def reading_went_on(self, why: str) -> None:
        """`why` stops reading no longer, or the socket is gone. Follows every `reading_stopped` once."""

    # -- asyncio's protocols ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the socket's options and start the association's life (PS3.8 9.2, Evt2 or Evt5)."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._transport_config.send_buffer_bytes)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = sock if _TCP_QUICKACK else None
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.association = Association(self._role, self._limits, now=self._loop.time())
        self._arm_timer()

    def data_received(self, data: bytes | memoryview) -> None:
        """Feed the core; its views keep `data` alive, which must not change while they are held."""
        self.bytes_received += len(data)
        # Some event loops still deliver what they had read when reading was stopped.
        self._unfed = memoryview(b"".join((self._unfed, data)) if self._unfed else data)
        self._feed()
        if (
            len(data) <= SMALL_READ_BYTES
            and self._socket is not None
            and self.association.message_in_progress
        ):
            # The peer's next write may wait for this one to be acknowledged (Nagle), and the kernel would do
            # that 40 ms later: nothing of ours goes out before the message is whole.
            self._socket.setsockopt(socket.IPPROTO_TCP, _TCP_QUICKACK, 1)

    def eof_received(self) -> bool:
        """The peer sends no more (Evt17); what we still owe it is written before the socket closes."""
        self.association.receive_eof(self._loop.time())
        self._pump()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed, whoever did it."""
        self._unfed = _NOTHING
        self.association.receive_eof(self._loop.time())
        self._pump()
        self._forget_stops()
        self.ended = True
        self._transport = self._socket = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._let_writers_go()
        self.transport_ended()

    def never_made(self) -> None:
        """Whoever connects has given up, and closed the socket: some event loops do not say so here."""
        self._transport = self._socket = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause_writing(self) -> None:
        """The peer does not read: read no more from it, and let what produces wait."""
        self._writing_paused = True
        if not self._write_side_shut:
            self.stop_reading(ReadingStop.PEER_DOES_NOT_READ)

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._writing_paused = False
        self._let_writers_go()
        self.go_on_reading(ReadingStop.PEER_DOES_NOT_READ)

    # -- for subclasses -----------------------------------------------------------------------------------

    @property
    def peer_address(self) -> tuple[str, int]:
        """Host and port of the peer; empty and 0 when unknown."""
        peer = self._transport.get_extra_info("peername") if self._transport is not None else None
        return (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) and len(peer) >= 2 else ("", 0)

    def stop_reading(self, why: str) -> None:
        """Read nothing until `go_on_reading` was called for every `why`; the peer's timers stand still."""
        if not self._reading_stops and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            self.association.pause_timers(self._loop.time())
        if why not in self._reading_stops:
            self._reading_stops.add(why)
            if not self.ended:
                self.reading_stopped(why)

    def go_on_reading(self, why: str) -> None:
        """Take back one reason of `stop_reading`."""
        if why not in self._reading_stops:
            return
        self._reading_stops.discard(why)
        if not self.ended:
            self.reading_went_on(why)
        self._feed()
        if not self._reading_stops and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self.association.resume_timers(self._loop.time())
            self._arm_timer()

    async def writable(self) -> None:
        """Wait until the peer has taken most of what waits for it; not at all when the socket is gone."""
        if self._writing_paused and not self.ended:
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)

    def flush(self) -> None:
        """Carry out what primitives left behind: events, bytes to send, timers, the end."""
        self._pump()

    def flush_soon(self) -> None:
        """`flush` before anything else happens in the loop: what a producer queues until then shares a write.

        Of more than MOST_FLUSHES_PUT_OFF, every one that many is a `flush`.
        """
        self._flushes_wanted += 1
        if self._flushes_wanted >= MOST_FLUSHES_PUT_OFF:
            self.flush()
        elif self._flushes_wanted == 1:
            self._loop.call_soon(self._flush_wanted)

    def _flush_wanted(self) -> None:
        if self._flushes_wanted:
            self.flush()

    def abort_association(
        self, text: str, *, source: int = AbortSource.SERVICE_USER, reason: int = 0
    ) -> None:
        """A-ABORT, then what `flush` does. Where there is no association to abort, the socket is closed."""
        self._abort(text, source, reason)
        self._pump()

    def close_now(self) -> None:
        """Close once what waits is written, without waiting for the peer's end."""
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Close at once with a TCP reset, and hold nothing any more: for peers that have what others need."""
        if self._transport is not None:
            sock = self._transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self._transport.abort()
            self._unfed = _NOTHING
            self.association.receive_eof(self._loop.time())

    # -- inside -------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        """Feed what has been read, one command set at a time, for as long as nothing stops reading."""
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._unfed and not self._reading_stops:
                taken = self.association.receive_data(self._unfed, self._loop.time(), stop_after_command=True)
                self._unfed = self._unfed[taken:] if taken < len(self._unfed) else _NOTHING
                self._pump()
        finally:
            self._feeding = False

    def _pump(self) -> None:
        if self._pumping:
            return
        self._pumping = True
        self._flushes_wanted = 0
        try:
            while (event := self.association.next_event()) is not None:
                try:
                    self.handle_event(event)
                except Exception:
                    log.exception("association.failed", event_type=type(event).__name__)
                    self._abort("internal error", AbortSource.SERVICE_PROVIDER, 0)
        finally:
            self._pumping = False
        self._write_out()
        self._arm_timer()

    def _abort(self, text: str, source: int, reason: int) -> None:
        if self.association.write_shutdown_wanted:
            return  # It has ended, and the peer is given the time to see how.
        try:
            self.association.abort(self._loop.time(), source=source, reason=reason, text=text)
        except LocalProtocolError:
            self.close_now()

    def _write_out(self) -> None:
        data = self.association.data_to_send()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if data and not self._write_side_shut:
            size_bytes = sum(map(len, data))
            if self._transport_config.write_seconds and transport.get_write_buffer_size() == 0:
                self._write_deadline = self._loop.time() + self._transport_config.write_seconds
                self._taken_bytes = self._written_bytes
            self._written_bytes += size_bytes
            if len(data) == 1:
                transport.write(data[0])
            elif size_bytes <= _SMALL_WRITE_BYTES:
                transport.write(b"".join(data))
            else:
                transport.writelines(data)
            if transport.is_closing():
                return  # The write has failed, and nothing may be asked of it any more.
        if self.association.closed:
            transport.close()
        elif self.association.write_shutdown_wanted and not self._write_side_shut:
            self._write_side_shut = True
            # Reading goes on until the peer's end or ARTIM: a close with unread bytes would become a reset,
            # and a reset can overtake the A-ABORT (PS3.8 9.2, Sta13).
            self._forget_stops()
            transport.resume_reading()
            self.association.resume_timers(self._loop.time())
            try:
                transport.write_eof()
            except OSError:
                transport.abort()
            self._feed()

    def _arm_timer(self) -> None:
        """Keep one timer, set no later than the next deadline; one that fires early sets itself anew."""
        if self._transport is None:
            return
        at = self.association.next_timer()
        if self._write_deadline is not None:
            at = self._write_deadline if at is None else min(at, self._write_deadline)
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        now = self._loop.time()
        if self._write_deadline is not None and now >= self._write_deadline and self._transport is not None:
            waiting_bytes = self._transport.get_write_buffer_size()
            taken_bytes = self._written_bytes - waiting_bytes
            if waiting_bytes == 0:
                self._write_deadline = None
            elif taken_bytes <= self._taken_bytes:
                log.info("connection.deaf", peer_host=self.peer_address[0], waiting_bytes=waiting_bytes)
                self.reset()
                return
            else:
                self._taken_bytes = taken_bytes
                self._write_deadline = now + self._transport_config.write_seconds
        self.association.handle_timer(now)
        self._pump()

    def _forget_stops(self) -> None:
        while self._reading_stops:
            self.reading_went_on(self._reading_stops.pop())

    def _let_writers_go(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None
