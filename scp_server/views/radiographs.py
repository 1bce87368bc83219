"""DX: one image or several, and how it is meant to be looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from scp_server.views.arrays import numpy
from scp_server.views.fields import Point, number, numbers, point, text
from scp_server.views.images import ImageView
from scp_server.views.lookup_table import LookupTable, read_lookup_table
from scp_server.views.pixels import FilePixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PALETTE = ((0x00281101, 0x00281201), (0x00281102, 0x00281202), (0x00281103, 0x00281203))
"""Descriptor and data of red, green and blue."""


@dataclass(frozen=True, slots=True)
class Window:
    """The values that are seen: from black to white over `width` around `center`."""

    center: float
    width: float
    explanation: str = ""


class DXView(ImageView):
    """A DICOS DX, for presentation or for processing."""

    @cached_property
    def _pixels(self) -> FilePixels:
        return FilePixels(self.file)

    @property
    def shape(self) -> tuple[int, ...]:
        """What `pixels` has: rows, columns, and samples where there are several; frames first if several."""
        layout = self._pixels.layout
        return layout.frame_shape if layout.frames == 1 else (layout.frames, *layout.frame_shape)

    @property
    def dtype(self) -> str:
        """The type of the pixels as they are stored, as numpy writes it: `<u2`."""
        return self._pixels.layout.dtype

    def pixels(self, *, rescaled: bool = False) -> NDArray[Any]:
        """The pixels: rows, columns (see `shape`).

        As stored: read-only over the mapped file where they are not compressed, else decoded. `rescaled` to
        what they mean, by slope and intercept: float64.
        """
        array: NDArray[Any] = self._pixels.array(range(self._pixels.layout.frames)).reshape(self.shape)
        return array * self.rescale_slope + self.rescale_intercept if rescaled else array

    def displayed(self, window: Window | None = None) -> NDArray[Any]:
        """The image as it is meant to be seen: 8 bits, grey, or red, green and blue with a palette.

        Rescaled, then by `window`, the first VOI LUT, the first window or, without any, from the least value
        to the greatest (PS3.3 C.11.2); inverted where MONOCHROME1 or the presentation LUT shape say so.
        """
        module = numpy()
        stored = self.pixels()
        palette = self.palette
        if palette is not None:
            return module.stack([_eight_bits(table, table(stored)) for table in palette], axis=-1)  # type: ignore[no-any-return]
        if self.photometric_interpretation == "RGB":
            return stored.astype("u1") if stored.dtype.itemsize == 1 else (stored >> 8).astype("u1")
        values = stored * self.rescale_slope + self.rescale_intercept
        if window is None and self.lookup_tables:
            table = self.lookup_tables[0]
            grey = _eight_bits(table, table(values))
        else:
            grey = _windowed(values, window or next(iter(self.windows), None), self.window_function)
        inverted = self.photometric_interpretation == "MONOCHROME1"
        return 255 - grey if inverted != (self.presentation_lut_shape == "INVERSE") else grey

    @property
    def photometric_interpretation(self) -> str:
        return text(self.header, 0x00280004)

    @property
    def presentation_intent(self) -> str:
        """`FOR PRESENTATION` or `FOR PROCESSING`."""
        return text(self.header, 0x00080068)

    @property
    def presentation_lut_shape(self) -> str:
        """`IDENTITY` or `INVERSE`."""
        return text(self.header, 0x20500020)

    @property
    def rescale_slope(self) -> float:
        found = number(self.header, 0x00281053)
        return 1.0 if found is None else found

    @property
    def rescale_intercept(self) -> float:
        return number(self.header, 0x00281052) or 0.0

    @property
    def rescale_type(self) -> str:
        return text(self.header, 0x00281054)

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """The windows that the object proposes."""
        explanations = text(self.header, 0x00281055).split("\\")
        pairs = zip(numbers(self.header, 0x00281050), numbers(self.header, 0x00281051), strict=False)
        return tuple(
            Window(center, width, explanations[place].strip() if place < len(explanations) else "")
            for place, (center, width) in enumerate(pairs)
        )

    @property
    def window_function(self) -> str:
        """`LINEAR`, which it is where nothing is said, `LINEAR_EXACT` or `SIGMOID` (PS3.3 C.11.2.1.3)."""
        return text(self.header, 0x00281056) or "LINEAR"

    @cached_property
    def lookup_tables(self) -> tuple[LookupTable, ...]:
        """The VOI LUTs that the object proposes."""
        return tuple(self._tables(0x00283010))

    @cached_property
    def intensity_tables(self) -> tuple[LookupTable, ...]:
        """The LUTs of the pixel intensity relationship (0028,9422)."""
        return tuple(self._tables(0x00289422))

    @cached_property
    def palette(self) -> tuple[LookupTable, LookupTable, LookupTable] | None:
        """Red, green and blue, where the photometric interpretation is PALETTE COLOR."""
        if self.photometric_interpretation != "PALETTE COLOR":
            return None
        tables = [read_lookup_table(self.file, self.header, *tags) for tags in _PALETTE]
        red, green, blue = tables
        if red is None or green is None or blue is None:
            raise self.file.error("PALETTE COLOR without the three lookup tables of a palette")
        return red, green, blue

    @property
    def position(self) -> Point | None:
        """In mm."""
        return point(self.header, 0x00200032)

    @property
    def orientation(self) -> tuple[float, ...]:
        """Six numbers: the direction along a row, then the one along a column."""
        return numbers(self.header, 0x00200037)

    @property
    def spacing(self) -> tuple[float, float] | None:
        """Between rows and between columns, in mm: at the detector where only its spacing is known."""
        for tag in (0x00280030, 0x00181164):
            found = numbers(self.header, tag)
            if len(found) == 2:
                return found[0], found[1]
        return None

    @property
    def kvp(self) -> float | None:
        """In kV."""
        return number(self.header, 0x00180060)

    def _tables(self, sequence: int) -> Iterator[LookupTable]:
        for item in self.header.items(sequence):
            found = read_lookup_table(self.file, item, 0x00283002, 0x00283006, 0x00283003)
            if found is not None:
                yield found


def _eight_bits(table: LookupTable, values: NDArray[Any]) -> NDArray[Any]:
    """Entries of a table, its greatest possible one white."""
    seen: NDArray[Any] = (values.astype("f8") * (255 / ((1 << table.bits) - 1))).round().clip(0, 255)
    return seen.astype("u1")


def _windowed(values: NDArray[Any], window: Window | None, function: str) -> NDArray[Any]:
    """Values through a window, 0 to 255 (PS3.3 C.11.2.1.2, C.11.2.1.3)."""
    module = numpy()
    if window is None:
        least, greatest = float(values.min()), float(values.max())
        part = (values - least) / ((greatest - least) or 1.0)
    elif function == "SIGMOID":
        part = 1 / (1 + module.exp(-4 * (values - window.center) / (window.width or 1.0)))
    elif function == "LINEAR_EXACT":
        part = (values - window.center) / (window.width or 1.0) + 0.5
    elif window.width <= 1:
        part = (values > window.center - 0.5).astype("f8")
    else:
        part = (values - (window.center - 0.5)) / (window.width - 1) + 0.5
    grey: NDArray[Any] = (part.clip(0, 1) * 255).round().astype("u1")
    return grey
