"""`TDRBuilder`: from detections in an image of DICOS to a threat detection report (TDR) that is whole."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from os import PathLike
from typing import Final, Self

from scp_server.errors import CannotReport, CannotView
from scp_server.objects.element_writer import Element, encoded_dataset
from scp_server.objects.vr import tag_text
from scp_server.reports.detection import (
    ALARMING,
    MAX_LO_CHARACTERS,
    MAX_LT_CHARACTERS,
    MAX_ST_CHARACTERS,
    Ability,
    Category,
    Detection,
    Extent,
    Flag,
    Place,
    check_numbers,
    check_text,
    place_of,
    word,
)
from scp_server.reports.report import TDR_STORAGE, ThreatReport, made_uid
from scp_server.views.fields import text, uid
from scp_server.views.opening import open_instance
from scp_server.views.radiographs import DXView
from scp_server.views.stored_file import HasPath, Source
from scp_server.views.volumes import VolumeView

Image = DXView | VolumeView

_COPIED: Final = (
    # Object of inspection.
    *((0x00100020, "LO"), (0x00100021, "LO"), (0x00100022, "CS"), (0x40101042, "CS")),
    # Scan.
    *((0x00080020, "DA"), (0x00080030, "TM"), (0x0020000D, "UI"), (0x00200010, "SH"), (0x40101048, "CS")),
    # Series.
    (0x40101044, "CS"),
    # Equipment.
    *((0x00080070, "LO"), (0x00080080, "LO"), (0x00080081, "ST"), (0x00081010, "SH"), (0x00081090, "LO")),
    *((0x00181000, "LO"), (0x00181020, "LO"), (0x00181200, "DA"), (0x00181201, "TM")),
)
"""What a report has of its image whatever that has, with their VRs."""
_COPIED_WHERE_SAID: Final = ((0x00100040, "CS"), (0x00081030, "LO"))
"""Gender, which may be absent and not empty, and the scan's description."""
_NEEDED: Final = (0x00100020, 0x0020000D)
_MAX_OBJECTS: Final = 65_535
"""They are counted in 16 bits (4010,1033)."""
_NOT_KNOWN: Final = -1.0
"""Where a probability, a mass or a density has to be written and is not known."""


class ReportType(StrEnum):
    """Who decided (4010,1027)."""

    MACHINE = "MACHINE"
    OPERATOR = "OPERATOR"
    GROUND_TRUTH = "GROUND TRUTH"


class Decision(StrEnum):
    """What was decided (4010,1031)."""

    ALARM = "ALARM"
    CLEAR = "CLEAR"
    UNKNOWN = "UNKNOWN"


class AbortReason(StrEnum):
    """Why nothing could be decided (4010,1021)."""

    OVERSIZE_BAG = "OVERSIZE_BAG"
    CLIPPED_BAG = "CLIPPED_BAG"
    INCOMPLETE_SCAN = "INCOMPLETE_SCAN"
    FAILED_RECON = "FAILED_RECON"
    TIMEOUT = "TIMEOUT"
    NOT_REVIEWED = "NOT_REVIEWED"
    UNKNOWN_DATATYPE = "UNKNOWN_DATATYPE"
    USER_INTERRUPT = "USER_INTERRUPT"
    OUT_OF_BOUNDS = "OUT_OF_BOUNDS"


@dataclass(frozen=True, slots=True)
class OperatorIdentity:
    """Who decided, of an OPERATOR's report."""

    operator_id: str
    name: str
    issuer: str
    """Who gave the id."""
    institution: str


@dataclass(frozen=True, slots=True)
class _Object:
    """One potential threat object: its detections, the first of which says what it is."""

    number: int
    detections: tuple[tuple[Detection, tuple[Image, ...], Place | None], ...]


