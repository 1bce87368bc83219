"""An independent SCP, pynetdicom's, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from pynetdicom import AE, evt

from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.objects import BASIC_TEXT_SR_STORAGE, CT_IMAGE_STORAGE, ENHANCED_CT_IMAGE_STORAGE

PEER_GONE_SECONDS = 10


@dataclass
class ReferenceSCP:
    """Where it listens, and what reached it: UID and data set bytes of each C-STORE."""

    port: int = 0
    status: int = 0x0000
    stored: list[tuple[str, bytes]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def store(self, event: Any) -> int:
        request = event.request
        self.stored.append((str(request.AffectedSOPInstanceUID), request.DataSet.getvalue()))
        return self.status


@pytest.fixture
def reference_scp() -> Iterator[ReferenceSCP]:
    """pynetdicom answering C-ECHO and C-STORE on loopback, called PYNET."""
    scp = ReferenceSCP()
    ae = AE("PYNET")
    ae.require_called_aet = True
    ae.add_supported_context("1.2.840.10008.1.1")
    for sop_class in (CT_IMAGE_STORAGE, ENHANCED_CT_IMAGE_STORAGE, BASIC_TEXT_SR_STORAGE):
        ae.add_supported_context(sop_class, [syntax.value for syntax in TransferSyntax])
    handlers: list[Any] = [
        (evt.EVT_C_STORE, scp.store),
        (evt.EVT_ABORTED, lambda event: scp.events.append("aborted")),
        (evt.EVT_RELEASED, lambda event: scp.events.append("released")),
    ]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    scp.port = server.server_address[1]
    yield scp
    for association in server.active_associations:
        association.join(PEER_GONE_SECONDS)
    ae.shutdown()
