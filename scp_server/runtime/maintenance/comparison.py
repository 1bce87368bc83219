"""Comparing storage and index in the background, after the server is ready: gently, and without digests.

Start-up looks only at what may have been in flight; this finds what else went wrong: files put there by hand,
an index that was deleted or is older than the objects. Such a file is adopted; a row without a file is logged
and stays, since somebody must know of it. What arrived since the server started is none of its business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from scp_server.errors import IndexFailure, StorageError
from scp_server.index.base import AddOutcome, Index
from scp_server.observability.logs import get_logger
from scp_server.runtime.maintenance.adoption import Adopter, Adoption, arrival_id_of, arrival_order
from scp_server.runtime.maintenance.verify import ADOPTED_IN_ORDER, batches
from scp_server.storage.base import Storage, StoredObject
from scp_server.storage.layout import location_for_log

log = get_logger(__name__)

PAGE = 100
"""Objects looked at without a pause."""


@dataclass(slots=True)
class ComparisonReport:
    """What was found."""

    objects: int = 0
    parts: int = 0
    adopted: int = 0
    duplicates: int = 0
    unreadable: int = 0
    danglers: int = 0


class Comparison:
    """One comparison. `started_at_ns`, since the epoch: what arrived later is passed over."""

    def __init__(
        self,
        storage: Storage,
        index: Index,
        adopter: Adopter,
        *,
        objects_per_second: int,
        started_at_ns: int,
    ) -> None:
        self._storage = storage
        self._index = index
        self._adopter = adopter
        self._objects_per_second = objects_per_second
        self._end = f"{started_at_ns:016x}{'0' * 6}".rjust(64, "0")
        self.report = ComparisonReport()

    async def run(self) -> None:
        """Compare, and log `archive.compared`. Cancelled, it leaves nothing half done."""
        try:
            await self._look_at_files()
            await self._look_at_index()
        except (StorageError, IndexFailure) as error:
            log.error("archive.not_compared", error=str(error))
            return
        report = self.report
        log.info(
            "archive.compared",
            objects=report.objects,
            parts=report.parts,
            adopted=report.adopted,
            duplicates=report.duplicates,
            unreadable=report.unreadable,
            danglers=report.danglers,
        )

    async def _look_at_files(self) -> None:
        orphans: list[StoredObject] = []
        async for batch in batches(self._storage, PAGE):
            older = [each for each in batch if arrival_id_of(each.location) < self._end]
            self.report.objects += len(older)
            orphans += await self._adopter.orphans_among(older)
            if len(orphans) >= ADOPTED_IN_ORDER:
                await self._adopt(orphans)
                orphans = []
            await self._rest(len(batch))
        await self._adopt(orphans)

    async def _adopt(self, orphans: Sequence[StoredObject]) -> None:
        in_order = sorted(orphans, key=arrival_order)
        for start in range(0, len(in_order), PAGE):
            page = in_order[start : start + PAGE]
            async with self._adopter.turn:
                async for adoption in self._adopter.adopt(page):
                    self._note(adoption)
            await self._rest(len(page))

    def _note(self, adoption: Adoption) -> None:
        location = location_for_log(adoption.stored.location)
        if adoption.result is None:
            self.report.unreadable += 1
            log.error("object.unreadable", location=location, error=adoption.error)
        elif adoption.result.outcome is AddOutcome.SAME:
            if adoption.result.location != adoption.stored.location:
                self.report.duplicates += 1
                kept = location_for_log(adoption.result.location)
                log.warning("object.duplicate", location=location, kept=kept)
        else:
            self.report.adopted += 1
            log.warning("object.adopted", location=location, outcome=adoption.result.outcome.value)

    async def _look_at_index(self) -> None:
        after = ""
        while page := await self._index.list_parts(after=after, limit=PAGE):
            after = page[-1].location
            self.report.parts += len(page)
            locations = [part.location for part in page]
            sizes = await self._storage.sizes(locations)
            missing = [each for each, size in zip(locations, sizes, strict=True) if size is None]
            # What was deleted meanwhile is unknown by now: rows go before files.
            gone = set(await self._index.unknown_locations(missing))
            for location in missing:
                if location not in gone:
                    self.report.danglers += 1
                    log.error("object.missing", location=location_for_log(location))
            await self._rest(len(page))

    async def _rest(self, objects: int) -> None:
        await asyncio.sleep(objects / self._objects_per_second)
