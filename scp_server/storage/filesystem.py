"""The storage that needs nothing but a folder: one Part 10 file per object.

What a crash can and cannot do
------------------------------
An object is written as `incoming/<arrival id>.part` and renamed to its location by `commit`, in this order:

1. its bytes are written, and with durability `full` synced (fdatasync);
2. its directory is named in the ledger of objects in flight, which is synced (see `ledger`);
3. missing directories are made, and the parent of every one that is not known to be durable is synced;
4. the file is renamed: atomic, within one filesystem, so a location shows a whole object or none;
5. its directory is synced, and `commit` returns.

Killed at any point, with any durability, what a process has written stays in the page cache: before 4 there
is a part file, which the next `open` removes; from 4 on there is the whole object, which `in_flight` yields
until the index has it. Nothing is acknowledged before 5 and the index's own commit.

With `full` a power loss is no different. After 5 the object's bytes (1), its directories (3) and its name
(5) are on the disk. Between 4 and 5 the rename may or may not have reached it; the bytes have, by 1, and by
2 the ledger names the directory. With `process` a power loss may take recent objects, or their content.

An object that all fits into memory may be committed without the syncs of 1 and 5 (`may_leave_unsynced`): then
the index's transaction, which is synced before the object is acknowledged, holds all its bytes, until
`make_durable` has brought file and name to the disk behind it (see `late_sync`). A power loss in between may
leave no file, a short one or a whole one under the location; start-up writes it anew (`restore`) from the
index, or, where the index has no row, nobody was told of it.

An error at any step removes the file under whichever name it has; where that fails too it is tried again
after the next object that is stored, and when the storage is closed (see `left_overs`). Deletions are synced
with `full`, so that what was deleted does not come back.

Free space
----------
The reserve is compared with a reading of the filesystem (statvfs) taken anew for every object, in its first
visit to a thread, and again at every further one, so that a large object cannot eat the reserve either. To
refuse before the data set is taken, `begin` looks at the last reading where that is less than a second old
and was ample, and takes a new one otherwise. A busy storage thus begins without a visit to a thread, a full
or idle one with one, and no disk that hangs stalls the event loop.

Where an object lies
--------------------
The template in force when an object is begun decides (see `template`). Everything else takes any location
that some template may have made: a change of template leaves old objects found. Symbolic links are no
objects, and a listing goes into none.

Who calls
---------
`open` removes part files: one process at a time may own a folder, which is for the caller to ensure. Others
may write beside it when each is a `writer` with a name of its own, with which its arrival ids end. They leave
what others have left alone, and when one has died the owner takes that over (`take_over`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from scp_server.errors import ObjectNotFound, StorageError
from scp_server.observability.logs import get_logger
from scp_server.storage.base import Digest, ObjectWriter, StoredObject, TakeAway
from scp_server.storage.directories import DirectoryTree
from scp_server.storage.late_sync import LateSync
from scp_server.storage.layout import (
    INCOMING,
    OBJECTS,
    PART_SUFFIX,
    checked_arrival_id,
    directory_of,
    is_location,
    location_for_log,
)
from scp_server.storage.ledger import InFlightLedger
from scp_server.storage.pruning import PruneCounts
from scp_server.storage.reading import (
    READ_PIECE_BYTES,
    Batches,
    FileReader,
    objects_below,
    objects_in,
    size_at,
)
from scp_server.storage.sync import Durability, FreeSpace, SpaceReading, make_folder, storage_failure
from scp_server.storage.template import LayoutTemplate
from scp_server.storage.writer import FilesystemWriter, Workshop

__all__ = ["Durability", "FilesystemStorage", "FilesystemStorageConfig"]

log = get_logger(__name__)

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_LIST_BATCH = 512


@dataclass(frozen=True, slots=True)
class FilesystemStorageConfig:
    """Where and how. `root` is the data folder; it may hold other things beside `objects` and `incoming`."""

    root: Path
    durability: Durability = Durability.FULL
    reserve_bytes: int | None = None
    """Space never given to objects; None is the smaller of 1 GiB and 2 % of the filesystem."""
    write_buffer_bytes: int = 1_048_576
    """What a writer collects before it writes: an object below this costs one visit to a thread."""
    keep_part_files: bool = False
    """Leave what a crash left half-written where it is: for who only looks."""
    writer: str = ""
    """Hexadecimal: a process beside the one that owns the folder. Empty for the owner."""
    prunes: PruneCounts | None = None
    """Where there are such processes: what they tell each other of directories that they remove."""
    threads: int = 4
    """Blocking calls at once: with `full` this many objects are being synced together."""
    layout: LayoutTemplate = field(default_factory=LayoutTemplate)
    """Where objects are put."""


class FilesystemStorage:
    """A `Storage` in a folder. See the module for its order of steps and what they promise."""

    def __init__(self, config: FilesystemStorageConfig) -> None:
        self._config = config
        self._root = os.path.abspath(config.root)
        self.layout = config.layout
        """Where the objects are put that are begun from now on; may be another one at any time."""
        self._workshop: Workshop | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._examined_all = True

    # --- life cycle

    async def open(self) -> None:
        """Make the folders, remove part files, find the ledgers of earlier processes.

        Raises StorageError, also when `objects` and `incoming` lie on different filesystems.
        """
        if self._workshop is not None:
            raise StorageError("the storage is open")
        config = self._config
        durable = config.durability is Durability.FULL
        incoming = f"{self._root}/{INCOMING}"
        directories = DirectoryTree(self._root, durable=durable, prunes=config.prunes)
        workshop = Workshop(
            root=self._root,
            durable=durable,
            write_buffer_bytes=config.write_buffer_bytes,
            executor=ThreadPoolExecutor(config.threads, thread_name_prefix="storage"),
            directories=directories,
            late_sync=LateSync(self._root, directories),
            ledger=InFlightLedger(incoming, durable=durable, writer=config.writer),
            space=FreeSpace(incoming, config.reserve_bytes),
            spawn=self._spawn,
        )
        try:
            await workshop.hop(self._prepare, workshop)
        except OSError as error:
            workshop.executor.shutdown(wait=False)
            raise storage_failure(error, "open the storage") from error
        except BaseException:
            workshop.executor.shutdown(wait=False)
            raise
        self._workshop = workshop

    def _prepare(self, workshop: Workshop) -> None:
        objects, incoming = f"{self._root}/{OBJECTS}", f"{self._root}/{INCOMING}"
        for folder in (objects, incoming):
            make_folder(folder, durable=workshop.durable)
        if os.stat(objects).st_dev != os.stat(incoming).st_dev:
            raise StorageError(f"{OBJECTS} and {INCOMING} lie on different filesystems")
        workshop.late_sync.open()
        if self._config.writer:
            return
        names = os.listdir(incoming)
        if not self._config.keep_part_files:
            self._sweep(name for name in names if name.endswith(PART_SUFFIX))
        workshop.ledger.adopt(names)

    def _sweep(self, part_files: Iterable[str]) -> None:
        for name in part_files:
            os.unlink(f"{self._root}/{INCOMING}/{name}")

    async def take_over(self, writer: str) -> None:
        """Another writer has ended: remove its part files, and have `in_flight` yield what it left visible.

        Raises StorageError; it may be done again.
        """
        await self._hop("take over from a writer", self._take_over, self._opened(), writer)

    def _take_over(self, workshop: Workshop, writer: str) -> None:
        names = os.listdir(f"{self._root}/{INCOMING}")
        self._sweep(name for name in names if name.endswith(writer + PART_SUFFIX))
        workshop.ledger.take_over(names, writer)

    async def close(self) -> None:
        """Let commits in hand end, abort other writers, end the threads. A second time does nothing."""
        workshop, self._workshop = self._workshop, None
        if workshop is None:
            return
        for writer in tuple(workshop.writers):
            await writer.settle()
        while self._background:
            await asyncio.wait(tuple(self._background))
        await workshop.hop(workshop.left_overs.remove_all)
        await workshop.hop(workshop.ledger.close)
        await workshop.hop(workshop.late_sync.close)
        await asyncio.to_thread(workshop.executor.shutdown)

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def _opened(self) -> Workshop:
        if self._workshop is None:
            raise StorageError("the storage is closed")
        return self._workshop

    async def _hop(self, action: str, function: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        return await self._settled(action, self._opened().hop(function, *args))

    async def _settled(self, action: str, hop: asyncio.Future[_T]) -> _T:
        """What a visit to a thread brings. Raises ObjectNotFound, StorageError."""
        try:
            return await hop
        except FileNotFoundError as error:
            raise ObjectNotFound(f"cannot {action}: no such object") from error
        except OSError as error:
            raise storage_failure(error, action) from error

    # --- writing

    async def begin(self, arrival_id: str, prefix: bytes, digest: Digest | None = None) -> ObjectWriter:
        """See `Storage.begin`. Visits a thread only when no recent reading of the free space was ample.

        Raises ValueError for an arrival id that is not one.
        """
        checked_arrival_id(arrival_id)
        workshop = self._opened()
        if not workshop.space.recently_ample:
            try:
                await workshop.hop(workshop.space.check)
            except OSError as error:
                raise storage_failure(error, "look at the free space") from error
            # The storage may have been closed meanwhile.
            workshop = self._opened()
        return FilesystemWriter(workshop, self.layout, arrival_id, prefix, digest)

    async def space(self) -> SpaceReading:
        """What is free, read anew in a thread. Raises StorageError."""
        return await self._hop("look at the free space", self._opened().space.read)

    # --- reading

    async def read(
        self, location: str, offset_bytes: int = 0, length_bytes: int | None = None
    ) -> AsyncIterator[bytes]:
        """See `Storage.read`. Ends early where the object does; ObjectNotFound also for no location of ours.

        Raises ValueError for a negative offset or length.
        """
        if offset_bytes < 0 or (length_bytes is not None and length_bytes < 0):
            raise ValueError("offset and length are not negative")
        if not is_location(location):
            raise ObjectNotFound("cannot read: no location of this storage")
        reader = FileReader(f"{self._root}/{location}", offset_bytes, length_bytes)
        ahead: asyncio.Future[bytes] | None = None
        try:
            data = await self._hop("read", reader.read, READ_PIECE_BYTES)
            while data:
                # A piece is used while the next is read.
                ahead = None if reader.is_closed else self._opened().hop(reader.read, READ_PIECE_BYTES)
                yield data
                data = b"" if ahead is None else await self._settled("read", ahead)
        finally:
            if ahead is not None:
                ahead.cancel()  # Of one that failed asyncio would else say that nobody looked.
            if not reader.is_closed:
                self._close_later(reader.close)

    async def list(self) -> AsyncIterator[StoredObject]:
        """See `Storage.list`. Objects that come or go meanwhile may or may not be among them."""
        async for stored in self._batches(objects_below(self._root, OBJECTS)):
            yield stored

    async def sizes(self, locations: Sequence[str]) -> Sequence[int | None]:
        """See `Storage.sizes`. One visit to a thread for all; what is no location of ours is not there."""
        return await self._hop("look at objects", self._sizes, list(locations))

    def _sizes(self, locations: Sequence[str]) -> Sequence[int | None]:
        return [
            size_at(f"{self._root}/{location}") if is_location(location) else None for location in locations
        ]

    async def _batches(self, objects: Iterator[StoredObject]) -> AsyncIterator[StoredObject]:
        batches = Batches(objects)
        try:
            while batch := await self._hop("list", batches.next, _LIST_BATCH):
                for stored in batch:
                    yield stored
        finally:
            self._close_later(batches.close)

    def _close_later(self, close: Callable[[], None]) -> None:
        """Close in a thread, without waiting: an iterator that is thrown away cannot wait."""
        if self._workshop is not None:
            self._workshop.executor.submit(close)
        else:
            close()

    # --- deleting

    async def delete(self, location: str) -> None:
        """See `Storage.delete`. Directories that become empty go too. Implies `indexed`.

        What cannot be deleted now is tried again (see `left_overs`), whether or not the caller does.
        """
        if not is_location(location):
            raise StorageError("cannot delete: no location of this storage")
        await self._hop("delete", self._delete_one, self._opened(), location)

    async def delete_many(self, locations: Sequence[str]) -> Mapping[str, str]:
        """See `Storage.delete_many`. One visit to a thread, and one sync of each directory. As `delete`."""
        ours = [location for location in locations if is_location(location)]
        failed = await self._hop("delete", self._delete, self._opened(), ours)
        reasons = {each: "no location of this storage" for each in locations if not is_location(each)}
        return reasons | {each: str(storage_failure(error, "delete")) for each, error in failed.items()}

    def _delete_one(self, workshop: Workshop, location: str) -> None:
        for error in self._delete(workshop, [location]).values():
            raise error

    def _delete(self, workshop: Workshop, locations: Sequence[str]) -> dict[str, OSError]:
        """Remove files; those that could not be removed are told, and tried again later."""
        failed = self._remove(workshop, locations)
        for location in failed:
            workshop.left_overs.add(partial(self._is_removed, workshop, location))
        return failed

    def _is_removed(self, workshop: Workshop, location: str) -> bool:
        return not self._remove(workshop, [location])

    def _remove(self, workshop: Workshop, locations: Sequence[str]) -> dict[str, OSError]:
        failed: dict[str, OSError] = {}
        gone: list[str] = []
        for location in locations:
            try:
                os.unlink(f"{self._root}/{location}")
            except FileNotFoundError:
                gone.append(location)
            except OSError as error:
                failed[location] = error
            else:
                gone.append(location)
        directories = set(map(directory_of, gone))
        for directory in directories:
            workshop.directories.prune(directory)
        if workshop.durable:
            try:
                # Also where the file was gone: an earlier attempt may have ended before its sync.
                workshop.directories.sync_nearest(directories)
            except OSError as error:
                return failed | dict.fromkeys(gone, error)
        for location in gone:
            workshop.ledger.release(location)
        return failed

    # --- setting aside

    async def set_aside_written(self, writer: ObjectWriter, take_away: TakeAway) -> None:
        """See `SettingAside.set_aside_written`."""
        if not isinstance(writer, FilesystemWriter):
            raise StorageError("cannot set aside: no writer of this storage")
        await writer.hand_over(take_away)

    async def set_aside_stored(self, stored: StoredObject, take_away: TakeAway) -> None:
        """See `SettingAside.set_aside_stored`. Directories that become empty go too."""
        if not is_location(stored.location):
            raise StorageError("cannot set aside: no location of this storage")
        await self._hop("set aside", self._set_aside, self._opened(), stored, take_away)

    def _set_aside(self, workshop: Workshop, stored: StoredObject, take_away: TakeAway) -> None:
        if stored.unsynced is not None:
            workshop.late_sync.sync_bytes(stored.location)
        take_away(f"{self._root}/{stored.location}", stored.size_bytes)
        # Gone from here; what is left to do is what follows a deletion. Where that fails the ledger keeps
        # its line, and start-up looks into a directory too many.
        self._delete(workshop, [stored.location])

    # --- in flight

    async def in_flight(self) -> AsyncIterator[StoredObject]:
        """See `Storage.in_flight`. Every object in the directories that earlier processes left in ledgers.

        What cannot be read is logged and passed over; then the ledgers stay, and the next start looks again.
        """
        for directory in await self._hop("read the ledgers", self._left_over_directories, self._opened()):
            try:
                async for stored in self._batches(objects_in(self._root, directory)):
                    yield stored
            except StorageError as failure:
                self._not_examined(location_for_log(directory), failure)

    def _left_over_directories(self, workshop: Workshop) -> Sequence[str]:
        def unreadable(name: str, error: OSError) -> None:
            self._not_examined(f"{INCOMING}/{name}", storage_failure(error, "read the ledger"))

        return list(workshop.ledger.left_over_directories(unreadable))

    def _not_examined(self, location: str, failure: StorageError) -> None:
        self._examined_all = False
        log.error("recovery.not_examined", location=location, error=str(failure))

    async def settled(self) -> None:
        """See `Storage.settled`. Does nothing while something could not be examined."""
        if self._examined_all:
            await self._hop("remove the ledger", self._opened().ledger.settle)

    async def not_yet_indexed(self, locations: Sequence[str]) -> set[str]:
        """See `Storage.not_yet_indexed`."""
        return await self._hop("look at what is in flight", self._opened().ledger.holding, list(locations))

    async def indexed(self, stored: StoredObject) -> None:
        """See `Storage.indexed`. No visit to a thread, no system call."""
        if self._workshop is not None:
            self._workshop.ledger.report(stored.location)

    # --- what was left unsynced

    async def make_durable(self, locations: Sequence[str]) -> None:
        """See `Storage.make_durable`. One visit to a thread, and one system call where `late_sync` may."""
        ours = [location for location in locations if is_location(location)]
        await self._hop("make objects durable", self._opened().late_sync.make_durable, ours)

    async def rewrite(self, location: str, content: bytes) -> bool:
        """See `Storage.rewrite`."""
        late_sync = self._opened().late_sync
        return is_location(location) and await self._hop("rewrite", late_sync.rewrite, location, content)

    async def restore(self, location: str, content: bytes) -> bool:
        """See `Storage.restore`. By way of a part file and a rename."""
        if not is_location(location):
            raise StorageError("cannot restore: no location of this storage")
        return await self._hop("restore", self._opened().late_sync.restore, location, content)
