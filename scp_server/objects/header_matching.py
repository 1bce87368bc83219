"""A query over stored headers alone: without levels, indexes or answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from scp_server.objects.identifier import IdentifierLimits, read_identifier, source_matches
from scp_server.objects.matching import MatchingOptions
from scp_server.objects.query import make_query
from scp_server.objects.query_encoding import encode_identifier
from scp_server.objects.query_model import QueryLevel
from scp_server.objects.raw_header import RawHeader
from scp_server.objects.uids import EXPLICIT_VR_LITTLE_ENDIAN, transfer_syntax

_SYNTAX: Final = transfer_syntax(EXPLICIT_VR_LITTLE_ENDIAN)


def header_matcher(keys: Mapping[str, object]) -> Callable[[RawHeader], bool]:
    """Whether an object has what a query asks for, every key by the rules of C-FIND (PS3.4 C.2.2.2).

    Keys are written as for `Requestor.find`. Raises QueryError.
    """
    query = make_query(keys, level=QueryLevel.IMAGE, complete=False)
    identifier = read_identifier(
        encode_identifier(query, _SYNTAX),
        EXPLICIT_VR_LITTLE_ENDIAN,
        is_dicos=False,
        options=MatchingOptions(),
        limits=IdentifierLimits(),
    )
    wanted = [key for key in identifier.keys if not key.is_universal]

    def matches(header: RawHeader) -> bool:
        return all(source_matches(header, key, unknown_values_match=False) for key in wanted)

    return matches
