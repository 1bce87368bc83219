"""Grey pictures of pixels: as PNG (ISO/IEC 15948), and as characters on a terminal."""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREYSCALE_8_BIT = bytes((8, 0, 0, 0, 0))
"""Bit depth, colour type, compression, filter and interlace of an IHDR chunk (11.2.2)."""
_DARKEST, _BRIGHTEST = 232, 255
"""The grey ramp among a terminal's 256 colours."""
_RAMP = " .:-=+*#%@"


@dataclass(frozen=True, slots=True)
class Picture:
    """Grey values from 0 to 255, row by row."""

    width: int
    height: int
    grey: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1 or len(self.grey) != self.width * self.height:
            raise ValueError(f"{len(self.grey)} pixels are not {self.width} x {self.height}")

    @classmethod
    def of_words(cls, words: bytes, width: int, height: int) -> Picture:
        """Of unsigned 16-bit little endian pixels, the least of them black and the greatest white."""
        values = array("H", struct.unpack(f"<{len(words) // 2}H", words))
        least, span = min(values, default=0), max(1, max(values, default=0) - min(values, default=0))
        return cls(width, height, bytes((value - least) * 255 // span for value in values))

    def png(self) -> bytes:
        """A PNG file."""
        lines = (self.grey[start : start + self.width] for start in range(0, len(self.grey), self.width))
        unfiltered = b"".join(b"\0" + line for line in lines)
        header = struct.pack(">II", self.width, self.height) + _GREYSCALE_8_BIT
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(unfiltered, 9)), (b"IEND", b""))
        return _SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)

    def shrunk(self, width: int) -> Picture:
        """Not wider than `width`, by leaving out pixels."""
        if self.width <= width:
            return self
        height = max(1, self.height * width // self.width)
        grey = bytes(
            self.grey[(y * self.height // height) * self.width + x * self.width // width]
            for y in range(height)
            for x in range(width)
        )
        return Picture(width, height, grey)

    def half_blocks(self) -> list[str]:
        """Lines for a terminal with 256 colours: each character shows two pixels, one above the other."""
        lines = []
        for y in range(0, self.height, 2):
            upper, lower = self._row(y), self._row(y + 1)
            blocks = [
                f"\x1b[38;5;{_colour(above)};48;5;{_colour(below)}m▀"
                for above, below in zip(upper, lower, strict=True)
            ]
            lines.append("".join(blocks) + "\x1b[0m")
        return lines

    def characters(self) -> list[str]:
        """Lines for any terminal; of two rows one is left out, since characters are about twice as high."""
        step = 256 / len(_RAMP)
        return ["".join(_RAMP[int(grey / step)] for grey in self._row(y)) for y in range(0, self.height, 2)]

    def _row(self, y: int) -> bytes:
        """A row; below the last one it is black."""
        return self.grey[y * self.width : (y + 1) * self.width] or bytes(self.width)


def side_by_side(pictures: Sequence[Picture], columns: int) -> Picture:
    """A sheet of pictures of one size, `columns` in a row, black where there are none. Raises ValueError."""
    if not pictures or len({(one.width, one.height) for one in pictures}) != 1:
        raise ValueError("a sheet needs pictures of one size")
    first = pictures[0]
    blank = Picture(first.width, first.height, bytes(first.width * first.height))
    filled = [*pictures, *[blank] * (-len(pictures) % columns)]
    rows = [filled[start : start + columns] for start in range(0, len(filled), columns)]
    grey = b"".join(one._row(y) for row in rows for y in range(first.height) for one in row)
    return Picture(first.width * columns, first.height * len(rows), grey)


def _colour(grey: int) -> int:
    return _DARKEST + grey * (_BRIGHTEST - _DARKEST) // 255


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
