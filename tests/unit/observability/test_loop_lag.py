from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from scp_server.observability.loop_lag import INTERVAL_SECONDS, LoopLag
from scp_server.observability.measures import LAG_BOUNDS_SECONDS, Histogram


class _Loop:
    """Keeps what it is asked to call, and calls it as late as it is told."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, callback: Callable[..., None], *arguments: Any) -> None:
        self.calls.append((at, callback, arguments))

    def call_late(self, seconds: float) -> None:
        at, callback, arguments = self.calls.pop(0)
        self.now = at + seconds
        callback(*arguments)


def test_it_observes_how_late_it_is_called_and_asks_again() -> None:
    lag = Histogram(LAG_BOUNDS_SECONDS)
    meter, loop = LoopLag(lag), _Loop()
    meter._ask(loop)  # type: ignore[arg-type]
    assert [at for at, *_ in loop.calls] == [100.0 + INTERVAL_SECONDS]
    for seconds in (0.0, 0.25, 3.0):
        loop.call_late(seconds)
    assert sum(lag.counts) == 3
    assert lag.sum == pytest.approx(3.25)
    assert [at for at, *_ in loop.calls] == [loop.now + INTERVAL_SECONDS]


async def test_stopped_it_is_called_no_more() -> None:
    loop = asyncio.get_running_loop()
    meter = LoopLag(Histogram(LAG_BOUNDS_SECONDS))
    meter.start()
    timer = meter._timer
    assert timer is not None
    assert loop.time() < timer.when() <= loop.time() + INTERVAL_SECONDS
    meter.stop()
    meter.stop()
    assert timer.cancelled()
