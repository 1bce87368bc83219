"""Answers are encoded so that another reader, pydicom, finds in them what was meant (PS3.4 C.4.1.1.3.2)."""

from __future__ import annotations

import time
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset

from scp_server.objects.header_tap import HeaderTap, TapLimits
from scp_server.objects.identifier import Key
from scp_server.objects.raw_header import RawHeader
from scp_server.objects.response_dataset import AnswerValue, Response, ResponseDataset
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax

EXPLICIT = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
IMPLICIT = TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN
BIG_ENDIAN = TransferSyntax.EXPLICIT_VR_BIG_ENDIAN
EXPLICIT_64 = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN_64
ANSWERS = [EXPLICIT, IMPLICIT, BIG_ENDIAN]
SOURCES = [*ANSWERS, EXPLICIT_64]
DICOS_CT = "1.2.840.10008.5.1.4.1.1.501.1"
NAME = 0x00100010
TAP_LIMITS = TapLimits()
YAMADA = "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce=\u3084\u307e\u3060^\u305f\u308d\u3046"


def response(
    answers: list[tuple[Key, AnswerValue]],
    syntax: TransferSyntax = EXPLICIT,
    charset: bytes | None = None,
) -> Response:
    return ResponseDataset([key for key, _ in answers], syntax, charset).encode(
        [value for _, value in answers]
    )


def read(dataset: bytes, syntax: TransferSyntax = EXPLICIT) -> Dataset:
    """As pydicom reads it."""
    meta = DatasetEncoder(EXPLICIT).element(Element(0x00020010, "UI", str(syntax)))
    return dcmread(BytesIO(bytes(128) + b"DICM" + meta + dataset), force=True)


def answered(
    answers: list[tuple[Key, AnswerValue]],
    syntax: TransferSyntax = EXPLICIT,
    charset: bytes | None = None,
) -> Dataset:
    found = response(answers, syntax, charset)
    assert found.complete
    assert len(found.dataset) % 2 == 0
    dataset = read(found.dataset, syntax)
    tags = [int(element.tag) for element in dataset]
    assert tags == sorted(tags)
    return dataset


def header(
    elements: list[Element],
    syntax: TransferSyntax = EXPLICIT,
    codec: str = "ascii",
    limits: TapLimits = TAP_LIMITS,
) -> RawHeader:
    tap = HeaderTap(syntax, limits)
    tap.feed(DatasetEncoder(syntax, codec).encode(elements))
    tap.finish()
    return tap.header


COLUMNS: list[tuple[Key, AnswerValue]] = [
    (Key(0x00080020, "DA"), "20240101"),
    (Key(0x00080050, "SH"), "ACC"),
    (Key(0x00080052, "CS"), "STUDY"),
    (Key(0x00080061, "CS"), ("CT", "MR")),
    (Key(0x00081030, "LO"), None),
    (Key(NAME, "PN"), "Doe^Jane"),
    (Key(0x0020000D, "UI"), "1.2.3"),
    (Key(0x00201208, "IS"), 17),
    (Key(0x00280010, "US"), 512),
]


@pytest.mark.parametrize("syntax", ANSWERS)
def test_columns_are_answered_in_every_transfer_syntax(syntax: TransferSyntax) -> None:
    dataset = answered(COLUMNS, syntax, b"ISO_IR 100")
    assert dataset.StudyDate == "20240101"
    assert dataset.ModalitiesInStudy == ["CT", "MR"]
    assert dataset.PatientName == "Doe^Jane"
    assert dataset.StudyInstanceUID == "1.2.3"
    assert dataset.NumberOfStudyRelatedInstances == 17
    assert dataset.Rows == 512
    assert dataset["StudyDescription"].is_empty
    assert "SpecificCharacterSet" not in dataset


def test_values_are_padded_as_their_vr_wants() -> None:
    """PS3.5 6.2."""
    found = response(
        [
            (Key(0x00080050, "SH"), "ACC"),
            (Key(0x0020000D, "UI"), "1.2.3"),
            (Key(0x00420011, "OB"), header([Element(0x00420011, "OB", b"abcd")])),
        ]
    )
    assert b"ACC " in found.dataset
    assert b"1.2.3\0" in found.dataset