class TDRBuilder:
    """Makes one report.

    ::

        builder = TDRBuilder("bag.dcs", algorithm=("ACME", "2.1"))
        builder.add(Detection(box=((12, 8, 3), (5, 5, 2)), category="EXPLOSIVE", probability=0.9))
        builder.build().write("report.dcs")
    """

    def __init__(
        self,
        images: Image | Source | Iterable[Image | Source],
        *,
        algorithm: Sequence[str] = (),
        report_type: ReportType | str = ReportType.MACHINE,
        operator: OperatorIdentity | None = None,
        started_at: datetime | None = None,
        seed: str | None = None,
    ) -> None:
        """`images` are what was looked at: one image, or several of one scan, as views or files. All parts of
        a CT are one view: `open_instance(parts)`.

        `algorithm` is manufacturer, version, parameters: a MACHINE's report needs it, an OPERATOR's needs
        `operator`. `started_at` is when the work began (now). The UIDs of the report follow from `seed` where
        one is given. Raises CannotReport, and what `open_instance` raises.
        """
        self._started_at = _zoned(started_at)
        self._images = _opened(images)
        self._type = word(ReportType, report_type, "the report type")
        self._algorithm = tuple(algorithm)
        self._operator = operator
        if self._type == ReportType.MACHINE and len(self._algorithm) < 2:
            raise CannotReport("a MACHINE's report names manufacturer and version of its algorithm")
        for one in self._algorithm:
            check_text(one, MAX_LO_CHARACTERS, "a text of the algorithm")
            if "\\" in one:
                raise CannotReport("a backslash cannot be in what the algorithm is called")
        if (self._type == ReportType.OPERATOR) != (operator is not None):
            raise CannotReport("an OPERATOR's report names its operator, and no other does")
        self._seed = secrets.token_hex(16) if seed is None else seed
        self._abort_reason = ""
        self._detections: dict[int, list[tuple[Detection, tuple[Image, ...], Place | None]]] = {}
        first = self._images[0]
        for tag in _NEEDED:
            if not text(first.header, tag):
                raise CannotReport(f"{first.path}: an image without {tag_text(tag)} cannot be reported on")
        self._is_person = first.object_of_inspection.object_type == "PERSON"
        # What does not say its version is written as the newest.
        self._version = first.dicos_version or "V03"

    def add(self, detection: Detection) -> Self:
        """Put a detection into the report. Raises CannotReport where that cannot be said."""
        word(Category, detection.category, "the category")
        word(Flag, detection.flag, "the flag")
        word(Ability, detection.ability, "the ability")
        check_numbers(detection)
        check_text(detection.description, MAX_LT_CHARACTERS, "the description")
        check_text(detection.location, MAX_ST_CHARACTERS, "the location")
        images = self._images_of(detection)
        place = place_of(detection, _extent(images))
        if self._is_person and not detection.anomaly_locators:
            raise CannotReport("of a person a detection has anomaly locators")
        if place is None and not self._is_person:
            raise CannotReport("a detection needs a box, a mask or a polygon")
        number = self._next_number if detection.number is None else detection.number
        if not 0 <= number <= _MAX_OBJECTS or len(self._detections) >= _MAX_OBJECTS:
            raise CannotReport(f"the ids of objects are 0 to {_MAX_OBJECTS}")
        self._detections.setdefault(number, []).append((detection, images, place))
        return self

    def abort(self, reason: AbortReason | str) -> Self:
        """Nothing could be decided; `reason` says why. Raises CannotReport."""
        self._abort_reason = word(AbortReason, reason, "the reason")
        return self

    def build(
        self, *, decision: Decision | str | None = None, decided_at: datetime | None = None
    ) -> ThreatReport:
        """The report. `decision` follows from the detections: ALARM where one is a threat, CLEAR where none
        is, UNKNOWN where it was aborted. `decided_at` is when it was made (now). Raises CannotReport.
        """
        end = _zoned(decided_at)
        objects = [_Object(number, tuple(found)) for number, found in sorted(self._detections.items())]
        alarms = sum(one.detections[0][0].flag in ALARMING for one in objects)
        decided = self._decision(alarms) if decision is None else word(Decision, decision, "the decision")
        if decided == Decision.ALARM and not objects:
            raise CannotReport("an ALARM needs an object")
        instance_uid = made_uid(self._seed, "instance")
        elements = [
            *self._copied(),
            *self._identity(instance_uid, end),
            *self._decided(decided, end),
            Element(0x40101011, "SQ", [self._threat(one, end) for one in objects]),
            Element(0x40101033, "US", [len(objects)]),
            Element(0x40101034, "US", [alarms]),
        ]
        try:
            dataset = encoded_dataset(elements)
        except ValueError as error:
            raise CannotReport(str(error)) from error
        study = uid(self._images[0].header, 0x0020000D)
        return ThreatReport(instance_uid, study, decided, len(objects), alarms, self._version, dataset)

    @property
    def _next_number(self) -> int:
        return max(self._detections, default=0) + 1

    def _decision(self, alarms: int) -> Decision:
        if self._abort_reason:
            return Decision.UNKNOWN
        return Decision.ALARM if alarms else Decision.CLEAR

    def _images_of(self, detection: Detection) -> tuple[Image, ...]:
        if detection.image is None:
            return self._images
        if not 0 <= detection.image < len(self._images):
            raise CannotReport(
                f"there is no image {detection.image}: the last one is {len(self._images) - 1}"
            )
        return (self._images[detection.image],)

    def _copied(self) -> Iterator[Element]:
        """What the report has of its first image, in the report's own character set."""
        header = self._images[0].header
        for tag, vr in _COPIED:
            yield Element(tag, vr, uid(header, tag) if vr == "UI" else text(header, tag))
        for tag, vr in _COPIED_WHERE_SAID:
            if found := text(header, tag):
                yield Element(tag, vr, found)

    def _identity(self, instance_uid: str, end: datetime) -> Iterator[Element]:
        first = self._images[0]
        for tag in (0x00080012, 0x00080021, 0x00080023):
            yield Element(tag, "DA", f"{end:%Y%m%d}")
            yield Element(tag + (1 if tag == 0x00080012 else 0x10), "TM", f"{end:%H%M%S.%f}")
        yield Element(0x00080016, "UI", TDR_STORAGE)
        yield Element(0x00080018, "UI", instance_uid)
        yield Element(0x00080060, "CS", "TDR")
        yield Element(0x4010103A, "CS", self._version)
        yield Element(0x00081110, "SQ", [_reference(one) for one in self._images])
        yield Element(0x0020000E, "UI", made_uid(self._seed, "series"))
        yield Element(0x00200013, "IS", "1")
        # A report needs one also where its image, a DX, has none.
        frame_of_reference = first.frame_of_reference_uid or made_uid(
            first.sop_instance_uid, "frame of reference"
        )
        yield Element(0x00200052, "UI", frame_of_reference)
        yield Element(0x00201040, "LO", "")

    def _decided(self, decision: str, end: datetime) -> Iterator[Element]:
        yield Element(0x40101024, "CS", "ABORT" if self._abort_reason else "SUCCESS")
        if self._abort_reason:
            yield Element(0x40101021, "CS", self._abort_reason)
        yield Element(0x40101027, "CS", self._type)
        if self._algorithm:
            yield Element(0x40101029, "LO", "\\".join(self._algorithm))
        if self._operator is not None:
            yield Element(0x00081072, "SQ", [_operator(self._operator)])
        yield Element(0x4010102B, "DT", _date_time(end))
        yield Element(0x40101031, "CS", decision)
        yield Element(0x40101069, "FL", [_milliseconds(self._started_at, end)])
        yield Element(0x4010106D, "CS", "NO")
        yield Element(0x40101075, "FD", [1.0])

    def _threat(self, one: _Object, end: datetime) -> list[Element]:
        detection = one.detections[0][0]
        elements = [
            Element(0x40101010, "US", [one.number]),
            Element(0x40101037, "SQ", [self._representation(*found) for found in one.detections]),
            Element(0x40101038, "SQ", [_assessment(detection)]),
        ]
        if self._version == "V03":
            elements += [
                Element(0x40101080, "DT", _date_time(self._started_at)),
                Element(0x40101081, "DT", _date_time(end)),
                Element(0x40101082, "FL", [_milliseconds(self._started_at, end)]),
            ]
        else:
            # Where it is said of the object itself, and not of where it was seen.
            elements += _measured(detection)
        return elements

    def _representation(
        self, detection: Detection, images: tuple[Image, ...], place: Place | None
    ) -> list[Element]:
        elements = [Element(0x0008114A, "SQ", [_reference(one) for one in images])]
        if place is not None:
            region = [
                Element(0x40101004, "FL", place.box.base),
                Element(0x40101005, "FL", place.box.extents),
                Element(0x40101006, "OB", place.bitmap),
            ]
            elements.append(Element(0x40101001, "SQ", [region]))
            if place.polygon:
                elements.append(Element(0x4010101D, "FL", [at for one in place.polygon for at in one]))
        if self._version == "V03":
            elements += _measured(detection)
        if detection.location:
            elements.append(Element(0x40101078, "ST", detection.location))
        if detection.anomaly_locators:
            locators = [[Element(0x4010107A, "FL", tuple(one))] for one in detection.anomaly_locators]
            elements.append(Element(0x40101079, "SQ", locators))
        return elements


