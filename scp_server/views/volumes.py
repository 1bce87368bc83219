"""Objects of several frames: CT, whose sections are volumes, and AIT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from scp_server.errors import CannotView
from scp_server.views.arrays import numpy
from scp_server.views.fields import Point, number, numbers, text
from scp_server.views.functional_groups import FunctionalGroups
from scp_server.views.geometry import Affine, CoordinateSystem, Planes, in_order, stacks
from scp_server.views.images import ImageView
from scp_server.views.pixels import FilePixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scp_server.views.stored_file import StoredFile


class Section:
    """Frames of one file that lie one behind the other: one volume."""

    def __init__(self, file: StoredFile, pixels: FilePixels, groups: FunctionalGroups, frames: range) -> None:
        self._file = file
        self._pixels = pixels
        self._groups = groups
        self.frames = frames
        """Which of the file's frames these are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Slices, rows, columns, and samples where there are several."""
        return (len(self.frames), *self._pixels.layout.frame_shape)

    @property
    def dtype(self) -> str:
        """The type of the voxels as they are stored, as numpy writes it: `<u2`."""
        return self._pixels.layout.dtype

    def volume(self, *, rescaled: bool = False) -> NDArray[Any]:
        """The voxels: slices, rows, columns.

        As stored: read-only over the mapped file where they are not compressed, else decoded. `rescaled` to
        what they mean (see `rescale_type`): float32, or float64 where they have 32 bits or more.
        """
        if not rescaled:
            return self._pixels.array(self.frames)
        array: NDArray[Any] = numpy().empty(self.shape, _real_type(self.dtype))
        for index, frame in enumerate(self.slices(rescaled=True)):
            array[index] = frame
        return array

    def slices(self, *, rescaled: bool = False) -> Iterator[NDArray[Any]]:
        """The slices one after another, so that memory holds one of them."""
        for index, frame in zip(self.frames, self._pixels.frames(self.frames), strict=True):
            yield _rescaled(frame, self._groups.rescale(index)) if rescaled else frame

    @property
    def rescale_slope(self) -> float:
        """Of the first frame; each frame may have its own, which `rescaled` pixels honour."""
        return self._groups.rescale(self.frames.start)[0]

    @property
    def rescale_intercept(self) -> float:
        return self._groups.rescale(self.frames.start)[1]

    @property
    def rescale_type(self) -> str:
        """The unit of rescaled voxels: `HU`, `MHU`."""
        return self._groups.rescale(self.frames.start)[2]

    @property
    def slice_thickness(self) -> float | None:
        """In mm; slices may overlap or leave gaps, so it is not how far they are apart."""
        return self._groups.slice_thickness(self.frames.start)

    @property
    def kvp(self) -> float | None:
        """In kV."""
        return number(self._groups.group(0x00189325, 0x00180060, self.frames.start), 0x00180060)

    @cached_property
    def planes(self) -> Planes:
        """Position, directions and distances, in mm."""
        return self._groups.planes(self.frames)

    @property
    def position(self) -> Point:
        """The centre of the first voxel, in mm."""
        return self.planes.position

    @property
    def spacing(self) -> Point:
        """From voxel to voxel in mm: between columns, rows, slices."""
        return self.planes.spacing

    @property
    def affine(self) -> Affine:
        """From voxels (column, row, slice) to mm, in the object's own coordinate system."""
        return self.planes.affine