@pytest.mark.parametrize(
    ("charset", "text", "expected"),
    [
        (None, "Doe^Jane", None),
        (b"ISO_IR 100", "Doe^Jane", None),
        (b"ISO_IR 100 ", "M\u00fcller", "ISO_IR 100"),
        (b"ISO_IR 100", YAMADA, "ISO_IR 192"),
        (None, "M\u00fcller", "ISO_IR 192"),
        (b"\\ISO 2022 IR 87", YAMADA, ["", "ISO 2022 IR 87"]),
        (b"ISO_IR 192", YAMADA, "ISO_IR 192"),
        (b"nonsense", "M\u00fcller", "ISO_IR 192"),
        (b"GB18030", YAMADA, "GB18030"),
    ],
)
@pytest.mark.parametrize("syntax", ANSWERS)
def test_the_requests_character_set_is_used_where_it_can_say_everything(
    syntax: TransferSyntax, charset: bytes | None, text: str, expected: object
) -> None:
    """PS3.4 C.4.1.1.3.2."""
    dataset = answered([(Key(0x00080001, "UL"), 1), (Key(NAME, "PN"), text)], syntax, charset)
    assert dataset.get("SpecificCharacterSet") == expected
    assert dataset.PatientName == text


SETS = {
    "ISO_IR 100": "latin-1",
    "ISO_IR 101": "iso8859-2",
    "ISO_IR 109": "iso8859-3",
    "ISO_IR 110": "iso8859-4",
    "ISO_IR 144": "iso8859-5",
    "ISO_IR 127": "iso8859-6",
    "ISO_IR 126": "iso8859-7",
    "ISO_IR 138": "iso8859-8",
    "ISO_IR 148": "iso8859-9",
    "ISO_IR 166": "tis-620",
    "ISO_IR 13": "shift_jis",
    "ISO_IR 192": "utf-8",
    "GB18030": "gb18030",
    "GBK": "gbk",
}


def test_latin_9_which_pydicom_lacks_is_answered_too() -> None:
    found = response([(Key(NAME, "PN"), "\u20ac")], EXPLICIT, b"ISO_IR 203")
    assert found.dataset.endswith(b"PN\x02\0\xa4 ")


@pytest.mark.parametrize("charset", SETS)
def test_stored_text_is_answered_in_whichever_character_set_was_asked_for(charset: str) -> None:
    text = (
        "".join(bytes([byte]).decode(SETS[charset], "ignore") for byte in range(0xC1, 0xEB)) or "\u5c71\u7530"
    )
    stored = header([Element(0x00080005, "CS", "ISO_IR 192"), Element(NAME, "PN", text)], codec="utf-8")
    for syntax in ANSWERS:
        dataset = answered([(Key(NAME, "PN"), stored)], syntax, charset.encode())
        assert dataset.SpecificCharacterSet == charset
        assert dataset.PatientName == text


STORED = [
    Element(0x00080016, "UI", DICOS_CT),
    Element(0x00080018, "UI", "1.2.3.04"),
    Element(0x00181063, "DS", "1.50"),
    Element(0x00181151, "IS", "+250"),
    Element(0x00189306, "FD", 0.1),
    Element(0x00280008, "US", 7),
    Element(0x00280009, "AT", [0x00181063, 0x00181065]),
    Element(0x00281101, "US", [1, 2, 3]),
    Element(0x00420011, "OB", b"%PDF-1"),
    Element(0x00660016, "OF", b"\1\2\3\4\5\6\7\x08"),
]


@pytest.mark.parametrize("stored_in", SOURCES)
@pytest.mark.parametrize("syntax", ANSWERS)
def test_stored_values_stay_themselves_in_another_encoding(
    stored_in: TransferSyntax, syntax: TransferSyntax
) -> None:
    stored = header(STORED, stored_in)
    keys = [Key(element.tag, element.vr) for element in STORED]
    found = response([(key, stored) for key in keys], syntax)
    # The DICOS dictionary's VR, which pydicom does not have: explicit tells it.
    expected = DatasetEncoder(syntax).encode(STORED)
    assert found == Response(expected, True)


