"""The information models of Query/Retrieve, their levels and unique keys (PS3.4 C.3, C.6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from scp_server.index.search import EntityLevel

QUERY_RETRIEVE_LEVEL: Final = 0x00080052

LEVEL_NAMES: Final[Mapping[str, EntityLevel]] = {
    "PATIENT": EntityLevel.PATIENT,
    "STUDY": EntityLevel.STUDY,
    "SERIES": EntityLevel.SERIES,
    "IMAGE": EntityLevel.INSTANCE,
}
"""The values of Query/Retrieve Level (0008,0052)."""

UNIQUE_KEYS: Final[Mapping[EntityLevel, int]] = {
    EntityLevel.PATIENT: 0x00100020,
    EntityLevel.STUDY: 0x0020000D,
    EntityLevel.SERIES: 0x0020000E,
    EntityLevel.INSTANCE: 0x00080018,
}
"""The tag of each level's unique key (PS3.4 C.6.1.1)."""

REQUIRED_KEYS: Final[Mapping[EntityLevel, tuple[int, ...]]] = {
    EntityLevel.PATIENT: (0x00100010,),
    EntityLevel.STUDY: (0x00080020, 0x00080030, 0x00080050, 0x00200010),
    EntityLevel.SERIES: (0x00080060, 0x00200011),
    EntityLevel.INSTANCE: (0x00200013,),
}
"""The tags of each level's required keys (PS3.4 Tables C.6-1 to C.6-4)."""


@dataclass(frozen=True, slots=True)
class InformationModel:
    """One model. `levels` are those that it has, the highest first."""

    name: str
    find_sop_class_uid: str
    move_sop_class_uid: str
    get_sop_class_uid: str
    levels: tuple[EntityLevel, ...]

    def higher_levels(self, level: EntityLevel) -> tuple[EntityLevel, ...]:
        """Those above `level`: each has a unique key that a hierarchical query gives."""
        return tuple(other for other in self.levels if other < level)

    def belongs_to_higher_level(self, attribute_level: EntityLevel, level: EntityLevel) -> bool:
        """Whether an attribute of one level is a higher level's in a query of another.

        Where a model has no patients, their attributes are its studies' (PS3.4 C.6.2.1).
        """
        return max(attribute_level, self.levels[0]) < level


PATIENT_ROOT: Final = InformationModel(
    "Patient Root",
    "1.2.840.10008.5.1.4.1.2.1.1",
    "1.2.840.10008.5.1.4.1.2.1.2",
    "1.2.840.10008.5.1.4.1.2.1.3",
    (EntityLevel.PATIENT, EntityLevel.STUDY, EntityLevel.SERIES, EntityLevel.INSTANCE),
)
STUDY_ROOT: Final = InformationModel(
    "Study Root",
    "1.2.840.10008.5.1.4.1.2.2.1",
    "1.2.840.10008.5.1.4.1.2.2.2",
    "1.2.840.10008.5.1.4.1.2.2.3",
    (EntityLevel.STUDY, EntityLevel.SERIES, EntityLevel.INSTANCE),
)
PATIENT_STUDY_ONLY: Final = InformationModel(
    "Patient/Study Only",
    "1.2.840.10008.5.1.4.1.2.3.1",
    "1.2.840.10008.5.1.4.1.2.3.2",
    "1.2.840.10008.5.1.4.1.2.3.3",
    (EntityLevel.PATIENT, EntityLevel.STUDY),
)

_MODELS: Final = (PATIENT_ROOT, STUDY_ROOT, PATIENT_STUDY_ONLY)

FIND_MODELS: Final[Mapping[str, InformationModel]] = {model.find_sop_class_uid: model for model in _MODELS}
"""By the SOP class of C-FIND."""
MOVE_MODELS: Final[Mapping[str, InformationModel]] = {model.move_sop_class_uid: model for model in _MODELS}
"""By the SOP class of C-MOVE."""
GET_MODELS: Final[Mapping[str, InformationModel]] = {model.get_sop_class_uid: model for model in _MODELS}
"""By the SOP class of C-GET."""
RETRIEVE_SOP_CLASSES: Final = frozenset({*MOVE_MODELS, *GET_MODELS})
"""Those of C-MOVE and C-GET."""
