"""Deciding whether what the index found really matches, and making its answer.

Runs in the index's threads, one page after another: nothing here waits, and nothing is shared between queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from scp_server.index.search import MAX_DISTINCT_VALUES, ColumnValue, Entity, EntityLevel
from scp_server.objects.dictionary import vr_of
from scp_server.objects.identifier import Key, source_matches
from scp_server.objects.matching import CombinedDateTime
from scp_server.objects.raw_header import RawHeader, Scalar
from scp_server.objects.response_dataset import ResponseDataset
from scp_server.protocol.status import Status
from scp_server.services.query_retrieve.attributes import COLUMNS, INSTANCE_AVAILABILITY, RETRIEVE_AE_TITLE
from scp_server.services.query_retrieve.models import (
    LEVEL_NAMES,
    QUERY_RETRIEVE_LEVEL,
    UNIQUE_KEYS,
    InformationModel,
)

_ONLINE: Final = "ONLINE"
_NAMES_OF_LEVELS: Final = {level: name for name, level in LEVEL_NAMES.items()}
_DATE_TIME_PAIRS: Final = (
    (0x00080012, 0x00080013),
    (0x00080020, 0x00080030),
    (0x00080021, 0x00080031),
    (0x00080022, 0x00080032),
    (0x00080023, 0x00080033),
    (0x00100030, 0x00100032),
)
"""Dates and times that combined date-time matching takes for one (PS3.4 C.2.2.2.5.4)."""


class ColumnKey(NamedTuple):
    """A key whose values are among what the index gives."""

    key: Key
    name: str
    matched: bool


class Answer(NamedTuple):
    """One match: 0xFF00 or 0xFF01, and the data set."""

    status: Status
    dataset: bytes


class EntityJudge:
    """Decides about each entity of one query, and makes its answer."""
