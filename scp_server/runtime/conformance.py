"""The conformance statement of a configuration (PS3.2), from the settings and the code's own tables.

Plain data; `conformance_page` makes a document of it. What it claims of queries is proved by
`tests/integration/test_conformance.py`, which asks a running server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scp_server import __version__
from scp_server.index.search import EntityLevel
from scp_server.net.access import SERVICE_SOP_CLASSES
from scp_server.objects.dicos import dictionary as dicos
from scp_server.objects.frame_codecs import MISSING_EXTRA, is_available
from scp_server.objects.matching import MULTIPLE_VALUE_VRS, RANGE_VRS, WILD_CARD_VRS
from scp_server.objects.pixel_format import CODECS, Codec
from scp_server.objects.reencoding import UNCOMPRESSED
from scp_server.objects.text import DEFINED_TERMS
from scp_server.objects.uids import EXPLICIT_VR_LITTLE_ENDIAN_64
from scp_server.objects.vr import tag_text
from scp_server.protocol.message import VERIFICATION_SOP_CLASS_UID
from scp_server.protocol.negotiation import ANY_OTHER_TRANSFER_SYNTAX, NegotiationPolicy
from scp_server.protocol.status import Status
from scp_server.runtime.build import build_policy
from scp_server.services.query_retrieve.attributes import (
    BELOW,
    COLUMNS,
    COUNTS,
    DECISIONS,
    INSTANCE_AVAILABILITY,
    RETRIEVE_AE_TITLE,
)
from scp_server.services.query_retrieve.models import (
    FIND_MODELS,
    LEVEL_NAMES,
    REQUIRED_KEYS,
    RETRIEVE_SOP_CLASSES,
    UNIQUE_KEYS,
    InformationModel,
)
from scp_server.services.query_retrieve.negotiation import (
    SUPPORTED,
    FindByte,
    RelationalQueries,
    offered,
)
from scp_server.settings import Settings
from scp_server.settings.show import flat

Statement = dict[str, Any]

_NAME_OF_LEVEL = {level: name for name, level in LEVEL_NAMES.items()}

MATCHING: Mapping[str, Sequence[str]] = {
    "single value": ["every VR but SQ"],
    "list of UIDs": ["UI"],
    "universal": ["every VR"],
    "wild card": sorted(WILD_CARD_VRS),
    "range": sorted(RANGE_VRS),
    "sequence": ["SQ"],
    "empty value (negotiated)": ["every VR of text"],
    "multiple values (negotiated)": sorted(MULTIPLE_VALUE_VRS),
}
"""Matching types and the VRs that they are offered for (PS3.4 C.2.2.2)."""

_OTHER_NAMES: Mapping[str, str] = {
    EXPLICIT_VR_LITTLE_ENDIAN_64: "DICOS Explicit VR Little Endian with 64-bit lengths"
}
"""What pydicom has no name for."""

NOT_SUPPORTED = (
    "TLS, and the checking of user identities (they are accepted)",
    "Compressing: a retrieve decodes and re-encodes where it must, and compresses nothing (docs/retrieve.md)",
    "Modality Performed Procedure Step and Storage Commitment as SCP",
    "Asynchronous operations: the window is answered with 1/1",
    "SOP Class Common Extended Negotiation: never answered",
)
"""What no table of the code says."""
_BOUNDS = ("limits", "timeouts", "query", "retrieve", "codecs", "quarantine", "index")
"""Sections of settings whose numbers are limits and timers."""


def statement(settings: Settings) -> Statement:
    """What a server with these settings conforms to. Imports pydicom, for names."""
    policy = build_policy(settings)
    return {
        "implementation": {
            "name": "scp_server",
            "version": __version__,
            "implementation_class_uid": policy.implementation_class_uid,
            "implementation_version_name": policy.implementation_version_name,
        },
        "association": _association(settings, policy),
        "scp": {
            "verification": [_named(VERIFICATION_SOP_CLASS_UID)],
            "query": [_named(uid) for uid in FIND_MODELS],
            "retrieve": [_named(uid) for uid in sorted(RETRIEVE_SOP_CLASSES, key=_uid_order)],
            "storage": [_named(uid) for uid in sorted(policy.storage_sop_classes, key=_uid_order)],
            "storage_below": list(policy.storage_prefixes),
            "any_other_storage": policy.any_sop_class,
        },
        "scu": ["C-ECHO", "C-STORE", "C-FIND", "C-MOVE", "C-GET", "Modality Worklist C-FIND"],
        "transfer_syntaxes": {
            "storage": _syntaxes(policy.transfer_syntaxes),
            "query": _syntaxes(policy.service_transfer_syntaxes),
        },
        "storage": _storage(settings),
        "query": _query(settings),
        "retrieve": _retrieve(settings),
        "limits": _limits(settings),
        "not_supported": _not_supported(policy),
    }


def _association(settings: Settings, policy: NegotiationPolicy) -> Statement:
    limits, timeouts = settings.limits, settings.timeouts
    return {
        "ae_title": settings.listen.ae_title,
        "called_ae_title_required": settings.access.require_called_ae_title,
        "known_peers_only": settings.access.known_peers_only,
        "peers": len(settings.peers),
        "application_context_names": sorted(policy.application_context_names, key=_uid_order),
        "maximum_length_bytes": limits.max_pdu_bytes,
        "max_associations": limits.max_associations,
        "asynchronous_operations_window": [1, 1],
        "artim_seconds": timeouts.artim_seconds,
        "dimse_seconds": timeouts.dimse_seconds,
        "idle_seconds": timeouts.idle_seconds,
        "dicos_idle_seconds": timeouts.dicos_idle_seconds,
    }


def _coercion(settings: Settings) -> str:
    """What is said of coercion (PS3.4 B.4.1.3): which attributes rules change, and what the sender hears."""
    if not settings.coerce:
        return "none by rules; callbacks may" if settings.plugins else "none"
    rules = [
        f"{rule.name}: {', '.join(rule.changes.names)} ({'0xB000' if rule.warning else '0x0000'})"
        for rule in settings.coerce
    ]
    return (
        f"by rules, {'; '.join(rules)}. Original values are kept in Original Attributes Sequence (0400,0561)"
    )


def _validation(settings: Settings) -> str:
    """What is said of invalid objects: the policies for DICOS, for others, and of peers."""
    validation = settings.validation
    of_peers = [f"{peer.name} {peer.validation}" for peer in settings.peers if peer.validation]
    policies = [f"DICOS {validation.dicos}", f"others {validation.medical}", *of_peers]
    refused = f"; refused from {validation.refuse_from} on, with A900 or C000"
    return ", ".join(policies) + (refused if _refuses_invalid(settings) else "")


def _refuses_invalid(settings: Settings) -> bool:
    policies = {settings.validation.dicos, settings.validation.medical}
    return bool({"quarantine", "refuse"} & {*policies, *(peer.validation for peer in settings.peers)})


def _storage(settings: Settings) -> Statement:
    return {
        "level": "2 (full): every element is kept, as the bytes that were received"
        + (", but for those that are coerced" if settings.coerce else ""),
        "coercion": _coercion(settings),
        "durability": settings.storage.durability,
        "duplicates": settings.storage.duplicates,
        "dicos_duplicates": settings.storage.dicos_duplicates,
        "validation": _validation(settings),
        "statuses": _statuses(
            (Status.SUCCESS, "durable as configured, indexed"),
            (Status.OUT_OF_RESOURCES, "no space, a failing disk or index, or larger than allowed"),
            (Status.DATASET_DOES_NOT_MATCH_SOP_CLASS, "other UIDs in the data set than in the command"),
            (Status.CANNOT_UNDERSTAND, "cut, damaged, or without the UIDs that it needs"),
            (Status.DUPLICATE_SOP_INSTANCE_KEPT, "other data is kept under this SOP Instance UID"),
            (Status.DUPLICATE_SOP_INSTANCE_REJECTED, "the same, with the policy reject"),
            (Status.INVALID_SOP_INSTANCE, "the SOP Instance UID is none"),
            (Status.SOP_CLASS_NOT_SUPPORTED, "the SOP class is not the presentation context's"),
        ),
    }


def _query(settings: Settings) -> Statement:
    query = settings.query
    answered = offered(RelationalQueries(query.relational))
    return {
        "models": [
            {
                **_named(model.find_sop_class_uid),
                "levels": [{"level": _NAME_OF_LEVEL[level], **_keys(model, level)} for level in model.levels],
            }
            for model in FIND_MODELS.values()
        ],
        "relational": query.relational,
        "extended_negotiation": {byte.name.lower(): bool(answered[byte]) for byte in FindByte},
        "other_keys": "any other attribute, standard, private or of DICOS, is returned and matched from the "
        "header of the entity's first instance, all but pixel data and values above "
        f"{settings.limits.max_header_value_bytes} bytes",
        "decisions": "AlarmDecision, AlarmDecisionTime and TDRType of a study are those of the report that "
        "decides on the scan now, and of a patient those of its studies; of series and images they are the "
        "reports' own",
        "matching": {name: list(vrs) for name, vrs in MATCHING.items()},
        "person_names": "without regard to case and width, by component group",
        "several_values": "any of them, unless multiple value matching was negotiated",
        "unknown_values_match": query.unknown_values_match,
        "header_match_rows": query.header_match_rows,
        "max_matches": query.max_matches,
        "character_sets": list(DEFINED_TERMS),
        "statuses": _statuses(
            (Status.PENDING, "a match"),
            (Status.PENDING_OPTIONAL_KEYS_NOT_SUPPORTED, "a match; a key was left out, or not matched"),
            (Status.SUCCESS, "every match was sent"),
            (Status.CANCEL, "after a C-CANCEL"),
            (Status.OUT_OF_RESOURCES, "more matches than allowed, or a failing index"),
            (Status.IDENTIFIER_DOES_NOT_MATCH_SOP_CLASS, "level or unique keys break the model's rules"),
            (Status.CANNOT_UNDERSTAND, "the identifier cannot be read, or has an impossible value"),
            (Status.SOP_CLASS_NOT_SUPPORTED, "the SOP class is not the presentation context's"),
        ),
    }


def _retrieve(settings: Settings) -> Statement:
    return {
        "destinations": [remote.ae_title for remote in settings.remotes],
        "associations_of_a_move": settings.retrieve.associations,
        "max_suboperations": settings.retrieve.max_suboperations,
        "pending_seconds": settings.retrieve.pending_seconds,
        "sent_in": _syntaxes(UNCOMPRESSED),
        "given_another": [
            *({**syntax, "how": "re-encoded"} for syntax in _syntaxes(UNCOMPRESSED)),
            *({**_named(uid), "how": _decoding(codec)} for uid, codec in CODECS.items()),
        ],
        "statuses": _statuses(
            (Status.PENDING, "sub-operations go on, with all four counts"),
            (Status.SUCCESS, "every object was taken"),
            (Status.SUBOPERATIONS_COMPLETE_WITH_FAILURES, "some failed, or were taken with a warning"),
            (Status.CANCEL, "after a C-CANCEL"),
            (Status.UNABLE_TO_CALCULATE_NUMBER_OF_MATCHES, "more objects than allowed, or a failing index"),
            (Status.UNABLE_TO_PERFORM_SUBOPERATIONS, "none was taken"),
            (Status.MOVE_DESTINATION_UNKNOWN, "the move destination is none of the remotes"),
            (Status.IDENTIFIER_DOES_NOT_MATCH_SOP_CLASS, "level or unique keys break the model's rules"),
            (Status.CANNOT_UNDERSTAND, "the identifier cannot be read"),
        ),
    }


def _decoding(codec: Codec) -> str:
    """How compressed objects are given another transfer syntax with what is installed here."""
    return f"decoded as {codec}" if is_available(codec) else f"not decoded: {MISSING_EXTRA}"


def _limits(settings: Settings) -> dict[str, int | float]:
    """Every number that bounds memory, time or a count, by its setting."""
    return {
        name: value
        for name, value in flat(settings).items()
        if name.partition(".")[0] in _BOUNDS
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    }


def _not_supported(policy: NegotiationPolicy) -> list[str]:
    """Services that a peer could be allowed, and are not there; what extended negotiation answers with 0."""
    known = frozenset[str]().union(*SERVICE_SOP_CLASSES.values())
    services = [_named(uid) for uid in sorted(known - policy.service_sop_classes, key=_uid_order)]
    options = [byte.name.replace("_", " ").lower() for byte in FindByte if byte not in SUPPORTED]
    return [
        *(f"{service['name']} ({service['uid']}) as SCP" for service in services),
        *(f"Queries: {option}" for option in options),
        *NOT_SUPPORTED,
    ]


def _keys(model: InformationModel, level: EntityLevel) -> Statement:
    """The keys of one level of a model, and those below that it knows."""
    unique = UNIQUE_KEYS[level]
    required = [tag for tag in REQUIRED_KEYS[level] if tag != unique]
    if level == model.levels[0]:
        # Where a model has no patients, their keys are its studies' (PS3.4 C.6.2.1).
        above = [each for each in REQUIRED_KEYS if each < level]
        required += [tag for each in above for tag in (UNIQUE_KEYS[each], *REQUIRED_KEYS[each])]
    own = {
        tag
        for tag, column in COLUMNS.items()
        if max(column.level, model.levels[0]) == level and tag != unique and tag not in required
    }
    below = {tag for tag, column in COLUMNS.items() if column.level > level} - set(UNIQUE_KEYS.values())
    computed = {tag for tag, column in BELOW.items() if column.level > level} | {
        tag for tag, column in COUNTS.items() if column.level <= level
    }
    if level <= EntityLevel.STUDY:
        below -= DECISIONS.keys()
        computed |= DECISIONS.keys()
    return {
        "unique": _keyword(unique),
        "required": [_keyword(tag) for tag in required],
        "optional": [_keyword(tag) for tag in sorted(own)],
        "values_below": [_keyword(tag) for tag in sorted(below)],
        "computed": [_keyword(tag) for tag in sorted(computed)],
        "ours": [_keyword(RETRIEVE_AE_TITLE), _keyword(INSTANCE_AVAILABILITY)],
    }


def _statuses(*statuses: tuple[Status, str]) -> dict[str, str]:
    return {f"{status.value:04X}": meaning for status, meaning in statuses}


def _syntaxes(uids: Iterable[str]) -> list[dict[str, str]]:
    return [
        {"uid": uid, "name": "any other, in the requestor's order"}
        if uid == ANY_OTHER_TRANSFER_SYNTAX
        else _named(uid)
        for uid in uids
    ]


def _named(uid: str) -> dict[str, str]:
    from pydicom.uid import UID

    name = UID(uid).name
    return {"uid": uid, "name": _OTHER_NAMES.get(uid, "") if name == uid else name}


def _keyword(tag: int) -> str:
    from pydicom.datadict import keyword_for_tag

    return keyword_for_tag(tag) or dicos.keyword_of(tag) or tag_text(tag)


def _uid_order(uid: str) -> list[int]:
    return [int(part) for part in uid.split(".")]
