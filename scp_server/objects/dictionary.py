"""VRs of elements whose data set does not state them: DICOS's for its objects, DICOM's otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

from scp_server.objects.dicos import dictionary as dicos
from scp_server.objects.vr import LONG_FORM_VRS, SHORT_FORM_VRS

_PIXEL_DATA: Final = 0x7FE00010


@cache
def _dicom_alternatives() -> dict[int, str]:
    """DICOM's VRs by tag, several as `US or SS`. From pydicom, whose import is put off until an implicit VR
    object arrives."""
    from pydicom import datadict

    dictionary: Mapping[int, tuple[str, ...]] = datadict.DicomDictionary  # type: ignore[attr-defined]
    return {tag: entry[0] for tag, entry in dictionary.items()}


@cache
def _dicom() -> dict[int, str]:
    """The same, the first alternative alone."""
    return {tag: vr.partition(" or ")[0] for tag, vr in _dicom_alternatives().items()}


@cache
def sequence_tags(is_dicos: bool) -> frozenset[int]:
    """The tags of all sequences. The first call for DICOM reads its dictionary, a tenth of a second."""
    tags = {tag for tag, vr in _dicom().items() if vr == "SQ"}
    if is_dicos:
        ours = dicos.attributes()
        tags -= ours.keys()
        tags |= {tag for tag, entry in ours.items() if entry.vr == "SQ"}
    return frozenset(tags)


def vr_of(tag: int, is_dicos: bool) -> str:
    """The VR of an element in implicit VR: UN where neither dictionary has it (PS3.5 6.2.2, 7.8.1, A.1)."""
    if tag == _PIXEL_DATA:
        return "OW"
    vr = dicos.vr_of(tag) if is_dicos else None
    vr = vr or _dicom().get(tag)
    if vr is not None:
        return vr
    group, element = tag >> 16, tag & 0xFFFF
    if element == 0:
        return "UL"
    if group & 1:
        return "LO" if 0x10 <= element <= 0xFF else "UN"
    return _repeating_vr(tag)


def implied_vr(tag: int, is_dicos: bool, is_signed: bool) -> str:
    """The VR to write where the data set has none, one of several alternatives chosen by PS3.5 A.1.

    OW wherever it is one of them; SS or SL instead of US or UL where (0028,0103) says that pixels are signed.
    UN for what is no VR of DICOM's (DICOS's dictionary has a few).
    """
    vr = vr_of(tag, is_dicos)
    if vr not in ("US", "OB", "UL"):
        return vr if vr.encode() in SHORT_FORM_VRS | LONG_FORM_VRS else "UN"
    alternatives = (dicos.vrs_of(tag) if is_dicos else ()) or _alternatives(tag)
    if "OW" in alternatives:
        return "OW"
    return alternatives[1] if is_signed and alternatives[1:] and alternatives[1] in ("SS", "SL") else vr


def _alternatives(tag: int) -> tuple[str, ...]:
    found = _dicom_alternatives().get(tag)
    return tuple((found or _repeating_alternatives(tag)).split(" or "))


def _repeating_vr(tag: int) -> str:
    """The VR of an element of a repeating group, curves and overlays (PS3.5 7.6)."""
    return _repeating_alternatives(tag).partition(" or ")[0]


def _repeating_alternatives(tag: int) -> str:
    from pydicom.datadict import dictionary_VR

    try:
        return str(dictionary_VR(tag))
    except KeyError:
        return "UN"
