"""The variable items and sub-items inside A-ASSOCIATE PDUs, as values (PS3.8 9.3.2-9.3.3, PS3.7 Annex D).

`item_codec` turns them into bytes and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

MAX_PRESENTATION_CONTEXTS: Final = 128
"""The odd numbers from 1 to 255 (PS3.8 9.3.2.2)."""
MAX_VERSION_NAME_CHARACTERS: Final = 16
"""Of an implementation version name (PS3.7 D.3.3.2.3)."""


class ItemType(IntEnum):
    """First byte of an item or sub-item (PS3.8 9.3.2, PS3.7 D.3.3)."""

    APPLICATION_CONTEXT = 0x10
    PRESENTATION_CONTEXT_RQ = 0x20
    PRESENTATION_CONTEXT_AC = 0x21
    ABSTRACT_SYNTAX = 0x30
    TRANSFER_SYNTAX = 0x40
    USER_INFORMATION = 0x50
    MAXIMUM_LENGTH = 0x51
    IMPLEMENTATION_CLASS_UID = 0x52
    ASYNCHRONOUS_OPERATIONS_WINDOW = 0x53
    ROLE_SELECTION = 0x54
    IMPLEMENTATION_VERSION_NAME = 0x55
    EXTENDED_NEGOTIATION = 0x56
    COMMON_EXTENDED_NEGOTIATION = 0x57
    USER_IDENTITY_RQ = 0x58
    USER_IDENTITY_AC = 0x59


@dataclass(frozen=True, slots=True)
class PresentationContextRQ:
    """A proposed presentation context (PS3.8 9.3.2.2). `context_id` is odd, 1-255."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


class ContextResult(IntEnum):
    """Answer to a proposed presentation context (PS3.8 9.3.3.2)."""

    ACCEPTANCE = 0
    USER_REJECTION = 1
    NO_REASON = 2
    ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
    TRANSFER_SYNTAXES_NOT_SUPPORTED = 4


@dataclass(frozen=True, slots=True)
class PresentationContextAC:
    """The answer to one context; `transfer_syntax` is not significant unless `result` is 0."""

    context_id: int
    result: int
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class AsynchronousOperationsWindow:
    """Maximum operations invoked and performed, 0 is unlimited (PS3.7 D.3.3.3)."""

    invoked: int
    performed: int


@dataclass(frozen=True, slots=True)
class RoleSelection:
    """SCP/SCU role selection for one SOP class (PS3.7 D.3.3.4)."""

    sop_class_uid: str
    scu_role: bool
    scp_role: bool


@dataclass(frozen=True, slots=True)
class SOPClassExtendedNegotiation:
    """Service-class application information of one SOP class (PS3.7 D.3.3.5)."""

    sop_class_uid: str
    application_information: bytes


@dataclass(frozen=True, slots=True)
class SOPClassCommonExtendedNegotiation:
    """Service class and related general SOP classes of one SOP class (PS3.7 D.3.3.6)."""

    sop_class_uid: str
    service_class_uid: str
    related_general_sop_class_uids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UserIdentityRQ:
    """User identity (PS3.7 D.3.3.7.1): 1 user name, 2 with passcode, 3 Kerberos, 4 SAML, 5 JWT.

    Neither field appears in `repr`, so that no passcode reaches a log.
    """

    identity_type: int
    positive_response_requested: bool
    primary_field: bytes
    secondary_field: bytes = b""

    def __repr__(self) -> str:
        requested = self.positive_response_requested
        return f"UserIdentityRQ(identity_type={self.identity_type}, positive_response_requested={requested})"


@dataclass(frozen=True, slots=True)
class UserIdentityAC:
    """The server's response to a user identity (PS3.7 D.3.3.7.2), empty for types 1 and 2."""

    server_response: bytes = b""


@dataclass(frozen=True, slots=True)
class UserInformation:
    """The user information item (PS3.8 9.3.2.3, PS3.7 Annex D); absent sub-items are None or empty."""

    maximum_length: int | None
    implementation_class_uid: str = ""
    implementation_version_name: str = ""
    asynchronous_operations_window: AsynchronousOperationsWindow | None = None
    role_selections: tuple[RoleSelection, ...] = ()
    extended_negotiations: tuple[SOPClassExtendedNegotiation, ...] = ()
    common_extended_negotiations: tuple[SOPClassCommonExtendedNegotiation, ...] = ()
    user_identity: UserIdentityRQ | None = None
    user_identity_response: UserIdentityAC | None = None
