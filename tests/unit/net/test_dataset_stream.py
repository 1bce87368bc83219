"""A data set between socket and service."""

from __future__ import annotations

import asyncio

import pytest

from scp_server.errors import AssociationLost
from scp_server.net.dataset_stream import DatasetStream


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
