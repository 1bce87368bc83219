"""Bringing files that the index does not know into it.

Adopted is under the policy `parts`, whatever the server's own is for newcomers: what lies there may have been
acknowledged under another policy, and is never thrown away.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from scp_server.errors import IndexFailure, IndexUnavailable, OperationRefused, StorageError
from scp_server.index.base import AddResult, DuplicatePolicy, Index, IndexEntry
from scp_server.objects.header_tap import TapLimits
from scp_server.runtime.maintenance.progress import NoProgress, Progress
from scp_server.runtime.recovery import read_entry
from scp_server.services.storage import Deletions
from scp_server.services.validation import StoredValidation
from scp_server.storage.base import Storage, StoredObject
from scp_server.storage.layout import arrival_id_in

InFlight = Callable[[Sequence[str]], Awaitable[set[str]]]
READ_TOGETHER = 4
"""Objects whose files are read at once."""
ADDED_TOGETHER = 64
"""Entries, each with its packed header, that may share a transaction."""


@dataclass(frozen=True, slots=True)
class Adoption:
    """What became of one file: `result`, or the `error` that kept it out of the index."""

    stored: StoredObject
    entry: IndexEntry | None = None
    result: AddResult | None = None
    error: str = ""


def arrival_order(stored: StoredObject) -> tuple[str, str]:
    """What to sort by: the arrival id that ends a location, then the location."""
    return arrival_id_of(stored.location), stored.location


def arrival_id_of(location: str) -> str:
    """The arrival id in a location, padded so that comparing text compares times."""
    return arrival_id_in(location).rjust(64, "0")


class Adopter:
    """Finds files that the index does not know, and brings them into it, also while objects come and go.

    Whoever looks and adopts what it found holds `turn` from the one to the other: else two that do so could
    adopt a file again that was deleted in between.
    """

    def __init__(
        self,
        storage: Storage,
        index: Index,
        limits: TapLimits,
        deletions: Deletions,
        in_flight: InFlight | None = None,
        validation: StoredValidation | None = None,
    ) -> None:
        """`in_flight` where other processes write to the storage too: `Storage.not_yet_indexed` of all."""
        self._storage = storage
        self._in_flight = in_flight or storage.not_yet_indexed
        self._index = index
        self.limits = limits
        """How much of a header is read; may be changed at any time."""
        self.validation = validation
        """How objects are judged, if at all; may be changed at any time."""
        self._deletions = deletions
        self.turn = asyncio.Lock()

    async def orphans_among(self, stored: Sequence[StoredObject]) -> list[StoredObject]:
        """Those that the index does not know and that nobody is about to index or to delete.

        The order of the questions is what makes the answer true while others work. What is no longer in
        flight has been indexed or taken back, so the index is asked once more. A file that became unknown by
        being replaced or deleted is noted as discarded or doomed for as long as it is there, so the last
        question is whether it is. Where several processes write, each is asked the same, after the file
        was seen and before the index is asked again. Raises StorageError or IndexFailure.
        """
        unknown = await self._index.unknown_locations([each.location for each in stored])
        if not unknown:
            return []
        in_flight = await self._in_flight(unknown)
        unknown = await self._index.unknown_locations([each for each in unknown if each not in in_flight])
        going = {*await self._index.discarded(), *await self._deletions.doomed(unknown)}
        unknown = [each for each in unknown if each not in going]
        sizes = await self._storage.sizes(unknown)
        there = {each for each, size in zip(unknown, sizes, strict=True) if size is not None}
        return [each for each in stored if each.location in there]

    async def adopt(
        self, stored: Sequence[StoredObject], progress: Progress | None = None
    ) -> AsyncIterator[Adoption]:
        """Adopt those that are still orphans, in the order given (see `adopt`), with `turn` held.

        One that was taken back meanwhile is passed over. Raises StorageError or IndexFailure.
        """
        orphans = await self.orphans_among(stored)
        async for adoption in adopt(
            self._storage, self._index, orphans, self.limits, progress or NoProgress(), self.validation
        ):
            if adoption.result is None:
                (size_bytes,) = await self._storage.sizes([adoption.stored.location])
                if size_bytes is None:
                    continue
            yield adoption

    async def is_doomed(self, location: str) -> bool:
        """Whether a file that the index knows is about to be deleted."""
        return bool(await self._deletions.doomed([location]))


async def adopt(
    storage: Storage,
    index: Index,
    stored: Sequence[StoredObject],
    limits: TapLimits,
    progress: Progress,
    validation: StoredValidation | None = None,
) -> AsyncIterator[Adoption]:
    """Read files and add them to the index, in the order given; tell of each when it is committed.

    `progress` hears of each file that was read, and counts none: many, or large ones, take long. Holds the
    entries of ADDED_TOGETHER files at most. Raises IndexUnavailable.
    """
    batch: list[tuple[StoredObject, IndexEntry]] = []
    async for each, entry in _entries(storage, stored, limits, validation):
        progress.advance(0)
        if isinstance(entry, str):
            yield Adoption(each, error=entry)
            continue
        batch.append((each, entry))
        if len(batch) == ADDED_TOGETHER:
            for adoption in await _add(index, batch):
                yield adoption
            batch = []
    for adoption in await _add(index, batch):
        yield adoption


async def _add(index: Index, batch: Iterable[tuple[StoredObject, IndexEntry]]) -> list[Adoption]:
    """The index takes entries in the order of asking, so parts are numbered as they arrived."""
    batch = list(batch)
    results = await asyncio.gather(
        *(index.add(entry, DuplicatePolicy.PARTS) for _, entry in batch), return_exceptions=True
    )
    adoptions = []
    for (stored, entry), result in zip(batch, results, strict=True):
        if isinstance(result, AddResult):
            adoptions.append(Adoption(stored, entry, result))
        elif isinstance(result, IndexFailure) and not isinstance(result, IndexUnavailable):
            adoptions.append(Adoption(stored, entry, error=str(result)))
        else:
            raise result
    return adoptions


async def _entries(
    storage: Storage,
    stored: Iterable[StoredObject],
    limits: TapLimits,
    validation: StoredValidation | None,
) -> AsyncIterator[tuple[StoredObject, IndexEntry | str]]:
    """Each object's entry, or why it has none, in order; the files of the next few are read meanwhile."""
    reading: deque[tuple[StoredObject, asyncio.Task[IndexEntry | str]]] = deque()
    try:
        for each in stored:
            task = asyncio.create_task(_entry(storage, each, limits, validation), name="maintenance.read")
            reading.append((each, task))
            if len(reading) == READ_TOGETHER:
                first, read = reading[0]
                entry = await read
                reading.popleft()
                yield first, entry
        while reading:
            first, read = reading[0]
            entry = await read
            reading.popleft()
            yield first, entry
    finally:
        for _, task in reading:
            task.cancel()
        await asyncio.gather(*(task for _, task in reading), return_exceptions=True)


async def _entry(
    storage: Storage, stored: StoredObject, limits: TapLimits, validation: StoredValidation | None
) -> IndexEntry | str:
    try:
        return await read_entry(storage, stored, limits, validation)
    except (OperationRefused, StorageError, ValueError) as error:
        return str(error)