@pytest.mark.parametrize(
    ("key_vr", "stored", "encoded"),
    [
        ("IS", Element(0x00280008, "US", 7), b"7 "),
        ("US", Element(0x00280008, "IS", "7"), b"\x07\0"),
        ("US", Element(0x00280008, "IS", "1\\2"), b"\1\0\2\0"),
        ("DS", Element(0x00189306, "FD", 0.1), b"0.1 "),
        ("FD", Element(0x00181063, "DS", "0.5"), bytes(6) + b"\xe0\x3f"),
        ("LO", Element(0x00080050, "SH", "x"), b"x "),
        ("LO", Element(0x00080050, "UN", b"x\0"), b"x "),
        ("UN", Element(0x00080050, "SH", "x"), b"x "),
    ],
)
def test_a_value_is_answered_in_the_vr_that_was_asked_for(
    key_vr: str, stored: Element, encoded: bytes
) -> None:
    """DICOS has a binary value where DICOM has text, and the other way round."""
    found = response([(Key(stored.tag, key_vr), header([stored]))], IMPLICIT)
    assert found.complete
    assert found.dataset[8:] == encoded


@pytest.mark.parametrize(
    ("key_vr", "stored"),
    [
        ("US", Element(0x00280008, "IS", "70000")),
        ("US", Element(0x00280008, "IS", "x")),
        ("IS", Element(0x00280008, "OB", b"abcd")),
        ("DS", Element(0x00189306, "FD", float("nan"))),
    ],
)
def test_what_its_vr_cannot_have_is_left_out(key_vr: str, stored: Element) -> None:
    assert response([(Key(stored.tag, key_vr), header([stored]))]) == Response(b"", False)
    assert response([(Key(0x00280010, "US"), 70_000)]) == Response(b"", False)


def test_what_the_header_was_not_given_to_keep_is_left_out() -> None:
    stored = header(
        [Element(NAME, "PN", "Doe"), Element(0x00204000, "LT", "x" * 2_000)],
        limits=TapLimits(max_value_bytes=1_000),
    )
    found = response([(Key(NAME, "PN"), stored), (Key(0x00204000, "LT"), stored)])
    assert not found.complete
    assert [element.keyword for element in read(found.dataset)] == ["PatientName"]


def test_a_value_too_long_for_its_vr_becomes_un() -> None:
    """PS3.5 6.2.2: more than 65 534 bytes."""
    text = "\u00e9" * 40_000
    stored = header(
        [Element(0x00080005, "CS", "ISO_IR 100"), Element(0x00204000, "LT", text)], codec="latin-1"
    )
    found = response([(Key(0x00204000, "LT"), stored)], EXPLICIT, b"ISO_IR 192")
    assert found.complete
    element: Any = read(found.dataset).get_item(0x00204000)
    assert element is not None
    assert (element.VR, element.length) == ("UN", 80_000)
    assert element.value == text.encode()
    implicit = response([(Key(0x00204000, "LT"), stored)], IMPLICIT)
    assert implicit.dataset.endswith(b"\x80\x38\x01\0" + text.encode())


CODES = [
    [Element(0x00080100, "SH", "A"), Element(0x00080104, "LO", "\u00e9")],
    [Element(0x00080100, "SH", "B")],
    [],
]


@pytest.mark.parametrize("stored_in", SOURCES)
@pytest.mark.parametrize("syntax", ANSWERS)
@pytest.mark.parametrize("undefined", [False, True])
def test_all_items_are_answered_with_what_was_asked_for(
    stored_in: TransferSyntax, syntax: TransferSyntax, undefined: bool
) -> None:
    """PS3.4 C.2.2.2.6."""
    stored = header(
        [Element(0x00080005, "CS", "ISO_IR 100"), Element(0x00081032, "SQ", CODES, undefined)],
        stored_in,
        "latin-1",
    )
    key = Key(0x00081032, "SQ", items=(Key(0x00080102, "SH"), Key(0x00080104, "LO")))
    items = answered([(key, stored)], syntax).ProcedureCodeSequence
    assert [[element.keyword for element in item] for item in items] == [
        ["CodingSchemeDesignator", "CodeMeaning"]
    ] * 3
    assert [item.CodeMeaning for item in items] == ["\u00e9", "", ""]
    whole = answered([(Key(0x00081032, "SQ", items=()), stored)], syntax).ProcedureCodeSequence
    assert [[(element.keyword, element.value) for element in item] for item in whole] == [
        [("CodeValue", "A"), ("CodeMeaning", "\u00e9")],
        [("CodeValue", "B")],
        [],
    ]


