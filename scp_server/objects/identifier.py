"""The identifier of a query: its keys, read from a data set (PS3.4 C.2.2.1), and matched against a header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from scp_server.errors import OperationRefused
from scp_server.objects.dictionary import vr_of
from scp_server.objects.element_headers import FORBIDDEN_GROUPS, ITEM_GROUP
from scp_server.objects.matching import Matcher, MatchingOptions, make_matcher
from scp_server.objects.raw_elements import FoundElement, KeptBytes, elements, items
from scp_server.objects.raw_header import AttributeSource, Scalar, decode_value
from scp_server.objects.summary import CANNOT_UNDERSTAND
from scp_server.objects.text import decode_text
from scp_server.objects.uids import transfer_syntax
from scp_server.objects.vr import NUMBER_BYTES, SINGLE_VALUED_TEXT_VRS, TEXT_VRS, little_endian_words

SPECIFIC_CHARACTER_SET: Final = 0x00080005
_QUERY_RETRIEVE_LEVEL: Final = 0x00080052
_NO_KEYS: Final = frozenset([SPECIFIC_CHARACTER_SET, _QUERY_RETRIEVE_LEVEL])
ITEM_BYTES: Final = b"\xfe\xff\x00\xe0"
"""How a sequence begins where its VR is not known: in little endian (PS3.5 6.2.2)."""
_DECODED_VRS: Final = TEXT_VRS | NUMBER_BYTES.keys() | {"AT"}
_NUMBER_BYTES: Final = {**NUMBER_BYTES, "AT": 4}
_DATE_CHARACTERS: Final = 8


@dataclass(frozen=True, slots=True)
class IdentifierLimits:
    """Bounds of one identifier, each a setting."""

    max_keys: int = 1_000
    """Elements, those in sequences too."""
    max_values: int = 16_384
    """Of all keys together; a matcher takes up to some hundred bytes for each."""
    max_wildcard_bytes: int = 8_192
    """Of all values of the keys that have wild cards, or are compared word by word; a pattern takes up to
    some hundred bytes for each."""
    max_sequence_depth: int = 64


@dataclass(frozen=True, slots=True)
class Key:
    """One attribute that is asked for, and matched where it has a matcher."""

    tag: int
    vr: str
    """The stream's, where it has one that says something; otherwise the dictionary's."""
    matcher: Matcher | None = None
    """None: universal."""
    items: tuple[Key, ...] | None = None
    """None: no sequence; none in it: whole items are wanted."""
    private_creator: str | None = None
    """Whose block a private element lies in; of a creator's own element, its value."""

    @property
    def is_private_creator(self) -> bool:
        """It is no key, but says whose the keys in its block are (PS3.5 7.8.1)."""
        return _is_private_creator(self.tag)

    @property
    def is_universal(self) -> bool:
        """Everything matches."""
        return self.matcher is None and all(key.is_universal for key in self.items or ())


@dataclass(frozen=True, slots=True)
class Identifier:
    """What a query asks for."""

    keys: tuple[Key, ...]
    """Ascending tags, each once; without group lengths, Specific Character Set and Query/Retrieve Level."""
    level: str
    """Query/Retrieve Level (0008,0052); empty where it is missing."""
    character_set: bytes | None
    """The raw value of (0008,0005); None where it is missing or empty."""


def read_identifier(
    data: bytes,
    transfer_syntax_uid: str,
    *,
    is_dicos: bool,
    options: MatchingOptions,
    limits: IdentifierLimits,
    only: frozenset[int] | None = None,
) -> Identifier:
    """Read an identifier of one of the three uncompressed transfer syntaxes.

    `is_dicos` says whose dictionary has the VRs in implicit VR. Of a repeated tag the first is taken, and so
    is a sequence's first item. `only`: other keys than these are passed over, whatever they say. Raises
    OperationRefused (0xC000) for what is cut, overruns, is too deep, has too many keys, or values that their
    VR cannot have.
    """
    reader = _Reader(data, transfer_syntax_uid, is_dicos, options, limits)
    try:
        found = reader.find(reader.is_implicit, 0, len(data))
        charset = reader.value(found, SPECIFIC_CHARACTER_SET)
        level = decode_text(reader.value(found, _QUERY_RETRIEVE_LEVEL) or b"", None).strip(" \0")
        if only is not None:
            found = {tag: element for tag, element in found.items() if tag in only}
        return Identifier(reader.keys(found, reader.is_implicit, charset, 0), level, charset)
    except ValueError as error:
        raise OperationRefused(CANNOT_UNDERSTAND, f"the identifier cannot be read: {error}") from None


