"""Attribute matching: whether stored values are what a key of a query asks for (PS3.4 C.2.2.2).

The only place where that is decided. docs/query.md lists the rules by VR.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Final, Protocol

from scp_server.errors import OperationRefused
from scp_server.objects.folding import folded_name
from scp_server.objects.matching_hints import AnyOf, Hint
from scp_server.objects.matching_names import NameMatcher
from scp_server.objects.matching_text import MAX_PATTERN_CHARACTERS, TextMatcher, compared_text, is_pattern
from scp_server.objects.matching_times import CombinedDateTime, span_matcher
from scp_server.objects.raw_header import Scalar
from scp_server.objects.summary import CANNOT_UNDERSTAND, INTEGER_LIMIT
from scp_server.objects.text import decode_text
from scp_server.objects.uids import clean_uid, is_valid_uid
from scp_server.objects.vr import (
    CHARACTER_SET_VRS,
    NUMBER_BYTES,
    SINGLE_VALUED_TEXT_VRS,
    TEXT_VRS,
    little_endian_words,
    numbers,
    tag_text,
    tags_of,
)

__all__ = ["CombinedDateTime", "Matcher", "MatchingOptions", "folded_name", "make_matcher"]

MULTIPLE_VALUE_VRS: Final = frozenset(["AE", "AS", "AT", "CS", "LO", "PN", "SH", "UC"])
"""VRs in which several values can mean all of them (PS3.4 C.2.2.2.8)."""
RANGE_VRS: Final = frozenset(["DA", "DT", "TM"])
"""VRs that ranges are made of (PS3.4 C.2.2.2.5)."""
WILD_CARD_VRS: Final = TEXT_VRS - RANGE_VRS - {"AS", "DS", "IS", "UI"}
"""VRs in which `*` and `?` are wild cards (PS3.4 C.2.2.2.4)."""
_EMPTY: Final = '""'
_MAX_NUMBER_CHARACTERS: Final = 64
"""An IS has at most 12, a DS 16; more zeros than that are not worth reading."""
_AGE = re.compile(r"[0-9]{3}[DWMY]").fullmatch
_INTEGER = re.compile(r"[+-]?[0-9]+").fullmatch
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?").fullmatch


@dataclass(frozen=True, slots=True)
class MatchingOptions:
    """What was agreed in extended negotiation (PS3.4 C.5.1.1), and our time zone."""

    fuzzy_person_names: bool = False
    empty_values: bool = False
    """`""` finds what has no value (PS3.4 C.2.2.2.7)."""
    all_values: bool = False
    """Several values of a key must all be there (PS3.4 C.2.2.2.8); otherwise one of them."""
    timezone: tzinfo = UTC
    """Where a DT has no zone of its own."""


class Matcher(Protocol):
    """Decides about the values of one attribute."""

    @property
    def hint(self) -> Hint | None:
        """For the database: what every matching value passes; None where that cannot be said.

        It is about columns: text in normal form C and cut, dates as YYYYMMDD, folded names, integers.
        """
        ...

    def matches(self, values: Sequence[Scalar | bytes]) -> bool:
        """Whether the values an entity has are meant; none where the attribute is absent or empty."""
        ...


def make_matcher(
    tag: int, vr: str, value: bytes, *, charset: bytes | None, little_endian: bool, options: MatchingOptions
) -> Matcher | None:
    """A matcher for the value of a key, or None when it is universal: empty, or `*` (PS3.4 C.2.2.2.3).

    Raises OperationRefused (0xC000, with the tag) for a value that its VR cannot have.
    """
    if vr in TEXT_VRS:
        texts = key_texts(vr, value, charset)
        if not texts:
            return None
        return _text_matcher(tag, vr, texts, options)
    if vr in NUMBER_BYTES or vr == "AT":
        if len(value) % NUMBER_BYTES.get(vr, 4):
            raise _refused(tag, f"has a length that {vr} cannot have")
        found = numbers(vr, value, little_endian) or tags_of(value, little_endian)
        if vr == "AT" and options.all_values and len(found) > 1:
            return _AllOf(tuple(_NumberMatcher.of([number]) for number in found))
        return _NumberMatcher.of(found) if found else None
    stripped = little_endian_words(vr, value, little_endian).rstrip(b"\0 ")
    if not value or (vr == "UN" and stripped == b"*"):
        return None
    return _BytesMatcher(stripped)


def key_texts(vr: str, value: bytes, charset: bytes | None) -> list[str]:
    """The texts of a key; none when one of them is universal or there is none."""
    text = decode_text(value, charset if vr in CHARACTER_SET_VRS else None)
    parts = [text] if vr in SINGLE_VALUED_TEXT_VRS else text.split("\\")
    return [part for part in (compared_text(part, whole=True) for part in parts) if part]


def _text_matcher(tag: int, vr: str, texts: list[str], options: MatchingOptions) -> Matcher | None:
    together = options.all_values and vr in MULTIPLE_VALUE_VRS
    universal = [text for text in texts if not text.strip("*")]
    if universal and not together:
        return None
    wanted = [text for text in texts if text.strip("*")] if universal else texts
    empty = options.empty_values and _EMPTY in wanted
    if empty:
        wanted = [text for text in wanted if text != _EMPTY]
    matchers: list[Matcher] = [_EmptyMatcher()] if empty else []
    for keys in [[text] for text in wanted] if together else [wanted]:
        matcher = _matcher_of(tag, vr, keys, options) if keys else None
        if matcher is not None:
            matchers.append(matcher)
        elif keys and not together:
            return None
    if len(matchers) == 1:
        return matchers[0]
    if not matchers:
        return None
    return _AllOf(tuple(matchers)) if together else _AnyOf(tuple(matchers))


def _matcher_of(tag: int, vr: str, keys: list[str], options: MatchingOptions) -> Matcher | None:
    """One of some texts of a VR; None when one of them is universal."""
    if vr in RANGE_VRS:
        spans = span_matcher(vr, keys, options.timezone)
        if spans is None:
            raise _refused(tag, f"is no {vr}, nor a range of them")
        return spans
    if vr in ("IS", "DS"):
        found = [read_number(key) for key in keys]
        if None in found:
            raise _refused(tag, "is no number")
        return _NumberMatcher.of([number for number in found if number is not None])
    if vr == "UI":
        uids = dict.fromkeys(clean_uid(key) for key in keys)
        if not all(map(is_valid_uid, uids)):
            raise _refused(tag, "is no valid UID")
        return _UIDMatcher(frozenset(uids), AnyOf(tuple(uids)))
    if vr == "AS" and not all(map(_AGE, keys)):
        raise _refused(tag, "is no age")
    if any(len(key) > MAX_PATTERN_CHARACTERS and is_pattern(key) for key in keys):
        raise _refused(tag, f"more than {MAX_PATTERN_CHARACTERS} with wild cards")
    if vr == "PN":
        return NameMatcher.of(keys, options.fuzzy_person_names)
    return TextMatcher.of(vr, keys)


def _refused(tag: int, problem: str) -> OperationRefused:
    return OperationRefused(CANNOT_UNDERSTAND, f"{tag_text(tag)} {problem}", (tag,))


def read_number(text: str) -> int | float | None:
    """The number of an IS or DS; None where it is none."""
    text = text.strip(" \0")
    if len(text) > _MAX_NUMBER_CHARACTERS:
        return None
    if _INTEGER(text):
        return int(text)
    number = float(text) if _DECIMAL(text) else math.inf
    return number if math.isfinite(number) else None


@dataclass(frozen=True, slots=True)
class _NumberMatcher:
    """One of some numbers, however they are encoded; tags are numbers, too."""

    numbers: frozenset[int | float]
    hint: Hint | None

    @classmethod
    def of(cls, wanted: Iterable[int | float]) -> _NumberMatcher:
        found = frozenset(wanted)
        integers = tuple(
            int(number)
            for number in found
            if -INTEGER_LIMIT <= number < INTEGER_LIMIT and float(number).is_integer()
        )
        return cls(found, AnyOf(integers) if integers else None)

    def matches(self, values: Sequence[Scalar | bytes]) -> bool:
        for value in values:
            number = read_number(value) if isinstance(value, str) else value
            if number is not None and number in self.numbers:
                return True
        return False


@dataclass(frozen=True, slots=True)
class _UIDMatcher:
    """One of a list of UIDs (PS3.4 C.2.2.2.2)."""

    uids: frozenset[str]
    hint: AnyOf

    def matches(self, values: Sequence[Scalar | bytes]) -> bool:
        return any(isinstance(value, str) and value.strip(" \0") in self.uids for value in values)


@dataclass(frozen=True, slots=True)
class _BytesMatcher:
    """The same bytes, padding aside."""

    value: bytes
    hint: None = None

    def matches(self, values: Sequence[Scalar | bytes]) -> bool:
        return any(isinstance(value, bytes) and value.rstrip(b"\0 ") == self.value for value in values)


@dataclass(frozen=True, slots=True)
class _EmptyMatcher:
    """No value (PS3.4 C.2.2.2.7)."""

    hint: None = None

    def matches(self, values: Sequence[Scalar | bytes]) -> bool:
        return not any(value not in ("", b"") for value in values)


@dataclass(frozen=True, slots=True)
class _AnyOf:
    """One of two, of which one is `_EmptyMatcher`, so that nothing can be said to the database."""

    matchers: tuple[Matcher, ...]
    hint: None = None

    def matches(self, values: Sequence[Scalar | bytes]) -> bool:
        return any(matcher.matches(values) for matcher in self.matchers)


@dataclass(frozen=True, slots=True)
class _AllOf:
    """Each of several, by a value of its own or the same one (PS3.4 C.2.2.2.8)."""

    matchers: tuple[Matcher, ...]

    @property
    def hint(self) -> Hint | None:
        """What one of them says, a list of values if there is any."""
        hints = [matcher.hint for matcher in self.matchers if matcher.hint is not None]
        return next((hint for hint in hints if isinstance(hint, AnyOf)), hints[0] if hints else None)

    def matches(self, values: Sequence[Scalar | bytes]) -> bool:
        return all(matcher.matches(values) for matcher in self.matchers)
