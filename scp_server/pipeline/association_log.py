"""Logs associations as events, and tells callbacks of them."""

from __future__ import annotations

import json
import time
from typing import Final

from scp_server.index.events import EventLog, LogRequest
from scp_server.interfaces import AssociationInfo, AssociationListener, AssociationVerdict
from scp_server.pipeline.deliveries import EventKind

_MAX_CHARACTERS: Final = 64
"""Of a text that a peer may send as long as a sub-item can be: what is longer is cut in events (a UID has 64
characters at most, a version name 16: PS3.5 9.1, PS3.7 D.3.3.2)."""


class AssociationLog:
    """An `AssociationListener` that logs beginnings and ends, and passes everything on to `following`."""

    def __init__(self, log: EventLog, following: AssociationListener | None) -> None:
        self._log = log
        self._following = following

    def connected(self, peer_host: str, peer_port: int) -> None:
        """See `AssociationListener`."""
        if self._following is not None:
            self._following.connected(peer_host, peer_port)

    def disconnected(self, peer_host: str, peer_port: int) -> None:
        """See `AssociationListener`."""
        if self._following is not None:
            self._following.disconnected(peer_host, peer_port)

    def judges(self, association: AssociationInfo) -> bool:
        """See `AssociationListener`."""
        return self._following is not None and self._following.judges(association)

    async def may_associate(self, association: AssociationInfo) -> AssociationVerdict:
        """See `AssociationListener`."""
        if self._following is None:
            return AssociationVerdict.YES
        return await self._following.may_associate(association)

    def accepted(self, association: AssociationInfo) -> None:
        """See `AssociationListener`."""
        self._note(EventKind.ASSOCIATION_ACCEPTED, association, {})
        if self._following is not None:
            self._following.accepted(association)

    def ended(self, association: AssociationInfo, outcome: str, operations: int, dataset_bytes: int) -> None:
        """See `AssociationListener`."""
        how = {"outcome": outcome, "operations": operations, "dataset_bytes": dataset_bytes}
        self._note(EventKind.ASSOCIATION_ENDED, association, how)
        if self._following is not None:
            self._following.ended(association, outcome, operations, dataset_bytes)

    def echoed(self, association: AssociationInfo) -> None:
        """See `AssociationListener`."""
        if self._following is not None:
            self._following.echoed(association)

    def _note(self, kind: EventKind, association: AssociationInfo, how: dict[str, object]) -> None:
        data = {
            "calling_ae_title": association.calling_ae_title,
            "called_ae_title": association.called_ae_title,
            "peer_host": association.peer_host,
            "peer_port": association.peer_port,
            "peer_name": None if association.peer is None else association.peer.name,
            "is_dicos": association.is_dicos,
            "application_context_name": association.application_context_name[:_MAX_CHARACTERS],
            "implementation_class_uid": association.implementation_class_uid[:_MAX_CHARACTERS],
            "implementation_version_name": association.implementation_version_name[:_MAX_CHARACTERS],
            **how,
        }
        request = LogRequest(kind.value, association.association_id, time.time_ns(), json.dumps(data))
        self._log.note(request)
