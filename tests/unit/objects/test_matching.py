"""Keys match by the rules of their VR (PS3.4 C.2.2.2); docs/query.md has them in a table."""

from __future__ import annotations

import struct
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scp_server.errors import OperationRefused
from scp_server.objects.matching import Matcher, MatchingOptions, make_matcher
from scp_server.objects.matching_hints import AnyOf, Contains, StartsWith
from scp_server.objects.matching_text import MAX_PATTERN_CHARACTERS
from scp_server.objects.raw_header import Scalar
from scp_server.objects.summary import MAX_TEXT_CHARACTERS
from scp_server.objects.vr import NUMBER_BYTES, TEXT_VRS

TAG = 0x00100010
PLAIN = MatchingOptions()
ALL_VALUES = MatchingOptions(all_values=True)
EMPTY_VALUES = MatchingOptions(empty_values=True)


def matcher(
    vr: str, value: bytes | str, options: MatchingOptions = PLAIN, *, little_endian: bool = True
) -> Matcher | None:
    raw = value.encode() if isinstance(value, str) else value
    return make_matcher(TAG, vr, raw, charset=b"ISO_IR 192", little_endian=little_endian, options=options)


def matches(vr: str, key: bytes | str, *stored: Scalar | bytes, options: MatchingOptions = PLAIN) -> bool:
    made = matcher(vr, key, options)
    return made is None or made.matches(stored)


def refusal(vr: str, value: bytes | str, options: MatchingOptions = PLAIN) -> OperationRefused:
    with pytest.raises(OperationRefused) as caught:
        matcher(vr, value, options)
    return caught.value


@pytest.mark.parametrize("vr", ["AE", "CS", "DA", "IS", "LO", "PN", "SH", "TM", "UI", "UT", "UN"])
@pytest.mark.parametrize("value", ["", "*", "* "])
def test_a_zero_length_value_and_a_lone_star_are_universal(vr: str, value: str) -> None:
    """PS3.4 C.2.2.2.3."""
    assert matcher(vr, value) is None


@pytest.mark.parametrize("value", ["  ", "\0\0", "***", "A\\*", "\\", "*\\*"])
def test_padding_and_a_star_among_several_values_are_universal(value: str) -> None:
    assert matcher("LO", value) is None


@pytest.mark.parametrize("vr", ["US", "FD", "AT", "OB", "OW"])
def test_binary_values_are_universal_only_with_zero_length(vr: str) -> None:
    assert matcher(vr, b"") is None
    assert matcher(vr, b"*       ") is not None


@pytest.mark.parametrize("vr", ["AE", "CS", "LO", "SH", "UC", "UR", "UT", "LT", "ST"])
def test_a_single_value_matches_exactly_and_case_sensitively(vr: str) -> None:
    """PS3.4 C.2.2.2.1."""
    assert matches(vr, "Chest ", "Chest")
    assert matches(vr, "Chest", " Chest\0 ")
    assert not matches(vr, "Chest", "chest")
    assert not matches(vr, "Chest", "Chest CT")
    assert not matches(vr, "Chest")


@pytest.mark.parametrize("vr", ["AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"])
@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("Ch*t", ["Cht", "Chest", "Ch*t"], ["Chests", "aChest"]),
        ("?hest", ["Chest", "?hest"], ["hest", "CChest"]),
        ("*es*", ["es", "Chest", "esesx"], ["e s"]),
        ("C??st*", ["Chest", "Chest 2"], ["Cst", "Chesx"]),
        ("?*?", ["ab", "abc"], ["a"]),
    ],
)
def test_wild_cards_stand_for_any_or_one_character(
    vr: str, pattern: str, yes: list[str], no: list[str]
) -> None:
    """PS3.4 C.2.2.2.4."""
    assert [value for value in yes + no if matches(vr, pattern, value)] == yes


