"""A remote that is configured, and one association to it that objects are sent on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from scp_server.errors import LocalProtocolError
from scp_server.interfaces import AcceptedContext, StoreOutcome
from scp_server.net.requestor import Requestor
from scp_server.net.requestor_connection import RequestorConfig, RequestorConnection
from scp_server.net.sub_operations import LARGEST_MESSAGE_ID, store
from scp_server.objects.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from scp_server.protocol.items import MAX_PRESENTATION_CONTEXTS
from scp_server.protocol.message import Priority
from scp_server.protocol.negotiation import DICOM_APPLICATION_CONTEXT, is_dicos_application_context
from scp_server.protocol.status import Status

Pair = tuple[str, str]
"""A SOP class and a transfer syntax: what one presentation context is proposed for."""

FALLBACKS: Final = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
"""What is proposed beside the stored transfer syntax, where an object can be given it."""


@dataclass(frozen=True, slots=True)
class Remote:
    """One entry of `[[remotes]]`: where it is and how it is spoken to."""

    ae_title: str
    host: str
    port: int
    application_context_name: str = DICOM_APPLICATION_CONTEXT
    max_associations: int = 4
    connect_seconds: float = 10.0
    duplicates_are_warnings: bool = False
    """0x0111 says that it has the instance already: then it is no failure."""
    glued: bool = False
    """It is sent command set and data set in one PDV stream, as DICOS scanners do."""
    transfer_syntaxes: tuple[str, ...] = ()
    """What it may be sent in; when empty, whatever an object is stored in."""

    def transfer_syntaxes_for(self, stored: str, targets: Iterable[str]) -> tuple[str, ...]:
        """See `Destinations.transfer_syntaxes_for`. A DICOS remote is never offered implicit VR, which loses
        the VRs that only DICOS has, unless its entry names it."""
        if self.transfer_syntaxes:
            return tuple(syntax for syntax in (stored, *targets) if syntax in self.transfer_syntaxes)
        wanted = (stored, *(syntax for syntax in targets if syntax in FALLBACKS))
        if not is_dicos_application_context(self.application_context_name):
            return wanted
        return tuple(syntax for syntax in wanted if syntax != IMPLICIT_VR_LITTLE_ENDIAN)


def pairs_of(contexts: Sequence[tuple[str, Sequence[str]]]) -> frozenset[Pair]:
    """Each class with each of its transfer syntaxes. Raises LocalProtocolError for more than 128."""
    pairs = frozenset((sop_class, syntax) for sop_class, syntaxes in contexts for syntax in syntaxes)
    if len(pairs) > MAX_PRESENTATION_CONTEXTS:
        raise LocalProtocolError(
            f"{len(pairs)} presentation contexts are more than {MAX_PRESENTATION_CONTEXTS}"
        )
    return pairs


class OutboundAssociation:
    """An association that we asked a remote for, as a `Sender`."""

    def __init__(
        self, remote: Remote, pairs: Iterable[Pair], calling_ae_title: str, config: RequestorConfig
    ) -> None:
        self.remote = remote
        self.pairs = frozenset(pairs)
        """What was proposed. What of it the remote refused it would refuse again."""
        self._config = replace(config, connect_seconds=remote.connect_seconds)
        self._requestor = Requestor(
            remote.host,
            remote.port,
            called_ae_title=remote.ae_title,
            calling_ae_title=calling_ae_title,
            contexts=[(sop_class, (syntax,)) for sop_class, syntax in sorted(self.pairs)],
            application_context_name=remote.application_context_name,
            config=self._config,
        )
        self._turn = asyncio.Lock()
        self._message_id = 0

    async def open(self) -> None:
        """Connect and associate. Raises AssociationError."""
        await self._requestor.__aenter__()

    async def close(self, *, abort: bool) -> None:
        """Release or abort it; returns when the socket is gone. Bounded by the association's own timers."""
        await self._requestor.close(abort=abort)

    @property
    def connection(self) -> RequestorConnection:
        """What it is sent on, once it is open."""
        return self._requestor.connection

    @property
    def is_usable(self) -> bool:
        """It has not ended, and nothing is under way on it."""
        return self.connection.error is None and not self._turn.locked()

    def contexts_for(self, sop_class_uid: str) -> tuple[AcceptedContext, ...]:
        """See `Sender.contexts_for`: we propose no roles, so we are the SCU on all of them."""
        contexts = self.connection.contexts
        return tuple(
            contexts[context_id]
            for context_id in sorted(contexts)
            if contexts[context_id].abstract_syntax == sop_class_uid
        )

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
        """See `Sender.store`."""
        async with self._turn:
            self._message_id = self._message_id % LARGEST_MESSAGE_ID + 1
            outcome = await store(
                self.connection,
                self._message_id,
                context,
                dataset,
                sop_class_uid=sop_class_uid,
                sop_instance_uid=sop_instance_uid,
                priority=priority,
                move_originator=move_originator,
                response_seconds=self._config.response_seconds,
                glued=self.remote.glued,
            )
        is_duplicate = outcome.status == Status.DUPLICATE_SOP_INSTANCE
        return replace(outcome, counts_as_warning=is_duplicate and self.remote.duplicates_are_warnings)
