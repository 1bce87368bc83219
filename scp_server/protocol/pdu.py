"""The seven PDUs of PS3.8 9.3 as values, and their bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from struct import Struct, error
from typing import Final, assert_never

from scp_server.errors import LocalProtocolError, ProtocolError
from scp_server.protocol.item_codec import (
    ItemReader,
    decode_presentation_context_ac,
    decode_presentation_context_rq,
    decode_user_information,
    encode_item,
    encode_presentation_context_ac,
    encode_presentation_context_rq,
    encode_uid,
    encode_user_information,
    malformed,
)
from scp_server.protocol.items import (
    MAX_PRESENTATION_CONTEXTS,
    ItemType,
    PresentationContextAC,
    PresentationContextRQ,
    UserInformation,
)
from scp_server.protocol.limits import Limits
from scp_server.protocol.message import is_sendable_text


class PDUType(IntEnum):
    """First byte of a PDU (PS3.8 9.3)."""

    A_ASSOCIATE_RQ = 0x01
    A_ASSOCIATE_AC = 0x02
    A_ASSOCIATE_RJ = 0x03
    P_DATA_TF = 0x04
    A_RELEASE_RQ = 0x05
    A_RELEASE_RP = 0x06
    A_ABORT = 0x07


@dataclass(frozen=True, slots=True)
class AssociateRQ:
    """A-ASSOCIATE-RQ (PS3.8 9.3.2). AE titles are stripped of outer spaces.

    `address_fields` are bytes 11-74 as received, which the answer echoes; empty on a request we make.
    """

    called_ae_title: str
    calling_ae_title: str
    application_context_name: str
    presentation_contexts: tuple[PresentationContextRQ, ...]
    user_information: UserInformation
    protocol_version: int = 1
    address_fields: bytes = field(default=b"", repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class AssociateAC:
    """A-ASSOCIATE-AC (PS3.8 9.3.3). Titles are the request's, echoed.

    `address_fields` as in `AssociateRQ`: where given, they are what is sent, and the titles are not.
    """

    called_ae_title: str
    calling_ae_title: str
    application_context_name: str
    presentation_contexts: tuple[PresentationContextAC, ...]
    user_information: UserInformation
    protocol_version: int = 1
    address_fields: bytes = field(default=b"", repr=False, compare=False)


class RejectReason(IntEnum):
    """Why an association is rejected: result, source and reason as one value 0xRRSSDD, so that
    a pair PS3.8 9.3.4 does not know cannot be written."""

    NO_REASON = 0x010101
    APPLICATION_CONTEXT_NOT_SUPPORTED = 0x010102
    CALLING_AE_TITLE_NOT_RECOGNIZED = 0x010103
    CALLED_AE_TITLE_NOT_RECOGNIZED = 0x010107
    ACSE_NO_REASON = 0x010201
    PROTOCOL_VERSION_NOT_SUPPORTED = 0x010202
    TEMPORARY_CONGESTION = 0x020301
    LOCAL_LIMIT_EXCEEDED = 0x020302

    @property
    def result(self) -> int:
        """1 rejected permanent, 2 rejected transient."""
        return self.value >> 16

    @property
    def source(self) -> int:
        """1 service user, 2 provider (ACSE), 3 provider (presentation)."""
        return self.value >> 8 & 0xFF

    @property
    def reason(self) -> int:
        """Reason or diagnostic, to be read with `source`."""
        return self.value & 0xFF


@dataclass(frozen=True, slots=True)
class AssociateRJ:
    """A-ASSOCIATE-RJ (PS3.8 9.3.4); a peer's may carry values the standard does not know."""

    result: int
    source: int
    reason: int


@dataclass(frozen=True, slots=True)
class ReleaseRQ:
    """A-RELEASE-RQ (PS3.8 9.3.6)."""


@dataclass(frozen=True, slots=True)
class ReleaseRP:
    """A-RELEASE-RP (PS3.8 9.3.7)."""


class AbortSource(IntEnum):
    """Who aborted (PS3.8 9.3.8)."""

    SERVICE_USER = 0
    SERVICE_PROVIDER = 2


