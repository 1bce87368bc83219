"""Rules that forward: each object that is meant goes to a remote by C-STORE, as that remote takes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from scp_server.errors import (
    AssociationError,
    CannotTranscode,
    IndexFailure,
    LocalProtocolError,
    OperationRefused,
    StorageError,
)
from scp_server.index.base import Index, RetrievablePart
from scp_server.interfaces import Destinations, Sender, StoreOutcome
from scp_server.objects.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from scp_server.observability.logs import get_logger, peer_text
from scp_server.observability.rule_measures import ForwardMeasures, ForwardResult
from scp_server.pipeline.deliveries import Delivery, EventKind, LoggedEvent
from scp_server.pipeline.filters import ObjectFilter
from scp_server.pipeline.sending import (
    CANNOT_READ,
    CANNOT_TRANSCODE,
    NO_CONTEXT,
    NOT_ANSWERED,
    Source,
    context_for,
    send_part,
)
from scp_server.pipeline.verdicts import DestinationDown, NotDelivered, Undeliverable
from scp_server.protocol.message import VERIFICATION_SOP_CLASS_UID, Priority
from scp_server.protocol.status import Status, StatusClass, status_class

log = get_logger(__name__)

_TAKEN: Final = {
    StatusClass.SUCCESS: ForwardResult.SENT,
    StatusClass.WARNING: ForwardResult.WARNING,
}
_RETRIED: Final = frozenset({Status.PROCESSING_FAILURE, Status.RESOURCE_LIMITATION})
"""Failures of the moment (PS3.7 C.5), as all of the family A7xx are (PS3.4 B.2.3)."""
_FAMILY: Final = 0xFF00
_MOST_SUSPECTS: Final = 128


@dataclass(frozen=True, slots=True)
class ForwardRule:
    """What one rule sends to one remote."""

    name: str
    ae_title: str
    """The remote's, of `[[remotes]]`."""
    filter: ObjectFilter = field(default_factory=ObjectFilter)
    priority: Priority = Priority.MEDIUM
    concurrency: int = 4
    """Series that are under way together: no more than the remote takes associations."""

    @property
    def subscription(self) -> str:
        """Its name in the outbox."""
        return f"forward:{self.name}:{self.ae_title}"


