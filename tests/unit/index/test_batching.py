"""How requests become batches, and what becomes of those who wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
import pytest_asyncio

from scp_server.errors import IndexFailure, IndexUnavailable
from scp_server.index.batching import BatchQueue


class _Performer:
    """Doubles numbers; waits at the gate before each batch, when told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.finished_in = ""

    def perform(self, batch: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(batch))
        self.entered.set()
        self.gate.wait(30)
        if 13 in batch:
            raise RuntimeError("thirteen")
        return [IndexUnavailable("zero") if number == 0 else 2 * number for number in batch]

    def finish(self) -> None:
        self.finished_in = threading.current_thread().name


Make = Callable[..., BatchQueue[int, int]]


@pytest.fixture
def performer() -> _Performer:
    return _Performer()


@pytest_asyncio.fixture
async def make(performer: _Performer) -> AsyncIterator[Make]:
    queues: list[BatchQueue[int, int]] = []

    def make(*, max_batch: int = 8, max_queue: int = 100) -> BatchQueue[int, int]:
        queue: BatchQueue[int, int] = BatchQueue(
            performer.perform, performer.finish, max_batch=max_batch, max_queue=max_queue, name="performer"
        )
        queue.start()
        queues.append(queue)
        return queue

    yield make
    performer.gate.set()
    for queue in queues:
        await queue.close()


async def _hold_with(queue: BatchQueue[int, int], performer: _Performer, number: int) -> asyncio.Task[int]:
    """Submit a number and return once the thread stands at the gate with it."""
    performer.gate.clear()
    performer.entered.clear()
    task = asyncio.create_task(queue.submit(number))
    await asyncio.to_thread(performer.entered.wait, 30)
    return task


async def test_a_lone_request_is_performed_at_once(make: Make, performer: _Performer) -> None:
    assert await make().submit(21) == 42
    assert performer.batches == [[21]]


async def test_what_waits_becomes_batches_in_order(make: Make, performer: _Performer) -> None:
    queue = make(max_batch=4)
    held = await _hold_with(queue, performer, 1)
    rest = [asyncio.create_task(queue.submit(number)) for number in range(2, 12)]
    await asyncio.sleep(0)
    performer.gate.set()
    assert await asyncio.gather(held, *rest) == [2 * number for number in range(1, 12)]
    assert performer.batches == [[1], [2, 3, 4, 5], [6, 7, 8, 9], [10, 11]]


async def test_an_answer_that_is_an_exception_is_raised_for_its_own_caller(make: Make) -> None:
    queue = make()
    results = await asyncio.gather(*(queue.submit(number) for number in (1, 0, 2)), return_exceptions=True)
    assert results[::2] == [2, 4]
    assert isinstance(results[1], IndexUnavailable)


async def test_a_performer_that_raises_fails_its_batch_and_no_more(make: Make) -> None:
    queue = make()
    with pytest.raises(IndexFailure, match="thirteen"):
        await queue.submit(13)
    assert await queue.submit(14) == 28


async def test_a_full_queue_makes_the_next_caller_wait(make: Make, performer: _Performer) -> None:
    queue = make(max_queue=2)
    held = await _hold_with(queue, performer, 1)
    second, third = (asyncio.create_task(queue.submit(number)) for number in (2, 3))
    await asyncio.sleep(0)
    assert queue._waiting.qsize() == 1
    performer.gate.set()
    assert list(await asyncio.gather(held, second, third)) == [2, 4, 6]
    # The third may still share a transaction with the second, if its place is free in time.
    assert performer.batches in ([[1], [2], [3]], [[1], [2, 3]])


async def test_cancelled_while_waiting_for_a_place_nothing_happens(make: Make, performer: _Performer) -> None:
    queue = make(max_queue=1)
    held = await _hold_with(queue, performer, 1)
    waiting = asyncio.create_task(queue.submit(2))
    await asyncio.sleep(0)
    waiting.cancel()
    performer.gate.set()
    await held
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await queue.submit(3) == 6
    assert performer.batches == [[1], [3]]


async def test_cancelled_after_handing_over_the_request_is_performed(
    make: Make, performer: _Performer
) -> None:
    queue = make(max_queue=2)
    held = await _hold_with(queue, performer, 1)
    waiting = asyncio.create_task(queue.submit(2))
    await asyncio.sleep(0)
    waiting.cancel()
    performer.gate.set()
    await held
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert list(await asyncio.gather(queue.submit(3), queue.submit(4))) == [6, 8]
    assert performer.batches[1][0] == 2


async def test_close_performs_what_was_handed_over_and_refuses_the_rest(
    make: Make, performer: _Performer
) -> None:
    queue = make(max_queue=3)
    held = await _hold_with(queue, performer, 1)
    accepted = [asyncio.create_task(queue.submit(number)) for number in (2, 3)]
    too_late = asyncio.create_task(queue.submit(4))
    await asyncio.sleep(0)
    closing = asyncio.create_task(queue.close())
    await asyncio.sleep(0)
    performer.gate.set()
    await closing
    assert await asyncio.gather(held, *accepted) == [2, 4, 6]
    with pytest.raises(IndexUnavailable):
        await too_late
    with pytest.raises(IndexUnavailable):
        await queue.submit(5)
    assert performer.finished_in == "performer"


async def test_a_queue_never_started_refuses_and_closes(performer: _Performer) -> None:
    queue: BatchQueue[int, int] = BatchQueue(
        performer.perform, performer.finish, max_batch=1, max_queue=1, name="performer"
    )
    with pytest.raises(IndexUnavailable):
        await queue.submit(1)
    await queue.close()


def test_a_loop_that_is_gone_ends_the_thread(performer: _Performer) -> None:
    async def leave() -> None:
        queue: BatchQueue[int, int] = BatchQueue(
            performer.perform, performer.finish, max_batch=1, max_queue=1, name="orphan"
        )
        queue.start()
        task = await _hold_with(queue, performer, 1)
        task.cancel()

    asyncio.run(leave())
    (orphan,) = (thread for thread in threading.enumerate() if thread.name == "orphan")
    performer.gate.set()
    orphan.join(30)
    assert not orphan.is_alive()
    assert performer.finished_in == "orphan"
