"""TDR: what somebody, or some algorithm, found in the images of a scan."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from scp_server.errors import CannotView
from scp_server.objects.raw_header import RawItem
from scp_server.objects.vr import tag_text
from scp_server.views.arrays import numpy
from scp_server.views.fields import (
    Code,
    Point,
    Reference,
    codes,
    integer,
    number,
    numbers,
    point,
    points,
    references,
    text,
)
from scp_server.views.instance import InstanceView

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scp_server.views.geometry import Affine
    from scp_server.views.stored_file import StoredFile

_BITMAP: Final = 0x40101006
_HALF: Final = 0.5


@dataclass(frozen=True, slots=True)
class Box:
    """A box of voxels: `base` is the first voxel (column, row, slice), `extents` how many there are."""

    base: Point
    extents: Point

    def corners_in_mm(self, affine: Affine) -> tuple[Point, ...]:
        """The eight outer corners, half a voxel around the centres: the first lowest, the last highest."""
        low = [value - _HALF for value in self.base]
        high = [value + extent - _HALF for value, extent in zip(self.base, self.extents, strict=True)]
        return tuple(
            affine((column, row, slice_))
            for slice_ in (low[2], high[2])
            for row in (low[1], high[1])
            for column in (low[0], high[0])
        )


@dataclass(frozen=True, slots=True)
class Region:
    """A region of interest: a box, and perhaps which of its voxels belong to it."""

    box: Box
    has_mask: bool
    _item: RawItem = field(repr=False, compare=False)
    _file: StoredFile = field(repr=False, compare=False)

    def mask(self) -> NDArray[Any] | None:
        """Which voxels of the box belong to the region: slices, rows, columns of bool; None where it has no
        bitmap. Raises CannotView where the bitmap is not as long as the box is large."""
        found = self._bitmap()
        if found is None:
            return None
        bitmap, (columns, rows, slices) = found
        module = numpy()
        bits = columns * rows * slices
        flat = module.unpackbits(module.frombuffer(bitmap, "u1"), count=bits, bitorder="little")
        mask: NDArray[Any] = flat.reshape(slices, rows, columns).astype(bool)
        return mask

    def mask_voxels(self) -> int | None:
        """How many voxels the mask has; needs no numpy. Raises CannotView as `mask` does."""
        found = self._bitmap()
        if found is None:
            return None
        bitmap, extents = found
        return (int.from_bytes(bitmap, "little") & ((1 << math.prod(extents)) - 1)).bit_count()

    def _bitmap(self) -> tuple[bytes, tuple[int, int, int]] | None:
        """The bitmap with its columns, rows and slices."""
        if not self.has_mask:
            return None
        bitmap = self._file.value(self._item, _BITMAP)
        extents = self.box.extents
        columns, rows, slices = (round(extent) if math.isfinite(extent) else 0 for extent in extents)
        bits = columns * rows * slices
        whole = (bits + 7) // 8
        if min(columns, rows, slices) < 1 or len(bitmap) not in (whole, whole + whole % 2):
            raise self._file.error(
                f"the bitmap {tag_text(_BITMAP)} has {len(bitmap)} bytes, and "
                f"{columns} x {rows} x {slices} voxels have {whole}"
            )
        return bitmap, (columns, rows, slices)


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a potential threat object is taken for."""

    category: str
    description: str
    ability: str
    flag: str
    """`HIGH_THREAT`, `THREAT`, `NO_THREAT` or `UNKNOWN`."""
    probability: float | None
    """From 0 to 1; None where none was given (absent, or negative)."""


@dataclass(frozen=True, slots=True)
class Representation:
    """Where a potential threat object is in the images it refers to, and what was measured there."""

    references: tuple[Reference, ...]
    regions: tuple[Region, ...]
    polygon: tuple[Point, ...]
    """Points in voxels (column, row, slice); two are the corners of a box."""
    mass_grams: float | None
    density: float | None
    """As it is stored, but None where it is negative, as is the mass: it was not known."""
    effective_atomic_number: float | None
    centre_of_mass: Point | None
    centre: Point | None
    volume: float | None
    """As it is stored."""
    location: str
    """Where it is, in words."""
    anomaly_locators: tuple[tuple[float, ...], ...]
    """Of persons: the numbers of each indicator."""

    def polygon_in_mm(self, affine: Affine) -> tuple[Point, ...]:
        """The points in mm, by the matrix of the image that it refers to."""
        return tuple(affine(one) for one in self.polygon)


@dataclass(frozen=True, slots=True)
class ThreatObject:
    """One potential threat object (PTO)."""

    number: int | None
    """Its id within the report."""
    representations: tuple[Representation, ...]
    assessments: tuple[Assessment, ...]
    analysis_start: str
    analysis_end: str
    analysis_milliseconds: float | None
    merged_from: tuple[Reference, ...]
    """The reports whose objects an AGGREGATE's object was made of."""

    @property
    def regions(self) -> Iterator[Region]:
        """The regions of all representations."""
        return (region for one in self.representations for region in one.regions)


@dataclass(frozen=True, slots=True)
class Algorithm:
    """Who decided, of a MACHINE's report."""

    manufacturer: str
    version: str
    parameters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Operator:
    """Who decided, of an OPERATOR's report."""

    identification: tuple[Code, ...]
    """The operator's id and name, and what kind of id that is."""
    institution: str


