"""How late the event loop is: whatever blocks it makes every peer wait."""

from __future__ import annotations

import asyncio

from scp_server.observability.measures import Histogram

INTERVAL_SECONDS = 0.5


class LoopLag:
    """Asks to be called every `INTERVAL_SECONDS`, and observes how much later that happens.

    A loop that is blocked for long is observed once, with all of that time.
    """

    def __init__(self, lag: Histogram) -> None:
        self._lag = lag
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
        due = loop.time() + INTERVAL_SECONDS
        self._timer = loop.call_at(due, self._called, loop, due)

    def _called(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._lag.observe(max(0.0, loop.time() - due))
        self._ask(loop)
