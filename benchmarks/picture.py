"""Bars as a PNG, drawn with nothing but the standard library: boxes, and letters of 5 by 7 points."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_FONT: Final = bytes.fromhex(
    "0000000000"
    "00005f0000"
    "0007000700"
    "147f147f14"
    "242a7f2a12"
    "2313086462"
    "3649562050"
    "0008070300"
    "001c224100"
    "0041221c00"
    "2a1c7f1c2a"
    "08083e0808"
    "0080703000"
    "0808080808"
    "0000606000"
    "2010080402"
    "3e5149453e"
    "00427f4000"
    "7249494946"
    "2141494d33"
    "1814127f10"
    "2745454539"
    "3c4a494931"
    "4121110907"
    "3649494936"
    "464949291e"
    "0000140000"
    "0040340000"
    "0008142241"
    "1414141414"
    "0041221408"
    "0201590906"
    "3e415d594e"
    "7c1211127c"
    "7f49494936"
    "3e41414122"
    "7f4141413e"
    "7f49494941"
    "7f09090901"
    "3e41415173"
    "7f0808087f"
    "00417f4100"
    "2040413f01"
    "7f08142241"
    "7f40404040"
    "7f021c027f"
    "7f0408107f"
    "3e4141413e"
    "7f09090906"
    "3e4151215e"
    "7f09192946"
    "2649494932"
    "01017f0101"
    "3f4040403f"
    "1f2040201f"
    "3f4038403f"
    "6314081463"
    "0304780403"
    "6151494543"
    "007f414141"
    "0204081020"
    "0041417f00"
    "0402010204"
    "4040404040"
    "0003070800"
    "2054547840"
    "7f28444438"
    "3844444428"
    "384444287f"
    "3854545418"
    "00087e0902"
    "18a4a49c78"
    "7f08040478"
    "00447d4000"
    "2040403d00"
    "7f10284400"
    "00417f4000"
    "7c04780478"
    "7c08040478"
    "3844444438"
    "fc18242418"
    "18242418fc"
    "7c08040408"
    "4854545424"
    "04043f4424"
    "3c4040207c"
    "1c2040201c"
    "3c4030403c"
    "4428102844"
    "4c9090907c"
    "4464544c44"
    "0008364100"
    "0000770000"
    "0041360800"
    "0201020402"
)
"""Five columns for each character from the space to the tilde, the lowest bit on top."""
_WIDTH: Final = 6
_HEIGHT: Final = 8


class Canvas:
    """Points of a few colours; those of number 0 are the background."""

    def __init__(self, width: int, height: int, colours: Sequence[int]) -> None:
        """`colours` as 0xRRGGBB."""
        self.width = width
        self.height = height
        self._colours = colours
        self._points = bytearray(width * height)

    def box(self, left: int, top: int, width: int, height: int, colour: int) -> None:
        """Fill a rectangle; what is outside is cut off."""
        first, last = max(left, 0), min(left + width, self.width)
        for y in range(max(top, 0), min(top + height, self.height)):
            if last > first:
                self._points[y * self.width + first : y * self.width + last] = bytes([colour]) * (
                    last - first
                )

    def text(self, left: int, top: int, text: str, colour: int, scale: int = 2) -> None:
        """Write; a character that the font lacks is a question mark."""
        for place, character in enumerate(text):
            code = ord(character) - 0x20
            start = 5 * (code if 0 <= code < len(_FONT) // 5 else ord("?") - 0x20)
            for x, column in enumerate(_FONT[start : start + 5]):
                for y in range(_HEIGHT):
                    if column >> y & 1:
                        across = left + scale * (place * _WIDTH + x)
                        self.box(across, top + scale * y, scale, scale, colour)

    def png(self) -> bytes:
        """The picture as a file (ISO/IEC 15948)."""
        rows = b"".join(
            b"\0" + self._points[start : start + self.width]
            for start in range(0, len(self._points), self.width)
        )
        palette = b"".join(colour.to_bytes(3, "big") for colour in self._colours)
        head = struct.pack(">IIBBBBB", self.width, self.height, 8, 3, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            _chunk(kind, content)
            for kind, content in (
                (b"IHDR", head),
                (b"PLTE", palette),
                (b"IDAT", zlib.compress(rows, 9)),
                (b"IEND", b""),
            )
        )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars of one workload: for each server the value with each number of senders."""

    title: str
    bars: Mapping[str, Mapping[int, float]]


_BACKGROUND, _INK, _GREY, *_SHADES = range(9)
_COLOURS = (0xFFFFFF, 0x202020, 0x707070, 0x9ECAE1, 0x4292C6, 0x08519C, 0xFDBE85, 0xFD8D3C, 0xD94701)
_OTHERS, _OURS = (_SHADES[:3], _SHADES[3:])
_MARGIN = 24
_COLUMN = 760
_LABEL = 300
_VALUE = 110
_BAR = 18
_GAP = 8
_TITLE = 44


def bars(panels: Sequence[Panel], ours: str) -> bytes:
    """Panels below one another in two columns, as a PNG; `ours` begins the names that have the other colour.

    Each panel has its own scale. In a group the first bar is of the fewest senders.
    """
    heights = [_panel_height(panel) for panel in panels]
    columns: list[list[int]] = [[], []]
    filled = [0, 0]
    for place, height in enumerate(heights):
        shorter = int(filled[1] < filled[0])
        columns[shorter].append(place)
        filled[shorter] += height
    canvas = Canvas(2 * _COLUMN + 3 * _MARGIN, max(filled) + 2 * _MARGIN, _COLOURS)
    for column, places in enumerate(columns):
        top = _MARGIN
        for place in places:
            _draw(canvas, _MARGIN + column * (_COLUMN + _MARGIN), top, panels[place], ours)
            top += heights[place]
    return canvas.png()


def _panel_height(panel: Panel) -> int:
    return _TITLE + sum(_BAR * len(each) + _GAP for each in panel.bars.values()) + _MARGIN


def _draw(canvas: Canvas, left: int, top: int, panel: Panel, ours: str) -> None:
    canvas.text(left, top, panel.title, _INK, 3)
    greatest = max((value for each in panel.bars.values() for value in each.values()), default=0) or 1
    y = top + _TITLE
    for server, values in panel.bars.items():
        canvas.text(left, y, server[: _LABEL // (2 * _WIDTH) - 4], _INK)
        for place, (senders, value) in enumerate(values.items()):
            shades = _OURS if server.startswith(ours) else _OTHERS
            length = max(round((_COLUMN - _LABEL - _VALUE) * value / greatest), 1)
            canvas.text(left + _LABEL - 44, y, f"{senders:>3}", _GREY)
            canvas.box(left + _LABEL, y, length, _BAR - 3, shades[min(place, len(shades) - 1)])
            shown = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
            canvas.text(left + _LABEL + length + 6, y, shown, _INK)
            y += _BAR
        y += _GAP
