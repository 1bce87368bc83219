"""Voxels to mm, by cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from scp_server.errors import CannotView
from scp_server.testing.dataset_encoder import Element
from scp_server.views.geometry import Affine, CoordinateSystem, Planes, in_order, normal, stacks
from tests.unit.views.test_volumes import VOXELS, Store, ct_of, ct_view, placed


def turned(orientation: tuple[float, ...], spacing: str = "2\\3", thickness: str = "5") -> Element:
    """Shared groups: rows are 2 mm apart and columns 3, unless told otherwise."""
    measures = [Element(0x00180050, "DS", thickness), Element(0x00280030, "DS", spacing)]
    return Element(
        0x52009229,
        "SQ",
        [
            [
                Element(0x00209116, "SQ", [[Element(0x00200037, "DS", orientation)]]),
                Element(0x00289110, "SQ", [measures]),
            ]
        ],
    )


def test_a_voxel_lies_where_position_spacing_and_orientation_say(store: Store) -> None:
    groups = [turned((1, 0, 0, 0, 1, 0)), placed((10, 20, 30), (10, 20, 34), (10, 20, 38), (10, 20, 42))]
    view = ct_view(store(ct_of(VOXELS, replacing=groups)))
    # Column 2 is 6 mm along x, row 3 is 6 mm along y, slice 1 is 4 mm along z.
    assert view.affine((2, 3, 1)) == (16, 26, 34)
    assert view.sections[0].spacing == (3.0, 2.0, 4.0)
    assert view.sections[0].slice_thickness == 5


def test_turned_planes_turn_the_matrix(store: Store) -> None:
    groups = [turned((0, 1, 0, 0, 0, -1)), placed((0, 0, 0), (-4, 0, 0), (-8, 0, 0), (-12, 0, 0))]
    matrix = np.asarray(ct_view(store(ct_of(VOXELS, replacing=groups))).affine)
    assert matrix.tolist() == [[0, 0, -4, 0], [3, 0, 0, 0], [0, -2, 0, 0], [0, 0, 0, 1]]


def test_slices_may_run_against_the_third_axis(store: Store) -> None:
    groups = [turned((1, 0, 0, 0, 1, 0)), placed((0, 0, 0), (0, 0, -4), (0, 0, -8), (0, 0, -12))]
    assert ct_view(store(ct_of(VOXELS, replacing=groups))).affine((0, 0, 2)) == (0, 0, -8)


def test_a_single_slice_is_as_thick_as_it_says_along_the_third_axis(store: Store) -> None:
    groups = [turned((0, 1, 0, 0, 0, 1)), placed((1, 2, 3))]
    planes = ct_view(store(ct_of(VOXELS[:1], replacing=groups))).planes
    assert planes.slice_step == (5.0, 0.0, 0.0)
    assert planes.affine((0, 0, 1)) == (6, 2, 3)


def test_the_third_axis_is_the_systems_own() -> None:
    assert normal((1, 0, 0), (0, 1, 0)) == (0, 0, 1)
    assert normal((0, 1, 0), (0, 0, 1)) == (1, 0, 0)


@pytest.mark.parametrize("system", list(CoordinateSystem))
def test_one_axis_is_mirrored_into_the_system_of_the_other_hand(
    store: Store, system: CoordinateSystem
) -> None:
    groups = [placed((1, 2, 3), (1, 2, 4), (1, 2, 5), (1, 2, 6)), Element(0x00082108, "CS", system.value)]
    view = ct_view(store(ct_of(VOXELS, replacing=groups)))
    (other,) = set(CoordinateSystem) - {system}
    assert view.coordinate_system is system
    assert view.affine_in(system) == view.affine
    assert view.affine_in(other)((2, 0, 0)) == (-3, 2, 3)
    assert view.affine_in(other, mirrored_axis=2)((2, 0, 1)) == (3, 2, -4)
    determinants = [np.linalg.det(np.asarray(view.affine_in(one))[:3, :3]) for one in (system, other)]
    assert determinants[0] == pytest.approx(-determinants[1])


def test_without_a_coordinate_system_none_is_guessed(store: Store) -> None:
    view = ct_view(store(ct_of(VOXELS, replacing=[Element(0x00082108, "CS", "")])))
    assert view.coordinate_system is None
    with pytest.raises(CannotView, match="of which hand"):
        view.affine_in(CoordinateSystem.RHS)


def test_the_image_origin_is_where_the_image_comes_from(store: Store) -> None:
    view = ct_view(store(ct_of(VOXELS, replacing=[Element(0x00080118, "CS", "SYNTHETIC")])))
    assert view.image_origin == "SYNTHETIC"
    assert view.affine((0, 0, 0)) == (-8, -8, 0)


def test_jitter_of_positions_begins_no_section() -> None:
    assert stacks([(0, 0, z) for z in (0, 1.01, 1.98, 3.02)]) == [range(4)]


def test_frames_in_one_place_are_one_section() -> None:
    assert stacks([(0, 0, 0)] * 3) == [range(3)]
    assert stacks([(0, 0, 0)]) == [range(1)]


def test_planes_of_other_spacing_do_not_go_on() -> None:
    with pytest.raises(CannotView, match="orientation or spacing"):
        in_order([(Planes((0, 0, 0)), 2), (Planes((0, 0, 2), row_spacing=2), 2)])


def test_planes_in_the_same_place_are_no_volume() -> None:
    with pytest.raises(CannotView, match="in the same place"):
        in_order([(Planes((0, 0, 0)), 1), (Planes((0, 0, 0)), 1)])


def test_a_matrix_keeps_what_numpy_asks_for() -> None:
    matrix = Affine.of((1, 2, 3), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    assert np.asarray(matrix, "f4").dtype == np.float32
    assert np.asarray(matrix)[:3, 3].tolist() == [1, 2, 3]
