"""What an acceptor answers to an A-ASSOCIATE-RQ: pure functions over a policy (PS3.8 7.1, PS3.7 D.3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from scp_server.protocol.items import (
    AsynchronousOperationsWindow,
    ContextResult,
    PresentationContextAC,
    PresentationContextRQ,
    RoleSelection,
    SOPClassExtendedNegotiation,
    UserIdentityAC,
    UserInformation,
)
from scp_server.protocol.message import MAX_UID_CHARACTERS, VERIFICATION_SOP_CLASS_UID
from scp_server.protocol.pdu import AE_TITLE_BYTES, AssociateAC, AssociateRQ, RejectReason

DICOM_APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"
DICOS_V03_APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1.3"
DICOS_V02A_APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1.211"
DICOS_V02A_ALTERNATE_APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1.2"
DICOS_APPLICATION_CONTEXTS: Final = frozenset(
    {DICOS_V03_APPLICATION_CONTEXT, DICOS_V02A_APPLICATION_CONTEXT, DICOS_V02A_ALTERNATE_APPLICATION_CONTEXT}
)

IMPLEMENTATION_CLASS_UID: Final = "2.25.197610378532489170355148836284936407183"
"""Ours, made once from a random UUID (PS3.5 B.2)."""
IMPLEMENTATION_VERSION_NAME: Final = "SCP_SERVER_0_1"

IMPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
EXPLICIT_VR_BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
ANY_OTHER_TRANSFER_SYNTAX: Final = "*"
"""In a preference: whatever else the peer proposes, in the peer's order."""

DICOS_STORAGE_PREFIX: Final = "1.2.840.10008.5.1.4.1.1.501"
DICONDE_STORAGE_PREFIX: Final = "1.2.840.10008.5.1.4.1.1.601"

SERVICE_CLASS_PREFIXES: Final = (
    "1.2.840.10008.1",  # verification, storage commitment, media directory, event logging
    "1.2.840.10008.3",  # performed procedure steps and other management classes
    "1.2.840.10008.4",  # service classes themselves
    "1.2.840.10008.5.1.1",  # printing, media creation, display
    *(f"1.2.840.10008.5.1.4.1.1.200.{part}" for part in (4, 5, 6)),  # protocol approval queries
    *(f"1.2.840.10008.5.1.4.1.1.201.{part}" for part in (2, 3, 4, 5, 6)),  # inventories
    "1.2.840.10008.5.1.4.1.2",  # patient, study and composite instance query/retrieve
    "1.2.840.10008.5.1.4.20",  # defined procedure protocol queries
    *(f"1.2.840.10008.5.1.4.{part}" for part in (31, 32, 33)),  # worklists, instance availability
    *(f"1.2.840.10008.5.1.4.34.{part}" for part in (4, 5, 6, 8, 9)),  # unified steps, machine verification
    *(f"1.2.840.10008.5.1.4.{part}" for part in (37, 41, 42)),  # relevant patient, product, substance
    *(f"1.2.840.10008.5.1.4.{part}.{query}" for part in (38, 39, 43, 44, 45) for query in (2, 3, 4)),
)
"""Abstract syntaxes that are no storage, and those below them; a policy's own storage classes come first."""

