"""The pixels of one file as numpy arrays: mapped where not compressed, else decoded frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from scp_server.errors import CannotTranscode, CannotView, UnreadableDataset
from scp_server.objects.decompression import Decompressor, EncodedFrame
from scp_server.objects.frame_codecs import MISSING_EXTRA, decode_frame, is_available
from scp_server.objects.pixel_format import CODECS, Codec
from scp_server.objects.uids import EXPLICIT_VR_LITTLE_ENDIAN_64
from scp_server.objects.vr import tag_text
from scp_server.views.arrays import numpy
from scp_server.views.fields import integer
from scp_server.views.stored_file import PixelElement, StoredFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_FRAME_BYTES: Final = 1 << 28
"""Longest frame that is decoded, encoded or not: a file of some bytes can claim any size."""
_FEED_BYTES: Final = 1 << 20
_PIXEL_DATA: Final = 0x7FE00010
_KINDS: Final = {
    0x7FE00011: ("u", "i", 4),
    0x7FE00012: ("u", "i", 8),
    0x7FE00013: ("f", "f", 4),
    0x7FE00008: ("f", "f", 4),
    0x7FE00009: ("f", "f", 8),
}
"""Unsigned and signed kind of numpy, and bytes, of the elements that have one kind of pixels only."""
_RLE_GAIN: Final = 64
"""Most bytes that one of RLE becomes: two are a run of 128 (PS3.5 G.3.1)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the frames of one file are described."""

    frames: int
    rows: int
    columns: int
    samples: int
    is_planar: bool
    """Colours lie plane by plane (planar configuration 1)."""
    dtype: str
    """As numpy writes it: `<u2` is unsigned, 16 bits, little endian."""

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Rows and columns, and samples where there are several."""
        return (self.rows, self.columns) if self.samples == 1 else (self.rows, self.columns, self.samples)

    @property
    def frame_bytes(self) -> int:
        return self.rows * self.columns * self.samples * int(self.dtype[2:])


