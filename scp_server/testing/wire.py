"""Bytes of the upper layer and of DIMSE commands, written and read independently of `scp_server.protocol`.

A test that speaks to the product through these has a second opinion on what PS3.8 and PS3.7 say.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import NamedTuple

DICOM_APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
DICOS_V03_APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1.3"
VERIFICATION = "1.2.840.10008.1.1"
NO_DATASET = 0x0101
"""(0000,0800) of a command without data set (PS3.7 E.1)."""


class PDUType(IntEnum):
    """PS3.8 9.3."""

    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    P_DATA_TF = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


class ItemType(IntEnum):
    """PS3.8 9.3.2-9.3.3 and PS3.7 D.3.3."""

    APPLICATION_CONTEXT = 0x10
    CONTEXT_RQ = 0x20
    CONTEXT_AC = 0x21
    ABSTRACT_SYNTAX = 0x30
    TRANSFER_SYNTAX = 0x40
    USER_INFORMATION = 0x50
    MAXIMUM_LENGTH = 0x51
    IMPLEMENTATION_CLASS_UID = 0x52
    ROLE_SELECTION = 0x54
    IMPLEMENTATION_VERSION_NAME = 0x55
    EXTENDED_NEGOTIATION = 0x56
    USER_IDENTITY_RQ = 0x58
    USER_IDENTITY_AC = 0x59


class Control(IntFlag):
    """Message control header of a PDV (PS3.8 E.2)."""

    DATASET = 0
    COMMAND = 1
    LAST = 2


class Tag(IntEnum):
    """Command elements (PS3.7 E.1)."""

    GROUP_LENGTH = 0x0000
    AFFECTED_SOP_CLASS_UID = 0x0002
    COMMAND_FIELD = 0x0100
    MESSAGE_ID = 0x0110
    MESSAGE_ID_RESPONDED_TO = 0x0120
    PRIORITY = 0x0700
    DATASET_TYPE = 0x0800
    STATUS = 0x0900
    OFFENDING_ELEMENT = 0x0901
    ERROR_COMMENT = 0x0902
    AFFECTED_SOP_INSTANCE_UID = 0x1000
    MOVE_ORIGINATOR_AE_TITLE = 0x1030
    MOVE_ORIGINATOR_MESSAGE_ID = 0x1031


_UIDS = {Tag.AFFECTED_SOP_CLASS_UID, Tag.AFFECTED_SOP_INSTANCE_UID}


class ProposedContext(NamedTuple):
    """A presentation context to propose."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: Sequence[str]


class UserIdentity(NamedTuple):
    """User identity to send (PS3.7 D.3.3.7): 1 user name, 2 with passcode."""

    identity_type: int
    primary: bytes
    secondary: bytes = b""
    positive_response_requested: bool = True


