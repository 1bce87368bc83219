"""The bytes of PDUs and of the items in them (PS3.8 9.3, PS3.7 D.3.3)."""

from __future__ import annotations

import struct
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scp_server.errors import LocalProtocolError, ProtocolError
from scp_server.protocol.items import (
    AsynchronousOperationsWindow,
    PresentationContextAC,
    PresentationContextRQ,
    RoleSelection,
    SOPClassCommonExtendedNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityAC,
    UserIdentityRQ,
    UserInformation,
)
from scp_server.protocol.limits import Limits
from scp_server.protocol.pdu import (
    PDU,
    Abort,
    AssociateAC,
    AssociateRJ,
    AssociateRQ,
    PDUType,
    ReleaseRP,
    ReleaseRQ,
    decode_pdu,
    encode_pdu,
)

DICOM = "1.2.840.10008.3.1.1.1"
BYTES = st.integers(0, 255)
SHORTS = st.integers(0, 0xFFFF)
UIDS = st.text("0123456789.", max_size=64)
SOME_UID = st.text("0123456789.", min_size=1, max_size=64)
PRINTABLE = st.text([chr(c) for c in range(0x20, 0x7F) if chr(c) != "\\"], max_size=16).map(
    lambda text: text.strip()
)
USER_INFORMATION = st.builds(
    UserInformation,
    maximum_length=st.none() | st.integers(0, 0xFFFFFFFF),
    implementation_class_uid=UIDS,
    implementation_version_name=PRINTABLE,
    asynchronous_operations_window=st.none() | st.builds(AsynchronousOperationsWindow, SHORTS, SHORTS),
    role_selections=st.lists(st.builds(RoleSelection, UIDS, st.booleans(), st.booleans()), max_size=3).map(
        tuple
    ),
    extended_negotiations=st.lists(
        st.builds(SOPClassExtendedNegotiation, UIDS, st.binary(max_size=9)), max_size=3
    ).map(tuple),
    common_extended_negotiations=st.lists(
        st.builds(SOPClassCommonExtendedNegotiation, UIDS, UIDS, st.lists(UIDS, max_size=3).map(tuple)),
        max_size=3,
    ).map(tuple),
    user_identity=st.none()
    | st.builds(UserIdentityRQ, BYTES, st.booleans(), st.binary(max_size=40), st.binary(max_size=40)),
    user_identity_response=st.none() | st.builds(UserIdentityAC, st.binary(max_size=40)),
)
CONTEXT_IDS = st.integers(0, 127).map(lambda number: 2 * number + 1)


def contexts(context: st.SearchStrategy[Any], min_size: int) -> st.SearchStrategy[tuple[Any, ...]]:
    lists = st.lists(context, min_size=min_size, max_size=5, unique_by=lambda context: context.context_id)
    return lists.map(tuple)


CONTEXTS_RQ = contexts(
    st.builds(PresentationContextRQ, CONTEXT_IDS, UIDS, st.lists(UIDS, min_size=1, max_size=4).map(tuple)),
    1,
)
CONTEXTS_AC = contexts(st.builds(PresentationContextAC, CONTEXT_IDS, BYTES, UIDS), 0)
PDUS: st.SearchStrategy[PDU] = st.one_of(
    st.builds(
        AssociateRQ, PRINTABLE, PRINTABLE, UIDS, CONTEXTS_RQ, USER_INFORMATION, protocol_version=SHORTS
    ),
    st.builds(
        AssociateAC, PRINTABLE, PRINTABLE, UIDS, CONTEXTS_AC, USER_INFORMATION, protocol_version=SHORTS
    ),
    st.builds(AssociateRJ, BYTES, BYTES, BYTES),
    st.builds(Abort, BYTES, BYTES),
    st.just(ReleaseRQ()),
    st.just(ReleaseRP()),
)

