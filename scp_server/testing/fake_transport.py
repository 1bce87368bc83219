"""A socket that is not there: its other end is the test, and its loop's clock is moved by the test."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar, cast

from scp_server.testing.clock import ManualClock

_T = TypeVar("_T")
PEER = ("192.0.2.7", 40_104)


class FakeSocket:
    """Remembers that a linger of zero was asked for, which turns a close into a reset."""

    family = 2

    def __init__(self) -> None:
        self.options: list[tuple[int, int]] = []

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """See `socket.socket.setsockopt`."""
        del value
        self.options.append((level, option))


class FakeTransport(asyncio.Transport):
    """What the protocol under test writes to. While `deaf`, everything written waits for `take_waiting`.

    `connection_lost` follows a close or an abort in a later step of the loop, as with a real transport: after
    `close` only once the buffer is empty.
    """

    def __init__(self, protocol: asyncio.BaseProtocol, *, peer: tuple[str, int] = PEER) -> None:
        super().__init__()
        self._protocol = protocol
        self._peer = peer
        self._high = 65_536
        self._pausing = False
        self._lost = False
        self._closing = False
        self.sock = FakeSocket()
        self.written = bytearray()
        self.waiting = bytearray()
        self.deaf = False
        self.is_broken = False
        """The peer is gone, which the next write finds out."""
        self.reading = True
        self.eof_written = False
        self.aborted = False

    # -- the test's end -----------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """The protocol has closed or aborted it."""
        return self._closing

    @property
    def fate(self) -> str:
        """What the protocol has done with it: `open`, `closed` or `aborted`."""
        return "aborted" if self.aborted else "closed" if self._closing else "open"

    @property
    def lost(self) -> bool:
        """`connection_lost` has been called."""
        return self._lost

    def take_waiting(self, size_bytes: int) -> None:
        """The peer reads so much of what waits."""
        self.written += self.waiting[:size_bytes]
        del self.waiting[:size_bytes]
        if self._pausing and len(self.waiting) <= self._high // 4:
            self._pausing = False
            self._protocol.resume_writing()
        if self._closing and not self.waiting:
            self._lose(None)

    def vanish(self, error: Exception | None = None) -> None:
        """The connection is gone, as by a TCP reset."""
        self._closing = True
        self._lose(error)

    # -- asyncio.Transport --------------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`socket` and `peername`."""
        return {"socket": self.sock, "peername": self._peer}.get(name, default)

    def is_closing(self) -> bool:
        """See `asyncio.BaseTransport`."""
        return self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See `asyncio.WriteTransport`; the low mark is always a quarter."""
        del low
        self._high = 65_536 if high is None else high

    def get_write_buffer_size(self) -> int:
        """See `asyncio.WriteTransport`."""
        return len(self.waiting)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See `asyncio.WriteTransport`. Raises RuntimeError after `write_eof`."""
        if self.eof_written:
            raise RuntimeError("written behind the end")
        if self.is_broken:
            self.vanish(ConnectionResetError())
            return
        if not (self.deaf or self.waiting):
            self.written += data
            return
        self.waiting += data
        if len(self.waiting) > self._high and not self._pausing:
            self._pausing = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """See `asyncio.WriteTransport`."""
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        """See `asyncio.WriteTransport`. Raises RuntimeError once it is closed, as uvloop's does."""
        self._must_be_open()
        self.eof_written = True

    def can_write_eof(self) -> bool:
        """See `asyncio.WriteTransport`."""
        return True

    def is_reading(self) -> bool:
        """See `asyncio.ReadTransport`."""
        return self.reading

    def pause_reading(self) -> None:
        """See `asyncio.ReadTransport`."""
        self.reading = False

    def resume_reading(self) -> None:
        """See `asyncio.ReadTransport`. Raises RuntimeError once it is closed, as uvloop's does."""
        self._must_be_open()
        self.reading = True

    def close(self) -> None:
        """See `asyncio.BaseTransport`."""
        self._closing = True
        if not self.waiting:
            self._lose(None)

    def abort(self) -> None:
        """See `asyncio.WriteTransport`."""
        self._closing = self.aborted = True
        self._lose(None)

    def _must_be_open(self) -> None:
        if self._closing:
            raise RuntimeError("the handler is closed")

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, error)


class ClockedLoop:
    """The running loop with another clock: timers fire in `advance`, and only there."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self._loop = asyncio.get_running_loop()
        self._timers: list[tuple[float, int, _Timer]] = []
        self._order = itertools.count()

    @property
    def as_loop(self) -> asyncio.AbstractEventLoop:
        """Itself, for those who ask for a loop and use no more of it than there is."""
        return cast(asyncio.AbstractEventLoop, self)

    @property
    def timers(self) -> list[float]:
        """When the timers that are set will fire."""
        return sorted(when for when, _, timer in self._timers if not timer.cancelled)

    def time(self) -> float:
        """See `asyncio.AbstractEventLoop`."""
        return self.clock.now

    def create_future(self) -> asyncio.Future[Any]:
        """See `asyncio.AbstractEventLoop`."""
        return self._loop.create_future()

    def create_task(self, coroutine: Coroutine[Any, Any, _T], *, name: str | None = None) -> asyncio.Task[_T]:
        """See `asyncio.AbstractEventLoop`."""
        return self._loop.create_task(coroutine, name=name)

    def call_soon(self, callback: Callable[..., object], *args: object) -> asyncio.Handle:
        """See `asyncio.AbstractEventLoop`."""
        return self._loop.call_soon(callback, *args)

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> _Timer:
        """See `asyncio.AbstractEventLoop`."""
        timer = _Timer(callback, args)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Move the clock on, and fire what is due at its time, in order."""
        end = self.clock.now + seconds
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                self.clock.advance(max(0.0, when - self.clock.now))
                timer.fire()
        self.clock.advance(end - self.clock.now)


class _Timer:
    """Stands in for `asyncio.TimerHandle`."""

    def __init__(self, callback: Callable[..., object], args: tuple[object, ...]) -> None:
        self._callback = callback
        self._args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def fire(self) -> None:
        self._callback(*self._args)
