"""The requestor's side: an association of our own making, and the DIMSE operations on it."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, assert_never

from scp_server.errors import (
    AssociationAborted,
    AssociationError,
    AssociationLost,
    AssociationRejected,
    AssociationReleased,
    ConnectFailed,
    LocalProtocolError,
)
from scp_server.interfaces import AcceptedContext
from scp_server.net.association_transport import AssociationTransport, TransportConfig
from scp_server.protocol.association import Role, State
from scp_server.protocol.events import (
    Aborted,
    AssociateAccepted,
    AssociateRejected,
    AssociateRequested,
    CommandReceived,
    DatasetFragment,
    Event,
    ReleaseConfirmed,
    ReleaseRequested,
    TransportClosed,
)
from scp_server.protocol.items import ContextResult, PresentationContextRQ, UserIdentityRQ, UserInformation
from scp_server.protocol.limits import Limits
from scp_server.protocol.message import RESPONSE_BIT, CEchoRQ, CStoreRQ, Request, Response
from scp_server.protocol.negotiation import (
    DICOM_APPLICATION_CONTEXT,
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
)
from scp_server.protocol.pdu import AssociateRQ

_MESSAGE_IDS = 65_536
_CLOSE_SECONDS = 1.0
"""How long the peer may take to close the connection once the association is over, before it is reset."""


@dataclass(frozen=True, slots=True)
class RequestorConfig:
    """How we ask. Times in seconds."""

    limits: Limits = field(default_factory=lambda: Limits(idle_seconds=0.0))
    transport: TransportConfig = field(default_factory=TransportConfig)
    connect_seconds: float = 10.0
    response_seconds: float = 300.0
    """How long a response may take once its request is sent whole."""


@dataclass(frozen=True, slots=True)
class StoreResult:
    """The answer to one C-STORE."""

    status: int
    error_comment: str = ""


class _RequestorConnection(AssociationTransport):
    """Turns the association's events into results of whoever waits for them."""

    def __init__(self, config: RequestorConfig) -> None:
        super().__init__(Role.REQUESTOR, config.limits, config.transport)
        self.established: asyncio.Future[None] = self._loop.create_future()
        self.finished: asyncio.Future[None] = self._loop.create_future()
        """The association is over; `error` says how."""
        self.over: asyncio.Future[None] = self._loop.create_future()
        """The socket is gone too."""
        self.contexts: dict[int, AcceptedContext] = {}
        self.error: AssociationError | None = None
        self.request_pdu: AssociateRQ | None = None
        self._responses: dict[int, tuple[int, asyncio.Future[Response]]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the association as soon as the socket is there."""
        super().connection_made(transport)
        if self.request_pdu is None:
            raise LocalProtocolError("nothing to request")
        now = self._loop.time()
        self.association.request(self.request_pdu, now)
        self.association.transport_connected(now)
        self.flush()

    def handle_event(self, event: Event) -> None:
        """See `AssociationTransport`."""
        match event:
            case AssociateAccepted():
                self._accepted(event)
            case AssociateRejected():
                answer = event.answer
                self._fail(AssociationRejected(answer.result, answer.source, answer.reason))
            case CommandReceived():
                self._command_received(event)
            case DatasetFragment():
                pass
            case ReleaseRequested():
                if self.association.state in (State.STA8, State.STA9):
                    self.association.release_response(self._loop.time())
                self._fail(AssociationReleased("the peer released the association"))
            case ReleaseConfirmed():
                self._fail(AssociationReleased("released"))
            case Aborted():
                whose = "the peer" if event.by_peer else f"us ({event.text})"
                self._fail(
                    AssociationAborted(
                        event.source,
                        event.reason,
                        f"aborted by {whose}: source {event.source}, reason {event.reason}",
                    )
                )
            case TransportClosed():
                if self.established.done():
                    self._fail(AssociationLost("the connection ended"))
                else:
                    self._fail(ConnectFailed("the connection ended before the association was answered"))
            case AssociateRequested():
                raise LocalProtocolError("a requestor was asked for an association")
            case _:
                assert_never(event)

    def transport_ended(self) -> None:
        """Nobody waits any longer."""
        self._fail(AssociationLost("the connection ended"))
        if not self.over.done():
            self.over.set_result(None)

    def expect_response(self, request: Request) -> asyncio.Future[Response]:
        """A future of the response to `request`. Raises the error that ended the association."""
        if self.error is not None:
            raise self.error
        future: asyncio.Future[Response] = self._loop.create_future()
        self._responses[request.message_id] = request.command_field | RESPONSE_BIT, future
        return future

    def forget_response(self, message_id: int) -> None:
        """Nobody waits for it any more."""
        self._responses.pop(message_id, None)

    def _accepted(self, event: AssociateAccepted) -> None:
        proposed = self.request_pdu.presentation_contexts if self.request_pdu is not None else ()
        abstract_syntaxes = {context.context_id: context.abstract_syntax for context in proposed}
        self.contexts = {
            context.context_id: AcceptedContext(
                context.context_id, abstract_syntaxes[context.context_id], context.transfer_syntax
            )
            for context in event.answer.presentation_contexts
            if context.result == ContextResult.ACCEPTANCE and context.context_id in abstract_syntaxes
        }
        if not self.established.done():
            self.established.set_result(None)

    def _command_received(self, event: CommandReceived) -> None:
        message = event.message
        if isinstance(message, Response):
            command_field, future = self._responses.get(message.message_id_being_responded_to, (0, None))
            if future is not None and command_field == message.command_field:
                if not future.done():
                    future.set_result(message)
                return
        self.abort_association("the peer sent what nobody asked for")

    def _fail(self, error: AssociationError) -> None:
        if self.error is None:
            self.error = error
            self.finished.set_result(None)
        responses = (future for _, future in self._responses.values())
        waiting: list[asyncio.Future[Any]] = [self.established, *responses]
        for future in waiting:
            if not future.done():
                future.set_exception(self.error)
                future.exception()  # seen: nobody may be waiting


class Requestor:
    """An association that we ask for, as an async context manager: released at its end, aborted on an error.

    `contexts` are (abstract syntax, transfer syntaxes) pairs, at most 128.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        called_ae_title: str = "ANY-SCP",
        calling_ae_title: str = "SCP_SERVER_SCU",
        contexts: Sequence[tuple[str, Sequence[str]]],
        application_context_name: str = DICOM_APPLICATION_CONTEXT,
        user_identity: UserIdentityRQ | None = None,
        config: RequestorConfig | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._config = config or RequestorConfig()
        self._request = AssociateRQ(
            called_ae_title=called_ae_title,
            calling_ae_title=calling_ae_title,
            application_context_name=application_context_name,
            presentation_contexts=tuple(
                PresentationContextRQ(2 * number + 1, abstract_syntax, tuple(transfer_syntaxes))
                for number, (abstract_syntax, transfer_syntaxes) in enumerate(contexts)
            ),
            user_information=UserInformation(
                maximum_length=self._config.limits.max_pdu_bytes,
                implementation_class_uid=IMPLEMENTATION_CLASS_UID,
                implementation_version_name=IMPLEMENTATION_VERSION_NAME,
                user_identity=user_identity,
            ),
        )
        self._connection: _RequestorConnection | None = None
        self._message_ids = itertools.count(1)

    async def __aenter__(self) -> Self:
        """Connect and associate. Raises ConnectFailed, AssociationRejected, AssociationAborted."""
        connection = _RequestorConnection(self._config)
        connection.request_pdu = self._request
        try:
            async with asyncio.timeout(self._config.connect_seconds):
                await asyncio.get_running_loop().create_connection(lambda: connection, self._host, self._port)
        except TimeoutError as error:
            raise ConnectFailed(
                f"no connection to {self._host}:{self._port} within {self._config.connect_seconds:g} s"
            ) from error
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise ConnectFailed(f"no connection to {self._host}:{self._port}: {reason}") from error
        self._connection = connection
        try:
            await connection.established
        except BaseException:
            await self._close(abort=True)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release when all went well, abort when not."""
        await self._close(abort=exc is not None)

    @property
    def accepted_contexts(self) -> tuple[AcceptedContext, ...]:
        """What the peer accepted of what we proposed."""
        return tuple(self._live().contexts.values())

    def accepted_context(
        self, abstract_syntax: str, transfer_syntax: str | None = None
    ) -> AcceptedContext | None:
        """The accepted context of this abstract syntax (and transfer syntax), if there is one."""
        for context in self._live().contexts.values():
            if context.abstract_syntax == abstract_syntax and transfer_syntax in (
                None,
                context.transfer_syntax,
            ):
                return context
        return None

    async def echo(self) -> int:
        """C-ECHO; returns the status. Raises AssociationError."""
        message_id = self._next_message_id()
        request = CEchoRQ(message_id=message_id)
        context = self._context(request.affected_sop_class_uid, None)
        return (await self._perform(context, request, None, None)).status

    async def store(
        self,
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax_uid: str,
        dataset: AsyncIterable[bytes],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> StoreResult:
        """C-STORE a data set as it is, streamed; `progress` hears of each number of bytes handed on.

        Raises AssociationError; LocalProtocolError when no context was accepted for it.
        """
        context = self._context(sop_class_uid, transfer_syntax_uid)
        request = CStoreRQ(
            message_id=self._next_message_id(),
            has_dataset=True,
            affected_sop_class_uid=sop_class_uid,
            affected_sop_instance_uid=sop_instance_uid,
        )
        response = await self._perform(context, request, dataset, progress)
        return StoreResult(response.status, response.error_comment or "")

    async def _perform(
        self,
        context: AcceptedContext,
        request: Request,
        dataset: AsyncIterable[bytes] | None,
        progress: Callable[[int], None] | None,
    ) -> Response:
        connection = self._live()
        answer = connection.expect_response(request)
        try:
            connection.association.send_command(
                context.context_id, request, asyncio.get_running_loop().time()
            )
            try:
                if dataset is not None:
                    await self._send_dataset(connection, context, dataset, progress)
                connection.flush()
                return await self._answer(answer)
            except BaseException as error:
                # Half a message, or an answer that nobody waits for: nothing can follow it.
                if connection.error is None:
                    connection.abort_association(f"given up: {type(error).__name__}")
                raise
        finally:
            connection.forget_response(request.message_id)

    async def _answer(self, answer: asyncio.Future[Response]) -> Response:
        try:
            async with asyncio.timeout(self._config.response_seconds):
                return await answer
        except TimeoutError as error:
            raise AssociationLost(f"no response within {self._config.response_seconds:g} s") from error

    async def _send_dataset(
        self,
        connection: _RequestorConnection,
        context: AcceptedContext,
        dataset: AsyncIterable[bytes],
        progress: Callable[[int], None] | None,
    ) -> None:
        """Send one chunk behind, so that the last one is known to be the last."""
        loop = asyncio.get_running_loop()
        waiting = b""
        async for chunk in dataset:
            if waiting:
                if connection.error is not None:
                    raise connection.error
                connection.association.send_dataset(context.context_id, waiting, loop.time(), last=False)
                connection.flush()
                await connection.writable()
                if progress is not None:
                    progress(len(waiting))
            waiting = chunk
        if connection.error is not None:
            raise connection.error
        connection.association.send_dataset(context.context_id, waiting, loop.time(), last=True)
        if progress is not None:
            progress(len(waiting))

    def _context(self, abstract_syntax: str, transfer_syntax: str | None) -> AcceptedContext:
        context = self.accepted_context(abstract_syntax, transfer_syntax)
        if context is None:
            raise LocalProtocolError(f"no presentation context was accepted for {abstract_syntax}")
        return context

    def _live(self) -> _RequestorConnection:
        if self._connection is None:
            raise LocalProtocolError("the association has not been asked for")
        return self._connection

    def _next_message_id(self) -> int:
        return next(self._message_ids) % _MESSAGE_IDS

    async def _close(self, *, abort: bool) -> None:
        """End the association and its socket; whatever happens here, the socket does not outlive it."""
        connection = self._live()
        try:
            if connection.error is None and not abort:
                connection.association.release(asyncio.get_running_loop().time())
                connection.flush()
                # The association's own timer bounds the wait for the answer.
                await asyncio.wait((connection.finished,))
            if connection.error is None:
                connection.abort_association("the requestor gives up")
            await asyncio.wait((connection.over,), timeout=_CLOSE_SECONDS)
        finally:
            if not connection.over.done():
                connection.reset()
        await asyncio.wait((connection.over,))
