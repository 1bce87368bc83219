"""Bringing small objects to the disk behind the index, which keeps their bytes until then.

Every cycle is the same three steps, and their order is the promise: the index says whose files it keeps; the
storage makes them durable; the index forgets them. A file is visible before its row is, so the second step
has whatever the first one found. What is deleted or replaced in between has lost its row before it loses its
file: it is passed over, and forgetting it is nothing.

When the second step fails, any of these files may be lost to the disk although it can be read still, and a
second sync would not tell. So they are *doubtful*: each is written again from the index before the next sync
counts for it. One that is gone then is not made, for a deletion may be under way; if it was none, its row
stays, and the next start restores it. Until a cycle succeeds, newcomers sync their files themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from scp_server.errors import IndexFailure, ObjectNotFound, StorageError
from scp_server.index.base import Index
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import SettlingMeasures
from scp_server.services.unsettled import UnsettledObjects
from scp_server.storage.base import Storage
from scp_server.storage.layout import location_for_log

log = get_logger(__name__)

READ_TOGETHER = 64
"""Files read from the index at once: 4 MiB with the default bound."""
FORGOTTEN_TOGETHER = 512
"""Files forgotten in one transaction, so that newcomers are indexed in between."""
RETRY_SECONDS = 10.0
"""Between attempts while a disk fails."""


class Settler:
    """Settles what the index keeps, in a task of its own. `settle_seconds` is how long an object waits for a
    cycle at most, `retry_seconds` how long after one that failed there is another."""

    def __init__(
        self,
        storage: Storage,
        index: Index,
        unsettled: UnsettledObjects,
        *,
        settle_seconds: float,
        retry_seconds: float = RETRY_SECONDS,
        measures: SettlingMeasures | None = None,
    ) -> None:
        self._storage = storage
        self._index = index
        self._unsettled = unsettled
        self._retry_seconds = retry_seconds
        self._measures = measures or SettlingMeasures()
        self._doubtful: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._cycle: asyncio.Task[bool] | None = None
        self._settle_seconds = settle_seconds

    def start(self) -> None:
        """Begin, once `settle_left_over` has been called."""
        self._task = asyncio.create_task(self._run(), name="runtime.settle")

    async def stop(self) -> None:
        """End, with a last cycle, so that the next start has nothing to do. The index is open still."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait({self._task, self._cycle} if self._cycle is not None else {self._task})
        self._task = None
        await self.settle()

    async def _run(self) -> None:
        while True:
            if self._unsettled.accepting:
                await self._unsettled.wait(self._settle_seconds)
            else:
                await asyncio.sleep(self._retry_seconds)
            # A task of its own, for what a sync has to say must be heard, whenever the server ends.
            self._cycle = asyncio.create_task(self.settle(), name="runtime.settle.cycle")
            await asyncio.shield(self._cycle)

    async def settle(self) -> bool:
        """One cycle; whether all that could be found is settled. A failure is logged, and raises nothing."""
        recorded = self._unsettled.recorded()
        try:
            locations = await self._index.unsynced()
            gone = await self._rewrite_doubtful(locations)
            durable = [each for each in locations if each not in gone]
            await self._make_durable(durable)
            for start in range(0, len(durable), FORGOTTEN_TOGETHER):
                await self._index.forget_unsynced(durable[start : start + FORGOTTEN_TOGETHER])
        except (StorageError, IndexFailure) as failure:
            self._measures.failures += 1
            self._unsettled.accepting = False
            log.error("storage.not_settled", error=str(failure), objects=len(recorded))
            return False
        self._doubtful &= gone
        self._unsettled.settled(recorded)
        self._unsettled.accepting = True
        return True

    async def _rewrite_doubtful(self, locations: Sequence[str]) -> set[str]:
        """Write what is doubtful again; returns what is not there."""
        gone: set[str] = set()
        doubtful = [each for each in locations if each in self._doubtful]
        async for contents in _contents(self._index, doubtful):
            for location, content in contents.items():
                if not await self._storage.rewrite(location, content):
                    gone.add(location)
        return gone

    async def _make_durable(self, locations: Sequence[str]) -> None:
        if not locations:
            return
        try:
            await self._storage.make_durable(locations)
        except BaseException:
            # Also where it was cancelled: nobody has heard what it had to say.
            self._doubtful.update(locations)
            raise

    def doubt(self, locations: Sequence[str]) -> None:
        """These could not be restored at the start; the first cycle tries again."""
        if locations:
            self._doubtful.update(locations)
            self._unsettled.accepting = False


@dataclass(frozen=True, slots=True)
class LeftOver:
    """What start-up found unsettled. The disk did not take those at `failed`: the index keeps them still."""

    examined: int = 0
    restored: int = 0
    failed: tuple[str, ...] = ()


async def not_in_place(storage: Storage, index: Index) -> list[str]:
    """Locations of the files that `settle_left_over` would write. Raises StorageError or IndexFailure."""
    found = []
    async for contents in _contents(index, await index.unsynced()):
        for location, content in contents.items():
            try:
                pieces = [piece async for piece in storage.read(location, 0, len(content) + 1)]
            except ObjectNotFound:
                pieces = []
            if b"".join(pieces) != content:
                found.append(location)
    return found


async def settle_left_over(storage: Storage, index: Index) -> LeftOver:
    """Have the files that the index keeps in their places, and durable; then it forgets them.

    For who has the data folder to himself, before anything is adopted, stored or deleted. What the disk does
    not take is logged, and stays in the index. Raises IndexFailure.
    """
    locations = await index.unsynced()
    if not locations:
        return LeftOver()
    restored, failed = 0, []
    async for contents in _contents(index, locations):
        # In as many threads as the storage has: the start waits for it.
        results = await asyncio.gather(
            *(storage.restore(*each) for each in contents.items()), return_exceptions=True
        )
        for location, result in zip(contents, results, strict=True):
            if isinstance(result, StorageError):
                failed.append(location)
                log.error("object.not_restored", location=location_for_log(location), error=str(result))
            elif isinstance(result, BaseException):
                raise result
            else:
                restored += result
    durable = sorted(set(locations).difference(failed))
    try:
        await storage.make_durable(durable)
    except StorageError as failure:
        log.error("storage.not_settled", error=str(failure), objects=len(durable))
        failed = locations
    else:
        await index.forget_unsynced(durable)
    log.info("recovery.settled", examined=len(locations), restored=restored, failed=len(failed))
    return LeftOver(len(locations), restored, tuple(failed))


async def _contents(index: Index, locations: Sequence[str]) -> AsyncIterator[dict[str, bytes]]:
    for start in range(0, len(locations), READ_TOGETHER):
        yield await index.unsynced_contents(locations[start : start + READ_TOGETHER])
