"""A detector as a subscriber of the outbox: examines what an association has brought, and reports."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol
from weakref import WeakValueDictionary

from scp_server.errors import CannotReport, CannotView
from scp_server.index.base import PartRecord
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import CallbackOutcome
from scp_server.pipeline.callback import DetectorTerms
from scp_server.pipeline.deliveries import Delivery, EventKind, LoggedEvent
from scp_server.pipeline.examination import Examination
from scp_server.pipeline.filters import ObjectFilter
from scp_server.pipeline.instances import Archive
from scp_server.pipeline.running import CallbackFailed, CallbackRunner
from scp_server.pipeline.settled import StoredEvents
from scp_server.pipeline.verdicts import NotDelivered, Reject, Undeliverable
from scp_server.reports.builder import AbortReason
from scp_server.reports.report import TDR_STORAGE, ThreatReport

log = get_logger(__name__)


class ReportedImages(Protocol):
    """Where images are found, and their reports put."""

    async def parts(self, sop_instance_uid: str) -> Sequence[PartRecord]:
        """All parts of an instance. Raises IndexUnavailable."""
        ...

    async def keep(self, report: ThreatReport, detector: str) -> None:
        """Store a report as one that came from a peer with the name of the detector. Raises NotDelivered
        where that may go better later, Undeliverable where it is refused."""
        ...


class DetectorSubscriber:
    """See `Subscriber`. Its name in the outbox is that of a callback.

    An image has one report of one detector: its UID follows from the image's bytes, and what has one is not
    examined again. So a delivery that is repeated, after a crash for one, leaves one report.
    """

    def __init__(
        self,
        runner: CallbackRunner,
        terms: DetectorTerms,
        archive: Archive,
        events: StoredEvents,
        images: ReportedImages,
    ) -> None:
        self._runner = runner
        self._terms = terms
        self._archive = archive
        self._events = events
        self._images = images
        self._detector = runner.callback.name
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """One image that two associations brought is not examined twice at once."""
        self.name = f"callback:{self._detector}"
        self.concurrency = runner.concurrency

    def wants(self, event: LoggedEvent) -> bool:
        """See `Subscriber.wants`."""
        if event.kind is not EventKind.ASSOCIATION_ENDED:
            return False
        calling, called = (str(event.data.get(f"{who}_ae_title") or "") for who in ("calling", "called"))
        return self._runner.callback.filter.matches_association(calling, called)

    async def deliver(self, delivery: Delivery) -> None:
        """See `Subscriber.deliver`. An image that fails does not keep the others from being examined."""
        failures: list[NotDelivered | Undeliverable] = []
        found: dict[str, str] = {}
        async for event in self._events.stored_by(delivery.event.association_id):
            if is_examined(self._runner.callback.filter, event):
                found[str(event.data["sop_instance_uid"])] = str(event.data["study_instance_uid"])
        for sop_instance_uid, study_instance_uid in found.items():
            parts = await self._images.parts(sop_instance_uid)
            of_study = [one for one in parts if one.study_instance_uid == study_instance_uid]
            if not of_study:
                continue
            try:
                await self._in_turn(of_study, delivery)
            except (NotDelivered, Undeliverable) as failure:
                failures.append(failure)
        if failures:
            raise next((one for one in failures if isinstance(one, NotDelivered)), failures[0])

    async def _in_turn(self, parts: Sequence[PartRecord], delivery: Delivery) -> None:
        examination = examination_of(self._detector, self._terms, parts, self._archive)
        async with self._turns.setdefault(examination.seed, asyncio.Lock()):
            if await self._images.parts(examination.report_uid):
                return
            await self._examine(examination, delivery)

    async def _examine(self, examination: Examination, delivery: Delivery) -> None:
        is_last = delivery.attempt >= self._terms.attempts
        if is_last and await self._images.parts(examination.abort_uid):
            # The process ended between the report and the dead letter. An attempt that somebody asks for
            # counts from 1, and is made.
            raise Undeliverable("it was given up before")
        try:
            await self._runner.run(examination)
        except (NotDelivered, CallbackFailed) as failure:
            if not is_last:
                raise NotDelivered(str(failure)) from failure
            timed_out = isinstance(failure, CallbackFailed) and failure.outcome is CallbackOutcome.TIMED_OUT
            await self._give_up(examination, AbortReason.TIMEOUT if timed_out else AbortReason.NOT_REVIEWED)
            raise Undeliverable(str(failure)) from failure
        except (Undeliverable, Reject) as verdict:
            await self._give_up(examination, AbortReason.UNKNOWN_DATATYPE)
            raise Undeliverable(str(verdict)) from verdict
        if examination.report is not None:
            await self._images.keep(examination.report, self._detector)

    async def _give_up(self, examination: Examination, reason: AbortReason) -> None:
        """So that whoever waits for an answer has one."""
        log.warning(
            "detector.gave_up", callback=self._detector, reason=reason.value, **examination.log_fields
        )
        if not self._terms.abort_report or await self._images.parts(examination.abort_uid):
            return
        try:
            report = await asyncio.to_thread(examination.aborted, reason)
        except (CannotReport, CannotView, OSError) as error:
            raise Undeliverable(f"not even that it was given up can be reported: {error}") from error
        await self._images.keep(report, self._detector)


def is_examined(chosen: ObjectFilter, event: LoggedEvent) -> bool:
    """Whether an object that was stored is an image for a detector with this filter. A report never is."""
    return event.data.get("sop_class_uid") != TDR_STORAGE and chosen.matches_event(event.data)


def examination_of(
    name: str, terms: DetectorTerms, parts: Sequence[PartRecord], archive: Archive
) -> Examination:
    """Of an image with these parts. Raises Undeliverable where they are no files."""
    if archive.files is None:
        raise Undeliverable("the objects of this storage are no files that another process could read")
    return Examination.of(name, terms.algorithm, parts, archive.files.path)
