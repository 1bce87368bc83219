"""What callbacks get of an association that is complete, and of a study that nothing comes for any more."""

from __future__ import annotations

from collections.abc import AsyncIterator
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


@dataclass(frozen=True, slots=True)
class AssociationComplete:
    """An association that has ended, and all the parts that it brought.

    `outcome` is `released`, `aborted`, `lost`, or `crashed` where the server ended in the middle of it.
    """

    association: AssociationFacts
    outcome: str
    ended_at_ns: int
    parts: tuple[StoredInstance, ...]
    """In the order in which they were stored."""

    @property
    def log_fields(self) -> dict[str, object]:
        """What log lines say of it."""
        return self.association.log_fields

    @classmethod
    async def of(cls, event: LoggedEvent, archive: Archive, events: StoredEvents) -> AssociationComplete:
        """The association that an event `association.ended` is about."""
        parts = [StoredInstance.of(each, archive) async for each in events.stored_by(event.association_id)]
        outcome = event.data.get("outcome")
        return cls(
            association=association_of(event),
            outcome=outcome if isinstance(outcome, str) else "",
            ended_at_ns=event.at_ns,
            parts=tuple(parts),
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