class AbortReason(IntEnum):
    """Why the provider aborted (PS3.8 9.3.8); not significant when the user did."""

    NOT_SPECIFIED = 0
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNIZED_PDU_PARAMETER = 4
    UNEXPECTED_PDU_PARAMETER = 5
    INVALID_PDU_PARAMETER_VALUE = 6


@dataclass(frozen=True, slots=True)
class Abort:
    """A-ABORT (PS3.8 9.3.8)."""

    source: int
    reason: int


PDU = AssociateRQ | AssociateAC | AssociateRJ | ReleaseRQ | ReleaseRP | Abort
"""Every PDU that is held whole. P-DATA-TF is not among them: it is never assembled (see `pdata`)."""

_HEADER = Struct(">BxL")
_ASSOCIATE = Struct(">H2x64s")
"""Protocol version, reserved, and bytes 11-74: called and calling AE title, reserved (PS3.8 9.3.2)."""
_SHORT_BODY = Struct(">4B")
ADDRESS_FIELDS_BYTES: Final = 64
AE_TITLE_BYTES: Final = 16
_DEFAULT_LIMITS: Final = Limits()


# --- writing --------------------------------------------------------------------------------------------


def encode_pdu(pdu: PDU) -> bytes:
    """Encode a whole PDU, its header included. Raises LocalProtocolError for what no PDU can carry."""
    match pdu:
        case AssociateRQ():
            pdu_type, body = PDUType.A_ASSOCIATE_RQ, _encode_associate_rq(pdu)
        case AssociateAC():
            pdu_type, body = PDUType.A_ASSOCIATE_AC, _encode_associate_ac(pdu)
        case AssociateRJ():
            pdu_type, body = PDUType.A_ASSOCIATE_RJ, _encode_short(0, pdu.result, pdu.source, pdu.reason)
        case ReleaseRQ():
            pdu_type, body = PDUType.A_RELEASE_RQ, bytes(4)
        case ReleaseRP():
            pdu_type, body = PDUType.A_RELEASE_RP, bytes(4)
        case Abort():
            pdu_type, body = PDUType.A_ABORT, _encode_short(0, 0, pdu.source, pdu.reason)
        case _:
            assert_never(pdu)
    return _HEADER.pack(pdu_type, len(body)) + body


def _encode_short(*values: int) -> bytes:
    try:
        return _SHORT_BODY.pack(*values)
    except error as exc:
        raise LocalProtocolError(f"{values} are not four bytes") from exc


def _encode_associate_rq(pdu: AssociateRQ) -> bytes:
    contexts = pdu.presentation_contexts
    if not contexts:
        raise LocalProtocolError("an A-ASSOCIATE-RQ proposes at least one presentation context")
    _check_context_ids([context.context_id for context in contexts], LocalProtocolError)
    return _encode_associate(pdu, map(encode_presentation_context_rq, contexts))


def _encode_associate_ac(pdu: AssociateAC) -> bytes:
    contexts = pdu.presentation_contexts
    _check_context_ids([context.context_id for context in contexts], LocalProtocolError)
    return _encode_associate(pdu, map(encode_presentation_context_ac, contexts))


def _encode_associate(pdu: AssociateRQ | AssociateAC, contexts: Iterable[bytes]) -> bytes:
    """Encode what both have in common; `address_fields` go out as they are, where there are any."""
    addresses = pdu.address_fields
    if not addresses:
        titles = _encode_ae_title(pdu.called_ae_title) + _encode_ae_title(pdu.calling_ae_title)
        addresses = titles.ljust(ADDRESS_FIELDS_BYTES, b"\0")
    elif len(addresses) != ADDRESS_FIELDS_BYTES:
        raise LocalProtocolError(f"address fields are {ADDRESS_FIELDS_BYTES} bytes, not {len(addresses)}")
    try:
        start = _ASSOCIATE.pack(pdu.protocol_version, addresses)
    except error as exc:
        raise LocalProtocolError(f"{pdu.protocol_version} is not a protocol version") from exc
    application_context = encode_item(ItemType.APPLICATION_CONTEXT, encode_uid(pdu.application_context_name))
    return b"".join((start, application_context, *contexts, encode_user_information(pdu.user_information)))