REQUEST = AssociateRQ(
    called_ae_title="CALLED",
    calling_ae_title="CALLING",
    application_context_name=DICOM,
    presentation_contexts=(PresentationContextRQ(1, "1.2.840.10008.1.1", ("1.2.840.10008.1.2",)),),
    user_information=UserInformation(131072),
)
ANSWER = AssociateAC(
    called_ae_title="CALLED",
    calling_ae_title="CALLING",
    application_context_name=DICOM,
    presentation_contexts=(PresentationContextAC(1, 0, "1.2.840.10008.1.2"),),
    user_information=UserInformation(131072),
)


LIMITS = Limits()


def decode(data: bytes) -> PDU:
    pdu_type, length = struct.unpack_from(">BxL", data)
    assert length == len(data) - 6
    return decode_pdu(pdu_type, data[6:])


def outcome(pdu_type: int, body: bytes, limits: Limits = LIMITS) -> PDU | tuple[int, int]:
    """The PDU, or source and reason of the ProtocolError."""
    try:
        return decode_pdu(pdu_type, body, limits)
    except ProtocolError as error:
        return error.source, error.reason


def item(item_type: int, *content: bytes) -> bytes:
    joined = b"".join(content)
    return struct.pack(">BxH", item_type, len(joined)) + joined


