"""Text is decoded by Specific Character Set as PS3.5 6.1 and its annexes show, and never fails."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.charset import convert_encodings, decode_bytes

from scp_server.objects.text import codec_of, decode_text, encode_text


@pytest.mark.parametrize(
    ("charset", "raw", "text"),
    [
        (None, b"Doe^Jane", "Doe^Jane"),
        (b"ISO_IR 100", b"Buc^J\xe9r\xf4me", "Buc^J\u00e9r\u00f4me"),
        (b"ISO_IR 101", b"W\xb3odzimierz", "W\u0142odzimierz"),
        (b"ISO_IR 144", b"\xbb\xee\xdace\xdc\xd1yp\xd3", "\u041b\u044e\u043ace\u043c\u0431yp\u0433"),
        (
            b"ISO_IR 126",
            b"\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2",
            "\u0394\u03b9\u03bf\u03bd\u03c5\u03c3\u03b9\u03bf\u03c2",
        ),
        (
            b"ISO_IR 127",
            b"\xe2\xc8\xc7\xe6\xea^\xe4\xe6\xd2\xc7\xd1",
            "\u0642\u0628\u0627\u0646\u064a^\u0644\u0646\u0632\u0627\u0631",
        ),
        (
            b"ISO_IR 138",
            b"\xf9\xf8\xe5\xef^\xe3\xe1\xe5\xf8\xe4",
            "\u05e9\u05e8\u05d5\u05df^\u05d3\u05d1\u05d5\u05e8\u05d4",
        ),
        (b"ISO_IR 192", "Wang^XiaoDong=\u738b^\u5c0f\u6771".encode(), "Wang^XiaoDong=\u738b^\u5c0f\u6771"),
        (
            b"GB18030",
            "Wang^XiaoDong=\u738b^\u5c0f\u4e1c".encode("gb18030"),
            "Wang^XiaoDong=\u738b^\u5c0f\u4e1c",
        ),
        (b"GBK", "\u738b".encode("gbk"), "\u738b"),
        (
            b"\\ISO 2022 IR 87",
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
            "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce=\u3084\u307e\u3060^\u305f\u308d\u3046",
        ),
        (
            b"ISO 2022 IR 13\\ISO 2022 IR 87",
            b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J",
            "\uff94\uff8f\uff80\uff9e^\uff80\uff9b\uff73=\u5c71\u7530^\u592a\u90ce",
        ),
        (
            b"\\ISO 2022 IR 149",
            b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
            "Hong^Gildong=\u6d2a^\u5409\u6d1e=\ud64d^\uae38\ub3d9",
        ),
        (
            b"\\ISO 2022 IR 58",
            b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=",
            "Zhang^XiaoDong=\u5f20^\u5c0f\u4e1c=",
        ),
        (b"ISO 2022 IR 100\\ISO 2022 IR 126", b"\xe9 \x1b-F\xe1^\xe9", "\u00e9 \u03b1^\u00e9"),
        (b"iso_ir_100", b"\xe9", "\u00e9"),
        (b"ISO-IR 100", b"\xe9", "\u00e9"),
        (b"ISO 8859-1", b"\xe9", "\u00e9"),
        (b"ISO_IR 100 ", b"\xe9", "\u00e9"),
    ],
)
def test_each_character_set_is_decoded(charset: bytes | None, raw: bytes, text: str) -> None:
    assert decode_text(raw, charset) == text


@pytest.mark.parametrize("charset", [None, b"", b"ISO_IR 6", b"nonsense", b"\\", b"\xff\xfe"])
def test_text_without_a_usable_character_set_is_taken_for_utf_8_or_latin_1(charset: bytes | None) -> None:
    assert decode_text("\u00e9".encode(), charset) == "\u00e9"
    assert decode_text(b"\xe9", charset) == "\u00e9"


def test_what_cannot_be_read_becomes_a_replacement_character() -> None:
    assert decode_text(b"a\xffb", b"ISO_IR 192") == "a\ufffdb"
    assert decode_text(b"a\x1bZb", b"\\ISO 2022 IR 87") == "a\ufffdZb"


@given(
    st.binary(max_size=60),
    st.one_of(
        st.none(),
        st.binary(max_size=20),
        st.sampled_from(
            [b"\\ISO 2022 IR 87", b"ISO 2022 IR 13\\ISO 2022 IR 87", b"\\ISO 2022 IR 149", b"GB18030"]
        ),
    ),
)
def test_no_bytes_make_it_fail(raw: bytes, charset: bytes | None) -> None:
    decode_text(raw, charset).encode("utf-8")
    "".encode(codec_of(charset))


EXTENDED = {
    b"\\ISO 2022 IR 87": "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce=\u3084\u307e\u3060^\u305f\u308d\u3046",
    b"ISO 2022 IR 13\\ISO 2022 IR 87": "\uff94\uff8f\uff80\uff9e^\uff80=\u5c71\u7530^\u592a\u90ce=\u3084 a",
    b"\\ISO 2022 IR 87\\ISO 2022 IR 159": "\u5c71\u4e02^\u4e02 a\\\u5c71",
    b"\\ISO 2022 IR 149": "Hong^Gildong=\u6d2a^\u5409\u6d1e=\ud64d^\uae38\ub3d9",
    b"ISO 2022 IR 149": "\uae38\ub3d9 a",
    b"\\ISO 2022 IR 58": "Zhang^XiaoDong=\u5f20^\u5c0f\u4e1c=",
    b"ISO 2022 IR 100\\ISO 2022 IR 126": "\u00e9\u03b1\u00e9^\u00e9 \u03b1=\u03b1",
    b"ISO 2022 IR 100\\ISO 2022 IR 87": "\u5c71 \u00e9^\u00e9\u5c71\u00e9",
    b"ISO 2022 IR 6\\ISO 2022 IR 101\\ISO 2022 IR 144": "\u0142 \u041b\u0142",
    b"ISO 2022 IR 100": "\u00e9",
}


@pytest.mark.parametrize("charset", EXTENDED)
def test_text_is_encoded_with_code_extensions(charset: bytes) -> None:
    """PS3.5 6.1.2.5: pydicom, another reader, finds the same (it leaves the escapes of IR 58 standing)."""
    text = EXTENDED[charset]
    encoded = encode_text(text, charset)
    assert encoded is not None
    assert decode_text(encoded, charset) == text
    encodings = convert_encodings(charset.decode().split("\\"))
    theirs = decode_bytes(encoded, encodings, {ord(character) for character in "\\^="})
    assert theirs.replace("\x1b$)A", "") == text


def test_the_examples_of_the_standard_are_encoded_as_they_stand_there() -> None:
    """PS3.5 H.3, I.2, K.2."""
    assert (
        encode_text("Yamada^Tarou=\u5c71\u7530^\u592a\u90ce", b"\\ISO 2022 IR 87")
        == b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"
    )
    assert (
        encode_text("\uff94\uff8f\uff80\uff9e=\u5c71\u7530", b"ISO 2022 IR 13\\ISO 2022 IR 87")
        == b"\xd4\xcf\xc0\xde=\x1b$B;3ED\x1b(J"
    )
    assert (
        encode_text("\u6d2a^\u5409\u6d1e", b"\\ISO 2022 IR 149") == b"\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7"
    )


@pytest.mark.parametrize(
    ("text", "charset"),
    [
        ("\u00e9", None),
        ("\u00e9", b"ISO_IR 6"),
        ("\u00e9", b"nonsense"),
        ("\u5c71", b"ISO_IR 100"),
        ("\u5c71", b"ISO_IR 13"),
        ("\uae38", b"\\ISO 2022 IR 87"),
        ("\u00e9", b"\\nonsense"),
        ("a\x1b(Bb", b"ISO_IR 192"),
        ("\ud800", b"ISO_IR 192"),
    ],
)
def test_what_a_character_set_cannot_say_is_none(text: str, charset: bytes | None) -> None:
    assert encode_text(text, charset) is None


@given(
    st.text(
        st.sampled_from("aA ^=\\\u00e9\u03b1\u5c71\u4e02\uae38\u0e01\uff94\u0142\u20ac\ufffd\x1b$(B\n"),
        max_size=12,
    ),
    st.one_of(st.none(), st.sampled_from([*EXTENDED, b"ISO_IR 100", b"ISO_IR 166", b"GBK", b"GB18030"])),
)
def test_what_is_encoded_reads_back_the_same(text: str, charset: bytes | None) -> None:
    encoded = encode_text(text, charset)
    if encoded is not None:
        assert decode_text(encoded, charset) == text
    elif charset == b"GB18030":
        assert "\x1b" in text