class ForwardSubscriber:
    """See `Subscriber`.

    A remote that is down and one that only wants nothing of a class both refuse an association. So a class
    that an association was refused for is suspected: the next time one for Verification is asked for first.
    Where the remote grants that, it is the object that failed, and others need not wait for it.
    """

    def __init__(
        self,
        rule: ForwardRule,
        source: Source,
        index: Index,
        destinations: Destinations,
        measures: ForwardMeasures | None = None,
    ) -> None:
        self.rule = rule
        self.name = rule.subscription
        self.concurrency = rule.concurrency
        self._source = source
        self._index = index
        self._destinations = destinations
        self._counts = (measures or ForwardMeasures()).of(rule.name, rule.ae_title)
        self._suspects: set[str] = set()
        """SOP classes that an association was refused for."""

    def wants(self, event: LoggedEvent) -> bool:
        """See `Subscriber.wants`."""
        return event.kind is EventKind.OBJECT_STORED and self.rule.filter.matches_event(event.data)

    async def deliver(self, delivery: Delivery) -> None:
        """See `Subscriber.deliver`. An object that was deleted meanwhile counts as delivered."""
        part = await self._part(delivery.event)
        if part is None:
            self._count(ForwardResult.GONE, delivery)
            return
        targets = self._source.targets(part)
        proposed = self._destinations.transfer_syntaxes_for(
            self.rule.ae_title, part.transfer_syntax_uid, targets
        )
        if not proposed:
            raise self._refused(f"{NO_CONTEXT}: {part.transfer_syntax_uid} can be given none that it takes")
        self._judge(delivery, await self._store(part, proposed))

    async def _part(self, event: LoggedEvent) -> RetrievablePart | None:
        """What the event is about; None once that was deleted, or replaced: then another event says so."""
        if event.location is None:
            raise Undeliverable(f"event {event.event_id} is about no object")
        try:
            return await self._index.part(event.location)
        except IndexFailure as failure:
            raise NotDelivered(f"the index cannot be read: {failure}") from failure

    async def _store(self, part: RetrievablePart, proposed: tuple[str, ...]) -> StoreOutcome:
        is_suspect = part.sop_class_uid in self._suspects
        if is_suspect:
            await self._expect_answer()
        is_associated = False
        try:
            async with self._destinations.send_to(
                self.rule.ae_title, [(part.sop_class_uid, proposed)]
            ) as sender:
                is_associated = True
                self._suspects.discard(part.sop_class_uid)
                outcome = await self._send(sender, part)
        except AssociationError as error:
            if is_associated:
                raise self._failed(f"{NOT_ANSWERED}: {error}") from error
            if is_suspect:
                raise self._failed(f"it grants associations, but none for this SOP class: {error}") from error
            if len(self._suspects) < _MOST_SUSPECTS:
                self._suspects.add(part.sop_class_uid)
            raise DestinationDown(peer_text(str(error))) from error
        except LocalProtocolError as error:
            raise self._refused(f"it cannot be said in a C-STORE-RQ: {error}") from error
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _expect_answer(self) -> None:
        """Raises DestinationDown where the remote grants no association at all."""
        syntaxes = self._destinations.transfer_syntaxes_for(
            self.rule.ae_title, EXPLICIT_VR_LITTLE_ENDIAN, (IMPLICIT_VR_LITTLE_ENDIAN,)
        )
        try:
            async with self._destinations.send_to(
                self.rule.ae_title,
                [(VERIFICATION_SOP_CLASS_UID, syntaxes or (IMPLICIT_VR_LITTLE_ENDIAN,))],
            ):
                pass
        except AssociationError as error:
            raise DestinationDown(peer_text(str(error))) from error

    async def _send(self, sender: Sender, part: RetrievablePart) -> StoreOutcome | Exception:
        """What the remote answered, or why it was not asked: what is raised here costs the association."""
        context = context_for(sender, self._source, part)
        if context is None:
            return self._refused(f"{NO_CONTEXT}: class {part.sop_class_uid} in {part.transfer_syntax_uid}")
        try:
            return await send_part(
                sender,
                context,
                self._source,
                part,
                priority=self.rule.priority,
                count=self._counts.count_bytes,
            )
        except (CannotTranscode, OperationRefused) as failure:
            return self._refused(f"{CANNOT_TRANSCODE}: {failure}")
        except StorageError as failure:
            return self._failed(f"{CANNOT_READ}: {failure}")

    def _judge(self, delivery: Delivery, outcome: StoreOutcome) -> None:
        """Whether it has arrived (PS3.4 B.2.3, PS3.7 C). Raises NotDelivered or Undeliverable where not."""
        status = outcome.status
        taken = _TAKEN.get(status_class(status))
        if taken is not None:
            self._count(taken, delivery, status)
            return
        is_repeated = delivery.may_be_repeated or delivery.attempt > 1
        if outcome.counts_as_warning or (status == Status.DUPLICATE_SOP_INSTANCE and is_repeated):
            self._count(ForwardResult.KNOWN, delivery, status)
            return
        comment = f" ({outcome.error_comment})" if outcome.error_comment else ""
        problem = f"status 0x{status:04X}{comment}"
        if status & _FAMILY == Status.OUT_OF_RESOURCES or status in _RETRIED:
            raise self._failed(problem)
        raise self._refused(problem)

    def _failed(self, problem: str) -> NotDelivered:
        self._counts.results[ForwardResult.FAILED] += 1
        return NotDelivered(peer_text(problem))

    def _refused(self, problem: str) -> Undeliverable:
        self._counts.results[ForwardResult.REFUSED] += 1
        return Undeliverable(peer_text(problem))

    def _count(self, result: ForwardResult, delivery: Delivery, status: int | None = None) -> None:
        self._counts.results[result] += 1
        event = delivery.event
        say = {
            "rule": self.rule.name,
            "remote": self.rule.ae_title,
            "result": str(result),
            "status": None if status is None else f"0x{status:04X}",
            "event_id": event.event_id,
            "association_id": event.association_id,
            "sop_instance_uid": peer_text(str(event.data.get("sop_instance_uid", ""))),
            "attempt": delivery.attempt,
            "may_be_repeated": delivery.may_be_repeated,
        }
        if result is ForwardResult.SENT:
            log.debug("object.forwarded", **say)
        else:
            log.info("object.forwarded", **say)
