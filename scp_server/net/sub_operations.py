"""C-STORE sub-operations: what sends an object to the peer, whoever asked for the association."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING

from scp_server.errors import LocalProtocolError
from scp_server.interfaces import AcceptedContext, StoreOutcome
from scp_server.net.exchange import Requesting, perform
from scp_server.protocol.message import CStoreRQ, Priority

if TYPE_CHECKING:
    from scp_server.net.connection import Connection

LARGEST_MESSAGE_ID = 65_535


async def store(
    connection: Requesting,
    message_id: int,
    context: AcceptedContext,
    dataset: AsyncIterable[bytes],
    *,
    sop_class_uid: str,
    sop_instance_uid: str,
    priority: int,
    move_originator: tuple[str, int] | None,
    response_seconds: float,
    glued: bool = False,
) -> StoreOutcome:
    """One C-STORE, as `Sender.store` has it, on an association that has no other request of ours. `glued`
    sends command set and data set in one PDV stream."""
    originator_ae_title, originator_message_id = move_originator or (None, None)
    request = CStoreRQ(
        message_id=message_id,
        has_dataset=True,
        affected_sop_class_uid=sop_class_uid,
        affected_sop_instance_uid=sop_instance_uid,
        priority=priority,
        move_originator_application_entity_title=originator_ae_title,
        move_originator_message_id=originator_message_id,
    )
    response = await perform(
        connection, context, request, dataset, None, response_seconds=response_seconds, glued=glued
    )
    return StoreOutcome(response.status, response.error_comment or "")


class AcceptorSender:
    """A `Sender` on an association that the peer asked for, as C-GET needs it (PS3.4 C.4.3)."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._turn = asyncio.Lock()
        """One request of ours at a time: that is the asynchronous operations window (PS3.7 D.3.3.3)."""

    def contexts_for(self, sop_class_uid: str) -> tuple[AcceptedContext, ...]:
        """See `Sender.contexts_for`: those whose SCP role was asked for and granted (PS3.4 C.5.3)."""
        info = self._connection.info
        roles = None if info is None else info.roles.get(sop_class_uid)
        if info is None or roles is None or not roles.scp_role:
            return ()
        contexts = (info.contexts[context_id] for context_id in sorted(info.contexts))
        return tuple(context for context in contexts if context.abstract_syntax == sop_class_uid)

    async def store(
        self,
        context: AcceptedContext,
        *,
        sop_class_uid: str,
        sop_instance_uid: str,
        dataset: AsyncIterable[bytes],
        priority: int = Priority.MEDIUM,
        move_originator: tuple[str, int] | None = None,
    ) -> StoreOutcome:
        """See `Sender.store`. Raises LocalProtocolError for a context without the role."""
        if context not in self.contexts_for(context.abstract_syntax):
            raise LocalProtocolError(f"we are not the SCU on presentation context {context.context_id}")
        async with self._turn:
            return await store(
                self._connection,
                self._connection.next_message_id(),
                context,
                dataset,
                sop_class_uid=sop_class_uid,
                sop_instance_uid=sop_instance_uid,
                priority=priority,
                move_originator=move_originator,
                response_seconds=self._connection.config.store_response_seconds,
            )
