"""Names and UIDs that settings may use for the same thing."""

from __future__ import annotations

import re

from scp_server.errors import ConfigurationError

ANY_OTHER = "*"
"""In a list of transfer syntaxes: whatever else the peer proposes, in its order."""

APPLICATION_CONTEXTS: dict[str, tuple[str, ...]] = {
    "dicom": ("1.2.840.10008.3.1.1.1",),
    "dicos": ("1.2.840.10008.3.1.1.1.3", "1.2.840.10008.3.1.1.1.211", "1.2.840.10008.3.1.1.1.2"),
}
"""DICOM's application context name (PS3.7 A.2.1), and those of DICOS V03, V02A and its alternate."""

_COMMON_TRANSFER_SYNTAXES = {
    "ImplicitVRLittleEndian": "1.2.840.10008.1.2",
    "ExplicitVRLittleEndian": "1.2.840.10008.1.2.1",
    "DeflatedExplicitVRLittleEndian": "1.2.840.10008.1.2.1.99",
    "ExplicitVRBigEndian": "1.2.840.10008.1.2.2",
}
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_MAX_UID_CHARACTERS = 64
_KEYWORD = re.compile(r"[A-Za-z][A-Za-z0-9]*")


def is_uid(text: str) -> bool:
    """Digits and dots, at most 64 characters (PS3.5 9.1); leading zeros are tolerated as everywhere here."""
    return len(text) <= _MAX_UID_CHARACTERS and _UID.fullmatch(text) is not None


def transfer_syntax_uid(name: str) -> str:
    """The UID of a transfer syntax given by UID or keyword. Raises ConfigurationError."""
    if is_uid(name):
        return name
    return _COMMON_TRANSFER_SYNTAXES.get(name) or _uid_of_keyword(
        name, "Transfer Syntax", "ExplicitVRLittleEndian"
    )


def sop_class_uid(name: str) -> str:
    """The UID of a SOP class given by UID or keyword. Raises ConfigurationError."""
    return name if is_uid(name) else _uid_of_keyword(name, "SOP Class", "CTImageStorage")


def _uid_of_keyword(name: str, kind: str, example: str) -> str:
    if _KEYWORD.fullmatch(name):
        # Only a keyword beyond the common ones is worth the time that pydicom takes to import.
        from pydicom import uid as pydicom_uids

        found = getattr(pydicom_uids, name, None)
        if isinstance(found, pydicom_uids.UID) and found.type == kind:
            return str(found)
    raise ConfigurationError(f"{name!r} is no UID and no keyword of a {kind} such as {example}")


def application_context_names(name: str) -> tuple[str, ...]:
    """The application context names behind `dicom`, `dicos` or a UID. Raises ConfigurationError."""
    if name in APPLICATION_CONTEXTS:
        return APPLICATION_CONTEXTS[name]
    if is_uid(name):
        return (name,)
    raise ConfigurationError(f"{name!r} is neither dicom nor dicos nor a UID")