@pytest.mark.parametrize("vr", ["DA", "TM", "DT", "IS", "DS", "UI", "AS"])
@pytest.mark.parametrize("value", ["1*", "1?2", "*1"])
def test_other_vrs_have_no_wild_cards(vr: str, value: str) -> None:
    """PS3.4 C.2.2.2.4."""
    refused = refusal(vr, value)
    assert (refused.status, refused.offending_elements) == (0xC000, (TAG,))
    assert len(refused.comment) <= 64


def test_text_is_compared_in_normal_form_c() -> None:
    assert matches("LO", "Mu\u0308nchen", "M\u00fcnchen")
    assert matches("LO", "M\u00fcnch*", "Mu\u0308nchen")


def test_one_matching_value_is_enough() -> None:
    """PS3.4 C.2.2.3, and the list of several values without an agreement."""
    assert matches("CS", "CT", "MR", "CT")
    assert matches("CS", "PT\\CT", "CT")
    assert matches("CS", "PT\\C*", "CT")
    assert not matches("CS", "PT\\MR", "CT")


def test_a_backslash_is_a_character_in_text_of_one_value() -> None:
    assert matches("UT", "a\\b", "a\\b")
    assert not matches("UT", "a\\b", "a")


def test_a_list_of_uids_matches_any_of_them() -> None:
    """PS3.4 C.2.2.2.2."""
    assert matches("UI", b"1.2.3\0", "1.2.3")
    assert matches("UI", b"1.2\\1.2.3\0", "1.2.3\0")
    assert not matches("UI", b"1.2\\1.2.3\0", "1.2.30")
    assert not matches("UI", b"1.2.3\0")


def test_a_hundred_thousand_uids_are_a_set() -> None:
    uids = "\\".join(f"1.2.{number}" for number in range(100_000))
    began = time.process_time()
    made = matcher("UI", uids)
    assert made is not None
    assert all(made.matches([f"1.2.{number}"]) for number in range(0, 100_000, 10))
    assert not made.matches(["1.2.x"])
    assert time.process_time() - began < 5


@pytest.mark.parametrize("value", [b"abc", b"1..2", b"1.2 3", b"1" * 65, b"1.2\\x"])
def test_what_is_no_uid_is_refused(value: bytes) -> None:
    assert refusal("UI", value).offending_elements == (TAG,)


@pytest.mark.parametrize("stored", [7, 7.0, "7", "+7", "07", "7.0", "7e0"])
@pytest.mark.parametrize(
    ("vr", "key"),
    [
        ("IS", b"7 "),
        ("DS", b"7.00"),
        ("DS", b"0.7e1"),
        ("US", struct.pack("<H", 7)),
        ("SS", struct.pack("<h", 7)),
        ("UL", struct.pack("<I", 7)),
        ("SL", struct.pack("<i", 7)),
        ("UV", struct.pack("<Q", 7)),
        ("SV", struct.pack("<q", 7)),
        ("FL", struct.pack("<f", 7)),
        ("FD", struct.pack("<d", 7)),
    ],
)
def test_numbers_match_as_numbers_however_they_are_encoded(vr: str, key: bytes, stored: Scalar) -> None:
    assert matches(vr, key, stored)
    assert not matches(vr, key, 8)
    assert not matches(vr, key, "seven")
    assert not matches(vr, key)


def test_numbers_are_read_in_the_byte_order_of_the_request() -> None:
    made = matcher("US", b"\x01\x02", little_endian=False)
    assert made is not None
    assert made.matches([0x0102])
    assert matches("US", b"\x01\x02", 0x0201)


@pytest.mark.parametrize(
    ("vr", "value"),
    [
        ("IS", "x"),
        ("IS", "1_0"),
        ("IS", "\u0663"),
        ("IS", "9" * 5_000),
        ("DS", "nan"),
        ("DS", "inf"),
        ("DS", "1e999"),
        ("DS", "1,5"),
        ("US", b"\x01"),
        ("FD", bytes(12)),
        ("AT", bytes(6)),
        ("AS", "18Y"),
        ("AS", "018X"),
    ],
)
def test_a_value_that_its_vr_cannot_have_is_refused(vr: str, value: bytes | str) -> None:
    refused = refusal(vr, value)
    assert (refused.status, refused.offending_elements) == (0xC000, (TAG,))
    assert len(refused.comment) <= 64


