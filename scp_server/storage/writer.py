"""One object on its way into the filesystem storage.

`FilesystemWriter` lives in the event loop and collects buffers without copying them; `_PartFile` lives in the
storage's threads and does what blocks. One visit to a thread (a *hop*) is in hand at a time, so the two need
no lock. An object that fits into the buffer costs one hop in all, in `commit`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, TypeVar, TypeVarTuple

from scp_server.errors import StorageError
from scp_server.protocol.events import Buffer
from scp_server.storage.base import (
    PATCHABLE_BYTES,
    DeferredObject,
    Digest,
    ObjectKey,
    StoredObject,
    TakeAway,
)
from scp_server.storage.directories import DirectoryTree
from scp_server.storage.late_sync import LateSync
from scp_server.storage.layout import INCOMING, PART_SUFFIX, directory_of
from scp_server.storage.ledger import InFlightLedger
from scp_server.storage.left_overs import LeftOvers
from scp_server.storage.reading import READ_PIECE_BYTES, FileReader
from scp_server.storage.sync import (
    FILE_MODE,
    FreeSpace,
    size_of,
    storage_failure,
    sync_directory,
    write_all,
    write_at,
)
from scp_server.storage.template import LayoutTemplate

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_JOINED_BYTES = 2048
"""Buffers below this are copied together: a memoryview costs more than they do, and writev takes few."""
_FRAGMENT_COST_BYTES = 64
"""What the smallest buffer counts for: more than its PDU took on the wire, whose bytes it may keep alive."""
_PLACING_ATTEMPTS = 16
"""Renames tried while deletions keep removing its directory in between."""
DEFERRED_BYTES = 786_432
"""The largest object that is deferred: it is hashed in the event loop, in a tenth of a millisecond."""
_HASHED_ALONE_BYTES = 65_536
"""Buffers smaller than this, on average, are joined to be hashed: blake3 takes long pieces four times as fast
as those of 16 KiB, and copying costs less than the difference."""
_SLOW_SECONDS = 0.005
_SLOW_FOR_SECONDS = 1.0
"""A deferred object that took longer sends others to the storage's own threads for a while: there several
wait for a slow disk together, and nobody else waits for them."""


class Pace:
    """Whether the disk takes small objects at once. Any thread may say so."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slow_until = float("-inf")

    @property
    def is_quick(self) -> bool:
        """No object took long just now."""
        return self._clock() >= self._slow_until

    def took(self, seconds: float) -> None:
        """An object was placed, or was not, in `seconds`."""
        if seconds > _SLOW_SECONDS:
            self._slow_until = self._clock() + _SLOW_FOR_SECONDS


@dataclass(frozen=True, slots=True)
class Workshop:
    """What the writers of one storage share. `spawn` runs a coroutine that the storage owns."""

    root: str
    durable: bool
    write_buffer_bytes: int
    executor: Executor
    directories: DirectoryTree
    ledger: InFlightLedger
    late_sync: LateSync
    space: FreeSpace
    spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
    writers: set[FilesystemWriter] = field(default_factory=set)
    left_overs: LeftOvers = field(default_factory=LeftOvers)
    pace: Pace = field(default_factory=Pace)

    def hop(self, function: Callable[[*_Ts], _T], *args: *_Ts) -> asyncio.Future[_T]:
        """Run `function` in a thread. Raises StorageError when the storage is closed."""
        try:
            return asyncio.get_running_loop().run_in_executor(self.executor, function, *args)
        except RuntimeError as error:
            raise StorageError("the storage is closed") from error


