"""How late the event loop is: whatever blocks it makes every peer wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from scp_server.observability.measures import Histogram

INTERVAL_SECONDS = 0.5


class LoopLag:
    """Asks to be called every `INTERVAL_SECONDS`, and observes how much later that happens.

    A loop that is blocked for long is observed once, with all of that time. The clock is not the loop's own,
    which may stand still while the loop's callbacks run. `tick`, where there is one, is called as often.
    """

    def __init__(
        self,
        lag: Histogram,
        clock: Callable[[], float] = time.monotonic,
        tick: Callable[[], None] | None = None,
    ) -> None:
        self._lag = lag
        self._tick = tick
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin in the running event loop."""
        self._ask(asyncio.get_running_loop())

    def stop(self) -> None:
        """End. A second time does nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        due = self._clock() + INTERVAL_SECONDS
        self._timer = loop.call_later(INTERVAL_SECONDS, self._called, loop, due)

    def _called(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._lag.observe(max(0.0, self._clock() - due))
        if self._tick is not None:
            self._tick()
        self._ask(loop)
