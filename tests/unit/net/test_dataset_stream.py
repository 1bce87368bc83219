"""A data set between socket and service."""

from __future__ import annotations

import asyncio
import contextlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scp_server.errors import AssociationLost
from scp_server.net.dataset_stream import COPIED_FRAGMENT_BYTES, KEPT_ALIVE_AT_MOST, DatasetStream


class Ledger:
    """Counts what a stream releases."""

    def __init__(self) -> None:
        self.released_bytes = 0

    def __call__(self, size_bytes: int) -> None:
        self.released_bytes += size_bytes


def _view(text: bytes) -> memoryview:
    return memoryview(text)


async def _read_all(stream: DatasetStream) -> list[bytes]:
    return [b"".join(chunks) async for chunks in stream.chunks()]


async def test_fragments_that_wait_come_out_together() -> None:
    stream = DatasetStream(Ledger(), ended=False)
    stream.push(_view(b"ab"), last=False)
    stream.push(_view(b"cd"), last=True)
    assert await _read_all(stream) == [b"abcd"]


async def test_a_request_without_a_data_set_has_an_empty_stream() -> None:
    assert await _read_all(DatasetStream(Ledger(), ended=True)) == []


async def test_the_reader_waits_for_what_has_not_arrived() -> None:
    stream = DatasetStream(Ledger(), ended=False)
    reading = asyncio.create_task(_read_all(stream))
    await asyncio.sleep(0)
    stream.push(_view(b"ab"), last=False)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    stream.push(_view(b""), last=True)
    assert await reading == [b"ab"]


async def test_an_association_that_ends_too_early_raises_after_what_arrived() -> None:
    stream = DatasetStream(Ledger(), ended=False)
    stream.push(_view(b"ab"), last=False)
    stream.fail(AssociationLost("gone"))
    steps = stream.chunks()
    assert [bytes(chunk) for chunk in await anext(steps)] == [b"ab"]
    with pytest.raises(AssociationLost):
        await anext(steps)


async def test_an_association_that_ends_after_the_data_set_changes_nothing() -> None:
    stream = DatasetStream(Ledger(), ended=False)
    stream.push(_view(b"ab"), last=True)
    stream.fail(AssociationLost("gone"))
    assert await _read_all(stream) == [b"ab"]


async def test_pressure_is_an_empty_list_after_what_waits() -> None:
    stream = DatasetStream(Ledger(), ended=False)
    stream.push(_view(b"ab"), last=False)
    stream.press()
    steps = stream.chunks()
    assert [bytes(chunk) for chunk in await anext(steps)] == [b"ab"]
    assert await anext(steps) == []


async def test_there_is_no_pressure_on_one_that_holds_nothing() -> None:
    stream = DatasetStream(Ledger(), ended=False)
    stream.press()
    reading = asyncio.create_task(_read_all(stream))
    await asyncio.sleep(0)
    stream.push(_view(b""), last=True)
    assert await reading == []


async def test_release_never_gives_more_than_was_taken() -> None:
    ledger = Ledger()
    stream = DatasetStream(ledger, ended=False)
    stream.push(_view(b"abcd"), last=True)
    stream.release(3)
    stream.release(30)
    assert ledger.released_bytes == 4
    assert stream.held_bytes == 0


async def test_discarding_releases_at_once_and_drops_what_comes() -> None:
    ledger = Ledger()
    stream = DatasetStream(ledger, ended=False)
    stream.push(_view(b"abcd"), last=False)
    stream.discard()
    stream.push(_view(b"ef"), last=False)
    assert ledger.released_bytes == 6
    assert stream.received_bytes == 6


