"""Pictures, read again by a decoder of the test's own."""

from __future__ import annotations

import re
import struct
import zlib

import pytest

from scp_server.cli.pictures import Picture, side_by_side


def _decoded(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and grey values of an unfiltered 8-bit grey PNG; every checksum is checked."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, position = [], 8
    while position < len(png):
        length, kind = struct.unpack_from(">I4s", png, position)
        content = png[position + 8 : position + 8 + length]
        assert struct.unpack_from(">I", png, position + 8 + length)[0] == zlib.crc32(kind + content)
        chunks.append((kind, content))
        position += 12 + length
    assert [kind for kind, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", chunks[0][1])
    assert (depth, colour, compression, filtering, interlace) == (8, 0, 0, 0, 0)
    lines = zlib.decompress(chunks[1][1])
    assert len(lines) == height * (width + 1)
    rows = [lines[start : start + width + 1] for start in range(0, len(lines), width + 1)]
    assert all(row[0] == 0 for row in rows)
    return width, height, b"".join(row[1:] for row in rows)


def test_a_png_has_the_pixels_of_the_picture() -> None:
    grey = bytes(range(6))
    assert _decoded(Picture(3, 2, grey).png()) == (3, 2, grey)


def test_words_are_spread_from_black_to_white() -> None:
    words = struct.pack("<4H", 1_000, 1_050, 1_100, 1_000)
    assert Picture.of_words(words, 2, 2).grey == bytes((0, 127, 255, 0))
    assert Picture.of_words(struct.pack("<2H", 7, 7), 2, 1).grey == bytes(2)


@pytest.mark.parametrize(("width", "height", "count"), [(2, 2, 3), (0, 0, 0), (1, 2, 3)])
def test_pixels_that_do_not_fit_are_refused(width: int, height: int, count: int) -> None:
    with pytest.raises(ValueError, match="pixels are not"):
        Picture(width, height, bytes(count))


def test_a_sheet_has_the_pictures_beside_each_other_and_black_behind_the_last() -> None:
    pictures = [Picture(2, 1, bytes((number, number))) for number in (1, 2, 3)]
    sheet = side_by_side(pictures, 2)
    assert (sheet.width, sheet.height, sheet.grey) == (4, 2, bytes((1, 1, 2, 2, 3, 3, 0, 0)))
    with pytest.raises(ValueError, match="one size"):
        side_by_side([*pictures, Picture(1, 1, b"\0")], 2)
    with pytest.raises(ValueError, match="one size"):
        side_by_side([], 2)


def test_shrinking_keeps_the_proportions_and_takes_every_nth_pixel() -> None:
    picture = Picture(4, 4, bytes(range(16)))
    small = picture.shrunk(2)
    assert (small.width, small.height, small.grey) == (2, 2, bytes((0, 2, 8, 10)))
    assert picture.shrunk(4) is picture
    assert Picture(4, 1, bytes(4)).shrunk(2).height == 1


def test_half_blocks_show_two_rows_in_a_line_and_reset_the_colours() -> None:
    lines = Picture(2, 3, bytes((0, 255, 255, 0, 0, 255))).half_blocks()
    colours = [re.findall(r"38;5;(\d+);48;5;(\d+)m▀", line) for line in lines]
    assert colours == [[("232", "255"), ("255", "232")], [("232", "232"), ("255", "232")]]
    assert all(line.endswith("\x1b[0m") for line in lines)


def test_characters_are_plain_and_brighter_ones_are_fuller() -> None:
    assert Picture(3, 2, bytes((0, 128, 255, 0, 0, 0))).characters() == [" +@"]
