"""Storing, reading and listing made short, for tests of storages."""

from __future__ import annotations

from hashlib import sha256
from itertools import count

from scp_server.protocol.events import Buffer
from scp_server.storage.base import ObjectKey, Storage, StoredObject

PREFIX = bytes(128) + b"DICM" + b"file meta"
"""What stands for preamble and File Meta."""
_SERIES = "1.2.840.99.2"
_arrivals = count(1)


def arrival_id() -> str:
    """Another one, in order."""
    return f"{next(_arrivals):024x}"


def object_key(
    arrival: str, *, instance: str = "1.2.840.99.3", series: str = _SERIES, study: str = "1.2.840.99.1"
) -> ObjectKey:
    """A key of one study and series, unless told otherwise."""
    return ObjectKey(study, series, instance, arrival)


async def store(
    storage: Storage,
    *data: Buffer,
    key: ObjectKey | None = None,
    prefix: bytes = PREFIX,
    may_leave_unsynced: bool = False,
) -> StoredObject:
    """Store one object, one `write` for each of `data`."""
    key = key or object_key(arrival_id())
    writer = await storage.begin(key.arrival_id, prefix)
    for piece in data:
        await writer.write([piece])
    return await writer.commit(key, may_leave_unsynced=may_leave_unsynced)


async def content(storage: Storage, location: str, offset: int = 0, length: int | None = None) -> bytes:
    """The bytes that `read` gives, together."""
    return b"".join([piece async for piece in storage.read(location, offset, length)])


async def listed(storage: Storage) -> dict[str, int]:
    """Every visible object's size; fails when one is listed twice."""
    objects = [stored async for stored in storage.list()]
    sizes = {stored.location: stored.size_bytes for stored in objects}
    assert len(sizes) == len(objects), "an object was listed twice"
    return sizes


async def in_flight(storage: Storage) -> set[str]:
    """The locations that may be unknown to the index."""
    return {stored.location async for stored in storage.in_flight()}


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes that differ from place to place and from seed to seed."""
    block = b"".join(sha256(f"{seed}.{number}".encode()).digest() for number in range(32))
    return (block * (size // len(block) + 1))[:size]
