"""A storage that lives in memory: for tests, and as the smallest complete example of a backend."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from scp_server.errors import ObjectNotFound, StorageError, StorageFull
from scp_server.protocol.events import Buffer
from scp_server.storage.base import PATCHABLE_BYTES, Digest, ObjectKey, ObjectWriter, StoredObject
from scp_server.storage.layout import checked_arrival_id, is_location
from scp_server.storage.template import LayoutTemplate

_READ_BYTES = 262_144
_LAYOUT = LayoutTemplate()


@dataclass(slots=True)
class MemoryPlace:
    """What outlives a `MemoryStorage`, as a folder outlives a process.

    `capacity_bytes` bounds the objects together with what is being written; None is no bound.
    """

    capacity_bytes: int | None = None
    objects: dict[str, bytes] = field(default_factory=dict)
    in_flight: dict[str, None] = field(default_factory=dict)
    unsynced: set[str] = field(default_factory=set)

    def lose_power(self, *, names: bool) -> None:
        """What is unsynced is lost: its bytes only, or with `names` all of it."""
        for location in self.unsynced:
            if names:
                del self.objects[location]
            else:
                self.objects[location] = b""
        self.unsynced.clear()


class MemoryStorage:
    """A `Storage` over a `MemoryPlace`. The digest is fed inline, in the event loop."""

    def __init__(self, place: MemoryPlace | None = None) -> None:
        self._place = place if place is not None else MemoryPlace()
        self._open = False
        self._left_over: list[str] = []
        self._writers: set[_MemoryWriter] = set()

    async def open(self) -> None:
        """See `Storage.open`."""
        if self._open:
            raise StorageError("the storage is open")
        self._open = True
        self._left_over = list(self._place.in_flight)

    async def close(self) -> None:
        """See `Storage.close`."""
        self._open = False
        for writer in tuple(self._writers):
            await writer.abort()

    def _opened(self) -> MemoryPlace:
        if not self._open:
            raise StorageError("the storage is closed")
        return self._place

    async def begin(self, arrival_id: str, prefix: bytes, digest: Digest | None = None) -> ObjectWriter:
        """See `Storage.begin`. Raises StorageFull when nothing more fits."""
        checked_arrival_id(arrival_id)
        self._opened()
        if any(writer.arrival_id == arrival_id for writer in self._writers):
            raise StorageError("the arrival id is in use")
        self.make_room(max(1, len(prefix)))
        writer = _MemoryWriter(self, arrival_id, prefix, digest)
        self._writers.add(writer)
        return writer

    def make_room(self, size_bytes: int) -> None:
        """Raise StorageFull unless `size_bytes` more fit."""
        place = self._opened()
        if place.capacity_bytes is None:
            return
        used = sum(map(len, place.objects.values())) + sum(writer.size_bytes for writer in self._writers)
        if used + size_bytes > place.capacity_bytes:
            raise StorageFull("the memory given to the storage is used up")

    def put(self, writer: _MemoryWriter, location: str, data: bytes, *, synced: bool) -> None:
        """Make an object visible and in flight. Raises StorageError when the location is taken."""
        place = self._opened()
        if location in place.objects:
            raise StorageError("the arrival id was used before")
        self.forget(writer)
        place.objects[location] = data
        place.in_flight[location] = None
        if not synced:
            place.unsynced.add(location)

    def forget(self, writer: _MemoryWriter) -> None:
        """The writer has ended."""
        self._writers.discard(writer)

    async def read(
        self, location: str, offset_bytes: int = 0, length_bytes: int | None = None
    ) -> AsyncIterator[bytes]:
        """See `Storage.read`."""
        if offset_bytes < 0 or (length_bytes is not None and length_bytes < 0):
            raise ValueError("offset and length are not negative")
        data = self._opened().objects.get(location)
        if data is None:
            raise ObjectNotFound("cannot read: no such object")
        end = len(data) if length_bytes is None else min(len(data), offset_bytes + length_bytes)
        for start in range(offset_bytes, end, _READ_BYTES):
            yield data[start : min(start + _READ_BYTES, end)]

    async def delete(self, location: str) -> None:
        """See `Storage.delete`."""
        place = self._opened()
        place.objects.pop(location, None)
        place.in_flight.pop(location, None)
        place.unsynced.discard(location)

    async def delete_many(self, locations: Sequence[str]) -> Mapping[str, str]:
        """See `Storage.delete_many`."""
        for location in locations:
            await self.delete(location)
        self._opened()
        return {}

    async def list(self) -> AsyncIterator[StoredObject]:
        """See `Storage.list`."""
        for location, data in tuple(self._opened().objects.items()):
            yield StoredObject(location, len(data))

    async def sizes(self, locations: Sequence[str]) -> Sequence[int | None]:
        """See `Storage.sizes`."""
        objects = self._opened().objects
        return [len(objects[location]) if location in objects else None for location in locations]

    async def in_flight(self) -> AsyncIterator[StoredObject]:
        """See `Storage.in_flight`."""
        objects = self._opened().objects
        for location in self._left_over:
            if location in objects:
                yield StoredObject(location, len(objects[location]))

    async def settled(self) -> None:
        """See `Storage.settled`."""
        place = self._opened()
        for location in self._left_over:
            place.in_flight.pop(location, None)
        self._left_over = []

    async def not_yet_indexed(self, locations: Sequence[str]) -> set[str]:
        """See `Storage.not_yet_indexed`."""
        return self._opened().in_flight.keys() & set(locations) - set(self._left_over)

    async def indexed(self, stored: StoredObject) -> None:
        """See `Storage.indexed`."""
        self._place.in_flight.pop(stored.location, None)

    async def make_durable(self, locations: Sequence[str]) -> None:
        """See `Storage.make_durable`."""
        self._opened().unsynced.difference_update(locations)

    async def rewrite(self, location: str, content: bytes) -> bool:
        """See `Storage.rewrite`."""
        place = self._opened()
        if location not in place.objects:
            return False
        place.objects[location] = content
        place.unsynced.add(location)
        return True

    async def restore(self, location: str, content: bytes) -> bool:
        """See `Storage.restore`."""
        place = self._opened()
        if not is_location(location):
            raise StorageError("cannot restore: no location of this storage")
        if place.objects.get(location) == content:
            return False
        place.objects[location] = content
        place.unsynced.add(location)
        return True


class _MemoryWriter:
    def __init__(self, storage: MemoryStorage, arrival_id: str, prefix: bytes, digest: Digest | None) -> None:
        self.arrival_id = arrival_id
        self._storage = storage
        self._data = bytearray(prefix)
        self._digest = digest
        self._ended = False

    @property
    def size_bytes(self) -> int:
        """What the object has so far, prefix included."""
        return len(self._data)

    @property
    def held_bytes(self) -> int:
        """None of the caller's buffers: everything is copied at once."""
        return 0

    def _refuse_unless_open(self) -> None:
        if self._ended:
            raise StorageError("the object's writer has ended")

    def _end(self) -> None:
        self._ended = True
        self._storage.forget(self)

    async def write(self, data: Sequence[Buffer]) -> None:
        self._refuse_unless_open()
        try:
            for fragment in data:
                self._storage.make_room(memoryview(fragment).nbytes)
                self._data += fragment
                if self._digest is not None:
                    self._digest.update(fragment)
        except StorageError:
            self._end()
            raise

    async def flush(self) -> None:
        self._refuse_unless_open()

    async def read(self, offset_bytes: int = 0) -> AsyncIterator[bytes]:
        self._refuse_unless_open()
        for start in range(offset_bytes, len(self._data), _READ_BYTES):
            yield bytes(self._data[start : start + _READ_BYTES])

    async def patch(self, offset_bytes: int, data: bytes) -> None:
        self._refuse_unless_open()
        end = offset_bytes + len(data)
        if offset_bytes < 0 or end > min(PATCHABLE_BYTES, len(self._data)):
            raise ValueError("a patch lies within what was written, and within PATCHABLE_BYTES")
        self._data[offset_bytes:end] = data

    async def commit(self, key: ObjectKey, *, may_leave_unsynced: bool = False) -> StoredObject:
        self._refuse_unless_open()
        if key.arrival_id != self.arrival_id:
            raise ValueError("the key has another arrival id than the writer")
        location = _LAYOUT.location_of(key)
        data = bytes(self._data)
        try:
            self._storage.put(self, location, data, synced=not may_leave_unsynced)
        finally:
            self._end()
        return StoredObject(location, len(data), data if may_leave_unsynced else None)

    def defer(self, key: ObjectKey, *, may_leave_unsynced: bool = False) -> None:
        """Never: `commit` goes to no thread."""
        self._refuse_unless_open()

    async def abort(self) -> None:
        self._end()
        self._data = bytearray()
