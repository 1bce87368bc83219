"""The values of single elements: VR, multiplicity, length and form (PS3.5 6.2, 6.4)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC
from functools import partial
from typing import Final

from scp_server.objects.dates import read_date, read_date_time, read_time
from scp_server.objects.raw_header import AttributeSource, RawElement
from scp_server.objects.text import decode_text
from scp_server.objects.uids import clean_uid, is_valid_uid
from scp_server.objects.validation.expected import Expected, is_multiplicity
from scp_server.objects.validation.finding import Code
from scp_server.objects.vr import CHARACTER_SET_VRS, SINGLE_VALUED_TEXT_VRS, TEXT_VRS, WORD_BYTES

_WORD_BYTES: Final = {**WORD_BYTES, "AT": 4}
"""What the length of a binary value is a multiple of."""
_MAX_CHARACTERS: Final = {
    "AE": 16,
    "AS": 4,
    "CS": 16,
    "DA": 10,
    "DS": 16,
    "DT": 26,
    "IS": 12,
    "LO": 64,
    "LT": 10_240,
    "PN": 64 * 3 + 2,
    "SH": 16,
    "ST": 1_024,
    "TM": 16,
}
"""Longest value in characters (PS3.5 Table 6.2-1); DA and TM as ACR-NEMA wrote them, PN of three groups."""
_MAX_PN_GROUP: Final = 64

_is_code = re.compile(r"[A-Z0-9_ ]*").fullmatch
_is_age = re.compile(r"\d{3}[DWMY]", re.ASCII).fullmatch
_is_integer = re.compile(r"[+-]?\d+", re.ASCII).fullmatch
_is_decimal = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII).fullmatch

Problem = tuple[Code, str]
"""What is wrong with a value, and the sentence's end: `DateOfBirth (0010,0030) ` + `is no date.`"""


def value_problems(
    source: AttributeSource, element: RawElement, expected: Expected | None, max_values: int
) -> Iterator[Problem]:
    """What is wrong with an element that is no sequence. Values that were not kept are only measured."""
    vr = element.vr
    stated = source.stream_vr(element.tag)
    if expected and expected.vrs and stated and vr != "UN" and vr not in expected.vrs:
        yield Code.VR, f"has VR {vr}, not {' or '.join(expected.vrs)}."
    size = _WORD_BYTES.get(vr)
    if size is not None:
        if element.length_bytes % size:
            yield Code.LENGTH, f"has {element.length_bytes} bytes, no multiple of {size} as {vr} demands."
        elif vr not in ("OW", "OL", "OF", "OD", "OV"):
            yield from _count_problems(element.length_bytes // size, expected)
    elif vr in TEXT_VRS and element.value:
        yield from _text_problems(source, vr, element.value, expected, max_values)


def _text_problems(
    source: AttributeSource, vr: str, value: bytes, expected: Expected | None, max_values: int
) -> Iterator[Problem]:
    charset = source.specific_character_set if vr in CHARACTER_SET_VRS else None
    text = decode_text(value, charset)
    if vr in SINGLE_VALUED_TEXT_VRS:
        yield from _length_problems(vr, [text.rstrip(" \0")])
        return
    if not text.strip(" \0"):
        return
    yield from _count_problems(text.count("\\") + 1, expected)
    values = [clean_uid(part) if vr == "UI" else part.strip(" \0") for part in text.split("\\", max_values)]
    filled = [part for part in values[:max_values] if part]
    yield from _length_problems(vr, filled)
    form = _FORMS.get(vr)
    if form is not None:
        code, is_right, sentence = form
        if not all(map(is_right, filled)):
            yield code, sentence


def _count_problems(count: int, expected: Expected | None) -> Iterator[Problem]:
    if expected and expected.multiplicity and count and not is_multiplicity(count, expected.multiplicity):
        yield Code.VM, f"has {count} values where the multiplicity is {expected.multiplicity}."


def _length_problems(vr: str, values: Sequence[str]) -> Iterator[Problem]:
    most = _MAX_CHARACTERS.get(vr)
    longest = max(map(len, values), default=0)
    if vr == "PN" and any(len(group) > _MAX_PN_GROUP for one in values for group in one.split("=")):
        yield Code.TOO_LONG, f"has a component group of more than {_MAX_PN_GROUP} characters."
    elif most is not None and longest > most:
        yield Code.TOO_LONG, f"has a value of {longest} characters; {vr} allows {most}."


def _is(read: Callable[[str], object]) -> Callable[[str], bool]:
    return lambda text: read(text) is not None


_FORMS: Final[dict[str, tuple[Code, Callable[[str], object], str]]] = {
    "UI": (Code.UID, is_valid_uid, "is no UID: digits and dots, at most 64 characters."),
    "DA": (Code.DATE_TIME, _is(read_date), "is no date."),
    "TM": (Code.DATE_TIME, _is(read_time), "is no time."),
    "DT": (Code.DATE_TIME, _is(partial(read_date_time, zone=UTC)), "is no date and time."),
    "IS": (Code.NUMBER, _is_integer, "is no integer."),
    "DS": (Code.NUMBER, _is_decimal, "is no decimal number."),
    "CS": (Code.CHARACTERS, _is_code, "has characters that a code string does not have."),
    "AS": (Code.CHARACTERS, _is_age, "is no age such as 018M."),
}
"""The form of single values by VR."""
