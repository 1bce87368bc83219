"""A backup while the server runs, and the way back.

First the index, as it is at one moment; then the objects it names. They never change once they are there, so
nothing has to stand still; one that is deleted meanwhile is taken out of the backup's index, and reported. At
the end every file is read from the backup and compared with its digest in the index.

A hard link shares its bytes with the original: it costs no space, and is no protection against a lost disk.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from scp_server.errors import ConfigurationError, ObjectNotFound, StorageError
from scp_server.index.base import Index, PartRecord
from scp_server.index.log_transfer import after_restore
from scp_server.index.snapshot import still_known, take_snapshot
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.runtime.build import index_path
from scp_server.runtime.maintenance.copying import copy, link
from scp_server.runtime.maintenance.findings import Findings, Kind, Report
from scp_server.runtime.maintenance.folder import check_is_data_folder, held_folder
from scp_server.runtime.maintenance.manifest import (
    INDEX,
    Entry,
    Manifest,
    ManifestWriter,
    Outline,
    file_entry,
    open_beneath,
)
from scp_server.runtime.maintenance.progress import Progress
from scp_server.runtime.maintenance.verify import digest_named
from scp_server.settings import Settings
from scp_server.storage.layout import is_location
from scp_server.storage.sync import storage_failure

PAGE = 200
"""Parts copied in one visit to a thread."""
_READ_BYTES = 1 << 20
_OWN_FILES = frozenset({"lock"})
_UNREADABLE = frozenset({errno.EIO, errno.EACCES, errno.ELOOP, errno.EISDIR})
"""What the system says of one file, not of all that is to be written."""


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What was copied or put back."""

    outline: Outline
    linked: int
    findings: Findings


async def backup(
    settings: Settings, output: Path, report: Report, progress: Progress, *, copy_objects: bool = False
) -> BackupReport:
    """Back up index and objects into a folder that is empty or new.

    Raises ConfigurationError for folders that cannot be meant, StorageError and IndexFailure; then what was
    copied so far has no manifest, and is no backup.
    """
    check_is_data_folder(settings.data_dir)
    with _failures("back up"):
        _check_output(settings.data_dir, output)
        await asyncio.to_thread(_make_empty, output)
        busy = settings.index.busy_timeout_seconds
        await asyncio.to_thread(take_snapshot, index_path(settings), output / INDEX, busy)
        work = _Backup(settings, output, Findings(report), progress, copy_objects=copy_objects)
        return await work.run()


def _check_output(data_dir: Path, output: Path) -> None:
    inside = output.resolve()
    if data_dir.resolve() in (inside, *inside.parents):
        raise ConfigurationError(f"--output: {output} lies in the data folder itself")


def _make_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"--output: {folder} is not empty")
    (folder / INDEX).parent.mkdir(parents=True)


class _Backup:
    def __init__(
        self, settings: Settings, output: Path, findings: Findings, progress: Progress, *, copy_objects: bool
    ) -> None:
        self._settings = settings
        self._output = output
        self._findings = findings
        self._progress = progress
        self._copy_objects = copy_objects
        self._linked = 0
        self._objects = 0
        self._bytes = 0

    async def run(self) -> BackupReport:
        manifest = await asyncio.to_thread(ManifestWriter, self._output)
        try:
            index = SqlIndex(IndexConfig(self._output / INDEX))
            try:
                await index.open()
                self._progress.begin("copying", (await index.totals()).parts)
                await self._take_all(index)
                self._progress.begin("verifying", (await index.totals()).parts)
                await self._verify_all(index, manifest)
                parts = (await index.totals()).parts
            finally:
                await index.close()
            outline = Outline(self._objects, parts, self._bytes)
            # The names of all that was made; the files were synced one by one.
            await asyncio.to_thread(os.sync)
            entry = await asyncio.to_thread(file_entry, self._output, INDEX)
            await asyncio.to_thread(manifest.finish, entry, outline)
        finally:
            manifest.close()
        return BackupReport(outline, self._linked, self._findings)

    async def _take_all(self, index: Index) -> None:
        after = ""
        while page := await index.list_parts(after=after, limit=PAGE):
            after = page[-1].location
            missing = await asyncio.to_thread(self._take, [part.location for part in page])
            if missing:
                await self._deal_with_missing(index, missing)
            self._progress.advance(len(page))

    def _take(self, locations: Sequence[str]) -> list[str]:
        """Link or copy objects; returns those that are not there."""
        missing: list[str] = []
        for location in locations:
            if not is_location(location):
                missing.append(location)
                continue
            try:
                if self._copy_objects or not link(self._settings.data_dir, self._output, location):
                    self._copy_objects = True
                    copy(self._settings.data_dir, self._output, location)
                else:
                    self._linked += 1
            except FileNotFoundError:
                missing.append(location)
            except OSError as error:
                if error.errno not in _UNREADABLE:
                    raise
                self._findings.add(Kind.UNREADABLE, location, error.strerror or "")
        return missing

    async def _deal_with_missing(self, index: Index, missing: Sequence[str]) -> None:
        busy = self._settings.index.busy_timeout_seconds
        known = await asyncio.to_thread(still_known, index_path(self._settings), missing, busy)
        gone = [location for location in missing if location not in known]
        await index.remove(gone)
        for location in gone:
            self._findings.add(Kind.DELETED_MEANWHILE, location, repaired=True)
        for location in known:
            self._findings.add(Kind.DANGLER, location, "its file is not there")

    async def _verify_all(self, index: Index, manifest: ManifestWriter) -> None:
        after = ""
        while page := await index.list_parts(after=after, limit=PAGE):
            after = page[-1].location
            await asyncio.to_thread(self._verify, page, manifest)
            self._progress.advance(len(page))

    def _verify(self, page: Sequence[PartRecord], manifest: ManifestWriter) -> None:
        for part in page:
            try:
                entry, sound = _look_into(self._output, part)
            except FileNotFoundError:
                # Reported when it could not be copied.
                continue
            except OSError as error:
                if error.errno not in _UNREADABLE:
                    raise
                self._findings.add(Kind.UNREADABLE, part.location, error.strerror or "")
                continue
            if not sound:
                self._findings.add(Kind.DIGEST, part.location, "copied, but it is not what the index says")
            manifest.add(Entry(entry.location, entry.size_bytes, entry.digest, damaged=not sound))
            self._objects += 1
            self._bytes += entry.size_bytes


