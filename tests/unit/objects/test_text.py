"""Text is decoded by Specific Character Set as PS3.5 6.1 and its annexes show, and never fails."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scp_server.objects.text import codec_of, decode_text


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
