from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from scp_server.observability.loop_lag import INTERVAL_SECONDS, LoopLag
from scp_server.observability.measures import LAG_BOUNDS_SECONDS, Histogram
from scp_server.testing.clock import ManualClock


class _Loop:
    """Keeps what it is asked to call, and calls it as late as it is told."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.calls: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []

    def call_later(self, seconds: float, callback: Callable[..., None], *arguments: Any) -> None:
        self.calls.append((seconds, callback, arguments))

    def call_late(self, late_seconds: float) -> None:
        seconds, callback, arguments = self.calls.pop(0)
        self.clock.advance(seconds + late_seconds)
        callback(*arguments)


def test_it_observes_how_late_it_is_called_and_asks_again(manual_clock: ManualClock) -> None:
    lag = Histogram(LAG_BOUNDS_SECONDS)
    meter, loop = LoopLag(lag, manual_clock), _Loop(manual_clock)
    meter._ask(loop)  # type: ignore[arg-type]
    for late_seconds in (0.0, 0.25, 3.0):
        loop.call_late(late_seconds)
    assert sum(lag.counts) == 3
    assert lag.sum == pytest.approx(3.25)
    assert [seconds for seconds, *_ in loop.calls] == [INTERVAL_SECONDS]


def test_a_call_that_comes_early_is_not_late(manual_clock: ManualClock) -> None:
    lag = Histogram(LAG_BOUNDS_SECONDS)
    meter, loop = LoopLag(lag, manual_clock), _Loop(manual_clock)
    meter._ask(loop)  # type: ignore[arg-type]
    loop.call_late(-0.002)
    assert (lag.counts[0], lag.sum) == (1, 0.0)


def test_whoever_wants_to_is_called_as_often(manual_clock: ManualClock) -> None:
    ticks: list[float] = []
    meter = LoopLag(Histogram(LAG_BOUNDS_SECONDS), manual_clock, tick=lambda: ticks.append(manual_clock()))
    loop = _Loop(manual_clock)
    meter._ask(loop)  # type: ignore[arg-type]
    for late_seconds in (0.0, 0.25):
        loop.call_late(late_seconds)
    assert ticks == [INTERVAL_SECONDS, 2 * INTERVAL_SECONDS + 0.25]


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
