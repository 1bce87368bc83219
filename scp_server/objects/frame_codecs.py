"""Decoding one compressed frame (PS3.5 A.4): RLE by ourselves, the rest with the extra `codecs`.

Decoders are not trusted: run this where a crash or a hang does no harm. What a stream says of itself is
compared with what its data set says, and where they differ in anything that matters, it is refused.
"""

from __future__ import annotations

import struct
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from scp_server.errors import CannotTranscode
from scp_server.objects.pixel_format import Codec, PixelFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray

MISSING_EXTRA: Final = "the extra `codecs` is not installed (pip install 'scp-server[codecs]')"

_RLE_HEADER: Final = struct.Struct("<16I")
_START_OF_IMAGE: Final = b"\xff\xd8"
_START_OF_CODESTREAM: Final = b"\xff\x4f\xff\x51"
_APP0, _APP14, _START_OF_SCAN = 0xE0, 0xEE, 0xDA
_LOSSLESS_FRAME, _LS_FRAME = 0xC3, 0xF7
_START_OF_FRAME: Final = frozenset((0xC0, 0xC1, 0xC2, _LOSSLESS_FRAME, _LS_FRAME))
"""Markers of the frame headers (ISO 10918-1 B.1.1.3, ISO 14495-1 C.1.1) that DICOM has a use for."""
_FRAME_HEADER: Final = struct.Struct(">BHHB")
"""Precision, lines, samples per line, components."""
_IMAGE_AREA: Final = struct.Struct(">4I")
"""Right and lower edge, left and upper edge (ISO 15444-1 A.5.1)."""
_CODING_STYLE: Final = 0x52
_IRREVERSIBLE: Final = 0
"""The wavelet transformation that loses something (ISO 15444-1 A.6.1)."""


class Stream(NamedTuple):
    """What a compressed frame says of itself."""

    shape: tuple[int, int, int]
    """Rows, columns, samples."""
    precision: int
    """Bits of a sample."""
    is_signed: bool = False
    frame_marker: int = 0
    """JPEG: the kind of its frame header."""
    is_transformed: bool | None = None
    """Its colours are YCbCr (JPEG), or transformed (JPEG 2000); None where it does not say."""
    is_lossy: bool = False
    """A lossy process certainly made it (JPEG-LS, JPEG 2000)."""


def is_available(codec: Codec) -> bool:
    """Whether it can be decoded with what is installed. Imports nothing."""
    return codec is Codec.RLE or find_spec("imagecodecs") is not None


def decode_frame(pixel_format: PixelFormat, data: bytes) -> bytes:
    """The pixels as PixelFormat says. Raises CannotTranscode, and whatever the decoder raises."""
    if pixel_format.codec is Codec.RLE:
        return _decode_rle(pixel_format, data)
    stream = (read_codestream if pixel_format.codec is Codec.JPEG_2000 else read_jpeg)(data)
    _compare(pixel_format, stream)
    return _cells(pixel_format, stream, _decode(pixel_format, data))


def _decode(pixel_format: PixelFormat, data: bytes) -> NDArray[Any]:
    import imagecodecs

    pixels: NDArray[Any]
    match pixel_format.codec:
        case Codec.JPEG_2000:
            pixels = imagecodecs.jpeg2k_decode(data, numthreads=1)
        case Codec.JPEG_LS:
            pixels = imagecodecs.jpegls_decode(data)
        case _ if pixel_format.samples_per_pixel == 1:
            pixels = imagecodecs.jpeg8_decode(data)
        case Codec.JPEG if pixel_format.photometric_interpretation != "RGB":
            pixels = imagecodecs.jpeg8_decode(data, colorspace="YCBCR", outcolorspace="RGB")
        case _:
            # The same on both sides: components as they are.
            pixels = imagecodecs.jpeg8_decode(data, colorspace="RGB", outcolorspace="RGB")
    return pixels


def _compare(pixel_format: PixelFormat, stream: Stream) -> None:
    """Raises CannotTranscode where data set and stream contradict each other."""
    photometric = pixel_format.photometric_interpretation
    shape = pixel_format.rows, pixel_format.columns, pixel_format.samples_per_pixel
    if stream.shape != shape:
        # Before anything of that size is decoded.
        raise CannotTranscode(f"the stream's shape is {stream.shape}, the data set's {shape}")
    if stream.precision > pixel_format.bits_allocated:
        raise CannotTranscode(f"{stream.precision} bits in cells of {pixel_format.bits_allocated}")
    if stream.is_signed and not pixel_format.is_signed:
        raise CannotTranscode("signed samples under an unsigned pixel representation")
    if stream.is_lossy and not pixel_format.says_lossy:
        raise CannotTranscode("a lossy compression that the data set does not tell of")
    is_lossless = stream.frame_marker == _LOSSLESS_FRAME
    wrong_kind = {
        Codec.JPEG: is_lossless or stream.frame_marker == _LS_FRAME,
        Codec.JPEG_LOSSLESS: not is_lossless,
        Codec.JPEG_LS: stream.frame_marker != _LS_FRAME,
    }
    if wrong_kind.get(pixel_format.codec):
        raise CannotTranscode(f"the stream is not {pixel_format.codec}")
    if pixel_format.samples_per_pixel == 1 or stream.is_transformed is None:
        return
    expected = {
        Codec.JPEG: photometric != "RGB",
        # A transformed stream under RGB comes out as RGB, too.
        Codec.JPEG_2000: photometric != "YBR_FULL" if photometric != "RGB" else stream.is_transformed,
    }
    if stream.is_transformed != expected.get(pixel_format.codec, stream.is_transformed):
        raise CannotTranscode(f"the colours of the stream are not {photometric}")


