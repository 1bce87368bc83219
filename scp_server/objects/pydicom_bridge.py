"""A kept header as a pydicom data set, for those who want to work with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydicom.charset import convert_encodings
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from scp_server.objects.vr import TEXT_VRS

if TYPE_CHECKING:
    from scp_server.objects.raw_header import AttributeSource, RawElement

_MAX_DEPTH: Final = 64
_KNOWN_VRS: Final = TEXT_VRS | frozenset(
    ["AT", "FD", "FL", "OB", "OD", "OF", "OL", "OV", "OW", "SL", "SQ", "SS", "SV", "UL", "UN", "US", "UV"]
)


def to_dataset(source: AttributeSource) -> Dataset:
    """The elements of a header or item, without values that were not kept and sequences deeper than 64.

    Values are converted by pydicom when they are asked for, with the VR of the stream or of this object's own
    dictionary; what a value then raises is pydicom's affair.
    """
    result = Dataset()
    pending: list[tuple[AttributeSource, Dataset, int]] = [(source, result, 0)]
    while pending:
        current, dataset, depth = pending.pop()
        charset = current.specific_character_set or b""
        encodings = convert_encodings(charset.decode("latin-1").strip(" \0").split("\\"))
        dataset.set_original_encoding(current.is_implicit, current.little_endian, encodings)
        for element in current:
            if element.value is None:
                continue
            vr = element.vr if element.vr in _KNOWN_VRS else "UN"
            if vr != "SQ":
                dataset[element.tag] = _raw(element, vr, element.value, current)
            elif depth < _MAX_DEPTH:
                children = [(item, Dataset(), depth + 1) for item in current.items(element.tag)]
                dataset[element.tag] = DataElement(
                    element.tag, "SQ", Sequence([child for _, child, _ in children])
                )
                pending.extend(children)
    return result


def _raw(element: RawElement, vr: str, value: bytes, source: AttributeSource) -> RawDataElement:
    return RawDataElement(
        BaseTag(element.tag),
        vr,
        len(value),
        value,
        element.offset_bytes,
        source.is_implicit,
        source.little_endian,
    )
