"""What an object says that it is: the facts that decide which rules hold for it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from scp_server.objects.raw_header import AttributeSource, RawHeader
from scp_server.objects.uids import DICOS_SOP_CLASS_PREFIX, clean_uid, is_dicos_sop_class
from scp_server.objects.vr import TEXT_VRS

DIRECTORY_RECORDS: Final = 0x00041220
SOP_CLASS_UID: Final = 0x00080016
OOI_TYPE: Final = 0x40101042
DICOS_VERSION: Final = 0x4010103A
TDR_TYPE: Final = 0x40101027
THREAT_SEQUENCE: Final = 0x40101011
ALARM_DECISION: Final = 0x40101031
ABORT_FLAG: Final = 0x40101024
ADDITIONAL_SCREENING: Final = 0x4010106D
PRESENTATION_INTENT: Final = 0x00080068


class Kind(StrEnum):
    """The kinds of objects that have rules of their own."""

    CT = "CT"
    DX = "DX"
    TDR = "TDR"
    AIT2D = "AIT2D"
    AIT3D = "AIT3D"
    QR = "QR"
    OTHER_DICOS = "other DICOS"
    """A DICOS object of which only the common attributes are known: raw CT and AIT data, ETD, XRD."""
    MEDICAL = "medical"
    """Every other composite object."""
    DIRECTORY = "directory"
    """A DICOMDIR, which lists instances and is none (PS3.10 8.6)."""


_KINDS: Final = {
    **dict.fromkeys(("1", "1.1", "1.2", "1.3"), Kind.CT),
    "3": Kind.TDR,
    "6": Kind.QR,
    **dict.fromkeys(("4", "4.1", "4.2", "4.3"), Kind.AIT2D),
    **dict.fromkeys(("5", "5.1", "5.2", "5.3"), Kind.AIT3D),
}
"""By what follows the DICOS prefix in the SOP Class UID; DX is all below 2."""


def kind_of(sop_class_uid: str) -> Kind:
    """The kind of object of a SOP class."""
    if not is_dicos_sop_class(sop_class_uid):
        return Kind.MEDICAL
    below = sop_class_uid.removeprefix(DICOS_SOP_CLASS_PREFIX).removeprefix(".")
    if below.startswith("2."):
        return Kind.DX
    return _KINDS.get(below, Kind.OTHER_DICOS)


@dataclass(frozen=True, slots=True)
class Subject:
    """An object and what decides about its rules. Coded values are empty where they are absent."""

    header: RawHeader
    sop_class_uid: str
    kind: Kind
    dicos_version: str
    ooi_type: str
    tdr_type: str
    alarm_decision: str
    abort_flag: str
    additional_screening: str
    presentation_intent: str
    last_tag: int
    """Of a header that was cut, the last tag that is here: nothing is known of what follows."""

    @classmethod
    def of(cls, header: RawHeader, sop_class_uid: str = "") -> Subject:
        """Read the facts from a header; `sop_class_uid` is for one that has none of its own."""
        sop_class_uid = clean_uid(header.raw(SOP_CLASS_UID) or b"") or sop_class_uid
        return cls(
            header=header,
            sop_class_uid=sop_class_uid,
            kind=Kind.DIRECTORY if DIRECTORY_RECORDS in header else kind_of(sop_class_uid),
            dicos_version=coded(header, DICOS_VERSION),
            ooi_type=coded(header, OOI_TYPE),
            tdr_type=coded(header, TDR_TYPE),
            alarm_decision=coded(header, ALARM_DECISION),
            abort_flag=coded(header, ABORT_FLAG),
            additional_screening=coded(header, ADDITIONAL_SCREENING),
            presentation_intent=coded(header, PRESENTATION_INTENT),
            last_tag=max(header.tags(), default=0),
        )

    @property
    def is_dicos(self) -> bool:
        """The SOP class is one of DICOS's."""
        return self.kind not in (Kind.MEDICAL, Kind.DIRECTORY)

    def is_known_absent(self, tag: int) -> bool:
        """An element of the data set itself is absent, and not only beyond what was kept of the header."""
        return tag not in self.header and not (self.header.truncated and tag > self.last_tag)

    def is_whole(self, tag: int) -> bool:
        """A sequence of the data set itself has been kept to its end."""
        element = self.header.get(tag)
        if element is None:
            return False
        start, end = element.offset_bytes, element.offset_bytes + element.length_bytes
        if self.header.truncated and tag >= self.last_tag:
            return False
        return not any(
            start <= gap.offset_bytes < end <= gap.offset_bytes + gap.length_bytes for gap in self.header.gaps
        )


def coded(source: AttributeSource, tag: int) -> str:
    """A coded value, without padding; empty where it is absent."""
    return (source.text(tag) or "")[:64]


def is_empty(source: AttributeSource, tag: int) -> bool:
    """An element that is there has no value: no bytes, nothing but padding in text, or no item."""
    element = source.get(tag)
    if element is None or not element.length_bytes:
        return True
    if element.vr == "SQ" or element.value is None or len(element.value) > 64:
        return False
    return element.vr in TEXT_VRS and not element.value.strip(b" \0")
