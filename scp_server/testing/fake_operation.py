"""An operation without a network: what a service is given, and what it did with the data set, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from itertools import count

from scp_server.interfaces import AcceptedContext, AssociationInfo
from scp_server.protocol.events import Buffer
from scp_server.protocol.message import CStoreRQ, Message, Request
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.fake_sender import FakeSender

PRESSURE: tuple[()] = ()
"""A step of a `FakeDataset`: the reader is asked to hold nothing back."""

_message_ids = count(1)


class FakeDataset:
    """A `DatasetSource` that arrives in given steps: each is a list of chunks, or the exception that ends it.

    `peak_bytes` is the most that was held at once; `before_step` is called before each step arrives.
    Releasing more than was received is an AssertionError.
    """

    def __init__(self, steps: Iterable[Sequence[Buffer] | Exception]) -> None:
        self._steps = list(steps)
        self.received_bytes = 0
        self.released_bytes = 0
        self.peak_bytes = 0
        self.largest_step_bytes = 0
        self.before_step: Callable[[], None] = lambda: None

    @property
    def held_bytes(self) -> int:
        """Received and not yet released."""
        return self.received_bytes - self.released_bytes

    async def chunks(self) -> AsyncIterator[list[memoryview]]:
        """See `DatasetSource.chunks`."""
        for step in self._steps:
            await asyncio.sleep(0)
            self.before_step()
            if isinstance(step, Exception):
                raise step
            chunks = [memoryview(data) for data in step]
            size_bytes = sum(map(len, chunks))
            self.received_bytes += size_bytes
            self.largest_step_bytes = max(self.largest_step_bytes, size_bytes)
            self.peak_bytes = max(self.peak_bytes, self.held_bytes)
            yield chunks

    def release(self, size_bytes: int) -> None:
        """See `DatasetSource.release`."""
        if not 0 < size_bytes <= self.held_bytes:
            raise AssertionError(f"{size_bytes} bytes were released where {self.held_bytes} are held")
        self.released_bytes += size_bytes


class FakeOperation:
    """An `Operation` with a request, a context and a data set of the test's choice."""

    def __init__(
        self,
        request: Request,
        context: AcceptedContext,
        dataset: FakeDataset | None = None,
        *,
        calling_ae_title: str = "SCANNER",
        called_ae_title: str = "ARCHIVE",
        sender: FakeSender | None = None,
    ) -> None:
        self.request: Message = request
        self.sender = FakeSender() if sender is None else sender
        self.context = context
        self.dataset = FakeDataset([]) if dataset is None else dataset
        self.association = AssociationInfo(
            "fake-1", calling_ae_title, called_ae_title, "127.0.0.1", 104, "1.2.840.10008.3.1.1.1"
        )
        self.cancel_requested = False
        self.sent: list[Message] = []
        """Pending responses, in order."""
        self.sent_datasets: list[bytes | None] = []
        """Their data sets."""
        self.before_send: Callable[[], None] = lambda: None
        self._cancel_callbacks: list[Callable[[], None]] = []

    def when_cancelled(self, callback: Callable[[], None]) -> None:
        """See `Operation.when_cancelled`."""
        if self.cancel_requested:
            callback()
        else:
            self._cancel_callbacks.append(callback)

    def cancel(self) -> None:
        """What a C-CANCEL-RQ does."""
        self.cancel_requested = True
        for callback in self._cancel_callbacks:
            callback()

    async def send(self, response: Message, dataset: Buffer | None = None) -> None:
        """See `Operation.send`."""
        self.before_send()
        self.sent.append(response)
        self.sent_datasets.append(None if dataset is None else bytes(dataset))


def store_operation(
    stored: EncodedObject,
    steps: Iterable[Sequence[Buffer] | Exception] | None = None,
    *,
    sop_class_uid: str | None = None,
    sop_instance_uid: str | None = None,
    abstract_syntax: str | None = None,
    has_dataset: bool = True,
    calling_ae_title: str = "SCANNER",
) -> FakeOperation:
    """A C-STORE of `stored`, whose data set arrives at once unless `steps` say how; UIDs as said."""
    request = CStoreRQ(
        message_id=next(_message_ids),
        affected_sop_class_uid=stored.sop_class_uid if sop_class_uid is None else sop_class_uid,
        affected_sop_instance_uid=(stored.sop_instance_uid if sop_instance_uid is None else sop_instance_uid),
        has_dataset=has_dataset,
    )
    context = AcceptedContext(
        3, stored.sop_class_uid if abstract_syntax is None else abstract_syntax, stored.transfer_syntax_uid
    )
    dataset = FakeDataset([[stored.dataset]] if steps is None else steps)
    return FakeOperation(request, context, dataset, calling_ae_title=calling_ae_title)


def cut(dataset: bytes, size_bytes: int) -> list[list[bytes]]:
    """A data set in steps of one chunk of `size_bytes` each."""
    return [[dataset[start : start + size_bytes]] for start in range(0, len(dataset), size_bytes)]
