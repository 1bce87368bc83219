"""The header of an object as its own bytes: every attribute can be read later, without the file.

Nothing is decoded before it is asked for. A `RawHeader` is the data set's level 0 before group 7FE0; a
`RawItem` is one item of a sequence in it. Both offer the same look-ups (`AttributeSource`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from scp_server.objects import header_codec
from scp_server.objects.dictionary import vr_of
from scp_server.objects.raw_elements import FoundElement, Gap, IndexedElement, KeptBytes, elements, items
from scp_server.objects.text import decode_text
from scp_server.objects.uids import TransferSyntax, clean_uid, is_dicos_sop_class
from scp_server.objects.vr import CHARACTER_SET_VRS, SINGLE_VALUED_TEXT_VRS, TEXT_VRS, numbers, tags_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_SPECIFIC_CHARACTER_SET: Final = 0x00080005
_SOP_CLASS_UID: Final = 0x00080016
_INTEGER_LIMIT: Final = 1 << 63

Scalar = str | int | float


class RawElement(NamedTuple):
    """One element. `value` is as it lies in the data set, padding included, and None where it was not kept.

    `offset_bytes` and `length_bytes` tell where the value lies in the data set (inflated, where that is
    deflated). The value of a sequence, and of anything else of undefined length, is its items without the
    delimiter at the end; a sequence's items may lack what was not kept.
    """

    tag: int
    vr: str
    value: bytes | None
    offset_bytes: int
    length_bytes: int


class AttributeSource:
    """Look-ups by tag (a 32-bit integer: 0x00100020 is (0010,0020))."""

    __slots__ = ("_charset", "_implicit", "_index", "_kept", "_syntax", "is_dicos")

    def __init__(
        self,
        kept: KeptBytes,
        index: dict[int, IndexedElement],
        syntax: TransferSyntax,
        implicit: bool,
        charset: bytes | None,
        is_dicos: bool,
    ) -> None:
        self._kept = kept
        self._index = index
        self._syntax = syntax
        self._implicit = implicit
        self._charset = self.raw(_SPECIFIC_CHARACTER_SET) or charset
        self.is_dicos = is_dicos

    def __contains__(self, tag: int) -> bool:
        return tag in self._index

    def __len__(self) -> int:
        return len(self._index)

    def tags(self) -> list[int]:
        """The tags in the order they lie, each once."""
        return list(self._index)

    def __iter__(self) -> Iterator[RawElement]:
        for tag in self._index:
            element = self.get(tag)
            if element is not None:
                yield element

    @property
    def specific_character_set(self) -> bytes | None:
        """The raw value that applies here; an item's own or the enclosing data set's."""
        return self._charset

    @property
    def is_implicit(self) -> bool:
        """Elements have no VR here: by the transfer syntax, or inside UN."""
        return self._implicit

    @property
    def little_endian(self) -> bool:
        return self._implicit or self._syntax.little_endian

    def get(self, tag: int) -> RawElement | None:
        """The element, the first of them where a tag is repeated; None where there is none."""
        entry = self._index.get(tag)
        if entry is None:
            return None
        _, start, length = entry
        return RawElement(tag, self.vr(tag) or "UN", self._kept.value(start, length), start, length)

    def raw(self, tag: int) -> bytes | None:
        """The value as it lies, padding included; None where it is absent or was not kept."""
        entry = self._index.get(tag)
        return None if entry is None else self._kept.value(entry[1], entry[2])

    def raw_values(self, tags: Mapping[str, int]) -> dict[str, bytes]:
        """The values of those of `tags` that are here, kept and not empty, by the names given."""
        index, value = self._index, self._kept.value
        found = {}
        for name, tag in tags.items():
            if tag in index:
                _, start, length = index[tag]
                raw = value(start, length)
                if raw:
                    found[name] = raw
        return found

    def vr(self, tag: int) -> str | None:
        """The VR in the stream; in implicit VR the dictionary's, DICOS's for DICOS objects."""
        entry = self._index.get(tag)
        if entry is None:
            return None
        return entry[0].decode("latin-1") if entry[0] else vr_of(tag, self.is_dicos)

    def stream_vr(self, tag: int) -> bytes:
        """The VR in the stream alone; empty in implicit VR, or where the element is absent."""
        entry = self._index.get(tag)
        return b"" if entry is None else entry[0]

    def text(self, tag: int) -> str | None:
        """The value as Unicode text by the object's character set, without outer padding; never raises.

        None where it is absent, empty, or was not kept. Several values stay joined by backslashes.
        """
        value = self.raw(tag)
        if not value:
            return None
        return decode_text(value, self._charset).strip(" \0") or None

    def value(self, tag: int) -> list[Scalar]:
        """The values decoded by their VR: text and UIDs as str, IS and binary integers as int, DS as float.

        Empty where the element is absent, empty, not kept, a sequence or bytes. AT gives 32-bit integers. An
        IS or DS that is no number is given as its text.
        """
        vr, value = self.vr(tag), self.raw(tag)
        if not vr or not value:
            return []
        return decode_value(vr, value, self._charset, self.little_endian)

    def items(self, tag: int) -> Iterator[RawItem]:
        """The items of a sequence, one at a time; none where the element is absent or no sequence.

        UN is read as the implicit VR sequence it may hold (PS3.5 6.2.2). Damage ends the iteration.
        """
        entry = self._index.get(tag)
        if entry is None:
            return
        vr, start, length = entry
        if vr not in (b"SQ", b"UN", b"") or self._kept.gap_at(start) is not None:
            return
        implicit = self._implicit or vr == b"UN"
        try:
            for first, end in items(self._kept, self._syntax, implicit, start, start + length):
                yield RawItem(self._kept, self._syntax, implicit, self._charset, self.is_dicos, first, end)
        except ValueError:
            return

    def sequence(self, tag: int) -> list[RawItem]:
        """All items of a sequence: see `items`."""
        return list(self.items(tag))


class RawItem(AttributeSource):
    """One item of a sequence. Raises ValueError when its bytes make no sense: they were damaged."""

    __slots__ = ()

    def __init__(
        self,
        kept: KeptBytes,
        syntax: TransferSyntax,
        implicit: bool,
        charset: bytes | None,
        is_dicos: bool,
        start: int,
        end: int,
    ) -> None:
        index: dict[int, IndexedElement] = {}
        for found in elements(kept, syntax, implicit, start, end):
            index.setdefault(found.tag, (found.vr, found.start, found.length))
        super().__init__(kept, index, syntax, implicit, charset, is_dicos)


class RawHeader(AttributeSource):
    """The elements of level 0 before group 7FE0 (all of them, in objects without any of that group).

    `truncated` says that it was so large that its end is not here. `length_bytes` is its length in the data
    set, of `truncated` headers that of what is here.
    """

    __slots__ = ("truncated",)

    def __init__(
        self,
        syntax: TransferSyntax,
        raw: bytes,
        gaps: tuple[Gap, ...] = (),
        index: dict[int, IndexedElement] | None = None,
        truncated: bool = False,
    ) -> None:
        """Without an `index` one is made; raises ValueError when the bytes make no sense."""
        kept = KeptBytes(raw, gaps)
        if index is None:
            index = {}
            for found in elements(kept, syntax, syntax.implicit_vr, 0, kept.end):
                index.setdefault(found.tag, (found.vr, found.start, found.length))
        super().__init__(kept, index, syntax, syntax.implicit_vr, None, False)
        self.truncated = truncated
        self.is_dicos = is_dicos_sop_class(clean_uid(self.raw(_SOP_CLASS_UID) or b""))

    @property
    def transfer_syntax(self) -> TransferSyntax:
        return self._syntax

    @property
    def length_bytes(self) -> int:
        return self._kept.end

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What was not kept: large values, and the ends of very large sequences."""
        return self._kept.gaps

    def found_elements(self) -> Iterator[FoundElement]:
        """The elements as they lie, also those that are repeated or beyond what is remembered. Raises
        ValueError where the bytes make no sense."""
        return elements(self._kept, self._syntax, self._syntax.implicit_vr, 0, self._kept.end)

    def bytes_between(self, start: int, end: int) -> bytes | None:
        """The data set's bytes between two offsets; None where some of them were not kept."""
        return self._kept.whole(start, end)

    @property
    def kept_bytes(self) -> bytes:
        """The bytes that were kept, gaps left out."""
        return self._kept.raw

    def pack(self) -> bytes:
        """The header as one compressed piece, to be stored; `unpack` reads it."""
        return header_codec.pack(self._syntax.uid, self._kept.raw, self._kept.gaps, self.truncated)

    @classmethod
    def unpack(cls, packed: bytes, max_bytes: int = header_codec.MAX_UNPACKED_BYTES) -> RawHeader:
        """Read what `pack` made. Raises ValueError on damage, or when it would need more than `max_bytes`."""
        syntax, raw, gaps, truncated = header_codec.unpack(packed, max_bytes)
        return cls(syntax, raw, gaps, None, truncated)

    def to_pydicom(self) -> Dataset:
        """The header as a pydicom data set, VRs as this object's dictionary has them; gaps are left out."""
        from scp_server.objects.pydicom_bridge import to_dataset

        return to_dataset(self)


def decode_value(vr: str, value: bytes, charset: bytes | None, little_endian: bool) -> list[Scalar]:
    """The values of an element that is not empty, as `AttributeSource.value` gives them."""
    if vr == "AT":
        return list(tags_of(value, little_endian))
    if vr not in TEXT_VRS:
        return list(numbers(vr, value, little_endian))
    text = decode_text(value, charset if vr in CHARACTER_SET_VRS else None)
    if vr in SINGLE_VALUED_TEXT_VRS:
        return [text.rstrip(" \0")]
    values = [part.strip(" \0") for part in text.split("\\")]
    if vr == "IS":
        return [_integer(part) for part in values]
    if vr == "DS":
        return [_decimal(part) for part in values]
    return list(values)


def _integer(text: str) -> Scalar:
    try:
        number = int(text)
    except ValueError:
        return text
    return number if abs(number) < _INTEGER_LIMIT else text


def _decimal(text: str) -> Scalar:
    try:
        return float(text)
    except ValueError:
        return text
