"""Deleting what the archive keeps, so that a crash at any moment leaves all of it or, in the end, nothing.

1. A *record* that names every location is written to `<data-dir>/deletions/`, synced and renamed: from here
   on the deletion is decided.
2. The index forgets the parts, a transaction for each MAX_LOCATIONS of them, so nearly always one.
3. The files go, then the record.

Whoever finds a record carries it out: the next start, before anything is adopted, and the maintenance
commands. Twice does no harm, for a location is never used again: what is sent anew lies somewhere else.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from scp_server.errors import StorageError
from scp_server.index.base import Index, PartRecord, Scope
from scp_server.observability.logs import get_logger
from scp_server.runtime.maintenance.progress import NoProgress, Progress
from scp_server.storage.base import Storage
from scp_server.storage.layout import is_location
from scp_server.storage.sync import make_folder, storage_failure, sync_directory

log = get_logger(__name__)

FOLDER = "deletions"
SUFFIX = ".deletion"
MAX_LOCATIONS = 50_000
"""Parts forgotten in one transaction: bounds its memory, and how long others wait for it."""
MAX_FAILURES = 1_000
"""Files that could not be removed and are named; all are counted."""
_PAGE = 5_000
_FORMAT = {"format": 1, "kind": "scp-server deletion"}


@dataclass(slots=True)
class Extent:
    """How much lies below a UID."""

    studies: int = 0
    series: int = 0
    instances: int = 0
    parts: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Removed:
    """What a deletion took. Files that could not be removed are left to the next start."""

    parts: int = 0
    files: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Location and reason, of the first MAX_FAILURES."""
    failures: int = 0


async def measure(index: Index, scope: Scope) -> Extent:
    """Count what a deletion would take. Holds the UIDs of the instances below `scope`."""
    studies: set[str] = set()
    series: set[tuple[str, str]] = set()
    instances: set[str] = set()
    extent = Extent()
    async for part in _parts(index, scope):
        studies.add(part.study_instance_uid)
        series.add((part.study_instance_uid, part.series_instance_uid))
        instances.add(part.sop_instance_uid)
        extent.parts += 1
        extent.bytes += part.size_bytes
    extent.studies, extent.series, extent.instances = len(studies), len(series), len(instances)
    return extent


async def delete(
    data_dir: Path, storage: Storage, index: Index, scope: Scope, progress: Progress | None = None
) -> Removed:
    """Delete everything of `scope`. Raises StorageError or IndexFailure; then either nothing has happened or
    a record is left, and the next start finishes.
    """
    record = await _write_record(data_dir, index, scope)
    if record is None:
        return Removed()
    removed = await _carry_out(record, storage, index, progress or NoProgress())
    # A UID is not a person's identity; what is deleted must be found in the log.
    log.warning(
        "archive.deleted",
        scope=scope.level.value,
        uid=scope.uid,
        parts=removed.parts,
        files=removed.files,
        failed=removed.failures,
    )
    return removed


async def finish_deletions(
    data_dir: Path, storage: Storage, index: Index | None, *, keep_records: bool = False
) -> int:
    """Carry out every record that is left, with the files alone where `index` is None; returns how many.

    `keep_records` leaves the records for another time, when there is an index again. A record that cannot be
    read is logged and stays, and so does one whose files cannot be removed. Raises IndexFailure.
    """
    records = await asyncio.to_thread(pending_deletions, data_dir)
    for record in records:
        try:
            removed = await _carry_out(record, storage, index, NoProgress(), keep_record=keep_records)
        except (OSError, ValueError, StorageError) as error:
            log.error("deletion.failed", record=record.name, error=str(error))
            continue
        log.warning("deletion.finished", parts=removed.parts, files=removed.files, failed=removed.failures)
    return len(records)


def pending_deletions(data_dir: Path) -> list[Path]:
    """The records of deletions that were not finished, the oldest first. Blocks. Raises StorageError."""
    try:
        return sorted(path for path in (data_dir / FOLDER).iterdir() if path.name.endswith(SUFFIX))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise storage_failure(error, "look for unfinished deletions") from error


async def _parts(index: Index, scope: Scope) -> AsyncIterator[PartRecord]:
    after = ""
    while page := await index.list_parts(after=after, limit=_PAGE, scope=scope):
        for part in page:
            yield part
        after = page[-1].location


async def _write_record(data_dir: Path, index: Index, scope: Scope) -> Path | None:
    """Write down what is to go; None when there is nothing."""
    folder = data_dir / FOLDER
    path = folder / f"{time.time_ns():016x}{secrets.token_hex(3)}{SUFFIX}"
    unfinished = path.with_suffix(".tmp")
    count = 0
    try:
        await asyncio.to_thread(make_folder, str(folder), durable=True)
        with unfinished.open("x", encoding="ascii") as file:
            file.write(json.dumps(_FORMAT) + "\n")
            async for part in _parts(index, scope):
                file.write(part.location + "\n")
                count += 1
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
        if not count:
            return None
        unfinished.replace(path)
        await asyncio.to_thread(sync_directory, str(folder))
    except OSError as error:
        raise storage_failure(error, "write down the deletion") from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return path


async def _carry_out(
    record: Path, storage: Storage, index: Index | None, progress: Progress, *, keep_record: bool = False
) -> Removed:
    removed = Removed()
    total = 0
    for batch in _batches(_locations(record), MAX_LOCATIONS):
        total += len(batch)
        if index is not None:
            removed.parts += await index.remove(batch)
    progress.begin("deleting files", total)
    for location in _locations(record):
        try:
            await storage.delete(location)
        except StorageError as error:
            removed.failures += 1
            if removed.failures <= MAX_FAILURES:
                removed.failed[location] = str(error)
        else:
            removed.files += 1
        progress.advance()
    if not removed.failures and not keep_record:
        await asyncio.to_thread(_drop_record, record)
    return removed


def _drop_record(record: Path) -> None:
    try:
        record.unlink(missing_ok=True)
        sync_directory(str(record.parent))
    except OSError as error:
        raise storage_failure(error, "put the deletion's record away") from error


def _locations(record: Path) -> Iterator[str]:
    """The locations that a record names. Raises ValueError for what is no record, OSError."""
    with record.open(encoding="ascii") as file:
        try:
            first = json.loads(file.readline(1_024))
        except ValueError:
            first = None
        if first != _FORMAT:
            raise ValueError("not the record of a deletion that this version knows")
        for line in file:
            location = line.rstrip("\n")
            if not is_location(location):
                raise ValueError("the record of a deletion names something that is no object")
            yield location


def _batches(locations: Iterable[str], most: int) -> Iterator[list[str]]:
    iterator = iter(locations)
    while batch := list(islice(iterator, most)):
        yield batch