class PDV(NamedTuple):
    """One presentation data value."""

    context_id: int
    control: Control
    fragment: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What an A-ASSOCIATE-AC said. `contexts` maps id to (result, transfer syntax)."""

    application_context: str
    contexts: dict[int, tuple[int, str]]
    maximum_length: int
    user_items: dict[int, bytes] = field(default_factory=dict)

    def accepted(self) -> dict[int, str]:
        """Transfer syntax of each accepted context."""
        return {number: syntax for number, (result, syntax) in self.contexts.items() if result == 0}


def pdu(pdu_type: int, body: bytes) -> bytes:
    """A PDU with a true length (PS3.8 9.3.1)."""
    return struct.pack(">BxI", pdu_type, len(body)) + body


def item(item_type: int, body: bytes) -> bytes:
    """An item or sub-item with a true length."""
    return struct.pack(">BxH", item_type, len(body)) + body


def associate_rq(
    contexts: Iterable[ProposedContext],
    *,
    application_context: str = DICOM_APPLICATION_CONTEXT,
    called_ae_title: str = "ANY-SCP",
    calling_ae_title: str = "SCRIPTED",
    maximum_length: int = 16384,
    user_identity: UserIdentity | None = None,
    user_items: bytes = b"",
    protocol_version: int = 1,
) -> bytes:
    """A-ASSOCIATE-RQ (PS3.8 9.3.2); `user_items` are whole sub-items to add as they are."""
    proposed = b"".join(
        item(
            ItemType.CONTEXT_RQ,
            bytes([context.context_id, 0, 0, 0])
            + item(ItemType.ABSTRACT_SYNTAX, context.abstract_syntax.encode("ascii"))
            + b"".join(
                item(ItemType.TRANSFER_SYNTAX, syntax.encode("ascii")) for syntax in context.transfer_syntaxes
            ),
        )
        for context in contexts
    )
    if user_identity is not None:
        user_items += item(ItemType.USER_IDENTITY_RQ, _identity(user_identity))
    titles = _titles(called_ae_title, calling_ae_title)
    body = _associate(titles, application_context, proposed, maximum_length, user_items, protocol_version)
    return pdu(PDUType.ASSOCIATE_RQ, body)


def associate_ac(
    contexts: Mapping[int, tuple[int, str]],
    *,
    application_context: str = DICOM_APPLICATION_CONTEXT,
    called_ae_title: str = "SCRIPTED",
    calling_ae_title: str = "ANY-SCU",
    maximum_length: int = 16384,
    user_items: bytes = b"",
) -> bytes:
    """A-ASSOCIATE-AC (PS3.8 9.3.3); `contexts` maps id to (result, transfer syntax)."""
    answers = b"".join(
        item(
            ItemType.CONTEXT_AC,
            bytes([number, 0, result, 0]) + item(ItemType.TRANSFER_SYNTAX, syntax.encode("ascii")),
        )
        for number, (result, syntax) in contexts.items()
    )
    titles = _titles(called_ae_title, calling_ae_title)
    return pdu(
        PDUType.ASSOCIATE_AC, _associate(titles, application_context, answers, maximum_length, user_items, 1)
    )


def associate_rj(result: int, source: int, reason: int) -> bytes:
    """A-ASSOCIATE-RJ (PS3.8 9.3.4)."""
    return pdu(PDUType.ASSOCIATE_RJ, bytes([0, result, source, reason]))


def release_rq() -> bytes:
    """A-RELEASE-RQ (PS3.8 9.3.6)."""
    return pdu(PDUType.RELEASE_RQ, bytes(4))


def release_rp() -> bytes:
    """A-RELEASE-RP (PS3.8 9.3.7)."""
    return pdu(PDUType.RELEASE_RP, bytes(4))


def abort(source: int = 0, reason: int = 0) -> bytes:
    """A-ABORT (PS3.8 9.3.8)."""
    return pdu(PDUType.ABORT, bytes([0, 0, source, reason]))


def p_data_header(context_id: int, control: Control, fragment_bytes: int) -> bytes:
    """The 12 bytes before the fragment of a P-DATA-TF with one PDV (PS3.8 9.3.5)."""
    return struct.pack(
        ">BxIIBB", PDUType.P_DATA_TF, fragment_bytes + 6, fragment_bytes + 2, context_id, control
    )


def p_data_tf(*pdvs: PDV) -> bytes:
    """P-DATA-TF of any number of PDVs (PS3.8 9.3.5)."""
    return pdu(
        PDUType.P_DATA_TF,
        b"".join(
            struct.pack(">IBB", len(fragment) + 2, context_id, control) + fragment
            for context_id, control, fragment in pdvs
        ),
    )


def command_set(elements: Mapping[int, int | str | bytes]) -> bytes:
    """A command set in implicit little endian with its group length (PS3.7 6.3.1). Integers are US."""
    body = b"".join(_command_element(tag, value) for tag, value in sorted(elements.items()))
    return struct.pack("<HHII", 0, Tag.GROUP_LENGTH, 4, len(body)) + body


def c_echo_rq(message_id: int) -> bytes:
    """C-ECHO-RQ (PS3.7 9.3.5.1)."""
    return command_set(
        {
            Tag.AFFECTED_SOP_CLASS_UID: VERIFICATION,
            Tag.COMMAND_FIELD: 0x0030,
            Tag.MESSAGE_ID: message_id,
            Tag.DATASET_TYPE: NO_DATASET,
        }
    )


def c_store_rq(message_id: int, sop_class_uid: str, sop_instance_uid: str, *, dicos: bool = False) -> bytes:
    """C-STORE-RQ (PS3.7 9.3.1.1); with `dicos` it has a move originator and 0 for the type of data set."""
    elements: dict[int, int | str | bytes] = {
        Tag.AFFECTED_SOP_CLASS_UID: sop_class_uid,
        Tag.COMMAND_FIELD: 0x0001,
        Tag.MESSAGE_ID: message_id,
        Tag.PRIORITY: 0,
        Tag.DATASET_TYPE: 0 if dicos else 1,
        Tag.AFFECTED_SOP_INSTANCE_UID: sop_instance_uid,
    }
    if dicos:
        elements |= {Tag.MOVE_ORIGINATOR_AE_TITLE: "SCRIPTED", Tag.MOVE_ORIGINATOR_MESSAGE_ID: message_id}
    return command_set(elements)


def c_find_rq(message_id: int, sop_class_uid: str) -> bytes:
    """C-FIND-RQ (PS3.7 9.3.2.1)."""
    return command_set(
        {
            Tag.AFFECTED_SOP_CLASS_UID: sop_class_uid,
            Tag.COMMAND_FIELD: 0x0020,
            Tag.MESSAGE_ID: message_id,
            Tag.PRIORITY: 0,
            Tag.DATASET_TYPE: 1,
        }
    )


def c_cancel_rq(message_id: int) -> bytes:
    """C-CANCEL-RQ for the operation of this message id (PS3.7 9.3.2.3)."""
    return command_set(
        {
            Tag.COMMAND_FIELD: 0x0FFF,
            Tag.MESSAGE_ID_RESPONDED_TO: message_id,
            Tag.DATASET_TYPE: NO_DATASET,
        }
    )


def extended_negotiation(sop_class_uid: str, information: bytes) -> bytes:
    """A SOP Class Extended Negotiation sub-item (PS3.7 D.3.3.5)."""
    uid = sop_class_uid.encode("ascii")
    return item(ItemType.EXTENDED_NEGOTIATION, struct.pack(">H", len(uid)) + uid + information)


def c_store_rsp(
    message_id: int,
    status: int = 0,
    *,
    sop_class_uid: str = "",
    sop_instance_uid: str = "",
    error_comment: str = "",
    dataset_type: int = NO_DATASET,
) -> bytes:
    """A C-STORE-RSP to the request `message_id`; without texts that are empty."""
    elements: dict[int, int | str | bytes] = {
        Tag.COMMAND_FIELD: 0x8001,
        Tag.MESSAGE_ID_RESPONDED_TO: message_id,
        Tag.DATASET_TYPE: dataset_type,
        Tag.STATUS: status,
    }
    texts = {
        Tag.AFFECTED_SOP_CLASS_UID: sop_class_uid,
        Tag.ERROR_COMMENT: error_comment,
        Tag.AFFECTED_SOP_INSTANCE_UID: sop_instance_uid,
    }
    return command_set(elements | {tag: text for tag, text in texts.items() if text})


def role_selection(sop_class_uid: str, *, scu: bool, scp: bool) -> bytes:
    """A role selection sub-item, for `user_items` (PS3.7 D.3.3.4)."""
    uid = sop_class_uid.encode("ascii")
    return item(ItemType.ROLE_SELECTION, len(uid).to_bytes(2, "big") + uid + bytes([scu, scp]))


def read_command_set(data: bytes) -> dict[int, bytes]:
    """Element number to value bytes. Raises ValueError where the elements do not fill `data` exactly."""
    elements, position = {}, 0
    while position < len(data):
        group, element, length = struct.unpack_from("<HHI", data, position)
        position += 8 + length
        if group != 0 or position > len(data):
            raise ValueError(f"no command set: element {group:04X},{element:04X} of {length} bytes")
        elements[element] = data[position - length : position]
    return elements


def read_pdvs(body: bytes) -> list[PDV]:
    """The PDVs of a P-DATA-TF's body. Raises ValueError where they do not fill it exactly."""
    pdvs, position = [], 0
    while position < len(body):
        length, context_id, control = struct.unpack_from(">IBB", body, position)
        end = position + 4 + length
        if end > len(body):
            raise ValueError("a PDV overruns its PDU")
        pdvs.append(PDV(context_id, Control(control), body[position + 6 : end]))
        position = end
    return pdvs