class _Reader:
    """Reads one identifier; ValueError means that its bytes make no sense."""

    def __init__(
        self, data: bytes, syntax_uid: str, is_dicos: bool, options: MatchingOptions, limits: IdentifierLimits
    ) -> None:
        self._kept = KeptBytes(data, ())
        self._syntax = transfer_syntax(syntax_uid)
        self._is_dicos = is_dicos
        self._options = options
        self._limits = limits
        self._count = 0
        self._values = 0
        self._wildcard_bytes = 0

    @property
    def is_implicit(self) -> bool:
        return self._syntax.implicit_vr

    def find(self, implicit: bool, start: int, end: int) -> dict[int, FoundElement]:
        """The elements of the data set or an item, by ascending tags."""
        found: dict[int, FoundElement] = {}
        reached = start
        for element in elements(self._kept, self._syntax, implicit, start, end):
            tag, reached = element.tag, element.next
            if tag >> 16 == ITEM_GROUP:
                raise ValueError("an item outside a sequence")
            if tag & 0xFFFF == 0 or tag >> 16 in FORBIDDEN_GROUPS:
                continue
            self._count += tag not in _NO_KEYS
            if self._count > self._limits.max_keys:
                raise OperationRefused(CANNOT_UNDERSTAND, f"more than {self._limits.max_keys} keys", (tag,))
            found.setdefault(tag, element)
        if reached != end:
            raise ValueError(f"a delimiter at byte {reached}")
        return dict(sorted(found.items()))

    def value(self, found: Mapping[int, FoundElement], tag: int) -> bytes | None:
        """The value of an element without padding; None where it is missing or empty."""
        element = found.get(tag)
        return None if element is None else self._bytes(element).rstrip(b" \0") or None

    def keys(
        self, found: Mapping[int, FoundElement], implicit: bool, charset: bytes | None, depth: int
    ) -> tuple[Key, ...]:
        creators = {
            tag: decode_text(self.value(found, tag) or b"", charset).strip(" \0")
            for tag in found
            if _is_private_creator(tag)
        }
        return tuple(
            self._key(element, implicit, charset, creators, depth)
            for tag, element in found.items()
            if tag not in _NO_KEYS
        )

    def _key(
        self,
        element: FoundElement,
        implicit: bool,
        charset: bytes | None,
        creators: Mapping[int, str],
        depth: int,
    ) -> Key:
        tag, stream_vr = element.tag, element.vr
        vr = vr_of(tag, self._is_dicos) if stream_vr in (b"", b"UN") else stream_vr.decode("latin-1")
        if tag in creators:
            return Key(tag, "LO", private_creator=creators[tag])
        creator = creators.get(_creator_tag(tag)) or None
        little_endian = self._syntax.little_endian or implicit or stream_vr == b"UN"
        value = self._bytes(element)
        if vr == "SQ" or (vr == "UN" and value.startswith(ITEM_BYTES)):
            if depth >= self._limits.max_sequence_depth:
                raise OperationRefused(
                    CANNOT_UNDERSTAND,
                    f"more than {self._limits.max_sequence_depth} sequences deep",
                    (tag,),
                )
            nested = self._items(element, implicit or stream_vr == b"UN", charset, depth + 1)
            return Key(tag, "SQ", items=nested, private_creator=creator)
        matcher = None
        if creator is not None or not is_private(tag):
            self._count_values(tag, vr, value)
            matcher = make_matcher(
                tag, vr, value, charset=charset, little_endian=little_endian, options=self._options
            )
        return Key(tag, vr, matcher, private_creator=creator)

    def _count_values(self, tag: int, vr: str, value: bytes) -> None:
        """Bound what matchers take, before they are made. Counts what looks like a backslash, `*` or `?` in
        any character set. Raises OperationRefused."""
        limits, is_text = self._limits, vr in TEXT_VRS
        if is_text and vr not in SINGLE_VALUED_TEXT_VRS:
            self._values += value.count(b"\\") + 1
        else:
            self._values += len(value) // _NUMBER_BYTES[vr] if vr in _NUMBER_BYTES else 1
        if self._values > limits.max_values:
            raise OperationRefused(CANNOT_UNDERSTAND, f"more than {limits.max_values} values", (tag,))
        by_word = vr == "PN" and self._options.fuzzy_person_names
        if is_text and (by_word or b"*" in value or b"?" in value):
            self._wildcard_bytes += len(value)
        if self._wildcard_bytes > limits.max_wildcard_bytes:
            problem = f"more than {limits.max_wildcard_bytes} bytes with wild cards"
            raise OperationRefused(CANNOT_UNDERSTAND, problem, (tag,))

    def _items(
        self, element: FoundElement, implicit: bool, charset: bytes | None, depth: int
    ) -> tuple[Key, ...]:
        """The keys of a sequence's first item."""
        stop = element.start + element.length
        first = None
        for item in items(self._kept, self._syntax, implicit, element.start, stop):
            first = first or item
        if first is None:
            return ()
        found = self.find(implicit, *first)
        return self.keys(found, implicit, self.value(found, SPECIFIC_CHARACTER_SET) or charset, depth)

    def _bytes(self, element: FoundElement) -> bytes:
        return self._kept.raw[element.start : element.start + element.length]


