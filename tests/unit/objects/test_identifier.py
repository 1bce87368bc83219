"""Identifiers are read into keys, or refused with 0xC000; keys are matched against headers (PS3.4 C.2.2)."""

from __future__ import annotations

import time
import tracemalloc
from itertools import accumulate

import pytest

from scp_server.errors import OperationRefused
from scp_server.objects.header_tap import HeaderTap, TapLimits
from scp_server.objects.identifier import (
    Identifier,
    IdentifierLimits,
    Key,
    located,
    read_identifier,
    source_matches,
    stored_values,
)
from scp_server.objects.matching import MatchingOptions
from scp_server.objects.raw_header import RawHeader
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, Item, TransferSyntax

EXPLICIT = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
IMPLICIT = TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN
BIG_ENDIAN = TransferSyntax.EXPLICIT_VR_BIG_ENDIAN
LIMITS = IdentifierLimits()
TAP_LIMITS = TapLimits()
SYNTAXES = [EXPLICIT, IMPLICIT, BIG_ENDIAN]
CT = "1.2.840.10008.5.1.4.1.1.2"
DICOS_CT = "1.2.840.10008.5.1.4.1.1.501.1"


def read(
    data: bytes | list[Element],
    syntax: TransferSyntax = EXPLICIT,
    *,
    is_dicos: bool = False,
    limits: IdentifierLimits = LIMITS,
) -> Identifier:
    raw = data if isinstance(data, bytes) else DatasetEncoder(syntax).encode(data)
    return read_identifier(raw, syntax, is_dicos=is_dicos, options=MatchingOptions(), limits=limits)


def refused(
    data: bytes | list[Element], syntax: TransferSyntax = EXPLICIT, **limits: int
) -> OperationRefused:
    with pytest.raises(OperationRefused) as caught:
        read(data, syntax, limits=IdentifierLimits(**limits))
    assert caught.value.status == 0xC000
    assert len(caught.value.comment) <= 64
    return caught.value


def header(
    elements: list[Element], syntax: TransferSyntax = EXPLICIT, limits: TapLimits = TAP_LIMITS
) -> RawHeader:
    tap = HeaderTap(syntax, limits)
    tap.feed(DatasetEncoder(syntax).encode(elements))
    tap.finish()
    return tap.header


def finds(
    key: Element, stored: list[Element], syntax: TransferSyntax = EXPLICIT, *, unknown: bool = False
) -> bool:
    (found,) = read([key]).keys
    return source_matches(header(stored, syntax), found, unknown)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_keys_are_read_in_every_transfer_syntax(syntax: TransferSyntax) -> None:
    found = read(
        [
            Element(0x00080000, "UL", 100),
            Element(0x00080005, "CS", "ISO_IR 100"),
            Element(0x00080052, "CS", "STUDY "),
            Element(0x00100010, "PN", b"M\xfcller*"),
            Element(0x00100020, "LO", ""),
            Element(0x00201208, "IS", ""),
            Element(0x00280010, "US", 512),
        ],
        syntax,
    )
    assert found.level == "STUDY"
    assert found.character_set == b"ISO_IR 100"
    assert [(key.tag, key.vr) for key in found.keys] == [
        (0x00100010, "PN"),
        (0x00100020, "LO"),
        (0x00201208, "IS"),
        (0x00280010, "US"),
    ]
    name, patient_id, _, rows = found.keys
    assert name.matcher is not None
    assert name.matcher.matches(["M\u00dcLLER^A"])
    assert patient_id.is_universal
    assert rows.matcher is not None
    assert rows.matcher.matches([512])


def test_an_empty_identifier_has_no_keys_and_no_level() -> None:
    assert read(b"") == Identifier((), "", None)


def test_implicit_vr_takes_the_dictionary_of_the_association() -> None:
    frames = [Element(0x00280008, "US", 7)]
    assert read(frames, IMPLICIT, is_dicos=True).keys[0].vr == "US"
    assert read([Element(0x00280008, "IS", "7")], IMPLICIT).keys[0].vr == "IS"


def test_unknown_vrs_are_the_dictionarys_where_it_has_one() -> None:
    """PS3.5 6.2.2."""
    name, private = read([Element(0x00100010, "UN", b"doe "), Element(0x00112233, "UN", b"doe ")]).keys
    assert (name.vr, private.vr) == ("PN", "UN")


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True])
def test_a_sequences_first_item_is_its_keys(syntax: TransferSyntax, undefined: bool) -> None:
    item: Item = [Element(0x00080005, "CS", "ISO_IR 100"), Element(0x00400007, "LO", b"\xe9*")]
    (key,) = read(
        [Element(0x00400100, "SQ", [item, [Element(0x00100020, "LO", "x")]], undefined)], syntax
    ).keys
    assert key.vr == "SQ"
    assert key.items is not None
    (nested,) = key.items
    assert nested.tag == 0x00400007
    assert nested.matcher is not None
    assert nested.matcher.matches(["\u00e9a"])


