"""The bytes of command sets (PS3.7 6.3.1, E.1)."""

from __future__ import annotations

import struct
from dataclasses import MISSING, fields
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scp_server.errors import LocalProtocolError, ProtocolError
from scp_server.protocol import message as m
from scp_server.protocol.command import ELEMENTS, VR, decode_command, encode_command
from scp_server.protocol.message import Message

MESSAGE_TYPES: list[type[Message]] = [
    *(m.CStoreRQ, m.CStoreRSP, m.CFindRQ, m.CFindRSP, m.CGetRQ, m.CGetRSP, m.CMoveRQ, m.CMoveRSP),
    *(m.CEchoRQ, m.CEchoRSP, m.CCancelRQ, m.NEventReportRQ, m.NEventReportRSP, m.NGetRQ, m.NGetRSP),
    *(m.NSetRQ, m.NSetRSP, m.NActionRQ, m.NActionRSP, m.NCreateRQ, m.NCreateRSP, m.NDeleteRQ, m.NDeleteRSP),
]

NUMBERS = st.integers(0, 0xFFFF)
UIDS = st.text("0123456789.", max_size=64)
TEXTS = st.text([chr(c) for c in range(0x20, 0x7F) if chr(c) != "\\"], max_size=64).map(lambda s: s.strip())
VALUES: dict[VR, st.SearchStrategy[Any]] = {
    VR.UI: UIDS,
    VR.AE: TEXTS.map(lambda text: text[:16].strip()),
    VR.LO: TEXTS,
    VR.US: NUMBERS,
    VR.AT: st.lists(st.integers(0, 0xFFFFFFFF), max_size=5).map(tuple),
}
STRATEGIES: dict[str, st.SearchStrategy[Any]] = {name: VALUES[vr] for _, vr, name in ELEMENTS}
STRATEGIES["has_dataset"] = st.booleans()
KNOWN_FIELDS = {int(field) for field in m.CommandField}
UNKNOWN_FIELDS = st.integers(0, 0x7FFF).filter(lambda code: code not in KNOWN_FIELDS)


def messages_of(message_type: type[Message]) -> st.SearchStrategy[Message]:
    """Every field is drawn; those with default None are sometimes left to it."""
    strategies = {}
    for field in fields(message_type):
        values = STRATEGIES[field.name]
        strategies[field.name] = values if field.default is not None else st.none() | values
    if message_type is m.UnrecognizedCommand:
        strategies["command_field"] = UNKNOWN_FIELDS
    elif message_type is m.UnrecognizedCommandRSP:
        strategies["command_field"] = st.integers(0x8000, 0xFFFF).filter(
            lambda code: code not in KNOWN_FIELDS
        )
    return st.builds(message_type, **strategies)


MESSAGES = st.one_of(
    [messages_of(kind) for kind in (*MESSAGE_TYPES, m.UnrecognizedCommand, m.UnrecognizedCommandRSP)]
)


def element(number: int, value: bytes, *, group: int = 0) -> bytes:
    return struct.pack("<HHL", group, number, len(value)) + value


def us(number: int, value: int) -> bytes:
    return element(number, struct.pack("<H", value))


ECHO = [element(0x0002, b"1.2.840.10008.1.1\0"), us(0x0100, 0x0030), us(0x0110, 1), us(0x0800, 0x0101)]
STORE = m.CStoreRQ(
    message_id=0,
    affected_sop_class_uid="1.2.840.10008.5.1.4.1.1.501.1",
    affected_sop_instance_uid="0728002782.13878",
    has_dataset=True,
    move_originator_application_entity_title="SCANNER",
    move_originator_message_id=0,
)


def with_group_length(elements: list[bytes]) -> bytes:
    body = b"".join(elements)
    return element(0, struct.pack("<L", len(body))) + body


def outcome(data: bytes) -> Message | tuple[int, int]:
    """The message, or source and reason of the ProtocolError."""
    try:
        return decode_command(data)
    except ProtocolError as error:
        return error.source, error.reason


# --- both ways ------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(MESSAGES)
def test_decoding_undoes_encoding(message: Message) -> None:
    assert decode_command(encode_command(message)) == message


