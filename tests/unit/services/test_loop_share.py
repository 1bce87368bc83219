"""Those who read data sets share the event loop with everybody else, however much there is to read."""

from __future__ import annotations

import asyncio
from collections.abc import Generator

import pytest

from scp_server.services.loop_share import LoopShare
from scp_server.testing.clock import ManualClock

STEP_SECONDS = 0.001


@pytest.fixture
def share(manual_clock: ManualClock) -> LoopShare:
    return LoopShare(0.002, manual_clock)


def _steps(clock: ManualClock, count: int, seconds: float = STEP_SECONDS) -> Generator[None, None, None]:
    for _ in range(count):
        clock.advance(seconds)
        yield


async def _longest_turn(clock: ManualClock, running: asyncio.Future[list[None]]) -> float:
    """The most time that one turn of the loop took, on the clock, until all is done."""
    longest, began = 0.0, clock()
    while not running.done():
        await asyncio.sleep(0)
        longest, began = max(longest, clock() - began), clock()
    return longest


@pytest.mark.parametrize("readers", [1, 2, 50])
async def test_a_turn_takes_its_share_and_two_steps_at_most_however_many_read(
    share: LoopShare, manual_clock: ManualClock, readers: int
) -> None:
    running = asyncio.gather(*(share.run(_steps(manual_clock, 20)) for _ in range(readers)))
    assert await _longest_turn(manual_clock, running) <= 0.002 + 2 * STEP_SECONDS + 1e-9
    assert manual_clock() == pytest.approx(readers * 20 * STEP_SECONDS)


def test_usual_headers_are_read_without_waiting(share: LoopShare, manual_clock: ManualClock) -> None:
    async def read_some() -> None:
        for _ in range(5):
            reading = share.run(_steps(manual_clock, 3, 0.000_1))
            with pytest.raises(StopIteration):
                reading.send(None)

    asyncio.run(read_some())


async def test_who_waits_goes_on_in_the_order_of_asking(share: LoopShare, manual_clock: ManualClock) -> None:
    order: list[str] = []

    def named(name: str) -> Generator[None, None, None]:
        for step in _steps(manual_clock, 3, 0.002):
            order.append(name)
            yield step

    await asyncio.gather(*(share.run(named(name)) for name in "abc"))
    assert "".join(order) == "a" + "abc" + "abc" + "bc"


async def test_who_is_cancelled_while_waiting_keeps_nobody_from_going_on(
    share: LoopShare, manual_clock: ManualClock
) -> None:
    readers = [asyncio.create_task(share.run(_steps(manual_clock, 5, 0.002))) for _ in range(3)]
    await asyncio.sleep(0)
    readers[0].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    readers[1].cancel()
    await readers[2]
    assert not share._waiting


async def test_what_the_steps_return_is_returned(share: LoopShare) -> None:
    def reading() -> Generator[None, None, str]:
        yield
        return "a header"

    assert await share.run(reading()) == "a header"


async def test_what_a_step_raises_leaves(share: LoopShare) -> None:
    def failing() -> Generator[None, None, None]:
        yield
        raise ValueError("no data set")

    with pytest.raises(ValueError, match="no data set"):
        await share.run(failing())
