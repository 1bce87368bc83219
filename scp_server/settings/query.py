"""The settings of queries and retrieves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scp_server.settings.limits import KIB, MIB, Count
from scp_server.settings.section import Section


class QuerySettings(Section):
    """How C-FIND is answered; docs/query.md says more."""

    relational: Literal["never", "negotiated", "always"] = Field(
        default="negotiated",
        description="Whether a query may leave out the unique keys of higher levels and match every key, and "
        "a retrieve leave them out: when that was negotiated, always, or never. A peer's own setting wins "
        "over always and negotiated.",
    )
    header_match_rows: Count = Field(
        default=5_000,
        description="How many headers one query may compare with keys that the index has no column for; "
        "further matches are returned with those keys unmatched, and the status 0xFF01 says so.",
    )
    unknown_values_match: bool = Field(
        default=False,
        description="Whether what has no value for a key matches it, whatever it asks for (PS3.4 C.2.2.1.2). "
        "Workstations expect that it does not.",
    )
    max_matches: int = Field(
        default=0,
        ge=0,
        description="Matches after which a query ends with 0xA700; 0 is no limit. They are streamed, so that "
        "many cost no memory.",
    )
    max_identifier_bytes: int = Field(
        default=MIB,
        ge=4 * KIB,
        le=64 * MIB,
        description="Largest identifier of a query or a retrieve; a larger one is refused with 0xC000.",
    )
    max_keys: Count = Field(
        default=1_000,
        le=100_000,
        description="Most keys of one query or retrieve, those in sequences too; more are refused with "
        "0xC000.",
    )
    max_values: Count = Field(
        default=16_384,
        le=1_000_000,
        description="Most values of all keys of one query together, such as UIDs in a list; more are refused "
        "with 0xC000. Each takes up to some hundred bytes of memory.",
    )
    max_wildcard_bytes: int = Field(
        default=8 * KIB,
        ge=256,
        le=MIB,
        description="Most bytes of all values together that have wild cards in one query (of all names, "
        "where fuzzy matching was agreed); more are refused with 0xC000. Each takes up to some hundred bytes "
        "of memory, and time for everything it is compared with.",
    )


class RetrieveSettings(Section):
    """How C-MOVE and C-GET are answered; docs/retrieve.md says more."""

    associations: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Associations that one C-MOVE sends over at once, where the destination takes so many. "
        "C-GET has its own only.",
    )
    max_suboperations: int = Field(
        default=65_535,
        ge=1,
        le=65_535,
        description="Most objects of one retrieve; more are refused with 0xA701 before anything is sent. "
        "65535 is the greatest number that its responses can count to.",
    )
    max_waiting_suboperations: int = Field(
        default=1_000_000,
        ge=1,
        description="Most objects of all retrieves together that are being sent or wait for it, about 512 "
        "bytes of memory each; a retrieve that does not fit is refused with 0xA701.",
    )
    pending_seconds: float = Field(
        default=2.0,
        gt=0,
        allow_inf_nan=False,
        description="Longest time without a pending response while objects are sent.",
    )
