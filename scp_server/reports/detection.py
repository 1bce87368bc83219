"""What was found in an image: one detection, before it is an object of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from scp_server.errors import CannotReport
from scp_server.views.arrays import numpy
from scp_server.views.fields import Point
from scp_server.views.threats import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_LO_CHARACTERS: Final = 64
MAX_LT_CHARACTERS: Final = 10_240
MAX_ST_CHARACTERS: Final = 1_024
"""The longest texts of these VRs (PS3.5 6.2)."""
_AXES: Final = ("column", "row", "slice")


class Category(StrEnum):
    """What a potential threat object is taken for (4010,1012)."""

    EXPLOSIVE = "EXPLOSIVE"
    PROHIBITED_ITEM = "PI"
    CONTRABAND = "CONTRABAND"
    ANOMALY = "ANOMALY"
    LAPTOP = "LAPTOP"
    PHARMACEUTICAL = "PHARMACEUTICAL"
    OTHER = "OTHER"


class Flag(StrEnum):
    """How serious it is (4010,1015). The first two are a reason for an alarm."""

    HIGH_THREAT = "HIGH_THREAT"
    THREAT = "THREAT"
    NO_THREAT = "NO_THREAT"
    UNKNOWN = "UNKNOWN"


ALARMING: Final = frozenset({Flag.HIGH_THREAT, Flag.THREAT})


class Ability(StrEnum):
    """Whether something kept the algorithm from seeing it (4010,1014)."""

    NO_INTERFERENCE = "NO_INTERFERENCE"
    SHIELD = "SHIELD"


class Extent(NamedTuple):
    """The size of an image in voxels."""

    columns: int
    rows: int
    slices: int

    def __str__(self) -> str:
        return f"{self.columns} x {self.rows} x {self.slices} voxels"


@dataclass(frozen=True, slots=True)
class Detection:
    """One thing that was found. Places are in voxels of the image: column, row, slice, from 0 on.

    It needs a `box`, a `mask` or a `polygon`; what is left out of these three follows from the others, but
    for a polygon, which nobody has to have.
    """

    box: Box | tuple[Point, Point] | None = None
    """The first voxel, and how many there are: `((12, 8, 3), (5, 5, 2))`."""
    mask: NDArray[Any] | None = field(default=None, repr=False, compare=False)
    """Which voxels belong to it, as slices, rows, columns: of the box, or without one of the whole image."""
    polygon: Sequence[Point] = ()
    """Points around it; two are the corners of a box."""
    category: Category | str = Category.ANOMALY
    flag: Flag | str = Flag.THREAT
    ability: Ability | str = Ability.NO_INTERFERENCE
    probability: float | None = None
    """From 0 to 1."""
    description: str = ""
    mass_grams: float | None = None
    density: float | None = None
    """In the unit that sender and receiver have agreed on: g/cm3, as a rule."""
    location: str = ""
    """Where it is, in words."""
    anomaly_locators: Sequence[Sequence[float]] = ()
    """Where the object of inspection is a person: the numbers of each indicator."""
    image: int | None = None
    """Which of the images, from 0 on; None is all of them, which must have one size then."""
    number: int | None = None
    """The id of the object. Detections of one number are one object, seen in several images; None gives it
    the next one."""


class Place(NamedTuple):
    """Where a detection is, checked. `bitmap` is as a TDR has it: column by column, first bit lowest."""

    box: Box
    bitmap: bytes
    polygon: tuple[Point, ...]


def word(kind: type[StrEnum], value: str, what: str) -> str:
    """One of the words of a list. Raises CannotReport."""
    try:
        return kind(value).value
    except ValueError:
        raise CannotReport(f"{what} {value!r} is none of {', '.join(kind)}") from None


def check_numbers(detection: Detection) -> None:
    """Raises CannotReport for a probability, mass or density that there cannot be."""
    probability = detection.probability
    if probability is not None and not 0 <= probability <= 1:
        raise CannotReport(f"the probability {probability} is not from 0 to 1")
    for name, value in (("mass", detection.mass_grams), ("density", detection.density)):
        if value is not None and not 0 <= value < math.inf:
            raise CannotReport(f"the {name} {value} is no {name}")


def check_text(text: str, max_characters: int, what: str) -> None:
    """Raises CannotReport for a text that its VR cannot have."""
    if len(text) > max_characters:
        raise CannotReport(f"{what} has {len(text)} characters, and {max_characters} at most may be")


def place_of(detection: Detection, extent: Extent) -> Place | None:
    """Where a detection is in an image of this size; None where it does not say. Raises CannotReport."""
    polygon = tuple(_point(one) for one in detection.polygon)
    if len(polygon) == 1:
        raise CannotReport("a polygon has two points at least")
    box = None if detection.box is None else _box(detection.box)
    bitmap = b""
    if detection.mask is not None:
        box, bitmap = _masked(detection.mask, box, extent)
    if box is None and polygon:
        box = _around(polygon)
    if box is None:
        return None
    for axis, low, length, size in zip(_AXES, box.base, box.extents, extent, strict=True):
        if not (low >= 0 and length > 0 and low + length <= size):
            raise CannotReport(f"the box {box.base} + {box.extents} has a {axis} outside of {extent}")
    for one in polygon:
        if not all(0 <= at <= size for at, size in zip(one, extent, strict=True)):
            raise CannotReport(f"the point {one} of the polygon is outside of {extent}")
    return Place(box, bitmap, polygon)


def _masked(mask: NDArray[Any], box: Box | None, extent: Extent) -> tuple[Box, bytes]:
    """The box of a mask and the bits within. Raises CannotReport."""
    module = numpy()
    array = module.asarray(mask)
    whole = extent.slices, extent.rows, extent.columns
    if array.dtype != bool:
        raise CannotReport(f"a mask is an array of bool, not of {array.dtype}")
    if array.ndim == 2:
        array = array[None]
    if box is None:
        if array.shape != whole:
            raise CannotReport(f"a mask without a box has the shape of the image {whole}, not {array.shape}")
        box = _mask_box(array)
        array = array[_slices(box)]
    expected = tuple(int(length) for length in reversed(box.extents))
    if array.shape != expected or box.extents != tuple(float(one) for one in reversed(expected)):
        raise CannotReport(f"the mask has the shape {array.shape}, and its box {expected}")
    return box, module.packbits(array.reshape(-1), bitorder="little").tobytes()


def _mask_box(mask: NDArray[Any]) -> Box:
    places = mask.nonzero()
    if not places[0].size:
        raise CannotReport("the mask has no voxel")
    low = [int(axis.min()) for axis in reversed(places)]
    high = [int(axis.max()) for axis in reversed(places)]
    return _box((tuple(low), tuple(end - start + 1 for start, end in zip(low, high, strict=True))))


def _slices(box: Box) -> tuple[slice, ...]:
    pairs = zip(reversed(box.base), reversed(box.extents), strict=True)
    return tuple(slice(int(base), int(base + length)) for base, length in pairs)


def _around(polygon: Sequence[Point]) -> Box:
    """The voxels that a polygon reaches into, one at least along each axis."""
    axes = list(zip(*polygon, strict=True))
    low = [math.floor(min(axis)) for axis in axes]
    high = [max(math.ceil(max(axis)), start + 1) for axis, start in zip(axes, low, strict=True)]
    return _box((tuple(low), tuple(end - start for start, end in zip(low, high, strict=True))))


def _box(given: Box | Sequence[Sequence[float]]) -> Box:
    base, extents = (given.base, given.extents) if isinstance(given, Box) else given
    return Box(_point(base), _point(extents))


def _point(values: Sequence[float]) -> Point:
    if len(values) != 3 or not all(math.isfinite(one) for one in values):
        raise CannotReport(f"a place has a column, a row and a slice, not {tuple(values)!r}")
    return float(values[0]), float(values[1]), float(values[2])