def counted(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


TITLES = b"CALLED".ljust(16) + b"CALLING".ljust(16) + bytes(32)
START = b"\0\1\0\0" + TITLES
APPLICATION_CONTEXT = item(0x10, DICOM.encode())
ABSTRACT = item(0x30, b"1.2.840.10008.1.1")
TRANSFER = item(0x40, b"1.2.840.10008.1.2")
CONTEXT = item(0x20, b"\1\0\0\0", ABSTRACT, TRANSFER)
MAXIMUM_LENGTH = item(0x51, struct.pack(">L", 131072))
USER = item(0x50, MAXIMUM_LENGTH)


def rq(*items: bytes) -> bytes:
    return START + b"".join(items)


def ac_context(context_id: int, transfer_syntax: bytes = b"1.2.840.10008.1.2", *, excess: int = 0) -> bytes:
    content = bytes((context_id, 0, 0, 0)) + item(0x40, transfer_syntax)
    return struct.pack(">BxH", 0x21, len(content) + excess) + content


# --- both ways ------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(PDUS)
def test_decoding_undoes_encoding(pdu: PDU) -> None:
    assert decode(encode_pdu(pdu)) == pdu


def test_an_a_associate_rq_has_these_bytes() -> None:
    """PS3.8 9.3."""
    body = rq(APPLICATION_CONTEXT, CONTEXT, USER)
    assert encode_pdu(REQUEST) == b"\1\0" + struct.pack(">L", len(body)) + body


def test_an_a_associate_ac_has_these_bytes() -> None:
    body = rq(APPLICATION_CONTEXT, ac_context(1), USER)
    assert encode_pdu(ANSWER) == b"\2\0" + struct.pack(">L", len(body)) + body


@pytest.mark.parametrize(
    ("pdu", "data"),
    [
        (AssociateRJ(1, 2, 3), b"\3\0\0\0\0\4\0\1\2\3"),
        (ReleaseRQ(), b"\5\0\0\0\0\4\0\0\0\0"),
        (ReleaseRP(), b"\6\0\0\0\0\4\0\0\0\0"),
        (Abort(2, 6), b"\7\0\0\0\0\4\0\0\2\6"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_short_pdu_has_these_bytes(pdu: PDU, data: bytes) -> None:
    assert encode_pdu(pdu) == data
    assert decode(data) == pdu


def test_every_user_information_sub_item_has_these_bytes_ascending() -> None:
    """PS3.8 9.3.2.3."""
    information = UserInformation(
        maximum_length=16384,
        implementation_class_uid="1.2",
        implementation_version_name="V1",
        asynchronous_operations_window=AsynchronousOperationsWindow(1, 2),
        role_selections=(RoleSelection("1.3", True, False),),
        extended_negotiations=(SOPClassExtendedNegotiation("1.4", b"\1\0\1"),),
        common_extended_negotiations=(SOPClassCommonExtendedNegotiation("1.5", "1.6", ("1.7", "1.88")),),
        user_identity=UserIdentityRQ(2, True, b"user", b"pass"),
        user_identity_response=UserIdentityAC(b"yes"),
    )
    sub_items = [
        item(0x51, b"\0\0\x40\0"),
        item(0x52, b"1.2"),
        item(0x53, b"\0\1\0\2"),
        item(0x54, counted(b"1.3"), b"\1\0"),
        item(0x55, b"V1"),
        item(0x56, counted(b"1.4"), b"\1\0\1"),
        item(0x57, counted(b"1.5"), counted(b"1.6"), counted(counted(b"1.7") + counted(b"1.88"))),
        item(0x58, b"\2\1", counted(b"user"), counted(b"pass")),
        item(0x59, counted(b"yes")),
    ]
    request = replace(REQUEST, user_information=information)
    assert encode_pdu(request)[6:] == rq(APPLICATION_CONTEXT, CONTEXT, item(0x50, *sub_items))
    shuffled = rq(item(0x50, *reversed(sub_items)), CONTEXT, APPLICATION_CONTEXT)
    assert decode_pdu(1, shuffled) == request


# --- what is tolerated ----------------------------------------------------------------------------------


def test_padding_of_titles_and_uids_is_stripped() -> None:
    """PS3.8 9.3.2."""
    body = (
        b"\0\1\0\0" + b"  CALLED".ljust(16) + b"CALLING".ljust(16, b"\0") + bytes(32)
        + item(0x10, DICOM.encode() + b"\0")
        + item(0x20, b"\1\0\0\0", item(0x30, b"1.2.840.10008.1.1 "), item(0x40, b"1.2.840.10008.1.2\0\0"))
        + USER
    )  # fmt: skip
    assert decode_pdu(1, body) == REQUEST


def test_titles_are_kept_as_received_beside_their_text() -> None:
    decoded = decode_pdu(1, rq(APPLICATION_CONTEXT, CONTEXT, USER))
    assert isinstance(decoded, AssociateRQ)
    assert decoded.address_fields == TITLES


def test_address_fields_go_out_as_they_came_in() -> None:
    addresses = bytes(range(64))
    answer = replace(ANSWER, called_ae_title="\xff" * 99, address_fields=addresses)
    assert encode_pdu(answer)[10:74] == addresses


@pytest.mark.parametrize("title", [b"                ", bytes(16), b"A\\B\n", b"\xe9\xff"])
def test_a_bad_ae_title_is_decoded_so_that_it_can_be_rejected(title: bytes) -> None:
    body = b"\0\1\0\0" + title.ljust(16) + b"X".ljust(16) + bytes(32) + APPLICATION_CONTEXT + CONTEXT + USER
    decoded = decode_pdu(1, body)
    assert isinstance(decoded, AssociateRQ)
    assert decoded.called_ae_title == title.decode("latin-1").strip("\0 ")


def test_a_protocol_version_we_do_not_speak_is_decoded_so_that_it_can_be_rejected() -> None:
    decoded = decode_pdu(1, b"\0\2" + rq(APPLICATION_CONTEXT, CONTEXT, USER)[2:])
    assert decoded == replace(REQUEST, protocol_version=2)


def test_reserved_bytes_are_not_tested() -> None:
    """PS3.8 9.3.3."""
    body = bytearray(rq(APPLICATION_CONTEXT, CONTEXT, USER))
    context = body.index(CONTEXT)
    for offset in (2, 3, 69, context + 1, context + 5, context + 6, context + 7, context + 9):
        body[offset] = 0xEE
    assert decode_pdu(1, body) == REQUEST
    assert decode_pdu(PDUType.A_ABORT, b"\xee\xee\2\1") == Abort(2, 1)
    assert decode_pdu(PDUType.A_RELEASE_RQ, b"\xee\xee\xee\xee") == ReleaseRQ()


def test_unknown_items_and_sub_items_are_ignored() -> None:
    unknown = item(0x99, b"\xff" * 10)
    context = item(0x20, b"\1\0\0\0", unknown, ABSTRACT, item(0x41, b""), TRANSFER)
    user = item(0x50, item(0x5A, b"?"), MAXIMUM_LENGTH, unknown)
    body = rq(unknown, APPLICATION_CONTEXT, item(0x21, b""), context, user, item(0, b""))
    assert decode_pdu(1, body) == REQUEST


def test_the_first_of_a_repeated_sub_item_counts() -> None:
    body = rq(APPLICATION_CONTEXT, CONTEXT, item(0x50, MAXIMUM_LENGTH, item(0x51, bytes(4))))
    assert decode_pdu(1, body) == REQUEST


def test_user_information_may_be_empty() -> None:
    decoded = decode_pdu(1, rq(APPLICATION_CONTEXT, CONTEXT, item(0x50)))
    assert decoded == replace(REQUEST, user_information=UserInformation(None))


def test_an_abstract_syntax_may_be_proposed_in_several_contexts() -> None:
    second = item(0x20, b"\xff\0\0\0", TRANSFER, ABSTRACT)
    decoded = decode_pdu(1, rq(APPLICATION_CONTEXT, second, CONTEXT, USER))
    assert isinstance(decoded, AssociateRQ)
    assert [context.context_id for context in decoded.presentation_contexts] == [255, 1]


def test_all_128_contexts_are_decoded() -> None:
    """PS3.8 9.3.2.2."""
    proposed = [item(0x20, bytes((number, 0, 0, 0)), ABSTRACT, TRANSFER) for number in range(1, 256, 2)]
    decoded = decode_pdu(1, rq(APPLICATION_CONTEXT, *proposed, USER))
    assert isinstance(decoded, AssociateRQ)
    assert len(decoded.presentation_contexts) == 128


def test_an_answer_may_accept_no_context_and_hold_none() -> None:
    assert decode_pdu(2, rq(APPLICATION_CONTEXT, USER)) == replace(ANSWER, presentation_contexts=())


def test_a_rejected_context_may_lack_its_transfer_syntax() -> None:
    decoded = decode_pdu(2, rq(APPLICATION_CONTEXT, item(0x21, b"\1\0\3\0"), USER))
    assert decoded == replace(ANSWER, presentation_contexts=(PresentationContextAC(1, 3, ""),))


@pytest.mark.parametrize("user_first", [False, True])
def test_the_dicos_toolkits_overlong_context_items_are_resynchronised(user_first: bool) -> None:
    answered = ac_context(5, excess=4) + ac_context(3, b"1.2.840.10008.1.2.1.64", excess=4)
    answered += ac_context(1, excess=4)
    user = item(0x50, item(0x51, bytes(4)), item(0x59, counted(b"")))
    parts = [APPLICATION_CONTEXT, user, answered] if user_first else [APPLICATION_CONTEXT, answered, user]
    assert decode_pdu(2, rq(*parts)) == replace(
        ANSWER,
        presentation_contexts=(
            PresentationContextAC(5, 0, "1.2.840.10008.1.2"),
            PresentationContextAC(3, 0, "1.2.840.10008.1.2.1.64"),
            PresentationContextAC(1, 0, "1.2.840.10008.1.2"),
        ),
        user_information=UserInformation(0, user_identity_response=UserIdentityAC()),
    )


def test_a_context_item_is_not_cut_short_where_it_is_right() -> None:
    """An unknown empty sub-item behind the transfer syntax also lies in an item's last four bytes."""
    context = item(0x21, b"\1\0\0\0", TRANSFER, item(0x99))
    assert decode_pdu(2, rq(APPLICATION_CONTEXT, context, USER)) == ANSWER


@pytest.mark.parametrize("excess", [1, 3, 5, 8, 60000])
def test_other_wrong_lengths_of_an_answered_context_are_refused(excess: int) -> None:
    body = rq(APPLICATION_CONTEXT, ac_context(3, excess=excess), ac_context(1), USER)
    assert outcome(2, body) == (2, 6)


# --- what is refused ------------------------------------------------------------------------------------

CUT = CONTEXT[:-1]
REFUSED: dict[str, bytes] = {
    "nothing": b"",
    "a cut fixed part": START[:-1],
    "no items": START,
    "no application context": rq(CONTEXT, USER),
    "two application contexts": rq(APPLICATION_CONTEXT, APPLICATION_CONTEXT, CONTEXT, USER),
    "no presentation context": rq(APPLICATION_CONTEXT, USER),
    "no user information": rq(APPLICATION_CONTEXT, CONTEXT),
    "two user informations": rq(APPLICATION_CONTEXT, CONTEXT, USER, USER),
    "context id 0": rq(APPLICATION_CONTEXT, item(0x20, bytes(4), ABSTRACT, TRANSFER), USER),
    "an even context id": rq(APPLICATION_CONTEXT, item(0x20, b"\2\0\0\0", ABSTRACT, TRANSFER), USER),
    "a repeated context id": rq(APPLICATION_CONTEXT, CONTEXT, CONTEXT, USER),
    "an empty context": rq(APPLICATION_CONTEXT, item(0x20), USER),
    "a context without abstract syntax": rq(APPLICATION_CONTEXT, item(0x20, b"\1\0\0\0", TRANSFER), USER),
    "a context without transfer syntax": rq(APPLICATION_CONTEXT, item(0x20, b"\1\0\0\0", ABSTRACT), USER),
    "a context with two abstract syntaxes": rq(
        APPLICATION_CONTEXT, item(0x20, b"\1\0\0\0", ABSTRACT, ABSTRACT, TRANSFER), USER
    ),
    "an item that overruns the PDU": rq(APPLICATION_CONTEXT, CONTEXT, USER)[:-1],
    "an item header that is cut": rq(APPLICATION_CONTEXT, CONTEXT, USER, b"\x50\0\0"),
    "a sub-item that overruns its context": rq(
        APPLICATION_CONTEXT, item(0x20, b"\1\0\0\0", ABSTRACT, TRANSFER[:-1]), USER
    ),
    "a sub-item that overruns user information": rq(
        APPLICATION_CONTEXT, CONTEXT, item(0x50, MAXIMUM_LENGTH[:-1])
    ),
    **{
        f"a malformed sub-item {number}": rq(APPLICATION_CONTEXT, CONTEXT, item(0x50, sub_item))
        for number, sub_item in enumerate(
            [
                item(0x51, b"\0\0\0"),
                item(0x51, b"\0\0\0\0\0"),
                item(0x53, b"\0\1\0"),
                item(0x54, b"\0"),
                item(0x54, b"\0\4" + b"1.2"),
                item(0x54, counted(b"1.2"), b"\1"),
                item(0x56, b"\0\4" + b"1.2"),
                item(0x57, counted(b"1.2")),
                item(0x57, counted(b"1.2"), counted(b"1.3")),
                item(0x57, counted(b"1.2"), counted(b"1.3"), counted(b"\0\4" + b"1.4")),
                item(0x57, counted(b"1.2"), counted(b"1.3"), b"\0\5" + counted(b"1.4")[:4]),
                item(0x58, b"\1"),
                item(0x58, b"\1\1", b"\0\5" + b"user"),
                item(0x58, b"\1\1", counted(b"user"), b"\0"),
                item(0x58, b"\2\1", counted(b"user"), b"\0\5" + b"pass"),
                item(0x59, b""),
                item(0x59, b"\0\1"),
            ]
        )
    },
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_a_malformed_a_associate_rq_aborts_with_invalid_parameter_value(body: bytes) -> None:
    assert outcome(1, body) == (2, 6)


@pytest.mark.parametrize(
    "body",
    [
        rq(ac_context(1), USER),
        rq(APPLICATION_CONTEXT, ac_context(1)),
        rq(APPLICATION_CONTEXT, ac_context(1), ac_context(1), USER),
        rq(APPLICATION_CONTEXT, ac_context(2), USER),
        rq(APPLICATION_CONTEXT, item(0x21, b"\1\0\0"), USER),
        rq(APPLICATION_CONTEXT, item(0x21, b"\1\0\0\0"), USER),
        rq(APPLICATION_CONTEXT, item(0x21, b"\1\0\0\0", TRANSFER, TRANSFER), USER),
    ],
    ids=["no name", "no user", "repeated id", "even id", "cut", "no syntax", "two syntaxes"],
)
def test_a_malformed_a_associate_ac_aborts_with_invalid_parameter_value(body: bytes) -> None:
    assert outcome(2, body) == (2, 6)


@pytest.mark.parametrize("pdu_type", [3, 5, 6, 7])
@pytest.mark.parametrize("length", [0, 3, 5, 70])
def test_a_short_pdu_of_another_length_than_4_is_refused(pdu_type: int, length: int) -> None:
    assert outcome(pdu_type, bytes(length)) == (2, 6)


@pytest.mark.parametrize("pdu_type", [0, 8, 0x16, 0x47, 255])
def test_an_unknown_pdu_type_is_unrecognised(pdu_type: int) -> None:
    assert outcome(pdu_type, bytes(4)) == (2, 1)


def test_p_data_is_not_decoded_whole() -> None:
    assert outcome(PDUType.P_DATA_TF, bytes(6)) == (2, 2)


def test_more_user_information_sub_items_than_the_limit_are_refused() -> None:
    body = rq(APPLICATION_CONTEXT, CONTEXT, item(0x50, MAXIMUM_LENGTH, *[item(0x5A)] * 1023))
    assert decode_pdu(1, body) == REQUEST
    assert outcome(1, body, Limits(max_user_information_items=1023)) == (2, 6)


def test_more_items_than_a_pdu_may_have_are_refused() -> None:
    needed = 5  # application context, context with two sub-items, user information
    most = Limits().max_association_items
    filling = item(0x99) * (most - needed - 1)
    assert decode_pdu(1, rq(APPLICATION_CONTEXT, CONTEXT, USER, filling)) == REQUEST
    assert outcome(1, rq(APPLICATION_CONTEXT, CONTEXT, USER, filling, item(0x99))) == (2, 6)
    fewer = Limits(max_association_items=most - 1)
    assert outcome(1, rq(APPLICATION_CONTEXT, CONTEXT, USER, filling), fewer) == (2, 6)


@pytest.mark.parametrize(
    "filling",
    [
        item(0x99) * 262_000,
        item(0x20, b"\1\0\0\0", ABSTRACT, item(0x40) * 16_000) * 16,
        item(0x50, item(0x5A) * 16_000),
        item(0x50, item(0x57, counted(b"1"), counted(b"2"), counted(bytes(60_000)))),
    ],
    ids=["items", "transfer syntaxes", "sub-items", "related classes"],
)
def test_a_pdu_of_nothing_but_tiny_items_costs_little(filling: bytes) -> None:
    """Generously bounded: the point is that a mebibyte cannot take seconds."""
    began = time.process_time()
    assert outcome(1, rq(APPLICATION_CONTEXT, CONTEXT, USER, filling)) == (2, 6)
    assert time.process_time() - began < 0.5


@settings(max_examples=400)
@given(st.integers(0, 9), st.binary(max_size=200))
def test_any_bytes_are_a_pdu_or_a_protocol_error(pdu_type: int, body: bytes) -> None:
    result = outcome(pdu_type, body)
    assert not isinstance(result, tuple) or result in {(2, 6), (2, 1), (2, 2)}


@settings(max_examples=400)
@given(PDUS, st.data())
def test_a_damaged_pdu_is_a_pdu_or_a_protocol_error(pdu: PDU, data: st.DataObject) -> None:
    encoded = bytearray(encode_pdu(pdu))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(BYTES)
    result = outcome(encoded[0], bytes(encoded[6 : data.draw(st.integers(6, len(encoded)))]))
    assert not isinstance(result, tuple) or result in {(2, 6), (2, 1), (2, 2)}


CONTEXT_RQ = REQUEST.presentation_contexts[0]
UNENCODABLE: dict[str, PDU] = {
    "an AE title of 17 characters": replace(REQUEST, called_ae_title="A" * 17),
    "an AE title outside ASCII": replace(REQUEST, calling_ae_title="\xc9"),
    "address fields of 63 bytes": replace(ANSWER, address_fields=bytes(63)),
    "a protocol version beyond 16 bits": replace(REQUEST, protocol_version=65536),
    "an application context of 65 characters": replace(REQUEST, application_context_name="1" * 65),
    "no context": replace(REQUEST, presentation_contexts=()),
    "an even context id": replace(REQUEST, presentation_contexts=(replace(CONTEXT_RQ, context_id=2),)),
    "context id 257": replace(REQUEST, presentation_contexts=(replace(CONTEXT_RQ, context_id=257),)),
    "a repeated context id": replace(REQUEST, presentation_contexts=(CONTEXT_RQ, CONTEXT_RQ)),
    "no transfer syntax": replace(
        REQUEST, presentation_contexts=(replace(CONTEXT_RQ, transfer_syntaxes=()),)
    ),
    "an abstract syntax of 65 characters": replace(
        REQUEST, presentation_contexts=(replace(CONTEXT_RQ, abstract_syntax="1" * 65),)
    ),
    "too many transfer syntaxes": replace(
        REQUEST, presentation_contexts=(replace(CONTEXT_RQ, transfer_syntaxes=("1" * 64,) * 1000),)
    ),
    "a context result beyond a byte": replace(
        ANSWER, presentation_contexts=(PresentationContextAC(1, 256, "1.2"),)
    ),
    "a repeated context id in the answer": replace(
        ANSWER, presentation_contexts=(PresentationContextAC(1, 0, "1.2"),) * 2
    ),
    "a maximum length beyond 32 bits": replace(REQUEST, user_information=UserInformation(1 << 32)),
    "a version name of 17 characters": replace(
        REQUEST, user_information=UserInformation(0, implementation_version_name="V" * 17)
    ),
    "a passcode beyond 16 bits of length": replace(
        REQUEST, user_information=UserInformation(0, user_identity=UserIdentityRQ(2, True, b"", bytes(65536)))
    ),
    "an identity type beyond a byte": replace(
        REQUEST, user_information=UserInformation(0, user_identity=UserIdentityRQ(256, True, b""))
    ),
    "a negative window": replace(
        REQUEST,
        user_information=UserInformation(
            0, asynchronous_operations_window=AsynchronousOperationsWindow(-1, 1)
        ),
    ),
    "a reject reason beyond a byte": AssociateRJ(1, 1, 256),
    "a negative abort source": Abort(-1, 0),
}


@pytest.mark.parametrize("pdu", UNENCODABLE.values(), ids=UNENCODABLE.keys())
def test_what_no_pdu_can_carry_is_our_own_error(pdu: PDU) -> None:
    with pytest.raises(LocalProtocolError):
        encode_pdu(pdu)


def test_a_user_name_without_the_secondary_field_is_taken_as_one_with_an_empty_one() -> None:
    identity = b"\x58\0\0\x09\x01\x01\0\x05guard"
    whole = encode_pdu(replace(REQUEST, user_information=UserInformation(0)))[6:]
    user_information = whole.index(b"\x50\0\0\x08\x51")
    body = whole[:user_information] + b"\x50\0" + (8 + len(identity)).to_bytes(2, "big")
    body += whole[user_information + 4 :] + identity
    request = decode_pdu(PDUType.A_ASSOCIATE_RQ, body)
    assert isinstance(request, AssociateRQ)
    assert request.user_information.user_identity == UserIdentityRQ(1, True, b"guard")
