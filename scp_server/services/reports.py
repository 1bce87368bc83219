"""Reports that detectors have made, stored as if a peer had sent them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

from scp_server.errors import OperationRefused
from scp_server.index.base import Index, PartRecord
from scp_server.interfaces import AssociationInfo
from scp_server.observability.logs import get_logger, peer_text
from scp_server.pipeline.verdicts import NotDelivered, Undeliverable
from scp_server.protocol.negotiation import DICOS_V03_APPLICATION_CONTEXT
from scp_server.protocol.status import Status
from scp_server.reports.report import ThreatReport
from scp_server.services.own_operation import BytesDataset, OwnObject, OwnOperation
from scp_server.services.storage import StorageService

log = get_logger(__name__)

_AE_TITLE_CHARACTERS: Final = 16


class DetectorReports:
    """See `ReportedImages`. `service` is what stores; another one after the settings were reloaded."""

    def __init__(self, index: Index, service: StorageService, called_ae_title: str) -> None:
        self.service = service
        self._index = index
        self._called_ae_title = called_ae_title

    async def parts(self, sop_instance_uid: str) -> Sequence[PartRecord]:
        """See `ReportedImages.parts`."""
        return await self._index.parts(sop_instance_uid)

    async def keep(self, report: ThreatReport, detector: str) -> None:
        """See `ReportedImages.keep`."""
        association = AssociationInfo(
            association_id=f"detector-{secrets.token_hex(8)}",
            calling_ae_title=detector[:_AE_TITLE_CHARACTERS],
            called_ae_title=self._called_ae_title,
            peer_host="",
            peer_port=0,
            application_context_name=DICOS_V03_APPLICATION_CONTEXT,
            is_dicos=True,
        )
        stored = OwnObject(report.sop_class_uid, report.sop_instance_uid, report.transfer_syntax_uid)
        try:
            await self.service.store(OwnOperation(stored, BytesDataset(report.dataset), association))
        except OperationRefused as refusal:
            text = f"the report is not kept: 0x{refusal.status:04X} {refusal.comment}"
            if refusal.status == Status.OUT_OF_RESOURCES:
                raise NotDelivered(text) from refusal
            raise Undeliverable(text) from refusal
        log.info(
            "detector.reported",
            callback=detector,
            decision=report.decision,
            study_instance_uid=peer_text(report.study_instance_uid),
            sop_instance_uid=report.sop_instance_uid,
        )
