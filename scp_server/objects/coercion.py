"""What becomes of a data set's bytes when attributes of it are changed, and what is noted of it.

Nothing is decoded and written again but what changes: the plan is a list of places in the data set, and what
comes there (`splicing` carries it out). What is changed lies before pixel data, so in the header that is kept
of every object. The original values go into the Original Attributes Sequence as the bytes they were (PS3.3
C.12.1.1.9).
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from scp_server.errors import CannotTranscode
from scp_server.objects.changed_values import ChangedElement, changed_elements, refused
from scp_server.objects.changes import ORIGINAL_ATTRIBUTES_SEQUENCE, Changes
from scp_server.objects.element_headers import ITEM, ITEM_GROUP
from scp_server.objects.raw_elements import FoundElement
from scp_server.objects.raw_header import RawHeader
from scp_server.objects.reencoding import LONGEST_VALUE_BYTES, ElementWriter, Reencoder, is_length
from scp_server.objects.splicing import Splice
from scp_server.objects.uids import IMPLICIT_VR_LITTLE_ENDIAN, TransferSyntax, transfer_syntax

_MODIFIED_ATTRIBUTES_SEQUENCE: Final = 0x04000550
_ATTRIBUTE_MODIFICATION_DATE_TIME: Final = 0x04000562
_MODIFYING_SYSTEM: Final = 0x04000563
_SOURCE_OF_PREVIOUS_VALUES: Final = 0x04000564
_REASON_FOR_THE_ATTRIBUTE_MODIFICATION: Final = 0x04000565
_COERCE: Final = b"COERCE"
_STEP_ELEMENTS: Final = 256
"""Looked at in one step, at two to four microseconds each."""


@dataclass(frozen=True, slots=True)
class Modification:
    """Who changes an object and when, as the Original Attributes Sequence says it.

    `date_time` is a DT; what the texts have beyond printable ASCII becomes question marks.
    """

    date_time: str
    modifying_system: str
    source_of_previous_values: str


@dataclass(frozen=True, slots=True)
class CoercionPlan:
    """How a data set is changed. `tags` are those of what changes, without what that brings with it."""

    splices: tuple[Splice, ...]
    tags: tuple[int, ...]


class _Place(NamedTuple):
    """An element and where its header begins."""

    at: int
    found: FoundElement


def planning(
    header: RawHeader, changes: Changes, modification: Modification
) -> Generator[None, None, CoercionPlan | None]:
    """Work out how a data set with this header is changed, in steps of a millisecond or so; None where it is
    as it should be already. Raises OperationRefused where it cannot be done.
    """
    changed = changed_elements(header, changes)
    yield
    if not changed:
        return None
    survey = _Survey(header, changed)
    yield from survey.looking()
    encoder = _Encoder(header.transfer_syntax)
    placed = [(place.found.tag, Splice(place.at, place.found.next, b"")) for place in survey.lengths]
    for element in changed:
        tag = element.tag
        if element.is_new_block:
            creator = encoder.element(element.creator_tag, b"LO", element.creator)
            placed.append((element.creator_tag, survey.addition(element.creator_tag, creator)))
        data = b"" if element.value is None else encoder.element(tag, element.vr, element.value)
        places = survey.places.get(tag, [])
        if not places:
            placed.append((tag, survey.addition(tag, data)))
        for place in places:
            placed.append((tag, Splice(place.at, place.found.next, data)))
            data = b""  # Of an element that is there twice one is left.
    item = _original_attributes(encoder, _originals(header, changed, survey, encoder), modification)
    placed += [(ORIGINAL_ATTRIBUTES_SEQUENCE, splice) for splice in _with_item(encoder, survey, item)]
    # What is added comes before what is replaced at the same place, and in the order of tags.
    placed.sort(key=lambda one: (one[1].start, one[1].end, one[0]))
    return CoercionPlan(tuple(splice for _, splice in placed), tuple(element.tag for element in changed))


class _Survey:
    """Where in a data set the elements lie that its changes are about, and where new ones belong."""

    def __init__(self, header: RawHeader, changed: Sequence[ChangedElement]) -> None:
        self._header = header
        added = {element.tag for element in changed if element.value is not None}
        added |= {element.creator_tag for element in changed if element.is_new_block}
        self._wanted = sorted(added | {ORIGINAL_ATTRIBUTES_SEQUENCE})
        self._touched = {element.tag for element in changed} | {ORIGINAL_ATTRIBUTES_SEQUENCE}
        self._touched_groups = {tag >> 16 for tag in self._touched}
        self._belongs_at: dict[int, int] = {}
        self.places: dict[int, list[_Place]] = {}
        self.lengths: list[_Place] = []
        """Elements whose values would be wrong: lengths of what changes, which nobody needs (PS3.5 7.2)."""

    def looking(self) -> Generator[None, None, None]:
        """Look through the header. Raises OperationRefused where it was not kept whole."""
        at = number = waiting = 0
        try:
            for number, found in enumerate(self._header.found_elements()):
                if number % _STEP_ELEMENTS == _STEP_ELEMENTS - 1:
                    yield
                if found.tag not in self._header:
                    break
                while waiting < len(self._wanted) and self._wanted[waiting] < found.tag:
                    self._belongs_at[self._wanted[waiting]] = at
                    waiting += 1
                place = _Place(at, found)
                if found.tag in self._touched:
                    self.places.setdefault(found.tag, []).append(place)
                elif is_length(found.tag) and (found.tag & 0xFFFF or found.tag >> 16 in self._touched_groups):
                    self.lengths.append(place)
                at = found.next
        except ValueError:
            pass  # What was not kept ends in the middle of an element.
        if at != self._header.length_bytes or self._header.truncated:
            raise refused(
                ORIGINAL_ATTRIBUTES_SEQUENCE, "cannot be added: the header is too large to be changed"
            )

    def addition(self, tag: int, data: bytes) -> Splice:
        """An element that is not there yet, in its place."""
        at = self._belongs_at.get(tag, self._header.length_bytes)
        return Splice(at, at, data)


def _originals(
    header: RawHeader, changed: Sequence[ChangedElement], survey: _Survey, encoder: _Encoder
) -> bytes:
    """The changed elements as they were; those that were absent with no value."""
    elements: dict[int, bytes] = {}
    for element in changed:
        places = survey.places.get(element.tag)
        if places is None:
            original: bytes | None = encoder.element(element.tag, element.vr, b"")
        else:
            original = header.bytes_between(places[0].at, places[0].found.next)
        if original is None:
            raise refused(element.tag, "is too large to be changed")
        if element.creator:
            elements[element.creator_tag] = encoder.element(element.creator_tag, b"LO", element.creator)
        elements[element.tag] = original
    return b"".join(elements[tag] for tag in sorted(elements))


def _original_attributes(encoder: _Encoder, originals: bytes, modification: Modification) -> bytes:
    """The content of an item of the Original Attributes Sequence."""
    return b"".join(
        (
            encoder.sequence(_MODIFIED_ATTRIBUTES_SEQUENCE, originals),
            encoder.element(_ATTRIBUTE_MODIFICATION_DATE_TIME, b"DT", _ascii(modification.date_time)),
            encoder.element(_MODIFYING_SYSTEM, b"LO", _ascii(modification.modifying_system)),
            encoder.element(
                _SOURCE_OF_PREVIOUS_VALUES, b"LO", _ascii(modification.source_of_previous_values)
            ),
            encoder.element(_REASON_FOR_THE_ATTRIBUTE_MODIFICATION, b"CS", _COERCE),
        )
    )


def _ascii(text: str) -> bytes:
    safe = "".join(character if " " <= character <= "~" and character != "\\" else "?" for character in text)
    return (safe + " " * (len(safe) % 2)).encode("ascii")


def _with_item(encoder: _Encoder, survey: _Survey, content: bytes) -> list[Splice]:
    """A new item behind those that the Original Attributes Sequence has, or the sequence with it."""
    places = survey.places.get(ORIGINAL_ATTRIBUTES_SEQUENCE)
    if places is None:
        return [
            survey.addition(
                ORIGINAL_ATTRIBUTES_SEQUENCE, encoder.sequence(ORIGINAL_ATTRIBUTES_SEQUENCE, content)
            )
        ]
    at, found = places[0]
    if found.vr not in (b"SQ", b"UN", b""):
        raise refused(found.tag, f"has VR {found.vr.decode('latin-1')}, so no item can be added")
    item = encoder.implicit_item(content) if found.vr == b"UN" else encoder.item(content)
    end = found.start + found.length
    added = Splice(end, end, item)
    if found.next != end:
        # It ends with a delimiter, and has no length that would have to be right.
        return [added]
    length = found.length + len(item)
    if length > LONGEST_VALUE_BYTES:
        raise refused(found.tag, "would have 4 GiB or more")
    return [Splice(at, found.start, encoder.header(found.tag, found.vr, length)), added]


class _Encoder:
    """Encodes elements and items in one transfer syntax, values as they are given."""

    def __init__(self, syntax: TransferSyntax) -> None:
        self._syntax = replace(syntax, deflated=False)

    def header(self, tag: int, vr: bytes, length: int) -> bytes:
        """The header of an element."""
        writer = ElementWriter(self._syntax, self._syntax)
        writer.element(tag, vr, length)
        return b"".join(writer.take())

    def element(self, tag: int, vr: bytes, value: bytes) -> bytes:
        """An element."""
        return self.header(tag, vr, len(value)) + value

    def item(self, content: bytes) -> bytes:
        """An item, its length defined."""
        writer = ElementWriter(self._syntax, self._syntax)
        writer.item(len(content))
        return b"".join(writer.take()) + content

    def sequence(self, tag: int, content: bytes) -> bytes:
        """A sequence of one item, its length defined."""
        return self.element(tag, b"SQ", self.item(content))

    def implicit_item(self, content: bytes) -> bytes:
        """An item as it lies in a sequence of VR UN, which is implicit VR little endian (PS3.5 6.2.2)."""
        to_implicit = Reencoder(self._syntax, transfer_syntax(IMPLICIT_VR_LITTLE_ENDIAN), len(content))
        try:
            converted = b"".join([*to_implicit.feed(content), *to_implicit.finish()])
        except CannotTranscode:
            raise refused(
                ORIGINAL_ATTRIBUTES_SEQUENCE, "has VR UN, where not all values can be said"
            ) from None
        return struct.pack("<HHI", ITEM_GROUP, ITEM & 0xFFFF, len(converted)) + converted