def test_whole_items_have_all_that_lies_in_them_but_pixels_and_their_own_character_set() -> None:
    inner = [
        Element(0x00080000, "UL", 4),
        Element(0x00080005, "CS", "ISO_IR 100"),
        Element(0x00080104, "LO", b"\xe9"),
        Element(0x00110010, "LO", "ACME"),
        Element(0x00111001, "UN", b"\1\2"),
        Element(0x00189306, "FD", 1.5),
        Element(0x00400440, "SQ", [[Element(0x00080104, "LO", b"\xe9")]], undefined_length=True),
        Element(0x7FE00010, "OW", bytes(4)),
    ]
    stored = header([Element(0x00081032, "SQ", [inner])], BIG_ENDIAN)
    dataset = answered([(Key(0x00081032, "SQ", items=()), stored)])
    assert dataset.SpecificCharacterSet == "ISO_IR 192"
    (item,) = dataset.ProcedureCodeSequence
    assert [int(element.tag) for element in item] == [
        0x00080104,
        0x00110010,
        0x00111001,
        0x00189306,
        0x00400440,
    ]
    assert item.CodeMeaning == item[0x00400440].value[0].CodeMeaning == "\u00e9"
    assert item[0x00189306].value == 1.5


@pytest.mark.parametrize("syntax", ANSWERS)
def test_private_elements_are_answered_in_the_block_that_was_asked_for(syntax: TransferSyntax) -> None:
    """PS3.5 7.8.1."""
    stored = header([Element(0x00110022, "LO", "ACME"), Element(0x00112201, "LO", "secret")])
    keys = [
        Key(0x00110010, "LO", private_creator="ACME"),
        Key(0x00111001, "LO", private_creator="ACME"),
        Key(0x00111002, "LO", private_creator="ACME"),
    ]
    found = response([(key, stored) for key in keys], syntax)
    assert found == Response(
        DatasetEncoder(syntax).encode(
            [
                Element(0x00110010, "LO", "ACME"),
                Element(0x00111001, "LO", "secret"),
                Element(0x00111002, "LO", ""),
            ]
        ),
        True,
    )


def test_a_private_sequence_without_a_vr_is_answered_as_one() -> None:
    stored = header(
        [
            Element(0x00110010, "LO", "ACME"),
            Element(0x00111001, "SQ", [[Element(0x00080100, "SH", "A")]], undefined_length=True),
        ],
        IMPLICIT,
    )
    key = Key(0x00111001, "SQ", items=(), private_creator="ACME")
    assert answered([(key, stored)])[0x00111001].value[0].CodeValue == "A"


def test_an_escape_character_cannot_spoil_an_answer() -> None:
    found = response([(Key(0x00081030, "LO"), "a\x1bZ\u00e9")], EXPLICIT, b"\\ISO 2022 IR 87")
    assert b"ISO_IR 192" in found.dataset


def test_keys_out_of_order_are_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="order"):
        ResponseDataset([Key(2, "LO"), Key(1, "LO")], EXPLICIT, None)
    with pytest.raises(ValueError, match="argument"):
        ResponseDataset([Key(1, "LO")], EXPLICIT, None).encode([])


TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\\"), max_size=20
)


@settings(max_examples=300, deadline=None)
@given(
    TEXTS,
    st.sampled_from([None, *(name.encode() for name in SETS), b"ISO 2022 IR 100\\ISO 2022 IR 87"]),
    st.sampled_from(ANSWERS),
    st.booleans(),
)
def test_pydicom_reads_what_was_written(
    text: str, charset: bytes | None, syntax: TransferSyntax, from_header: bool
) -> None:
    text = text.strip()
    value: Any = text
    if from_header:
        value = header(
            [Element(0x00080005, "CS", "ISO_IR 192"), Element(0x00081030, "LO", text)], codec="utf-8"
        )
    dataset = answered([(Key(0x00081030, "LO"), value)], syntax, charset)
    assert (dataset.StudyDescription or "") == text


def test_a_thousand_answers_take_a_fraction_of_a_second() -> None:
    encoder = ResponseDataset([key for key, _ in COLUMNS], EXPLICIT, b"ISO_IR 100")
    values = [value for _, value in COLUMNS]
    began = time.process_time()
    for _ in range(1_000):
        encoder.encode(values)
    assert time.process_time() - began < 0.5
