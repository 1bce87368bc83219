"""The bytes of the items and sub-items inside A-ASSOCIATE PDUs (PS3.8 9.3.2-9.3.3, PS3.7 Annex D).

Text is decoded as latin-1, so that nothing a peer sends is lost or can fail here, and stripped of its
padding; whether it is a UID at all is for `negotiation` to judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct, error
from typing import Any, Final

from scp_server.errors import LocalProtocolError, ProtocolError
from scp_server.protocol.items import (
    MAX_VERSION_NAME_CHARACTERS,
    AsynchronousOperationsWindow,
    ContextResult,
    ItemType,
    PresentationContextAC,
    PresentationContextRQ,
    RoleSelection,
    SOPClassCommonExtendedNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityAC,
    UserIdentityRQ,
    UserInformation,
)
from scp_server.protocol.message import MAX_UID_CHARACTERS, is_sendable_text

# --- reading --------------------------------------------------------------------------------------------

_HEADER = Struct(">BxH")
_UNSIGNED_SHORT = Struct(">H")
_UNSIGNED_LONG = Struct(">L")
_TWO_UNSIGNED_SHORTS = Struct(">HH")


def malformed(text: str) -> ProtocolError:
    """An A-ASSOCIATE PDU that is not one: A-ABORT(2, 6), invalid PDU parameter value."""
    return ProtocolError(text, source=2, reason=6)


class ItemReader:
    """Reads the items of one PDU body by offsets into it: linear time, no copies but of the values.

    `max_items` bounds all items and sub-items together.
    """

    __slots__ = ("_max_items", "_room", "body")

    def __init__(self, body: bytes, max_items: int) -> None:
        self.body = body
        self._max_items = max_items
        self._room = max_items

    def items(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Return type, start and stop of the content of each item between two offsets.

        Raises ProtocolError when an item overruns `stop`, or the PDU has more than `max_items`.
        """
        found = []
        while start < stop:
            item_type, start, end = self.next_item(start, stop)
            if end > stop:
                raise malformed(f"item {item_type:02X}H overruns what holds it")
            found.append((item_type, start, end))
            start = end
        return found

    def next_item(self, start: int, stop: int) -> tuple[int, int, int]:
        """Return type, start and declared end of the item at `start`; its end may lie beyond `stop`."""
        self.spend()
        if stop - start < 4:
            raise malformed("an item's header is cut off")
        item_type, length = _HEADER.unpack_from(self.body, start)
        return item_type, start + 4, start + 4 + length

    def spend(self) -> None:
        """Count one item, or anything as small. Raises ProtocolError beyond `max_items`."""
        self._room -= 1
        if self._room < 0:
            raise malformed(f"more than {self._max_items} items")

    def uid(self, start: int, stop: int) -> str:
        """Return a UID: as it is, without trailing padding."""
        return self.body[start:stop].decode("latin-1").rstrip("\0 ")

    def unsigned_short(self, start: int, stop: int) -> int:
        """Return the number at `start`. Raises ProtocolError when `stop` cuts it off."""
        if stop - start < 2:
            raise malformed("a sub-item's field is cut off")
        number: int = _UNSIGNED_SHORT.unpack_from(self.body, start)[0]
        return number

    def counted(self, start: int, stop: int) -> tuple[int, int]:
        """Return start and stop of a field that a 16-bit length precedes, which must lie before `stop`."""
        end = start + 2 + self.unsigned_short(start, stop)
        if end > stop:
            raise malformed("a sub-item's field overruns it")
        return start + 2, end


def decode_presentation_context_rq(reader: ItemReader, start: int, stop: int) -> PresentationContextRQ:
    """Decode the content of a presentation context item (PS3.8 9.3.2.2). Raises ProtocolError."""
    if stop - start < 4:
        raise malformed("a presentation context item is cut off")
    abstract_syntax: str | None = None
    transfer_syntaxes = []
    for item_type, first, end in reader.items(start + 4, stop):
        if item_type == ItemType.TRANSFER_SYNTAX:
            transfer_syntaxes.append(reader.uid(first, end))
        elif item_type == ItemType.ABSTRACT_SYNTAX:
            if abstract_syntax is not None:
                raise malformed("two abstract syntaxes in a presentation context")
            abstract_syntax = reader.uid(first, end)
    if abstract_syntax is None or not transfer_syntaxes:
        raise malformed("a presentation context without abstract or transfer syntax")
    return PresentationContextRQ(reader.body[start], abstract_syntax, tuple(transfer_syntaxes))


def decode_presentation_context_ac(reader: ItemReader, start: int, stop: int) -> PresentationContextAC:
    """Decode the content of the answer to a presentation context (PS3.8 9.3.3.2). Raises ProtocolError.

    The transfer syntax may be left out of a rejection, where it means nothing.
    """
    if stop - start < 4:
        raise malformed("a presentation context item is cut off")
    result = reader.body[start + 2]
    transfer_syntaxes = [
        reader.uid(first, end)
        for item_type, first, end in reader.items(start + 4, stop)
        if item_type == ItemType.TRANSFER_SYNTAX
    ]
    if result == ContextResult.ACCEPTANCE and len(transfer_syntaxes) != 1:
        raise malformed("an accepted presentation context without a single transfer syntax")
    transfer_syntax = transfer_syntaxes[0] if transfer_syntaxes else ""
    return PresentationContextAC(reader.body[start], result, transfer_syntax)


