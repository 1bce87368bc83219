"""What the index keeps of an object as columns."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeVar

from scp_server.errors import OperationRefused
from scp_server.objects.dicos.decision import TDR_STORAGE
from scp_server.objects.folding import canonical_date, folded_name, normal_text
from scp_server.objects.header_tap import DEFAULT_LIMITS, TapLimits
from scp_server.objects.raw_header import AttributeSource, RawHeader
from scp_server.objects.text import decode_text
from scp_server.objects.uids import clean_uid, is_valid_uid
from scp_server.objects.vr import tag_text

T = TypeVar("T")

MAX_TEXT_CHARACTERS: Final = 1_024
"""Longest text of a column; the whole value stays in the raw header."""
CANNOT_UNDERSTAND: Final = 0xC000
"""Status of an object that lacks what an archive needs (PS3.4 B.2.3)."""

_MAX_TEXT_BYTES: Final = 8 * MAX_TEXT_CHARACTERS
"""Most bytes that are decoded for a column: characters take at most four, and some escape sequences."""
INTEGER_LIMIT: Final = 1 << 31
"""Columns have integers below this, and from its negative on."""


@dataclass(frozen=True, slots=True)
class InstanceSummary:
    """The index's columns of one object.

    The four UIDs are cleaned and valid (`uids.is_valid_uid`). Everything else is None where the object has
    no such attribute, an empty one, or one that cannot be read. Text is Unicode in normal form C, without
    outer spaces and without NUL, at most `MAX_TEXT_CHARACTERS`; dates and times are the object's own text,
    but for dates of the old form, which become YYYYMMDD.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str

    patient_id: str | None = None
    issuer_of_patient_id: str | None = None
    type_of_patient_id: str | None = None
    patient_name: str | None = None
    patient_birth_date: str | None = None
    patient_sex: str | None = None

    study_date: str | None = None
    study_time: str | None = None
    accession_number: str | None = None
    study_id: str | None = None
    study_description: str | None = None
    referring_physician_name: str | None = None

    modality: str | None = None
    series_number: int | None = None
    series_description: str | None = None
    series_date: str | None = None
    series_time: str | None = None
    body_part_examined: str | None = None
    station_name: str | None = None
    institution_name: str | None = None
    manufacturer: str | None = None
    manufacturer_model_name: str | None = None
    device_serial_number: str | None = None
    protocol_name: str | None = None

    instance_number: int | None = None
    content_date: str | None = None
    content_time: str | None = None
    acquisition_date_time: str | None = None
    number_of_frames: int | None = None
    rows: int | None = None
    columns: int | None = None
    bits_allocated: int | None = None
    frame_of_reference_uid: str | None = None
    specific_character_set: str | None = None

    dicos_version: str | None = None
    ooi_type: str | None = None
    scan_type: str | None = None
    acquisition_status: str | None = None
    tdr_type: str | None = None
    alarm_decision: str | None = None
    alarm_decision_time: str | None = None
    abort_flag: str | None = None
    number_of_total_objects: int | None = None
    number_of_alarm_objects: int | None = None
    threat_categories: str | None = None
    r"""The distinct values in Threat Sequence > ATD Assessment Sequence, like `\EXPLOSIVE\OTHER\`."""
    assessment_flags: str | None = None
    """Assessment Flag (4010,1015) in the same way."""

    referenced_sop_instance_uids: tuple[str, ...] = ()
    """Instances this one refers to (a TDR's images, source images, evidence), each once, valid ones only."""

    @property
    def patient_name_folded(self) -> str | None:
        """What the name is looked for in."""
        return None if self.patient_name is None else folded_name(self.patient_name)


_TEXT: Final = {
    "patient_id": 0x00100020,
    "issuer_of_patient_id": 0x00100021,
    "type_of_patient_id": 0x00100022,
    "patient_name": 0x00100010,
    "patient_birth_date": 0x00100030,
    "patient_sex": 0x00100040,
    "study_date": 0x00080020,
    "study_time": 0x00080030,
    "accession_number": 0x00080050,
    "study_id": 0x00200010,
    "study_description": 0x00081030,
    "referring_physician_name": 0x00080090,
    "modality": 0x00080060,
    "series_description": 0x0008103E,
    "series_date": 0x00080021,
    "series_time": 0x00080031,
    "body_part_examined": 0x00180015,
    "station_name": 0x00081010,
    "institution_name": 0x00080080,
    "manufacturer": 0x00080070,
    "manufacturer_model_name": 0x00081090,
    "device_serial_number": 0x00181000,
    "protocol_name": 0x00181030,
    "content_date": 0x00080023,
    "content_time": 0x00080033,
    "acquisition_date_time": 0x0008002A,
    "frame_of_reference_uid": 0x00200052,
    "specific_character_set": 0x00080005,
    "dicos_version": 0x4010103A,
    "ooi_type": 0x40101042,
    "scan_type": 0x40101048,
    "acquisition_status": 0x40101044,
    "tdr_type": 0x40101027,
    "alarm_decision": 0x40101031,
    "alarm_decision_time": 0x4010102B,
    "abort_flag": 0x40101024,
}
_DATES: Final = ("patient_birth_date", "study_date", "series_date", "content_date")
_NUMBER_OF_FRAMES: Final = 0x00280008
_INTEGERS: Final = {
    "series_number": 0x00200011,
    "instance_number": 0x00200013,
    "number_of_frames": _NUMBER_OF_FRAMES,
    "rows": 0x00280010,
    "columns": 0x00280011,
    "bits_allocated": 0x00280100,
    "number_of_total_objects": 0x40101033,
    "number_of_alarm_objects": 0x40101034,
}
COLUMN_TAGS: Final = {
    "sop_class_uid": 0x00080016,
    "sop_instance_uid": 0x00080018,
    "study_instance_uid": 0x0020000D,
    "series_instance_uid": 0x0020000E,
    **_TEXT,
    **_INTEGERS,
}
"""The attribute behind each field of `InstanceSummary` that is one attribute."""
_TEXT_INTEGERS: Final = frozenset((0x00200011, 0x00200013, _NUMBER_OF_FRAMES))
"""Those that are IS where the stream has no VR; the others are US. DICOS has US for the frames, too."""