class FilePixels:
    """The frames of one file. Everything here raises CannotView; what asks for pixels needs numpy."""

    def __init__(self, file: StoredFile) -> None:
        self._file = file

    @cached_property
    def layout(self) -> Layout:
        """Rows, columns, frames and type of the pixels; reads past the header only for their type."""
        header, element = self._file.header, self._element
        if element.tag in _KINDS:
            *kinds, size = _KINDS[element.tag]
        else:
            size, rest = divmod(self._description(0x00280100, "Bits Allocated"), 8)
            kinds = ["u", "i"]
            if rest or size not in (1, 2, 4, 8):
                raise self._file.error(f"pixels of {size * 8 + rest} bits cannot be given as an array")
        order = "<" if element.encapsulated or self._file.transfer_syntax.little_endian else ">"
        if order == ">" and size == 1 and element.vr == "OW":
            raise self._file.error("pixels of 8 bits in big endian words are not read")
        return Layout(
            frames=1 if 0x00280008 not in header else self._description(0x00280008, "Number of Frames"),
            rows=self._description(0x00280010, "Rows"),
            columns=self._description(0x00280011, "Columns"),
            samples=integer(header, 0x00280002) or 1,
            is_planar=not element.encapsulated and integer(header, 0x00280006) == 1,
            dtype=f"{order}{kinds[bool(integer(header, 0x00280103))]}{size}",
        )

    @property
    def is_compressed(self) -> bool:
        return self._element.encapsulated

    def frames(self, wanted: range) -> Iterator[NDArray[Any]]:
        """These frames, one after another, in memory for as long as they are referred to."""
        if self.is_compressed:
            yield from self._decoded(wanted)
        else:
            native = self._native
            for number in wanted:
                yield native[number]

    def array(self, wanted: range) -> NDArray[Any]:
        """These frames, which follow each other, as one array: frames, rows, columns, and samples if several.

        Read-only over the mapped file where they are not compressed; nothing is read before it is looked at.
        """
        if not self.is_compressed:
            return self._native[wanted.start : wanted.stop]
        layout, module = self.layout, numpy()
        try:
            array: NDArray[Any] = module.empty((len(wanted), *layout.frame_shape), layout.dtype)
        except (MemoryError, ValueError):
            raise self._file.error(
                f"{len(wanted)} frames of {layout.frame_bytes} bytes do not fit into memory"
            ) from None
        for place, frame in enumerate(self._decoded(wanted)):
            array[place] = frame
        return array

    @cached_property
    def _element(self) -> PixelElement:
        element = self._file.pixels
        if element is None:
            raise self._file.error("it has no pixel data")
        return element

    @cached_property
    def _native(self) -> NDArray[Any]:
        layout, element = self.layout, self._element
        expected = layout.frames * layout.frame_bytes
        # A value of odd length is padded with one byte (PS3.5 7.1).
        if element.length_bytes != expected + expected % 2:
            raise self._file.error(
                f"{tag_text(element.tag)} at byte {element.offset_bytes} of the data set has "
                f"{element.length_bytes} bytes, and {layout.frames} frames of {layout.rows} rows and "
                f"{layout.columns} columns ({layout.dtype}) have {expected}"
            )
        module = numpy()
        dtype = module.dtype(layout.dtype)
        flat = module.frombuffer(
            self._file.data, dtype, expected // dtype.itemsize, offset=element.offset_bytes
        )
        array: NDArray[Any]
        if layout.is_planar and layout.samples > 1:
            planes = flat.reshape(layout.frames, layout.samples, layout.rows, layout.columns)
            array = module.moveaxis(planes, 1, -1)
        else:
            array = flat.reshape(layout.frames, *layout.frame_shape)
        return array

    def _decoded(self, wanted: range) -> Iterator[NDArray[Any]]:
        module, layout = numpy(), self.layout
        for frame in self._encoded(wanted):
            pixel_format = frame.pixel_format
            if pixel_format.codec is Codec.RLE and pixel_format.frame_bytes > _RLE_GAIN * len(frame.data):
                raise self._frame_error(frame, f"{len(frame.data)} bytes cannot be that many pixels")
            try:
                pixels = decode_frame(pixel_format, bytes(frame.data))
            except CannotTranscode as error:
                raise self._frame_error(frame, str(error)) from error
            except Exception as error:
                # Whatever a decoder raises: it is an extension module, and its errors have no common base.
                raise self._frame_error(frame, f"it cannot be decoded: {error}") from error
            yield module.frombuffer(pixels, layout.dtype).reshape(layout.frame_shape)

    def _encoded(self, wanted: range) -> Iterator[EncodedFrame]:
        """The frames cut out of their fragments as these are read, up to the last that is wanted."""
        uid = self._file.file_meta.transfer_syntax_uid
        codec = CODECS.get(uid)
        if codec is None:
            raise self._file.error(f"transfer syntax {uid} cannot be decoded")
        if not is_available(codec):
            raise CannotView(f"{self._file.path}: {codec} cannot be decoded: {MISSING_EXTRA}")
        data = self._file.data
        try:
            decompressor = Decompressor(uid, EXPLICIT_VR_LITTLE_ENDIAN_64, MAX_FRAME_BYTES)
            for start in range(0, len(data), _FEED_BYTES):
                for piece in decompressor.feed(data[start : start + _FEED_BYTES]):
                    if isinstance(piece, EncodedFrame) and piece.number in wanted:
                        yield piece
                        if piece.number == wanted[-1]:
                            return
        except (UnreadableDataset, CannotTranscode) as error:
            raise self._file.error(f"its pixels cannot be decoded: {error}") from error

    def _frame_error(self, frame: EncodedFrame, text: str) -> CannotView:
        return self._file.error(f"frame {frame.number} of {self.layout.frames}: {text}")

    def _description(self, tag: int, name: str) -> int:
        value = integer(self._file.header, tag)
        if value is None or value < 1:
            raise self._file.error(f"{name} {tag_text(tag)} is missing or no number of anything")
        return value