def is_private(tag: int) -> bool:
    """Whether an element is private: its group is odd (PS3.5 7.8)."""
    return bool(tag >> 16 & 1)


def _is_private_creator(tag: int) -> bool:
    return is_private(tag) and 0x10 <= tag & 0xFFFF <= 0xFF


def _creator_tag(tag: int) -> int:
    """Where the creator of a private element stands (PS3.5 7.8.1)."""
    return tag & 0xFFFF0000 | (tag & 0xFFFF) >> 8 if is_private(tag) else -1


def located(source: AttributeSource, key: Key) -> int | None:
    """The tag that a key's attribute has in an object; None where it is absent.

    A private one is looked for in its creator's block, whichever number that has (PS3.5 7.8.1).
    """
    if not is_private(key.tag):
        return key.tag if key.tag in source else None
    if key.private_creator is None or key.is_private_creator:
        return None
    group, element = key.tag >> 16, key.tag & 0xFF
    for tag in source.tags():
        if tag >> 16 == group and _is_private_creator(tag) and source.text(tag) == key.private_creator:
            there = group << 16 | (tag & 0xFF) << 8 | element
            if there in source:
                return there
    return None


def stored_values(source: AttributeSource, tag: int, vr: str) -> Sequence[Scalar | bytes] | None:
    """The values of an element that is there, as a matcher for `vr` takes them.

    None where they were not kept. Where the object does not know the VR, the key does.
    """
    raw, stored_vr = source.raw(tag), source.vr(tag)
    if raw is None:
        return None
    if not raw:
        return ()
    little_endian = source.little_endian or stored_vr == "UN"
    if vr not in _DECODED_VRS:
        return (little_endian_words(stored_vr or vr, raw, little_endian),)
    decoded_vr = stored_vr if stored_vr is not None and stored_vr in _DECODED_VRS else vr
    values = decode_value(decoded_vr, raw, source.specific_character_set, little_endian)
    if vr == "DA" and decoded_vr == "DT":
        values = [str(value)[:_DATE_CHARACTERS] for value in values]
    return [value for value in values if value != ""]


def source_matches(source: AttributeSource, key: Key, unknown_values_match: bool) -> bool:
    """Whether a header or item has what a key asks for.

    A sequence does when one of its items matches all nested keys (PS3.4 C.2.2.2.6). What was not kept in the
    header matches. `unknown_values_match`: so does what has no value (PS3.4 C.2.2.1.2).
    """
    if key.is_universal:
        return True
    tag = located(source, key)
    if tag is None:
        values: Sequence[Scalar | bytes] | None = ()
    elif key.items is None:
        values = stored_values(source, tag, key.vr)
    else:
        found = False
        for item in source.items(tag):
            if all(source_matches(item, nested, unknown_values_match) for nested in key.items):
                return True
            found = True
        values = None if source.raw(tag) is None else ()
        if found:
            return False
    if values is None or (not values and unknown_values_match):
        return True
    return key.matcher is not None and key.matcher.matches(values)
