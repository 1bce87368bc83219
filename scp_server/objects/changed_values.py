"""The elements that changes make of one object: tags with the object's own blocks, values in its encoding."""

from __future__ import annotations

from typing import Final, NamedTuple

from scp_server.errors import ConfigurationError, OperationRefused
from scp_server.objects.changes import (
    NEEDED_UIDS,
    Change,
    Changes,
    CopiedFrom,
    FilledIn,
    Removed,
    SetTo,
    encodable,
)
from scp_server.objects.query_keys import KeyName
from scp_server.objects.raw_header import RawHeader, decode_value
from scp_server.objects.text import encode_text
from scp_server.objects.uids import clean_uid, is_valid_uid
from scp_server.objects.vr import (
    CHARACTER_SET_VRS,
    SHORT_FORM_VRS,
    SINGLE_VALUED_TEXT_VRS,
    TEXT_VRS,
    little_endian_words,
    tag_text,
)
from scp_server.protocol.status import Status

_FIRST_BLOCK: Final = 0x10
_LAST_BLOCK: Final = 0xFF
_MAX_SHORT_BYTES: Final = 0xFFFE


class ChangedElement(NamedTuple):
    """An element of the data set that becomes another.

    `value` is in the data set's encoding and of even length; None where the element goes. `creator` is the
    value of the element that reserves a private one's block, which is to be added where `is_new_block`.
    """

    tag: int
    vr: bytes
    value: bytes | None
    creator: bytes = b""
    is_new_block: bool = False

    @property
    def creator_tag(self) -> int:
        """That of the element which reserves the block."""
        return self.tag & 0xFFFF0000 | self.tag >> 8 & 0xFF


def refused(tag: int, problem: str) -> OperationRefused:
    """Why an object cannot be changed as it should be."""
    return OperationRefused(Status.CANNOT_UNDERSTAND, f"{tag_text(tag)} {problem}", (tag,))


def changed_elements(header: RawHeader, changes: Changes) -> list[ChangedElement]:
    """What really changes, by ascending tag: what is as it should be is left out.

    Values are taken from the object as it came, whatever else changes. Raises OperationRefused where a value
    cannot be said in the object's encoding, or was not kept in its header.
    """
    places = _Places(header)
    found = {}
    for change in changes.by_attribute.values():
        if isinstance(change, Removed):
            tag = places.tag_of(change.key)
            if tag is not None and tag in header:
                found[tag] = ChangedElement(tag, b"UN", None, places.creator(tag))
            continue
        value = _value(header, change)
        if value is None:
            continue
        tag, is_new_block = places.tag_for(change.key)
        element = _element(tag, change.key, value, places.creator(tag), is_new_block)
        if not _is_there(header, element):
            found[tag] = element
    return [found[tag] for tag in sorted(found)]


class _Places:
    """Which tags attributes have in one object: private ones lie in their creator's block (PS3.5 7.8.1)."""

    def __init__(self, header: RawHeader) -> None:
        self._header = header
        self._blocks: dict[tuple[int, str], int] = {}
        self._creators: dict[int, bytes] = {}
        self._used: set[int] = set()
        """Group and block of all private elements."""
        for tag in header.tags():
            if not tag >> 16 & 1:
                continue
            element = tag & 0xFFFF
            if _FIRST_BLOCK <= element <= _LAST_BLOCK:
                self._reserve(tag, header.text(tag) or "", header.raw(tag) or b"")
            else:
                self._used.add(tag >> 8)

    def _reserve(self, creator_tag: int, creator: str, raw: bytes) -> None:
        self._blocks.setdefault((creator_tag >> 16, creator), creator_tag & 0xFF)
        self._creators[creator_tag] = raw
        self._used.add(creator_tag >> 16 << 8 | creator_tag & 0xFF)

    def tag_of(self, key: KeyName) -> int | None:
        """The tag of an attribute; None for a private one without a block."""
        if key.creator is None:
            return key.tag
        block = self._blocks.get((key.tag >> 16, key.creator))
        return None if block is None else key.tag | block << 8

    def tag_for(self, key: KeyName) -> tuple[int, bool]:
        """The same, in a block that is free where its creator has none, and whether that is so."""
        tag = self.tag_of(key)
        if tag is not None or key.creator is None:
            return key.tag if tag is None else tag, False
        group = key.tag >> 16
        for block in range(_FIRST_BLOCK, _LAST_BLOCK + 1):
            if group << 8 | block not in self._used:
                raw = _padded("LO", _encoded(self._header, key.tag, "LO", key.creator))
                self._reserve(group << 16 | block, key.creator, raw)
                return key.tag | block << 8, True
        raise refused(key.tag, "cannot be added: no private block is free")

    def creator(self, tag: int) -> bytes:
        """The value of the element that reserves the block of `tag`; empty for one that is not private."""
        return self._creators.get(tag & 0xFFFF0000 | tag >> 8 & 0xFF, b"") if tag >> 16 & 1 else b""


