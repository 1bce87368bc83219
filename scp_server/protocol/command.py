"""The bytes of a command set: implicit VR little endian, by one table (PS3.7 6.3.1 and E.1).

A message's fields bear the keywords of that table, so a command set's layout is its class's fields in the
order of their tags. Nothing here knows one command from another, except for a short cut past the table for
the C-STORE-RQ, which arrives thousands of times a second and nearly always looks the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from struct import Struct, error
from typing import Any, Final

from scp_server.errors import LocalProtocolError, ProtocolError
from scp_server.protocol import message as m
from scp_server.protocol.message import Message
from scp_server.protocol.pdu import AbortReason, AbortSource

NO_DATA_SET: Final = 0x0101
"""Command Data Set Type (0000,0800) of a message without data set; any other value announces one."""
DATA_SET_PRESENT: Final = 0x0001
"""What we send, as most do; the DICOS toolkit sends 0000."""

MAX_AE_TITLE_CHARACTERS: Final = 16

_HEADER = Struct("<HHL")
_UNSIGNED_SHORT = Struct("<H")
_UNSIGNED_SHORT_ELEMENT = Struct("<HHLH")
_GROUP_LENGTH_ELEMENT = Struct("<HHLL")


class VR(Enum):
    """The value representations that occur in a command set (PS3.5 6.2). Group Length's UL is apart."""

    UI = "UI"
    AE = "AE"
    LO = "LO"
    US = "US"
    AT = "AT"


ELEMENTS: Final[tuple[tuple[int, VR, str], ...]] = (
    (0x0002, VR.UI, "affected_sop_class_uid"),
    (0x0003, VR.UI, "requested_sop_class_uid"),
    (0x0100, VR.US, "command_field"),
    (0x0110, VR.US, "message_id"),
    (0x0120, VR.US, "message_id_being_responded_to"),
    (0x0600, VR.AE, "move_destination"),
    (0x0700, VR.US, "priority"),
    (0x0800, VR.US, "has_dataset"),
    (0x0900, VR.US, "status"),
    (0x0901, VR.AT, "offending_elements"),
    (0x0902, VR.LO, "error_comment"),
    (0x0903, VR.US, "error_id"),
    (0x1000, VR.UI, "affected_sop_instance_uid"),
    (0x1001, VR.UI, "requested_sop_instance_uid"),
    (0x1002, VR.US, "event_type_id"),
    (0x1005, VR.AT, "attribute_identifier_list"),
    (0x1008, VR.US, "action_type_id"),
    (0x1020, VR.US, "number_of_remaining_suboperations"),
    (0x1021, VR.US, "number_of_completed_suboperations"),
    (0x1022, VR.US, "number_of_failed_suboperations"),
    (0x1023, VR.US, "number_of_warning_suboperations"),
    (0x1030, VR.AE, "move_originator_application_entity_title"),
    (0x1031, VR.US, "move_originator_message_id"),
)
"""Element number in group 0000, VR, and the field that holds it (PS3.7 E.1-1), in ascending order.

`has_dataset` stands for Command Data Set Type, whose only meaning it is.
"""

_COMMAND_FIELD: Final = 0x0100
_COMMAND_DATA_SET_TYPE: Final = 0x0800


def _malformed(text: str) -> ProtocolError:
    return ProtocolError(
        f"command set: {text}",
        source=AbortSource.SERVICE_PROVIDER,
        reason=AbortReason.INVALID_PDU_PARAMETER_VALUE,
    )


# --- values ---------------------------------------------------------------------------------------------


def _decode_us(value: bytes) -> int:
    if len(value) != 2:
        raise _malformed(f"a US of {len(value)} bytes")
    return int.from_bytes(value, "little")


def _decode_at(value: bytes) -> tuple[int, ...]:
    if len(value) % 4:
        raise _malformed(f"an AT of {len(value)} bytes")
    words = Struct(f"<{len(value) // 2}H").unpack(value)
    return tuple(group << 16 | element for group, element in zip(words[::2], words[1::2], strict=True))


def _decode_uid(value: bytes) -> str:
    return value.decode("latin-1").rstrip("\0 ")


def _decode_text(value: bytes) -> str:
    return value.decode("latin-1").strip("\0 ")


def _encode_us(element: int, value: int) -> bytes:
    return _UNSIGNED_SHORT_ELEMENT.pack(0, element, 2, value)


def _encode_at(element: int, value: tuple[int, ...]) -> bytes:
    words = [word for tag in value for word in (tag >> 16, tag & 0xFFFF)]
    return Struct(f"<HHL{len(words)}H").pack(0, element, 2 * len(words), *words)


def _text_encoder(max_characters: int, padding: bytes) -> Callable[[int, str], bytes]:
    def encode(element: int, value: str) -> bytes:
        if not m.is_sendable_text(value, max_characters):
            raise LocalProtocolError(f"(0000,{element:04X}) cannot hold {value!r}")
        encoded = value.encode("ascii")
        if len(encoded) & 1:
            encoded += padding
        return _HEADER.pack(0, element, len(encoded)) + encoded

    return encode


