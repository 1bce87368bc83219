"""A callback of a durable stage as a subscriber of the outbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from scp_server.observability.measures import CallbackOutcome
from scp_server.pipeline.callback import Callback, RunIn
from scp_server.pipeline.deliveries import Delivery, EventKind, LoggedEvent
from scp_server.pipeline.instances import StoredInstances
from scp_server.pipeline.running import CallbackFailed, CallbackRunner, Logged
from scp_server.pipeline.settled import AssociationComplete, StoredEvents, StudySettled
from scp_server.pipeline.stages import Stage
from scp_server.pipeline.verdicts import NotDelivered, Reject, Undeliverable

KINDS: Final = {
    Stage.STORED: EventKind.OBJECT_STORED,
    Stage.ASSOCIATION_COMPLETE: EventKind.ASSOCIATION_ENDED,
    Stage.STUDY_SETTLED: EventKind.STUDY_SETTLED,
}
"""The events that callbacks of each durable stage are called for."""


class CallbackSubscriber:
    """See `Subscriber`. Its name in the outbox is `callback:` and the callback's."""

    def __init__(self, runner: CallbackRunner, instances: StoredInstances, events: StoredEvents) -> None:
        callback = runner.callback
        self.name = f"callback:{callback.name}"
        self.concurrency = runner.concurrency
        self._runner = runner
        self._instances = instances
        self._events = events
        self._kind = KINDS[callback.stage]
        self._is_meant = _filter_of(callback)
        self._takes_delivery = callback.takes_delivery

    def wants(self, event: LoggedEvent) -> bool:
        """See `Subscriber.wants`."""
        return event.kind is self._kind and (self._is_meant is None or self._is_meant(event))

    async def deliver(self, delivery: Delivery) -> None:
        """See `Subscriber.deliver`. What the callback raises is a failed delivery; Reject means nothing here
        and makes it a dead letter. What it returns changes nothing: it has been delivered."""
        event = delivery.event
        is_object = self._kind is EventKind.OBJECT_STORED
        subject = self._instances.of(event) if is_object else await self._subject(event)
        try:
            if self._takes_delivery:
                await self._runner.run(subject, delivery)
            else:
                await self._runner.run(subject)
        except Reject as verdict:
            raise Undeliverable(f"the callback rejects what is stored already: {verdict}") from verdict
        except CallbackFailed as failure:
            if failure.outcome is not CallbackOutcome.NONSENSE:
                raise NotDelivered(str(failure)) from failure

    async def _subject(self, event: LoggedEvent) -> Logged:
        if self._kind is EventKind.STUDY_SETTLED:
            return StudySettled.of(event)
        for_process = self._runner.callback.run_in is RunIn.PROCESS
        archive = self._instances.archive
        return await AssociationComplete.of(event, archive, self._events, for_process=for_process)


def _filter_of(callback: Callback) -> Callable[[LoggedEvent], bool] | None:
    """Whether an event is meant by the callback's filter; None where each one is."""
    chosen = callback.filter
    if not (chosen.is_about_objects or chosen.calling_ae_titles or chosen.called_ae_titles):
        return None

    def is_meant(event: LoggedEvent) -> bool:
        data = event.data
        return chosen.matches(
            str(data.get("sop_class_uid") or ""),
            str(data.get("modality") or ""),
            str(data.get("calling_ae_title") or ""),
            str(data.get("called_ae_title") or ""),
        )

    return is_meant