def _opened(images: Image | Source | Iterable[Image | Source]) -> tuple[Image, ...]:
    """Views of all of them. Raises CannotReport where one is no image of DICOS."""
    given = [images] if isinstance(images, str | PathLike | HasPath) else [*images]
    views = [one if isinstance(one, Image) else open_instance(one) for one in given]
    if not views:
        raise CannotReport("a report is about an image")
    found = tuple(one for one in views if isinstance(one, Image))
    if len(found) < len(views):
        raise CannotReport("a report is about a CT, DX or AIT of DICOS")
    return found


def _extent(images: Sequence[Image]) -> Extent:
    """The size that these images have. Raises CannotReport where they differ."""
    extents = {_extent_of(one) for one in images}
    if len(extents) > 1:
        raise CannotReport("the images differ in size: say in which of them it is")
    return extents.pop()


def _extent_of(image: Image) -> Extent:
    if isinstance(image, DXView):
        shape = image.shape
        # Of several frames, or of several samples, the numbers before or behind rows and columns.
        rows, columns = shape[:2] if len(shape) == 2 or shape[-1] == 3 else shape[1:3]
        return Extent(columns, rows, 1 if len(shape) == 2 or shape[-1] == 3 else shape[0])
    try:
        slices, rows, columns = image.shape[:3]
    except CannotView:
        # Sections that make up no volume: each has voxels of its own.
        shapes = [one.shape for one in image.sections]
        slices, rows, columns = (max(shape[axis] for shape in shapes) for axis in range(3))
    return Extent(columns, rows, slices)


