"""The information models that can be queried, their levels, and what extended negotiation offers for them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final, Self

from scp_server.errors import QueryError


class QueryLevel(StrEnum):
    """Query/Retrieve Level (0008,0052) (PS3.4 C.6)."""

    PATIENT = "PATIENT"
    STUDY = "STUDY"
    SERIES = "SERIES"
    IMAGE = "IMAGE"


class QueryModel(StrEnum):
    """An information model, by the name that commands give it."""

    STUDY = "study"
    PATIENT = "patient"
    WORKLIST = "worklist"

    @property
    def sop_class_uid(self) -> str:
        """Its C-FIND SOP class (PS3.4 C.6.1.3, C.6.2.3, K.6.1.4)."""
        return _SOP_CLASS_UIDS[self]

    @property
    def move_sop_class_uid(self) -> str:
        """Its C-MOVE SOP class. Raises QueryError for a worklist."""
        return self._retrieve_uid(".2")

    @property
    def get_sop_class_uid(self) -> str:
        """Its C-GET SOP class. Raises QueryError for a worklist."""
        return self._retrieve_uid(".3")

    def _retrieve_uid(self, ending: str) -> str:
        """The classes of one model differ in their last component only (PS3.4 C.6.1.3, C.6.2.3)."""
        if not self.levels:
            raise QueryError("nothing can be retrieved from a worklist")
        return self.sop_class_uid.removesuffix(".1") + ending

    @property
    def levels(self) -> tuple[QueryLevel, ...]:
        """Its levels from the top; a worklist has none."""
        return _LEVELS[self]


_SOP_CLASS_UIDS: Final = {
    QueryModel.PATIENT: "1.2.840.10008.5.1.4.1.2.1.1",
    QueryModel.STUDY: "1.2.840.10008.5.1.4.1.2.2.1",
    QueryModel.WORKLIST: "1.2.840.10008.5.1.4.31",
}
_LEVELS: Final = {
    QueryModel.PATIENT: tuple(QueryLevel),
    QueryModel.STUDY: (QueryLevel.STUDY, QueryLevel.SERIES, QueryLevel.IMAGE),
    QueryModel.WORKLIST: (),
}

_SCHEDULED_STEP: Final = {
    "ScheduledStationAETitle": None,
    "ScheduledProcedureStepStartDate": None,
    "ScheduledProcedureStepStartTime": None,
    "Modality": None,
    "ScheduledPerformingPhysicianName": None,
    "ScheduledProcedureStepDescription": None,
    "ScheduledProcedureStepID": None,
}
_DEFAULT_KEYS: Final[dict[QueryLevel | None, dict[str, object]]] = {
    QueryLevel.PATIENT: dict.fromkeys(
        ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "NumberOfPatientRelatedStudies")
    ),
    QueryLevel.STUDY: dict.fromkeys(
        (
            "PatientName",
            "PatientID",
            "StudyDate",
            "StudyTime",
            "AccessionNumber",
            "ModalitiesInStudy",
            "StudyDescription",
            "NumberOfStudyRelatedInstances",
            "StudyInstanceUID",
        )
    ),
    QueryLevel.SERIES: dict.fromkeys(
        (
            "Modality",
            "SeriesNumber",
            "SeriesDescription",
            "NumberOfSeriesRelatedInstances",
            "SeriesInstanceUID",
        )
    ),
    QueryLevel.IMAGE: dict.fromkeys(("InstanceNumber", "SOPClassUID", "SOPInstanceUID")),
    None: {
        "PatientName": None,
        "PatientID": None,
        "AccessionNumber": None,
        "RequestedProcedureID": None,
        "RequestedProcedureDescription": None,
        "StudyInstanceUID": None,
        "ScheduledProcedureStepSequence": _SCHEDULED_STEP,
    },
}


def default_keys(level: QueryLevel | None) -> dict[str, object]:
    """What a query without any return key asks for at this level; None is the worklist."""
    return _DEFAULT_KEYS[level]


@dataclass(frozen=True, slots=True)
class QueryOptions:
    """What extended negotiation offers or agrees on for C-FIND, in the order of its bytes (PS3.4 C.5.1.1)."""

    relational: bool = False
    """Keys of any level, without the unique keys of the levels above."""
    combined_date_time: bool = False
    """A date range and a time range of one pair mean one span."""
    fuzzy_person_names: bool = False
    empty_values: bool = False
    """`""` (two quotation marks) finds what has no value."""
    multiple_values: bool = False
    """Of several values in a key, all must be there."""

    def encode(self) -> bytes:
        """The service-class-application-information, without absent ends, but three bytes (PS3.4 K.5)."""
        data = bytearray(len(_BYTES))
        for name, position in _POSITIONS.items():
            data[position] = getattr(self, name)
        return bytes(data).rstrip(b"\0").ljust(3, b"\0")

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read an answer; missing bytes are 0."""
        return cls(**{name: data[position : position + 1] == b"\1" for name, position in _POSITIONS.items()})

    def names(self) -> tuple[str, ...]:
        """The fields that are set."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name))

    def __and__(self, other: QueryOptions) -> QueryOptions:
        """What both have."""
        return QueryOptions(**dict.fromkeys(set(self.names()) & set(other.names()), True))


_BYTES: Final = (
    "relational",
    "combined_date_time",
    "fuzzy_person_names",
    "time_zone_adjustment",
    "enhanced_multi_frame",
    "empty_values",
    "multiple_values",
)
_POSITIONS: Final = {
    name: _BYTES.index(name)
    for name in ("relational", "combined_date_time", "fuzzy_person_names", "empty_values", "multiple_values")
}
