"""A compressed object as it streams by: the data set its decoded form has, with its frames cut out.

Everything around pixel data stays. Changed are only what decoding makes untrue: photometric interpretation,
planar configuration, and, after JPEG's lossy processes, lossy image compression where it is not said; offset
tables and group lengths go. Frames are handed out one at a time, to be decoded wherever it is safe.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from scp_server.errors import CannotTranscode, UnreadableDataset
from scp_server.objects.element_stream import ElementReader
from scp_server.objects.pixel_format import CODECS, Codec, PixelFormat
from scp_server.objects.reencoding import LONGEST_VALUE_BYTES, ElementWriter, is_length
from scp_server.objects.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN_64,
    transfer_syntax,
)
from scp_server.objects.vr import tag_text

if TYPE_CHECKING:
    from scp_server.protocol.events import Buffer

DECODED: Final = (EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN_64)
"""The transfer syntaxes a decoded data set can have; a `reencoder` makes the others of the first."""

_SAMPLES_PER_PIXEL: Final = 0x00280002
_PHOTOMETRIC_INTERPRETATION: Final = 0x00280004
_PLANAR_CONFIGURATION: Final = 0x00280006
_NUMBER_OF_FRAMES: Final = 0x00280008
_ROWS, _COLUMNS = 0x00280010, 0x00280011
_BITS_ALLOCATED, _BITS_STORED, _HIGH_BIT = 0x00280100, 0x00280101, 0x00280102
_PIXEL_REPRESENTATION: Final = 0x00280103
_LOSSY_IMAGE_COMPRESSION: Final = 0x00282110
_IS_LOSSY: Final = b"01"
_MAX_CODE_BYTES: Final = 16
"""Longest value of VR CS (PS3.5 6.2)."""
_EXTENDED_OFFSET_TABLE: Final = 0x7FE00001
_TABLES: Final = range(_EXTENDED_OFFSET_TABLE, 0x7FE00004)
"""Extended offset table, its lengths, and the encapsulated value's total length."""
_NATIVE: Final = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_PIXEL_DATA: Final = 0x7FE00010
_MAX_DESCRIPTION_BYTES: Final = 65_536
"""Most that is held back of the elements from (0028,0002) to (0028,0103)."""
_MAX_TABLE_BYTES: Final = 16 << 20
"""Longest offset table: two million frames."""
_ITEM_HEADER_BYTES: Final = 8
_STARTS: Final = (b"\xff\xd8", b"\xff\x4f")
"""How a JPEG family frame begins (PS3.5 A.4): start of image, start of codestream."""


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """One frame to be decoded; the bytes take its place in the decoded data set."""

    number: int
    pixel_format: PixelFormat
    data: bytes | bytearray


class Decompressor:
    """Takes a compressed object apart. `feed` and `finish` return the decoded data set in order, with an
    `EncodedFrame` in place of each frame's pixels.

    Both raise UnreadableDataset for damage, and CannotTranscode for what cannot be told truly after decoding.
    Memory is bounded by twice `max_frame_bytes`, which is also the most a frame may have, encoded or decoded.
    """

    def __init__(self, source_uid: str, target_uid: str, max_frame_bytes: int) -> None:
        """Raises KeyError for a source that is not in CODECS, ValueError for a target not in DECODED."""
        if target_uid not in DECODED:
            raise ValueError(f"{target_uid} is no transfer syntax to decode to")
        writer = ElementWriter(transfer_syntax(EXPLICIT_VR_LITTLE_ENDIAN), transfer_syntax(target_uid))
        self._pixels = _PixelListener(CODECS[source_uid], writer, max_frame_bytes, target_uid)
        self._reader = ElementReader(transfer_syntax(source_uid), self._pixels)

    def feed(self, data: Buffer) -> list[bytes | EncodedFrame]:
        """Take the stored data set's next bytes."""
        self._reader.feed(data)
        return self._pixels.take()

    def feeding(self, data: Buffer) -> Generator[None, None, list[bytes | EncodedFrame]]:
        """`feed` in steps of about a millisecond, between two of which others may have their turn."""
        yield from self._reader.feeding(data)
        return self._pixels.take()

    def finish(self) -> list[bytes | EncodedFrame]:
        """The stored data set has ended: the rest."""
        self._reader.finish()
        self._pixels.finish()
        return self._pixels.take()


