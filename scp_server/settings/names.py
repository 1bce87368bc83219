"""Names and UIDs that settings may use for the same thing."""

from __future__ import annotations

from scp_server.errors import ConfigurationError
from scp_server.objects.uids import is_valid_uid

ANY_OTHER = "*"
"""In a list of transfer syntaxes: whatever else the peer proposes, in its order."""

APPLICATION_CONTEXTS: dict[str, tuple[str, ...]] = {
    "dicom": ("1.2.840.10008.3.1.1.1",),
    "dicos": ("1.2.840.10008.3.1.1.1.3", "1.2.840.10008.3.1.1.1.211", "1.2.840.10008.3.1.1.1.2"),
}
"""DICOM's application context name (PS3.7 A.2.1), and those of DICOS V03, V02A and its alternate."""


def application_context_names(name: str) -> tuple[str, ...]:
    """The application context names behind `dicom`, `dicos` or a UID. Raises ConfigurationError."""
    if name in APPLICATION_CONTEXTS:
        return APPLICATION_CONTEXTS[name]
    if is_valid_uid(name):
        return (name,)
    raise ConfigurationError(f"{name!r} is neither dicom nor dicos nor a UID")
