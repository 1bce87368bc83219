"""What callbacks get of an association that is complete, and of a study that nothing comes for any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from scp_server.observability.text import peer_text
from scp_server.pipeline.deliveries import LoggedEvent
from scp_server.pipeline.instances import Archive, StoredInstance, association_of
from scp_server.pipeline.subjects import AssociationFacts


class StoredEvents(Protocol):
    """Where the events of objects are looked up."""

    def stored_by(self, association_id: str) -> AsyncIterator[LoggedEvent]:
        """The events `object.stored` of an association, in their order."""
        ...


class StoredParts:
    """Parts in the order in which they were stored, read as they are asked for: an association may last for
    months and bring a million.

    `async for part in parts` in an async function, `for part in parts` in a plain one.
    """

    def __init__(self, association_id: str, archive: Archive, events: StoredEvents) -> None:
        self._association_id = association_id
        self._archive = archive
        self._events = events
        self._loop = asyncio.get_running_loop()

    async def __aiter__(self) -> AsyncIterator[StoredInstance]:
        async for event in self._events.stored_by(self._association_id):
            yield StoredInstance.of(event, self._archive)

    def __iter__(self) -> Iterator[StoredInstance]:
        """For a thread, which waits for the loop. Raises RuntimeError in an async function."""
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("in an async function it is `async for part in parts`")
        parts = aiter(self)
        while (part := asyncio.run_coroutine_threadsafe(_next(parts), self._loop).result()) is not None:
            yield part

    async def loaded(self) -> tuple[StoredInstance, ...]:
        """All of them, for a process, which can ask for nothing."""
        return tuple([part async for part in self])


async def _next(parts: AsyncIterator[StoredInstance]) -> StoredInstance | None:
    return await anext(parts, None)


@dataclass(frozen=True, slots=True)
class AssociationComplete:
    """An association that has ended, and all the parts that it brought.

    `outcome` is `released`, `aborted`, `lost`, or `crashed` where the server ended in the middle of it.
    """

    association: AssociationFacts
    outcome: str
    ended_at_ns: int
    parts: StoredParts | tuple[StoredInstance, ...]
    """In the order in which they were stored; a tuple in the process of a callback."""

    @property
    def log_fields(self) -> dict[str, object]:
        """What log lines say of it."""
        return self.association.log_fields

    @classmethod
    async def of(
        cls, event: LoggedEvent, archive: Archive, events: StoredEvents, *, for_process: bool = False
    ) -> AssociationComplete:
        """The association that an event `association.ended` is about."""
        parts = StoredParts(event.association_id, archive, events)
        outcome = event.data.get("outcome")
        return cls(
            association=association_of(event),
            outcome=outcome if isinstance(outcome, str) else "",
            ended_at_ns=event.at_ns,
            parts=await parts.loaded() if for_process else parts,
        )


@dataclass(frozen=True, slots=True)
class StudySettled:
    """A study for which nothing has come for `outbox.study_settle_seconds`. Something may come later."""

    study_instance_uid: str
    settled_at_ns: int

    @classmethod
    def of(cls, event: LoggedEvent) -> StudySettled:
        """The study that an event `study.settled` is about."""
        uid: Any = event.data.get("study_instance_uid")
        return cls(study_instance_uid=str(uid or ""), settled_at_ns=event.at_ns)

    @property
    def log_fields(self) -> dict[str, object]:
        """What log lines say of it."""
        return {"study_instance_uid": peer_text(self.study_instance_uid)}
