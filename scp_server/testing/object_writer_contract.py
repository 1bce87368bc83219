"""The half of the contract suite for storages that is about writing one object. See `storage_contract`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from hashlib import sha256

import pytest

from scp_server.errors import StorageError
from scp_server.protocol.events import Buffer
from scp_server.storage.base import PATCHABLE_BYTES, Storage, StoredObject
from scp_server.testing.stored_objects import (
    PREFIX,
    arrival_id,
    content,
    in_flight,
    listed,
    object_key,
    pattern,
    store,
)

MakeStorage = Callable[[], Storage]


@pytest.mark.asyncio
class ObjectWriterContract:
    """What the writers of every storage do; part of `StorageContract`."""

    @pytest.fixture
    def make_storage(self) -> MakeStorage:
        """Override: returns what makes a storage over the same place, time and again."""
        raise NotImplementedError("say how to make the storage under test")

    @pytest.fixture
    async def storage(self, make_storage: MakeStorage) -> AsyncIterator[Storage]:
        """An open storage over the empty place."""
        storage = make_storage()
        await storage.open()
        yield storage
        await storage.close()

    # --- bytes

    @pytest.mark.parametrize("size", [0, 1, 2047, 2048, 70_000, 3_000_001])
    async def test_an_object_is_its_prefix_and_what_was_written(self, storage: Storage, size: int) -> None:
        data = pattern(size)
        stored = await store(storage, data[: size // 3], data[size // 3 :])
        assert stored.size_bytes == len(PREFIX) + size
        assert await content(storage, stored.location) == PREFIX + data

    async def test_an_object_may_have_no_prefix_and_no_bytes(self, storage: Storage) -> None:
        stored = await store(storage, prefix=b"")
        assert stored.size_bytes == 0
        assert await content(storage, stored.location) == b""

    async def test_fragments_of_every_kind_and_size_keep_their_order(self, storage: Storage) -> None:
        data = pattern(200_000)
        sizes = [0, 1, 1, 5000, 3, 2047, 2048, 0, 2049, 100_000]
        fragments: list[Buffer] = []
        offset = 0
        for number, size in enumerate(sizes):
            piece = data[offset : offset + size]
            fragments.append((piece, bytearray(piece), memoryview(piece))[number % 3])
            offset += size
        key = object_key(arrival_id())
        writer = await storage.begin(key.arrival_id, PREFIX)
        await writer.write(fragments)
        await writer.write([])
        await writer.write(fragments[:1])
        stored = await writer.commit(key)
        assert await content(storage, stored.location) == PREFIX + data[:offset]

    async def test_thousands_of_tiny_fragments_arrive_whole(self, storage: Storage) -> None:
        data = pattern(20_000)
        key = object_key(arrival_id())
        writer = await storage.begin(key.arrival_id, PREFIX)
        view = memoryview(data)
        for start in range(0, len(data), 1000):
            await writer.write([view[place : place + 1] for place in range(start, start + 1000)])
        stored = await writer.commit(key)
        assert await content(storage, stored.location) == PREFIX + data

    @pytest.mark.parametrize("size", [0, 10, 100_000, 2_500_000])
    async def test_the_digest_is_over_what_follows_the_prefix(self, storage: Storage, size: int) -> None:
        data = pattern(size)
        digest = sha256()
        key = object_key(arrival_id())
        writer = await storage.begin(key.arrival_id, PREFIX, digest)
        for start in range(0, size, 65_536):
            await writer.write([memoryview(data)[start : start + 65_536]])
        await writer.commit(key)
        assert digest.digest() == sha256(data).digest()

    async def test_flush_lets_go_of_everything_held(self, storage: Storage) -> None:
        key = object_key(arrival_id())
        writer = await storage.begin(key.arrival_id, PREFIX)
        await writer.flush()
        for number in range(3):
            await writer.write([memoryview(pattern(5000, number)), b"tail"])
            assert 0 <= writer.held_bytes <= 5004
            await writer.flush()
            assert writer.held_bytes == 0
        stored = await writer.commit(key)
        expected = b"".join(pattern(5000, number) + b"tail" for number in range(3))
        assert await content(storage, stored.location) == PREFIX + expected

    # --- defer

    @pytest.mark.parametrize("size", [0, 10, 30_000, 2_500_000])
    async def test_a_deferred_object_is_there_once_it_is_placed_and_not_before(
        self, storage: Storage, size: int
    ) -> None:
        data, digest = pattern(size), sha256()
        key = object_key(arrival_id())
        writer = await storage.begin(key.arrival_id, PREFIX, digest)
        await writer.write([memoryview(data)])
        deferred = writer.defer(key)
        if deferred is None:
            stored = await writer.commit(key)
        else:
            assert digest.digest() == sha256(data).digest()
            assert await listed(storage) == {}
            await asyncio.to_thread(deferred.place)
            stored = deferred.stored
            assert deferred.placing_seconds > 0
        assert await listed(storage) == {stored.location: stored.size_bytes}
        assert await content(storage, stored.location) == PREFIX + data
        assert await storage.not_yet_indexed([stored.location]) == {stored.location}
        with pytest.raises(StorageError):
            writer.defer(key)
        await writer.abort()
        assert len(await listed(storage)) == 1

    async def test_a_deferred_object_that_is_never_placed_leaves_nothing(self, storage: Storage) -> None:
        key = object_key(arrival_id())
        writer = await storage.begin(key.arrival_id, PREFIX)
        if writer.defer(key) is None:
            await writer.abort()
        assert await listed(storage) == {}

    # --- reading back

    @pytest.mark.parametrize("size", [0, 10, 100_000, 2_500_001])
    async def test_what_was_written_can_be_read_back_and_is_in_the_digest(
        self, storage: Storage, size: int
    ) -> None:
        data, key, digest = pattern(size), object_key(arrival_id()), sha256()
        writer = await storage.begin(key.arrival_id, PREFIX, digest)
        for start in range(0, size, 65_536):
            await writer.write([memoryview(data)[start : start + 65_536]])
        for offset in (0, 5, len(PREFIX), len(PREFIX) + size, len(PREFIX) + size + 1):
            assert b"".join([piece async for piece in writer.read(offset)]) == (PREFIX + data)[offset:]
        assert writer.held_bytes == 0
        assert digest.digest() == sha256(data).digest()
        await writer.write([b"tail"])
        assert b"".join([piece async for piece in writer.read(len(PREFIX) + size)]) == b"tail"
        stored = await writer.commit(key)
        assert await content(storage, stored.location) == PREFIX + data + b"tail"

    async def test_an_object_without_bytes_reads_back_as_none(self, storage: Storage) -> None:
        writer = await storage.begin(arrival_id(), b"")
        assert [piece async for piece in writer.read()] == []
        await writer.abort()

    async def test_reading_back_may_stop_early_and_ends_with_the_writer(self, storage: Storage) -> None:
        writer = await storage.begin(arrival_id(), PREFIX)
        await writer.write([pattern(3_000_000)])
        reading = writer.read()
        assert await anext(reading)
        await reading.aclose()  # type: ignore[attr-defined]
        await writer.abort()
        with pytest.raises(StorageError):
            await anext(writer.read())
        assert await listed(storage) == {}

    # --- patch

    @pytest.mark.parametrize("size", [4000, 3_000_000])
    async def test_a_patch_overwrites_what_was_written(self, storage: Storage, size: int) -> None:
        data = pattern(size)
        key = object_key(arrival_id())
        writer = await storage.begin(key.arrival_id, PREFIX)
        await writer.write([data])
        await writer.patch(130, b"XY")
        await writer.patch(len(PREFIX) - 1, b"abc")
        await writer.patch(len(PREFIX), b"B")
        stored = await writer.commit(key)
        expected = bytearray(PREFIX + data)
        expected[130:132] = b"XY"
        expected[len(PREFIX) - 1 : len(PREFIX) + 2] = b"aBc"
        assert await content(storage, stored.location) == expected
        assert stored.size_bytes == len(expected)

    async def test_a_write_after_a_patch_goes_to_the_end(self, storage: Storage) -> None:
        key = object_key(arrival_id())
        writer = await storage.begin(key.arrival_id, b"0123456789")
        await writer.patch(2, b"ab")
        await writer.write([b"tail"])
        stored = await writer.commit(key)
        assert await content(storage, stored.location) == b"01ab456789tail"

    @pytest.mark.parametrize(
        ("offset", "size"), [(-1, 1), (9, 2), (10, 1), (PATCHABLE_BYTES - 1, 2), (PATCHABLE_BYTES, 1)]
    )
    async def test_a_patch_reaches_only_what_was_written_at_the_start(
        self, storage: Storage, offset: int, size: int
    ) -> None:
        written = 10 if offset < 100 else 2 * PATCHABLE_BYTES
        writer = await storage.begin(arrival_id(), bytes(written))
        with pytest.raises(ValueError, match="patch"):
            await writer.patch(offset, bytes(size))
        await writer.abort()

    # --- visibility

    async def test_an_object_is_invisible_before_commit(self, storage: Storage) -> None:
        key = object_key(arrival_id())
        writer = await storage.begin(key.arrival_id, PREFIX)
        await writer.write([pattern(3_000_000)])
        assert await listed(storage) == {}
        stored = await writer.commit(key)
        assert await listed(storage) == {stored.location: stored.size_bytes}

    @pytest.mark.parametrize("size", [0, 100, 3_000_000])
    async def test_abort_leaves_nothing(self, storage: Storage, make_storage: MakeStorage, size: int) -> None:
        writer = await storage.begin(arrival_id(), PREFIX)
        await writer.write([pattern(size)])
        await writer.abort()
        await writer.abort()
        assert await listed(storage) == {}
        await storage.close()
        again = make_storage()
        await again.open()
        assert await in_flight(again) == set()
        assert await listed(again) == {}
        await again.close()

    async def test_an_aborted_arrival_id_can_be_begun_again(self, storage: Storage) -> None:
        key = object_key(arrival_id())
        writer = await storage.begin(key.arrival_id, PREFIX)
        await writer.write([pattern(3_000_000)])
        await writer.abort()
        stored = await store(storage, b"second", key=key)
        assert await content(storage, stored.location) == PREFIX + b"second"

    async def test_abort_after_commit_keeps_the_object(self, storage: Storage) -> None:
        key = object_key(arrival_id())
        writer = await storage.begin(key.arrival_id, PREFIX)
        stored = await writer.commit(key)
        await writer.abort()
        assert await content(storage, stored.location) == PREFIX

    async def test_an_ended_writer_takes_no_more(self, storage: Storage) -> None:
        for end in ("commit", "abort"):
            key = object_key(arrival_id())
            writer = await storage.begin(key.arrival_id, PREFIX)
            await (writer.commit(key) if end == "commit" else writer.abort())
            with pytest.raises(StorageError):
                await writer.write([b"late"])
            with pytest.raises(StorageError):
                await writer.flush()
            with pytest.raises(StorageError):
                await writer.patch(0, b"late")
            with pytest.raises(StorageError):
                await writer.commit(key)

    async def test_a_commit_needs_the_arrival_id_of_its_begin(self, storage: Storage) -> None:
        writer = await storage.begin(arrival_id(), PREFIX)
        with pytest.raises(ValueError, match="arrival id"):
            await writer.commit(object_key(arrival_id()))
        await writer.abort()
        assert await listed(storage) == {}

    async def test_a_cancelled_commit_is_undone_by_abort(self, storage: Storage) -> None:
        """Cancelled after ever more steps of the event loop, before, within and after the work."""
        for steps in range(12):
            key = object_key(arrival_id())
            writer = await storage.begin(key.arrival_id, PREFIX)
            await writer.write([pattern(100_000)])
            task = asyncio.create_task(writer.commit(key))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            try:
                stored: StoredObject | None = await task
            except asyncio.CancelledError:
                stored = None
            await writer.abort()
            assert await listed(storage) == ({} if stored is None else {stored.location: stored.size_bytes})
            if stored is not None:
                await storage.delete(stored.location)

    async def test_abort_works_in_a_task_that_is_being_cancelled(self, storage: Storage) -> None:
        begun = asyncio.Event()

        async def receive() -> None:
            writer = await storage.begin(arrival_id(), PREFIX)
            try:
                await writer.write([pattern(3_000_000)])
                begun.set()
                await asyncio.Event().wait()
            finally:
                await writer.abort()

        task = asyncio.create_task(receive())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await listed(storage) == {}

    # --- what is left unsynced

    async def test_an_object_left_unsynced_is_handed_back_whole_and_visible(self, storage: Storage) -> None:
        """Where the storage does so; that it may is no duty."""
        data = pattern(3_000)
        stored = await store(storage, data[:1_000], data[1_000:], may_leave_unsynced=True)
        assert stored.unsynced in (None, PREFIX + data)
        assert stored.size_bytes == len(PREFIX + data)
        assert await content(storage, stored.location) == PREFIX + data
        assert await storage.not_yet_indexed([stored.location]) == {stored.location}
        await storage.make_durable([stored.location])
        assert await content(storage, stored.location) == PREFIX + data

    async def test_nothing_is_left_unsynced_unasked(self, storage: Storage) -> None:
        assert (await store(storage, b"x")).unsynced is None

    async def test_what_was_patched_is_handed_back_with_its_patch(self, storage: Storage) -> None:
        key = object_key(arrival_id())
        writer = await storage.begin(key.arrival_id, b"0123456789")
        await writer.write([b"abc"])
        await writer.patch(2, b"XY")
        stored = await writer.commit(key, may_leave_unsynced=True)
        assert stored.unsynced in (None, b"01XY456789abc")
        assert await content(storage, stored.location) == b"01XY456789abc"
