"""Calls a callback for objects that are stored already, or says what it would do.

Only reads, the index and the files, and so works beside a running server, in a process of its own: what the
callback does there is not the server's affair, and nothing of it reaches the outbox.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from enum import StrEnum

from scp_server.errors import ConfigurationError, OperationRefused, StorageError
from scp_server.index.base import Index, PartRecord, Scope
from scp_server.objects.differences import differences
from scp_server.objects.raw_header import RawHeader
from scp_server.objects.summary import summarize
from scp_server.pipeline.callback import Callback, DetectorTerms
from scp_server.pipeline.deliveries import Delivery, EventKind, LoggedEvent
from scp_server.pipeline.detecting import examination_of
from scp_server.pipeline.instances import Archive, ReceivedInstance, StoredInstance
from scp_server.pipeline.running import CallbackFailed, CallbackRunner
from scp_server.pipeline.stages import Stage
from scp_server.pipeline.subjects import AssociationFacts, Times
from scp_server.pipeline.verdicts import NotDelivered, Reject, Undeliverable
from scp_server.reports.report import TDR_STORAGE

STAGES = frozenset({Stage.RECEIVED, Stage.STORED})
"""Those whose callbacks can be replayed: the others are about what is over."""

HeaderFilter = Callable[[RawHeader], bool]


class ReplayOutcome(StrEnum):
    """What a callback does, or would do, with one object."""

    WOULD_BE_CALLED = "would be called"
    """It is meant for the object; what it would do is not known without doing it."""
    ACCEPTED = "accepted"
    CHANGED = "changed"
    REJECTED = "rejected"
    CALLED = "called"
    FAILED = "failed"
    EXAMINED = "examined"


@dataclass(frozen=True, slots=True)
class Replayed:
    """One object and its outcome. `detail` are lines of text: a reason, or one for each change."""

    part: PartRecord
    outcome: ReplayOutcome
    detail: tuple[str, ...] = ()

    @property
    def is_trouble(self) -> bool:
        """Whether the callback failed."""
        return self.outcome is ReplayOutcome.FAILED


def check_replay(callback: Callback, *, apply: bool) -> None:
    """Raises ConfigurationError for a callback that cannot be replayed, or not applied."""
    if callback.detector is not None:
        if apply:
            raise ConfigurationError(
                f"callback {callback.name}: --apply is not for detectors, whose reports the server alone "
                "stores; without it is shown what they find"
            )
        return
    if callback.stage not in STAGES:
        raise ConfigurationError(
            f"callback {callback.name}: stage {callback.stage} is over; only callbacks of the stages "
            f"{Stage.RECEIVED} and {Stage.STORED} can be replayed"
        )
    if apply and callback.stage is Stage.RECEIVED:
        raise ConfigurationError(
            f"callback {callback.name}: --apply is for the stage {Stage.STORED}; what is stored can be "
            "neither refused nor changed any more, and without it is shown what the callback says"
        )


class Replay:
    """One callback over the parts of an archive. `apply` calls a `stored` one; a `received` one is asked."""

    def __init__(
        self, runner: CallbackRunner, index: Index, archive: Archive, *, apply: bool = False
    ) -> None:
        check_replay(runner.callback, apply=apply)
        self._runner = runner
        self._index = index
        self._archive = archive
        self._apply = apply
        self.looked_at = 0
        """Parts so far, also those that the callback is not meant for."""

    async def run(self, scope: Scope | None, chosen: HeaderFilter | None) -> AsyncGenerator[Replayed, None]:
        """Every part of `scope` (None is all) that `chosen` takes and the callback is meant for."""
        async for part in self._parts(scope):
            self.looked_at += 1
            header = None if chosen is None else await self._header(part)
            if header is not None and chosen is not None and not chosen(header):
                continue
            replayed = await self._replay(part, header)
            if replayed is not None:
                yield replayed

    async def _parts(self, scope: Scope | None) -> AsyncIterator[PartRecord]:
        if scope is not None:
            async for page in self._index.parts_below(scope):
                for part in page:
                    yield part
            return
        page = await self._index.list_parts()
        while page:
            for part in page:
                yield part
            page = await self._index.list_parts(after=page[-1].location)

    async def _header(self, part: PartRecord) -> RawHeader:
        packed = await self._index.header(part.location)
        if packed is None:
            raise StorageError(f"{part.location} was deleted meanwhile")
        return RawHeader.unpack(packed)

    async def _replay(self, part: PartRecord, header: RawHeader | None) -> Replayed | None:
        if header is None:
            header = await self._header(part)
        summary = summarize(header)
        if not self._runner.callback.filter.matches(
            part.sop_class_uid, summary.modality, part.calling_ae_title, part.called_ae_title
        ):
            return None
        terms = self._runner.callback.detector
        if terms is not None:
            return await self._examined(part, terms)
        if self._runner.callback.stage is Stage.STORED:
            return await self._stored(part, summary.modality)
        times = Times(part.received_at_ns, part.received_at_ns)
        instance = ReceivedInstance(
            _association(part),
            times,
            summary,
            header,
            part.transfer_syntax_uid,
            part.size_bytes - part.dataset_offset_bytes,
        )
        try:
            await self._runner.run(instance)
        except Reject as verdict:
            return Replayed(part, ReplayOutcome.REJECTED, (f"0x{verdict.status:04X} {verdict.comment}",))
        except CallbackFailed as failure:
            return Replayed(part, ReplayOutcome.FAILED, (failure.detail,))
        changes = instance.changes
        if changes is None:
            return Replayed(part, ReplayOutcome.ACCEPTED)
        try:
            lines = differences(header, changes)
        except OperationRefused as refusal:
            return Replayed(part, ReplayOutcome.REJECTED, (f"0x{refusal.status:04X} {refusal.comment}",))
        return Replayed(part, ReplayOutcome.CHANGED if lines else ReplayOutcome.ACCEPTED, tuple(lines))

    async def _examined(self, part: PartRecord, terms: DetectorTerms) -> Replayed | None:
        """What a detector finds in an image, with all its parts; nothing for any part but the first."""
        if part.part_number != 1 or part.sop_class_uid == TDR_STORAGE:
            return None
        parts = [
            one
            for one in await self._index.parts(part.sop_instance_uid)
            if one.study_instance_uid == part.study_instance_uid
        ]
        try:
            examination = examination_of(self._runner.callback.name, terms, parts, self._archive)
            await self._runner.run(examination)
        except CallbackFailed as failure:
            return Replayed(part, ReplayOutcome.FAILED, (failure.detail,))
        except (NotDelivered, Undeliverable, Reject) as verdict:
            return Replayed(part, ReplayOutcome.FAILED, (str(verdict),))
        report = examination.report
        if report is None:
            return Replayed(part, ReplayOutcome.FAILED, ("the detector's process gave no report",))
        found = f"{report.decision}, {report.total_objects} objects, {report.alarm_objects} of alarm"
        return Replayed(part, ReplayOutcome.EXAMINED, (found,))

    async def _stored(self, part: PartRecord, modality: str | None) -> Replayed:
        if not self._apply:
            return Replayed(part, ReplayOutcome.WOULD_BE_CALLED)
        instance = _stored_instance(part, modality, self._archive)
        further = (
            (_delivery(part, self._runner.callback.name),) if self._runner.callback.takes_delivery else ()
        )
        try:
            await self._runner.run(instance, *further)
        except CallbackFailed as failure:
            return Replayed(part, ReplayOutcome.FAILED, (failure.detail,))
        except (NotDelivered, Undeliverable, Reject) as verdict:
            return Replayed(part, ReplayOutcome.FAILED, (str(verdict),))
        return Replayed(part, ReplayOutcome.CALLED)


def _association(part: PartRecord) -> AssociationFacts:
    """What the index still knows of the association that brought a part."""
    return AssociationFacts(
        association_id="",
        calling_ae_title=part.calling_ae_title,
        called_ae_title=part.called_ae_title,
        peer_host="",
        peer_port=0,
        peer_name=None,
        is_dicos=False,
    )


def _stored_instance(part: PartRecord, modality: str | None, archive: Archive) -> StoredInstance:
    return StoredInstance(
        association=_association(part),
        times=Times(part.received_at_ns),
        study_instance_uid=part.study_instance_uid,
        series_instance_uid=part.series_instance_uid,
        sop_instance_uid=part.sop_instance_uid,
        sop_class_uid=part.sop_class_uid,
        modality=modality,
        transfer_syntax_uid=part.transfer_syntax_uid,
        part_number=part.part_number,
        size_bytes=part.size_bytes,
        digest=part.digest.hex(),
        location=part.location,
        archive=archive,
    )


def _delivery(part: PartRecord, name: str) -> Delivery:
    """For a callback that wants one: it may have had this object before."""
    event = LoggedEvent(0, EventKind.OBJECT_STORED, part.received_at_ns, "", part.location, "", {})
    return Delivery(event, 1, True, f"replay:{part.arrival_id}:callback:{name}")