def _reference(image: Image) -> list[Element]:
    return [Element(0x00081150, "UI", image.sop_class_uid), Element(0x00081155, "UI", image.sop_instance_uid)]


def _measured(detection: Detection) -> list[Element]:
    mass, density = (
        _NOT_KNOWN if value is None else value for value in (detection.mass_grams, detection.density)
    )
    return [Element(0x40101017, "FL", [mass]), Element(0x40101018, "FL", [density])]


def _assessment(detection: Detection) -> list[Element]:
    probability = _NOT_KNOWN if detection.probability is None else detection.probability
    elements = [
        Element(0x40101012, "CS", str(detection.category)),
        Element(0x40101014, "CS", str(detection.ability)),
        Element(0x40101015, "CS", str(detection.flag)),
        Element(0x40101016, "FL", [probability]),
    ]
    if detection.description:
        elements.append(Element(0x40101013, "LT", detection.description))
    return elements


def _operator(operator: OperatorIdentity) -> list[Element]:
    person = [
        Element(0x00080100, "SH", operator.operator_id),
        Element(0x00080102, "SH", operator.issuer),
        Element(0x00080104, "LO", operator.name),
    ]
    kind_of_id = [
        Element(0x00080100, "SH", "100001"),
        Element(0x00080102, "SH", "DCS"),
        Element(0x00080104, "LO", "TEXT"),
        Element(0x00080105, "CS", "DCMR"),
        Element(0x00080106, "DT", "20110101000000.000000"),
        Element(0x0008010F, "CS", "DCS4"),
    ]
    return [
        Element(0x00080080, "LO", operator.institution),
        Element(0x00401101, "SQ", [person, kind_of_id]),
    ]


def _zoned(at: datetime | None) -> datetime:
    """With a zone: what has none is this machine's time."""
    return datetime.now(UTC) if at is None else at.astimezone()


def _date_time(at: datetime) -> str:
    return f"{at:%Y%m%d%H%M%S.%f%z}"


def _milliseconds(start: datetime, end: datetime) -> float:
    return max(0.0, (end - start).total_seconds() * 1000)