def _encode_ae_title(title: str) -> bytes:
    if not is_sendable_text(title, AE_TITLE_BYTES):
        raise LocalProtocolError(f"{title!r} is not an AE title")
    return title.encode("ascii").ljust(AE_TITLE_BYTES)


# --- reading --------------------------------------------------------------------------------------------


def decode_pdu(pdu_type: int, body: bytes | bytearray | memoryview, limits: Limits = _DEFAULT_LIMITS) -> PDU:
    """Decode a PDU from what follows its 6-byte header. Time and memory are linear in the body's length.

    Refused are items that overrun, missing or doubled mandatory ones, and presentation context ids that
    are even, zero or repeated. Not judged here, since they are answered by A-ASSOCIATE-RJ or in the
    A-ASSOCIATE-AC (`negotiation`): protocol version, AE titles, application context name, UIDs. Reserved
    bytes, unknown items and unknown sub-items are ignored (PS3.8 9.3.1).

    Raises ProtocolError and nothing else: source 2, reason 6 for a malformed PDU, 1 for a type PS3.8
    does not know, 2 for a P-DATA-TF, which is never held whole (see `pdata`).
    """
    body = bytes(body)
    match pdu_type:
        case PDUType.A_ASSOCIATE_RQ:
            return _decode_associate_rq(body, limits)
        case PDUType.A_ASSOCIATE_AC:
            return _decode_associate_ac(body, limits)
        case PDUType.A_ASSOCIATE_RJ:
            _, result, source, reason = _decode_short(body)
            return AssociateRJ(result, source, reason)
        case PDUType.A_RELEASE_RQ:
            _decode_short(body)
            return ReleaseRQ()
        case PDUType.A_RELEASE_RP:
            _decode_short(body)
            return ReleaseRP()
        case PDUType.A_ABORT:
            _, _, source, reason = _decode_short(body)
            return Abort(source, reason)
        case PDUType.P_DATA_TF:
            raise ProtocolError("a P-DATA-TF here", source=2, reason=AbortReason.UNEXPECTED_PDU)
        case _:
            text = f"PDU type {pdu_type:02X}H is not known"
            raise ProtocolError(text, source=2, reason=AbortReason.UNRECOGNIZED_PDU)


def _decode_short(body: bytes) -> tuple[int, int, int, int]:
    if len(body) != _SHORT_BODY.size:
        raise malformed(f"a PDU of length {len(body)} that always has length 4")
    first, second, third, fourth = body
    return first, second, third, fourth


def _decode_associate_rq(body: bytes, limits: Limits) -> AssociateRQ:
    version, addresses = _decode_associate_start(body)
    reader = ItemReader(body, limits.max_association_items)
    items = reader.items(_ASSOCIATE.size, len(body))
    contexts = tuple(
        decode_presentation_context_rq(reader, start, stop)
        for item_type, start, stop in items
        if item_type == ItemType.PRESENTATION_CONTEXT_RQ
    )
    if not contexts:
        raise malformed("no presentation context is proposed")
    _check_context_ids([context.context_id for context in contexts], malformed)
    return AssociateRQ(
        called_ae_title=_decode_ae_title(addresses[:AE_TITLE_BYTES]),
        calling_ae_title=_decode_ae_title(addresses[AE_TITLE_BYTES : 2 * AE_TITLE_BYTES]),
        application_context_name=reader.uid(*_only(items, ItemType.APPLICATION_CONTEXT)),
        presentation_contexts=contexts,
        user_information=decode_user_information(
            reader, *_only(items, ItemType.USER_INFORMATION), limits.max_user_information_items
        ),
        protocol_version=version,
        address_fields=addresses,
    )


