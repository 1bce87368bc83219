"""Sending to a move destination: several associations at once, each with the contexts that are needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from scp_server.errors import AssociationError
from scp_server.index.base import RetrievablePart
from scp_server.interfaces import Destinations, Operation
from scp_server.pipeline.sending import NO_CONTEXT
from scp_server.protocol.items import MAX_PRESENTATION_CONTEXTS
from scp_server.services.query_retrieve.suboperations import SubOperations

_MOST_IN_VAIN: Final = 2
"""Associations in a row that ended before any sub-operation did: then no further one is asked for."""
_INLINE_PARTS: Final = 2_000
"""More are sorted in a thread: it takes milliseconds."""
_UNREACHABLE: Final = "no association with the destination"

Proposals = Callable[[RetrievablePart], tuple[str, ...]]
"""The transfer syntaxes that are proposed for a part."""
_Pair = tuple[str, str]


@dataclass(slots=True)
class Batch:
    """Parts, and the presentation contexts (SOP class, transfer syntax) of the associations they go over."""

    parts: list[RetrievablePart] = field(default_factory=list)
    pairs: dict[_Pair, None] = field(default_factory=dict)

    @property
    def contexts(self) -> list[tuple[str, tuple[str, ...]]]:
        """The pairs by SOP class."""
        by_class: dict[str, list[str]] = {}
        for sop_class, transfer_syntax in self.pairs:
            by_class.setdefault(sop_class, []).append(transfer_syntax)
        return [(sop_class, tuple(syntaxes)) for sop_class, syntaxes in by_class.items()]


async def batched(parts: Sequence[RetrievablePart], proposals: Proposals) -> list[Batch]:
    """The same as `batches`, off the event loop where that takes long."""
    if len(parts) <= _INLINE_PARTS:
        return batches(parts, proposals)
    return await asyncio.to_thread(batches, parts, proposals)


def batches(parts: Iterable[RetrievablePart], proposals: Proposals) -> list[Batch]:
    """Parts in their order, in as few batches as have at most 128 contexts each: nearly always one.

    A part for which nothing is proposed is in one of them, too: there it fails.
    """
    found: list[Batch] = []
    kinds: dict[tuple[str, tuple[str, ...]], Batch] = {}
    for part in parts:
        kind = part.sop_class_uid, proposals(part)
        batch = kinds.get(kind)
        if batch is None:
            wanted = [(part.sop_class_uid, syntax) for syntax in kind[1]]
            batch = next(_with_room(found, wanted), None)
            if batch is None:
                batch = Batch()
                found.append(batch)
            batch.pairs.update(dict.fromkeys(wanted))
            kinds[kind] = batch
        batch.parts.append(part)
    return found


def _with_room(found: Iterable[Batch], wanted: list[_Pair]) -> Iterator[Batch]:
    return (batch for batch in found if len(batch.pairs.keys() | wanted) <= MAX_PRESENTATION_CONTEXTS)


class Move:
    """The sub-operations of a C-MOVE, on their way to one destination.

    An association that ends under a sub-operation is followed by another, on which that one is tried once
    more. Where no association can be had, or two in a row end before any sub-operation does, what is left
    fails.
    """

    def __init__(
        self, operation: Operation, sub_operations: SubOperations, destinations: Destinations, ae_title: str
    ) -> None:
        self._sub_operations = sub_operations
        self._destinations = destinations
        self._ae_title = ae_title
        self._connecting: set[asyncio.Task[object]] = set()
        self._end = ""
        operation.when_cancelled(self._stop_connecting)

    async def send(self, batch: Batch, associations: int) -> None:
        """Send the parts of a batch, over so many associations at once."""
        waiting = self._sub_operations.waiting
        waiting.clear()
        waiting.extend(batch.parts)
        if not batch.pairs:
            self._sub_operations.fail_all(NO_CONTEXT, "the remote takes no transfer syntax that it has")
            return
        async with asyncio.TaskGroup() as tasks:
            for number in range(min(associations, len(batch.parts))):
                tasks.create_task(self._send_over_associations(batch), name=f"move-{number}")
        self._sub_operations.fail_all(_UNREACHABLE, self._end)

    def _stop_connecting(self) -> None:
        """Nobody waits for an association any more: nothing is left to be sent, or C-CANCEL has come, which
        waits for sub-operations that run and only for those. A task of a group that is cancelled leaves the
        others alone.
        """
        for task in self._connecting:
            task.cancel()

    async def _send_over_associations(self, batch: Batch) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("not in a task")
        in_vain = 0
        while self._sub_operations.waiting and not self._sub_operations.is_stopped:
            ended = 0

            def count() -> None:
                nonlocal ended
                ended += 1

            connected = False
            self._connecting.add(task)
            try:
                async with self._destinations.send_to(self._ae_title, batch.contexts) as sender:
                    self._connecting.discard(task)
                    connected = True
                    await self._sub_operations.send_all(sender, count)
                    # A destination that takes one association after another answers none of these before.
                    self._stop_connecting()
            except AssociationError as error:
                self._end = str(error)
                in_vain = 0 if ended else in_vain + 1
                if not connected or in_vain == _MOST_IN_VAIN:
                    return
            finally:
                self._connecting.discard(task)