class VolumeView(ImageView):
    """An object whose frames are volumes, in one file or in several parts under one SOP Instance UID."""

    def __init__(self, files: Sequence[StoredFile]) -> None:
        """Raises CannotView when the files are not parts of one instance."""
        super().__init__(files[0])
        self.files = tuple(files)
        for file in files[1:]:
            if file.header.raw(0x00080018) != self.header.raw(0x00080018):
                raise file.error(f"it is no part of the instance in {self.path}")

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """The sections: those of each file in order, the files as they were given (the DICOS toolkit numbers
        them by section)."""
        return tuple(chain.from_iterable(_sections_of(file) for file in self.files))

    @property
    def image_type(self) -> tuple[str, ...]:
        return tuple(text(self.header, 0x00080008).split("\\"))

    @property
    def photometric_interpretation(self) -> str:
        return text(self.header, 0x00280004)

    @property
    def shape(self) -> tuple[int, ...]:
        """What `volume` has: slices, rows, columns."""
        sections = self._ordered
        return (sum(one.shape[0] for one in sections), *sections[0].shape[1:])

    @property
    def affine(self) -> Affine:
        """From voxels of `volume` (column, row, slice) to mm, in the object's own coordinate system."""
        return self.planes.affine

    def affine_in(self, system: CoordinateSystem, *, mirrored_axis: int = 0) -> Affine:
        """The same in a coordinate system of this hand.

        Where that is not the object's, one axis is mirrored, 0 for x; which one is the user's convention,
        since DICOS does not say. Raises CannotView where the object does not say of which hand it is.
        """
        if self.coordinate_system is None:
            raise self.file.error("it does not say of which hand its coordinate system is")
        return self.affine if system is self.coordinate_system else self.affine.mirrored(mirrored_axis)

    @property
    def planes(self) -> Planes:
        """Position, directions and distances of `volume`, in mm."""
        ordered = self._ordered
        first, last = ordered[0], ordered[-1]
        if first is last:
            return first.planes
        slices = sum(len(one.frames) for one in ordered)
        end = last.affine((0, 0, len(last.frames) - 1))
        step = tuple((to - start) / (slices - 1) for start, to in zip(first.position, end, strict=True))
        planes = first.planes
        return Planes(
            planes.position,
            planes.row_direction,
            planes.column_direction,
            planes.row_spacing,
            planes.column_spacing,
            (step[0], step[1], step[2]),
        )

    def volume(self, *, rescaled: bool = False) -> NDArray[Any]:
        """All voxels as one array: slices, rows, columns. See `Section.volume`.

        Several sections are put together in the order of their places, into memory, where they make up one
        evenly spaced stack of one type; otherwise CannotView says why not, and `sections` has each of them.
        """
        sections = self._ordered
        if len(sections) == 1:
            return sections[0].volume(rescaled=rescaled)
        module = numpy()
        dtype = _real_type(sections[0].dtype) if rescaled else sections[0].dtype
        array: NDArray[Any] = module.empty(self.shape, dtype)
        slices = chain.from_iterable(one.slices(rescaled=rescaled) for one in sections)
        for index, frame in enumerate(slices):
            array[index] = frame
        return array

    @cached_property
    def _ordered(self) -> tuple[Section, ...]:
        """The sections that make up one volume, in the order of their places."""
        sections = self.sections
        if len(sections) == 1:
            return sections
        try:
            if len({(one.shape[1:], one.dtype) for one in sections}) > 1:
                raise CannotView("they differ in size or type")
            order = in_order([(one.planes, len(one.frames)) for one in sections])
        except CannotView as error:
            raise self.file.error(
                f"its {len(sections)} sections make up no volume: {error}; `sections` has each of them"
            ) from None
        return tuple(sections[index] for index in order)


class CTView(VolumeView):
    """A DICOS CT, raw and corrected ones too."""

    @property
    def acquisition_time(self) -> str:
        return text(self.header, 0x0008002A)

    @property
    def acquisition_seconds(self) -> float | None:
        return number(self.header, 0x00189073)


class AITView(VolumeView):
    """An image of advanced imaging technology: AIT2D, whose frames are views, or AIT3D, a volume."""

    @property
    def device_type(self) -> str:
        return text(self.header, 0x40101070)

    @property
    def inspection_selection_criteria(self) -> str:
        return text(self.header, 0x4010107C)

    @property
    def person_to_reference_orientation(self) -> tuple[float, ...]:
        """Six numbers that turn the person's coordinate system into that of the reference (4010,107E)."""
        groups = FunctionalGroups(self.header)
        return numbers(groups.group(0x00209116, 0x4010107E), 0x4010107E)


def _sections_of(file: StoredFile) -> Iterator[Section]:
    pixels, groups = FilePixels(file), FunctionalGroups(file.header)
    frames, positions = pixels.layout.frames, groups.positions
    if len(positions) not in (0, frames):
        raise file.error(f"it has {frames} frames, and says of {len(positions)} where they lie")
    for run in stacks(positions) if positions else [range(frames)]:
        yield Section(file, pixels, groups, run)


def _real_type(dtype: str) -> str:
    return "f4" if int(dtype[2:]) < 4 or dtype[1:] == "f4" else "f8"


def _rescaled(frame: NDArray[Any], rescale: tuple[float, float, str]) -> NDArray[Any]:
    slope, intercept, _ = rescale
    real: NDArray[Any] = frame.astype(_real_type(frame.dtype.str))
    real *= slope
    real += intercept
    return real
