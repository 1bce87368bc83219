"""Remembers, across a crash, which directories may hold objects that the index does not know yet.

Before the first rename into a directory the directory's path is written to the current *generation*, a file
`incoming/directories.<number>` (durability `full`: and synced). Every further object in that directory costs
nothing. A generation takes up to 256 directories or 1024 objects, then the next one starts; its file
is removed when the last of its objects was reported as indexed. So after a crash the files that are left
name every directory with an object in flight, and few others.

A record is a line, written where the last whole one ends: one that was cut short by a full disk is
overwritten by the next, and one that was cut short by a crash has no line end and is passed over. Nothing
was renamed on its account.

Where several processes write, each has ledgers of its own, with its name in theirs (see `layout`), and leaves
those of others alone; the process that owns the folder takes over what one that died has left.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from threading import Lock

from scp_server.storage.layout import (
    MAX_LOCATION_CHARACTERS,
    is_directory,
    ledger_generation,
    ledger_name,
    ledger_writer,
)
from scp_server.storage.sync import FILE_MODE, sync_directory, write_at

MAX_DIRECTORIES = 256
"""Directories in one generation: bounds its file, and what start-up looks into."""
MAX_COMMITS = 1024
"""Objects in one generation: bounds how many directories in full flow stay named."""
_MAX_RECORD_BYTES = MAX_LOCATION_CHARACTERS + 1


class _Generation:
    __slots__ = (
        "broken",
        "commits",
        "descriptor",
        "end",
        "entering",
        "in_flight",
        "path",
        "positions",
        "synced",
        "syncing",
    )

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.positions: dict[str, int] = {}
        self.end = 0
        self.synced = 0
        self.syncing = Lock()
        self.broken = False
        self.commits = 0
        self.entering = 0
        self.in_flight = 0


class InFlightLedger:
    """The ledger of one storage. Methods block and may be called from any thread, except where noted."""

    def __init__(self, folder: str, *, durable: bool, writer: str = "") -> None:
        self._folder = folder
        self._writer = writer
        self._durable = durable
        self._lock = Lock()
        self._current: _Generation | None = None
        self._next_number = 1
        self._objects: dict[str, _Generation] = {}
        self._reported: deque[str] = deque()
        self._left_over: list[str] = []

    def adopt(self, names: list[str]) -> None:
        """Take over the ledgers of earlier processes, out of the names in the folder."""
        numbers = {name: number for name in names if (number := ledger_generation(name)) is not None}
        self._left_over = sorted(numbers)
        self._next_number = max(numbers.values(), default=0) + 1

    def take_over(self, names: list[str], writer: str) -> None:
        """Take over those of another writer that has ended, out of the names in the folder."""
        known = set(self._left_over)
        theirs = (name for name in names if ledger_writer(name) == writer and name not in known)
        self._left_over += sorted(theirs)

    def enter(self, directory: str, location: str) -> None:
        """`location` is about to appear in `directory`. Raises OSError: then it must not."""
        with self._lock:
            self._work_off_reports()
            generation = self._current or self._start()
            position = generation.positions.get(directory)
            if position is None:
                position = self._append(generation, directory)
            generation.entering += 1
            generation.in_flight += 1
            generation.commits += 1
            self._objects[location] = generation
            if len(generation.positions) >= MAX_DIRECTORIES or generation.commits >= MAX_COMMITS:
                self._current = None
        try:
            if self._durable and generation.synced < position:
                self._sync(generation, position)
        except OSError:
            self.release(location)
            raise
        finally:
            with self._lock:
                generation.entering -= 1
                self._tidy(generation)

    def _start(self) -> _Generation:
        path = f"{self._folder}/{ledger_name(self._next_number, self._writer)}"
        self._next_number += 1
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        try:
            if self._durable:
                sync_directory(self._folder)
        except OSError:
            os.close(descriptor)
            with suppress(OSError):
                os.unlink(path)
            raise
        self._current = _Generation(path, descriptor)
        return self._current

    def _append(self, generation: _Generation, directory: str) -> int:
        record = f"{directory}\n".encode("ascii")
        write_at(generation.descriptor, record, generation.end)
        generation.end += len(record)
        generation.positions[directory] = generation.end
        return generation.end

    def _sync(self, generation: _Generation, position: int) -> None:
        """Sync as far as `position`; whoever waits meanwhile shares the next sync."""
        with generation.syncing:
            if generation.broken:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if generation.synced >= position:
                return
            reached = generation.end
            try:
                os.fdatasync(generation.descriptor)
            except OSError:
                # A second fdatasync would say yes to what the first one lost.
                generation.broken = True
                with self._lock:
                    if self._current is generation:
                        self._current = None
                raise
            generation.synced = reached

    def report(self, location: str) -> None:
        """The object is indexed. Never blocks, for the event loop: the next `enter` does the work."""
        if location in self._objects:
            self._reported.append(location)

    def release(self, location: str) -> None:
        """The object is indexed, or gone."""
        with self._lock:
            self._work_off_reports()
            self._release(location)

    def holding(self, locations: Iterable[str]) -> set[str]:
        """Those of `locations` that were entered and neither reported nor released."""
        with self._lock:
            self._work_off_reports()
            return {location for location in locations if location in self._objects}

    def _work_off_reports(self) -> None:
        while self._reported:
            self._release(self._reported.popleft())

    def _release(self, location: str) -> None:
        generation = self._objects.pop(location, None)
        if generation is not None:
            generation.in_flight -= 1
            self._tidy(generation)

    def _tidy(self, generation: _Generation) -> None:
        if generation is self._current or generation.entering:
            return
        if generation.descriptor >= 0:
            descriptor, generation.descriptor = generation.descriptor, -1
            with suppress(OSError):
                os.close(descriptor)
        if not generation.in_flight:
            with suppress(OSError):
                os.unlink(generation.path)

    def left_over_directories(self, unreadable: Callable[[str, OSError], None]) -> Iterator[str]:
        """The directories named by the ledgers of earlier processes, each once.

        `unreadable` is told the name of a ledger that cannot be read, and why.
        """
        seen: set[str] = set()
        for name in self._left_over:
            try:
                with open(f"{self._folder}/{name}", "rb") as file:
                    data = file.read(MAX_DIRECTORIES * _MAX_RECORD_BYTES)
            except OSError as error:
                unreadable(name, error)
                continue
            # What follows the last line end is a record that was cut short.
            for line in data.decode("ascii", "replace").split("\n")[:-1]:
                if is_directory(line) and line not in seen:
                    seen.add(line)
                    yield line

    def settle(self) -> None:
        """Remove the ledgers of earlier processes. Raises OSError."""
        while self._left_over:
            with suppress(FileNotFoundError):
                os.unlink(f"{self._folder}/{self._left_over[-1]}")
            self._left_over.pop()

    def close(self) -> None:
        """Remove what names nothing in flight any more; the rest is for the next process."""
        with self._lock:
            self._work_off_reports()
            generation, self._current = self._current, None
            if generation is not None:
                self._tidy(generation)