_UID: Final = re.compile(r"[0-9]+(?:\.[0-9]+)*", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class NegotiationPolicy:
    """What is accepted, and how we introduce ourselves. A prefix means itself and everything below it.

    `transfer_syntaxes` is the order of preference for storage, `service_transfer_syntaxes` for the rest;
    `"*"` in either stands for whatever else the peer proposes, in its order.
    """

    application_context_names: frozenset[str] = DICOS_APPLICATION_CONTEXTS | {DICOM_APPLICATION_CONTEXT}
    required_called_ae_titles: frozenset[str] = frozenset()
    """Empty: any title is answered to."""
    storage_sop_classes: frozenset[str] = frozenset()
    storage_prefixes: tuple[str, ...] = (DICOS_STORAGE_PREFIX, DICONDE_STORAGE_PREFIX)
    any_sop_class: bool = False
    """Take every abstract syntax that is not known to be a service's for storage."""
    service_sop_classes: frozenset[str] = frozenset({VERIFICATION_SOP_CLASS_UID})
    refused_sop_classes: frozenset[str] = frozenset()
    """Not allowed to this peer: answered with result 1, user rejection."""
    refuses_storage: bool = False
    """The same for every class that would be stored."""
    transfer_syntaxes: tuple[str, ...] = (
        EXPLICIT_VR_LITTLE_ENDIAN,
        ANY_OTHER_TRANSFER_SYNTAX,
        IMPLICIT_VR_LITTLE_ENDIAN,
    )
    service_transfer_syntaxes: tuple[str, ...] = (
        EXPLICIT_VR_LITTLE_ENDIAN,
        IMPLICIT_VR_LITTLE_ENDIAN,
        EXPLICIT_VR_BIG_ENDIAN,
    )
    grants_storage_scp_role: bool = False
    """Let a requestor that asks for it be SCP of what is stored, as C-GET needs (PS3.4 C.5.3); also where
    storing itself is refused, and then without the SCU role."""
    extended_negotiations: Mapping[str, bytes] = field(default_factory=dict)
    """By SOP class, the service-class application information that we support (PS3.7 D.3.3.5)."""
    maximum_length: int = 131_072
    """Announced longest P-DATA-TF, in bytes; 0 is no limit (PS3.8 D.1)."""
    implementation_class_uid: str = IMPLEMENTATION_CLASS_UID
    implementation_version_name: str = IMPLEMENTATION_VERSION_NAME


@dataclass(frozen=True, slots=True)
class Negotiated:
    """The answer, ready to be encoded, and abstract and transfer syntax by each accepted context's id."""

    answer: AssociateAC
    accepted: Mapping[int, tuple[str, str]]


def is_uid(text: str) -> bool:
    """Whether a text is digits and dots as in a UID, at most 64; any root and leading zeros are fine."""
    return len(text) <= MAX_UID_CHARACTERS and _UID.fullmatch(text) is not None


def is_dicos_application_context(name: str) -> bool:
    """Whether an application context name is one of those DICOS scanners use."""
    return name in DICOS_APPLICATION_CONTEXTS


def ae_title_error(title: str) -> str | None:
    """Say what is wrong with an AE title without its padding, or None (PS3.5 6.2, PS3.8 9.3.2)."""
    if not title.strip(" "):
        return "is blank"
    if len(title) > AE_TITLE_BYTES:
        return f"has more than {AE_TITLE_BYTES} characters"
    if "\\" in title:
        return "has a backslash"
    if not (title.isascii() and title.isprintable()):
        return "has a control character or one outside ASCII"
    return None


def rejection(request: AssociateRQ, policy: NegotiationPolicy) -> RejectReason | None:
    """Say why a request is to be rejected as a whole, or None (PS3.8 9.3.4)."""
    if not request.protocol_version & 1:
        return RejectReason.PROTOCOL_VERSION_NOT_SUPPORTED
    if request.application_context_name not in policy.application_context_names:
        return RejectReason.APPLICATION_CONTEXT_NOT_SUPPORTED
    required = policy.required_called_ae_titles
    if ae_title_error(request.called_ae_title) or (required and request.called_ae_title not in required):
        return RejectReason.CALLED_AE_TITLE_NOT_RECOGNIZED
    if ae_title_error(request.calling_ae_title):
        return RejectReason.CALLING_AE_TITLE_NOT_RECOGNIZED
    return None


def negotiate(request: AssociateRQ, policy: NegotiationPolicy) -> Negotiated:
    """Answer every proposed context and all user information of a request that has no `rejection`.

    The answer can always be encoded, whatever text the request holds.
    """
    chosen: dict[tuple[bool, tuple[str, ...]], str | None] = {}
    contexts = []
    accepted = {}
    scp_roles = _offered_scp_roles(request.user_information, policy)
    for context in request.presentation_contexts:
        answer = _answer_context(context, policy, chosen, scp_roles)
        contexts.append(answer)
        if answer.result == ContextResult.ACCEPTANCE:
            accepted[context.context_id] = (context.abstract_syntax, answer.transfer_syntax)
    classes = frozenset(abstract_syntax for abstract_syntax, _ in accepted.values())
    return Negotiated(
        answer=AssociateAC(
            called_ae_title=request.called_ae_title,
            calling_ae_title=request.calling_ae_title,
            application_context_name=request.application_context_name,
            presentation_contexts=tuple(contexts),
            user_information=_answer_user_information(request.user_information, classes, policy),
            address_fields=request.address_fields,
        ),
        accepted=accepted,
    )


def _answer_context(
    context: PresentationContextRQ,
    policy: NegotiationPolicy,
    chosen: dict[tuple[bool, tuple[str, ...]], str | None],
    scp_roles: frozenset[str],
) -> PresentationContextAC:
    """Answer one context; `chosen` remembers the choice among transfer syntaxes proposed before, `scp_roles`
    are the classes that the requestor may be SCP of."""
    uid, proposed = context.abstract_syntax, context.transfer_syntaxes
    if uid in policy.refused_sop_classes:
        return _rejected(context, ContextResult.USER_REJECTION)
    is_service = uid in policy.service_sop_classes
    if not is_service and not is_storage(uid, policy):
        return _rejected(context, ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED)
    if policy.refuses_storage and not is_service and uid not in scp_roles:
        return _rejected(context, ContextResult.USER_REJECTION)
    key = (is_service, proposed)
    if key not in chosen:
        preference = policy.service_transfer_syntaxes if is_service else policy.transfer_syntaxes
        chosen[key] = _choose_transfer_syntax(proposed, preference)
    transfer_syntax = chosen[key]
    if transfer_syntax is None:
        return _rejected(context, ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED)
    return PresentationContextAC(context.context_id, ContextResult.ACCEPTANCE, transfer_syntax)


def _offered_scp_roles(offered: UserInformation, policy: NegotiationPolicy) -> frozenset[str]:
    """The storage classes whose SCP role was asked for and is granted (PS3.7 D.3.3.4)."""
    if not policy.grants_storage_scp_role:
        return frozenset()
    return frozenset(
        role.sop_class_uid
        for role in offered.role_selections
        if role.scp_role and is_storage(role.sop_class_uid, policy)
    )


def _rejected(context: PresentationContextRQ, result: ContextResult) -> PresentationContextAC:
    """Reject a context, with the one transfer syntax that its item has all the same (PS3.8 9.3.3.2)."""
    first = context.transfer_syntaxes[0]
    transfer_syntax = first if is_uid(first) else IMPLICIT_VR_LITTLE_ENDIAN
    return PresentationContextAC(context.context_id, result, transfer_syntax)


def is_storage(uid: str, policy: NegotiationPolicy) -> bool:
    """Whether `policy` takes objects of this SOP class."""
    if uid in policy.service_sop_classes:
        return False
    if uid in policy.storage_sop_classes:
        return True
    if not is_uid(uid):
        return False
    if _is_below(uid, policy.storage_prefixes):
        return True
    return policy.any_sop_class and not _is_below(uid, SERVICE_CLASS_PREFIXES)


def _is_below(uid: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a UID is one of the prefixes or has one of them and a dot before the rest."""
    return any(
        uid.startswith(prefix) and uid[len(prefix) : len(prefix) + 1] in ("", ".") for prefix in prefixes
    )


def _choose_transfer_syntax(proposed: tuple[str, ...], preference: tuple[str, ...]) -> str | None:
    """Return the transfer syntax that comes first in `preference`, or None."""
    for preferred in preference:
        if preferred == ANY_OTHER_TRANSFER_SYNTAX:
            for uid in proposed:
                if uid not in preference and is_uid(uid):
                    return uid
        elif preferred in proposed:
            return preferred
    return None


def _answer_user_information(
    offered: UserInformation, classes: frozenset[str], policy: NegotiationPolicy
) -> UserInformation:
    """Answer what was offered and no more (PS3.7 D.3.3); `classes` are those with an accepted context."""
    identity = offered.user_identity
    roles = {role.sop_class_uid: role for role in offered.role_selections if role.sop_class_uid in classes}
    return UserInformation(
        maximum_length=policy.maximum_length,
        implementation_class_uid=policy.implementation_class_uid,
        implementation_version_name=policy.implementation_version_name,
        asynchronous_operations_window=(
            None if offered.asynchronous_operations_window is None else AsynchronousOperationsWindow(1, 1)
        ),
        role_selections=tuple(
            RoleSelection(
                uid,
                role.scu_role and not (policy.refuses_storage and is_storage(uid, policy)),
                role.scp_role and policy.grants_storage_scp_role and is_storage(uid, policy),
            )
            for uid, role in roles.items()
        ),
        extended_negotiations=_answer_extended(offered.extended_negotiations, classes, policy),
        user_identity_response=(
            UserIdentityAC() if identity is not None and identity.positive_response_requested else None
        ),
    )


def _answer_extended(
    offered: tuple[SOPClassExtendedNegotiation, ...], classes: frozenset[str], policy: NegotiationPolicy
) -> tuple[SOPClassExtendedNegotiation, ...]:
    """Answer each class once, no longer than offered and no byte greater (PS3.4 C.5.1.1, B.3.1)."""
    return tuple(
        SOPClassExtendedNegotiation(uid, bytes(map(min, information, policy.extended_negotiations[uid])))
        for uid, information in {item.sop_class_uid: item.application_information for item in offered}.items()
        if uid in classes and uid in policy.extended_negotiations
    )