@pytest.mark.parametrize("items", [[], [[]]])
def test_an_empty_sequence_wants_whole_items_and_is_universal(items: list[Item]) -> None:
    """PS3.4 C.2.2.2.6."""
    (key,) = read([Element(0x00400100, "SQ", items)]).keys
    assert key.items == ()
    assert key.is_universal


def test_a_sequence_below_un_is_implicit_little_endian() -> None:
    """PS3.5 6.2.2."""
    inner = DatasetEncoder(IMPLICIT).element(Element(0x00400100, "SQ", [[Element(0x00400007, "LO", "x")]]))
    for tag in (0x00400100, 0x00411001):
        (key,) = (key for key in read([Element(tag, "UN", inner[8:])], BIG_ENDIAN).keys if key.tag == tag)
        assert key.vr == "SQ"
        assert key.items is not None
        assert [nested.tag for nested in key.items] == [0x00400007]


def test_private_keys_have_the_creator_of_their_block() -> None:
    """PS3.5 7.8.1."""
    creator, key, orphan = read(
        [
            Element(0x00110010, "LO", "ACME "),
            Element(0x00111001, "LO", "x"),
            Element(0x00111101, "LO", "x"),
        ]
    ).keys
    assert creator.is_private_creator
    assert creator.private_creator == "ACME"
    assert key.private_creator == "ACME"
    assert key.matcher is not None
    assert orphan.private_creator is None
    assert orphan.is_universal


def test_keys_are_sorted_and_the_first_of_a_repeated_tag_counts() -> None:
    encoder = DatasetEncoder(EXPLICIT)
    data = b"".join(
        encoder.element(element)
        for element in (
            Element(0x00100020, "LO", "1"),
            Element(0x00080060, "CS", "CT"),
            Element(0x00100020, "LO", "2"),
            Element(0x00080052, "CS", "STUDY"),
        )
    )
    found = read(data)
    assert [key.tag for key in found.keys] == [0x00080060, 0x00100020]
    assert found.level == "STUDY"
    matcher = found.keys[1].matcher
    assert matcher is not None
    assert matcher.matches(["1"])


def test_a_bad_value_is_refused_with_its_tag_also_in_a_sequence() -> None:
    assert refused([Element(0x00080020, "DA", "2024")]).offending_elements == (0x00080020,)
    nested = Element(0x00400100, "SQ", [[Element(0x00400002, "DA", "x")]])
    assert refused([nested]).offending_elements == (0x00400002,)


ELEMENTS = [
    DatasetEncoder(EXPLICIT).element(element)
    for element in (
        Element(0x00080052, "CS", "STUDY"),
        Element(0x00100010, "PN", "Doe^*"),
        Element(0x00400100, "SQ", [[Element(0x00400007, "LO", "x")]], undefined_length=True),
        Element(0x7FE00010, "OW", bytes(8)),
    )
]
WHOLE = b"".join(ELEMENTS)


def test_what_is_cut_inside_an_element_is_refused() -> None:
    ends = set(accumulate(map(len, ELEMENTS)))
    for length in set(range(1, len(WHOLE))) - ends:
        refused(WHOLE[:length])
    assert [key.tag for key in read(WHOLE).keys] == [0x00100010, 0x00400100, 0x7FE00010]


SEQUENCE = bytes.fromhex("4000000153510000ffffffff")
ITEM = bytes.fromhex("feff00e0ffffffff")
ITEM_END = bytes.fromhex("feff0de000000000")
SEQUENCE_END = bytes.fromhex("feffdde000000000")


@pytest.mark.parametrize(
    "data",
    [
        SEQUENCE,
        SEQUENCE + ITEM,
        SEQUENCE + ITEM + ITEM_END,
        ITEM + ITEM_END,
        ITEM_END,
        SEQUENCE_END,
        WHOLE + ITEM_END + WHOLE,
        bytes.fromhex("40000001535100000a000000") + ITEM + ITEM_END + b"xxxxxxxxxx",
        bytes.fromhex("400000015351000008000000") + b"abcdefgh",
        bytes.fromhex("10002000 4c4f ff00 41"),
        bytes.fromhex("10002000 0000 0000"),
        (SEQUENCE + ITEM) * 10_000,
        (SEQUENCE + ITEM) * 10_000 + (ITEM_END + SEQUENCE_END) * 10_000,
        b"\xff" * 1_000,
    ],
)
def test_what_makes_no_sense_is_refused(data: bytes) -> None:
    began = time.process_time()
    for syntax in SYNTAXES:
        if syntax is EXPLICIT or len(data) > 1_000:
            refused(data, syntax)
    assert time.process_time() - began < 5