class _PixelListener:
    """Hands everything on to a writer but what decoding changes."""

    def __init__(self, codec: Codec, writer: ElementWriter, max_frame_bytes: int, target_uid: str) -> None:
        self._codec = codec
        self._writer = writer
        self._max_frame_bytes = max_frame_bytes
        self._longest = LONGEST_VALUE_BYTES if target_uid == EXPLICIT_VR_LITTLE_ENDIAN else 1 << 62
        self._output: list[bytes | EncodedFrame] = []
        self._depth = 0
        self._description: dict[int, tuple[bytes, bytearray]] | None = {}
        """The elements held back, until all of them are known."""
        self._pixel_format: PixelFormat | None = None
        self._frames = 1
        self._lossy: bytearray | None = None
        """Lossy image compression, held back until the element behind it begins."""
        self._lossy_is_written = False
        self._kept: bytearray | None = None
        self._dropping = False
        self._table = bytearray()
        self._assembly: _Assembly | None = None

    def take(self) -> list[bytes | EncodedFrame]:
        output, self._output = self._output + list(self._writer.take()), []
        return output

    def finish(self) -> None:
        self._pass(1 << 32)

    def element(self, tag: int, vr: bytes, length: int) -> None:
        self._kept, self._dropping = None, False
        if self._depth:
            self._writer.element(tag, vr, length)
            return
        self._pass(tag)
        if self._description is not None and _SAMPLES_PER_PIXEL <= tag <= _PIXEL_REPRESENTATION:
            held = sum(len(value) for _, value in self._description.values())
            if held + length > _MAX_DESCRIPTION_BYTES:
                raise CannotTranscode(f"{tag_text(tag)} is too long for a description of pixels")
            self._kept = bytearray()
            self._description[tag] = (vr, self._kept)
        elif tag in _NATIVE:
            raise CannotTranscode(f"{tag_text(tag)} is not encapsulated in a compressed transfer syntax")
        elif tag == _EXTENDED_OFFSET_TABLE and length <= _MAX_TABLE_BYTES:
            self._kept = self._table
        elif tag in _TABLES or is_length(tag):
            self._dropping = True
        elif tag == _LOSSY_IMAGE_COMPRESSION and not self._lossy_is_written and length <= _MAX_CODE_BYTES:
            self._kept = self._lossy = bytearray()
        else:
            self._writer.element(tag, vr, length)

    def value(self, piece: memoryview) -> None:
        if self._assembly is not None:
            self._assembly.value(piece)
        elif self._kept is not None:
            self._kept += piece
        elif not self._dropping:
            self._writer.value(piece)

    def sequence(self, tag: int, vr: bytes, length: int) -> None:
        if not self._depth:
            self._pass(tag)
            if self._description:
                raise CannotTranscode(f"{tag_text(tag)} is a sequence in the description of pixels")
        self._depth += 1
        self._writer.sequence(tag, vr, length)

    def end_sequence(self, delimited: bool) -> None:
        self._depth -= 1
        self._writer.end_sequence(delimited)

    def item(self, length: int) -> None:
        self._writer.item(length)

    def end_item(self) -> None:
        self._writer.end_item()

    def fragments(self, tag: int, vr: bytes) -> None:
        if self._depth or tag != _PIXEL_DATA:
            raise CannotTranscode(f"{tag_text(tag)} is encapsulated, and not the pixel data")
        self._pass(tag)
        found = self._pixel_format
        if found is None:
            raise CannotTranscode("pixel data without a description of pixels")
        if self._frames < 1:
            raise CannotTranscode(f"{self._frames} frames")
        found = replace(found, says_lossy=bytes(self._lossy or b"").strip(b" \0") == _IS_LOSSY)
        assembly = _Assembly(found, self._frames, self._max_frame_bytes, bytes(self._table))
        size = assembly.size_bytes
        if size + size % 2 > self._longest:
            raise CannotTranscode(f"{size} bytes of decoded pixels, which only 64-bit lengths can say")
        self._writer.element(tag, b"OB" if found.bits_allocated == 8 else b"OW", size + size % 2)
        self._output += self._writer.take()
        self._assembly = assembly

    def fragment(self, length: int) -> None:
        if self._assembly is not None:
            self._output += self._assembly.fragment(length)

    def end_fragments(self) -> None:
        if self._assembly is not None:
            self._output += self._assembly.finish()
            self._output += [b"\0"] * (self._assembly.size_bytes % 2)
            self._assembly = None

    def _pass(self, tag: int) -> None:
        """At a level-0 element of this tag: write what was held back, and what has its place before it."""
        if self._description is not None and tag > _PIXEL_REPRESENTATION:
            self._describe(self._description)
            self._description = None
        if tag > _LOSSY_IMAGE_COMPRESSION and not self._lossy_is_written:
            self._lossy_is_written = True
            if self._codec is Codec.JPEG and self._pixel_format is not None:
                self._lossy = bytearray(_IS_LOSSY)
            if self._lossy is not None:
                self._write(_LOSSY_IMAGE_COMPRESSION, b"CS", bytes(self._lossy))

    def _describe(self, description: dict[int, tuple[bytes, bytearray]]) -> None:
        """Read the description of pixels, change what decoding changes, and write it."""
        if _ROWS in description and _SAMPLES_PER_PIXEL in description:
            found = PixelFormat(
                self._codec,
                _number(description, _ROWS),
                _number(description, _COLUMNS),
                _number(description, _SAMPLES_PER_PIXEL),
                _number(description, _BITS_ALLOCATED),
                _number(description, _BITS_STORED),
                _number(description, _HIGH_BIT),
                bool(_number(description, _PIXEL_REPRESENTATION)),
                description.get(_PHOTOMETRIC_INTERPRETATION, (b"", b""))[1].decode("latin-1").strip(" \0"),
            )
            if found.frame_bytes > self._max_frame_bytes:
                raise CannotTranscode(f"a frame of {found.frame_bytes} bytes is longer than allowed")
            self._pixel_format = found
            if _NUMBER_OF_FRAMES in description:
                self._frames = _number(description, _NUMBER_OF_FRAMES)
            if found.samples_per_pixel > 1:
                after = (found.decoded_photometric_interpretation or "").encode()
                description[_PHOTOMETRIC_INTERPRETATION] = (b"CS", bytearray(after + b" " * (len(after) % 2)))
                description[_PLANAR_CONFIGURATION] = (b"US", bytearray(2))
        for tag in sorted(description):
            vr, value = description[tag]
            self._write(tag, vr, bytes(value))

    def _write(self, tag: int, vr: bytes, value: bytes) -> None:
        self._writer.element(tag, vr, len(value))
        if value:
            self._writer.value(memoryview(value))