def test_ages_and_tags_match_when_equal() -> None:
    assert matches("AS", "018Y", "018Y")
    assert not matches("AS", "018Y", "018M")
    assert matches("AT", b"\x10\x00\x20\x00", 0x00100020)
    assert not matches("AT", b"\x10\x00\x20\x00", 0x00200010)


@pytest.mark.parametrize("vr", ["OB", "OW", "UN", "XX"])
def test_other_vrs_match_by_their_bytes_without_padding(vr: str) -> None:
    assert matches(vr, b"abcd\0\0", b"abcd")
    assert matches(vr, b"abcd", b"abcd\0")
    assert not matches(vr, b"abcd", b"abce")


def test_words_are_compared_in_one_byte_order() -> None:
    made = matcher("OW", b"\x01\x02\x03\x04", little_endian=False)
    assert made is not None
    assert made.matches([b"\x02\x01\x04\x03"])


@pytest.mark.parametrize("vr", ["AE", "CS", "LO", "PN", "SH", "DA", "UI", "IS"])
def test_two_quotation_marks_find_what_has_no_value_where_that_was_agreed(vr: str) -> None:
    """PS3.4 C.2.2.2.7."""
    assert matches(vr, '""', options=EMPTY_VALUES)
    assert matches(vr, '""', "", options=EMPTY_VALUES)
    assert not matches(vr, '""', "20240101", options=EMPTY_VALUES)


def test_an_empty_value_can_be_one_of_several() -> None:
    assert matches("CS", '""\\CT', options=EMPTY_VALUES)
    assert matches("CS", '""\\CT', "CT", options=EMPTY_VALUES)
    assert not matches("CS", '""\\CT', "MR", options=EMPTY_VALUES)


def test_two_quotation_marks_are_text_where_nothing_was_agreed() -> None:
    assert matches("LO", '""', '""')
    assert not matches("LO", '""')
    assert refusal("DA", '""').status == 0xC000


@pytest.mark.parametrize("vr", ["AE", "CS", "LO", "SH", "UC"])
def test_all_values_have_to_be_there_where_that_was_agreed(vr: str) -> None:
    """PS3.4 C.2.2.2.8."""
    assert matches(vr, "CT\\M*", "MR", "CT", options=ALL_VALUES)
    assert not matches(vr, "CT\\MR", "CT", options=ALL_VALUES)
    assert matches(vr, "CT\\*", "CT", options=ALL_VALUES)


def test_all_values_may_be_names_ages_and_tags() -> None:
    assert matches("PN", "doe\\ro*", "Roe", "Doe", options=ALL_VALUES)
    assert not matches("PN", "doe\\ro*", "Doe", options=ALL_VALUES)
    assert not matches("AS", "018Y\\019Y", "018Y", options=ALL_VALUES)
    two = struct.pack("<4H", 8, 16, 8, 32)
    assert matches("AT", two, 0x00080010, 0x00080020, options=ALL_VALUES)
    assert not matches("AT", two, 0x00080010, options=ALL_VALUES)


def test_lists_of_uids_and_numbers_stay_alternatives_where_all_values_were_agreed() -> None:
    assert matches("UI", "1.2\\1.3", "1.3", options=ALL_VALUES)
    assert matches("IS", "1\\2", 2, options=ALL_VALUES)


def test_text_longer_than_a_column_is_found_by_its_whole() -> None:
    long = "x" * (MAX_TEXT_CHARACTERS + 100)
    made = matcher("LO", long)
    assert made is not None
    assert made.matches([long])
    assert made.matches([long[:MAX_TEXT_CHARACTERS]])
    assert made.hint == AnyOf((long[:MAX_TEXT_CHARACTERS],))
    assert not made.matches([long[: MAX_TEXT_CHARACTERS - 1]])