def decode_user_information(reader: ItemReader, start: int, stop: int, max_items: int) -> UserInformation:
    """Decode the content of a user information item, sub-items in any order (PS3.8 9.3.2.3, PS3.7 D.3.3).

    Unknown sub-items are ignored, and so are repetitions of one that may occur only once. Raises
    ProtocolError for more than `max_items` sub-items, or a known one whose fields do not fit it.
    """
    fields: dict[str, Any] = {"maximum_length": None}
    several: dict[str, list[Any]] = {}
    items = reader.items(start, stop)
    if len(items) > max_items:
        raise malformed(f"more than {max_items} user information sub-items")
    for item_type, first, end in items:
        if item_type in _SINGLE_DECODERS:
            name, decode = _SINGLE_DECODERS[item_type]
            value = decode(reader, first, end)
            if fields.get(name) is None:
                fields[name] = value
        elif item_type in _REPEATED_DECODERS:
            name, decode = _REPEATED_DECODERS[item_type]
            several.setdefault(name, []).append(decode(reader, first, end))
    fields.update((name, tuple(values)) for name, values in several.items())
    return UserInformation(**fields)


def _decode_maximum_length(reader: ItemReader, start: int, stop: int) -> int:
    if stop - start != 4:
        raise malformed("a maximum length sub-item that is not 4 bytes long")
    length: int = _UNSIGNED_LONG.unpack_from(reader.body, start)[0]
    return length


def _decode_version_name(reader: ItemReader, start: int, stop: int) -> str:
    return reader.body[start:stop].decode("latin-1").strip("\0 ")


def _decode_window(reader: ItemReader, start: int, stop: int) -> AsynchronousOperationsWindow:
    invoked = reader.unsigned_short(start, stop)
    return AsynchronousOperationsWindow(invoked, reader.unsigned_short(start + 2, stop))


def _decode_role_selection(reader: ItemReader, start: int, stop: int) -> RoleSelection:
    first, end = reader.counted(start, stop)
    if stop - end < 2:
        raise malformed("a role selection without roles")
    return RoleSelection(reader.uid(first, end), reader.body[end] == 1, reader.body[end + 1] == 1)


def _decode_extended(reader: ItemReader, start: int, stop: int) -> SOPClassExtendedNegotiation:
    first, end = reader.counted(start, stop)
    return SOPClassExtendedNegotiation(reader.uid(first, end), reader.body[end:stop])


def _decode_common_extended(reader: ItemReader, start: int, stop: int) -> SOPClassCommonExtendedNegotiation:
    first, end = reader.counted(start, stop)
    sop_class_uid = reader.uid(first, end)
    first, end = reader.counted(end, stop)
    service_class_uid = reader.uid(first, end)
    related = []
    offset, last = reader.counted(end, stop)
    while offset < last:
        reader.spend()
        first, offset = reader.counted(offset, last)
        related.append(reader.uid(first, offset))
    return SOPClassCommonExtendedNegotiation(sop_class_uid, service_class_uid, tuple(related))


def _decode_user_identity(reader: ItemReader, start: int, stop: int) -> UserIdentityRQ:
    if stop - start < 2:
        raise malformed("a user identity that is cut off")
    first, end = reader.counted(start + 2, stop)
    # The DICOS toolkit's client leaves the secondary field out where it has only a user name.
    first2, end2 = reader.counted(end, stop) if end < stop else (end, end)
    body = reader.body
    return UserIdentityRQ(body[start], body[start + 1] == 1, body[first:end], body[first2:end2])


def _decode_user_identity_response(reader: ItemReader, start: int, stop: int) -> UserIdentityAC:
    first, end = reader.counted(start, stop)
    return UserIdentityAC(reader.body[first:end])


_Decoder = Callable[[ItemReader, int, int], Any]
_SINGLE_DECODERS: Final[dict[int, tuple[str, _Decoder]]] = {
    ItemType.MAXIMUM_LENGTH: ("maximum_length", _decode_maximum_length),
    ItemType.IMPLEMENTATION_CLASS_UID: ("implementation_class_uid", ItemReader.uid),
    ItemType.ASYNCHRONOUS_OPERATIONS_WINDOW: ("asynchronous_operations_window", _decode_window),
    ItemType.IMPLEMENTATION_VERSION_NAME: ("implementation_version_name", _decode_version_name),
    ItemType.USER_IDENTITY_RQ: ("user_identity", _decode_user_identity),
    ItemType.USER_IDENTITY_AC: ("user_identity_response", _decode_user_identity_response),
}
_REPEATED_DECODERS: Final[dict[int, tuple[str, _Decoder]]] = {
    ItemType.ROLE_SELECTION: ("role_selections", _decode_role_selection),
    ItemType.EXTENDED_NEGOTIATION: ("extended_negotiations", _decode_extended),
    ItemType.COMMON_EXTENDED_NEGOTIATION: ("common_extended_negotiations", _decode_common_extended),
}