@pytest.mark.parametrize("message_type", MESSAGE_TYPES, ids=lambda kind: kind.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_decoding_undoes_encoding_of_every_command(message_type: type[Message], data: st.DataObject) -> None:
    message = data.draw(messages_of(message_type))
    decoded = decode_command(memoryview(encode_command(message)))
    assert type(decoded) is message_type
    assert decoded == message


@settings(max_examples=200)
@given(MESSAGES)
def test_an_encoded_command_set_ascends_is_even_and_says_its_length(message: Message) -> None:
    """PS3.7 6.3.1."""
    data = encode_command(message)
    assert struct.unpack_from("<HHLL", data) == (0, 0, 4, len(data) - 12)
    numbers, offset = [], 0
    while offset < len(data):
        group, number, length = struct.unpack_from("<HHL", data, offset)
        assert group == 0
        assert length % 2 == 0
        numbers.append(number)
        offset += 8 + length
    assert offset == len(data)
    assert numbers == sorted(set(numbers))


def test_every_field_of_every_message_is_an_element_of_the_table() -> None:
    names = {name for _, _, name in ELEMENTS}
    for message_type in MESSAGE_TYPES:
        assert {field.name for field in fields(message_type)} <= names


def test_every_command_field_of_the_standard_is_decoded_to_its_class() -> None:
    for message_type in MESSAGE_TYPES:
        values: dict[str, Any] = {
            field.name: "1" if "uid" in field.name or "destination" in field.name else 1
            for field in fields(message_type)
            if field.default is MISSING
        }
        message = message_type(**values)
        assert type(decode_command(encode_command(message))) is message_type
    assert {kind.command_field for kind in MESSAGE_TYPES} == KNOWN_FIELDS  # type: ignore[comparison-overlap]


# --- bytes by hand --------------------------------------------------------------------------------------


def test_a_c_store_response_has_these_bytes() -> None:
    response = m.CStoreRSP(
        message_id_being_responded_to=3,
        status=0xA700,
        affected_sop_class_uid="1.2.3",
        affected_sop_instance_uid="1.22",
        error_comment="full",
        offending_elements=(0x00080018,),
    )
    assert encode_command(response) == with_group_length(
        [
            element(0x0002, b"1.2.3\0"),
            us(0x0100, 0x8001),
            us(0x0120, 3),
            us(0x0800, 0x0101),
            us(0x0900, 0xA700),
            element(0x0901, b"\x08\x00\x18\x00"),
            element(0x0902, b"full"),
            element(0x1000, b"1.22"),
        ]
    )


def test_a_data_set_is_announced_with_0001_and_none_with_0101() -> None:
    assert us(0x0800, 0x0001) in encode_command(STORE)
    assert us(0x0800, 0x0101) in encode_command(m.CEchoRQ(message_id=1))


def test_an_ae_title_is_padded_with_a_space() -> None:
    data = encode_command(m.CMoveRQ(message_id=1, affected_sop_class_uid="1.2", move_destination="ABC"))
    assert element(0x0600, b"ABC ") in data


@pytest.mark.parametrize("data_set_type", [0x0000, 0x0001, 0x0102, 0xFFFF])
def test_any_data_set_type_but_0101_announces_a_data_set(data_set_type: int) -> None:
    assert decode_command(with_group_length([*ECHO[:3], us(0x0800, data_set_type)])).has_dataset


def test_data_set_type_0101_announces_none() -> None:
    """PS3.7 E.1."""
    assert not decode_command(with_group_length(ECHO)).has_dataset


def test_a_dicos_clients_store_with_message_id_0_and_move_originator_is_decoded() -> None:
    data = with_group_length(
        [
            element(0x0002, b"1.2.840.10008.5.1.4.1.1.501.1\0"),
            us(0x0100, 0x0001),
            us(0x0110, 0),
            us(0x0700, 0),
            us(0x0800, 0),
            element(0x1000, b"0728002782.13878"),
            element(0x1030, b"SCANNER "),
            us(0x1031, 0),
        ]
    )
    assert decode_command(data) == STORE


@pytest.mark.parametrize("padding", [b"\0", b" ", b"\0\0\0", b"  "])
def test_trailing_padding_of_a_uid_is_stripped(padding: bytes) -> None:
    message = decode_command(with_group_length([element(0x0002, b"1.2.3" + padding), *ECHO[1:]]))
    assert message == m.CEchoRQ(message_id=1, affected_sop_class_uid="1.2.3")


def test_the_group_length_may_be_absent_or_wrong() -> None:
    expected = m.CEchoRQ(message_id=1)
    assert decode_command(b"".join(ECHO)) == expected
    assert decode_command(element(0, struct.pack("<L", 99999)) + b"".join(ECHO)) == expected


def test_elements_that_the_command_does_not_have_are_ignored() -> None:
    extra = [element(0x0010, b"ACR-NEMA"), *ECHO[1:3], us(0x0700, 2), ECHO[3], element(0x5010, b"odd")]
    assert decode_command(with_group_length([ECHO[0], *extra])) == m.CEchoRQ(message_id=1)


def test_a_uid_that_its_service_requires_is_empty_when_absent() -> None:
    message = decode_command(with_group_length([us(0x0100, 1), us(0x0110, 1), us(0x0800, 0)]))
    assert message == m.CStoreRQ(
        message_id=1, affected_sop_class_uid="", affected_sop_instance_uid="", has_dataset=True
    )
    echo = decode_command(with_group_length(ECHO[1:]))
    assert echo == m.CEchoRQ(message_id=1, affected_sop_class_uid="")


def test_a_uid_that_is_not_one_is_kept_as_text() -> None:
    for text in (b"../../etc/passwd", b"9" * 100, b"\xff\xfe"):
        message = decode_command(with_group_length([element(0x0002, text), *ECHO[1:]]))
        assert isinstance(message, m.CEchoRQ)
        assert message.affected_sop_class_uid == text.decode("latin-1")


def test_an_unknown_command_field_is_an_unrecognized_command() -> None:
    request = decode_command(with_group_length([us(0x0100, 0x0055), us(0x0110, 8), us(0x0800, 1)]))
    assert request == m.UnrecognizedCommand(command_field=0x0055, message_id=8, has_dataset=True)
    response = decode_command(
        with_group_length([us(0x0100, 0x8055), us(0x0120, 8), us(0x0800, 0x0101), us(0x0900, 0x0211)])
    )
    assert response == m.UnrecognizedCommandRSP(
        command_field=0x8055, message_id_being_responded_to=8, status=0x0211
    )


# --- the usual C-STORE-RQ takes a short cut, whose answers must be the table's ----------------------------


@settings(max_examples=200)
@given(
    class_uid=st.binary(max_size=70),
    instance_uid=st.binary(max_size=70),
    numbers=st.tuples(NUMBERS, NUMBERS, NUMBERS),
)
@example(class_uid=b"", instance_uid=b"", numbers=(0, 0, 0x0101))
def test_the_short_cut_for_c_store_gives_what_the_table_gives(
    class_uid: bytes, instance_uid: bytes, numbers: tuple[int, int, int]
) -> None:
    message_id, priority, data_set_type = numbers
    elements = [
        element(0x0002, class_uid),
        us(0x0100, 0x0001),
        us(0x0110, message_id),
        us(0x0700, priority),
        us(0x0800, data_set_type),
        element(0x1000, instance_uid),
    ]
    short = decode_command(with_group_length(elements))
    assert short == decode_command(b"".join(elements))
    assert short == decode_command(with_group_length([*elements, element(0x7FFF, b"")]))


@settings(max_examples=300)
@given(position=st.integers(0, 200), value=st.integers(0, 255))
def test_the_short_cut_accepts_nothing_that_the_table_refuses(position: int, value: int) -> None:
    """A changed byte must have the same effect with an unknown element at the end, which rules it out."""
    usual = bytearray(
        encode_command(
            m.CStoreRQ(message_id=1, affected_sop_class_uid="1.2.840.10008", affected_sop_instance_uid="1.22")
        )
    )
    usual[position % len(usual)] = value

    assert outcome(bytes(usual)) == outcome(bytes(usual) + element(0xFFFF, b""))


# --- what is refused ------------------------------------------------------------------------------------

MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "a header that is cut off": with_group_length(ECHO) + b"\0\0\0\x10\0\0\0",
    "a value that is cut off": with_group_length(ECHO)[:-1],
    "a length of 4 GiB": element(0, bytes(4)) + b"\0\0\2\0\xff\xff\xff\xff",
    "another group": with_group_length([*ECHO, element(0x0016, b"1.2 ", group=8)]),
    "descending tags": with_group_length([ECHO[1], ECHO[0], *ECHO[2:]]),
    "a repeated tag": with_group_length([*ECHO[:3], ECHO[2], ECHO[3]]),
    "a repeated group length": element(0, bytes(4)) + with_group_length(ECHO),
    "no Command Field": with_group_length([ECHO[0], *ECHO[2:]]),
    "no Message ID": with_group_length([*ECHO[:2], ECHO[3]]),
    "no Command Data Set Type": with_group_length(ECHO[:3]),
    "a Command Field of 4 bytes": with_group_length([ECHO[0], element(0x0100, b"0\0\0\0"), *ECHO[2:]]),
    "an empty Message ID": with_group_length([*ECHO[:2], element(0x0110, b""), ECHO[3]]),
    "a Command Data Set Type of 1 byte": with_group_length([*ECHO[:3], element(0x0800, b"\1")]),
    "no Message ID Being Responded To": with_group_length(
        [us(0x0100, 0x8001), us(0x0110, 1), us(0x0800, 0x0101), us(0x0900, 0)]
    ),
    "no Status": with_group_length([us(0x0100, 0x8001), us(0x0120, 1), us(0x0800, 0x0101)]),
    "an AT of 6 bytes": with_group_length(
        [us(0x0100, 0x8001), us(0x0120, 1), us(0x0800, 0x0101), us(0x0900, 1), element(0x0901, bytes(6))]
    ),
    "no Event Type ID": with_group_length([us(0x0100, 0x0100), us(0x0110, 1), us(0x0800, 0x0101)]),
    "no Action Type ID": with_group_length([us(0x0100, 0x0130), us(0x0110, 1), us(0x0800, 0x0101)]),
    "an unknown request without Message ID": with_group_length([us(0x0100, 0x0055), us(0x0800, 0x0101)]),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_command_set_aborts_with_invalid_parameter_value(data: bytes) -> None:
    assert outcome(data) == (2, 6)


@settings(max_examples=500)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    result = outcome(data)
    assert isinstance(result, Message) or result == (2, 6)


@settings(max_examples=500)
@given(MESSAGES, st.data())
def test_any_damaged_command_set_is_a_message_or_a_protocol_error(
    message: Message, data: st.DataObject
) -> None:
    damaged = bytearray(encode_command(message))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    result = outcome(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    assert isinstance(result, Message) or result == (2, 6)


UNENCODABLE: dict[str, Message] = {
    "a UID of 65 characters": m.CEchoRQ(message_id=1, affected_sop_class_uid="1" * 65),
    "a UID outside ASCII": m.CEchoRQ(message_id=1, affected_sop_class_uid="1.\u0661"),
    "an AE title of 17 characters": m.CMoveRQ(
        message_id=1, affected_sop_class_uid="1", move_destination="A" * 17
    ),
    "a comment of 65 characters": m.CEchoRSP(
        message_id_being_responded_to=1, status=1, error_comment="x" * 65
    ),
    "a comment of two lines": m.CEchoRSP(message_id_being_responded_to=1, status=1, error_comment="a\nb"),
    "a backslash": m.CEchoRSP(message_id_being_responded_to=1, status=1, error_comment="a\\b"),
    "a message id beyond 16 bits": m.CEchoRQ(message_id=65536),
    "a negative status": m.CEchoRSP(message_id_being_responded_to=1, status=-1),
    "a tag beyond 32 bits": m.CEchoRSP(
        message_id_being_responded_to=1, status=1, offending_elements=(1 << 32,)
    ),
}


@pytest.mark.parametrize("message", UNENCODABLE.values(), ids=UNENCODABLE.keys())
def test_what_an_element_cannot_hold_is_our_own_error(message: Message) -> None:
    with pytest.raises(LocalProtocolError):
        encode_command(message)


@pytest.mark.parametrize(
    ("priority", "code"), [(m.Priority.MEDIUM, 0), (m.Priority.HIGH, 1), (m.Priority.LOW, 2)]
)
def test_a_priority_is_its_code(priority: m.Priority, code: int) -> None:
    request = m.CFindRQ(message_id=1, affected_sop_class_uid="1", priority=priority)
    assert us(0x0700, code) in encode_command(request)
