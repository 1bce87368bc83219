"""Where the value of a key comes from: a column of the index, a count, ourselves, or a stored header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from scp_server.index.schema import instances, patients, series, studies
from scp_server.index.search import EntityLevel
from scp_server.objects.summary import COLUMN_TAGS
from scp_server.services.query_retrieve.models import UNIQUE_KEYS

RETRIEVE_AE_TITLE: Final = 0x00080054
INSTANCE_AVAILABILITY: Final = 0x00080056
FIRST_PIXEL_TAG: Final = 0x7FE00000
"""Pixel data lies here and behind it, which no header has."""

_TABLES: Final = {
    EntityLevel.PATIENT: patients,
    EntityLevel.STUDY: studies,
    EntityLevel.SERIES: series,
    EntityLevel.INSTANCE: instances,
}
_NOT_KEYS: Final = frozenset({"specific_character_set"})


class Column(NamedTuple):
    """A column of the index, and the level whose entities have it."""

    name: str
    level: EntityLevel


COLUMNS: Final[Mapping[int, Column]] = {
    COLUMN_TAGS[column.name]: Column(column.name, level)
    for level, table in _TABLES.items()
    for column in table.columns
    if column.name in COLUMN_TAGS and column.name not in _NOT_KEYS
}
"""By tag, every attribute that has a column."""

DECISIONS: Final[Mapping[int, Column]] = {
    COLUMN_TAGS[name]: Column(f"current_{name}", EntityLevel.STUDY)
    for name in ("alarm_decision", "alarm_decision_time", "tdr_type")
}
"""Attributes of a report that, asked of a study or a patient, are those of the report that decides now."""

REFERENCED_SOP_INSTANCE_UID: Final = 0x00081155
BELOW: Final[Mapping[int, Column]] = {
    0x00080061: Column("modality", EntityLevel.SERIES),
    0x00080062: Column("sop_class_uid", EntityLevel.INSTANCE),
    REFERENCED_SOP_INSTANCE_UID: Column("referenced_sop_instance_uid", EntityLevel.INSTANCE),
}
"""Attributes that are the distinct values of a column of everything below (PS3.4 C.3.4); the last is ours."""

COUNTS: Final[Mapping[int, Column]] = {
    0x00201200: Column("number_of_patient_related_studies", EntityLevel.PATIENT),
    0x00201202: Column("number_of_patient_related_series", EntityLevel.PATIENT),
    0x00201204: Column("number_of_patient_related_instances", EntityLevel.PATIENT),
    0x00201206: Column("number_of_study_related_series", EntityLevel.STUDY),
    0x00201208: Column("number_of_study_related_instances", EntityLevel.STUDY),
    0x00201209: Column("number_of_series_related_instances", EntityLevel.SERIES),
}
"""Attributes that are counted (PS3.4 C.3.4), and whose entities have them."""

UNIQUE_KEY_LEVELS: Final = {tag: level for level, tag in UNIQUE_KEYS.items()}
