"""Where objects lie: the small Protocols that every storage backend fulfils.

An object is a Part 10 file's bytes under a location. It is written through an `ObjectWriter`, and is either
whole and visible under its location after `commit`, or has never been. `scp_server.testing.storage_contract`
is the suite that decides whether a backend fulfils this.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from scp_server.protocol.events import Buffer

PATCHABLE_BYTES = 4096
"""`ObjectWriter.patch` reaches only the first bytes, which a multipart upload can hold back until its end."""


@dataclass(frozen=True, slots=True)
class ObjectKey:
    """What an object's location is made from. All but `arrival_id` are opaque peers' strings: never used raw
    in a path.

    `arrival_id` is unique, time-ordered and ours: `[0-9a-f]+`. The fields after it are what the object says,
    None or empty where it does not, and who sent it.
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    arrival_id: str
    sop_class_uid: str = ""
    patient_id: str | None = None
    modality: str | None = None
    study_date: str | None = None
    calling_ae_title: str = ""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object that is visible. `location` is relative to the storage, with `/` between its parts."""

    location: str
    size_bytes: int
    unsynced: bytes | None = field(default=None, repr=False)
    """Every byte of it, where `commit` has left it to the caller to make the object durable; else None."""


class Digest(Protocol):
    """What hashlib's and blake3's objects have in common."""

    def update(self, data: Buffer, /) -> object: ...


class DeferredObject(Protocol):
    """An object that lies whole in memory, and of which nothing is written yet."""

    @property
    def stored(self) -> StoredObject:
        """What `place` makes of it."""
        ...

    @property
    def placing_seconds(self) -> float:
        """How long `place` took; 0 before it."""
        ...

    def place(self) -> None:
        """Make it durable as configured, then visible, as `commit` does. Blocks; once, in whichever thread.

        Raises StorageFull or StorageError, and then nothing is left of it. Never called, nothing ever was."""
        ...


class ObjectWriter(Protocol):
    """One object being written. Exactly one of `commit`, `defer` and `abort` ends it; `abort` may follow a
    failure, and a `defer` that returned None does nothing."""

    @property
    def held_bytes(self) -> int:
        """Bytes of buffers given to `write` that the writer still holds."""
        ...

    async def write(self, data: Sequence[Buffer]) -> None:
        """Append. The writer may keep the buffers until `flush`, `commit` or `abort`: nobody changes them.

        Raises StorageFull or StorageError; after that, and after a cancellation, only `abort` is left.
        """
        ...

    async def flush(self) -> None:
        """Write out everything held, so that `held_bytes` is 0. Raises what `write` raises."""
        ...

    def read(self, offset_bytes: int = 0) -> AsyncIterator[bytes]:
        """Yield what was written so far from `offset_bytes` on, prefix included, patches perhaps not, a few
        hundred KiB at a time. Flushes first, so that the digest has seen all of it. Nothing may be written or
        committed meanwhile. Raises what `write` raises, and StorageError when it cannot be read.
        """
        ...

    async def patch(self, offset_bytes: int, data: bytes) -> None:
        """Overwrite bytes already written, within the first PATCHABLE_BYTES of the object.

        The digest does not see it. May take effect as late as `commit`, which then raises what goes wrong.
        Raises ValueError outside of what may be patched, StorageError when the writer has ended.
        """
        ...

    async def commit(self, key: ObjectKey, *, may_leave_unsynced: bool = False) -> StoredObject:
        """Make the object durable as configured, then visible. Raises StorageFull or StorageError, and then
        nothing is left of it. `key.arrival_id` is the one given to `begin`.

        `may_leave_unsynced`: where all of it is in memory still, the writer may leave out making it durable
        and hand it back (`StoredObject.unsynced`). The caller then keeps those bytes safe until
        `Storage.make_durable` has returned.

        When the caller is cancelled the object may or may not become visible, until `abort` removes it.
        """
        ...

    def defer(self, key: ObjectKey, *, may_leave_unsynced: bool = False) -> DeferredObject | None:
        """In the place of `commit`, for an object that is written so quickly that whoever goes to a thread
        anyway may as well do it there. The digest has seen all of it. None where `commit` is wanted.
        `may_leave_unsynced` as there.
        """
        ...

    async def abort(self) -> None:
        """Leave nothing behind. May be called at any time, also twice, also while the task is being
        cancelled (what it began goes on); never raises. After a `commit` that returned it does nothing.
        """
        ...


class Storage(Protocol):
    """A place for objects. Methods may be called from any task of one event loop."""

    async def open(self) -> None:
        """Make ready; removes what a crash left half-written."""
        ...

    async def close(self) -> None:
        """Let commits in hand end, abort the other writers, then give everything back."""
        ...

    async def begin(self, arrival_id: str, prefix: bytes, digest: Digest | None = None) -> ObjectWriter:
        """Start an object with `prefix` (preamble and File Meta).

        `digest` is fed with everything written after the prefix, off the event loop; read it after `commit`.
        Raises StorageFull when less than the reserve is free.
        """
        ...

    def read(
        self, location: str, offset_bytes: int = 0, length_bytes: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield an object's bytes from `offset_bytes` on, a few hundred KiB at a time, up to `length_bytes`
        or its end. Raises ObjectNotFound or StorageError.
        """
        ...

    async def delete(self, location: str) -> None:
        """Remove an object; one that is not there is no error. Raises StorageError when it cannot, or
        when `location` is none of this storage's."""
        ...

    async def delete_many(self, locations: Sequence[str]) -> Mapping[str, str]:
        """Remove objects as `delete` does, at a smaller cost for each; returns those that could not be
        removed, with the reason. When it returns the others are gone as durably as one deleted alone.

        Raises StorageError when nothing can be said of any; they may be gone then or not."""
        ...

    def list(self) -> AsyncIterator[StoredObject]:
        """Yield every visible object, in no particular order."""
        ...

    async def sizes(self, locations: Sequence[str]) -> Sequence[int | None]:
        """How many bytes the object at each location has; None where there is none. Raises StorageError."""
        ...

    def in_flight(self) -> AsyncIterator[StoredObject]:
        """Yield the visible objects whose commit may not have been followed by an index entry when the
        last process ended: few, however many objects there are. For start-up, before anything is written."""
        ...

    async def settled(self) -> None:
        """Everything that `in_flight` yielded has been dealt with."""
        ...

    async def not_yet_indexed(self, locations: Sequence[str]) -> set[str]:
        """Those of `locations` that were committed since `open` and not reported as `indexed`: their writers
        are about to do so, or the next start will. Raises StorageError."""
        ...

    async def indexed(self, stored: StoredObject) -> None:
        """The index knows this object (or it was deleted): it is no longer in flight. Cheap; never raises."""
        ...

    async def make_durable(self, locations: Sequence[str]) -> None:
        """Make objects durable that `commit` left unsynced, or that were rewritten or restored. Those that
        are not there are passed over. Raises StorageError: then any of them may be lost to the disk, and
        asking again would not tell; each has to be rewritten before."""
        ...

    async def rewrite(self, location: str, content: bytes) -> bool:
        """Write an object's bytes, all of them and the same, once more; False where it is not there, and then
        it is not made. Not durable yet. Raises StorageError."""
        ...

    async def restore(self, location: str, content: bytes) -> bool:
        """Make an object be there with these bytes; returns whether it was not. Not durable yet. For
        start-up, before anything is written or deleted. Raises StorageError."""
        ...


TakeAway = Callable[[str, int], None]
"""Called in a thread with the path and the size in bytes of an object whose bytes are durable as configured;
renames it away. Raises OSError or StorageError, and then the object is still at that path."""


class SettingAside(Protocol):
    """What a storage offers beside `Storage` so that refused objects can be kept elsewhere without a copy.

    Both return when `take_away` has, raise StorageError when it could not be done, and never leave the
    object in two places. A cancelled caller finds the object here or there, never half.
    """

    async def set_aside_written(self, writer: ObjectWriter, take_away: TakeAway) -> None:
        """End `writer` in the place of `commit`: everything it has goes with the object, prefix included.
        When it raises nothing is left of the object."""
        ...

    async def set_aside_stored(self, stored: StoredObject, take_away: TakeAway) -> None:
        """Take a committed object, which the index does not know, out of the storage. Implies `indexed`.
        When it raises the object is still there, and still in flight."""
        ...