def read_answer(body: bytes) -> Answer:
    """What the body of an A-ASSOCIATE-AC says."""
    application_context, contexts, user_items = "", {}, {}
    for kind, content in items(body[68:]):
        if kind == ItemType.APPLICATION_CONTEXT:
            application_context = content.decode("ascii")
        elif kind == ItemType.CONTEXT_AC:
            syntaxes = [value for _, value in items(content[4:])]
            contexts[content[0]] = (content[2], syntaxes[0].decode("ascii") if syntaxes else "")
        elif kind == ItemType.USER_INFORMATION:
            user_items = dict(items(content))
    maximum = int.from_bytes(user_items.get(ItemType.MAXIMUM_LENGTH, b""), "big")
    return Answer(application_context, contexts, maximum, user_items)


def read_proposed(body: bytes) -> list[ProposedContext]:
    """The presentation contexts that the body of an A-ASSOCIATE-RQ proposes."""
    proposed = []
    for kind, content in items(body[68:]):
        if kind == ItemType.CONTEXT_RQ:
            uids = [value.decode("ascii") for _, value in items(content[4:])]
            proposed.append(ProposedContext(content[0], uids[0], uids[1:]))
    return proposed


def items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of the items in `data`. Raises ValueError where they do not fill it exactly."""
    position = 0
    while position < len(data):
        kind, length = struct.unpack_from(">BxH", data, position)
        position += 4 + length
        if position > len(data):
            raise ValueError(f"item {kind:02X}H overruns by {position - len(data)} bytes")
        yield kind, data[position - length : position]


def _titles(called_ae_title: str, calling_ae_title: str) -> bytes:
    return b"".join(title.encode("latin_1").ljust(16)[:16] for title in (called_ae_title, calling_ae_title))


def _associate(
    titles: bytes,
    application_context: str,
    contexts: bytes,
    maximum_length: int,
    user_items: bytes,
    protocol_version: int,
) -> bytes:
    user_information = (
        item(ItemType.MAXIMUM_LENGTH, struct.pack(">I", maximum_length))
        + item(ItemType.IMPLEMENTATION_CLASS_UID, b"2.25.2254678700112287")
        + item(ItemType.IMPLEMENTATION_VERSION_NAME, b"SCRIPTED")
        + user_items
    )
    return (
        struct.pack(">Hxx", protocol_version)
        + titles
        + bytes(32)
        + item(ItemType.APPLICATION_CONTEXT, application_context.encode("ascii"))
        + contexts
        + item(ItemType.USER_INFORMATION, user_information)
    )


def _identity(identity: UserIdentity) -> bytes:
    return (
        struct.pack(
            ">BBH", identity.identity_type, identity.positive_response_requested, len(identity.primary)
        )
        + identity.primary
        + struct.pack(">H", len(identity.secondary))
        + identity.secondary
    )


def _command_element(tag: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        value = struct.pack("<H", value)
    elif isinstance(value, str):
        value = value.encode("ascii")
        value += (b"\0" if tag in _UIDS else b" ") * (len(value) % 2)
    return struct.pack("<HHI", 0, tag, len(value)) + value
