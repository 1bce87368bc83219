"""UIDs are cleaned for comparing, judged by their characters, and never repaired."""

from __future__ import annotations

import pytest

from scp_server.objects import uids
from scp_server.protocol import negotiation


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        (b"1.2.3\0", "1.2.3"),
        (b"1.2.3 ", "1.2.3"),
        ("1.2.3 \0\0 ", "1.2.3"),
        (b"", ""),
        (b" 1.2", " 1.2"),
        (b"1.2\xe9", "1.2\u00e9"),
    ],
)
def test_only_trailing_padding_is_trimmed(given: str | bytes, cleaned: str) -> None:
    assert uids.clean_uid(given) == cleaned


@pytest.mark.parametrize("uid", ["1", "0728002782.13878.14359", "1.2.840", "9" * 64, "00.00"])
def test_any_root_and_leading_zeros_are_valid(uid: str) -> None:
    assert uids.is_valid_uid(uid)


@pytest.mark.parametrize(
    "uid",
    ["", ".", "1.", ".1", "1..2", "1.a", "9" * 65, "../../x", "1.2\n", "1 2", "\u0661.2", "1.2\\1.3", "-1"],
)
def test_anything_but_dotted_digits_of_64_characters_is_invalid(uid: str) -> None:
    assert not uids.is_valid_uid(uid)


def test_an_unknown_transfer_syntax_is_explicit_little_endian() -> None:
    syntax = uids.transfer_syntax("1.3.6.1.4.1.99")
    assert (syntax.implicit_vr, syntax.little_endian, syntax.deflated) == (False, True, False)


@pytest.mark.parametrize(
    ("uid", "field"),
    [
        (uids.IMPLICIT_VR_LITTLE_ENDIAN, "implicit_vr"),
        (uids.GE_PRIVATE_IMPLICIT, "implicit_vr"),
        (uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, "deflated"),
        ("1.2.840.10008.1.2.4.95", "deflated"),
        ("1.2.840.10008.1.2.4.205", "deflated"),
        (uids.EXPLICIT_VR_LITTLE_ENDIAN_64, "long_lengths"),
        ("1.2.840.10008.1.2.4.70", "encapsulated"),
        ("1.2.840.10008.1.2.4.201", "encapsulated"),
        ("1.2.840.10008.1.2.5", "encapsulated"),
    ],
)
def test_facts_of_transfer_syntaxes(uid: str, field: str) -> None:
    assert getattr(uids.transfer_syntax(uid), field) is True


def test_deflated_frames_do_not_make_a_deflated_data_set() -> None:
    assert not uids.transfer_syntax("1.2.840.10008.1.2.8.1").deflated


def test_big_endian_is_big() -> None:
    assert not uids.transfer_syntax("1.2.840.10008.1.2.2").little_endian


@pytest.mark.parametrize(
    ("uid", "expected"),
    [
        ("1.2.840.10008.5.1.4.1.1.501", True),
        ("1.2.840.10008.5.1.4.1.1.501.1", True),
        ("1.2.840.10008.5.1.4.1.1.501.2.1", True),
        ("1.2.840.10008.5.1.4.1.1.5011", False),
        ("1.2.840.10008.5.1.4.1.1.2", False),
    ],
)
def test_dicos_classes_are_those_below_the_prefix(uid: str, expected: bool) -> None:
    assert uids.is_dicos_sop_class(uid) is expected


def test_our_own_uids_are_valid() -> None:
    assert uids.is_valid_uid(negotiation.IMPLEMENTATION_CLASS_UID)
    assert uids.is_valid_uid(uids.PRIVATE_INFORMATION_CREATOR_UID)
    assert len(negotiation.IMPLEMENTATION_VERSION_NAME) <= 16
