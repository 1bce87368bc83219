"""Pixels of a DX, its windows, lookup tables and palette."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scp_server import open_instance
from scp_server.errors import CannotView
from scp_server.testing.dataset_encoder import Element, TransferSyntax
from scp_server.testing.dicos_objects import dicos_dx
from scp_server.views.geometry import CoordinateSystem
from scp_server.views.quadrupole import QRView
from scp_server.views.radiographs import DXView, Window
from tests.unit.views.test_volumes import Store

EXPLICIT = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
PIXELS = np.arange(6 * 8, dtype="<u2").reshape(6, 8) * 100


def dx_view(path: Path) -> DXView:
    view = open_instance(path)
    assert isinstance(view, DXView)
    return view


def dx_of(
    store: Store, *replacing: Element, syntax: TransferSyntax = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
) -> DXView:
    one = dicos_dx(
        rows=6,
        columns=8,
        pixels=PIXELS.tobytes(),
        replacing=replacing,
        transfer_syntax=syntax,
    )
    return dx_view(store(one))


def window(center: str, width: str, function: str = "LINEAR") -> list[Element]:
    return [
        Element(0x00281050, "DS", center),
        Element(0x00281051, "DS", width),
        Element(0x00281056, "CS", function),
    ]


def table(entries: bytes, first: int = 0, bits: int = 8, count: int = 0) -> list[Element]:
    return [
        Element(0x00283002, "US", (count or len(entries), first, bits)),
        Element(0x00283003, "LO", "STEPS"),
        Element(0x00283006, "OW", entries),
    ]


@pytest.mark.parametrize(
    "syntax",
    [
        TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN,
        TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN_64,
        TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN,
        TransferSyntax.RLE_LOSSLESS,
    ],
)
def test_pixels_are_what_was_stored(store: Store, syntax: TransferSyntax) -> None:
    view = dx_of(store, syntax=syntax)
    assert view.shape == (6, 8)
    assert np.array_equal(view.pixels(), PIXELS)
    assert view.dtype == "<u2"


def test_rescaled_pixels_follow_slope_and_intercept(store: Store) -> None:
    view = dx_of(store, Element(0x00281052, "DS", "-10"), Element(0x00281053, "DS", "0.5"))
    assert np.array_equal(view.pixels(rescaled=True), PIXELS * 0.5 - 10)


def test_what_the_image_says_of_itself(store: Store) -> None:
    view = dx_of(store)
    assert view.windows == (Window(20_000, 10_000, "NORMAL"),)
    assert (view.position, view.orientation) == ((0, 0, 1), (1, 0, 0, 0, 1, 0))
    assert (view.coordinate_system, view.image_origin) == (CoordinateSystem.LHS, "MACHINE")
    assert (view.presentation_intent, view.kvp, view.spacing) == ("FOR PRESENTATION", 140, None)
    assert view.palette is None


def test_a_window_is_linear_as_the_standard_has_it(store: Store) -> None:
    # PS3.3 C.11.2.1.2: of 2048 and 4096 the values 0 and less are black, 4095 and more white.
    seen = dx_of(store, *window("2048", "4096")).displayed()
    expected = np.clip(((PIXELS - 2047.5) / 4095 + 0.5) * 255, 0, 255).round()
    assert seen.dtype == np.uint8
    assert np.array_equal(seen, expected)


def test_the_other_functions_of_a_window(store: Store) -> None:
    exact = dx_of(store, *window("2000", "1000", "LINEAR_EXACT")).displayed()
    assert (exact[0, 0], exact.reshape(-1)[20], exact[5, 7]) == (0, 128, 255)
    sigmoid = dx_of(store, *window("2000", "1000", "SIGMOID")).displayed()
    assert (sigmoid[0, 0], sigmoid.reshape(-1)[20], sigmoid[5, 7]) == (0, 128, 255)
    step = dx_of(store, *window("2000", "1")).displayed()
    assert step.reshape(-1)[19:21].tolist() == [0, 255]


def test_without_a_window_the_range_of_values_is_seen(store: Store) -> None:
    seen = dx_of(store, *window("", "")).displayed()
    assert (seen.min(), seen.max()) == (0, 255)


def test_one_of_the_users_windows_wins(store: Store) -> None:
    assert dx_of(store).displayed(Window(0.5, 1)).min() == 0
    assert dx_of(store).displayed(Window(-100, 1)).min() == 255


def test_monochrome1_and_an_inverse_shape_invert(store: Store) -> None:
    plain = dx_of(store, *window("2048", "4096")).displayed()
    one = Element(0x00280004, "CS", "MONOCHROME1")
    inverse = Element(0x20500020, "CS", "INVERSE")
    assert np.array_equal(dx_of(store, *window("2048", "4096"), one).displayed(), 255 - plain)
    assert np.array_equal(dx_of(store, *window("2048", "4096"), inverse).displayed(), 255 - plain)
    assert np.array_equal(dx_of(store, *window("2048", "4096"), one, inverse).displayed(), plain)


def test_a_lookup_table_goes_before_a_window(store: Store) -> None:
    view = dx_of(store, Element(0x00283010, "SQ", [table(bytes((0, 51, 255, 102)), first=100)]))
    (found,) = view.lookup_tables
    assert (found.first_value, found.bits, found.explanation) == (100, 8, "STEPS")
    assert found.entries == (0, 51, 255, 102)
    # Values 0 and 100 are the first entry, 200 lies beyond the last.
    assert view.displayed()[0, :3].tolist() == [0, 0, 102]


def test_a_table_of_65536_entries_of_16_bits_is_read_from_the_file(store: Store) -> None:
    entries = np.arange(65_536, dtype="<u2")[::-1]
    descriptor = [Element(0x00283002, "US", (0, 0, 16)), Element(0x00283006, "OW", entries.tobytes())]
    view = dx_of(store, Element(0x00289422, "SQ", [descriptor]))
    (found,) = view.intensity_tables
    assert np.array_equal(found(PIXELS), 65_535 - PIXELS)


def test_entries_of_8_bits_in_words_are_their_lower_byte(store: Store) -> None:
    view = dx_of(store, Element(0x00283010, "SQ", [table(bytes((7, 7, 200, 200)), count=2)]))
    assert view.lookup_tables[0].entries == (7, 200)
    assert view.displayed()[0, :2].tolist() == [7, 200]


def test_entries_of_no_possible_width_are_refused(store: Store) -> None:
    view = dx_of(store, Element(0x00283010, "SQ", [table(bytes(4), bits=17)]))
    with pytest.raises(CannotView, match="says 17 bits"):
        _ = view.lookup_tables


def test_a_table_shorter_than_it_says_is_refused(store: Store) -> None:
    view = dx_of(store, Element(0x00283010, "SQ", [table(bytes(4), bits=16, count=9)]))
    with pytest.raises(CannotView, match=r"\(0028,3006\) has 4 bytes, too few for 9 entries"):
        _ = view.lookup_tables


def test_a_palette_makes_colours(store: Store) -> None:
    palette = [Element(0x00280004, "CS", "PALETTE COLOR")]
    for number in range(3):
        entries = np.array([number, 100 + number, 255], "<u2") * 257
        palette += [
            Element(0x00281101 + number, "US", (3, 0, 16)),
            Element(0x00281201 + number, "OW", entries.tobytes()),
        ]
    view = dx_of(store, *palette)
    assert view.palette is not None
    seen = view.displayed()
    assert seen.shape == (6, 8, 3)
    assert seen[0, 0].tolist() == [0, 1, 2]
    assert seen[0, 1].tolist() == [255, 255, 255]


def test_a_palette_that_is_not_there_is_an_error(store: Store) -> None:
    with pytest.raises(CannotView, match="without the three lookup tables"):
        _ = dx_of(store, Element(0x00280004, "CS", "PALETTE COLOR")).palette


def test_measurements_of_quadrupole_resonance(store: Store) -> None:
    item = [
        Element(0x4010101D, "FL", (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)),
        Element(0x00220155, "FL", 12.5),
        Element(0x40101073, "FD", 3.0),
    ]
    replacing = [
        Element(0x00080016, "UI", "1.2.840.10008.5.1.4.1.1.501.6"),
        Element(0x40101071, "SQ", [item]),
    ]
    view = open_instance(store(dicos_dx(replacing=replacing)))
    assert isinstance(view, QRView)
    (found,) = view.measurements
    assert found.polygon == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert (found.signal_to_noise_ratio, found.threshold, found.target_materials) == (12.5, 3, ())
