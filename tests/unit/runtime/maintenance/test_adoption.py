"""Which files are orphans, while others store and delete: none that is in flight, and none that is going."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from scp_server.errors import StorageError
from scp_server.index.base import Index, Level, Scope
from scp_server.runtime.maintenance.adoption import Adopter
from scp_server.runtime.maintenance.deletion import Deletions
from scp_server.services.storage import StorageService, StorageServiceConfig
from scp_server.storage.base import Storage, StoredObject
from scp_server.testing.archive import Archive
from scp_server.testing.fake_operation import store_operation
from scp_server.testing.objects import ct_image
from scp_server.testing.watched_backends import Steps, WatchedIndex, WatchedStorage
from tests.unit.runtime.maintenance.conftest import adopter_of

STORED = ct_image()
SCOPE = Scope(Level.INSTANCE, STORED.sop_instance_uid)


async def _listed(storage: Storage) -> list[StoredObject]:
    return [stored async for stored in storage.list()]


class _Meanwhile(WatchedIndex):
    """An index between whose first answer about locations and the next something else happens."""

    def __init__(self, index: Index, happens: Callable[[], Any]) -> None:
        super().__init__(index, Steps())
        self._happens: Callable[[], Any] | None = happens

    async def unknown_locations(self, locations: Sequence[str]) -> list[str]:
        unknown = await super().unknown_locations(locations)
        happens, self._happens = self._happens, None
        if happens is not None:
            await happens()
        return unknown


async def test_a_file_that_nobody_knows_is_an_orphan(archive: Archive) -> None:
    await archive.store([STORED])
    async with archive.opened() as (storage, index):
        await index.remove(list(archive.files()))
        listed = await _listed(storage)
        assert await adopter_of(archive, storage, index).orphans_among(listed) == listed


async def test_an_object_that_waits_for_the_index_is_no_orphan(archive: Archive) -> None:
    async with archive.opened() as (storage, index):
        adopter = adopter_of(archive, storage, index)
        seen: list[list[StoredObject]] = []

        class Waiting(WatchedIndex):
            async def add(self, entry: Any, policy: Any, first: Any = lambda: None) -> Any:
                first()
                seen.append(await adopter.orphans_among(await _listed(storage)))
                return await super().add(entry, policy)

        service = StorageService(storage, Waiting(index, Steps()), StorageServiceConfig())
        await service.store(store_operation(STORED))
        assert seen == [[]]
        assert len(archive.files()) == 1


async def test_an_object_that_is_indexed_while_it_is_asked_about_is_no_orphan(archive: Archive) -> None:
    async with archive.opened() as (storage, index):
        service = StorageService(storage, index, StorageServiceConfig())
        reached: list[StoredObject] = []

        class Between(WatchedIndex):
            async def add(self, entry: Any, policy: Any, first: Any = lambda: None) -> Any:
                async def finish() -> None:
                    await self._index.add(entry, policy)
                    await storage.indexed(reached[0])

                first()
                reached[:] = await _listed(storage)
                watched = _Meanwhile(self._index, finish)
                deletions = Deletions(archive.data_dir, storage, watched)
                adopter = Adopter(storage, watched, StorageServiceConfig().tap_limits, deletions)
                assert await adopter.orphans_among(reached) == []
                return await super().add(entry, policy)

        service = StorageService(storage, Between(index, Steps()), StorageServiceConfig())
        await service.store(store_operation(STORED))
        assert reached


@pytest.mark.parametrize("files_go", [True, False], ids=["finished", "files left"])
async def test_what_is_being_deleted_is_no_orphan(archive: Archive, files_go: bool) -> None:
    await archive.store([STORED])
    async with archive.opened() as (storage, index):
        listed = await _listed(storage)
        steps = Steps()
        if not files_go:
            steps.fail_at("delete_many", StorageError("busy"))
        deletions = Deletions(archive.data_dir, WatchedStorage(storage, steps), index)
        await deletions.delete(SCOPE)
        adopter = Adopter(storage, index, StorageServiceConfig().tap_limits, deletions)
        assert await index.unknown_locations([listed[0].location]) == [listed[0].location]
        assert len(archive.files()) == (0 if files_go else 1)
        assert await adopter.orphans_among(listed) == []
        assert [each async for each in adopter.adopt(listed)] == []


async def test_what_is_replaced_while_it_is_asked_about_is_no_orphan(archive: Archive) -> None:
    """Its row goes after the listing, its file before the last question."""
    await archive.store([STORED])
    async with archive.opened() as (storage, index):
        listed = await _listed(storage)
        await index.remove([listed[0].location])

        async def take_back() -> None:
            await storage.delete(listed[0].location)

        watched = _Meanwhile(index, take_back)
        deletions = Deletions(archive.data_dir, storage, watched)
        adopter = Adopter(storage, watched, StorageServiceConfig().tap_limits, deletions)
        assert await adopter.orphans_among(listed) == []


async def test_a_file_that_is_gone_before_it_is_read_is_passed_over(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await archive.store([STORED])
    async with archive.opened() as (storage, index):
        adopter = adopter_of(archive, storage, index)
        listed = await _listed(storage)
        await index.remove([listed[0].location])

        async def as_they_were(stored: Sequence[StoredObject]) -> list[StoredObject]:
            await storage.delete(stored[0].location)
            return list(stored)

        monkeypatch.setattr(adopter, "orphans_among", as_they_were)
        assert [each async for each in adopter.adopt(listed)] == []
        assert (await index.totals()).parts == 0
