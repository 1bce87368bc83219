"""A storage and an index that note each step, and fail or stand still at the one a test names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TypeVar

from scp_server.index.base import (
    AddResult,
    DuplicatePolicy,
    FindingFilter,
    FindingRecord,
    Index,
    IndexEntry,
    IndexTotals,
    PartRecord,
    RetrievablePart,
    Scope,
    UniqueKey,
)
from scp_server.index.events import EventLog
from scp_server.index.search import Judge, RunningSearch, Search, SizeOf, of_no_size
from scp_server.protocol.events import Buffer
from scp_server.storage.base import Digest, ObjectKey, ObjectWriter, Storage, StoredObject

T = TypeVar("T")


class Steps:
    """What the watched backends did, in order, shared by all of them.

    A step is noted when it begins (`commit`) and, where it changes what is kept, when it has ended
    (`commit.done`). A step that fails or stands still is noted, and does not happen.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self._failures: dict[str, Exception] = {}
        self._stops: dict[str, asyncio.Event] = {}

    def fail_at(self, name: str, error: Exception) -> None:
        """From now on the step of that name raises `error`."""
        self._failures[name] = error

    def stop_at(self, name: str) -> asyncio.Event:
        """From now on the step of that name never ends; the event is set when it is reached."""
        return self._stops.setdefault(name, asyncio.Event())

    def heal(self) -> None:
        """No step fails or stands still any more."""
        self._failures.clear()
        self._stops.clear()

    async def enter(self, name: str) -> None:
        """A step begins."""
        self.log.append(name)
        if name in self._stops:
            self._stops[name].set()
            await asyncio.get_running_loop().create_future()
        if name in self._failures:
            raise self._failures[name]


class WatchedWriter:
    """An `ObjectWriter` over another."""

    def __init__(self, writer: ObjectWriter, steps: Steps, writing: set[WatchedWriter]) -> None:
        self._writer = writer
        self._steps = steps
        self._writing = writing
        writing.add(self)

    @property
    def held_bytes(self) -> int:
        return self._writer.held_bytes

    async def write(self, data: Sequence[Buffer]) -> None:
        await self._steps.enter("write")
        await self._writer.write(data)

    async def flush(self) -> None:
        await self._steps.enter("flush")
        await self._writer.flush()

    async def read(self, offset_bytes: int = 0) -> AsyncIterator[bytes]:
        await self._steps.enter("read_back")
        async for data in self._writer.read(offset_bytes):
            yield data

    async def patch(self, offset_bytes: int, data: bytes) -> None:
        await self._steps.enter("patch")
        await self._writer.patch(offset_bytes, data)

    async def commit(self, key: ObjectKey, *, may_leave_unsynced: bool = False) -> StoredObject:
        await self._steps.enter("commit")
        stored = await self._writer.commit(key, may_leave_unsynced=may_leave_unsynced)
        self._writing.discard(self)
        self._steps.log.append("commit.done")
        return stored

    def defer(self, key: ObjectKey, *, may_leave_unsynced: bool = False) -> None:
        """Never, so that `commit` is a step of its own."""

    async def abort(self) -> None:
        self._writing.discard(self)
        self._steps.log.append("abort")
        await self._writer.abort()


