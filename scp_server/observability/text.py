"""Text that came from somewhere else, made fit for one line of a log or a terminal."""

from __future__ import annotations

MAX_PEER_TEXT = 128
"""Longest peer's text in a log, in characters: an AE title needs 16, a UID 64."""

_CUT_MARK = "..."


def printable(text: str) -> str:
    """Replace every character that is not printable (line ends, escapes, bidirectional marks, surrogates).

    `\\x0a`, `\\u2028` and `\\U000e0001` stand for what was there. Applying it twice changes nothing more.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def cut(text: str, limit: int) -> str:
    """Shorten to at most `limit` characters, marked with three dots."""
    return text if len(text) <= limit else text[: limit - len(_CUT_MARK)] + _CUT_MARK


def safe_text(text: str, limit: int) -> str:
    """`printable` and `cut` in bounded time, however long `text` is."""
    if len(text) > limit:
        # One character more than allowed survives, so that `cut` sees that something is missing.
        text = text[: limit + 1]
    return cut(printable(text), limit)


def peer_text(text: str | bytes) -> str:
    """A peer's text as it may appear in a log: escaped, and cut to 128 characters.

    Bytes are read as ASCII; every other byte is escaped.
    """
    if isinstance(text, bytes):
        text = text[: MAX_PEER_TEXT + 1].decode("ascii", "backslashreplace")
    return safe_text(text, MAX_PEER_TEXT)


def _escape(character: str) -> str:
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
