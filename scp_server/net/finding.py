"""A C-FIND that we ask for: its matches as they come, and how it ended (PS3.4 C.4.1)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scp_server.errors import FindFailed, ProtocolError, QueryError
from scp_server.net.cancellable import Call, CancellableOperation, identifier_context
from scp_server.net.responses import Answer
from scp_server.objects.match import Match
from scp_server.objects.query_model import QueryModel, QueryOptions
from scp_server.objects.uids import transfer_syntax
from scp_server.protocol.items import SOPClassExtendedNegotiation
from scp_server.protocol.message import CFindRQ
from scp_server.protocol.status import Status

if TYPE_CHECKING:
    from scp_server.net.requestor_connection import RequestorConfig, RequestorConnection
    from scp_server.objects.query import Query


@dataclass(frozen=True, slots=True)
class FindResult:
    """How a C-FIND ended. `status` is None where the association ended before the peer said it."""

    status: int | None
    matches: int
    """How many were handed out."""
    all_keys_supported: bool
    """False when at least one of them came with 0xFF01: an optional key was not supported or not matched."""
    cancelled: bool
    """We stopped it: by a limit, or because the caller wanted no more."""


def query_offers(
    contexts: Sequence[tuple[str, Sequence[str]]], options: QueryOptions
) -> tuple[SOPClassExtendedNegotiation, ...]:
    """What extended negotiation offers for the models among the proposed contexts (PS3.7 D.3.3.5)."""
    if not options.names():
        return ()
    models = {model.sop_class_uid for model in QueryModel}
    proposed = dict.fromkeys(abstract_syntax for abstract_syntax, _ in contexts if abstract_syntax in models)
    return tuple(SOPClassExtendedNegotiation(uid, options.encode()) for uid in proposed)


def make_find_call(
    connection: RequestorConnection,
    config: RequestorConfig,
    query: Query,
    *,
    message_id: int,
) -> Call:
    """Encode a query for the context that was accepted for its model.

    Raises LocalProtocolError where there is none in a transfer syntax that we write; QueryError.
    """
    from scp_server.objects.query_encoding import encode_identifier

    sop_class_uid = query.model.sop_class_uid
    context = identifier_context(connection, sop_class_uid)
    return Call(
        connection=connection,
        config=config,
        context=context,
        request=CFindRQ(message_id=message_id, has_dataset=True, affected_sop_class_uid=sop_class_uid),
        identifier=encode_identifier(query, transfer_syntax(context.transfer_syntax)),
    )


class Finding(CancellableOperation[Match]):
    """A C-FIND. It is sent when its matches are first asked for, and they can be asked for once.

    `limit` matches are enough: then it is cancelled, as when the loop is left early.
    """

    def __init__(
        self,
        call: Call,
        take_turn: Callable[[CancellableOperation[Any]], Awaitable[None]],
        *,
        limit: int | None,
        is_dicos: bool,
    ) -> None:
        """See `CancellableOperation`. Raises QueryError for a limit below 1."""
        if limit is not None and limit < 1:
            raise QueryError("the limit of matches is at least 1")
        super().__init__(call, take_turn)
        self._limit = limit
        self._is_dicos = is_dicos
        self._matches = 0
        self._all_keys_supported = True
        self._result: FindResult | None = None

    @property
    def result(self) -> FindResult | None:
        """How it ended; None until the loop over its matches has."""
        return self._result

    def _has_enough(self) -> bool:
        return self._limit is not None and self._matches >= self._limit

    def _pending(self, answer: Answer) -> Match:
        if not answer.dataset:
            raise ProtocolError("the peer sent a pending C-FIND-RSP without an identifier")
        supported = answer.response.status != Status.PENDING_OPTIONAL_KEYS_NOT_SUPPORTED
        self._matches += 1
        self._all_keys_supported = self._all_keys_supported and supported
        return Match(answer.dataset, self._call.context.transfer_syntax, supported, self._is_dicos)

    def _ended(self, final: Answer | None) -> None:
        status = None if final is None else final.response.status
        self._result = FindResult(status, self._matches, self._all_keys_supported, self._cancelled)

    def _raise_for(self, final: Answer) -> None:
        response = final.response
        if response.status != Status.SUCCESS:
            raise FindFailed(response.status, response.error_comment or "", response.offending_elements)
