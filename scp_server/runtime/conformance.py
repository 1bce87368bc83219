"""The conformance statement of a configuration, as data (PS3.2): what it says follows from the tables that
the server works with, and from the settings. `conformance_page` makes a page of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from scp_server import __version__
from scp_server.index.search import EntityLevel
from scp_server.net.access import SERVICE_SOP_CLASSES
from scp_server.net.requestor import DEFAULT_CONTEXTS
from scp_server.objects.dicos import dictionary as dicos
from scp_server.objects.dictionary import vr_of
from scp_server.objects.matching import MULTIPLE_VALUE_VRS, RANGE_VRS, WILD_CARD_VRS
from scp_server.objects.query_keys import keyword_of
from scp_server.objects.summary import COLUMN_TAGS
from scp_server.objects.text import DEFINED_TERMS
from scp_server.objects.vr import NUMBER_BYTES, TEXT_VRS, tag_text
from scp_server.protocol.negotiation import (
    ANY_OTHER_TRANSFER_SYNTAX,
    DICOM_APPLICATION_CONTEXT,
    NegotiationPolicy,
)
from scp_server.protocol.status import Status
from scp_server.runtime.build import build_policy
from scp_server.services.query_retrieve.attributes import (
    BELOW,
    COLUMNS,
    COUNTS,
    INSTANCE_AVAILABILITY,
    RETRIEVE_AE_TITLE,
    Column,
)
from scp_server.services.query_retrieve.models import (
    FIND_MODELS,
    LEVEL_NAMES,
    REQUIRED_KEYS,
    UNIQUE_KEYS,
)
from scp_server.services.query_retrieve.negotiation import FindByte
from scp_server.services.query_retrieve.plan import ASSESSMENTS
from scp_server.settings import Settings
from scp_server.settings.schema import keys_of
from scp_server.settings.show import flat, shown

Statement = dict[str, Any]

_LEVEL_NAME: Final = {level: name for name, level in LEVEL_NAMES.items()}
_DICOS_GROUP: Final = 0x4010
_BOUNDS: Final = ("limits", "timeouts", "query", "quarantine", "index")
"""Sections of settings whose numbers are bounds."""
_BYTES_VRS: Final = ("OB", "OD", "OF", "OL", "OV", "OW", "UN")

STORE_STATUSES: Final[Mapping[int, str]] = {
    Status.SUCCESS: "kept, as durable as storage.durability says, and indexed; or it was so before",
    Status.INVALID_SOP_INSTANCE: "the command's SOP Instance UID breaks the rules of UIDs",
    Status.SOP_CLASS_NOT_SUPPORTED: "another SOP class than its presentation context's",
    Status.OUT_OF_RESOURCES: "no space, a failing disk or index, or more than limits.max_object_bytes",
    Status.DATASET_DOES_NOT_MATCH_SOP_CLASS: "the UIDs of command and data set differ",
    Status.CANNOT_UNDERSTAND: "the data set cannot be read, or lacks a UID that an archive needs",
    Status.DUPLICATE_SOP_INSTANCE_KEPT: "other bytes are kept under this UID (policy keep_first)",
    Status.DUPLICATE_SOP_INSTANCE_REJECTED: "other bytes are kept under this UID (policy reject)",
}
FIND_STATUSES: Final[Mapping[int, str]] = {
    Status.SUCCESS: "every match was sent",
    Status.PENDING: "a match; every key was supported",
    Status.PENDING_OPTIONAL_KEYS_NOT_SUPPORTED: "a match; a key was left out, or returned and not matched",
    Status.CANCEL: "a C-CANCEL-RQ ended it",
    Status.SOP_CLASS_NOT_SUPPORTED: "another SOP class than its presentation context's",
    Status.OUT_OF_RESOURCES: "more than query.max_matches matches, or the index cannot be searched",
    Status.IDENTIFIER_DOES_NOT_MATCH_SOP_CLASS: "a level or unique key that the model does not allow",
    Status.CANNOT_UNDERSTAND: "an identifier that cannot be read, is too large, or has impossible values",
}
NOT_SUPPORTED: Final = (
    "TLS, and checking of user identities: any is let in",
    "more than one operation at a time on an association: the asynchronous operations window is 1, 1",
    "SOP Class Common Extended Negotiation: never answered",
    "storage commitment, MPPS, printing, media",
    "coercion: data sets are kept and sent as they came",
)
"""What no table says."""


def statement(settings: Settings) -> Statement:
    """Everything that the statement says, as plain data."""
    policy = build_policy(settings)
    return {
        "implementation": {
            "name": "scp_server",
            "version": __version__,
            "implementation_class_uid": policy.implementation_class_uid,
            "implementation_version_name": policy.implementation_version_name,
        },
        "ae_title": settings.listen.ae_title,
        "called_ae_titles": sorted(policy.required_called_ae_titles) or "any",
        "known_peers_only": settings.access.known_peers_only,
        "peers": [peer.name for peer in settings.peers],
        "application_contexts": [
            {"uid": uid, "of": "DICOM" if uid == DICOM_APPLICATION_CONTEXT else "DICOS"}
            for uid in sorted(policy.application_context_names)
        ],
        "acceptor": _acceptor(policy),
        "requestor": _requestor(),
        "storage": _storage(settings, policy),
        "query": _query(settings, policy),
        "character_sets": list(DEFINED_TERMS),
        "bounds": _bounds(settings),
        "not_supported": _not_supported(policy),
    }


def name_of(uid: str) -> str:
    """What DICOM or DICOS calls a UID; the UID itself where neither has it."""
    from pydicom.uid import UID

    return str(UID(uid, 0).name)


def _named(uid: str) -> dict[str, str]:
    return {"uid": uid, "name": name_of(uid)}


def _acceptor(policy: NegotiationPolicy) -> list[Statement]:
    return [
        {
            **_named(uid),
            "role": "SCP",
            "transfer_syntaxes": [_named(syntax) for syntax in policy.service_transfer_syntaxes],
            "extended_negotiation": list(policy.extended_negotiations.get(uid, b"")),
        }
        for uid in sorted(policy.service_sop_classes)
    ]


def _requestor() -> list[Statement]:
    """What the commands and `Requestor` propose; C-STORE, whatever is sent as it is."""
    proposed = [
        {**_named(uid), "role": "SCU", "transfer_syntaxes": [_named(syntax) for syntax in syntaxes]}
        for uid, syntaxes in DEFAULT_CONTEXTS
    ]
    store = {
        "uid": "*",
        "name": "the SOP class of each object to send",
        "role": "SCU",
        "transfer_syntaxes": [{"uid": "*", "name": "the one that the object has"}],
    }
    return [*proposed, store]


def _storage(settings: Settings, policy: NegotiationPolicy) -> Statement:
    return {
        "sop_classes": [
            _named(uid) for uid in sorted(policy.storage_sop_classes, key=lambda uid: (name_of(uid), uid))
        ],
        "all_below": list(policy.storage_prefixes),
        "any_other_sop_class": policy.any_sop_class,
        "transfer_syntaxes": [
            {"uid": uid, "name": "any other that is proposed"}
            if uid == ANY_OTHER_TRANSFER_SYNTAX
            else _named(uid)
            for uid in policy.transfer_syntaxes
        ],
        "level": "Level 2 (full); the data set is kept byte for byte, private elements too",
        "durability": settings.storage.durability,
        "duplicates": settings.storage.duplicates,
        "dicos_duplicates": settings.storage.dicos_duplicates,
        "statuses": _statuses(STORE_STATUSES),
    }


def _statuses(meanings: Mapping[int, str]) -> list[Statement]:
    return [{"status": f"0x{status:04X}", "when": meaning} for status, meaning in meanings.items()]


def _query(settings: Settings, policy: NegotiationPolicy) -> Statement:
    return {
        "models": [
            {
                "name": model.name,
                "sop_class_uid": uid,
                "levels": [_LEVEL_NAME[level] for level in model.levels],
                "unique_keys": [_key_name(UNIQUE_KEYS[level]) for level in model.levels],
            }
            for uid, model in FIND_MODELS.items()
        ],
        "relational": settings.query.relational,
        "extended_negotiation": [
            {
                "byte": byte + 1,
                "name": byte.name.lower().replace("_", " "),
                "supported": all(policy.extended_negotiations[uid][byte] == 1 for uid in FIND_MODELS),
            }
            for byte in FindByte
        ],
        "keys": sorted(_keys(), key=lambda key: (LEVEL_NAMES[key["level"]], key["tag"])),
        "any_other_attribute": "returned, and matched against the header of an entity's first instance",
        "header_match_rows": settings.query.header_match_rows,
        "unknown_values_match": settings.query.unknown_values_match,
        "matching": [{"vr": vr, "types": list(matching_types(vr))} for vr in _vrs()],
        "statuses": _statuses(FIND_STATUSES),
    }


def _key_name(tag: int) -> str:
    return f"{keyword_of(tag)} {tag_text(tag)}"


def _keys() -> Iterable[Statement]:
    for tag, column in COLUMNS.items():
        if tag == UNIQUE_KEYS[column.level]:
            kind = "unique"
        else:
            kind = "required" if tag in REQUIRED_KEYS[column.level] else "optional"
        yield _key(tag, column.level, kind, "column", matched=True)
    for tag, column in BELOW.items():
        source = f"every {keyword_of(COLUMN_TAGS.get(column.name, tag))} below"
        yield _key(tag, _level_of_below(column), "optional", source, matched=True)
    for tag, column in COUNTS.items():
        yield _key(tag, column.level, "optional", "counted", matched=False)
    for tag in (RETRIEVE_AE_TITLE, INSTANCE_AVAILABILITY):
        yield _key(tag, EntityLevel.PATIENT, "optional", "the same for all", matched=False)
    for tag in ASSESSMENTS:
        source = "column of all values in Threat Sequence > ATD Assessment Sequence"
        yield {**_key(tag, EntityLevel.INSTANCE, "optional", source, matched=True), "in_sequence": True}


def _level_of_below(column: Column) -> EntityLevel:
    """Where such a key is asked for: of a study what is in it, of an image what it refers to."""
    references = column.name == "referenced_sop_instance_uid"
    return EntityLevel.INSTANCE if references else EntityLevel.STUDY


def _key(tag: int, level: EntityLevel, kind: str, source: str, *, matched: bool) -> Statement:
    return {
        "tag": f"{tag:08X}",
        "keyword": keyword_of(tag),
        "vr": vr_of(tag, is_dicos=tag >> 16 == _DICOS_GROUP),
        "level": _LEVEL_NAME[level],
        "kind": kind,
        "source": source,
        "matched": matched,
        "dicos": tag in dicos.attributes() and tag >> 16 == _DICOS_GROUP,
    }


def _vrs() -> tuple[str, ...]:
    return tuple(sorted({*TEXT_VRS, *NUMBER_BYTES, "AT", "SQ", *_BYTES_VRS}))


def matching_types(vr: str) -> Iterable[str]:
    """The kinds of matching that keys of a VR have (PS3.4 C.2.2.2)."""
    yield "universal"
    if vr == "SQ":
        yield "sequence"
        return
    yield "single value"
    if vr == "UI":
        yield "list of UIDs"
    if vr in WILD_CARD_VRS:
        yield "wild card"
    if vr in RANGE_VRS:
        yield "range"
    if vr in TEXT_VRS:
        yield "empty value, where agreed"
    if vr in MULTIPLE_VALUE_VRS:
        yield "multiple value, where agreed"


def _bounds(settings: Settings) -> list[Statement]:
    known = keys_of(type(settings))
    return [
        {"setting": name, "value": shown(value), "meaning": known[name].description}
        for name, value in flat(settings).items()
        if name.split(".")[0] in _BOUNDS and isinstance(value, int | float) and not isinstance(value, bool)
    ]


def _not_supported(policy: NegotiationPolicy) -> list[str]:
    accepted = policy.service_sop_classes
    classes = sorted(frozenset().union(*SERVICE_SOP_CLASSES.values()) - accepted)
    return [*(f"{name_of(uid)} ({uid})" for uid in classes), *NOT_SUPPORTED]