_REQUIRED: Final = (
    (0x00080016, "SOP Class UID"),
    (0x00080018, "SOP Instance UID"),
    (0x0020000D, "Study Instance UID"),
    (0x0020000E, "Series Instance UID"),
)

_THREAT_SEQUENCE: Final = 0x40101011
_ASSESSMENTS: Final = (_THREAT_SEQUENCE, 0x40101038)
_THREAT_CATEGORY: Final = 0x40101012
_ASSESSMENT_FLAG: Final = 0x40101015

_REFERENCED_SERIES: Final = 0x00081115
_REFERENCED_SOP: Final = 0x00081199
_REFERENCED_INSTANCE: Final = 0x0008114A
_REFERENCED_SOP_INSTANCE_UID: Final = 0x00081155
_REFERENCE_PATHS: Final = (
    (_THREAT_SEQUENCE, 0x40101037, _REFERENCED_INSTANCE),
    (_REFERENCED_INSTANCE,),
    (0x00081140,),
    (0x00082112,),
    (0x0008113A,),
    (_REFERENCED_SERIES, _REFERENCED_SOP),
    (_REFERENCED_SERIES, _REFERENCED_INSTANCE),
    (_REFERENCED_SERIES, 0x00081140),
    (0x00089121, _REFERENCED_SERIES, _REFERENCED_SOP),
    (0x0040A375, _REFERENCED_SERIES, _REFERENCED_SOP),
    (0x0040A385, _REFERENCED_SERIES, _REFERENCED_SOP),
)
"""Ways to a Referenced SOP Instance UID: a TDR's threats and their representations; referenced instances,
images, source images and waveforms; referenced series; raw data, and a document's evidence."""

_REPORT_PATHS: Final = (
    (0x00081110,),
    (0x40101077,),
    (0x40101076, 0x40101077),
    (_THREAT_SEQUENCE, 0x40101076, 0x40101077),
)
"""Those of a threat detection report alone: the scans that it names, the reports that an aggregate is of."""

_BINARY: Final = {
    b"US": (2, False),
    b"SS": (2, True),
    b"UL": (4, False),
    b"SL": (4, True),
    b"UV": (8, False),
    b"SV": (8, True),
}
"""Bytes of a binary integer, and whether it has a sign."""


def summarize(header: RawHeader, limits: TapLimits = DEFAULT_LIMITS) -> InstanceSummary:
    """Read the index's columns from a raw header.

    Raises OperationRefused (0xC000, with the offending element) when one of the four UIDs is missing or not
    valid; nothing else in an object makes this fail.
    """
    return _ended(summarizing(header, limits))


def summarizing(header: RawHeader, limits: TapLimits) -> Generator[None, None, InstanceSummary]:
    """`summarize` in steps, one for each referenced item, between which others may work."""
    sop_class, sop_instance, study, series = [_required_uid(header, tag, name) for tag, name in _REQUIRED]
    charset = header.specific_character_set
    columns: dict[str, Any] = {name: _text(raw, charset) for name, raw in header.raw_values(_TEXT).items()}
    for name, raw in header.raw_values(_INTEGERS).items():
        columns[name] = _integer(header, _INTEGERS[name], raw)
    for name in _DATES:
        if date := columns.get(name):
            columns[name] = canonical_date(date)
    if _THREAT_SEQUENCE in header:
        categories, flags = yield from _assessing(header, limits)
        columns["threat_categories"], columns["assessment_flags"] = categories, flags
    return InstanceSummary(
        sop_class_uid=sop_class,
        sop_instance_uid=sop_instance,
        study_instance_uid=study,
        series_instance_uid=series,
        referenced_sop_instance_uids=(yield from _references(header, sop_class, limits)),
        **columns,
    )


