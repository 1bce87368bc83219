"""The record of a deletion: a file in `<data-dir>/deletions/` that names every location that is to go.

The first line says what it is, and whether the index has forgotten the parts; then comes a location on each
line, in ascending order, so that one is looked up without reading them all. While it is being listed it is a
draft, `.tmp`; renamed, the deletion is decided.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

from scp_server.index.base import Index, PartRecord, Scope
from scp_server.storage.layout import is_location
from scp_server.storage.sync import make_folder, storage_failure, sync_directory

FOLDER = "deletions"
SUFFIX = ".deletion"
DRAFT_SUFFIX = ".tmp"
PAGE = 5_000
"""Parts that are listed together."""
_ROWS_KEPT, _ROWS_GONE = (
    json.dumps({"format": 1, "kind": "scp-server deletion", "rows": rows}).encode("ascii") + b"\n"
    for rows in ("kept", "gone")
)
"""The first line; of the same length, so that the one is written over the other."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Extent:
    """How much lies below a UID."""

    studies: int = 0
    series: int = 0
    instances: int = 0
    parts: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Count:
    """Counts parts. Holds the UIDs of their instances."""

    studies: set[str] = field(default_factory=set)
    series: set[tuple[str, str]] = field(default_factory=set)
    instances: set[str] = field(default_factory=set)
    parts: int = 0
    bytes: int = 0

    def add(self, page: Sequence[PartRecord]) -> None:
        for part in page:
            self.studies.add(part.study_instance_uid)
            self.series.add((part.study_instance_uid, part.series_instance_uid))
            self.instances.add(part.sop_instance_uid)
            self.bytes += part.size_bytes
        self.parts += len(page)

    def extent(self) -> Extent:
        return Extent(len(self.studies), len(self.series), len(self.instances), self.parts, self.bytes)


async def measure(index: Index, scope: Scope) -> Extent:
    """Count what a deletion would take. Holds the UIDs of the instances below `scope`."""
    count = _Count()
    async for page in index.parts_below(scope, limit=PAGE):
        count.add(page)
    return count.extent()


class Draft:
    """A record that is not decided yet. `discard` when it is not to be."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / FOLDER
        self.path = self._folder / f"{time.time_ns():016x}{secrets.token_hex(3)}{SUFFIX}"
        """What the record is called once it is decided."""
        self._unfinished = self.path.with_suffix(DRAFT_SUFFIX)

    async def list(self, index: Index, scope: Scope, given_up: Callable[[], bool]) -> Extent:
        """Write down what the index knows of `scope`, durably, or as much as was listed when it is given up.

        Raises StorageError or IndexFailure.
        """
        count = _Count()
        try:
            file = await asyncio.to_thread(self._begin)
            try:
                async for page in index.parts_below(scope, limit=PAGE):
                    if given_up():
                        break
                    count.add(page)
                    lines = "".join(f"{part.location}\n" for part in page)
                    await asyncio.to_thread(file.write, lines.encode("ascii"))
                await asyncio.to_thread(_sync, file)
            finally:
                await asyncio.to_thread(file.close)
        except OSError as error:
            raise storage_failure(error, "write down the deletion") from error
        return count.extent()

    def _begin(self) -> BinaryIO:
        make_folder(str(self._folder), durable=True)
        file = self._unfinished.open("xb")
        file.write(_ROWS_KEPT)
        return file

    def decide(self) -> Path:
        """Rename the record to its name, durably: from here on it will be carried out. Blocks.

        Raises StorageError; then it may be decided or not, and the next start knows.
        """
        try:
            self._unfinished.replace(self.path)
            sync_directory(str(self._folder))
        except OSError as error:
            raise storage_failure(error, "write down the deletion") from error
        return self.path

    def discard(self) -> None:
        """Leave nothing of what was not decided. Blocks."""
        with suppress(OSError):
            self._unfinished.unlink(missing_ok=True)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def discard_drafts(data_dir: Path) -> None:
    """Remove what a crash left of drafts, while nobody writes one. Blocks."""
    for draft in (data_dir / FOLDER).glob(f"*{DRAFT_SUFFIX}"):
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def pending_deletions(data_dir: Path) -> list[Path]:
    """The records of deletions that were not finished, the oldest first. Blocks. Raises StorageError."""
    try:
        return sorted(path for path in (data_dir / FOLDER).iterdir() if path.name.endswith(SUFFIX))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise storage_failure(error, "look for unfinished deletions") from error


def drop_record(record: Path) -> None:
    """The deletion is finished. Blocks. Raises StorageError."""
    try:
        record.unlink(missing_ok=True)
        sync_directory(str(record.parent))
    except OSError as error:
        raise storage_failure(error, "put the deletion's record away") from error


def locations(record: Path) -> Iterator[str]:
    """The locations that a record names. Blocks. Raises ValueError for what is no record, OSError."""
    with record.open("rb") as file:
        _rows_are_gone(file)
        for line in file:
            location = line.decode("ascii").rstrip("\n")
            if not is_location(location):
                raise ValueError("the record of a deletion names something that is no object")
            yield location


def rows_are_gone(record: Path) -> bool:
    """Whether the index has forgotten all that a record names. Blocks. Raises as `locations` does."""
    with record.open("rb") as file:
        return _rows_are_gone(file)


def _rows_are_gone(file: BinaryIO) -> bool:
    first = file.readline(len(_ROWS_KEPT))
    if first not in (_ROWS_KEPT, _ROWS_GONE):
        raise ValueError("not the record of a deletion that this version knows")
    return first == _ROWS_GONE


def note_rows_gone(record: Path) -> None:
    """The index has forgotten all that the record names. Blocks. Raises OSError."""
    with record.open("r+b") as file:
        file.write(_ROWS_GONE)
        _sync(file)


def named(records: Iterable[Path], wanted: Iterable[str]) -> set[str]:
    """Those of `wanted` that one of `records` names; a record that is gone names nothing.

    Blocks, for about twenty short reads each. Raises StorageError.
    """
    wanted = list(wanted)
    found: set[str] = set()
    for record in records:
        try:
            with record.open("rb") as file:
                found.update(location for location in wanted if _is_in(file, location))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise storage_failure(error, "look into a deletion's record") from error
    return found


def _is_in(file: BinaryIO, location: str) -> bool:
    """Whether a line of the ascending lines behind the first one is `location`."""
    line = location.encode("ascii", "replace") + b"\n"
    end = file.seek(0, os.SEEK_END)

    def line_behind(offset: int) -> bytes:
        """The first line that begins behind `offset`; one that is greater than any at the end."""
        file.seek(offset)
        file.readline()
        return file.readline() or b"\xff"

    return line_behind(bisect_left(range(end), line, key=line_behind)) == line


def batches(values: Iterable[T], most: int) -> Iterator[list[T]]:
    """`values`, so many at a time."""
    iterator = iter(values)
    while batch := list(islice(iterator, most)):
        yield batch
