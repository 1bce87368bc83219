"""Whether class, modality, version, content and File Meta of an object tell the same story."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from scp_server.objects.part10 import FileMeta
from scp_server.objects.uids import clean_uid, is_valid_uid
from scp_server.objects.validation.finding import Code, Findings, Path
from scp_server.objects.validation.subject import (
    DICOS_VERSION,
    SOP_CLASS_UID,
    TDR_TYPE,
    THREAT_SEQUENCE,
    Kind,
    Subject,
    coded,
)

_SOP_INSTANCE_UID: Final = 0x00080018
_MODALITY: Final = 0x00080060
_QR_MEASUREMENTS: Final = 0x40101071
_VERSIONS: Final = ("V01", "V02", "V02A", "V03")
_TDR_TYPES: Final = ("MACHINE", "OPERATOR", "GROUND TRUTH", "AGGREGATE", "MOD_AGGREGATE", "UNDEFINED")
_MODALITIES: Final[Mapping[Kind, tuple[str, ...]]] = {
    Kind.CT: ("CT",),
    Kind.DX: ("XRAY", "DX"),
    Kind.TDR: ("TDR",),
    Kind.AIT2D: ("AIT", "AIT2D"),
    Kind.AIT3D: ("AIT", "AIT3D"),
    Kind.QR: ("QR",),
}
_CONTENT: Final = ((TDR_TYPE, Kind.TDR), (THREAT_SEQUENCE, Kind.TDR), (_QR_MEASUREMENTS, Kind.QR))
"""Attributes that only one kind of object has."""


def check_identity(subject: Subject, findings: Findings) -> None:
    """Compare SOP class, content, Modality, version and TDR type."""
    _check_class(subject, findings)
    if not subject.is_dicos:
        return
    version = subject.dicos_version
    if version and version not in _VERSIONS:
        sentence = f"DICOSVersion is {version[:16]!a}; known are {', '.join(_VERSIONS)}."
        findings.add(Code.DICOS_VERSION, sentence, Path(DICOS_VERSION), "CS")
    if subject.kind is Kind.TDR and subject.tdr_type and subject.tdr_type not in _TDR_TYPES:
        sentence = f"TDRType is {subject.tdr_type[:16]!a}, which is none of its values."
        findings.add(Code.TDR_TYPE, sentence, Path(TDR_TYPE), "CS")
    modality = coded(subject.header, _MODALITY)
    allowed = _MODALITIES.get(subject.kind)
    if modality and allowed and modality not in allowed:
        sentence = f"Modality is {modality[:16]!a}; an object of this class has {' or '.join(allowed)}."
        findings.add(Code.MODALITY, sentence, Path(_MODALITY), "CS")


def _check_class(subject: Subject, findings: Findings) -> None:
    header, kind = subject.header, subject.kind
    if not subject.sop_class_uid:
        return
    if kind is Kind.MEDICAL:
        if DICOS_VERSION in header:
            sentence = "The object has a DICOSVersion, but its SOP class is not one of DICOS's."
            findings.add(Code.CLASS_CONTENT, sentence, Path(SOP_CLASS_UID), "UI")
        return
    for tag, other in _CONTENT:
        if tag in header and kind not in (other, Kind.OTHER_DICOS):
            sentence = f"The object has attributes of a {other}, but the SOP class of a {kind}."
            findings.add(Code.CLASS_CONTENT, sentence, Path(SOP_CLASS_UID), "UI")
            return


def check_file_meta(subject: Subject, meta: FileMeta, findings: Findings) -> None:
    """Compare the File Meta Information with the data set (PS3.10 7.1)."""
    for tag, name, value in (
        (0x00020002, "Media Storage SOP Class UID", meta.sop_class_uid),
        (0x00020003, "Media Storage SOP Instance UID", meta.sop_instance_uid),
        (0x00020010, "Transfer Syntax UID", meta.transfer_syntax_uid),
        (0x00020012, "Implementation Class UID", meta.implementation_class_uid),
    ):
        if not value:
            findings.add(Code.META_MISSING, f"The File Meta Information has no {name}.", Path(tag), "UI")
        elif not is_valid_uid(value):
            findings.add(Code.UID, f"{name} in the File Meta Information is no UID.", Path(tag), "UI")
    for tag, inside, value in (
        (0x00020002, SOP_CLASS_UID, meta.sop_class_uid),
        (0x00020003, _SOP_INSTANCE_UID, meta.sop_instance_uid),
    ):
        stated = clean_uid(subject.header.raw(inside) or b"")
        if value and stated and value != stated:
            sentence = "The File Meta Information and the data set have different UIDs."
            findings.add(Code.META_MISMATCH, sentence, Path(tag), "UI")
    if not subject.is_dicos or subject.dicos_version in ("V01", "V02", "V02A"):
        # Only from V03 on do files say their version.
        return
    if meta.dicos_version != subject.dicos_version:
        sentence = "The File Meta Information does not have the data set's DICOSVersion."
        findings.add(Code.META_VERSION, sentence, Path(0x00020004), "CS")