_DECODERS: Final[dict[VR, Callable[[bytes], Any]]] = {
    VR.UI: _decode_uid,
    VR.AE: _decode_text,
    VR.LO: _decode_text,
    VR.US: _decode_us,
    VR.AT: _decode_at,
}
_ENCODERS: Final[dict[VR, Callable[[int, Any], bytes]]] = {
    VR.UI: _text_encoder(m.MAX_UID_CHARACTERS, b"\0"),
    VR.AE: _text_encoder(MAX_AE_TITLE_CHARACTERS, b" "),
    VR.LO: _text_encoder(m.MAX_COMMENT_CHARACTERS, b" "),
    VR.US: _encode_us,
    VR.AT: _encode_at,
}


# --- layouts --------------------------------------------------------------------------------------------


class _Absence(Enum):
    """What a peer's leaving an element out means."""

    MALFORMED = "a message nobody could answer: A-ABORT"
    EMPTY = "the service refuses it with a status, so the field is an empty text"
    DEFAULT = "the field's default"


@dataclass(frozen=True, slots=True)
class _Layout:
    """A command set: its class, how its elements are read, and how they are written, in ascending order."""

    message_type: type[Message]
    decode: tuple[tuple[int, str, Callable[[bytes], Any], _Absence], ...]
    encode: tuple[tuple[int, str, Callable[[int, Any], bytes]], ...]


def _layout(message_type: type[Message]) -> _Layout:
    """Derive a class's layout from its fields and ELEMENTS."""
    defaults = {field.name: field.default for field in fields(message_type)}
    decode, encode = [], []
    for element, vr, name in ELEMENTS:
        if name not in defaults and name != "command_field":
            continue
        encode.append((element, name, _ENCODERS[vr]))
        if element in (_COMMAND_FIELD, _COMMAND_DATA_SET_TYPE):
            continue
        if vr is VR.US and defaults[name] is MISSING:
            absence = _Absence.MALFORMED
        elif vr in (VR.UI, VR.AE) and defaults[name] is not None:
            absence = _Absence.EMPTY
        else:
            absence = _Absence.DEFAULT
        decode.append((element, name, _DECODERS[vr], absence))
    return _Layout(message_type, tuple(decode), tuple(encode))


_MESSAGE_TYPES: Final[tuple[type[Message], ...]] = (
    *(m.CStoreRQ, m.CStoreRSP, m.CFindRQ, m.CFindRSP, m.CGetRQ, m.CGetRSP, m.CMoveRQ, m.CMoveRSP),
    *(m.CEchoRQ, m.CEchoRSP, m.CCancelRQ, m.NEventReportRQ, m.NEventReportRSP, m.NGetRQ, m.NGetRSP),
    *(m.NSetRQ, m.NSetRSP, m.NActionRQ, m.NActionRSP, m.NCreateRQ, m.NCreateRSP, m.NDeleteRQ, m.NDeleteRSP),
)
_UNRECOGNIZED: Final = _layout(m.UnrecognizedCommand)
_UNRECOGNIZED_RSP: Final = _layout(m.UnrecognizedCommandRSP)
_BY_COMMAND_FIELD: Final = {
    int(getattr(message_type, "command_field")): _layout(message_type)  # noqa: B009
    for message_type in _MESSAGE_TYPES
}
_BY_TYPE: Final = {
    layout.message_type: layout for layout in (*_BY_COMMAND_FIELD.values(), _UNRECOGNIZED, _UNRECOGNIZED_RSP)
}


# --- the codec ------------------------------------------------------------------------------------------


def encode_command(message: Message) -> bytes:
    """Encode a whole command set, group length included (PS3.7 6.3.1).

    Raises LocalProtocolError for a value that its element cannot hold.
    """
    parts = [b""]
    try:
        for element, name, encode in _BY_TYPE[type(message)].encode:
            value = getattr(message, name)
            if element == _COMMAND_DATA_SET_TYPE:
                value = DATA_SET_PRESENT if value else NO_DATA_SET
            elif value is None or value == ():
                continue
            parts.append(encode(element, value))
    except error as exc:
        raise LocalProtocolError(f"(0000,{element:04X}) cannot hold {value!r}") from exc
    parts[0] = _GROUP_LENGTH_ELEMENT.pack(0, 0, 4, sum(map(len, parts)))
    return b"".join(parts)


