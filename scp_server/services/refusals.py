"""What becomes of a data set that was refused: the rest of it is received, and the quarantine keeps it.

Whatever goes wrong here, the peer hears the refusal and nothing else, and nothing is left behind.
"""

from __future__ import annotations

from scp_server.errors import AssociationError, OperationRefused, SCPServerError
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import QuarantineEvent
from scp_server.protocol.status import Status
from scp_server.services.reception import Reception
from scp_server.storage.base import StoredObject
from scp_server.storage.quarantine import Quarantine

log = get_logger(__name__)

_KEPT_STATUSES = frozenset({Status.INVALID_SOP_INSTANCE, Status.DUPLICATE_SOP_INSTANCE})
_KEPT_FAMILIES = (
    (0xFF00, Status.DATASET_DOES_NOT_MATCH_SOP_CLASS),
    (0xF000, Status.CANNOT_UNDERSTAND),
)
"""Masks and families of PS3.4 B.2.3: A9xx and Cxxx."""


def is_refused_for_what_it_is(status: int) -> bool:
    """Whether a data set refused with `status` is to be kept: not for lack of space, nor of a service."""
    return status in _KEPT_STATUSES or any(status & mask == family for mask, family in _KEPT_FAMILIES)


class RefusedObjects:
    """Brings what the storage service refuses into a quarantine, where there is one."""

    def __init__(self, quarantine: Quarantine | None) -> None:
        self._quarantine = quarantine

    async def keep_received(
        self, reception: Reception, refusal: OperationRefused, wanted: bool | None = None
    ) -> None:
        """Receive the rest of a data set that was refused on its way in, and keep all of it. `wanted` says
        whether to; None leaves it to the status.

        Raises AssociationError when the data set does not come to its end: then it is not kept.
        """
        quarantine = self._quarantine
        if not self._is_wanted(refusal, wanted) or quarantine is None or not reception.has_dataset:
            return
        try:
            admission = quarantine.admit()
            try:
                writer = await reception.take_rest(admission.grow)
                await quarantine.keep_written(
                    writer, lambda: reception.quarantine_record(refusal.status, refusal.comment)
                )
            finally:
                admission.close()
        except AssociationError:
            raise
        except Exception as failure:
            _not_kept(quarantine, reception, refusal, failure)
        else:
            _kept(quarantine, reception, refusal)

    async def keep_stored(
        self, reception: Reception, stored: StoredObject, refusal: OperationRefused
    ) -> bool:
        """Keep an object that was committed before it was refused; False when it is where it was.

        Of one that was changed on arrival what was received is kept, and it is where it was all the same.
        """
        if reception.is_changed:
            await self.keep_received(reception, refusal)
            return False
        quarantine = self._quarantine
        if not self._is_wanted(refusal) or quarantine is None:
            return False
        try:
            admission = quarantine.admit()
            try:
                admission.grow(stored.size_bytes)
                await quarantine.keep_stored(
                    stored, reception.quarantine_record(refusal.status, refusal.comment)
                )
            finally:
                admission.close()
        except Exception as failure:
            _not_kept(quarantine, reception, refusal, failure)
            return False
        _kept(quarantine, reception, refusal)
        return True

    def _is_wanted(self, refusal: OperationRefused, wanted: bool | None = None) -> bool:
        quarantine = self._quarantine
        if quarantine is None or not quarantine.enabled:
            return False
        return is_refused_for_what_it_is(refusal.status) if wanted is None else wanted


def _kept(quarantine: Quarantine, reception: Reception, refusal: OperationRefused) -> None:
    quarantine.note(QuarantineEvent.KEPT)
    log.info(
        "quarantine.kept",
        id=reception.arrival_id,
        association_id=reception.association_id,
        status=f"0x{refusal.status:04X}",
        dataset_bytes=reception.received_bytes,
    )


def _not_kept(
    quarantine: Quarantine, reception: Reception, refusal: OperationRefused, failure: Exception
) -> None:
    quarantine.note(QuarantineEvent.NOT_KEPT)
    log.warning(
        "quarantine.not_kept",
        association_id=reception.association_id,
        status=f"0x{refusal.status:04X}",
        error=str(failure),
        exc_info=None if isinstance(failure, SCPServerError) else failure,
    )
