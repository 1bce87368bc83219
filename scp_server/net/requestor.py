"""The requestor's side: an association of our own making, and the DIMSE operations on it."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from scp_server.errors import ConnectFailed, LocalProtocolError
from scp_server.interfaces import AcceptedContext
from scp_server.net.cancellable import IDENTIFIER_TRANSFER_SYNTAXES, CancellableOperation
from scp_server.net.exchange import perform
from scp_server.net.finding import Finding, make_find_call, query_offers
from scp_server.net.requestor_connection import RequestorConfig, RequestorConnection
from scp_server.net.retrieving import Getting, Retrieval, make_get_call, make_move_call, receiver_config
from scp_server.objects.query_model import QueryModel, QueryOptions
from scp_server.protocol.items import (
    MAX_PRESENTATION_CONTEXTS,
    PresentationContextRQ,
    RoleSelection,
    UserIdentityRQ,
    UserInformation,
)
from scp_server.protocol.message import (
    VERIFICATION_SOP_CLASS_UID,
    CEchoRQ,
    CStoreRQ,
    Request,
    Response,
)
from scp_server.protocol.negotiation import (
    DICOM_APPLICATION_CONTEXT,
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    is_dicos_application_context,
)
from scp_server.protocol.pdu import AssociateRQ

if TYPE_CHECKING:
    from scp_server.net.receiving import ObjectSink, ReceivedObject
    from scp_server.objects.query import Query

__all__ = ["Requestor", "RequestorConfig", "StoreResult"]

_RETRIEVE_MODELS = tuple(model for model in QueryModel if model.levels)
DEFAULT_CONTEXTS: Final = tuple(
    (abstract_syntax, IDENTIFIER_TRANSFER_SYNTAXES)
    for abstract_syntax in (
        VERIFICATION_SOP_CLASS_UID,
        *(model.sop_class_uid for model in QueryModel),
        *(model.move_sop_class_uid for model in _RETRIEVE_MODELS),
    )
)
"""C-ECHO, C-FIND of every model, and C-MOVE."""
DEFAULT_GET_CONTEXTS: Final = tuple(
    (model.get_sop_class_uid, IDENTIFIER_TRANSFER_SYNTAXES) for model in _RETRIEVE_MODELS
)
"""Proposed besides where objects are to be received."""
_MESSAGE_IDS = 65_536
_CLOSE_SECONDS = 1.0
"""How long the peer may take to close the connection once the association is over, before it is reset."""


@dataclass(frozen=True, slots=True)
class StoreResult:
    """The answer to one C-STORE."""

    status: int
    error_comment: str = ""


class Requestor:
    """An association that we ask for, as an async context manager: released at its end, aborted on an error.

    `contexts` are (abstract syntax, transfer syntaxes) pairs; without them C-ECHO, C-FIND and C-MOVE are
    proposed. `receives` are further ones, of the objects that a C-GET may bring: we offer to be their SCP
    (PS3.4 C.5.3), and without `contexts` C-GET is proposed too. Together they are at most 128.
    `query_options` are offered for C-FIND; `agreed_query_options` says what the peer agreed on.
    `glued` sends command set and data set of a C-STORE in one PDV stream, as DICOS scanners do.
    One operation runs at a time.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        called_ae_title: str = "ANY-SCP",
        calling_ae_title: str = "SCP_SERVER_SCU",
        contexts: Sequence[tuple[str, Sequence[str]]] | None = None,
        receives: Sequence[tuple[str, Sequence[str]]] = (),
        query_options: QueryOptions | None = None,
        application_context_name: str = DICOM_APPLICATION_CONTEXT,
        user_identity: UserIdentityRQ | None = None,
        glued: bool = False,
        config: RequestorConfig | None = None,
    ) -> None:
        if contexts is None:
            contexts = (*DEFAULT_CONTEXTS, *(DEFAULT_GET_CONTEXTS if receives else ()))
        proposed = (*contexts, *receives)
        if len(proposed) > MAX_PRESENTATION_CONTEXTS:
            raise LocalProtocolError(
                f"{len(proposed)} presentation contexts are more than {MAX_PRESENTATION_CONTEXTS}"
            )
        self._received_ids = frozenset(range(2 * len(contexts) + 1, 2 * len(proposed) + 1, 2))
        self._glued = glued
        self._host = host
        self._port = port
        self._config = config or RequestorConfig()
        self._query_options = query_options or QueryOptions()
        self._request = AssociateRQ(
            called_ae_title=called_ae_title,
            calling_ae_title=calling_ae_title,
            application_context_name=application_context_name,
            presentation_contexts=tuple(
                PresentationContextRQ(2 * number + 1, abstract_syntax, tuple(transfer_syntaxes))
                for number, (abstract_syntax, transfer_syntaxes) in enumerate(proposed)
            ),
            user_information=UserInformation(
                maximum_length=self._config.limits.max_pdu_bytes,
                implementation_class_uid=IMPLEMENTATION_CLASS_UID,
                implementation_version_name=IMPLEMENTATION_VERSION_NAME,
                user_identity=user_identity,
                role_selections=tuple(
                    RoleSelection(uid, scu_role=False, scp_role=True)
                    for uid in dict.fromkeys(abstract_syntax for abstract_syntax, _ in receives)
                ),
                extended_negotiations=query_offers(contexts, self._query_options),
            ),
        )
        self._connection: RequestorConnection | None = None
        self._message_ids = itertools.count(1)
        self._operation: CancellableOperation[Any] | None = None
        """The last C-FIND, C-MOVE or C-GET that was sent."""

    async def __aenter__(self) -> Self:
        """Connect and associate. Raises ConnectFailed, AssociationRejected, AssociationAborted."""
        connection = RequestorConnection(self._config)
        connection.request_pdu = self._request
        try:
            await self._connect(connection)
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
            await self.close(abort=True)
            raise
        return self

    async def _connect(self, connection: RequestorConnection) -> None:
        try:
            async with asyncio.timeout(self._config.connect_seconds):
                await asyncio.get_running_loop().create_connection(lambda: connection, self._host, self._port)
        except BaseException:
            connection.never_made()
            raise

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release when all went well, abort when not."""
        await self.close(abort=exc is not None)

    @property
    def connection(self) -> RequestorConnection:
        """What it all happens on. Raises LocalProtocolError before the association was asked for."""
        return self._live()

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
        return (await self._perform(context, request)).status

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

    def find(
        self,
        query: Mapping[str, object] | Query,
        *,
        level: str | None = None,
        model: str = QueryModel.STUDY,
        limit: int | None = None,
    ) -> Finding:
        """C-FIND: `async for match in peer.find({"PatientName": "DOE*"}, level="STUDY")`.

        `query`, `level` and `model` are as `make_query` has them. After `limit` matches it is cancelled.
        Raises QueryError; LocalProtocolError when no context was accepted for the model. The loop raises
        FindFailed when the peer ends with another status than success, and AssociationError.
        """
        from scp_server.objects.query import make_query

        asked = make_query(query, level=level, model=model) if isinstance(query, Mapping) else query
        call = make_find_call(self._live(), self._config, asked, message_id=self._next_message_id())
        is_dicos = is_dicos_application_context(self._request.application_context_name)
        return Finding(call, self._take_turn, limit=limit, is_dicos=is_dicos)

    def move(
        self,
        query: Mapping[str, object] | Query,
        *,
        destination: str,
        level: str | None = None,
        model: str | None = None,
    ) -> Retrieval:
        """C-MOVE: have the peer send objects to the AE title `destination`, which it must know.

        `async for progress in moving` gives its counters; `moving.result` says how it ended. `query`, `level`
        and `model` are as `make_retrieve` has them. Raises QueryError; LocalProtocolError when no context was
        accepted for the model. The loop raises RetrieveFailed and AssociationError.
        """
        call = make_move_call(
            self._live(),
            self._config,
            _retrieve(query, level, model),
            destination=destination,
            message_id=self._next_message_id(),
        )
        return Retrieval(call, self._take_turn)

    def get(
        self,
        query: Mapping[str, object] | Query,
        *,
        receive: ObjectSink,
        level: str | None = None,
        model: str | None = None,
        on_object: Callable[[ReceivedObject], None] | None = None,
    ) -> Getting:
        """C-GET: have the peer send objects on this association, into the sink `receive`.

        As `move`; `on_object` hears of each object once it has been answered. Objects come on the contexts
        of `receives` that the peer accepted.
        """
        connection, asked = self._live(), _retrieve(query, level, model)
        call = make_get_call(connection, self._config, asked, message_id=self._next_message_id())
        config = receiver_config(self._config, asked, self._received_ids & connection.contexts.keys())
        return Getting(call, self._take_turn, receive, config, on_object)

    def agreed_query_options(self, model: str = QueryModel.STUDY) -> QueryOptions:
        """What of the offered `query_options` the peer agreed on for this model."""
        answer = self._live().extended_negotiations.get(QueryModel(model).sop_class_uid, b"")
        return self._query_options & QueryOptions.decode(answer)

    async def _take_turn(self, operation: CancellableOperation[Any] | None) -> None:
        """Wait until the last operation is out of the way. Raises LocalProtocolError while it is read."""
        last = self._operation
        if last is not None and last.running:
            if not last.given_up:
                raise LocalProtocolError(
                    "the answers to a request are being read on this association: read them to their end, "
                    "close it, or use another"
                )
            await last.aclose()
        self._operation = operation

    async def _perform(
        self,
        context: AcceptedContext,
        request: Request,
        dataset: AsyncIterable[bytes] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Response:
        connection = self._live()
        await self._take_turn(None)
        return await perform(
            connection,
            context,
            request,
            dataset,
            progress,
            response_seconds=self._config.response_seconds,
            glued=self._glued,
        )

    def _context(self, abstract_syntax: str, transfer_syntax: str | None) -> AcceptedContext:
        context = self.accepted_context(abstract_syntax, transfer_syntax)
        if context is None:
            raise LocalProtocolError(f"no presentation context was accepted for {abstract_syntax}")
        return context

    def _live(self) -> RequestorConnection:
        if self._connection is None:
            raise LocalProtocolError("the association has not been asked for")
        return self._connection

    def _next_message_id(self) -> int:
        return next(self._message_ids) % _MESSAGE_IDS

    async def close(self, *, abort: bool = False) -> None:
        """End the association and its socket; whatever happens here, the socket does not outlive it."""
        connection = self._live()
        try:
            if self._operation is not None and not abort:
                await self._operation.aclose()
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
        if self._operation is not None:
            await self._operation.settled()


def _retrieve(query: Mapping[str, object] | Query, level: str | None, model: str | None) -> Query:
    from scp_server.objects.retrieve import make_retrieve

    return make_retrieve(query, level=level, model=model) if isinstance(query, Mapping) else query