def _look_into(root: Path, part: PartRecord) -> tuple[Entry, bool]:
    """Read an object of the backup once: its entry, and whether it is what the index says. Raises OSError."""
    whole, dataset = digest_named("blake3"), digest_named(part.digest_algorithm)
    position = 0
    with open_beneath(root, part.location) as file:
        while data := file.read(_READ_BYTES):
            whole.update(data)
            dataset.update(memoryview(data)[max(0, part.dataset_offset_bytes - position) :])
            position += len(data)
    sound = position == part.size_bytes and dataset.digest() == part.content_digest
    return Entry(part.location, position, whole.digest().hex()), sound


async def restore(settings: Settings, source: Path, report: Report, progress: Progress) -> BackupReport:
    """Put a backup into a data folder that is empty or new; the index comes last.

    What is damaged or missing in the backup is reported and left out; its rows stay, so that `index verify`
    goes on naming it. Raises ConfigurationError, StorageError and IndexFailure.
    """
    manifest = Manifest(source)
    index_entry, outline = await asyncio.to_thread(manifest.outline)
    data_dir = settings.data_dir
    findings = Findings(report)
    with held_folder(data_dir), _failures("restore"):
        if any(path.name not in _OWN_FILES for path in data_dir.iterdir()):
            raise ConfigurationError(f"data_dir: {data_dir} is not empty")
        progress.begin("restoring", outline.objects)
        entries = manifest.objects()
        while page := await asyncio.to_thread(lambda: list(islice(entries, PAGE))):
            await asyncio.to_thread(_put_back, source, data_dir, page, findings)
            progress.advance(len(page))
        await asyncio.to_thread(os.sync)
        await _restore_index(settings, source, index_entry, outline, findings)
    return BackupReport(outline, 0, findings)


def _put_back(source: Path, data_dir: Path, page: Sequence[Entry], findings: Findings) -> None:
    for entry in page:
        try:
            found = copy(source, data_dir, entry.location, expected=entry)
        except FileNotFoundError:
            findings.add(Kind.DANGLER, entry.location, "it is not in the backup")
            continue
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise
            findings.add(Kind.UNREADABLE, entry.location, error.strerror or "")
            continue
        if (found.size_bytes, found.digest) != (entry.size_bytes, entry.digest):
            findings.add(Kind.DIGEST, entry.location, "the backup's file is damaged; left out")
        elif entry.damaged:
            findings.add(Kind.DIGEST, entry.location, "damaged when it was backed up; restored as it was")


async def _restore_index(
    settings: Settings, source: Path, expected: Entry, outline: Outline, findings: Findings
) -> None:
    try:
        found = await asyncio.to_thread(copy, source, settings.data_dir, INDEX, expected=expected)
    except FileNotFoundError as error:
        raise ObjectNotFound("the backup has no index: `index rebuild` makes one of the objects") from error
    if (found.size_bytes, found.digest) != (expected.size_bytes, expected.digest):
        raise StorageError(
            "the backup's index is damaged; the objects are restored: `index rebuild` makes one of them"
        )
    await asyncio.to_thread(os.sync)
    index = SqlIndex(IndexConfig(index_path(settings)))
    try:
        await index.open()
        parts = (await index.totals()).parts
    finally:
        await index.close()
    await asyncio.to_thread(after_restore, index_path(settings))
    if parts != outline.parts:
        findings.add(Kind.UNREADABLE, INDEX, f"it has {parts} parts instead of {outline.parts}")


@contextmanager
def _failures(action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_failure(error, action) from error
