"""Text by Specific Character Set (0008,0005): decoding, which never fails, and encoding (PS3.5 6.1).

The defined terms are those of PS3.3 C.12.1.1.2.
"""

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
_JIS_X_0201: Final = "shift_jis"
"""Its single bytes are JIS X 0201; the others are not of ISO-IR 13."""
_WHOLE_CODECS: Final = {"GB18030": "gb18030", "GBK": "gbk"}

DEFINED_TERMS: Final = (
    *(
        f"ISO_{term}"
        for term in _SINGLE_BYTE_CODECS
        if term not in ("", "IR 58", "IR 149", "IR 87", "IR 159")
    ),
    *(f"ISO 2022 {term}" for term in _SINGLE_BYTE_CODECS if term not in ("", "IR 192")),
    *_WHOLE_CODECS,
)
"""The character sets that are read and written (PS3.3 C.12.1.1.2)."""

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
_DESIGNATIONS: Final = {
    "IR 6": b"(B",
    "IR 13": b")I",
    "IR 100": b"-A",
    "IR 101": b"-B",
    "IR 109": b"-C",
    "IR 110": b"-D",
    "IR 144": b"-L",
    "IR 127": b"-G",
    "IR 126": b"-F",
    "IR 138": b"-H",
    "IR 148": b"-M",
    "IR 203": b"-b",
    "IR 166": b"-T",
    "IR 87": b"$B",
    "IR 159": b"$(D",
    "IR 149": b"$)C",
    "IR 58": b"$)A",
}
"""What designates a term's character set: what is beyond ASCII in it, where it has two."""
_MULTI_BYTE_G0: Final = frozenset([b"$B", b"$(D"])
_SINGLE_BYTE_DESIGNATIONS: Final = frozenset(_ESCAPES) - _MULTI_BYTE_G0 - {b"$)C", b"$)A"}
_DELIMITER = re.compile(rb"[\\^=\r\n\f\t]")
_DELIMITERS: Final = frozenset("\\^=\r\n\f\t")


def codec_of(specific_character_set: bytes | None) -> str:
    """The Python codec of text without escape sequences; ASCII where the term is absent or unknown."""
    if not specific_character_set:
        return "ascii"
    first = _plain_term(specific_character_set.split(b"\\", 1)[0])
    return _WHOLE_CODECS.get(first) or _SINGLE_BYTE_CODECS.get(first, "ascii")


def _plain_term(term: bytes) -> str:
    """A defined term without what precedes its number: `IR 100`; also of the spellings that are around."""
    text = term.decode("latin-1").strip(" \0").upper()
    match = _TERM(text)
    if match is None:
        return text if text in _WHOLE_CODECS else ""
    return _PART_OF_8859.get(match[2], "") if match[1] is None else f"IR {match[2]}"


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
        # ESC ( B is about G0 alone: what lies above ASCII stays the first character set's.
        codec = initial_codec if escape.codec == "ascii" else escape.codec
        return (escape.prefix + text).decode(codec, "replace") + rest.decode(initial_codec, "replace")
    return "\ufffd" + piece.decode(initial_codec, "replace")


def encode_text(text: str, specific_character_set: bytes | None) -> bytes | None:
    """Encode a text value as a whole, or None where the character set cannot say it.

    What is encoded reads back as the same text. With code extensions the first term's set is in force at the
    beginning and after every delimiter (PS3.5 6.1.2.5.3), and each other set where its escape sequence is.
    """
    if text.isascii() and "\x1b" not in text:
        return text.encode("ascii")
    terms = [_plain_term(term) for term in (specific_character_set or b"").split(b"\\")]
    extended = len(terms) > 1 or b"2022" in (specific_character_set or b"")
    try:
        if extended and "" not in terms[1:] and terms[0] not in _WHOLE_CODECS and "IR 192" not in terms:
            encoded = _encode_extended(text, terms)
        else:
            codec = codec_of(specific_character_set)
            encoded = text.encode(codec)
            if codec == _JIS_X_0201 and len(encoded) > len(text):
                return None
    except UnicodeEncodeError:
        return None
    return encoded if decode_text(encoded, specific_character_set) == text else None


def _encode_extended(text: str, terms: list[str]) -> bytes:
    """Encode with escape sequences, as few as there can be. Raises UnicodeEncodeError."""
    designations = [_DESIGNATIONS[term] for term in terms if term in _DESIGNATIONS]
    ascii_again = b"\x1b(J" if terms[0] == "IR 13" else b"\x1b(B"
    initial = _DESIGNATIONS.get(terms[0], b"(B")
    if initial not in _SINGLE_BYTE_DESIGNATIONS:
        initial = b"(B"
    out = bytearray()
    current = initial
    for character in text:
        if character.isascii():
            if current in _MULTI_BYTE_G0:
                out += ascii_again
                current = initial
            out += character.encode("ascii")
            if character in _DELIMITERS:
                current = initial
            continue
        encoded = _encode_character(character, current)
        if encoded is None:
            for designation in designations:
                encoded = _encode_character(character, designation)
                if encoded is not None:
                    break
            else:
                raise UnicodeEncodeError("ascii", character, 0, 1, "in none of the character sets")
            if current in _MULTI_BYTE_G0 and designation not in _MULTI_BYTE_G0:
                out += ascii_again
            out += b"\x1b" + designation
            current = designation
        out += encoded
    if current in _MULTI_BYTE_G0:
        out += ascii_again
    return bytes(out)


def _encode_character(character: str, designation: bytes) -> bytes | None:
    """A character beyond ASCII in one designated character set; None where that does not have it."""
    escape = _ESCAPES[designation]
    try:
        encoded = character.encode(escape.codec)
    except UnicodeEncodeError:
        return None
    if designation in _MULTI_BYTE_G0:
        begin = b"\x1b" + designation
        return encoded[len(begin) : -len(b"\x1b(B")] if encoded.startswith(begin) else None
    expected = 1 if designation in _SINGLE_BYTE_DESIGNATIONS else 2
    return encoded if len(encoded) == expected and encoded[0] >= 0x80 else None
