"""Medical objects as facts, from their headers: patient to image, and a structured report's content."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from scp_server.cli.info_facts import Block, Fact, JSONValue, Outline, Part, by, moment, moments
from scp_server.objects.raw_header import AttributeSource
from scp_server.views.fields import integer, number, numbers, text, uid

MAX_CONTENT_LINES: Final = 1_000
"""Most items of a structured report that are shown."""
_CONTENT: Final = 0x0040A730
_MAX_DEPTH: Final = 32
_VALUES: Final = {
    "TEXT": 0x0040A160,
    "DATE": 0x0040A121,
    "TIME": 0x0040A122,
    "DATETIME": 0x0040A120,
    "PNAME": 0x0040A123,
    "UIDREF": 0x0040A124,
}
"""Where the value of a content item lies, by its value type (PS3.3 C.17.3.2)."""


def kind(header: AttributeSource) -> str:
    """What it is, in a word or two."""
    return f"DICOM {text(header, 0x00080060) or 'object'}"


def identity(header: AttributeSource) -> Iterator[Part]:
    """Patient, study, series and equipment."""
    birth, date, time = (text(header, tag) for tag in (0x00100030, 0x00080020, 0x00080030))
    yield Block(
        "patient",
        (
            Fact("name", text(header, 0x00100010), _person(text(header, 0x00100010))),
            Fact("id", text(header, 0x00100020)),
            Fact("birth date", birth, moment(birth)),
            Fact("sex", text(header, 0x00100040)),
        ),
    )
    yield Block(
        "study",
        (
            Fact("id", text(header, 0x00200010)),
            Fact("date", date, moments(date, time)),
            Fact("time", time, ""),
            Fact("description", text(header, 0x00081030)),
            Fact("accession number", text(header, 0x00080050)),
            Fact("referring physician", text(header, 0x00080090), _person(text(header, 0x00080090))),
            Fact("study instance uid", uid(header, 0x0020000D)),
        ),
    )
    yield Block(
        "series",
        (
            Fact("modality", text(header, 0x00080060)),
            Fact("number", integer(header, 0x00200011)),
            Fact("description", text(header, 0x0008103E)),
            Fact("body part", text(header, 0x00180015)),
            Fact("protocol", text(header, 0x00181030)),
            Fact("series instance uid", uid(header, 0x0020000E)),
        ),
    )
    yield Block(
        "machine",
        (
            Fact("manufacturer", text(header, 0x00080070)),
            Fact("model", text(header, 0x00081090)),
            Fact("station", text(header, 0x00081010)),
            Fact("institution", text(header, 0x00080080)),
            Fact("software", text(header, 0x00181020)),
        ),
    )


def content(header: AttributeSource) -> Iterator[Part]:
    """An image's description, a document's, and the content of a structured report."""
    if 0x00280010 in header:
        yield _image(header)
    if 0x00420011 in header:
        document = header.get(0x00420011)
        yield Block(
            "document",
            (
                Fact("title", text(header, 0x00420010)),
                Fact("type", text(header, 0x00420012)),
                Fact("bytes", document.length_bytes if document else None),
            ),
        )
    if 0x0040A040 in header:
        yield Outline("content", tuple(_content(header)))


def _image(header: AttributeSource) -> Part:
    rows, columns, frames = (integer(header, tag) for tag in (0x00280010, 0x00280011, 0x00280008))
    bits, signed = integer(header, 0x00280101), integer(header, 0x00280103)
    spacing = numbers(header, 0x00280030)
    return Block(
        "image",
        (
            Fact("type", text(header, 0x00080008).split("\\")),
            Fact("number", integer(header, 0x00200013)),
            Fact("frames", frames),
            Fact("rows", rows),
            Fact("columns", columns),
            Fact("bits stored", bits),
            Fact("signed", bool(signed)),
            Fact("photometric interpretation", text(header, 0x00280004)),
            Fact("spacing mm", list(spacing), by(spacing)),
            Fact("slice thickness mm", number(header, 0x00180050)),
            Fact("position mm", list(numbers(header, 0x00200032))),
            Fact("orientation", list(numbers(header, 0x00200037))),
            Fact("kvp", number(header, 0x00180060)),
            Fact("rescale slope", number(header, 0x00281053)),
            Fact("rescale intercept", number(header, 0x00281052)),
            Fact("window center", list(numbers(header, 0x00281050))),
            Fact("window width", list(numbers(header, 0x00281051))),
        ),
    )


def _content(header: AttributeSource) -> Iterator[tuple[int, str, dict[str, JSONValue]]]:
    """The items of a structured report, each behind the one that contains it (PS3.3 C.17.3)."""
    pending: list[tuple[int, AttributeSource]] = [(0, header)]
    told = 0
    while pending and told < MAX_CONTENT_LINES:
        depth, item = pending.pop()
        yield depth, *_item(item)
        told += 1
        if depth < _MAX_DEPTH:
            pending += [(depth + 1, one) for one in reversed(item.sequence(_CONTENT))]
    if pending:
        yield 0, f"... (the first {told} items are shown)", {"cut_after": told}


def _item(item: AttributeSource) -> tuple[str, dict[str, JSONValue]]:
    kind, relationship = text(item, 0x0040A040), text(item, 0x0040A010)
    concept, value = _meaning(item, 0x0040A043), _value(item, kind)
    values: dict[str, JSONValue] = {
        "relationship": relationship or None,
        "type": kind,
        "concept": concept or None,
        "value": value or None,
    }
    return ": ".join(
        part for part in (concept or relationship.lower() or kind.lower(), value) if part
    ), values


def _value(item: AttributeSource, kind: str) -> str:
    if kind in _VALUES:
        found = text(item, _VALUES[kind])
        if kind == "PNAME":
            return _person(found)
        return found if kind in ("TEXT", "UIDREF") else moment(found)
    if kind == "CODE":
        return _meaning(item, 0x0040A168)
    if kind == "NUM":
        measured = next(item.items(0x0040A300), None)
        if measured is None:
            return ""
        return f"{text(measured, 0x0040A30A)} {_meaning(measured, 0x004008EA)}".strip()
    referenced = next(item.items(0x00081199), None)
    return uid(referenced, 0x00081155) if referenced is not None else ""


def _meaning(item: AttributeSource, sequence: int) -> str:
    """The meaning of a coded entry, its value where it has none."""
    code = next(item.items(sequence), None)
    return "" if code is None else text(code, 0x00080104) or text(code, 0x00080100)


def _person(name: str) -> str:
    """A person name as people write it (PS3.5 6.2): `Doe, Jane`, other forms behind it."""
    groups = []
    for group in name.split("="):
        family, *given = [part.strip() for part in group.split("^")]
        groups.append(", ".join(part for part in (family, " ".join(filter(None, given))) if part))
    return " = ".join(filter(None, groups))