def nested(depth: int) -> Element:
    element = Element(0x00400007, "LO", "x")
    for _ in range(depth):
        element = Element(0x00400100, "SQ", [[element]])
    return element


def test_sequences_can_be_64_deep_and_no_deeper() -> None:
    read([nested(64)])
    assert "64 sequences deep" in refused([nested(65)]).comment


def test_more_keys_than_allowed_are_refused_nested_ones_too() -> None:
    flat = [Element(0x00200000 + number, "LO", "") for number in range(1, 11)]
    assert len(read(flat, limits=IdentifierLimits(max_keys=10)).keys) == 10
    assert refused(flat, max_keys=9).offending_elements
    assert refused([Element(0x00400100, "SQ", [flat])], max_keys=10).offending_elements


@pytest.mark.parametrize(
    "data",
    [
        DatasetEncoder(EXPLICIT).element(Element(0x00100020, "LO", "x")) * 100_000,
        DatasetEncoder(EXPLICIT).element(Element(0x00400100, "SQ", [[]] * 100_000)),
        DatasetEncoder(EXPLICIT).element(Element(0x00100020, "UT", "x" * 1_000_000)),
    ],
)
def test_memory_and_time_are_bounded_by_the_identifier(data: bytes) -> None:
    tracemalloc.start()
    began = time.process_time()
    try:
        read(data)
    except OperationRefused as refusal:
        assert refusal.offending_elements == (0x00100020,)  # noqa: PT017
    finally:
        elapsed = time.process_time() - began
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 16 * len(data) + 100_000
    assert elapsed < 5


HEX = "\\".join(f"={number:x}" for number in range(16_000))
HAN = "".join(map(chr, range(0x4E00, 0x4E00 + 1_000))) + "*"