class _PartFile:
    """The file of one object: `incoming/<arrival id>.part`, then its final name. Every method blocks."""

    def __init__(self, workshop: Workshop, arrival_id: str, digest: Digest | None) -> None:
        self._workshop = workshop
        self._path = f"{workshop.root}/{INCOMING}/{arrival_id}{PART_SUFFIX}"
        self._digest = digest
        self._descriptor = -1
        self._created = False
        self._ended = False
        self._entered = ""
        self._placed = ""
        self._size = 0
        self.unwanted = False
        """Set by the event loop: what has not happened yet need not happen."""

    def append(self, prefix: bytes, buffers: Sequence[Buffer]) -> None:
        """Write `prefix` and `buffers`; the digest sees the latter. Leaves nothing when it raises."""
        try:
            self._append(prefix, buffers)
        except OSError as error:
            self.discard()
            raise storage_failure(error, "write") from error
        except BaseException:
            self.discard()
            raise

    def _append(self, prefix: bytes, buffers: Sequence[Buffer]) -> None:
        if self.unwanted or self._ended:
            raise StorageError("the object was given up")
        self._workshop.space.check()
        if not self._created:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, FILE_MODE)
            self._created = True
        self._size += write_all(self._descriptor, (prefix, *buffers) if prefix else buffers)
        if self._digest is not None:
            _hash(self._digest, buffers)

    def finish(
        self,
        prefix: bytes,
        buffers: Sequence[Buffer],
        patches: Sequence[tuple[int, bytes]],
        location: str,
        unsynced: bytes | None = None,
    ) -> StoredObject:
        """Write the rest, make the object durable, then visible. Leaves nothing when it raises.

        `unsynced` is all of it, where making it durable is left to others."""
        try:
            if prefix or buffers or not self._created:
                self._append(prefix, buffers)
            for offset_bytes, data in patches:
                write_at(self._descriptor, data, offset_bytes)
            sync = self._workshop.durable and unsynced is None
            if sync:
                os.fdatasync(self._descriptor)
            # Some filesystems tell of a failed write only here, so before the rename.
            self._close()
            self._place(location, sync=sync)
            # The disk takes objects, so it may let go of what it would not before.
            self._workshop.left_overs.remove_all()
        except OSError as error:
            self.discard()
            raise storage_failure(error, "store the object") from error
        except BaseException:
            self.discard()
            raise
        self._ended = True
        return StoredObject(self._placed, self._size, unsynced)

    def hand_over(self, prefix: bytes, buffers: Sequence[Buffer], take_away: TakeAway) -> None:
        """Write the rest, make the bytes durable, and let `take_away` have the file. Leaves nothing here."""
        try:
            if prefix or buffers or not self._created:
                self._append(prefix, buffers)
            if self._workshop.durable:
                os.fdatasync(self._descriptor)
            self._close()
            if self.unwanted:
                raise StorageError("the object was given up")
            take_away(self._path, self._size)
        except OSError as error:
            self.discard()
            raise storage_failure(error, "set the object aside") from error
        except BaseException:
            self.discard()
            raise
        self._created = False
        self._ended = True

    def reader(self, offset_bytes: int) -> FileReader:
        """What reads the file's bytes from an offset on, while it is still being written."""
        return FileReader(self._path, offset_bytes, max(0, self._size - offset_bytes))

    def _place(self, location: str, *, sync: bool) -> None:
        workshop = self._workshop
        directory = directory_of(location)
        target = f"{workshop.root}/{location}"
        workshop.ledger.enter(directory, location)
        self._entered = location
        for attempt in range(_PLACING_ATTEMPTS):
            workshop.directories.ensure(directory)
            if os.path.lexists(target):
                raise StorageError("the arrival id was used before")
            if self.unwanted:
                raise StorageError("the object was given up")
            try:
                os.rename(self._path, target)
                break
            except FileNotFoundError:
                # A deletion emptied and removed the directory since `ensure`.
                if attempt == _PLACING_ATTEMPTS - 1:
                    raise
                workshop.directories.forget(directory)
        self._placed = location
        # See `directories`: only now is what is known about this directory sure to be about this one.
        workshop.directories.ensure(directory)
        if sync:
            sync_directory(workshop.directories.path(directory))

    def discard(self) -> None:
        """Remove the file under whichever name it has. Raises no OSError; a second time does no more.

        What stays all the same is tried again; until then a part file is swept at the next start, and a
        visible one is still in the ledger.
        """
        self._ended = True
        if not self._remove():
            self._workshop.left_overs.add(self._remove)

    def _remove(self) -> bool:
        workshop = self._workshop
        with suppress(OSError):
            self._close()
        if self._created:
            try:
                os.unlink(f"{workshop.root}/{self._placed}" if self._placed else self._path)
            except FileNotFoundError:
                pass
            except OSError:
                return False
            self._created = False
        if self._entered:
            directory = directory_of(self._entered)
            workshop.directories.prune(directory)
            if self._placed and workshop.durable:
                with suppress(OSError):
                    workshop.directories.sync_nearest([directory])
            workshop.ledger.release(self._entered)
            self._entered = ""
        return True

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class _Deferred:
    """A `DeferredObject`: what `finish` is to be called with."""

    def __init__(
        self,
        workshop: Workshop,
        part: _PartFile,
        prefix: bytes,
        buffers: Sequence[Buffer],
        stored: StoredObject,
    ) -> None:
        """`stored` tells whether it is left unsynced."""
        self._workshop = workshop
        self._part = part
        self._prefix = prefix
        self._buffers = buffers
        self.stored = stored
        self.placing_seconds = 0.0

    def place(self) -> None:
        """See `DeferredObject.place`."""
        began = time.perf_counter()
        try:
            self._part.finish(self._prefix, self._buffers, (), self.stored.location, self.stored.unsynced)
        finally:
            self._buffers = ()
            self.placing_seconds = time.perf_counter() - began
            self._workshop.pace.took(self.placing_seconds)


