"""The contract suite for storages: a backend that passes it can hold the objects of this server.

Needs pytest and pytest-asyncio. Subclass it in a test module and say how to make a storage::

    class TestMyStorage(StorageContract):
        @pytest.fixture
        def make_storage(self, tmp_path):
            return lambda: MyStorage(tmp_path)

Every call of what `make_storage` returns gives another, not yet opened storage over the *same place*, as
a restarted process would have it. The place is empty at the start of every test.
"""

from __future__ import annotations

import asyncio
from hashlib import sha256

import pytest

from scp_server.errors import ObjectNotFound, StorageError
from scp_server.storage.base import ObjectKey, Storage, StoredObject
from scp_server.testing.object_writer_contract import MakeStorage, ObjectWriterContract
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

__all__ = ["MakeStorage", "StorageContract"]


@pytest.mark.asyncio
class StorageContract(ObjectWriterContract):
    """What every storage does. See the module for how to run it over yours."""

    # --- reading

    @pytest.mark.parametrize(
        ("offset", "length"),
        [(0, 0), (0, 1), (5, 10), (0, 700_000), (262_144, 262_144), (262_143, 2), (699_999, 1), (100, None)],
    )
    async def test_a_range_is_read_exactly(self, storage: Storage, offset: int, length: int | None) -> None:
        data = pattern(700_000)
        stored = await store(storage, data, prefix=b"")
        expected = data[offset:] if length is None else data[offset : offset + length]
        assert await content(storage, stored.location, offset, length) == expected

    @pytest.mark.parametrize(
        ("offset", "length"), [(100, None), (100, 5), (10_000, None), (99, 50), (0, 1000)]
    )
    async def test_a_range_ends_where_the_object_does(
        self, storage: Storage, offset: int, length: int | None
    ) -> None:
        data = pattern(100)
        stored = await store(storage, data, prefix=b"")
        assert await content(storage, stored.location, offset, length) == data[offset:]

    async def test_an_object_is_read_in_pieces(self, storage: Storage) -> None:
        stored = await store(storage, pattern(3_000_000))
        pieces = [len(piece) async for piece in storage.read(stored.location)]
        assert sum(pieces) == stored.size_bytes
        assert max(pieces) <= 1 << 20
        assert min(pieces) > 0

    async def test_a_reader_may_stop_early(self, storage: Storage) -> None:
        stored = await store(storage, pattern(3_000_000))
        reading = storage.read(stored.location)
        assert await anext(reading)
        await reading.aclose()  # type: ignore[attr-defined]
        await storage.delete(stored.location)
        assert await listed(storage) == {}

    async def test_negative_ranges_are_refused(self, storage: Storage) -> None:
        stored = await store(storage, b"x")
        for offset, length in ((-1, None), (0, -1)):
            with pytest.raises(ValueError, match="negative"):
                await content(storage, stored.location, offset, length)

    async def test_what_does_not_exist_is_not_found(self, storage: Storage) -> None:
        stored = await store(storage, b"x")
        await storage.delete(stored.location)
        for location in (stored.location, "", "objects", "../secret", "/etc/passwd", "x\0y"):
            with pytest.raises(ObjectNotFound):
                await content(storage, location)

    # --- deleting and listing

    async def test_delete_removes_one_object_and_may_be_repeated(self, storage: Storage) -> None:
        first, second = [await store(storage, bytes([number])) for number in range(2)]
        await storage.delete(first.location)
        await storage.delete(first.location)
        assert set(await listed(storage)) == {second.location}
        assert await content(storage, second.location) == PREFIX + b"\x01"

    async def test_many_are_deleted_at_once_and_may_be_again(
        self, storage: Storage, make_storage: MakeStorage
    ) -> None:
        keys = [object_key(arrival_id(), series=f"1.{n % 3}", study=f"2.{n % 2}") for n in range(12)]
        stored = [(await store(storage, b"x", key=key)).location for key in keys]
        assert await storage.delete_many([]) == {}
        assert await storage.delete_many(stored[:8]) == {}
        assert await storage.delete_many([stored[0], *stored[4:10], stored[4]]) == {}
        assert set(await listed(storage)) == set(stored[10:])
        assert await storage.not_yet_indexed(stored) == set(stored[10:])
        again = await self._reopened(storage, make_storage)
        assert set(await listed(again)) == set(stored[10:])
        assert await in_flight(again) == set(stored[10:])
        await again.close()

    async def test_of_many_only_objects_are_deleted(self, storage: Storage) -> None:
        stored = [(await store(storage, b"x")).location for _ in range(3)]
        foreign = {"", "..", "../x", "/etc/hostname", "objects", "objects/../x", "a\0b"}
        failed = await storage.delete_many([stored[0], *foreign, stored[1]])
        assert set(failed) <= foreign
        assert all(failed.values())
        assert set(await listed(storage)) == {stored[2]}

    @pytest.mark.parametrize(
        "location", ["", "..", "../x", "/etc/hostname", "objects", "objects/../x", "a\0b"]
    )
    async def test_delete_touches_nothing_outside(self, storage: Storage, location: str) -> None:
        stored = await store(storage, b"x")
        try:
            await storage.delete(location)
        except StorageError:
            pass
        assert set(await listed(storage)) == {stored.location}

    async def test_every_object_is_listed_once_with_its_size(self, storage: Storage) -> None:
        stored: list[StoredObject] = []
        for number in range(40):
            arrival = arrival_id()
            key = object_key(
                arrival, instance=f"1.2.{number}", series=f"1.3.{number // 4}", study=f"1.4.{number // 8}"
            )
            stored.append(await store(storage, pattern(number), key=key))
        assert await listed(storage) == {each.location: each.size_bytes for each in stored}

    async def test_sizes_are_told_of_what_is_there(self, storage: Storage) -> None:
        stored = [await store(storage, pattern(number)) for number in (0, 5, 1000)]
        await storage.delete(stored[1].location)
        asked = [each.location for each in stored] + ["objects", "../x", "/etc/passwd", "", "a\0b"]
        sizes = await storage.sizes(asked)
        assert list(sizes) == [stored[0].size_bytes, None, stored[2].size_bytes, *[None] * 5]
        assert list(await storage.sizes([])) == []

    async def test_a_new_storage_over_the_place_sees_the_same_objects(
        self, storage: Storage, make_storage: MakeStorage
    ) -> None:
        stored = await store(storage, pattern(1000))
        await storage.close()
        again = make_storage()
        await again.open()
        assert await listed(again) == {stored.location: stored.size_bytes}
        assert await content(again, stored.location) == PREFIX + pattern(1000)
        await again.close()

    # --- what was left unsynced

    async def test_making_durable_passes_over_what_is_gone(self, storage: Storage) -> None:
        stored = [await store(storage, bytes([n]), may_leave_unsynced=True) for n in range(3)]
        await storage.delete(stored[1].location)
        await storage.make_durable([*(each.location for each in stored), "../x", "objects", ""])
        await storage.make_durable([])
        assert set(await listed(storage)) == {stored[0].location, stored[2].location}

    async def test_rewriting_changes_nothing_and_makes_nothing(self, storage: Storage) -> None:
        kept, deleted = [await store(storage, pattern(5_000), may_leave_unsynced=True) for _ in range(2)]
        await storage.delete(deleted.location)
        assert await storage.rewrite(kept.location, PREFIX + pattern(5_000))
        assert not await storage.rewrite(deleted.location, PREFIX + pattern(5_000))
        assert await listed(storage) == {kept.location: kept.size_bytes}
        assert await content(storage, kept.location) == PREFIX + pattern(5_000)

    async def test_restoring_makes_an_object_be_what_it_should_be(
        self, storage: Storage, make_storage: MakeStorage
    ) -> None:
        stored = await store(storage, pattern(5_000))
        whole = PREFIX + pattern(5_000)
        assert not await storage.restore(stored.location, whole)
        for wrong in (whole[:-1], whole + b"x", bytes(len(whole)), b""):
            await storage.delete(stored.location)
            assert await storage.restore(stored.location, wrong)
            assert await storage.restore(stored.location, whole)
            assert await content(storage, stored.location) == whole
        await storage.delete(stored.location)
        assert await storage.restore(stored.location, whole)
        again = await self._reopened(storage, make_storage)
        assert await listed(again) == {stored.location: len(whole)}
        assert await content(again, stored.location) == whole
        await again.close()

    @pytest.mark.parametrize("location", ["", "..", "../x", "/etc/hostname", "objects", "objects/../x"])
    async def test_only_objects_are_rewritten_or_restored(self, storage: Storage, location: str) -> None:
        with pytest.raises(StorageError):
            await storage.restore(location, b"x")
        assert not await storage.rewrite(location, b"x")
        assert await listed(storage) == {}

    # --- identity

    async def test_objects_of_one_uid_with_different_arrival_ids_are_all_kept(self, storage: Storage) -> None:
        stored = [await store(storage, pattern(500, number)) for number in range(5)]
        assert len({each.location for each in stored}) == 5
        for number, each in enumerate(stored):
            assert await content(storage, each.location) == PREFIX + pattern(500, number)

    async def test_a_repeated_key_never_replaces_an_object(self, storage: Storage) -> None:
        key = object_key(arrival_id())
        stored = await store(storage, b"first", key=key)
        with pytest.raises(StorageError):
            await store(storage, b"second", key=key)
        assert await content(storage, stored.location) == PREFIX + b"first"
        assert set(await listed(storage)) == {stored.location}

    @pytest.mark.parametrize(
        "uid",
        [
            "",
            ".",
            "..",
            "../../x",
            "/etc/passwd",
            "1." * 32,
            "9" * 5000,
            "a\0b",
            "a\nb",
            "\udcff",
            "ä" * 300,
            "C:\\x",
        ],
    )
    async def test_hostile_uids_are_only_names(self, storage: Storage, uid: str) -> None:
        stored: list[StoredObject] = []
        for keys in ((uid, "1.2", "1.3"), ("1.1", uid, "1.3"), ("1.1", "1.2", uid), (uid, uid, uid)):
            stored.append(
                await store(storage, uid.encode("utf-8", "replace"), key=ObjectKey(*keys, arrival_id()))
            )
        assert await listed(storage) == {each.location: each.size_bytes for each in stored}
        for each in stored:
            parts = each.location.split("/")
            assert not {"", ".", ".."} & set(parts)
            assert each.location.isascii()
            assert await content(storage, each.location) == PREFIX + uid.encode("utf-8", "replace")

    @pytest.mark.parametrize("arrival", ["", "../x", "XYZ", "12 ", "1\n", "a" * 65, "/"])
    async def test_an_arrival_id_is_hexadecimal(self, storage: Storage, arrival: str) -> None:
        with pytest.raises(ValueError, match="arrival id"):
            await storage.begin(arrival, PREFIX)

    # --- at once

    async def test_many_writers_at_once_do_not_mix(self, storage: Storage) -> None:
        async def one(number: int) -> StoredObject:
            data = pattern(20_000 * (number % 7) + number, number)
            digest = sha256()
            key = object_key(arrival_id(), instance=f"1.{number % 5}", series=f"2.{number % 3}")
            writer = await storage.begin(key.arrival_id, PREFIX, digest)
            for start in range(0, len(data), 7000):
                await writer.write([data[start : start + 3000], data[start + 3000 : start + 7000]])
                await asyncio.sleep(0)
            stored = await writer.commit(key)
            assert digest.digest() == sha256(data).digest()
            assert await content(storage, stored.location) == PREFIX + data
            return stored

        stored = await asyncio.gather(*(one(number) for number in range(60)))
        assert await listed(storage) == {each.location: each.size_bytes for each in stored}

    async def test_storing_and_deleting_in_one_series_at_once(self, storage: Storage) -> None:
        async def one(number: int) -> None:
            for turn in range(8):
                stored = await store(storage, pattern(200, number * 100 + turn))
                assert await content(storage, stored.location) == PREFIX + pattern(200, number * 100 + turn)
                await storage.delete(stored.location)

        await asyncio.gather(*(one(number) for number in range(8)))
        assert await listed(storage) == {}

    # --- life cycle

    async def test_close_lets_a_commit_end_and_aborts_other_writers(
        self, storage: Storage, make_storage: MakeStorage
    ) -> None:
        key = object_key(arrival_id())
        committing, idle = (
            await storage.begin(key.arrival_id, PREFIX),
            await storage.begin(arrival_id(), PREFIX),
        )
        await committing.write([pattern(200_000)])
        await idle.write([pattern(3_000_000)])
        commit = asyncio.create_task(committing.commit(key))
        await asyncio.sleep(0)
        await storage.close()
        stored = await commit
        with pytest.raises(StorageError):
            await idle.write([b"late"])
        await idle.abort()
        again = make_storage()
        await again.open()
        assert await listed(again) == {stored.location: stored.size_bytes}
        await again.close()

    async def test_a_closed_storage_refuses(self, storage: Storage) -> None:
        stored = await store(storage, b"x")
        await storage.close()
        await storage.close()
        await storage.indexed(stored)
        with pytest.raises(StorageError):
            await storage.begin(arrival_id(), PREFIX)
        with pytest.raises(StorageError):
            await content(storage, stored.location)
        with pytest.raises(StorageError):
            await storage.delete(stored.location)
        with pytest.raises(StorageError):
            await storage.delete_many([stored.location])
        with pytest.raises(StorageError):
            await listed(storage)

    # --- in flight

    async def _reopened(self, storage: Storage, make_storage: MakeStorage) -> Storage:
        await storage.close()
        again = make_storage()
        await again.open()
        return again

    async def test_what_was_not_indexed_is_in_flight_after_a_restart(
        self, storage: Storage, make_storage: MakeStorage
    ) -> None:
        stored = [
            await store(storage, b"x", key=object_key(arrival_id(), series=f"1.{number}"))
            for number in range(6)
        ]
        for each in stored[::2]:
            await storage.indexed(each)
        again = await self._reopened(storage, make_storage)
        found = await in_flight(again)
        assert {each.location for each in stored[1::2]} <= found <= set(await listed(again))
        await again.close()

    async def test_what_was_committed_is_not_yet_indexed_until_it_is_reported_or_deleted(
        self, storage: Storage, make_storage: MakeStorage
    ) -> None:
        stored = [await store(storage, b"x") for _ in range(4)]
        every = [each.location for each in stored]
        assert await storage.not_yet_indexed([*every[1:], "elsewhere"]) == set(every[1:])
        await storage.indexed(stored[0])
        await storage.delete(every[1])
        assert await storage.not_yet_indexed(every) == set(every[2:])
        again = await self._reopened(storage, make_storage)
        assert await again.not_yet_indexed(every) == set(), "what an earlier process left is `in_flight`"
        await again.close()

    async def test_nothing_is_in_flight_when_all_was_indexed(
        self, storage: Storage, make_storage: MakeStorage
    ) -> None:
        for stored in [await store(storage, b"x") for _ in range(5)]:
            await storage.indexed(stored)
            await storage.indexed(stored)
        again = await self._reopened(storage, make_storage)
        assert await in_flight(again) == set()
        assert len(await listed(again)) == 5
        await again.close()

    async def test_a_deleted_object_is_not_in_flight(
        self, storage: Storage, make_storage: MakeStorage
    ) -> None:
        stored = await store(storage, b"x")
        await storage.delete(stored.location)
        await storage.indexed(stored)
        again = await self._reopened(storage, make_storage)
        assert await in_flight(again) == set()
        await again.close()

    async def test_in_flight_lasts_until_settled(self, storage: Storage, make_storage: MakeStorage) -> None:
        stored = await store(storage, b"x")
        second = await self._reopened(storage, make_storage)
        assert stored.location in await in_flight(second)
        third = await self._reopened(second, make_storage)
        assert stored.location in await in_flight(third)
        await third.settled()
        assert await in_flight(third) == set()
        fourth = await self._reopened(third, make_storage)
        assert await in_flight(fourth) == set()
        assert set(await listed(fourth)) == {stored.location}
        await fourth.close()

    async def test_settling_the_past_keeps_what_is_new_in_flight(
        self, storage: Storage, make_storage: MakeStorage
    ) -> None:
        await store(storage, b"old")
        second = await self._reopened(storage, make_storage)
        new = await store(second, b"new", key=object_key(arrival_id(), series="1.77"))
        await second.settled()
        third = await self._reopened(second, make_storage)
        assert new.location in await in_flight(third)
        await third.close()
