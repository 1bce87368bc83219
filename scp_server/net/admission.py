"""What becomes of an A-ASSOCIATE-RQ: what is known of the association, its treatment, and its log lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from scp_server.interfaces import AcceptedContext, AssociationInfo, DicosMode
from scp_server.net.access import PeerEntry
from scp_server.observability.logs import get_logger, peer_text
from scp_server.observability.measures import Outcome
from scp_server.protocol.items import ContextResult
from scp_server.protocol.pdu import AssociateAC, AssociateRQ, RejectReason

log = get_logger(__name__)


class Admission(NamedTuple):
    """An association is accepted with `answer`; `peer` is the entry of the access rules that it matched."""

    answer: AssociateAC
    peer: PeerEntry | None

    def association_info(
        self, request: AssociateRQ, association_id: str, peer_address: tuple[str, int]
    ) -> AssociationInfo:
        """What services are told of the association."""
        proposed = {context.context_id: context for context in request.presentation_contexts}
        return AssociationInfo(
            association_id=association_id,
            calling_ae_title=request.calling_ae_title,
            called_ae_title=request.called_ae_title,
            peer_host=peer_address[0],
            peer_port=peer_address[1],
            application_context_name=request.application_context_name,
            implementation_class_uid=request.user_information.implementation_class_uid,
            implementation_version_name=request.user_information.implementation_version_name,
            contexts={
                context.context_id: AcceptedContext(
                    context.context_id, proposed[context.context_id].abstract_syntax, context.transfer_syntax
                )
                for context in self.answer.presentation_contexts
                if context.result == ContextResult.ACCEPTANCE
            },
            extended_negotiations={
                item.sop_class_uid: item.application_information
                for item in self.answer.user_information.extended_negotiations
            },
            roles={role.sop_class_uid: role for role in self.answer.user_information.role_selections},
            peer=None if self.peer is None else self.peer.rules,
        )

    @property
    def refused_contexts(self) -> int:
        """Contexts whose service is not allowed to the peer."""
        results = [context.result for context in self.answer.presentation_contexts]
        return results.count(ContextResult.USER_REJECTION)

    def log_accepted(self, request: AssociateRQ, info: AssociationInfo) -> None:
        """The line of an association that was accepted, and another where contexts were refused."""
        self._log_refused_contexts(info)
        log.debug(
            "association.accepted",
            association_id=info.association_id,
            peer_host=info.peer_host,
            calling_ae_title=peer_text(request.calling_ae_title),
            contexts_proposed=len(request.presentation_contexts),
            contexts_accepted=len(info.contexts),
        )

    def _log_refused_contexts(self, info: AssociationInfo) -> None:
        if self.refused_contexts:
            log.warning(
                "association.restricted",
                association_id=info.association_id,
                peer_host=info.peer_host,
                calling_ae_title=peer_text(info.calling_ae_title),
                peer=None if info.peer is None else info.peer.name,
                reason=ContextResult.USER_REJECTION.name,
                contexts_refused=self.refused_contexts,
                contexts_accepted=len(info.contexts),
            )


def log_rejected(request: AssociateRQ, host: str, reason: RejectReason) -> None:
    """The line of an association that was rejected."""
    log.warning(
        "association.rejected",
        peer_host=host,
        calling_ae_title=peer_text(request.calling_ae_title),
        called_ae_title=peer_text(request.called_ae_title),
        application_context_name=peer_text(request.application_context_name),
        reason=reason.name,
    )


def log_aborted(host: str, details: Mapping[str, object]) -> None:
    """The line of a connection that was aborted before there was an association."""
    log.info("connection.aborted", peer_host=host, **_safe(details))


def log_ended(
    info: AssociationInfo,
    outcome: Outcome,
    operations: int,
    dataset_bytes: int,
    seconds: float,
    details: Mapping[str, object],
) -> None:
    """The line of an association that has ended, `seconds` after its connection came."""
    emit = log.info if outcome is Outcome.RELEASED else log.warning
    emit(
        "association.ended",
        association_id=info.association_id,
        outcome=outcome.value,
        peer_host=info.peer_host,
        calling_ae_title=peer_text(info.calling_ae_title),
        called_ae_title=peer_text(info.called_ae_title),
        dicos=info.is_dicos,
        contexts=len(info.contexts),
        operations=operations,
        dataset_bytes=dataset_bytes,
        duration_seconds=round(seconds, 6),
        **_safe(details),
    )


def _safe(details: Mapping[str, object]) -> dict[str, object]:
    return {key: peer_text(value) if isinstance(value, str) else value for key, value in details.items()}


def learn_is_dicos(info: AssociationInfo, is_dicos: bool) -> None:
    """Take note of a name or framing of DICOS: what was a DICOS association once stays one.

    Unless the peer's rules say what its associations are.
    """
    mode = DicosMode.AUTO if info.peer is None else info.peer.dicos
    seen = info.is_dicos or is_dicos
    info.is_dicos = mode is DicosMode.ALWAYS or (seen and mode is DicosMode.AUTO)
