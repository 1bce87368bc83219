"""Decoding text by Specific Character Set (0008,0005), never failing (PS3.3 C.12.1.1.2, PS3.5 6.1)."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_SINGLE_BYTE_CODECS: Final = {
    "": "ascii",
    "IR 6": "ascii",
    "IR 100": "latin_1",
    "IR 101": "iso8859_2",
    "IR 109": "iso8859_3",
    "IR 110": "iso8859_4",
    "IR 144": "iso8859_5",
    "IR 127": "iso8859_6",
    "IR 126": "iso8859_7",
    "IR 138": "iso8859_8",
    "IR 148": "iso8859_9",
    "IR 203": "iso8859_15",
    "IR 166": "tis_620",
    "IR 13": "shift_jis",
    "IR 192": "utf_8",
    "IR 58": "gb2312",
    "IR 149": "euc_kr",
    "IR 87": "ascii",
    "IR 159": "ascii",
}
"""By the number in the defined term. The last two are only reached through an escape sequence."""
_WHOLE_CODECS: Final = {"GB18030": "gb18030", "GBK": "gbk"}

_TERM = re.compile(r"ISO[ _]?(?:2022[ _]|8859-)?(IR[ _]?)?(\d+)").fullmatch
_PART_OF_8859: Final = {
    "1": "IR 100",
    "2": "IR 101",
    "3": "IR 109",
    "4": "IR 110",
    "5": "IR 144",
    "6": "IR 127",
    "7": "IR 126",
    "8": "IR 138",
    "9": "IR 148",
    "15": "IR 203",
}


class _Escape(NamedTuple):
    codec: str
    prefix: bytes
    """Put before the bytes, for codecs that are stateful themselves."""
    resets: bool
    """Designates G1: in force up to the next delimiter only (PS3.5 6.1.2.5.3)."""


_ESCAPES: Final = {
    b"(B": _Escape("ascii", b"", False),
    b"(J": _Escape("shift_jis", b"", False),
    b")I": _Escape("shift_jis", b"", True),
    b"-A": _Escape("latin_1", b"", True),
    b"-B": _Escape("iso8859_2", b"", True),
    b"-C": _Escape("iso8859_3", b"", True),
    b"-D": _Escape("iso8859_4", b"", True),
    b"-L": _Escape("iso8859_5", b"", True),
    b"-G": _Escape("iso8859_6", b"", True),
    b"-F": _Escape("iso8859_7", b"", True),
    b"-H": _Escape("iso8859_8", b"", True),
    b"-M": _Escape("iso8859_9", b"", True),
    b"-b": _Escape("iso8859_15", b"", True),
    b"-T": _Escape("tis_620", b"", True),
    b"$B": _Escape("iso2022_jp", b"\x1b$B", False),
    b"$(D": _Escape("iso2022_jp_2", b"\x1b$(D", False),
    b"$)C": _Escape("euc_kr", b"", True),
    b"$)A": _Escape("gb2312", b"", True),
}
"""By what follows the ESC (PS3.3 C.12.1.1.2, Tables C.12-3 and C.12-4)."""
_DELIMITER = re.compile(rb"[\\^=\r\n\f\t]")


def codec_of(specific_character_set: bytes | None) -> str:
    """The Python codec of text without escape sequences; ASCII where the term is absent or unknown."""
    if not specific_character_set:
        return "ascii"
    first = specific_character_set.split(b"\\", 1)[0].decode("latin-1").strip(" \0").upper()
    if first in _WHOLE_CODECS:
        return _WHOLE_CODECS[first]
    match = _TERM(first)
    if match is None:
        return "ascii"
    if match[1] is None:
        return _SINGLE_BYTE_CODECS.get(_PART_OF_8859.get(match[2], ""), "ascii")
    return _SINGLE_BYTE_CODECS.get(f"IR {match[2]}", "ascii")


def decode_text(value: bytes, specific_character_set: bytes | None) -> str:
    """Decode a text value as a whole, delimiters and padding included. What cannot be read becomes U+FFFD.

    Text beyond ASCII in an object that names no character set is taken for UTF-8 where it is that, and for
    Latin-1 otherwise: such objects are wrong, but common, and more can be found than nothing.
    """
    escaped = b"\x1b" in value and bool(specific_character_set)
    if not escaped and value.isascii():
        return value.decode("ascii")
    codec = codec_of(specific_character_set)
    if not escaped:
        if codec != "ascii":
            return value.decode(codec, "replace")
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")
    first, *rest = value.split(b"\x1b")
    return first.decode(codec, "replace") + "".join(_decode_escaped(piece, codec) for piece in rest)


def _decode_escaped(piece: bytes, initial_codec: str) -> str:
    """Decode what follows one ESC, up to the next."""
    for length in (2, 3):
        escape = _ESCAPES.get(piece[:length])
        if escape is None:
            continue
        text, rest = piece[length:], b""
        if escape.resets and (delimiter := _DELIMITER.search(text)):
            text, rest = text[: delimiter.start()], text[delimiter.start() :]
        return (escape.prefix + text).decode(escape.codec, "replace") + rest.decode(initial_codec, "replace")
    return "\ufffd" + piece.decode(initial_codec, "replace")