class WatchedStorage:
    """A `Storage` over another."""

    def __init__(self, storage: Storage, steps: Steps) -> None:
        self._storage = storage
        self._steps = steps
        self.writing: set[WatchedWriter] = set()
        """Writers that were neither committed nor aborted."""

    async def open(self) -> None:
        await self._storage.open()

    async def close(self) -> None:
        await self._storage.close()

    async def begin(self, arrival_id: str, prefix: bytes, digest: Digest | None = None) -> ObjectWriter:
        await self._steps.enter("begin")
        writer = await self._storage.begin(arrival_id, prefix, digest)
        return WatchedWriter(writer, self._steps, self.writing)

    def read(
        self, location: str, offset_bytes: int = 0, length_bytes: int | None = None
    ) -> AsyncIterator[bytes]:
        return self._storage.read(location, offset_bytes, length_bytes)

    async def delete(self, location: str) -> None:
        await self._steps.enter("delete")
        await self._storage.delete(location)
        self._steps.log.append("delete.done")

    async def delete_many(self, locations: Sequence[str]) -> Mapping[str, str]:
        await self._steps.enter("delete_many")
        failed = await self._storage.delete_many(locations)
        self._steps.log.append("delete_many.done")
        return failed

    def list(self) -> AsyncIterator[StoredObject]:
        return self._storage.list()

    async def sizes(self, locations: Sequence[str]) -> Sequence[int | None]:
        return await self._storage.sizes(locations)

    def in_flight(self) -> AsyncIterator[StoredObject]:
        return self._storage.in_flight()

    async def settled(self) -> None:
        await self._storage.settled()

    async def not_yet_indexed(self, locations: Sequence[str]) -> set[str]:
        return await self._storage.not_yet_indexed(locations)

    async def indexed(self, stored: StoredObject) -> None:
        await self._steps.enter("indexed")
        await self._storage.indexed(stored)

    async def make_durable(self, locations: Sequence[str]) -> None:
        await self._steps.enter("make_durable")
        await self._storage.make_durable(locations)
        self._steps.log.append("make_durable.done")

    async def rewrite(self, location: str, content: bytes) -> bool:
        await self._steps.enter("rewrite")
        return await self._storage.rewrite(location, content)

    async def restore(self, location: str, content: bytes) -> bool:
        await self._steps.enter("restore")
        return await self._storage.restore(location, content)


class WatchedIndex:
    """An `Index` over another."""

    def __init__(self, index: Index, steps: Steps) -> None:
        self._index = index
        self._steps = steps

    @property
    def event_log(self) -> EventLog:
        return self._index.event_log

    async def open(self) -> None:
        await self._index.open()

    async def close(self) -> None:
        await self._index.close()

    async def add(
        self, entry: IndexEntry, policy: DuplicatePolicy, first: Callable[[], None] | None = None
    ) -> AddResult:
        if first is not None:
            await asyncio.to_thread(first)
        await self._steps.enter("add")
        result = await self._index.add(entry, policy)
        self._steps.log.append("add.done")
        return result

    async def discarded(self) -> list[str]:
        return await self._index.discarded()

    def forget_discarded(self, locations: Sequence[str]) -> None:
        self._steps.log.append("forget_discarded")
        self._index.forget_discarded(locations)

    async def parts(self, sop_instance_uid: str) -> list[PartRecord]:
        return await self._index.parts(sop_instance_uid)

    async def part(self, location: str) -> RetrievablePart | None:
        return await self._index.part(location)

    async def header(self, location: str) -> bytes | None:
        return await self._index.header(location)

    async def unknown_locations(self, locations: Sequence[str]) -> list[str]:
        return await self._index.unknown_locations(locations)

    def search(self, search: Search, judge: Judge[T], size_of: SizeOf[T] = of_no_size) -> RunningSearch[T]:
        self._steps.log.append("search")
        return self._index.search(search, judge, size_of)

    async def totals(self) -> IndexTotals:
        return await self._index.totals()

    async def list_parts(self, *, after: str = "", limit: int = 500) -> list[PartRecord]:
        return await self._index.list_parts(after=after, limit=limit)

    async def parts_below(self, scope: Scope, *, limit: int = 500) -> AsyncIterator[list[PartRecord]]:
        await self._steps.enter("parts_below")
        async for page in self._index.parts_below(scope, limit=limit):
            yield page

    async def retrievable(self, keys: Sequence[UniqueKey], limit: int) -> list[RetrievablePart]:
        self._steps.log.append("retrievable")
        return await self._index.retrievable(keys, limit)

    async def findings(
        self, wanted: FindingFilter, *, after: str = "", limit: int = 200
    ) -> list[FindingRecord]:
        return await self._index.findings(wanted, after=after, limit=limit)

    async def unsynced(self) -> list[str]:
        return await self._index.unsynced()

    async def unsynced_contents(self, locations: Sequence[str]) -> dict[str, bytes]:
        return await self._index.unsynced_contents(locations)

    async def forget_unsynced(self, locations: Sequence[str]) -> None:
        await self._steps.enter("forget_unsynced")
        await self._index.forget_unsynced(locations)
        self._steps.log.append("forget_unsynced.done")

    async def remove(self, locations: Sequence[str]) -> int:
        await self._steps.enter("remove")
        removed = await self._index.remove(locations)
        self._steps.log.append("remove.done")
        return removed
