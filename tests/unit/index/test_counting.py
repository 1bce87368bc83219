"""What the index's queue counts: batches, who waits, and what could not be recorded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from scp_server.errors import IndexFailure, IndexUnavailable
from scp_server.index.batching import BatchQueue
from scp_server.observability.measures import IndexMeasures

Outcome = int | Exception


async def test_batches_waiters_and_failures_are_counted() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def perform(batch: Sequence[int]) -> list[Outcome]:
        begun.set()
        go_on.wait(10)
        return [IndexFailure("no") if request < 0 else request for request in batch]

    measures = IndexMeasures()
    queue: BatchQueue[int, int] = BatchQueue(
        perform, lambda: None, max_batch=256, max_queue=4, name="test", measures=measures
    )
    queue.start()
    first = asyncio.create_task(queue.submit(1))
    await asyncio.to_thread(begun.wait, 10)
    others = [asyncio.create_task(queue.submit(request)) for request in (2, -1, 3)]
    fifth = asyncio.create_task(queue.submit(5))
    await asyncio.sleep(0)
    assert (measures.waiting, sum(measures.batch_entries.counts)) == (5, 0), "who waits for a place counts"
    go_on.set()
    results = await asyncio.gather(first, *others, fifth, return_exceptions=True)
    assert [result for result in results if not isinstance(result, IndexFailure)] == [1, 2, 3, 5]
    assert (measures.waiting, measures.failures) == (0, 1)
    await queue.close()
    assert measures.batch_entries.sum == 5
    assert sum(measures.batch_seconds.counts) == sum(measures.batch_entries.counts)
    with pytest.raises(IndexUnavailable):
        await queue.submit(6)
    assert (measures.waiting, measures.failures) == (0, 2)
