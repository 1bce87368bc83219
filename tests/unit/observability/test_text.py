from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scp_server.observability.text import MAX_PEER_TEXT, peer_text, printable


@given(st.one_of(st.text(max_size=400), st.binary(max_size=400)))
@settings(max_examples=150, deadline=None)
def test_peer_text_is_printable_bounded_and_stable(text: str | bytes) -> None:
    shown = peer_text(text)
    assert shown.isprintable()
    assert len(shown) <= MAX_PEER_TEXT
    assert peer_text(shown) == shown


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=MAX_PEER_TEXT))
@settings(max_examples=50, deadline=None)
def test_printable_ascii_is_left_as_it_is(text: str) -> None:
    assert peer_text(text) == text
    assert peer_text(text.encode()) == text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("A\nB", "A\\x0aB"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\u2028b\u202eb", "a\\u2028b\\u202eb"),
        ("\udc80", "\\udc80"),
        ("\U000e0001", "\\U000e0001"),
        (b"\xff\x00", "\\xff\\x00"),
    ],
)
def test_what_could_steer_a_terminal_or_begin_a_line_is_escaped(raw: str | bytes, shown: str) -> None:
    assert peer_text(raw) == shown


def test_long_text_is_cut_with_a_mark() -> None:
    assert peer_text("x" * 129) == "x" * 125 + "..."
    assert peer_text("x" * 128) == "x" * 128


def test_printable_does_not_cut() -> None:
    assert printable("x" * 5000 + "\n") == "x" * 5000 + "\\x0a"
