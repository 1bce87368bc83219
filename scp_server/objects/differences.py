"""What changes do to one object, in lines for people: each attribute with its value before and after."""

from __future__ import annotations

from collections.abc import Sequence

from scp_server.objects.changed_values import changed_elements
from scp_server.objects.changes import Changes
from scp_server.objects.query_keys import keyword_of
from scp_server.objects.raw_header import RawHeader, Scalar, decode_value


def differences(header: RawHeader, changes: Changes) -> list[str]:
    """One line for each attribute that changes, in the order of tags; none where all is as it should be.

    Raises OperationRefused where the object cannot be changed so. The values may tell of a patient.
    """
    lines = []
    for element in changed_elements(header, changes):
        before = _text(header.value(element.tag)) if element.tag in header else "absent"
        lines.append(f"{keyword_of(element.tag)}: {before} -> {_after(header, element.vr, element.value)}")
    return lines


def _after(header: RawHeader, vr: bytes, value: bytes | None) -> str:
    if value is None:
        return "absent"
    charset = header.specific_character_set
    return _text(decode_value(vr.decode("latin-1"), value, charset, header.little_endian) if value else ())


def _text(values: Sequence[Scalar]) -> str:
    if not values:
        return "empty"
    return "\\".join(repr(value) if isinstance(value, str) else str(value) for value in values)
