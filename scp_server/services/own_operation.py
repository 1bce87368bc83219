"""A C-STORE that no peer asks for: how the server brings an object in through its own front door."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from scp_server.errors import LocalProtocolError
from scp_server.interfaces import AcceptedContext, AssociationInfo, DatasetSource, Sender
from scp_server.protocol.events import Buffer
from scp_server.protocol.message import CStoreRQ, Message

_MESSAGE_ID = 1
_CONTEXT_ID = 1


@dataclass(frozen=True, slots=True)
class OwnObject:
    """What is stored: its names, and how its data set is encoded. `abstract_syntax_uid` is its SOP class
    unless it came under another."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    abstract_syntax_uid: str = ""


class OwnOperation:
    """An `Operation` without a peer; `association` says from whom the object is."""

    def __init__(self, stored: OwnObject, dataset: DatasetSource, association: AssociationInfo) -> None:
        self.association = association
        self.context = AcceptedContext(
            _CONTEXT_ID, stored.abstract_syntax_uid or stored.sop_class_uid, stored.transfer_syntax_uid
        )
        self.request: Message = CStoreRQ(
            message_id=_MESSAGE_ID,
            affected_sop_class_uid=stored.sop_class_uid,
            affected_sop_instance_uid=stored.sop_instance_uid,
            has_dataset=True,
        )
        self.cancel_requested = False
        self._dataset = dataset

    @property
    def dataset(self) -> DatasetSource:
        """See `Operation.dataset`."""
        return self._dataset

    @property
    def sender(self) -> Sender:
        """See `Operation.sender`: there is no association. Raises LocalProtocolError."""
        raise LocalProtocolError("an object that no peer sends has no association to send on")

    def when_cancelled(self, callback: Callable[[], None]) -> None:
        """See `Operation.when_cancelled`: nobody can."""
        del callback

    async def send(self, response: Message, dataset: Buffer | None = None) -> None:
        """See `Operation.send`: a C-STORE has no pending responses (PS3.7 9.1.1)."""
        del response, dataset


class BytesDataset:
    """A `DatasetSource` of bytes that are there."""

    def __init__(self, dataset: bytes) -> None:
        self._dataset = dataset
        self.received_bytes = 0

    async def chunks(self) -> AsyncIterator[list[memoryview]]:
        """See `DatasetSource.chunks`."""
        self.received_bytes = len(self._dataset)
        yield [memoryview(self._dataset)]

    def release(self, size_bytes: int) -> None:
        """See `DatasetSource.release`: nothing of it counts against the budget of what peers send."""
