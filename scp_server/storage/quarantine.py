"""Where refused data sets lie until somebody has looked at them.

::

    quarantine/<arrival id>.quarantine     preamble, File Meta, then the data set exactly as it was received
    quarantine/<arrival id>.json           its record (`quarantine_record`)
    quarantine/<arrival id>.json.part      a record being written

An object gets here by a rename, whole: from the staging file it was received into, or, where only the index
found it unwanted, from its place among the objects. Its record is written and synced first, so an object in
quarantine always has one; a record without an object is what a crash or a removal left, and is swept by
`open`. With durability `full` both and their names are synced before the peer hears the refusal.

Nothing is ever dropped to make room. What would go beyond the bounds is not kept, which the caller logs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from scp_server.errors import ObjectNotFound, StorageError
from scp_server.observability.measures import QuarantineEvent, QuarantineMeasures
from scp_server.storage.base import ObjectWriter, SettingAside, StoredObject, TakeAway
from scp_server.storage.layout import INCOMING, checked_arrival_id
from scp_server.storage.quarantine_record import MAX_RECORD_BYTES, QuarantineRecord, record_from_json
from scp_server.storage.quarantine_room import Admission, QuarantineBook, QuarantineRoom, QuarantineTotals
from scp_server.storage.reading import FileReader
from scp_server.storage.sync import FILE_MODE, make_folder, storage_failure, sync_directory, write_all

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

QUARANTINE = "quarantine"
OBJECT_SUFFIX = ".quarantine"
RECORD_SUFFIX = ".json"
_PART_SUFFIX = ".json.part"
_READ_BYTES = 262_144
_THREADS = 2


@dataclass(frozen=True, slots=True)
class QuarantineConfig:
    """Where, and how much. `root` is the data folder; `max_bytes` 0 keeps nothing new."""

    root: Path
    durable: bool = True
    max_bytes: int = 1 << 30
    """Of all files together, preambles and File Meta included, records not."""
    max_objects: int = 10_000


class Quarantine:
    """The quarantine of one data folder, over the storage beside it. Methods are for one event loop.

    `storage` may be None where nothing is taken in: for looking at it, and dropping, without a server.
    """

    def __init__(
        self,
        config: QuarantineConfig,
        storage: SettingAside | None,
        measures: QuarantineMeasures | None = None,
        room: QuarantineRoom | None = None,
    ) -> None:
        """`room` where another process keeps the book, for all that write here: then this one only takes in,
        and leaves what it finds alone."""
        self._config = config
        self._book = QuarantineBook(config.max_objects, config.max_bytes)
        self._room = room or self._book
        self._measures = measures or QuarantineMeasures()
        self._storage = storage
        self._root = os.path.join(os.path.abspath(config.root), QUARANTINE)
        self._executor: ThreadPoolExecutor | None = None
        self._busy: set[str] = set()

    # --- life cycle

    async def open(self) -> None:
        """Make the folder, sweep what a crash left, count what is there. Raises StorageError.

        One process at a time may use the folder, which is for the caller to ensure.
        """
        if self._executor is not None:
            raise StorageError("the quarantine is open")
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="quarantine")
        try:
            await self._hop("open the quarantine", self._prepare)
        except BaseException:
            self._executor.shutdown(wait=False)
            self._executor = None
            raise

    def _prepare(self) -> None:
        make_folder(self._root, durable=self._config.durable)
        incoming = os.path.join(os.path.dirname(self._root), INCOMING)
        if os.path.isdir(incoming) and os.stat(incoming).st_dev != os.stat(self._root).st_dev:
            raise StorageError(f"{QUARANTINE} and {INCOMING} lie on different filesystems")
        if self._room is not self._book:
            return
        sizes: dict[str, int] = {}
        records: list[str] = []
        with os.scandir(self._root) as entries:
            for entry in entries:
                if entry.name.endswith(_PART_SUFFIX):
                    os.unlink(entry.path)
                elif entry.name.endswith(RECORD_SUFFIX):
                    records.append(entry.name.removesuffix(RECORD_SUFFIX))
                elif entry.name.endswith(OBJECT_SUFFIX):
                    object_id = entry.name.removesuffix(OBJECT_SUFFIX)
                    if _is_id(object_id):
                        sizes[object_id] = entry.stat(follow_symlinks=False).st_size
        for object_id in records:
            if _is_id(object_id) and object_id not in sizes:
                os.unlink(self._path(object_id, RECORD_SUFFIX))
        self._book.found(sizes)

    async def take_over(self, writer: str) -> None:
        """Another process that took in has ended; what it has left is counted, or swept. Its arrival ids end
        in `writer`. Raises StorageError; it may be done again."""
        await self._hop("look through the quarantine", self._take_over, writer)

    def _take_over(self, writer: str) -> None:
        objects: set[str] = set()
        records: set[str] = set()
        for name in os.listdir(self._root):
            if name.endswith(writer + OBJECT_SUFFIX):
                objects.add(name.removesuffix(OBJECT_SUFFIX))
            elif name.endswith(writer + RECORD_SUFFIX):
                records.add(name.removesuffix(RECORD_SUFFIX))
            elif name.endswith(writer + _PART_SUFFIX):
                os.unlink(f"{self._root}/{name}")
        for object_id in filter(_is_id, objects):
            self._book.kept(object_id, os.stat(self._path(object_id, OBJECT_SUFFIX)).st_size)
        for object_id in filter(_is_id, records - objects):
            os.unlink(self._path(object_id, RECORD_SUFFIX))

    async def close(self) -> None:
        """Let what runs end. A second time does nothing."""
        executor, self._executor = self._executor, None
        if executor is not None:
            await asyncio.to_thread(executor.shutdown)

    async def _hop(self, action: str, function: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        if self._executor is None:
            raise StorageError("the quarantine is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)
        except FileNotFoundError as error:
            raise ObjectNotFound(f"cannot {action}: no such object") from error
        except OSError as error:
            raise storage_failure(error, action) from error

    def _path(self, object_id: str, suffix: str) -> str:
        return f"{self._root}/{checked_arrival_id(object_id)}{suffix}"

    def note(self, event: QuarantineEvent) -> None:
        """Count what has become of an object; for whoever decides and logs it."""
        self._measures.events[event] += 1

    # --- room

    @property
    def enabled(self) -> bool:
        """Whether anything new is kept."""
        return self._config.max_bytes > 0 and self._storage is not None

    @property
    def totals(self) -> QuarantineTotals:
        """How much is kept now."""
        return self._book.totals

    @property
    def book(self) -> QuarantineBook:
        """What is kept and reserved, for whoever asks on behalf of other processes."""
        return self._book

    async def admit(self) -> Admission:
        """Let one more object in. Raises StorageFull when there are as many as may be."""
        await self._room.take_place()
        return Admission(self._room)

    # --- taking in

    async def keep_written(self, writer: ObjectWriter, make_record: Callable[[], QuarantineRecord]) -> None:
        """Take what `writer` has been given; `make_record` is called in a thread once all is written.

        Raises StorageError, and then nothing is left of the object, here or there.
        """
        await self._setting_aside().set_aside_written(writer, self._take_away(make_record))

    async def keep_stored(self, stored: StoredObject, record: QuarantineRecord) -> None:
        """Take a committed object that the index does not want. Raises StorageError: it is still there."""
        await self._setting_aside().set_aside_stored(stored, self._take_away(lambda: record))

    def _setting_aside(self) -> SettingAside:
        if self._storage is None or self._executor is None:
            raise StorageError("the quarantine is closed")
        return self._storage

    def _take_away(self, make_record: Callable[[], QuarantineRecord]) -> TakeAway:
        def take_away(path: str, size_bytes: int) -> None:
            record = make_record()
            target = self._path(record.id, OBJECT_SUFFIX)
            if os.path.lexists(target):
                raise StorageError("the arrival id is in quarantine already")
            moved = False
            try:
                self._write_record(record)
                os.rename(path, target)
                moved = True
                if self._config.durable:
                    sync_directory(self._root)
            except BaseException:
                with suppress(OSError):
                    if moved:
                        os.rename(target, path)
                    os.unlink(self._path(record.id, RECORD_SUFFIX))
                raise
            self._room.kept(record.id, size_bytes)

        return take_away

    def _write_record(self, record: QuarantineRecord) -> None:
        part = self._path(record.id, _PART_SUFFIX)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
        try:
            try:
                write_all(descriptor, [record.to_json()])
                if self._config.durable:
                    os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(part, self._path(record.id, RECORD_SUFFIX))
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise

    # --- looking

    def ids(self, after: str = "", most: int | None = None) -> list[str]:
        """Arrival ids in order, those behind `after`, at most so many."""
        return self._book.ids(after, most)

    async def record(self, object_id: str) -> QuarantineRecord:
        """What is known of an object. Raises ObjectNotFound, or StorageError when its record is damaged."""
        self._book.size_of(object_id)
        return await self._hop("read the record", self._read_record, object_id)

    def _read_record(self, object_id: str) -> QuarantineRecord:
        try:
            with open(self._path(object_id, RECORD_SUFFIX), "rb") as file:
                return record_from_json(file.read(MAX_RECORD_BYTES))
        except (FileNotFoundError, ValueError) as error:
            raise StorageError(f"the record of {object_id} is missing or damaged") from error

    def size_bytes(self, object_id: str) -> int:
        """The size of an object's file. Raises ObjectNotFound."""
        return self._book.size_of(object_id)

    async def read(self, object_id: str, offset_bytes: int = 0) -> AsyncIterator[bytes]:
        """Yield an object's file from `offset_bytes` on, a piece at a time. Raises StorageError."""
        self._book.size_of(object_id)
        reader = FileReader(self._path(object_id, OBJECT_SUFFIX), offset_bytes, None)
        try:
            while data := await self._hop("read from the quarantine", reader.read, _READ_BYTES):
                yield data
        finally:
            if self._executor is not None:
                self._executor.submit(reader.close)
            else:
                reader.close()

    # --- letting go

    def hold(self, object_id: str) -> None:
        """Nobody else may release or drop it until `let_go`. Raises ObjectNotFound, or StorageError when
        somebody else holds it."""
        self._book.size_of(object_id)
        if object_id in self._busy:
            raise StorageError(f"{object_id} is being released or dropped")
        self._busy.add(object_id)

    def let_go(self, object_id: str) -> None:
        """The end of `hold`."""
        self._busy.discard(object_id)

    async def drop(self, object_id: str) -> None:
        """Delete an object that the caller holds, bytes first. Raises StorageError."""
        self._book.size_of(object_id)
        await self._hop("drop", self._drop, object_id)

    def _drop(self, object_id: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._path(object_id, OBJECT_SUFFIX))
        self._book.gone(object_id)
        with suppress(FileNotFoundError):
            os.unlink(self._path(object_id, RECORD_SUFFIX))
        if self._config.durable:
            sync_directory(self._root)

    async def note_failed_release(self, record: QuarantineRecord, status: int, reason: str) -> None:
        """Write down why a release failed, in the place of the reason before. Raises StorageError."""
        again = replace(record, status=status, reason=reason, release_attempts=record.release_attempts + 1)
        await self._hop("write the record", self._write_record, again)


def _is_id(text: str) -> bool:
    try:
        checked_arrival_id(text)
    except ValueError:
        return False
    return True
