"""What is said of each frame: in its functional groups, in the shared ones, or in the object itself."""

from __future__ import annotations

from functools import cached_property
from typing import Final

from scp_server.objects.raw_header import AttributeSource, RawItem
from scp_server.views.fields import Point, number, numbers, point, text
from scp_server.views.geometry import X_AXIS, Y_AXIS, Planes, difference, normal, scaled

_SHARED, _PER_FRAME = 0x52009229, 0x52009230
_PLANE_POSITION, _PLANE_ORIENTATION = 0x00209113, 0x00209116
_PIXEL_MEASURES, _PIXEL_VALUE_TRANSFORMATION = 0x00289110, 0x00289145
_POSITION, _ORIENTATION = 0x00200032, 0x00200037
_PIXEL_SPACING, _SLICE_THICKNESS, _SLICE_SPACING = 0x00280030, 0x00180050, 0x00180088
_INTERCEPT, _SLOPE, _RESCALE_TYPE = 0x00281052, 0x00281053, 0x00281054
_NEAR: Final = 1e-9


class FunctionalGroups:
    """The functional groups of an object of several frames (PS3.3 C.7.6.16)."""

    def __init__(self, header: AttributeSource) -> None:
        self._header = header

    @cached_property
    def _shared(self) -> RawItem | None:
        return next(self._header.items(_SHARED), None)

    @cached_property
    def _per_frame(self) -> list[RawItem]:
        return self._header.sequence(_PER_FRAME)

    @cached_property
    def positions(self) -> list[Point]:
        """Where each frame lies, in mm; none where that is not said of every frame."""
        found = []
        for item in self._per_frame:
            macro = next(item.items(_PLANE_POSITION), None)
            place = point(macro, _POSITION) if macro is not None else None
            if place is None:
                return []
            found.append(place)
        return found

    def group(self, macro: int, tag: int, frame: int = 0) -> AttributeSource:
        """Who says `tag` of a frame: its own item of `macro`, the shared one, or the object itself."""
        own = self._per_frame[frame] if frame < len(self._per_frame) else None
        for source in (own, self._shared):
            item = next(source.items(macro), None) if source is not None else None
            if item is not None and tag in item:
                return item
        return self._header

    def rescale(self, frame: int) -> tuple[float, float, str]:
        """Slope, intercept and type of the values; 1, 0 and nothing where they are not rescaled."""
        source = self.group(_PIXEL_VALUE_TRANSFORMATION, _SLOPE, frame)
        slope, intercept = number(source, _SLOPE), number(source, _INTERCEPT)
        return 1.0 if slope is None else slope, intercept or 0.0, text(source, _RESCALE_TYPE)

    def slice_thickness(self, frame: int) -> float | None:
        """In mm."""
        return number(self.group(_PIXEL_MEASURES, _SLICE_THICKNESS, frame), _SLICE_THICKNESS)

    def planes(self, frames: range) -> Planes:
        """The geometry of frames that follow each other.

        From one plane to the next it is as far as their positions say; where there is one frame, or no
        position, as the spacing between slices or their thickness, along the third axis.
        """
        first = frames.start
        turn = numbers(self.group(_PLANE_ORIENTATION, _ORIENTATION, first), _ORIENTATION)
        row, column = X_AXIS, Y_AXIS
        if len(turn) == 6:
            row, column = (turn[0], turn[1], turn[2]), (turn[3], turn[4], turn[5])
        measures = self.group(_PIXEL_MEASURES, _PIXEL_SPACING, first)
        spacing = numbers(measures, _PIXEL_SPACING)
        row_spacing, column_spacing = spacing if len(spacing) == 2 else (1.0, 1.0)
        positions = self.positions[first : frames.stop]
        step = (0.0, 0.0, 0.0)
        if len(positions) > 1:
            step = scaled(difference(positions[-1], positions[0]), 1 / (len(positions) - 1))
        if not any(abs(value) > _NEAR for value in step):
            thickness = number(measures, _SLICE_SPACING) or self.slice_thickness(first)
            step = scaled(normal(row, column), thickness or 1.0)
        origin = positions[0] if positions else self._origin(first)
        return Planes(origin, row, column, row_spacing, column_spacing, step)

    def _origin(self, frame: int) -> Point:
        return point(self.group(_PLANE_POSITION, _POSITION, frame), _POSITION) or (0.0, 0.0, 0.0)
