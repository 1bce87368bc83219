"""The callbacks of a server at work: who of them is told or asked at which moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from importlib import import_module

from scp_server.interfaces import AssociationInfo, AssociationVerdict
from scp_server.objects.query_keys import parse_key
from scp_server.observability.logs import get_logger, peer_text
from scp_server.observability.measures import CallbackMeasures
from scp_server.pipeline.callback import Callback, OnFailure, RunIn
from scp_server.pipeline.deliveries import Subscriber
from scp_server.pipeline.detecting import DetectorSubscriber, ReportedImages
from scp_server.pipeline.instances import Archive, ReceivedInstance, StoredInstances
from scp_server.pipeline.notices import Notices
from scp_server.pipeline.registry import CallbackRegistry
from scp_server.pipeline.running import CallbackFailed, CallbackLimits, CallbackRunner, Logged
from scp_server.pipeline.settled import StoredEvents
from scp_server.pipeline.stages import DURABLE_STAGES, INLINE_STAGES, Stage
from scp_server.pipeline.stuck import LoopOccupant, StuckWatch
from scp_server.pipeline.subjects import (
    AssociationEnd,
    AssociationFacts,
    ConnectionFacts,
    Echo,
    InvalidInstance,
)
from scp_server.pipeline.subscriber import CallbackSubscriber
from scp_server.pipeline.verdicts import Reject

log = get_logger(__name__)

_ASSOCIATION_STAGES = frozenset(
    {Stage.CONNECTED, Stage.DISCONNECTED, Stage.ASSOCIATED, Stage.ACCEPTED, Stage.ENDED, Stage.ECHO}
)
_CLOSE_SECONDS = 1.0
"""When the server stops: what callbacks may still take to be told what has happened."""


class ActiveCallbacks:
    """All callbacks of one server, in its event loop. An `AssociationListener`."""

    def __init__(
        self,
        registry: CallbackRegistry,
        limits: CallbackLimits | None = None,
        measures: CallbackMeasures | None = None,
    ) -> None:
        self.registry = registry
        limits, measures = limits or CallbackLimits(), measures or CallbackMeasures()
        occupant = LoopOccupant()
        self._stuck = StuckWatch(occupant)
        self._runners = {
            each.name: CallbackRunner(each, limits, measures.of(each.name), occupant)
            for each in registry.callbacks
        }
        self._inline = {stage: self._of(stage) for stage in INLINE_STAGES}
        self._notices = {
            stage: tuple(
                Notices(runner, measures.of(runner.callback.name), limits.max_waiting)
                for runner in self._of(stage)
            )
            for stage in Stage
            if stage not in INLINE_STAGES | DURABLE_STAGES
        }

    def _of(self, stage: Stage) -> tuple[CallbackRunner, ...]:
        return tuple(self._runners[each.name] for each in self.registry.at(stage))

    @property
    def listens(self) -> bool:
        """Whether any callback is about connections or associations."""
        return any(self.registry.at(stage) for stage in _ASSOCIATION_STAGES)

    @property
    def inspects(self) -> bool:
        """Whether any callback looks at objects before they are stored."""
        return bool(self._inline[Stage.RECEIVED])

    @property
    def wants_invalid(self) -> bool:
        """Whether any callback is told of refused data sets."""
        return bool(self._notices[Stage.INVALID])

    def subscribers(
        self, archive: Archive, events: StoredEvents, images: ReportedImages | None = None
    ) -> list[Subscriber]:
        """One for each callback of a durable stage. `images` are what detectors examine: without them there
        are none."""
        instances = StoredInstances(archive)
        found: list[Subscriber] = []
        for stage in DURABLE_STAGES:
            for runner in self._of(stage):
                terms = runner.callback.detector
                if terms is None:
                    found.append(CallbackSubscriber(runner, instances, events))
                elif images is not None:
                    found.append(DetectorSubscriber(runner, terms, archive, events, images))
        return found

    async def start(self) -> None:
        """Load what everybody would wait for at the first call, and watch over those in the event loop."""
        if self.registry.callbacks:
            await asyncio.to_thread(_load_what_instances_use)
        if any(each.run_in is RunIn.LOOP for each in self.registry.callbacks):
            self._stuck.start()

    async def close(self) -> None:
        """Let what has happened still be told, for a moment; then end threads and processes."""
        notices = [each for of_stage in self._notices.values() for each in of_stage]
        await asyncio.gather(*(each.drain(_CLOSE_SECONDS) for each in notices))
        for runner in self._runners.values():
            await runner.close()
        self._stuck.stop()

    # -- connections and associations: see AssociationListener --------------------------------------------

    def connected(self, peer_host: str, peer_port: int) -> None:
        """A socket was accepted."""
        self._tell_of_connection(Stage.CONNECTED, peer_host, peer_port)

    def disconnected(self, peer_host: str, peer_port: int) -> None:
        """A socket is gone."""
        self._tell_of_connection(Stage.DISCONNECTED, peer_host, peer_port)

    def judges(self, association: AssociationInfo) -> bool:
        """Whether a callback is to be asked about this association."""
        return any(_is_about(each.callback, association) for each in self._inline[Stage.ASSOCIATED])

    async def may_associate(self, association: AssociationInfo) -> AssociationVerdict:
        """Ask them, in their order; the first no is the answer."""
        facts = AssociationFacts.of(association)
        for runner in self._inline[Stage.ASSOCIATED]:
            if not _is_about(runner.callback, association):
                continue
            try:
                await runner.in_turn(facts)
            except Reject as verdict:
                _log_refusal(runner.callback, facts, verdict)
                return AssociationVerdict.NO
            except CallbackFailed:
                if runner.callback.on_failure is OnFailure.REFUSE:
                    return AssociationVerdict.CANNOT_SAY
        return AssociationVerdict.YES

    def accepted(self, association: AssociationInfo) -> None:
        """An association was accepted."""
        if self._notices[Stage.ACCEPTED]:
            self._tell_of_association(Stage.ACCEPTED, association, AssociationFacts.of(association))

    def ended(self, association: AssociationInfo, outcome: str, operations: int, dataset_bytes: int) -> None:
        """An association is over."""
        if self._notices[Stage.ENDED]:
            facts = AssociationFacts.of(association)
            end = AssociationEnd(facts, outcome, time.time_ns(), operations, dataset_bytes)
            self._tell_of_association(Stage.ENDED, association, end)

    def echoed(self, association: AssociationInfo) -> None:
        """A C-ECHO is being answered."""
        if self._notices[Stage.ECHO]:
            echo = Echo(AssociationFacts.of(association), time.time_ns())
            self._tell_of_association(Stage.ECHO, association, echo)

    def _tell_of_connection(self, stage: Stage, peer_host: str, peer_port: int) -> None:
        for notices in self._notices[stage]:
            notices.tell(ConnectionFacts(peer_host, peer_port, time.time_ns()))

    def _tell_of_association(self, stage: Stage, association: AssociationInfo, subject: Logged) -> None:
        for notices in self._notices[stage]:
            if _is_about(notices.runner.callback, association):
                notices.tell(subject)

    # -- objects ------------------------------------------------------------------------------------------

    async def inspect(self, instance: ReceivedInstance) -> None:
        """Show an object to the callbacks it is meant for, in their order, before any of it is stored.

        Raises Reject: a callback's own, which ends it, or 0xA700 where one failed that is not to be ignored.
        """
        for runner in self._inline[Stage.RECEIVED]:
            callback, association = runner.callback, instance.association
            if not callback.filter.matches(
                instance.sop_class_uid,
                instance.modality,
                association.calling_ae_title,
                association.called_ae_title,
            ):
                continue
            changes = instance.changes
            try:
                await runner.in_turn(instance)
            except Reject as verdict:
                _log_refusal(callback, instance, verdict)
                raise
            except CallbackFailed as failure:
                if callback.on_failure is OnFailure.REFUSE:
                    raise Reject(_FAILED_STATUS, "a callback failed", quarantine=False) from failure
                instance.changes = changes

    def refused(self, subject: InvalidInstance) -> None:
        """A data set was refused."""
        association = subject.association
        for notices in self._notices[Stage.INVALID]:
            chosen = notices.runner.callback.filter
            if chosen.matches_association(association.calling_ae_title, association.called_ae_title):
                notices.tell(subject)


_FAILED_STATUS = 0xA700
"""Out of resources (PS3.4 B.2.3): nothing is wrong with the object, and it may be sent again."""


def _load_what_instances_use() -> None:
    """Some tenths of a second of imports and dictionaries."""
    parse_key("PatientID")
    import_module("scp_server.objects.pydicom_bridge")


def _is_about(callback: Callback, association: AssociationInfo) -> bool:
    return callback.filter.matches_association(association.calling_ae_title, association.called_ae_title)


def _log_refusal(callback: Callback, subject: Logged, verdict: Reject) -> None:
    log.warning(
        "callback.rejected",
        callback=callback.name,
        stage=callback.stage.value,
        status=f"0x{verdict.status:04X}",
        error=peer_text(verdict.comment),
        **subject.log_fields,
    )


def describe(callbacks: Sequence[Callback], limits: CallbackLimits) -> list[dict[str, object]]:
    """Callbacks as plain data, with what holds for them."""
    return [
        {
            "name": each.name,
            "stage": each.stage.value,
            "function": each.import_name,
            "source": each.source,
            "order": each.order,
            "run_in": each.run_in.value,
            "timeout_seconds": limits.timeout_of(each),
            "concurrency": limits.concurrency_of(each),
            "memory_bytes": limits.memory_of(each) if each.run_in is RunIn.PROCESS else None,
            "on_failure": each.on_failure.value if each.stage in INLINE_STAGES else None,
            "sop_classes": list(each.filter.sop_classes),
            "modalities": list(each.filter.modalities),
            "calling_ae_titles": list(each.filter.calling_ae_titles),
            "called_ae_titles": list(each.filter.called_ae_titles),
            "algorithm": None if each.detector is None else list(each.detector.algorithm),
        }
        for each in callbacks
    ]
