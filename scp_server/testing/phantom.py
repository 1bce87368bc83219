"""Pixels that show something: a body with a few inserts as CT slices, and a bag with a threat in it.

All are 16 bits, little endian, row by row and frame by frame. Made anew at each call, always the same.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ellipsoid:
    """One thing: its centre, its half axes, and the value inside."""

    centre: tuple[float, float, float]
    half_axes: tuple[float, float, float]
    value: int

    def contains(self, point: Sequence[float]) -> bool:
        """Whether a point lies inside."""
        axes = zip(point, self.centre, self.half_axes, strict=True)
        return sum(((at - middle) / half) ** 2 for at, middle, half in axes) <= 1.0


@dataclass(frozen=True, slots=True)
class Box:
    """One thing with edges along the axes: its lowest and highest corners, and the value inside."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    value: int

    def contains(self, point: Sequence[float]) -> bool:
        """Whether a point lies inside."""
        return all(low <= at <= high for low, at, high in zip(self.low, point, self.high, strict=True))


Thing = Ellipsoid | Box

BODY: tuple[Thing, ...] = (
    Ellipsoid((0, 0, 0), (0.9, 0.7, 3), 1_040),
    Ellipsoid((-0.42, -0.05, 0), (0.3, 0.45, 0.9), 250),
    Ellipsoid((0.42, -0.05, 0), (0.3, 0.45, 0.9), 250),
    Ellipsoid((0.1, -0.1, 0.1), (0.2, 0.24, 0.6), 1_120),
    Ellipsoid((0, 0.48, 0), (0.12, 0.12, 3), 1_800),
    Ellipsoid((0.45, -0.2, 0.3), (0.07, 0.07, 0.25), 1_090),
)
"""A chest, more or less, in Hounsfield units and 1024. What comes later lies over what came before."""

LUGGAGE: tuple[Thing, ...] = (
    Box((-0.95, -0.75, -0.95), (0.95, 0.75, 0.95), 500),
    Box((-0.9, -0.7, -0.9), (0.9, 0.7, 0.9), 150),
    Ellipsoid((-0.5, 0.2, 0), (0.22, 0.35, 0.6), 1_000),
    Box((0.05, 0.35, -0.7), (0.8, 0.6, 0.5), 700),
    Box((0.2, -0.5, -0.5), (0.75, -0.25, 0.5), 1_650),
    Box((-0.7, -0.6, -0.1), (0.0, -0.5, 0.1), 3_900),
)
"""A suitcase with a bottle, a book, a sheet of something and a blade."""


def slices(things: Sequence[Thing], frames: int, rows: int, columns: int) -> list[bytes]:
    """The things cut into frames from z = -1 to 1, each as pixels."""
    return [
        _pixels(_value_at(things, (x, y, z)) for y in _centres(rows) for x in _centres(columns))
        for z in _centres(frames)
    ]


def projection(things: Sequence[Thing], rows: int, columns: int, steps: int = 12) -> bytes:
    """The things as a detector behind them sees them: the more in the way of a ray, the brighter."""
    return _pixels(
        sum(_value_at(things, (x, y, z)) for z in _centres(steps)) // steps
        for y in _centres(rows)
        for x in _centres(columns)
    )


def _value_at(things: Sequence[Thing], point: tuple[float, float, float]) -> int:
    for thing in reversed(things):
        if thing.contains(point):
            return thing.value
    return 0


def _centres(count: int) -> list[float]:
    return [(2 * number + 1) / count - 1 for number in range(count)]


def _pixels(values: Iterable[int]) -> bytes:
    return b"".join(value.to_bytes(2, "little") for value in array("H", values))