def _element(tag: int, key: KeyName, value: bytes, creator: bytes, is_new_block: bool) -> ChangedElement:
    value = _padded(key.vr, value)
    vr = key.vr.encode("ascii")
    if vr in SHORT_FORM_VRS and len(value) > _MAX_SHORT_BYTES:
        raise refused(tag, f"cannot have {len(value)} bytes: its VR is {key.vr}")
    if key.vr == "UI":
        uids = [clean_uid(uid) for uid in value.split(b"\\")] if value.strip(b"\0 ") else []
        if not all(map(is_valid_uid, uids)) or (tag in NEEDED_UIDS and len(uids) != 1):
            raise refused(tag, "would become what is no UID")
    return ChangedElement(tag, vr, value, creator, is_new_block)


def _padded(vr: str, value: bytes) -> bytes:
    if not len(value) % 2:
        return value
    return value + (b" " if vr in TEXT_VRS and vr != "UI" else b"\0")


def _is_there(header: RawHeader, element: ChangedElement) -> bool:
    """Whether the object has that value already, whatever it is padded with."""
    kept = header.raw(element.tag)
    if kept is None or element.value is None:
        return False
    if element.vr.decode("ascii") in TEXT_VRS:
        return kept.rstrip(b" \0") == element.value.rstrip(b" \0")
    return kept == element.value


def _value(header: RawHeader, change: Change) -> bytes | None:
    """The new value, not padded yet; None where nothing is to change."""
    key = change.key
    if isinstance(change, SetTo):
        return _in_encoding(header, key, change.value)
    if isinstance(change, FilledIn):
        texts = [part if isinstance(part, str) else _text(header, part, key) or "" for part in change.parts]
        return _from_text(header, key, "".join(texts))
    if isinstance(change, CopiedFrom):
        source = _located(header, change.source)
        if source is None:
            return None
        raw, vr = header.raw(source), header.vr(source)
        if raw is not None and (vr == key.vr or {vr, key.vr} <= CHARACTER_SET_VRS):
            # The very bytes, also where they break the rules.
            return raw.rstrip(b" \0") if key.vr in TEXT_VRS else raw
        return _from_text(header, key, _text(header, change.source, key) or "")
    raise TypeError(f"{type(change).__name__} gives no value")


def _from_text(header: RawHeader, key: KeyName, text: str) -> bytes:
    if key.vr in TEXT_VRS:
        return _in_encoding(header, key, text)
    try:
        return _in_encoding(header, key, encodable(key, text.split("\\") if text else None))
    except ConfigurationError:
        raise refused(key.tag, f"would become what is no value of VR {key.vr}") from None


def _in_encoding(header: RawHeader, key: KeyName, value: str | bytes) -> bytes:
    if isinstance(value, bytes):
        return little_endian_words(key.vr, value, header.little_endian)
    return _encoded(header, key.tag, key.vr, value)


def _encoded(header: RawHeader, tag: int, vr: str, text: str) -> bytes:
    charset = header.specific_character_set if vr in CHARACTER_SET_VRS else None
    encoded = encode_text(text, charset)
    if encoded is None:
        raise refused(tag, "would become what the object's character set cannot say")
    return encoded


def _located(header: RawHeader, key: KeyName) -> int | None:
    """The tag of an attribute in the object; None where it is absent."""
    tag = _Places(header).tag_of(key) if key.creator is not None else key.tag
    return tag if tag is not None and tag in header else None


def _text(header: RawHeader, source: KeyName, target: KeyName) -> str | None:
    """The value of an attribute as text, values joined by backslashes; None where it is absent."""
    tag = _located(header, source)
    if tag is None:
        return None
    raw, vr = header.raw(tag), header.vr(tag) or "UN"
    if raw is None:
        raise refused(target.tag, f"is to be taken from {tag_text(tag)}, which is too long to be read")
    vr, little_endian = (source.vr, True) if vr == "UN" else (vr, header.little_endian)
    if vr in SINGLE_VALUED_TEXT_VRS or not raw:
        return (header.text(tag) or "") if raw else ""
    values = decode_value(vr, raw, header.specific_character_set, little_endian)
    return "\\".join(map(str, values))
