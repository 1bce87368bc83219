from __future__ import annotations

import struct

from scp_server.testing.dicos_objects import dicos_ct, dicos_dx
from scp_server.testing.objects import ct_image
from scp_server.testing.phantom import BODY, LUGGAGE, Box, Ellipsoid, projection, slices


def _values(pixels: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(pixels) // 2}H", pixels)


def test_slices_show_what_lies_in_them() -> None:
    things = (Box((-1, -1, -1), (0, 1, 0), 7), Ellipsoid((0.5, 0, 0.5), (0.1, 2, 0.1), 9))
    first, second = slices(things, 2, 1, 2)
    assert _values(first) == (7, 0)
    assert _values(second) == (0, 9)


def test_a_projection_is_brighter_where_more_is_in_the_way() -> None:
    assert _values(projection([Box((-1, -1, -1), (0, 1, 0), 100)], 1, 2, steps=4)) == (50, 0)


def test_the_phantoms_have_contrast_and_are_always_the_same() -> None:
    for things in (BODY, LUGGAGE):
        cut = slices(things, 3, 20, 24)
        assert [len(one) for one in cut] == [20 * 24 * 2] * 3
        assert len(set(_values(cut[1]))) > 3
        assert cut == slices(things, 3, 20, 24)


def test_the_factories_take_pixels() -> None:
    pixels = bytes(range(8))
    assert ct_image(rows=2, columns=2, pixels=pixels).dataset.endswith(pixels)
    assert dicos_dx(rows=2, columns=2, pixels=pixels).dataset.endswith(pixels)
    assert dicos_ct(frames=1, rows=2, columns=2, pixels=pixels).dataset.endswith(pixels)