@pytest.mark.parametrize("vr", ["LT", "ST", "UC", "UR", "UT"])
def test_long_text_is_compared_as_a_whole(vr: str) -> None:
    long = "x" * 5_000 + "nodule"
    assert matches(vr, "*nodule", long)
    assert matches(vr, long, long)
    assert not matches(vr, long, long[:-1])
    made = matcher(vr, long)
    assert made is not None
    assert made.hint is None


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("CT", AnyOf(("CT",))),
        ("CT\\MR", AnyOf(("CT", "MR"))),
        ("CT*", StartsWith("CT")),
        ("C?T*longer", StartsWith("C")),
        ("*ab*abc?", Contains("abc")),
        ("??", None),
        ("CT\\M*", None),
    ],
)
def test_text_hints_are_what_an_index_can_use(key: str, hint: object) -> None:
    made = matcher("LO", key)
    assert made is not None
    assert made.hint == hint


def test_number_hints_are_integers() -> None:
    hints = {}
    for key in ("7", "7.0", "7.5", "99999999999"):
        made = matcher("DS", key)
        assert made is not None
        hints[key] = made.hint
    assert hints == {"7": AnyOf((7,)), "7.0": AnyOf((7,)), "7.5": None, "99999999999": None}


def naive(pattern: str, text: str) -> bool:
    """Wild cards as the standard words them, recursively."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return naive(pattern[1:], text) or (bool(text) and naive(pattern, text[1:]))
    return bool(text) and pattern[0] in ("?", text[0]) and naive(pattern[1:], text[1:])


@given(st.text("ab*?", min_size=1, max_size=8), st.text("ab", min_size=1, max_size=8))
def test_wild_cards_agree_with_their_definition(pattern: str, text: str) -> None:
    assert matches("LO", pattern, text) is naive(pattern, text)


@pytest.mark.parametrize(
    "pattern", ["*?" * 500, "*a" * 500, "?a" * 500, "a*" * 500, "*" * 1_000 + "b", "a?*" * 300 + "b"]
)
def test_no_pattern_takes_more_than_linear_time(pattern: str) -> None:
    began = time.process_time()
    made = matcher("UT", pattern)
    assert made is not None
    for text in ("a" * 65_536, "ab" * 32_768):
        made.matches([text])
    assert time.process_time() - began < 3


def test_longer_patterns_are_refused() -> None:
    assert refusal("LO", "a" * MAX_PATTERN_CHARACTERS + "*").offending_elements == (TAG,)
    assert refusal("PN", "?" * 65_536).offending_elements == (TAG,)
    assert matches("LO", "a" * (MAX_PATTERN_CHARACTERS - 1) + "*", "a" * MAX_PATTERN_CHARACTERS)


def test_combining_characters_without_end_cost_no_more_than_their_bytes() -> None:
    marks = "e" + "\u0301\u0316" * 200_000
    began = time.process_time()
    for vr in ("LO", "UT", "PN"):
        made = matcher(vr, marks, MatchingOptions(fuzzy_person_names=True))
        assert made is not None
        assert made.matches([marks])
    assert time.process_time() - began < 5


@given(
    st.sampled_from(sorted(TEXT_VRS | NUMBER_BYTES.keys() | {"AT", "OB", "OW", "UN", "XX"})),
    st.binary(max_size=40),
    st.sampled_from([None, b"ISO_IR 100", b"\\ISO 2022 IR 87", b"GB18030"]),
    st.booleans(),
    st.lists(st.one_of(st.text(max_size=12), st.integers(), st.floats(), st.binary(max_size=8)), max_size=3),
)
def test_no_bytes_make_anything_but_a_matcher_or_a_refusal(
    vr: str, value: bytes, charset: bytes | None, agreed: bool, stored: list[Scalar | bytes]
) -> None:
    options = MatchingOptions(agreed, agreed, agreed)
    with suppress(OperationRefused):
        made = make_matcher(TAG, vr, value, charset=charset, little_endian=agreed, options=options)
        assert made is None or made.matches(stored) in (True, False)
