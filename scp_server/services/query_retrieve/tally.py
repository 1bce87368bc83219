"""The four counts of a retrieve, and what its responses say of them (PS3.4 C.4.2.3.1, C.4.3.3.1)."""

from __future__ import annotations

from typing import Any

from scp_server.index.base import RetrievablePart
from scp_server.interfaces import AcceptedContext, FinalResponse, StoreOutcome
from scp_server.objects.identifier import Key
from scp_server.objects.response_dataset import ResponseDataset
from scp_server.observability.logs import get_logger, peer_text
from scp_server.observability.measures import RetrieveMeasures, SubOperationResult
from scp_server.protocol.message import CGetRQ, CMoveRQ, Message, response_to
from scp_server.protocol.status import Status, StatusClass, status_class

log = get_logger(__name__)

_FAILED_SOP_INSTANCE_UID_LIST = 0x00080058
_RESULTS = {
    StatusClass.SUCCESS: SubOperationResult.COMPLETED,
    StatusClass.WARNING: SubOperationResult.WARNING,
}


class Tally:
    """What became of the sub-operations of one retrieve. The four counts always add up to their total."""

    def __init__(
        self, request: CMoveRQ | CGetRQ, total: int, measures: RetrieveMeasures, association_id: str
    ) -> None:
        self._request = request
        self._total = total
        self._measures = measures
        self._association_id = association_id
        self._counts = dict.fromkeys(SubOperationResult, 0)
        self._failed_uids: dict[str, None] = {}
        self._problems: dict[str, None] = {}

    @property
    def remaining(self) -> int:
        """Sub-operations that have not ended."""
        return self._total - sum(self._counts.values())

    def answered(self, part: RetrievablePart, outcome: StoreOutcome) -> None:
        """The destination has answered. A status that says neither success nor warning is a failure, also one
        that a C-STORE cannot have."""
        result = _RESULTS.get(status_class(outcome.status))
        if result is None and outcome.counts_as_warning:
            result = SubOperationResult.WARNING
        if result is None:
            self.failed(part, f"status 0x{outcome.status:04X}", outcome.error_comment)
        else:
            self._count(result)

    def failed(self, part: RetrievablePart, problem: str, detail: str = "") -> None:
        """A sub-operation failed. `problem` comes from a small set; each is logged once."""
        self._count(SubOperationResult.FAILED)
        self._failed_uids[part.sop_instance_uid] = None
        if problem in self._problems:
            return
        self._problems[problem] = None
        log.warning(
            "suboperation.failed",
            association_id=self._association_id,
            sop_class_uid=peer_text(part.sop_class_uid),
            sop_instance_uid=peer_text(part.sop_instance_uid),
            transfer_syntax_uid=peer_text(part.transfer_syntax_uid),
            problem=problem,
            error=peer_text(detail),
        )

    def _count(self, result: SubOperationResult) -> None:
        self._counts[result] += 1
        self._measures.results[result] += 1

    def pending(self) -> Message:
        """0xFF00 with what is so now."""
        return response_to(
            self._request,
            Status.PENDING,
            number_of_remaining_suboperations=self.remaining,
            **self._numbers(),
        )

    def final(self, context: AcceptedContext) -> Message | FinalResponse:
        """The last response, with the list of what failed where something did. What remains was cancelled."""
        status, remaining, failed = self._status(), self.remaining, tuple(self._failed_uids)
        response = response_to(
            self._request,
            status,
            comment=next(iter(self._problems), None),
            has_dataset=bool(failed),
            number_of_remaining_suboperations=remaining if status is Status.CANCEL else None,
            **self._numbers(),
        )
        if not failed:
            return response
        key = Key(_FAILED_SOP_INSTANCE_UID_LIST, "UI")
        encoder = ResponseDataset([key], context.transfer_syntax, None)
        return FinalResponse(response, encoder.encode([failed]).dataset)

    def _numbers(self) -> dict[str, Any]:
        return {f"number_of_{result}_suboperations": count for result, count in self._counts.items()}

    def _status(self) -> Status:
        failed, total = self._counts[SubOperationResult.FAILED], self._total
        if self.remaining:
            return Status.CANCEL
        if total and failed == total:
            return Status.UNABLE_TO_PERFORM_SUBOPERATIONS
        if failed or self._counts[SubOperationResult.WARNING]:
            return Status.SUBOPERATIONS_COMPLETE_WITH_FAILURES
        return Status.SUCCESS