class _State(Enum):
    OPEN = auto()
    COMMITTING = auto()
    COMMITTED = auto()
    BROKEN = auto()
    """A call failed or was cancelled: only `abort` is left."""


class FilesystemWriter:
    """An `ObjectWriter`. Holds at most `write_buffer_bytes` and what one `write` added."""

    def __init__(
        self,
        workshop: Workshop,
        layout: LayoutTemplate,
        arrival_id: str,
        prefix: bytes,
        digest: Digest | None,
    ) -> None:
        self._workshop = workshop
        self._layout = layout
        self._arrival_id = arrival_id
        self._part = _PartFile(workshop, arrival_id, digest)
        self._digest = digest
        self._prefix = prefix
        self._pending: list[Buffer] = []
        self._pending_cost = len(prefix)
        self._held_bytes = 0
        self._joined: bytearray | None = None
        self._accepted_bytes = len(prefix)
        self._patches: list[tuple[int, bytes]] = []
        self._state = _State.OPEN
        self._hop: asyncio.Future[Any] | None = None
        self._cleaning: asyncio.Task[None] | None = None
        workshop.writers.add(self)

    async def write(self, data: Sequence[Buffer]) -> None:
        """Append; hops to a thread only when the buffer is full. See `ObjectWriter.write`."""
        self._refuse_unless_open()
        for fragment in data:
            size = size_of(fragment)
            self._accepted_bytes += size
            if size >= _JOINED_BYTES:
                self._joined = None
                self._pending.append(fragment)
            elif self._joined is not None:
                self._joined += fragment
            else:
                self._joined = bytearray(fragment)
                self._pending.append(self._joined)
            self._pending_cost += max(size, _FRAGMENT_COST_BYTES)
            self._held_bytes += size
        if self._pending_cost >= self._workshop.write_buffer_bytes:
            await self._perform(self._part.append, *self._take_pending())

    @property
    def held_bytes(self) -> int:
        """See `ObjectWriter.held_bytes`; what a thread is writing is held by the call that waits for it."""
        return self._held_bytes

    async def flush(self) -> None:
        """See `ObjectWriter.flush`. No hop when nothing is held."""
        self._refuse_unless_open()
        if self._held_bytes:
            await self._perform(self._part.append, *self._take_pending())

    async def read(self, offset_bytes: int = 0) -> AsyncIterator[bytes]:
        """See `ObjectWriter.read`. Reads the part file, which is made even where all fits into the buffer."""
        self._refuse_unless_open()
        if self._pending_cost or self._hop is None:
            await self._perform(self._part.append, *self._take_pending())
        reader = self._part.reader(offset_bytes)
        try:
            while data := await self._workshop.hop(reader.read, READ_PIECE_BYTES):
                yield data
        except OSError as error:
            raise storage_failure(error, "read back") from error
        finally:
            if not reader.is_closed:
                self._workshop.executor.submit(reader.close)

    async def patch(self, offset_bytes: int, data: bytes) -> None:
        """Remembered, and written in `commit`. See `ObjectWriter.patch`."""
        self._refuse_unless_open()
        end = offset_bytes + len(data)
        if offset_bytes < 0 or end > min(PATCHABLE_BYTES, self._accepted_bytes):
            raise ValueError("a patch lies within what was written, and within PATCHABLE_BYTES")
        self._patches.append((offset_bytes, bytes(data)))

    async def commit(self, key: ObjectKey, *, may_leave_unsynced: bool = False) -> StoredObject:
        """One hop: write, sync, rename, sync, as configured. See `ObjectWriter.commit`."""
        self._refuse_unless_open()
        location = self._location_of(key)
        prefix, pending = self._take_pending()
        self._state = _State.COMMITTING
        unsynced = b"".join((prefix, *pending)) if may_leave_unsynced and self._can_be_unsynced else None
        stored = await self._perform(self._part.finish, prefix, pending, self._patches, location, unsynced)
        self._state = _State.COMMITTED
        self._workshop.writers.discard(self)
        return stored

    @property
    def _can_be_unsynced(self) -> bool:
        return self._workshop.durable and self._hop is None and not self._patches

    def defer(self, key: ObjectKey, *, may_leave_unsynced: bool = False) -> DeferredObject | None:
        """A small object of which nothing was written, where nothing is synced: neither it nor, with
        durability `full`, a directory that is made for it. See `ObjectWriter.defer`."""
        self._refuse_unless_open()
        workshop = self._workshop
        is_whole = self._hop is None and not self._patches and self._accepted_bytes <= DEFERRED_BYTES
        if not is_whole or not workshop.pace.is_quick:
            return None
        location = self._location_of(key)
        if workshop.durable and not (
            may_leave_unsynced and workshop.directories.is_known(directory_of(location))
        ):
            return None
        prefix, pending = self._take_pending()
        unsynced = b"".join((prefix, *pending)) if workshop.durable else None
        if self._digest is not None:
            _hash(self._digest, pending)
        self._state = _State.COMMITTED
        self._workshop.writers.discard(self)
        part = _PartFile(workshop, self._arrival_id, None)
        stored = StoredObject(location, self._accepted_bytes, unsynced)
        if unsynced is not None:
            prefix, pending = unsynced, []
        return _Deferred(workshop, part, prefix, pending, stored)

    async def hand_over(self, take_away: TakeAway) -> None:
        """One hop, in the place of `commit`. See `SettingAside.set_aside_written`."""
        self._refuse_unless_open()
        prefix, pending = self._take_pending()
        self._state = _State.COMMITTING
        await self._perform(self._part.hand_over, prefix, pending, take_away)
        self._state = _State.COMMITTED
        self._workshop.writers.discard(self)

    async def abort(self) -> None:
        """See `ObjectWriter.abort`. The clean-up is the storage's own task, which a cancellation spares."""
        if self._state is _State.COMMITTED:
            return
        if self._cleaning is None:
            self._state = _State.BROKEN
            self._part.unwanted = True
            self._take_pending()
            if self._hop is None:
                # Nothing has reached a thread, so there is no file.
                self._workshop.writers.discard(self)
                return
            self._cleaning = self._workshop.spawn(self._clean(), f"storage.abort {self._arrival_id}")
        await asyncio.wait((self._cleaning,))

    async def settle(self) -> None:
        """For the storage's `close`: let a commit in hand end, abort anything else."""
        if self._state is _State.COMMITTING and self._hop is not None:
            await asyncio.wait((self._hop,))
        else:
            await self.abort()

    async def _clean(self) -> None:
        try:
            if self._hop is not None:
                await asyncio.wait((self._hop,))
            # Closed meanwhile: the next start sweeps the part file.
            with suppress(StorageError):
                await self._workshop.hop(self._part.discard)
        finally:
            self._workshop.writers.discard(self)

    def _location_of(self, key: ObjectKey) -> str:
        if key.arrival_id != self._arrival_id:
            raise ValueError("the key has another arrival id than the writer")
        return self._layout.location_of(key)

    def _refuse_unless_open(self) -> None:
        if self._state is not _State.OPEN:
            raise StorageError("the object's writer has ended")

    def _take_pending(self) -> tuple[bytes, list[Buffer]]:
        taken = self._prefix, self._pending
        self._prefix, self._pending, self._joined = b"", [], None
        self._pending_cost = self._held_bytes = 0
        return taken

    async def _perform(self, function: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        """A hop that goes on when its caller is cancelled."""
        hop: asyncio.Future[_T] | None = None
        try:
            hop = self._hop = self._workshop.hop(function, *args)
            await asyncio.wait((hop,))
            return hop.result()
        except asyncio.CancelledError:
            # A commit in hand stays COMMITTING: `close` lets it end.
            if self._state is _State.OPEN:
                self._state = _State.BROKEN
            if hop is not None:
                hop.add_done_callback(_look_at)
            raise
        except BaseException:
            # The hop has removed the file, or never began.
            self._state = _State.BROKEN
            self._hop = None
            self._workshop.writers.discard(self)
            raise


def _hash(digest: Digest, buffers: Sequence[Buffer]) -> None:
    if len(buffers) > 1 and sum(map(size_of, buffers)) < len(buffers) * _HASHED_ALONE_BYTES:
        digest.update(b"".join(buffers))
    else:
        for data in buffers:
            digest.update(data)


def _look_at(hop: asyncio.Future[Any]) -> None:
    """Nobody waits for this hop any more; what it says is no news."""
    if not hop.cancelled():
        hop.exception()
