"""How objects are read: in few visits to a thread, the next piece while one is used."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, cast

import pytest

from scp_server.storage.base import StoredObject
from scp_server.storage.filesystem import FilesystemStorage
from scp_server.storage.reading import READ_PIECE_BYTES
from scp_server.testing.stored_objects import PREFIX, pattern, store

Opened = Callable[..., AbstractAsyncContextManager[FilesystemStorage]]


def reading(storage: FilesystemStorage, stored: StoredObject, pieces: int) -> AsyncGenerator[bytes, None]:
    """Read an object of so many whole pieces."""
    found = storage.read(stored.location, len(PREFIX), pieces * READ_PIECE_BYTES)
    return cast(AsyncGenerator[bytes, None], found)


async def test_reading_a_ct_slice_costs_one_visit_to_a_thread(
    opened: Opened, root: Path, visits: list[Any]
) -> None:
    async with opened(root) as storage:
        stored = await store(storage, *[pattern(65_536)] * 9)
        visits.clear()
        pieces = [len(piece) async for piece in storage.read(stored.location, 400, 9 * 65_536 - 400)]
        assert pieces == [9 * 65_536 - 400]
        assert len(visits) == 1


async def test_while_a_piece_is_used_the_next_is_read_and_none_beyond_it(
    opened: Opened, root: Path, visits: list[Any]
) -> None:
    async with opened(root) as storage:
        stored = await store(storage, *[pattern(READ_PIECE_BYTES)] * 4)
        visits.clear()
        pieces = cast(
            AsyncGenerator[bytes, None], storage.read(stored.location, len(PREFIX), 4 * READ_PIECE_BYTES)
        )
        reads = []
        async for piece in pieces:
            assert piece == pattern(READ_PIECE_BYTES)
            reads.append(len(visits))
        assert reads == [2, 3, 4, 4]


async def test_what_fails_to_be_read_ahead_of_a_reader_that_stops_is_nobodys_error(
    opened: Opened, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    real, tried = os.pread, threading.Event()

    def fail(descriptor: int, size_bytes: int, offset_bytes: int) -> bytes:
        if offset_bytes > len(PREFIX):
            tried.set()
            raise OSError(errno.EIO, "the disk is ill")
        return real(descriptor, size_bytes, offset_bytes)

    async with opened(root, threads=1) as storage:
        stored = await store(storage, *[pattern(READ_PIECE_BYTES)] * 2)
        monkeypatch.setattr(os, "pread", fail)
        pieces = cast(
            AsyncGenerator[bytes, None], storage.read(stored.location, len(PREFIX), 2 * READ_PIECE_BYTES)
        )
        assert len(await anext(pieces)) == READ_PIECE_BYTES
        assert await asyncio.to_thread(tried.wait, 10)
        # The only thread is free again, so the failure has been told to the loop.
        await storage.sizes([stored.location])
        await pieces.aclose()
        del pieces
        gc.collect()
    assert not said