# --- writing --------------------------------------------------------------------------------------------


def encode_item(item_type: int, *content: bytes) -> bytes:
    """Encode an item from the pieces of its content. Raises LocalProtocolError beyond 65535 bytes."""
    joined = b"".join(content)
    try:
        return _HEADER.pack(item_type, len(joined)) + joined
    except error as exc:
        raise LocalProtocolError(f"item {item_type:02X}H cannot hold {len(joined)} bytes") from exc


def encode_uid(uid: str) -> bytes:
    """Encode a UID, unpadded (PS3.8 Annex F). Raises LocalProtocolError when none can look like that."""
    if not is_sendable_text(uid, MAX_UID_CHARACTERS):
        raise LocalProtocolError(f"{uid!r} is not a UID")
    return uid.encode("ascii")


def encode_presentation_context_rq(context: PresentationContextRQ) -> bytes:
    """Encode a presentation context item (PS3.8 9.3.2.2). Raises LocalProtocolError."""
    if not context.transfer_syntaxes:
        raise LocalProtocolError(f"presentation context {context.context_id} has no transfer syntax")
    return encode_item(
        ItemType.PRESENTATION_CONTEXT_RQ,
        bytes((context.context_id, 0, 0, 0)),
        encode_item(ItemType.ABSTRACT_SYNTAX, encode_uid(context.abstract_syntax)),
        *(encode_item(ItemType.TRANSFER_SYNTAX, encode_uid(uid)) for uid in context.transfer_syntaxes),
    )


def encode_presentation_context_ac(context: PresentationContextAC) -> bytes:
    """Encode the answer to a presentation context (PS3.8 9.3.3.2). Raises LocalProtocolError."""
    if not 0 <= context.result <= 255:
        raise LocalProtocolError(f"{context.result} is not a presentation context result")
    return encode_item(
        ItemType.PRESENTATION_CONTEXT_AC,
        bytes((context.context_id, 0, context.result, 0)),
        encode_item(ItemType.TRANSFER_SYNTAX, encode_uid(context.transfer_syntax)),
    )


def encode_user_information(information: UserInformation) -> bytes:
    """Encode a user information item, its sub-items ascending (PS3.8 9.3.2.3). Raises LocalProtocolError."""
    try:
        return encode_item(ItemType.USER_INFORMATION, *_user_information_sub_items(information))
    except error as exc:
        raise LocalProtocolError(f"user information that no sub-item can hold: {exc}") from exc


def _user_information_sub_items(information: UserInformation) -> Iterator[bytes]:
    if information.maximum_length is not None:
        yield encode_item(ItemType.MAXIMUM_LENGTH, _UNSIGNED_LONG.pack(information.maximum_length))
    if information.implementation_class_uid:
        uid = encode_uid(information.implementation_class_uid)
        yield encode_item(ItemType.IMPLEMENTATION_CLASS_UID, uid)
    if (window := information.asynchronous_operations_window) is not None:
        numbers = _TWO_UNSIGNED_SHORTS.pack(window.invoked, window.performed)
        yield encode_item(ItemType.ASYNCHRONOUS_OPERATIONS_WINDOW, numbers)
    for role in information.role_selections:
        roles = bytes((role.scu_role, role.scp_role))
        yield encode_item(ItemType.ROLE_SELECTION, _counted(encode_uid(role.sop_class_uid)), roles)
    if name := information.implementation_version_name:
        if not is_sendable_text(name, MAX_VERSION_NAME_CHARACTERS):
            raise LocalProtocolError(f"{name!r} is not an implementation version name")
        yield encode_item(ItemType.IMPLEMENTATION_VERSION_NAME, name.encode("ascii"))
    for extended in information.extended_negotiations:
        uid = _counted(encode_uid(extended.sop_class_uid))
        yield encode_item(ItemType.EXTENDED_NEGOTIATION, uid, extended.application_information)
    for common in information.common_extended_negotiations:
        related = b"".join(_counted(encode_uid(uid)) for uid in common.related_general_sop_class_uids)
        uids = _counted(encode_uid(common.sop_class_uid)) + _counted(encode_uid(common.service_class_uid))
        yield encode_item(ItemType.COMMON_EXTENDED_NEGOTIATION, uids, _counted(related))
    if (identity := information.user_identity) is not None:
        kind = Struct(">B?").pack(identity.identity_type, identity.positive_response_requested)
        secondary = _counted(identity.secondary_field)
        yield encode_item(ItemType.USER_IDENTITY_RQ, kind, _counted(identity.primary_field), secondary)
    if (response := information.user_identity_response) is not None:
        yield encode_item(ItemType.USER_IDENTITY_AC, _counted(response.server_response))


def _counted(field: bytes) -> bytes:
    return _UNSIGNED_SHORT.pack(len(field)) + field
