"""UIDs by the names that people write: keywords of the DICOM dictionary, or the UIDs themselves."""

from __future__ import annotations

import re

from scp_server.errors import ConfigurationError
from scp_server.objects.uids import is_valid_uid

_COMMON_TRANSFER_SYNTAXES = {
    "ImplicitVRLittleEndian": "1.2.840.10008.1.2",
    "ExplicitVRLittleEndian": "1.2.840.10008.1.2.1",
    "DeflatedExplicitVRLittleEndian": "1.2.840.10008.1.2.1.99",
    "ExplicitVRBigEndian": "1.2.840.10008.1.2.2",
}
_KEYWORD = re.compile(r"[A-Za-z][A-Za-z0-9]*")


def transfer_syntax_uid(name: str) -> str:
    """The UID of a transfer syntax given by UID or keyword. Raises ConfigurationError."""
    if is_valid_uid(name):
        return name
    return _COMMON_TRANSFER_SYNTAXES.get(name) or _uid_of_keyword(
        name, "Transfer Syntax", "ExplicitVRLittleEndian"
    )


def sop_class_uid(name: str) -> str:
    """The UID of a SOP class given by UID or keyword. Raises ConfigurationError."""
    return name if is_valid_uid(name) else _uid_of_keyword(name, "SOP Class", "CTImageStorage")


def _uid_of_keyword(name: str, kind: str, example: str) -> str:
    if _KEYWORD.fullmatch(name):
        # Only a keyword beyond the common ones is worth the time that pydicom takes to import.
        from pydicom import uid as pydicom_uids

        found = getattr(pydicom_uids, name, None)
        if isinstance(found, pydicom_uids.UID) and found.type == kind:
            return str(found)
    raise ConfigurationError(f"{name!r} is no UID and no keyword of a {kind} such as {example}")
