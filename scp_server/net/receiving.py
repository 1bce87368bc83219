"""What a C-GET of ours brings: the peer's C-STORE requests on our own association, streamed into a sink."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from scp_server.errors import AssociationError, OperationRefused, ProtocolError, StorageError
from scp_server.interfaces import AcceptedContext
from scp_server.net.dataset_stream import DatasetStream
from scp_server.objects.uids import clean_uid
from scp_server.observability.logs import get_logger
from scp_server.protocol.message import CStoreRQ, response_to
from scp_server.protocol.status import Status

if TYPE_CHECKING:
    from scp_server.net.requestor_connection import RequestorConnection

log = get_logger(__name__)

_SINK_BEHIND: Final = "sink_behind"
_OBJECT_UNANSWERED: Final = "object_unanswered"
"""Why reading stops (`AssociationTransport.stop_reading`)."""


class ObjectSinkWriter(Protocol):
    """Takes one object. After `commit` or `abort` it is of no more use."""

    async def write(self, chunks: Sequence[memoryview]) -> None:
        """The data set's next bytes, in the context's transfer syntax. Views stay valid as long as kept."""
        ...

    async def commit(self) -> None:
        """The data set is whole: once this returns, the peer is told success."""
        ...

    async def abort(self) -> None:
        """It will not be whole, or something raised: leave nothing."""
        ...


class ObjectSink(Protocol):
    """Where objects go. OperationRefused from it and its writers is the peer's answer for that object;
    StorageError and OSError are answered 0xA700, anything else 0x0110."""

    async def begin(self, request: CStoreRQ, context: AcceptedContext) -> ObjectSinkWriter:
        """An object begins. Its UIDs are the peer's own text."""
        ...