async def test_drain_ends_with_the_data_set() -> None:
    ledger = Ledger()
    stream = DatasetStream(ledger, ended=False)
    draining = asyncio.create_task(stream.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    stream.push(_view(b"ab"), last=True)
    await draining
    assert ledger.released_bytes == 2


async def test_drain_raises_when_the_end_never_comes() -> None:
    stream = DatasetStream(Ledger(), ended=False)
    stream.fail(AssociationLost("gone"))
    with pytest.raises(AssociationLost):
        await stream.drain()


# -- fragments that are too small to be worth a view ---------------------------------------------------------


async def test_small_fragments_wait_for_company_and_come_joined() -> None:
    stream = DatasetStream(Ledger(), ended=False)
    steps = stream.chunks()
    reading = asyncio.ensure_future(anext(steps))
    for _ in range(COPIED_FRAGMENT_BYTES - 1):
        stream.push(_view(b"x"), last=False)
    await asyncio.sleep(0)
    assert not reading.done()
    stream.push(_view(b"y"), last=False)
    assert [bytes(chunk) for chunk in await reading] == [b"x" * (COPIED_FRAGMENT_BYTES - 1) + b"y"]
    assert stream.held_bytes == COPIED_FRAGMENT_BYTES


async def test_a_large_fragment_keeps_its_place_behind_small_ones_and_is_not_copied() -> None:
    stream = DatasetStream(Ledger(), ended=False)
    large = bytes(COPIED_FRAGMENT_BYTES)
    stream.push(_view(b"a"), last=False)
    stream.push(_view(b"b"), last=False)
    stream.push(_view(large), last=False)
    stream.push(_view(b"c"), last=False)
    stream.push(_view(b""), last=True)
    chunks = [chunk async for part in stream.chunks() for chunk in part]
    assert [bytes(chunk) for chunk in chunks] == [b"ab", large, b"c"]
    assert chunks[1].obj is large


async def test_a_fragment_does_not_keep_alive_much_more_than_itself() -> None:
    stream = DatasetStream(Ledger(), ended=False)
    read = bytes(KEPT_ALIVE_AT_MOST * COPIED_FRAGMENT_BYTES)
    stream.push(memoryview(read)[:COPIED_FRAGMENT_BYTES], last=False)
    stream.push(memoryview(read + b"x")[:COPIED_FRAGMENT_BYTES], last=True)
    kept, copied = [chunk async for part in stream.chunks() for chunk in part]
    assert kept.obj is read
    assert len(memoryview(copied.obj)) == COPIED_FRAGMENT_BYTES


async def test_many_tiny_fragments_cost_what_their_bytes_cost() -> None:
    stream = DatasetStream(Ledger(), ended=False)
    read = memoryview(bytes(200_000))
    tracemalloc.start()
    try:
        for offset in range(len(read)):
            stream.push(read[offset : offset + 1], last=False)
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 2 * len(read)


async def test_small_fragments_are_given_away_before_the_end_under_pressure() -> None:
    stream = DatasetStream(Ledger(), ended=False)
    steps = stream.chunks()
    reading = asyncio.ensure_future(anext(steps))
    stream.push(_view(b"ab"), last=False)
    await asyncio.sleep(0)
    stream.press()
    assert [bytes(chunk) for chunk in await reading] == [b"ab"]
    assert await anext(steps) == []


@given(
    sizes=st.lists(st.sampled_from([0, 1, 7, 2047, 2048, 2049, 5000]), max_size=30),
    steps=st.lists(st.sampled_from(["read", "press", ""]), max_size=30),
)
def test_bytes_come_out_as_they_went_in_however_they_were_cut(sizes: list[int], steps: list[str]) -> None:
    asyncio.run(_in_and_out(sizes, steps))


async def _in_and_out(sizes: list[int], steps: list[str]) -> None:
    ledger = Ledger()
    stream = DatasetStream(ledger, ended=False)
    sent, received = b"", b""
    chunks = stream.chunks()
    reading: asyncio.Future[list[memoryview]] | None = None
    for number, size in enumerate(sizes):
        fragment = bytes([number]) * size
        sent += fragment
        stream.push(memoryview(fragment), last=False)
        step = steps[number] if number < len(steps) else ""
        if step == "press":
            stream.press()
        if step and reading is None:
            reading = asyncio.ensure_future(anext(chunks))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if reading is not None and reading.done():
            received += b"".join(reading.result())
            reading = None
    stream.push(memoryview(b""), last=True)
    if reading is not None:
        with contextlib.suppress(StopAsyncIteration):
            received += b"".join(await reading)
    async for part in chunks:
        received += b"".join(part)
    stream.discard()
    assert received == sent
    assert ledger.released_bytes == stream.received_bytes == len(sent)