def _decode_associate_ac(body: bytes, limits: Limits) -> AssociateAC:
    version, addresses = _decode_associate_start(body)
    reader = ItemReader(body, limits.max_association_items)
    items = _associate_ac_items(reader, _ASSOCIATE.size, len(body))
    contexts = tuple(
        decode_presentation_context_ac(reader, start, stop)
        for item_type, start, stop in items
        if item_type == ItemType.PRESENTATION_CONTEXT_AC
    )
    _check_context_ids([context.context_id for context in contexts], malformed)
    return AssociateAC(
        called_ae_title=_decode_ae_title(addresses[:AE_TITLE_BYTES]),
        calling_ae_title=_decode_ae_title(addresses[AE_TITLE_BYTES : 2 * AE_TITLE_BYTES]),
        application_context_name=reader.uid(*_only(items, ItemType.APPLICATION_CONTEXT)),
        presentation_contexts=contexts,
        user_information=decode_user_information(
            reader, *_only(items, ItemType.USER_INFORMATION), limits.max_user_information_items
        ),
        protocol_version=version,
        address_fields=addresses,
    )


def _associate_ac_items(reader: ItemReader, start: int, stop: int) -> list[tuple[int, int, int]]:
    """Return type, start and stop of each item of an A-ASSOCIATE-AC. Raises ProtocolError."""
    found = []
    while start < stop:
        item_type, start, end = reader.next_item(start, stop)
        if item_type == ItemType.PRESENTATION_CONTEXT_AC:
            end = _presentation_context_end(reader.body, start, end)
        if end > stop:
            raise malformed(f"item {item_type:02X}H overruns the PDU")
        found.append((item_type, start, end))
        start = end
    return found


def _presentation_context_end(body: bytes, start: int, declared_end: int) -> int:
    """Return where an answered presentation context really ends.

    The DICOS toolkit's server declares them four bytes too long, as if the item's own header counted.
    Such an item is known by its transfer syntax, which ends four bytes early, right where the PDU ends
    or another item begins.
    """
    sub_item, end = start + 4, declared_end - 4
    if sub_item + 4 > len(body) or body[sub_item] != ItemType.TRANSFER_SYNTAX:
        return declared_end
    if sub_item + 4 + int.from_bytes(body[sub_item + 2 : sub_item + 4], "big") != end:
        return declared_end
    if end == len(body) or (end < len(body) and body[end] in _ITEMS_OF_AN_ASSOCIATE_AC):
        return end
    return declared_end


_ITEMS_OF_AN_ASSOCIATE_AC: Final = frozenset(
    {ItemType.APPLICATION_CONTEXT, ItemType.PRESENTATION_CONTEXT_AC, ItemType.USER_INFORMATION}
)


def _decode_associate_start(body: bytes) -> tuple[int, bytes]:
    """Return the protocol version and bytes 11-74 of an A-ASSOCIATE-RQ or -AC."""
    if len(body) < _ASSOCIATE.size:
        raise malformed(f"an A-ASSOCIATE PDU of length {len(body)}")
    version, addresses = _ASSOCIATE.unpack_from(body)
    return version, addresses


def _decode_ae_title(field: bytes) -> str:
    return field.decode("latin-1").strip("\0 ")


def _only(items: list[tuple[int, int, int]], item_type: ItemType) -> tuple[int, int]:
    """Return start and stop of the one item of a type that there has to be once (PS3.8 9.3.2)."""
    found = [(start, stop) for found_type, start, stop in items if found_type == item_type]
    if len(found) != 1:
        raise malformed(f"{len(found)} items {item_type:02X}H, where there is one")
    return found[0]


def _check_context_ids(ids: list[int], problem: Callable[[str], Exception]) -> None:
    """Raise `problem` unless all are odd, 1-255, and different, so that 128 are the most (PS3.8 9.3.2.2)."""
    for context_id in ids:
        if not (0 < context_id <= 2 * MAX_PRESENTATION_CONTEXTS and context_id & 1):
            raise problem(f"presentation context id {context_id}")
    if len(set(ids)) != len(ids):
        raise problem("a presentation context id is repeated")