def _required_uid(header: RawHeader, tag: int, name: str) -> str:
    uid = clean_uid(header.raw(tag) or b"")
    if is_valid_uid(uid):
        return uid
    what = "is not a valid UID" if uid else "is missing"
    raise OperationRefused(CANNOT_UNDERSTAND, f"{name} {tag_text(tag)} {what}", (tag,))


def _text(raw: bytes, charset: bytes | None) -> str | None:
    """Text for a column. A NUL inside would end or break it in some databases."""
    if raw.isascii() and b"\x1b" not in raw and len(raw) <= MAX_TEXT_CHARACTERS:
        text = raw.decode("ascii")
    else:
        text = decode_text(raw[:_MAX_TEXT_BYTES], charset)
    if "\0" in text:
        text = text.replace("\0", "")
    return normal_text(text).strip()[:MAX_TEXT_CHARACTERS].rstrip() or None


def _integer(header: RawHeader, tag: int, raw: bytes) -> int | None:
    """An integer for a column, by the VR in the stream: DICOS has a binary value where DICOM has text."""
    vr = header.stream_vr(tag)
    if not vr or vr == b"UN":
        is_text = tag in _TEXT_INTEGERS and not (tag == _NUMBER_OF_FRAMES and header.is_dicos)
        vr = b"IS" if is_text else b"US"
    number = _text_number(raw) if vr in (b"IS", b"DS") else _binary_number(raw, vr, header.little_endian)
    return number if number is not None and -INTEGER_LIMIT <= number < INTEGER_LIMIT else None


def _binary_number(raw: bytes, vr: bytes, little_endian: bool) -> int | None:
    size, signed = _BINARY.get(vr, (0, False))
    if not 0 < size <= len(raw):
        return None
    return int.from_bytes(raw[:size], "little" if little_endian else "big", signed=signed)


def _text_number(raw: bytes) -> int | None:
    """The first value of an IS, also where a device writes it as `3.0`."""
    text = raw[:64].split(b"\\", 1)[0].strip(b" \0")
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() and abs(number) < INTEGER_LIMIT else None


def assessments(header: AttributeSource, limits: TapLimits = DEFAULT_LIMITS) -> tuple[str | None, str | None]:
    """The distinct threat categories and assessment flags in a report, each joined and wrapped by `\\`.

    Those of the first `limits.max_reference_items` items, up to `MAX_TEXT_CHARACTERS`; None where there are
    none.
    """
    return _ended(_assessing(header, limits))


def references(header: RawHeader, sop_class_uid: str, limits: TapLimits = DEFAULT_LIMITS) -> tuple[str, ...]:
    """What an object of that class refers to, as in `InstanceSummary.referenced_sop_instance_uids`."""
    return _ended(_references(header, sop_class_uid, limits))


def _assessing(
    header: AttributeSource, limits: TapLimits
) -> Generator[None, None, tuple[str | None, str | None]]:
    found: tuple[dict[str, None], dict[str, None]] = ({}, {})
    charset = header.specific_character_set
    for item in islice(_items_along(header, _ASSESSMENTS), limits.max_reference_items):
        yield
        if item is None:
            continue
        for values, tag in zip(found, (_THREAT_CATEGORY, _ASSESSMENT_FLAG), strict=True):
            text = _text(item.raw(tag) or b"", charset)
            values.update(dict.fromkeys(part.strip() for part in text.split("\\")) if text else {})
    categories, flags = [_wrapped(values) for values in found]
    return categories, flags


def _ended(steps: Generator[None, None, T]) -> T:
    """What steps come to, all at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def _wrapped(values: Iterable[str]) -> str | None:
    text = "\\"
    for value in filter(None, values):
        if len(text) + len(value) < MAX_TEXT_CHARACTERS:
            text += f"{value}\\"
    return text if len(text) > 1 else None


def _references(
    header: RawHeader, sop_class_uid: str, limits: TapLimits
) -> Generator[None, None, tuple[str, ...]]:
    """Valid Referenced SOP Instance UIDs along the paths above, each once, in the order they are found."""
    paths = _REFERENCE_PATHS + _REPORT_PATHS if sop_class_uid == TDR_STORAGE else _REFERENCE_PATHS
    found: dict[str, None] = {}
    visited = 0
    for path in paths:
        if path[0] not in header:
            continue
        for item in _items_along(header, path):
            visited += 1
            uid = "" if item is None else clean_uid(item.raw(_REFERENCED_SOP_INSTANCE_UID) or b"")
            if uid and is_valid_uid(uid):
                found[uid] = None
            if len(found) >= limits.max_references or visited >= limits.max_reference_items:
                return tuple(found)
            yield
    return tuple(found)


def _items_along(header: AttributeSource, path: tuple[int, ...]) -> Iterator[AttributeSource | None]:
    """The items of the last sequence of `path`; None for each item on the way there."""
    stack = [header.items(path[0])]
    while stack:
        item = next(stack[-1], None)
        if item is None:
            stack.pop()
        elif len(stack) < len(path):
            stack.append(item.items(path[len(stack)]))
            yield None
        else:
            yield item
