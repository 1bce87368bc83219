"""Extended negotiation: what is offered, and what holds for one association (PS3.4 C.5.1.1, C.5.2.1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final, Self

from scp_server.interfaces import AssociationInfo
from scp_server.objects.matching import MatchingOptions
from scp_server.services.query_retrieve.models import InformationModel


class FindByte(IntEnum):
    """The bytes of the service-class application information of C-FIND (PS3.4 C.5.1.1)."""

    RELATIONAL_QUERIES = 0
    COMBINED_DATE_TIME = 1
    FUZZY_PERSON_NAMES = 2
    TIME_ZONE_ADJUSTMENT = 3
    ENHANCED_MULTI_FRAME_VIEW = 4
    EMPTY_VALUE = 5
    MULTIPLE_VALUES = 6


SUPPORTED: Final = frozenset(FindByte) - {FindByte.TIME_ZONE_ADJUSTMENT, FindByte.ENHANCED_MULTI_FRAME_VIEW}


class RelationalQueries(StrEnum):
    """When a query may leave out unique keys of higher levels."""

    NEVER = "never"
    NEGOTIATED = "negotiated"
    ALWAYS = "always"


def offered(relational: RelationalQueries) -> bytes:
    """What we agree to at most."""
    supported = SUPPORTED
    if relational is RelationalQueries.NEVER:
        supported -= {FindByte.RELATIONAL_QUERIES}
    return bytes(byte in supported for byte in FindByte)


def offered_to_retrieve(relational: RelationalQueries) -> bytes:
    """The same for C-MOVE and C-GET: relational retrievals, but no enhanced multi-frame view."""
    return bytes([relational is not RelationalQueries.NEVER, False])


def is_relational(association: AssociationInfo, sop_class_uid: str, relational: RelationalQueries) -> bool:
    """Whether unique keys of higher levels may be left out: agreed on, or so by its peer's rules."""
    if association.peer is not None and association.peer.relational is not None:
        return association.peer.relational
    agreed = association.extended_negotiations.get(sop_class_uid, b"")
    return relational is RelationalQueries.ALWAYS or agreed[:1] == b"\x01"


@dataclass(frozen=True, slots=True)
class QueryOptions:
    """What holds for the queries of one association."""

    relational: bool = False
    combined_date_time: bool = False
    matching: MatchingOptions = field(default_factory=MatchingOptions)

    @classmethod
    def of(cls, association: AssociationInfo, model: InformationModel, relational: RelationalQueries) -> Self:
        """What was agreed on for a model, and what its peer's rules say."""
        agreed = association.extended_negotiations.get(model.find_sop_class_uid, b"")

        def agreed_on(byte: FindByte) -> bool:
            return agreed[byte : byte + 1] == b"\x01"

        return cls(
            relational=is_relational(association, model.find_sop_class_uid, relational),
            combined_date_time=agreed_on(FindByte.COMBINED_DATE_TIME),
            matching=MatchingOptions(
                fuzzy_person_names=agreed_on(FindByte.FUZZY_PERSON_NAMES),
                empty_values=agreed_on(FindByte.EMPTY_VALUE),
                all_values=agreed_on(FindByte.MULTIPLE_VALUES),
            ),
        )
