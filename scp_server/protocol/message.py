"""The DIMSE messages of PS3.7 as values: one class for each command set of 9.3 and 10.3.

Fields are the keywords of PS3.7 Annex E in snake case, minus (0000,0000) Command Group Length, which belongs
to the codec, and (0000,0800) Command Data Set Type, which is `has_dataset`. `command` turns them into bytes.

UIDs and AE titles that a peer sent are its own text, stripped of padding and not validated; an element that
its service requires and the peer left out is `""`, so that the service can refuse it with a status. Other
absent elements are None.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar, TypeGuard

VERIFICATION_SOP_CLASS_UID = "1.2.840.10008.1.1"
MAX_UID_CHARACTERS = 64
MAX_COMMENT_CHARACTERS = 64
RESPONSE_BIT = 0x8000
"""Set in the Command Field of every response (PS3.7 E.1)."""


class CommandField(IntEnum):
    """Command Field (0000,0100) (PS3.7 E.1)."""

    C_STORE_RQ = 0x0001
    C_STORE_RSP = 0x8001
    C_GET_RQ = 0x0010
    C_GET_RSP = 0x8010
    C_FIND_RQ = 0x0020
    C_FIND_RSP = 0x8020
    C_MOVE_RQ = 0x0021
    C_MOVE_RSP = 0x8021
    C_ECHO_RQ = 0x0030
    C_ECHO_RSP = 0x8030
    N_EVENT_REPORT_RQ = 0x0100
    N_EVENT_REPORT_RSP = 0x8100
    N_GET_RQ = 0x0110
    N_GET_RSP = 0x8110
    N_SET_RQ = 0x0120
    N_SET_RSP = 0x8120
    N_ACTION_RQ = 0x0130
    N_ACTION_RSP = 0x8130
    N_CREATE_RQ = 0x0140
    N_CREATE_RSP = 0x8140
    N_DELETE_RQ = 0x0150
    N_DELETE_RSP = 0x8150
    C_CANCEL_RQ = 0x0FFF


class Priority(IntEnum):
    """Priority (0000,0700) (PS3.7 E.1)."""

    MEDIUM = 0
    HIGH = 1
    LOW = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What every DIMSE message has: its Command Field, and whether a data set follows the command set."""

    has_dataset: bool = False

    @property
    def command_field(self) -> int:
        """Command Field (0000,0100)."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Message):
    """A message that a response is owed to. C-CANCEL-RQ has none, and is not a `Request` here."""

    message_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Response(Message):
    """The answer to a request, with the status elements of PS3.7 Annex C.

    `offending_elements` are tags as 32-bit integers, group first; empty when absent.
    """

    message_id_being_responded_to: int
    status: int
    affected_sop_class_uid: str | None = None
    error_comment: str | None = None
    error_id: int | None = None
    offending_elements: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceResponse(Response):
    """A response that also names an instance: C-STORE-RSP and all of the N-services."""

    affected_sop_instance_uid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubOperationsResponse(Response):
    """A response that counts sub-operations: C-GET-RSP and C-MOVE-RSP."""

    number_of_remaining_suboperations: int | None = None
    number_of_completed_suboperations: int | None = None
    number_of_failed_suboperations: int | None = None
    number_of_warning_suboperations: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CStoreRQ(Request):
    """C-STORE-RQ (PS3.7 9.3.1.1). DICOS clients always fill the move originator, with their own title."""

    command_field: ClassVar[int] = CommandField.C_STORE_RQ
    affected_sop_class_uid: str
    affected_sop_instance_uid: str
    priority: int = Priority.MEDIUM
    move_originator_application_entity_title: str | None = None
    move_originator_message_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CStoreRSP(InstanceResponse):
    """C-STORE-RSP (PS3.7 9.3.1.2)."""

    command_field: ClassVar[int] = CommandField.C_STORE_RSP


@dataclass(frozen=True, slots=True, kw_only=True)
class CFindRQ(Request):
    """C-FIND-RQ (PS3.7 9.3.2.1)."""

    command_field: ClassVar[int] = CommandField.C_FIND_RQ
    affected_sop_class_uid: str
    priority: int = Priority.MEDIUM


@dataclass(frozen=True, slots=True, kw_only=True)
class CFindRSP(Response):
    """C-FIND-RSP (PS3.7 9.3.2.2)."""

    command_field: ClassVar[int] = CommandField.C_FIND_RSP


@dataclass(frozen=True, slots=True, kw_only=True)
class CGetRQ(Request):
    """C-GET-RQ (PS3.7 9.3.3.1)."""

    command_field: ClassVar[int] = CommandField.C_GET_RQ
    affected_sop_class_uid: str
    priority: int = Priority.MEDIUM


@dataclass(frozen=True, slots=True, kw_only=True)
class CGetRSP(SubOperationsResponse):
    """C-GET-RSP (PS3.7 9.3.3.2)."""

    command_field: ClassVar[int] = CommandField.C_GET_RSP


@dataclass(frozen=True, slots=True, kw_only=True)
class CMoveRQ(Request):
    """C-MOVE-RQ (PS3.7 9.3.4.1)."""

    command_field: ClassVar[int] = CommandField.C_MOVE_RQ
    affected_sop_class_uid: str
    move_destination: str
    priority: int = Priority.MEDIUM


@dataclass(frozen=True, slots=True, kw_only=True)
class CMoveRSP(SubOperationsResponse):
    """C-MOVE-RSP (PS3.7 9.3.4.2)."""

    command_field: ClassVar[int] = CommandField.C_MOVE_RSP


@dataclass(frozen=True, slots=True, kw_only=True)
class CEchoRQ(Request):
    """C-ECHO-RQ (PS3.7 9.3.5.1)."""

    command_field: ClassVar[int] = CommandField.C_ECHO_RQ
    affected_sop_class_uid: str = VERIFICATION_SOP_CLASS_UID


@dataclass(frozen=True, slots=True, kw_only=True)
class CEchoRSP(Response):
    """C-ECHO-RSP (PS3.7 9.3.5.2)."""

    command_field: ClassVar[int] = CommandField.C_ECHO_RSP


@dataclass(frozen=True, slots=True, kw_only=True)
class CCancelRQ(Message):
    """C-CANCEL-RQ (PS3.7 9.3.2.3): names the request it cancels, and is never answered."""

    command_field: ClassVar[int] = CommandField.C_CANCEL_RQ
    message_id_being_responded_to: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NEventReportRQ(Request):
    """N-EVENT-REPORT-RQ (PS3.7 10.3.1.1)."""

    command_field: ClassVar[int] = CommandField.N_EVENT_REPORT_RQ
    affected_sop_class_uid: str
    affected_sop_instance_uid: str
    event_type_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NEventReportRSP(InstanceResponse):
    """N-EVENT-REPORT-RSP (PS3.7 10.3.1.2)."""

    command_field: ClassVar[int] = CommandField.N_EVENT_REPORT_RSP
    event_type_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NGetRQ(Request):
    """N-GET-RQ (PS3.7 10.3.2.1). Tags are 32-bit integers; none means all attributes."""

    command_field: ClassVar[int] = CommandField.N_GET_RQ
    requested_sop_class_uid: str
    requested_sop_instance_uid: str
    attribute_identifier_list: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NGetRSP(InstanceResponse):
    """N-GET-RSP (PS3.7 10.3.2.2)."""

    command_field: ClassVar[int] = CommandField.N_GET_RSP
    attribute_identifier_list: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NSetRQ(Request):
    """N-SET-RQ (PS3.7 10.3.3.1)."""

    command_field: ClassVar[int] = CommandField.N_SET_RQ
    requested_sop_class_uid: str
    requested_sop_instance_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NSetRSP(InstanceResponse):
    """N-SET-RSP (PS3.7 10.3.3.2)."""

    command_field: ClassVar[int] = CommandField.N_SET_RSP
    attribute_identifier_list: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NActionRQ(Request):
    """N-ACTION-RQ (PS3.7 10.3.4.1)."""

    command_field: ClassVar[int] = CommandField.N_ACTION_RQ
    requested_sop_class_uid: str
    requested_sop_instance_uid: str
    action_type_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NActionRSP(InstanceResponse):
    """N-ACTION-RSP (PS3.7 10.3.4.2)."""

    command_field: ClassVar[int] = CommandField.N_ACTION_RSP
    action_type_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NCreateRQ(Request):
    """N-CREATE-RQ (PS3.7 10.3.5.1); without an instance UID the performer chooses one."""

    command_field: ClassVar[int] = CommandField.N_CREATE_RQ
    affected_sop_class_uid: str
    affected_sop_instance_uid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NCreateRSP(InstanceResponse):
    """N-CREATE-RSP (PS3.7 10.3.5.2)."""

    command_field: ClassVar[int] = CommandField.N_CREATE_RSP


@dataclass(frozen=True, slots=True, kw_only=True)
class NDeleteRQ(Request):
    """N-DELETE-RQ (PS3.7 10.3.6.1)."""

    command_field: ClassVar[int] = CommandField.N_DELETE_RQ
    requested_sop_class_uid: str
    requested_sop_instance_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NDeleteRSP(InstanceResponse):
    """N-DELETE-RSP (PS3.7 10.3.6.2)."""

    command_field: ClassVar[int] = CommandField.N_DELETE_RSP


@dataclass(frozen=True, slots=True, kw_only=True)
class UnrecognizedCommand(Request):
    """A well-formed request whose Command Field PS3.7 does not know; answered with 0x0211."""

    command_field: int = field()


@dataclass(frozen=True, slots=True, kw_only=True)
class UnrecognizedCommandRSP(Response):
    """The answer to an `UnrecognizedCommand`: its Command Field with the response bit."""

    command_field: int = field()


_RESPONSE_TYPES: dict[type[Request], type[Response]] = {
    CStoreRQ: CStoreRSP,
    CFindRQ: CFindRSP,
    CGetRQ: CGetRSP,
    CMoveRQ: CMoveRSP,
    CEchoRQ: CEchoRSP,
    NEventReportRQ: NEventReportRSP,
    NGetRQ: NGetRSP,
    NSetRQ: NSetRSP,
    NActionRQ: NActionRSP,
    NCreateRQ: NCreateRSP,
    NDeleteRQ: NDeleteRSP,
}


def is_request(message: Message) -> TypeGuard[Request]:
    """Whether a response is owed to this message: every request but C-CANCEL-RQ."""
    return isinstance(message, Request)


def is_sendable_text(text: str, max_characters: int) -> bool:
    """Whether a UID, AE title or comment is printable ASCII without backslash and fits (PS3.5 6.2)."""
    return len(text) <= max_characters and text.isascii() and text.isprintable() and "\\" not in text


def safe_comment(text: str) -> str:
    """Make a text fit for Error Comment (0000,0902), an LO: at most 64 printable ASCII characters.

    Whatever else the text holds becomes `?`, so that a peer's own bytes may be quoted.
    """
    if not is_sendable_text(text, MAX_COMMENT_CHARACTERS):
        text = text[:MAX_COMMENT_CHARACTERS]
        text = "".join(c if is_sendable_text(c, 1) else "?" for c in text)
    return text.strip(" ")


def response_to(
    request: Request,
    status: int,
    *,
    comment: str | None = None,
    offending_elements: Iterable[int] = (),
    has_dataset: bool = False,
    **more: Any,
) -> Response:
    """Build the response that answers `request`, of the class that belongs to it.

    Message id, SOP class and instance, event and action type are the request's (PS3.7 9.3 and 10.3); a UID
    of the request that no conformant command set can carry is left out. `comment` may be any text.
    `more` sets further fields of the response's class, by name; an unknown one is a TypeError.
    """
    fields: dict[str, Any] = {
        "message_id_being_responded_to": request.message_id,
        "status": status,
        "has_dataset": has_dataset,
        "offending_elements": tuple(offending_elements),
    }
    if comment is not None:
        fields["error_comment"] = safe_comment(comment)
    if isinstance(request, UnrecognizedCommand):
        return UnrecognizedCommandRSP(command_field=request.command_field | RESPONSE_BIT, **(fields | more))
    response_type = _RESPONSE_TYPES[type(request)]
    fields["affected_sop_class_uid"] = _echoed_uid(request, "sop_class_uid")
    if issubclass(response_type, InstanceResponse):
        fields["affected_sop_instance_uid"] = _echoed_uid(request, "sop_instance_uid")
    if isinstance(request, NEventReportRQ):
        fields["event_type_id"] = request.event_type_id
    elif isinstance(request, NActionRQ):
        fields["action_type_id"] = request.action_type_id
    return response_type(**(fields | more))


def _echoed_uid(request: Request, name: str) -> str | None:
    """The request's affected or requested UID, where it has one that can be sent back."""
    uid: str | None = getattr(request, "affected_" + name, None)
    uid = uid or getattr(request, "requested_" + name, None)
    return uid if uid and is_sendable_text(uid, MAX_UID_CHARACTERS) else None
