"""C-MOVE and C-GET without a network: a real archive, destinations and requestors of a test's choice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from scp_server.index.store import SqlIndex
from scp_server.interfaces import AcceptedContext, FinalResponse, Transcoding
from scp_server.observability.measures import RetrieveMeasures
from scp_server.pipeline.sending import Source
from scp_server.protocol.message import CGetRQ, CMoveRQ, SubOperationsResponse
from scp_server.services.query_retrieve.retrieve import RetrieveConfig, RetrieveService
from scp_server.services.query_retrieve.suboperations import SubOperationsConfig
from scp_server.storage.filesystem import FilesystemStorage
from scp_server.testing.archive import Archive
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.fake_operation import FakeDataset, FakeOperation
from scp_server.testing.fake_sender import FakeDestinations, FakeRemote, FakeSender

STUDY_ROOT = "1.2.840.10008.5.1.4.1.2.2"
MESSAGE_ID = 7
EXPLICIT = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN

Counts = tuple[int | None, int | None, int | None, int | None]


def counts(response: SubOperationsResponse) -> Counts:
    """Remaining, completed, failed and warning; None is not sent."""
    return (
        response.number_of_remaining_suboperations,
        response.number_of_completed_suboperations,
        response.number_of_failed_suboperations,
        response.number_of_warning_suboperations,
    )


@dataclass(frozen=True, slots=True)
class Retrieved:
    """How a retrieve was answered."""

    final: SubOperationsResponse
    failed_uids: list[str] | None
    """Failed SOP Instance UID List; None where the final response has no data set."""
    pending: list[SubOperationsResponse]

    @property
    def outcome(self) -> tuple[int, Counts]:
        """The final status and its counts."""
        return self.final.status, counts(self.final)


def retrieve_operation(
    elements: Iterable[Element],
    *,
    get: bool = False,
    root: str = STUDY_ROOT,
    destination: str = "DEST",
    priority: int = 0,
    sender: FakeSender | None = None,
    calling_ae_title: str = "WORKSTATION",
    syntax: TransferSyntax = EXPLICIT,
) -> FakeOperation:
    """A C-MOVE, or a C-GET, with an identifier of these elements."""
    uid = f"{root}.{3 if get else 2}"
    request: CGetRQ | CMoveRQ
    if get:
        request = CGetRQ(
            message_id=MESSAGE_ID, has_dataset=True, affected_sop_class_uid=uid, priority=priority
        )
    else:
        request = CMoveRQ(
            message_id=MESSAGE_ID,
            has_dataset=True,
            affected_sop_class_uid=uid,
            move_destination=destination,
            priority=priority,
        )
    data = DatasetEncoder(syntax).encode(elements)
    return FakeOperation(
        request,
        AcceptedContext(1, uid, syntax.value),
        FakeDataset([[data]]),
        sender=sender,
        calling_ae_title=calling_ae_title,
    )


def study(*uids: str) -> list[Element]:
    """An identifier that names studies."""
    return [Element(0x00080052, "CS", "STUDY"), Element(0x0020000D, "UI", "\\".join(uids))]


def contexts_for(objects: Iterable[EncodedObject]) -> tuple[AcceptedContext, ...]:
    """A context for each SOP class and stored transfer syntax of objects."""
    kinds = dict.fromkeys((each.sop_class_uid, each.transfer_syntax_uid) for each in objects)
    return tuple(AcceptedContext(2 * n + 3, *kind) for n, kind in enumerate(kinds))


@dataclass(slots=True)
class RetrieveBench:
    """A service over objects that are stored; `remote` is the destination called DEST.

    Every sub-operation is followed by a pending response, and nothing else is.
    """

    archive: Archive
    objects: Sequence[EncodedObject]
    sub_operations: SubOperationsConfig = field(
        default_factory=lambda: SubOperationsConfig(
            associations=1, pending_seconds=3_600.0, least_pending_seconds=0.0
        )
    )
    config: RetrieveConfig = field(default_factory=RetrieveConfig)
    transcoding: Transcoding | None = None
    remote: FakeRemote = field(default_factory=FakeRemote)
    measures: RetrieveMeasures = field(default_factory=RetrieveMeasures)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _opened: tuple[FilesystemStorage, SqlIndex] | None = None

    @classmethod
    async def of(cls, data_dir: Path, objects: Sequence[EncodedObject]) -> Self:
        """Store the objects."""
        archive = Archive.at(data_dir)
        statuses = await archive.store(objects)
        if any(statuses):
            raise AssertionError(f"not all objects were stored: {statuses}")
        return cls(archive, objects)

    async def __aenter__(self) -> Self:
        self._opened = await self._stack.enter_async_context(self.archive.opened())
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._stack.aclose()

    @property
    def storage(self) -> FilesystemStorage:
        """The archive's, opened."""
        return self._open()[0]

    @property
    def index(self) -> SqlIndex:
        """The archive's, opened."""
        return self._open()[1]

    def _open(self) -> tuple[FilesystemStorage, SqlIndex]:
        if self._opened is None:
            raise AssertionError("the bench is not open")
        return self._opened

    def service(self) -> RetrieveService:
        """With the settings of this moment."""
        config = replace(self.config, sub_operations=self.sub_operations)
        source = Source(self.storage, self.transcoding)
        return RetrieveService(
            self.index, source, FakeDestinations({"DEST": self.remote}), config, self.measures
        )

    async def perform(self, operation: FakeOperation) -> Retrieved:
        """Have the service perform an operation. Every response's counts are held against the total."""
        service = self.service()
        answer = await (service.get if isinstance(operation.request, CGetRQ) else service.move)(operation)
        final, dataset = (
            (answer.response, answer.dataset) if isinstance(answer, FinalResponse) else (answer, None)
        )
        pending = [message for message in operation.sent if isinstance(message, SubOperationsResponse)]
        if not isinstance(final, SubOperationsResponse) or len(pending) != len(operation.sent):
            raise AssertionError("a response of another kind")
        if final.has_dataset is (dataset is None) or any(message.has_dataset for message in pending):
            raise AssertionError("a data set where there is none, or none where there is one")
        totals = {sum(count or 0 for count in counts(message)) for message in pending}
        if len(totals) > 1 or (totals and totals != {sum(count or 0 for count in counts(final))}):
            raise AssertionError(f"counts that add up to {totals}, and in the end to {counts(final)}")
        return Retrieved(final, None if dataset is None else _listed(dataset), pending)


def _listed(dataset: bytes) -> list[str]:
    """The values of (0008,0058) in explicit VR little endian, which is all that the data set has."""
    if dataset[:6] != b"\x08\x00\x58\x00UI" or int.from_bytes(dataset[6:8], "little") != len(dataset) - 8:
        raise AssertionError("not a Failed SOP Instance UID List")
    return dataset[8:].rstrip(b"\0").decode("ascii").split("\\")
