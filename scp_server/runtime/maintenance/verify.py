"""Comparing objects and index, both ways, by itself or inside the server while it runs.

What comes or goes meanwhile is no finding: an object in flight is no orphan (`adoption.py`), and since rows
go before files, a file that is missing is a dangler only while its row is still there.

Without `repair` nothing is changed. With it, orphans are adopted, duplicates whose kept twin is sound are
removed, and what a crash left half-done is finished; with `drop_danglers` rows without a file go as well.
A file that is damaged or unreadable is never touched.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from scp_server.errors import ConfigurationError, ObjectNotFound, OperationRefused, StorageError
from scp_server.index.base import AddOutcome, Index, IndexEntry, PartRecord
from scp_server.objects.part10 import MAX_FILE_META_BYTES, read_file_meta
from scp_server.runtime.build import (
    build_index,
    build_storage_service_config,
    build_validator,
    index_path,
)
from scp_server.runtime.maintenance.adoption import (
    ADDED_TOGETHER,
    READ_TOGETHER,
    Adopter,
    Adoption,
    arrival_order,
)
from scp_server.runtime.maintenance.deletion import Deletions
from scp_server.runtime.maintenance.deletion_record import FOLDER as DELETIONS
from scp_server.runtime.maintenance.findings import Findings, Kind, Report
from scp_server.runtime.maintenance.folder import offline_storage
from scp_server.runtime.maintenance.progress import Progress
from scp_server.runtime.recovery import delete_discarded, read_entry
from scp_server.runtime.settling import not_in_place, settle_left_over
from scp_server.services.validation import StoredValidation
from scp_server.settings import Settings
from scp_server.storage.base import Digest, Storage, StoredObject
from scp_server.storage.layout import INCOMING, PART_SUFFIX
from scp_server.storage.sync import storage_failure

PAGE = 500
ADOPTED_IN_ORDER = 10_000
"""Orphans held, to be adopted in order of arrival: of one series this is nearly always all."""


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """`digest`: read every object whole. `drop_danglers` needs `repair`."""

    digest: bool = True
    repair: bool = False
    drop_danglers: bool = False

    def check(self) -> None:
        """Raises ConfigurationError for what makes no sense together."""
        if self.drop_danglers and not self.repair:
            raise ConfigurationError("--drop-danglers changes the index: it needs --repair")


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """How a comparison ended."""

    objects: int
    parts: int
    findings: Findings


async def verify(
    settings: Settings, options: VerifyOptions, report: Report, progress: Progress
) -> VerifyReport:
    """Compare the data folder's objects with its index.

    Raises ConfigurationError while a server runs or where there is no index, StorageError and IndexFailure.
    """
    options.check()
    data_dir = settings.data_dir
    part_files = await asyncio.to_thread(_part_files, data_dir)
    async with offline_storage(settings, keep_part_files=not options.repair) as storage:
        if not index_path(settings).is_file():
            raise ConfigurationError(f"{data_dir} has no index: `index rebuild` makes one from the objects")
        findings = Findings(report)
        for name in part_files:
            detail = "half-written; never acknowledged"
            findings.add(Kind.LEFT_OVER, f"{INCOMING}/{name}", detail, repaired=options.repair)
        index = build_index(settings)
        deletions = Deletions(data_dir, storage, index)
        config = build_storage_service_config(settings)
        validator = build_validator(settings)
        validation = StoredValidation(validator, config.validation)
        adopter = Adopter(storage, index, config.tap_limits, deletions, validation=validation)
        try:
            await index.open()
            await deletions.look()
            await _look_at_unsettled(storage, index, findings, repair=options.repair)
            return await Verification(storage, index, deletions, adopter, options, findings, progress).run()
        finally:
            validator.close()
            await index.close()


async def _look_at_unsettled(storage: Storage, index: Index, findings: Findings, *, repair: bool) -> None:
    """Files that are whole in the index only, since the server was killed. Raises StorageError where one
    cannot be written: its row must not be taken for one without a file."""
    for location in await not_in_place(storage, index):
        detail = "the index has its bytes: the next start puts them there"
        findings.add(Kind.LEFT_OVER, location, detail, repaired=repair)
    if repair and (failed := (await settle_left_over(storage, index)).failed):
        raise StorageError(f"{len(failed)} files that only the index has cannot be written")


def _part_files(data_dir: Path) -> list[str]:
    try:
        return [name for name in os.listdir(data_dir / INCOMING) if name.endswith(PART_SUFFIX)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise storage_failure(error, "look at what was being written") from error


async def _go_on(_objects: int) -> None:
    """Nobody else is to be let through."""


class Verification:
    """One comparison. Cancelled, it leaves nothing half done.

    `breathe` is awaited with a number of objects after each `page` of them, so that others get their turn;
    `read_together` objects are read at once.
    """

    def __init__(
        self,
        storage: Storage,
        index: Index,
        deletions: Deletions,
        adopter: Adopter,
        options: VerifyOptions,
        findings: Findings,
        progress: Progress,
        *,
        breathe: Callable[[int], Awaitable[None]] = _go_on,
        page: int = PAGE,
        read_together: int = READ_TOGETHER,
    ) -> None:
        self._storage = storage
        self._index = index
        self._deletions = deletions
        self._adopter = adopter
        self._options = options
        self._findings = findings
        self._progress = progress
        self._breathe = breathe
        self._page = page
        self._read_together = read_together
        self._objects = 0
        self._parts = 0

    async def run(self) -> VerifyReport:
        """Compare. Raises StorageError or IndexFailure."""
        await self._look_at_deletions()
        self._progress.begin("looking at files", None)
        await self._look_at_files()
        self._progress.begin("looking at the index", (await self._index.totals()).parts)
        await self._look_at_index()
        return VerifyReport(self._objects, self._parts, self._findings)

    async def _look_at_deletions(self) -> None:
        repair = self._options.repair
        unfinished = await self._deletions.unfinished()
        for record in unfinished:
            detail = "a deletion that was not finished"
            self._findings.add(Kind.LEFT_OVER, f"{DELETIONS}/{record.name}", detail, repaired=repair)
        if repair:
            if unfinished:
                await self._deletions.finish(self._progress)
            await delete_discarded(self._storage, self._index)

    # --- files without a row

    async def _look_at_files(self) -> None:
        orphans: list[StoredObject] = []
        async for batch in batches(self._storage, self._page):
            self._objects += len(batch)
            orphans += await self._adopter.orphans_among(batch)
            if len(orphans) >= ADOPTED_IN_ORDER:
                await self._deal_with(orphans)
                orphans = []
            self._progress.advance(len(batch))
            await self._breathe(len(batch))
        await self._deal_with(orphans)

    async def _deal_with(self, orphans: Sequence[StoredObject]) -> None:
        if not self._options.repair:
            for orphan in orphans:
                self._findings.add(Kind.ORPHAN, orphan.location)
            return
        in_order = sorted(orphans, key=arrival_order)
        for start in range(0, len(in_order), ADDED_TOGETHER):
            some = in_order[start : start + ADDED_TOGETHER]
            async with self._adopter.turn:
                async for adoption in self._adopter.adopt(some, self._progress):
                    await self._adopted(adoption)
            await self._breathe(len(some))

    async def _adopted(self, adoption: Adoption) -> None:
        location = adoption.stored.location
        if adoption.result is None:
            self._findings.add(Kind.UNREADABLE, location, adoption.error)
        elif adoption.result.outcome is AddOutcome.SAME:
            repaired = await self.remove_duplicate(adoption)
            self._findings.add(
                Kind.DUPLICATE,
                location,
                f"the same bytes are in {adoption.result.location}",
                repaired=repaired,
            )
        else:
            self._findings.add(Kind.ORPHAN, location, "adopted", repaired=True)

    async def remove_duplicate(self, adoption: Adoption) -> bool:
        """Remove a file whose bytes lie elsewhere, but only after reading them there."""
        if adoption.result is None or adoption.entry is None:
            return False
        kept = adoption.result.location
        (size_bytes,) = await self._storage.sizes([kept])
        if size_bytes is None or kept == adoption.stored.location:
            return False
        try:
            twin = await read_entry(self._storage, StoredObject(kept, size_bytes), self._adopter.limits)
            if twin.digest != adoption.entry.digest or await self._adopter.is_doomed(kept):
                return False
            if twin.stored_digest is not None and not await self._is_whole(twin):
                return False
            await self._storage.delete(adoption.stored.location)
        except (OperationRefused, StorageError, ValueError):
            return False
        return True

    async def _is_whole(self, changed: IndexEntry) -> bool:
        """Whether what lies there is what was stored, of an object that was changed on arrival: its File Meta
        tells only what had been received."""
        parts = await self._index.parts(changed.summary.sop_instance_uid)
        return any(
            (part.location, part.stored_digest) == (changed.location, changed.stored_digest) for part in parts
        )

    # --- rows without a file, or with another one

    async def _look_at_index(self) -> None:
        after = ""
        while page := await self._index.list_parts(after=after, limit=self._page):
            after = page[-1].location
            self._parts += len(page)
            sizes = await self._storage.sizes([part.location for part in page])
            danglers = [part for part, size in zip(page, sizes, strict=True) if size is None]
            whole: list[PartRecord] = []
            for part, size_bytes in zip(page, sizes, strict=True):
                if size_bytes == part.size_bytes:
                    whole.append(part)
                elif size_bytes is not None:
                    detail = f"{size_bytes} bytes instead of {part.size_bytes}"
                    self._findings.add(Kind.SIZE, part.location, detail)
                    self._progress.advance()
            await self._deal_with_danglers(danglers)
            if self._options.digest:
                await self._look_into(whole)
            else:
                self._progress.advance(len(whole))
            await self._breathe(len(page))

    async def _deal_with_danglers(self, missing: Sequence[PartRecord]) -> None:
        danglers = await self._still_known(missing)
        self._progress.advance(len(missing))
        drop = bool(danglers) and self._options.drop_danglers
        if drop:
            if not self._objects:
                raise StorageError(
                    "there is not one object in the data folder: it looks as if another disk belonged here, "
                    "so no row is dropped"
                )
            await self._index.remove([part.location for part in danglers])
        for part in danglers:
            detail = f"part {part.part_number} of {part.sop_instance_uid}"
            self._findings.add(Kind.DANGLER, part.location, detail, repaired=drop)

    async def _still_known(self, missing: Sequence[PartRecord]) -> list[PartRecord]:
        """Those whose rows are there though their files are not: the others were deleted since."""
        gone = await self._index.unknown_locations([part.location for part in missing]) if missing else ()
        return [part for part in missing if part.location not in gone]

    async def _look_into(self, parts: Sequence[PartRecord]) -> None:
        places = asyncio.Semaphore(self._read_together)

        async def look(part: PartRecord) -> None:
            async with places:
                await self._look_into_one(part)

        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(look(part), name="maintenance.verify")

    async def _look_into_one(self, part: PartRecord) -> None:
        problem = await content_problem(self._storage, part)
        if problem is not None and (problem[0] is not Kind.DANGLER or await self._still_known([part])):
            self._findings.add(*problem)
        self._progress.advance()


async def batches(storage: Storage, most: int = PAGE) -> AsyncIterator[list[StoredObject]]:
    """Every visible object, so many at a time."""
    batch: list[StoredObject] = []
    async for stored in storage.list():
        batch.append(stored)
        if len(batch) == most:
            yield batch
            batch = []
    if batch:
        yield batch


async def content_problem(storage: Storage, part: PartRecord) -> tuple[Kind, str, str] | None:
    """Read a part's file whole; what is wrong with it as kind, location and detail, None for nothing."""
    try:
        digest = digest_named(part.digest_algorithm)
        beginning = bytearray()
        position = 0
        async for chunk in storage.read(part.location):
            if len(beginning) < min(part.dataset_offset_bytes, MAX_FILE_META_BYTES):
                beginning += chunk[: part.dataset_offset_bytes - position]
            if position >= part.dataset_offset_bytes:
                digest.update(chunk)
            elif position + len(chunk) > part.dataset_offset_bytes:
                digest.update(chunk[part.dataset_offset_bytes - position :])
            position += len(chunk)
        meta = read_file_meta(bytes(beginning))
    except ObjectNotFound:
        return Kind.DANGLER, part.location, "it disappeared meanwhile"
    except (StorageError, ValueError) as error:
        return Kind.UNREADABLE, part.location, str(error)
    if digest.digest() != part.content_digest:
        return Kind.DIGEST, part.location, f"the data set's {part.digest_algorithm} digest differs"
    received = None if part.stored_digest is None else (part.digest_algorithm, part.digest)
    said = (meta.dataset_offset_bytes, meta.transfer_syntax_uid, meta.arrival_id, meta.received_digest)
    if said != (part.dataset_offset_bytes, part.transfer_syntax_uid, part.arrival_id, received):
        return Kind.UNREADABLE, part.location, "its File Meta Information is another object's"
    return None


class FinalDigest(Digest, Protocol):
    """A digest that can be read, too."""

    def digest(self) -> bytes:
        """The value over everything so far."""
        ...


def digest_named(algorithm: str) -> FinalDigest:
    """A digest of the algorithm that an index names. Raises ValueError for one that is not known here."""
    if algorithm == "blake3":
        return blake3()
    return hashlib.new(algorithm)