def _cells(pixel_format: PixelFormat, stream: Stream, pixels: NDArray[Any]) -> bytes:
    """Samples in cells of Bits Allocated, their sign extended."""
    import numpy

    shape: tuple[int, ...] = (pixel_format.rows, pixel_format.columns)
    if pixel_format.samples_per_pixel > 1:
        shape = (*shape, pixel_format.samples_per_pixel)
    if pixels.shape != shape:
        raise CannotTranscode(f"the stream decodes to {pixels.shape}")
    bits = pixel_format.bits_allocated
    cells = pixels.astype(numpy.dtype(f"<u{bits // 8}"), copy=False)
    if pixel_format.is_signed and not stream.is_signed and stream.precision < bits:
        signed = (cells << (bits - stream.precision)).view(numpy.dtype(f"<i{bits // 8}"))
        cells = signed >> (bits - stream.precision)
    return cells.tobytes()


def read_jpeg(data: bytes) -> Stream:
    """The header of a JPEG or JPEG-LS stream, up to its first scan (ISO 10918-1 B)."""
    if data[:2] != _START_OF_IMAGE:
        raise CannotTranscode("not a JPEG stream")
    position, precision, kind, is_lossy = 2, 0, 0, False
    shape = 0, 0, 0
    is_transformed: bool | None = None
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        body = data[position + 4 : position + 2 + length]
        if marker == _START_OF_SCAN:
            # JPEG-LS: behind the components is how far samples may be off (ISO 14495-1 C.2.3).
            is_lossy = kind == _LS_FRAME and any(body[1 + 2 * body[0] :][:1] if body else b"")
            break
        if marker in _START_OF_FRAME and len(body) >= _FRAME_HEADER.size:
            precision, lines, columns, components = _FRAME_HEADER.unpack_from(body)
            shape, kind = (lines, columns, components), marker
            if body[6::3][:3] == b"RGB" and is_transformed is None:
                is_transformed = False
        elif marker == _APP0 and body[:5] == b"JFIF\0" and is_transformed is None:
            is_transformed = True
        elif marker == _APP14 and body[:5] == b"Adobe" and len(body) > 11:
            is_transformed = body[11] != 0
        position += 2 + length
    if not precision:
        raise CannotTranscode("a JPEG stream without a frame header")
    return Stream(shape, precision, False, kind, is_transformed, is_lossy)


def read_codestream(data: bytes) -> Stream:
    """The main header of a JPEG 2000 codestream (ISO 15444-1 A): SIZ, and COD behind it."""
    if data[:4] != _START_OF_CODESTREAM or len(data) < 45:
        raise CannotTranscode("not a JPEG 2000 codestream")
    right, bottom, left, top = _IMAGE_AREA.unpack_from(data, 8)
    (components,) = struct.unpack_from(">H", data, 40)
    kinds = {data[start : start + 3] for start in range(42, 42 + 3 * components, 3)}
    if len(kinds) != 1:
        raise CannotTranscode("components of different precision or resolution")
    depth, *sampling = kinds.pop()
    if sampling != [1, 1]:
        raise CannotTranscode("components with fewer samples than the image")
    shape = bottom - top, right - left, components
    position = 4
    while position + 4 <= len(data):
        (length,) = struct.unpack_from(">H", data, position)
        position += length
        if data[position : position + 2] == bytes((0xFF, _CODING_STYLE)) and position + 14 <= len(data):
            is_lossy = data[position + 13] == _IRREVERSIBLE
            return Stream(
                shape, (depth & 0x7F) + 1, bool(depth & 0x80), 0, bool(data[position + 8]), is_lossy
            )
        if data[position : position + 1] != b"\xff" or data[position + 1 : position + 2] == b"\x90":
            break
        position += 2
    raise CannotTranscode("a JPEG 2000 codestream without coding style")


def _decode_rle(pixel_format: PixelFormat, data: bytes) -> bytes:
    """PS3.5 G: a segment for each byte of a pixel, sample by sample, the most significant first."""
    if len(data) < _RLE_HEADER.size:
        raise CannotTranscode("an RLE frame without its header")
    count, *offsets = _RLE_HEADER.unpack_from(data)
    sample_bytes = pixel_format.sample_bytes
    pixel_bytes = sample_bytes * pixel_format.samples_per_pixel
    if count != pixel_bytes:
        raise CannotTranscode(f"{count} RLE segments for {pixel_bytes} bytes of a pixel")
    ends = [*offsets[1:count], len(data)]
    frame = bytearray(pixel_format.frame_bytes)
    plane_bytes = pixel_format.rows * pixel_format.columns
    for number, (start, end) in enumerate(zip(offsets, ends, strict=False)):
        sample, byte = divmod(number, sample_bytes)
        if not _RLE_HEADER.size <= start < end <= len(data):
            raise CannotTranscode("RLE segments that do not follow each other")
        plane = _unpack_bits(data[start:end], plane_bytes)
        frame[sample * sample_bytes + sample_bytes - 1 - byte :: pixel_bytes] = plane
    return bytes(frame)


def _unpack_bits(data: bytes, size: int) -> bytearray:
    """One RLE segment (PS3.5 G.3.2). What follows its last byte is padding."""
    plane, position, end = bytearray(), 0, len(data)
    while len(plane) < size and position < end:
        control = data[position]
        if control < 128:
            plane += data[position + 1 : position + 2 + control]
            position += control + 2
        elif control > 128:
            plane += data[position + 1 : position + 2] * (257 - control)
            position += 2
        else:
            position += 1
    if len(plane) < size:
        raise CannotTranscode("an RLE segment that is cut")
    del plane[size:]
    return plane