def decode_command(data: bytes | bytearray | memoryview) -> Message:
    """Decode one whole command set; nothing may follow it.

    Command Group Length may be absent, and its value is not looked at: where the command set ends was
    the caller's question. Elements that PS3.7 does not give to this command are ignored.

    Raises ProtocolError (source 2, reason 6) for anything that is not a command set, or is one that
    nobody could answer: an element overruns, tags do not ascend, a group other than 0000, a US or AT of
    a wrong length, or no Command Field, Message ID (Being Responded To), Command Data Set Type, Status,
    Event Type ID or Action Type ID where there must be one. Never anything else.
    """
    data = bytes(data)
    message = _decode_usual_c_store_rq(data)
    if message is not None:
        return message
    values = _split(data)
    command_field = _decode_us(_mandatory(values, _COMMAND_FIELD))
    data_set_type = _decode_us(_mandatory(values, _COMMAND_DATA_SET_TYPE))
    arguments: dict[str, Any] = {"has_dataset": data_set_type != NO_DATA_SET}
    layout = _BY_COMMAND_FIELD.get(command_field)
    if layout is None:
        layout = _UNRECOGNIZED_RSP if command_field & m.RESPONSE_BIT else _UNRECOGNIZED
        arguments["command_field"] = command_field
    for element, name, decode, absence in layout.decode:
        value = values.get(element)
        if value is not None:
            arguments[name] = decode(value)
        elif absence is _Absence.MALFORMED:
            _mandatory(values, element)
        elif absence is _Absence.EMPTY:
            arguments[name] = ""
    return layout.message_type(**arguments)


def _split(data: bytes) -> dict[int, bytes]:
    """Cut a command set into its elements' values by element number."""
    values: dict[int, bytes] = {}
    last, offset, end = -1, 0, len(data)
    try:
        while offset < end:
            group, element, length = _HEADER.unpack_from(data, offset)
            offset += 8
            if group or element <= last:
                raise _malformed(f"({group:04X},{element:04X}) is out of place")
            if length > end - offset:
                raise _malformed(f"(0000,{element:04X}) of {length} bytes overruns the command set")
            values[element] = data[offset : offset + length]
            last = element
            offset += length
    except error:
        raise _malformed("it ends inside an element's header") from None
    return values


def _mandatory(values: dict[int, bytes], element: int) -> bytes:
    value = values.get(element)
    if value is None:
        raise _malformed(f"no (0000,{element:04X})")
    return value


# --- the short cut --------------------------------------------------------------------------------------
# Group Length, Affected SOP Class UID; four US and the header of Affected SOP Instance UID; perhaps Move
# Originator's two elements at the end. Whatever differs in any way goes by the table.

_C_STORE_RQ_START = Struct("<8s4xLL")
_C_STORE_RQ_MIDDLE = Struct("<10s8sH8sH8sHLL")
_START_BYTES: Final = _C_STORE_RQ_START.size
_MIDDLE_BYTES: Final = _C_STORE_RQ_MIDDLE.size
_GROUP_LENGTH_HEADER: Final = _HEADER.pack(0, 0, 4)
_C_STORE_RQ_ELEMENT: Final = _encode_us(_COMMAND_FIELD, m.CommandField.C_STORE_RQ)
_MESSAGE_ID_HEADER: Final = _HEADER.pack(0, 0x0110, 2)
_PRIORITY_HEADER: Final = _HEADER.pack(0, 0x0700, 2)
_DATA_SET_TYPE_HEADER: Final = _HEADER.pack(0, _COMMAND_DATA_SET_TYPE, 2)
_CLASS_TAG: Final = 0x0002 << 16
_INSTANCE_TAG: Final = 0x1000 << 16
"""Group and element of a tag, read as one little endian number."""


def _decode_usual_c_store_rq(data: bytes) -> m.CStoreRQ | None:
    """Decode a C-STORE-RQ that has the usual elements in a row, or return None."""
    try:
        group_length_header, tag, length = _C_STORE_RQ_START.unpack_from(data)
        middle = _START_BYTES + length
        # fmt: off
        (command_field, message_id_header, message_id, priority_header, priority,
         data_set_type_header, data_set_type, instance_tag, instance_length,
        ) = _C_STORE_RQ_MIDDLE.unpack_from(data, middle)
        # fmt: on
    except error:
        return None
    instance = middle + _MIDDLE_BYTES
    if (
        command_field != _C_STORE_RQ_ELEMENT
        or message_id_header != _MESSAGE_ID_HEADER
        or data_set_type_header != _DATA_SET_TYPE_HEADER
        or priority_header != _PRIORITY_HEADER
        or group_length_header != _GROUP_LENGTH_HEADER
        or tag != _CLASS_TAG
        or instance_tag != _INSTANCE_TAG
        or instance + instance_length != len(data)
    ):
        return None
    return m.CStoreRQ(
        has_dataset=data_set_type != NO_DATA_SET,
        message_id=message_id,
        affected_sop_class_uid=data[_START_BYTES:middle].decode("latin-1").rstrip("\0 "),
        affected_sop_instance_uid=data[instance:].decode("latin-1").rstrip("\0 "),
        priority=priority,
    )
