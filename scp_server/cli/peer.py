"""The peer that a client command speaks to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scp_server.protocol.items import UserIdentityRQ
from scp_server.protocol.negotiation import DICOM_APPLICATION_CONTEXT

if TYPE_CHECKING:
    from scp_server.net.requestor import Requestor
    from scp_server.objects.query_model import QueryOptions

Context = tuple[str, str]
"""Abstract syntax and transfer syntax of one presentation context."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a peer is, what it and we are called, and how many seconds each of its answers may take."""

    host: str
    port: int
    called_ae_title: str
    calling_ae_title: str
    timeout_seconds: float
    application_context_name: str = DICOM_APPLICATION_CONTEXT
    user_identity: UserIdentityRQ | None = None
    glued: bool = False
    """Command set and data set of a C-STORE go out in one PDV stream."""

    def __str__(self) -> str:
        return f"{self.called_ae_title} at {self.host}:{self.port}"

    def requestor(
        self,
        contexts: Sequence[tuple[str, Sequence[str]]],
        query_options: QueryOptions | None = None,
        *,
        receives: Sequence[tuple[str, Sequence[str]]] = (),
        max_objects: int = 65_535,
        max_bytes: int = 0,
    ) -> Requestor:
        """An association to this peer, not yet asked for; the last three are for C-GET."""
        from scp_server.net.requestor import Requestor, RequestorConfig
        from scp_server.protocol.limits import Limits

        seconds = self.timeout_seconds
        return Requestor(
            self.host,
            self.port,
            called_ae_title=self.called_ae_title,
            calling_ae_title=self.calling_ae_title,
            contexts=contexts,
            receives=receives,
            query_options=query_options,
            application_context_name=self.application_context_name,
            user_identity=self.user_identity,
            glued=self.glued,
            config=RequestorConfig(
                limits=Limits(idle_seconds=0.0, response_seconds=seconds, dimse_seconds=seconds),
                connect_seconds=seconds,
                response_seconds=seconds,
                max_retrieved_objects=max_objects,
                max_retrieved_bytes=max_bytes,
            ),
        )
