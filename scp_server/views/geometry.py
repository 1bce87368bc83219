"""Where voxels lie: frames along a line make a stack, and a stack has a matrix from voxels to mm.

Numbers are floats and points x, y, z throughout; nothing here needs numpy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from scp_server.errors import CannotView
from scp_server.views.arrays import numpy
from scp_server.views.fields import Point

if TYPE_CHECKING:
    from numpy.typing import NDArray

X_AXIS: Point = (1.0, 0.0, 0.0)
Y_AXIS: Point = (0.0, 1.0, 0.0)
_BREAK: Final = 0.5
"""A step that differs from the usual one by more than this part of it begins another stack."""
_TOLERANCE: Final = 0.01
"""How far, as a part of a step, a plane of an assembled volume may be from where it should be."""

Row4 = tuple[float, float, float, float]


class CoordinateSystem(StrEnum):
    """Which hand the axes are like, (0008,2108)."""

    LHS = "LHS"
    RHS = "RHS"


@dataclass(frozen=True, slots=True)
class Affine:
    """A matrix of four rows from (column, row, slice, 1) to (x, y, z, 1) in mm; voxel (0, 0, 0) is the centre
    of the first voxel. `numpy.asarray` makes an array of it."""

    rows: tuple[Row4, Row4, Row4, Row4]

    @classmethod
    def of(cls, origin: Point, column_step: Point, row_step: Point, slice_step: Point) -> Affine:
        """Where the first voxel lies, and what one column, row and slice further is. All in mm."""
        x, y, z = ((column_step[axis], row_step[axis], slice_step[axis], origin[axis]) for axis in range(3))
        return cls((x, y, z, (0.0, 0.0, 0.0, 1.0)))

    def __call__(self, voxel: Sequence[float]) -> Point:
        """A point in voxels (column, row, slice; fractions are fine) as a point in mm."""
        column, row, slice_ = voxel
        x, y, z = (a * column + b * row + c * slice_ + d for a, b, c, d in self.rows[:3])
        return x, y, z

    def mirrored(self, axis: int = 0) -> Affine:
        """The same places in a system of the other hand: one axis, 0 for x, points the other way."""
        x, y, z, last = (
            (-row[0], -row[1], -row[2], -row[3]) if number == axis else row
            for number, row in enumerate(self.rows)
        )
        return Affine((x, y, z, last))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array: NDArray[Any] = numpy().array(self.rows, dtype or float)
        return array


@dataclass(frozen=True, slots=True)
class Planes:
    """Planes of one size and orientation, one behind the other. Lengths in mm.

    `position` is the centre of the first voxel of the first plane. `row_spacing` lies between rows, and
    `column_spacing` between columns. `slice_step` leads from one plane to the next.
    """

    position: Point
    row_direction: Point = X_AXIS
    """Along a row, to the next column."""
    column_direction: Point = Y_AXIS
    """Along a column, to the next row."""
    row_spacing: float = 1.0
    column_spacing: float = 1.0
    slice_step: Point = (0.0, 0.0, 1.0)

    @property
    def spacing(self) -> Point:
        """mm from voxel to voxel: between columns, rows, slices (x, y, z of an unturned volume)."""
        return self.column_spacing, self.row_spacing, math.hypot(*self.slice_step)

    @property
    def affine(self) -> Affine:
        """From voxels (column, row, slice) to mm, in the object's own coordinate system."""
        return Affine.of(
            self.position,
            scaled(self.row_direction, self.column_spacing),
            scaled(self.column_direction, self.row_spacing),
            self.slice_step,
        )


def scaled(vector: Point, factor: float) -> Point:
    return vector[0] * factor, vector[1] * factor, vector[2] * factor


def difference(end: Point, start: Point) -> Point:
    return end[0] - start[0], end[1] - start[1], end[2] - start[2]


def dot(one: Point, other: Point) -> float:
    return one[0] * other[0] + one[1] * other[1] + one[2] * other[2]


def normal(row_direction: Point, column_direction: Point) -> Point:
    """The third axis of the coordinate system that the two directions begin, of whichever hand that is."""
    (a, b, c), (d, e, f) = row_direction, column_direction
    return b * f - c * e, c * d - a * f, a * e - b * d


def stacks(positions: Sequence[Point]) -> list[range]:
    """The frames cut where they do not go on: the DICOS toolkit writes sections of one size into one file."""
    steps = [difference(end, start) for start, end in pairwise(positions)]
    if not steps:
        return [range(len(positions))]
    usual, _ = Counter(tuple(round(value, 3) for value in step) for step in steps).most_common(1)[0]
    length = math.hypot(*usual)
    if not length:
        return [range(len(positions))]
    breaks = [
        number + 1
        for number, step in enumerate(steps)
        if math.dist(step, usual) > _BREAK * length  # jitter is none
    ]
    edges = [0, *breaks, len(positions)]
    return [range(start, end) for start, end in pairwise(edges)]


def in_order(parts: Sequence[tuple[Planes, int]]) -> list[int]:
    """In which order parts, each so many planes, make up one evenly spaced stack along their slice direction.

    Raises CannotView, saying why, where they make up none.
    """
    first = parts[0][0]
    for planes, _ in parts:
        same = (planes.row_direction, planes.column_direction, planes.row_spacing, planes.column_spacing)
        if same != (first.row_direction, first.column_direction, first.row_spacing, first.column_spacing):
            raise CannotView("they differ in orientation or spacing")
    direction = first.slice_step
    order = sorted(range(len(parts)), key=lambda part: dot(parts[part][0].position, direction))
    places = [_plane_position(parts[part][0], number) for part in order for number in range(parts[part][1])]
    step = scaled(difference(places[-1], places[0]), 1 / (len(places) - 1))
    for number, place in enumerate(places):
        expected = difference(places[0], scaled(step, -number))
        if math.dist(place, expected) > _TOLERANCE * math.hypot(*step):
            raise CannotView("their planes are not evenly spaced along one line")
    if not math.hypot(*step):
        raise CannotView("their planes lie in the same place")
    return order


def _plane_position(planes: Planes, number: int) -> Point:
    return difference(planes.position, scaled(planes.slice_step, -number))
