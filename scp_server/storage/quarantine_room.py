"""How much lies in quarantine, and how much more may: what is kept, and what those on their way reserved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

from scp_server.errors import ObjectNotFound, StorageFull


@dataclass(frozen=True, slots=True)
class QuarantineTotals:
    """How much is kept, and how much may be."""

    objects: int
    bytes: int
    max_objects: int
    max_bytes: int


class QuarantineRoom(Protocol):
    """Where room is asked for. One process keeps the book; the others ask it."""

    async def take_place(self) -> None:
        """Reserve a place for one object more. Raises StorageFull when there are as many as may be."""
        ...

    async def take_bytes(self, size_bytes: int) -> None:
        """Reserve so many bytes more. Raises StorageFull when they do not fit."""
        ...

    def give_back(self, size_bytes: int) -> None:
        """One place, and so many bytes, are reserved no longer."""
        ...

    def kept(self, object_id: str, size_bytes: int) -> None:
        """An object of this size lies in quarantine now. May be called from any thread."""
        ...


class Admission:
    """Room that one object has reserved; given back by `close`, whatever became of the object."""

    def __init__(self, room: QuarantineRoom) -> None:
        self._room = room
        self._size_bytes = 0
        self._open = True

    async def grow(self, size_bytes: int) -> None:
        """Reserve so many bytes more. Raises StorageFull when they do not fit."""
        await self._room.take_bytes(size_bytes)
        self._size_bytes += size_bytes

    def close(self) -> None:
        """Give the room back; a second time does nothing."""
        if self._open:
            self._open = False
            self._room.give_back(self._size_bytes)


class QuarantineBook:
    """The `QuarantineRoom` of the process that keeps it. Storage threads note what they have put there."""

    def __init__(self, max_objects: int, max_bytes: int) -> None:
        self._max_objects = max_objects
        self._max_bytes = max_bytes
        self._lock = Lock()
        self._sizes: dict[str, int] = {}
        self._bytes = 0
        self._reserved_bytes = 0
        self._reserved_objects = 0

    async def take_place(self) -> None:
        """See `QuarantineRoom.take_place`."""
        with self._lock:
            if len(self._sizes) + self._reserved_objects >= self._max_objects:
                raise StorageFull("the quarantine holds as many objects as it may")
            self._reserved_objects += 1

    async def take_bytes(self, size_bytes: int) -> None:
        """See `QuarantineRoom.take_bytes`."""
        with self._lock:
            if self._bytes + self._reserved_bytes + size_bytes > self._max_bytes:
                raise StorageFull("the quarantine holds as many bytes as it may")
            self._reserved_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """See `QuarantineRoom.give_back`."""
        with self._lock:
            self._reserved_objects -= 1
            self._reserved_bytes -= size_bytes

    def kept(self, object_id: str, size_bytes: int) -> None:
        """See `QuarantineRoom.kept`."""
        with self._lock:
            self._bytes += size_bytes - self._sizes.get(object_id, 0)
            self._sizes[object_id] = size_bytes

    def found(self, sizes: Mapping[str, int]) -> None:
        """These are all that lie there."""
        with self._lock:
            self._sizes, self._bytes = dict(sizes), sum(sizes.values())

    def gone(self, object_id: str) -> None:
        """This one lies there no longer."""
        with self._lock:
            self._bytes -= self._sizes.pop(object_id, 0)

    @property
    def totals(self) -> QuarantineTotals:
        """How much is kept now."""
        with self._lock:
            return QuarantineTotals(len(self._sizes), self._bytes, self._max_objects, self._max_bytes)

    def ids(self, after: str, most: int | None) -> list[str]:
        """Ids in order, those behind `after`, at most so many."""
        with self._lock:
            return sorted(object_id for object_id in self._sizes if object_id > after)[:most]

    def size_of(self, object_id: str) -> int:
        """The size of an object's file. Raises ObjectNotFound."""
        with self._lock:
            size = self._sizes.get(object_id)
        if size is None:
            raise ObjectNotFound("no such object in quarantine")
        return size