@pytest.mark.parametrize(
    ("element", "options"),
    [
        (Element(0x00100010, "PN", HEX), MatchingOptions(all_values=True)),
        (Element(0x00081030, "LO", HEX), MatchingOptions(all_values=True)),
        (Element(0x00100010, "PN", HEX[:8_000]), MatchingOptions(fuzzy_person_names=True)),
        (Element(0x00081030, "LO", f"{HAN}\\{HAN[::-1]}"), MatchingOptions()),
        (Element(0x00100010, "PN", "\\".join(["a*^*^*^*^*"] * 700)), MatchingOptions()),
        (Element(0x00080020, "DA", "\\".join(["20240101-"] * 16_000)), MatchingOptions()),
        (Element(0x00200013, "IS", "\\".join(map(str, range(16_000)))), MatchingOptions()),
    ],
)
def test_what_is_made_of_the_largest_allowed_lists_is_bounded(
    element: Element, options: MatchingOptions
) -> None:
    data = DatasetEncoder(IMPLICIT, "utf_8").encode([Element(0x00080005, "CS", "ISO_IR 192"), element])
    tracemalloc.start()
    try:
        found = read_identifier(data, IMPLICIT, is_dicos=False, options=options, limits=LIMITS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.keys[0].matcher is not None
    assert peak < 800 * LIMITS.max_values + 2 * len(data)


@pytest.mark.parametrize(
    ("element", "options", "said"),
    [
        (Element(0x00100010, "PN", "a\\" * 16_384), MatchingOptions(), "16384 values"),
        (Element(0x00200013, "IS", "\\" * 16_384), MatchingOptions(), "16384 values"),
        (Element(0x00186018, "UL", tuple(range(16_385))), MatchingOptions(), "16384 values"),
        (Element(0x00081030, "LO", "?" * 8_193), MatchingOptions(), "8192 bytes with wild cards"),
        (
            Element(0x00100010, "PN", "\\".join(["Doe^Jane"] * 1_000)),
            MatchingOptions(fuzzy_person_names=True),
            "8192 bytes with wild cards",
        ),
    ],
)
def test_longer_lists_are_refused_before_anything_is_made_of_them(
    element: Element, options: MatchingOptions, said: str
) -> None:
    data = DatasetEncoder(IMPLICIT).encode([element])
    with pytest.raises(OperationRefused, match=said) as caught:
        read_identifier(data, IMPLICIT, is_dicos=False, options=options, limits=LIMITS)
    assert (caught.value.status, caught.value.offending_elements) == (0xC000, (element.tag,))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_headers_values_are_matched_whatever_their_encoding(syntax: TransferSyntax) -> None:
    stored = [
        Element(0x00080016, "UI", CT),
        Element(0x00181151, "IS", "250"),
        Element(0x00280009, "AT", [0x00181063]),
        Element(0x00280010, "US", 512),
        Element(0x00420011, "OB", b"%PDF"),
    ]
    assert finds(Element(0x00181151, "IS", "0250"), stored, syntax)
    assert finds(Element(0x00280009, "AT", [0x00181063]), stored, syntax)
    assert finds(Element(0x00280010, "US", 512), stored, syntax)
    assert finds(Element(0x00420011, "OB", b"%PDF"), stored, syntax)
    assert not finds(Element(0x00280010, "US", 511), stored, syntax)
    assert not finds(Element(0x00181152, "IS", "1"), stored, syntax)


def test_a_number_matches_across_dicom_and_dicos() -> None:
    stored = [Element(0x00080016, "UI", DICOS_CT), Element(0x00280008, "US", 7)]
    assert finds(Element(0x00280008, "IS", "7"), stored)
    assert finds(Element(0x00280008, "IS", "7"), stored, IMPLICIT)


def test_a_dicos_date_with_a_time_matches_a_date() -> None:
    stored = [Element(0x00080016, "UI", DICOS_CT), Element(0x00080012, "DT", "20240101103000")]
    assert finds(Element(0x00080012, "DA", "20240101"), stored)
    assert finds(Element(0x00080012, "DT", "2024010110"), stored)


def test_what_has_no_value_matches_only_where_unknown_values_do() -> None:
    """PS3.4 C.2.2.1.2."""
    key = Element(0x00100020, "LO", "1")
    for stored in (
        [Element(0x00080060, "CS", "CT")],
        [Element(0x00100020, "LO", "")],
        [Element(0x00100020, "LO", "  ")],
    ):
        assert not finds(key, stored)
        assert finds(key, stored, unknown=True)
    assert not finds(key, [Element(0x00100020, "LO", "2")], unknown=True)
    sequence = Element(0x00400100, "SQ", [[key]])
    assert not finds(sequence, [Element(0x00400100, "SQ", [])])
    assert finds(sequence, [Element(0x00400100, "SQ", [])], unknown=True)
    assert finds(sequence, [Element(0x00400100, "SQ", [[]])], unknown=True)


def test_one_item_has_to_match_all_keys_of_a_sequence() -> None:
    """PS3.4 C.2.2.2.6."""
    both = [Element(0x00080100, "SH", "A"), Element(0x00080102, "SH", "DCM")]
    apart = [
        [Element(0x00080100, "SH", "A"), Element(0x00080102, "SH", "SCT")],
        [Element(0x00080100, "SH", "B"), Element(0x00080102, "SH", "DCM")],
    ]
    key = Element(0x00081032, "SQ", [both])
    assert not finds(key, [Element(0x00081032, "SQ", apart)])
    assert finds(key, [Element(0x00081032, "SQ", [*apart, both])])
    assert finds(Element(0x00081032, "SQ", []), [])


def test_sequences_are_matched_at_any_depth() -> None:
    stored = Element(0x00400275, "SQ", [[Element(0x00400008, "SQ", [[Element(0x00080100, "SH", "A")]])]])
    assert finds(stored, [stored])
    other = Element(0x00400275, "SQ", [[Element(0x00400008, "SQ", [[Element(0x00080100, "SH", "B")]])]])
    assert not finds(other, [stored])


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_private_element_is_found_in_whichever_block_its_creator_has(syntax: TransferSyntax) -> None:
    """PS3.5 7.8.1."""
    stored = header(
        [
            Element(0x00110010, "LO", "OTHER"),
            Element(0x00110012, "LO", "ACME"),
            Element(0x00111001, "LO", "no"),
            Element(0x00111201, "LO", "yes"),
        ],
        syntax,
    )
    _, key = read([Element(0x00110010, "LO", "ACME"), Element(0x00111001, "LO", "yes")]).keys
    assert located(stored, key) == 0x00111201
    assert source_matches(stored, key, False)
    _, other = read([Element(0x00110010, "LO", "OTHER"), Element(0x00111001, "LO", "yes")]).keys
    assert not source_matches(stored, other, False)
    _, absent = read([Element(0x00110010, "LO", "NOBODY"), Element(0x00111001, "LO", "yes")]).keys
    assert located(stored, absent) is None


def test_what_the_header_was_not_given_to_keep_is_not_matched() -> None:
    stored = header([Element(0x00204000, "LT", "x" * 2_000)], limits=TapLimits(max_value_bytes=1_000))
    (key,) = read([Element(0x00204000, "LT", "y")]).keys
    assert stored_values(stored, 0x00204000, "LT") is None
    assert source_matches(stored, key, False)


def test_a_key_without_anything_to_match_is_universal() -> None:
    assert source_matches(header([]), Key(0x00100020, "LO"), False)
    assert Key(0x00400100, "SQ", items=(Key(0x00400007, "LO"),)).is_universal