@dataclass(frozen=True, slots=True)
class ReceivedObject:
    """One C-STORE of the peer, and what it was answered. UIDs are the peer's own text.

    `status` is None where the association ended first; `error_comment` then says how.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    dataset_bytes: int
    status: int | None
    error_comment: str = ""


@dataclass(frozen=True, slots=True)
class ReceiverConfig:
    """What is taken. `sop_instance_uids` empty means any; a bound of 0 is none."""

    contexts: frozenset[int]
    sop_instance_uids: frozenset[str]
    max_objects: int
    max_bytes: int
    waiting_bytes: int


@dataclass(slots=True)
class _Incoming:
    request: CStoreRQ
    context: AcceptedContext
    dataset: DatasetStream


class ObjectReceiver:
    """Takes the peer's C-STORE requests one after another (`RequestReceiver`), and answers each.

    Of data sets no more than `waiting_bytes` are held. `expected` says whether requests may still come: one
    after the final response aborts the association. `performing(bool)` hears when objects are being taken
    and when not, `received` of each object, and `limit_reached`, once, why no more will be taken.
    """

    def __init__(
        self,
        connection: RequestorConnection,
        config: ReceiverConfig,
        sink: ObjectSink,
        *,
        expected: Callable[[], bool],
        performing: Callable[[bool], None],
        received: Callable[[ReceivedObject], None],
        limit_reached: Callable[[str], None],
    ) -> None:
        self._connection = connection
        self._config = config
        self._sink = sink
        self._expected = expected
        self._performing = performing
        self._received = received
        self._limit_reached = limit_reached
        self._waiting: deque[_Incoming] = deque()
        self._held_bytes = 0
        self._objects = 0
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._refusing = ""

    # -- RequestReceiver ----------------------------------------------------------------------------------

    def request_received(self, context_id: int, request: CStoreRQ) -> None:
        """See `RequestReceiver`."""
        if not self._expected():
            raise ProtocolError("the peer sent a C-STORE-RQ after the final response")
        if not request.has_dataset:
            raise ProtocolError("the peer sent a C-STORE-RQ without a data set")
        incoming = _Incoming(
            request, self._connection.contexts[context_id], DatasetStream(self._released, ended=False)
        )
        self._waiting.append(incoming)
        if len(self._waiting) > 1:
            # A peer that does not wait for our answer: it is read no further before it has it.
            self._connection.stop_reading(_OBJECT_UNANSWERED)
        if self._task is None or self._task.done():
            self._performing(True)
            self._task = asyncio.get_running_loop().create_task(self._run(), name="objects received")

    def fragment_received(self, data: memoryview, *, last: bool) -> None:
        """See `RequestReceiver`."""
        if not self._waiting:
            return
        self._held_bytes += len(data)
        self._waiting[-1].dataset.push(data, last=last)
        if self._held_bytes > self._config.waiting_bytes:
            self._connection.stop_reading(_SINK_BEHIND)

    def fail(self, error: AssociationError) -> None:
        """See `RequestReceiver`."""
        for incoming in self._waiting:
            incoming.dataset.fail(error)

    # -- for the operation --------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """An object is being taken."""
        return bool(self._waiting)

    def refuse(self, why: str) -> None:
        """Take no object that has not begun; those are answered 0xA700."""
        self._refusing = self._refusing or why

    async def settled(self) -> None:
        """Wait until every object that was begun has been answered, or the association is over."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        """Own everything that waits until there is nothing; ends early with the association."""
        try:
            while self._waiting:
                incoming = self._waiting[0]
                refusal = self._refusal(incoming.request, incoming.context)
                try:
                    status, comment = refusal or await self._store(incoming)
                    await incoming.dataset.drain()
                    self._answer(incoming, status, comment)
                except AssociationError as error:
                    for unanswered in self._waiting:
                        self._note(unanswered, None, str(error))
                    break
                self._waiting.popleft()
                if len(self._waiting) <= 1:
                    self._connection.go_on_reading(_OBJECT_UNANSWERED)
        except Exception:
            log.exception("retrieval.failed")
            self._connection.abort_association("internal error")
        finally:
            for incoming in self._waiting:
                incoming.dataset.discard()
            self._waiting.clear()
            self._performing(False)

    def _refusal(self, request: CStoreRQ, context: AcceptedContext) -> tuple[int, str] | None:
        """Why an object is not taken, as status and comment."""
        self._objects += 1
        if self._objects > self._config.max_objects > 0:
            self._limit(f"more than {self._config.max_objects} objects")
        if self._refusing:
            return Status.OUT_OF_RESOURCES, self._refusing
        if context.context_id not in self._config.contexts:
            return Status.SOP_CLASS_NOT_SUPPORTED, "not a context of a C-GET"
        if clean_uid(request.affected_sop_class_uid) != context.abstract_syntax:
            return Status.SOP_CLASS_NOT_SUPPORTED, "another SOP class than its context's"
        asked = self._config.sop_instance_uids
        if asked and clean_uid(request.affected_sop_instance_uid) not in asked:
            return Status.DATASET_DOES_NOT_MATCH_SOP_CLASS, "not an instance that was asked for"
        return None

    def _limit(self, why: str) -> None:
        if not self._refusing:
            self._refusing = why
            self._limit_reached(why)

    async def _store(self, incoming: _Incoming) -> tuple[int, str]:
        """Hand one object to the sink; the one place where what goes wrong becomes a status."""
        try:
            writer = await self._sink.begin(incoming.request, incoming.context)
            try:
                async for chunks in incoming.dataset.chunks():
                    size_bytes = sum(map(len, chunks))
                    self._bytes += size_bytes
                    if self._bytes > self._config.max_bytes > 0:
                        self._limit(f"more than {self._config.max_bytes} bytes")
                        raise OperationRefused(Status.OUT_OF_RESOURCES, self._refusing)
                    if chunks:
                        await writer.write(chunks)
                    incoming.dataset.release(size_bytes)
                await writer.commit()
            except BaseException:
                await writer.abort()
                raise
        except OperationRefused as error:
            return error.status, error.comment
        except (StorageError, OSError) as error:
            return Status.OUT_OF_RESOURCES, str(error)
        except AssociationError:
            raise
        except Exception:
            log.exception("retrieval.failed")
            return Status.PROCESSING_FAILURE, "internal error"
        return Status.SUCCESS, ""

    def _answer(self, incoming: _Incoming, status: int, comment: str) -> None:
        connection = self._connection
        if connection.error is not None:
            raise connection.error
        response = response_to(incoming.request, status, comment=comment or None)
        now = asyncio.get_running_loop().time()
        connection.association.send_command(incoming.context.context_id, response, now)
        # Before anything that follows the answer can come.
        self._note(incoming, status, comment)
        connection.flush()

    def _note(self, incoming: _Incoming, status: int | None, comment: str) -> None:
        self._received(
            ReceivedObject(
                clean_uid(incoming.request.affected_sop_class_uid),
                clean_uid(incoming.request.affected_sop_instance_uid),
                incoming.context.transfer_syntax,
                incoming.dataset.received_bytes,
                status,
                comment,
            )
        )

    def _released(self, size_bytes: int) -> None:
        self._held_bytes -= size_bytes
        if self._held_bytes <= self._config.waiting_bytes // 2:
            self._connection.go_on_reading(_SINK_BEHIND)