class TDRView(InstanceView):
    """A threat detection report. Dates and times are the object's own text."""

    @property
    def report_type(self) -> str:
        """`MACHINE`, `OPERATOR`, `GROUND TRUTH`, `AGGREGATE`, `MOD_AGGREGATE` or `UNDEFINED`."""
        return text(self.header, 0x40101027)

    @property
    def decision(self) -> str:
        """`ALARM`, `CLEAR` or `UNKNOWN`."""
        return text(self.header, 0x40101031)

    @property
    def decision_time(self) -> str:
        return text(self.header, 0x4010102B)

    @property
    def processing_milliseconds(self) -> float | None:
        return number(self.header, 0x40101069)

    @property
    def is_aborted(self) -> bool:
        return text(self.header, 0x40101024) == "ABORT"

    @property
    def abort_reason(self) -> str:
        """Empty unless it was aborted."""
        return text(self.header, 0x40101021)

    @cached_property
    def algorithm(self) -> Algorithm | None:
        """None where none is named: a person decided."""
        found = [one.strip() for one in text(self.header, 0x40101029).split("\\")]
        if not any(found):
            return None
        return Algorithm(found[0], found[1] if len(found) > 1 else "", tuple(found[2:]))

    @cached_property
    def operators(self) -> tuple[Operator, ...]:
        """The operators that are named."""
        return tuple(
            Operator(codes(item, 0x00401101), text(item, 0x00080080))
            for item in self.header.items(0x00081072)
        )

    @property
    def total_objects(self) -> int | None:
        """How many objects the report says that it has."""
        return integer(self.header, 0x40101033)

    @property
    def alarm_objects(self) -> int | None:
        """How many of them are a reason for an alarm."""
        return integer(self.header, 0x40101034)

    @property
    def image_scale(self) -> float | None:
        """(4010,1075) as it is stored; boxes and polygons are given without it."""
        return number(self.header, 0x40101075)

    @cached_property
    def references(self) -> tuple[Reference, ...]:
        """The images it is about: those of its objects, and those named for the report itself.

        The DICOS toolkit names them in the sequence of referenced scans (0008,1110).
        """
        found = [one for threat in self.threats for part in threat.representations for one in part.references]
        for tag in (0x00081110, 0x0008114A):
            found += references(self.header, tag)
        return tuple(dict.fromkeys(found))

    @cached_property
    def reports(self) -> tuple[Reference, ...]:
        """The reports an AGGREGATE was made of (4010,1077)."""
        return references(self.header, 0x40101077)

    @cached_property
    def threats(self) -> tuple[ThreatObject, ...]:
        """The potential threat objects, in order. Raises CannotView where a box makes no sense."""
        return tuple(self._threat(item) for item in self.header.items(0x40101011))

    def threat(self, wanted: int) -> ThreatObject:
        """The object of this id. Raises CannotView where there is none."""
        for one in self.threats:
            if one.number == wanted:
                return one
        raise self.file.error(f"the report has no threat object {wanted}")

    def _threat(self, item: RawItem) -> ThreatObject:
        return ThreatObject(
            integer(item, 0x40101010),
            tuple(self._representation(one, item) for one in item.items(0x40101037)),
            tuple(_assessment(one) for one in item.items(0x40101038)),
            text(item, 0x40101080),
            text(item, 0x40101081),
            number(item, 0x40101082),
            references(item, 0x40101076),
        )

    def _representation(self, item: RawItem, threat: RawItem) -> Representation:
        # V02 says mass and density of the object itself.
        mass, density = (
            _not_negative(item if tag in item else threat, tag) for tag in (0x40101017, 0x40101018)
        )
        return Representation(
            references=references(item, 0x0008114A),
            regions=tuple(self._region(one) for one in item.items(0x40101001)),
            polygon=points(numbers(item, 0x4010101D)),
            mass_grams=mass,
            density=density,
            effective_atomic_number=number(item, 0x40101019),
            centre_of_mass=point(item, 0x4010101B),
            centre=point(item, 0x4010101C),
            volume=number(item, 0x40101023),
            location=text(item, 0x40101078),
            anomaly_locators=tuple(numbers(one, 0x4010107A) for one in item.items(0x40101079)),
        )

    def _region(self, item: RawItem) -> Region:
        base, extents = point(item, 0x40101004), point(item, 0x40101005)
        if base is None or extents is None:
            raise self._no_box(item)
        bitmap = item.get(_BITMAP)
        return Region(Box(base, extents), bitmap is not None and bitmap.length_bytes > 0, item, self.file)

    def _no_box(self, item: RawItem) -> CannotView:
        missing = 0x40101004 if point(item, 0x40101004) is None else 0x40101005
        return self.file.error(f"a region of interest has no three numbers in {tag_text(missing)}")


def _assessment(item: RawItem) -> Assessment:
    return Assessment(
        text(item, 0x40101012),
        text(item, 0x40101013),
        text(item, 0x40101014),
        text(item, 0x40101015),
        _not_negative(item, 0x40101016),
    )


def _not_negative(item: RawItem, tag: int) -> float | None:
    found = number(item, tag)
    return None if found is None or found < 0 else found