class _Assembly:
    """Puts fragments together to frames (PS3.5 A.4).

    By the offset tables where there are any, otherwise a frame begins with each fragment (RLE), or with each
    that begins like a stream. A single frame is all fragments.
    """

    def __init__(self, pixel_format: PixelFormat, frames: int, max_frame_bytes: int, table: bytes) -> None:
        self._pixel_format = pixel_format
        self._frames = frames
        self._max_frame_bytes = max_frame_bytes
        self._starts: Sequence[int] = _offsets(table, "Q", frames)
        self._basic_table: bytearray | None = None
        self._position = 0
        """Where the next fragment's item begins, counted from the first fragment's."""
        self._is_start = False
        self._fragment: bytearray | None = None
        self._frame = bytearray()
        self._done = 0

    @property
    def size_bytes(self) -> int:
        """Length of all decoded frames."""
        return self._pixel_format.frame_bytes * self._frames

    def value(self, piece: memoryview) -> None:
        if self._fragment is not None:
            self._fragment += piece
        elif self._basic_table is not None:
            self._basic_table += piece

    def fragment(self, length: int) -> list[EncodedFrame]:
        """The next item begins: what is whole now."""
        if self._basic_table is None:
            if length > _MAX_TABLE_BYTES:
                raise CannotTranscode(f"a basic offset table of {length} bytes")
            self._basic_table = bytearray()
            return []
        if self._fragment is None:
            self._starts = self._starts or _offsets(bytes(self._basic_table), "I", self._frames)
        if length > self._max_frame_bytes:
            raise CannotTranscode(f"a fragment of {length} bytes is longer than allowed")
        found = self._fragment_ended()
        self._fragment = bytearray()
        started = self._done + bool(self._frame)
        self._is_start = started < len(self._starts) and self._starts[started] == self._position
        self._position += _ITEM_HEADER_BYTES + length
        return found

    def finish(self) -> list[EncodedFrame]:
        """All fragments were there: the last frames."""
        found = self._fragment_ended()
        if self._frame:
            found.append(self._emit())
        if self._done != self._frames:
            raise UnreadableDataset(f"{self._done} frames instead of {self._frames}")
        return found

    def _fragment_ended(self) -> list[EncodedFrame]:
        fragment = self._fragment
        if not fragment:
            return []
        found = [self._emit()] if self._frame and self._begins_frame(fragment) else []
        if len(self._frame) + len(fragment) > self._max_frame_bytes:
            raise CannotTranscode("an encoded frame is longer than allowed")
        # Frames are large: one of a single fragment is not copied.
        if self._frame:
            self._frame += fragment
        else:
            self._frame = fragment
        return found

    def _begins_frame(self, fragment: bytearray) -> bool:
        if self._frames == 1:
            return False
        if self._starts:
            return self._is_start
        return self._pixel_format.codec is Codec.RLE or fragment.startswith(_STARTS)

    def _emit(self) -> EncodedFrame:
        if self._done >= self._frames:
            raise UnreadableDataset(f"more than {self._frames} frames")
        frame = EncodedFrame(self._done, self._pixel_format, self._frame)
        self._done += 1
        self._frame = bytearray()
        return frame


def _offsets(table: bytes, code: str, frames: int) -> Sequence[int]:
    """The offsets of an offset table; none where it is not one of so many frames."""
    size = struct.calcsize(code)
    if len(table) != size * frames:
        return ()
    return struct.unpack(f"<{frames}{code}", table)


def _number(description: dict[int, tuple[bytes, bytearray]], tag: int) -> int:
    """A whole number, binary or text (DICOS has US where DICOM has IS)."""
    vr, value = description.get(tag, (b"", b""))
    try:
        if vr == b"US":
            (number,) = struct.unpack_from("<H", value)
            return int(number)
        return int(bytes(value).strip(b" \0"))
    except (struct.error, ValueError):
        raise CannotTranscode(f"{tag_text(tag)} is missing or no number") from None
