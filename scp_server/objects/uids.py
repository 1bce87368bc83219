"""UIDs: how peers' are cleaned and judged, and what a transfer syntax UID says of a data set's encoding."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_UID_CHARACTERS = 64
"""Longest UID (PS3.5 9.1)."""

PRIVATE_INFORMATION_CREATOR_UID = "2.25.197610378532489170355148836284936407184"
"""Owner of the record in (0002,0102) of files we write (PS3.10 7.1)."""

DICOS_SOP_CLASS_PREFIX = "1.2.840.10008.5.1.4.1.1.501"

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
EXPLICIT_VR_LITTLE_ENDIAN_64 = "1.2.840.10008.1.2.1.64"
"""DICOS: explicit VR little endian in which OB, OF, OL and OW have a 64-bit length."""
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
GE_PRIVATE_IMPLICIT = "1.2.840.113619.5.2"
"""GE's implicit VR little endian with big endian pixels."""
JPEG_BASELINE_8_BIT = "1.2.840.10008.1.2.4.50"
JPEG_LOSSLESS_SV1 = "1.2.840.10008.1.2.4.70"
JPEG_LS_LOSSLESS = "1.2.840.10008.1.2.4.80"
JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
JPIP_REFERENCED = "1.2.840.10008.1.2.4.94"
JPIP_REFERENCED_DEFLATE = "1.2.840.10008.1.2.4.95"
JPIP_HTJ2K_REFERENCED = "1.2.840.10008.1.2.4.204"
JPIP_HTJ2K_REFERENCED_DEFLATE = "1.2.840.10008.1.2.4.205"
RLE_LOSSLESS = "1.2.840.10008.1.2.5"
DEFLATED_IMAGE_FRAME = "1.2.840.10008.1.2.8.1"
"""Its frames are deflated; its data set is not (PS3.5 A.4.13)."""

_VALID_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*").fullmatch


@dataclass(frozen=True, slots=True)
class TransferSyntax:
    """How a data set of this transfer syntax is encoded (PS3.5 A)."""

    uid: str
    implicit_vr: bool = False
    little_endian: bool = True
    deflated: bool = False
    """The data set is one deflate stream (PS3.5 A.5)."""
    encapsulated: bool = False
    """Pixel data lies in fragments (PS3.5 A.4); false also where nothing is known of the UID."""
    long_lengths: bool = False
    """OB, OF, OL and OW have two reserved bytes and a 64-bit length (DICOS)."""


_NAMED = {
    syntax.uid: syntax
    for syntax in (
        TransferSyntax(IMPLICIT_VR_LITTLE_ENDIAN, implicit_vr=True),
        TransferSyntax(GE_PRIVATE_IMPLICIT, implicit_vr=True),
        TransferSyntax(EXPLICIT_VR_LITTLE_ENDIAN),
        TransferSyntax(EXPLICIT_VR_LITTLE_ENDIAN_64, long_lengths=True),
        TransferSyntax(EXPLICIT_VR_BIG_ENDIAN, little_endian=False),
        TransferSyntax(DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, deflated=True),
        TransferSyntax(JPIP_REFERENCED),
        TransferSyntax(JPIP_REFERENCED_DEFLATE, deflated=True),
        TransferSyntax(JPIP_HTJ2K_REFERENCED),
        TransferSyntax(JPIP_HTJ2K_REFERENCED_DEFLATE, deflated=True),
        TransferSyntax(RLE_LOSSLESS, encapsulated=True),
        TransferSyntax(DEFLATED_IMAGE_FRAME, encapsulated=True),
    )
}

_ENCAPSULATED_PREFIX = "1.2.840.10008.1.2.4."
"""The JPEG, JPEG-LS, JPEG 2000, MPEG, HEVC, JPEG XL and HTJ2K family."""


def transfer_syntax(uid: str) -> TransferSyntax:
    """What is known of a transfer syntax; one that is not known is taken for explicit VR little endian."""
    named = _NAMED.get(uid)
    if named is not None:
        return named
    return TransferSyntax(uid, encapsulated=uid.startswith(_ENCAPSULATED_PREFIX))


def clean_uid(value: str | bytes) -> str:
    """The UID without the padding some devices leave: trailing NUL and space, in any order.

    Bytes outside ASCII become characters that `is_valid_uid` refuses; nothing raises.
    """
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return text.rstrip("\0 ")


def is_valid_uid(uid: str) -> bool:
    """Whether a cleaned UID can be kept: digit groups joined by dots, at most 64 characters.

    Any root and leading zeros are fine: DICOS scanners have both.
    """
    return len(uid) <= MAX_UID_CHARACTERS and _VALID_UID(uid) is not None


def is_dicos_sop_class(uid: str) -> bool:
    """Whether a SOP class is DICOS's: the prefix itself, or below it."""
    return uid == DICOS_SOP_CLASS_PREFIX or uid.startswith(DICOS_SOP_CLASS_PREFIX + ".")
