"""What a threat detection report says, field by field, and its masks bit by bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scp_server import open_instance
from scp_server.errors import CannotView
from scp_server.testing.dataset_encoder import Element, TransferSyntax
from scp_server.testing.dicos_objects import Threat, dicos_ct, dicos_tdr
from scp_server.views.fields import Code, Reference
from scp_server.views.geometry import Affine
from scp_server.views.threats import Algorithm, Box, Region, TDRView
from tests.unit.views.test_volumes import Store

IMAGE = dicos_ct()


def tdr_view(path: Path) -> TDRView:
    view = open_instance(path)
    assert isinstance(view, TDRView)
    return view


def region_of(store: Store, **threat: Any) -> Region:
    """The first region of a report with one threat."""
    view = tdr_view(store(dicos_tdr(IMAGE, threats=[Threat(**threat)])))
    (region,) = view.threats[0].regions
    return region


@pytest.mark.parametrize(
    "syntax",
    [TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN, TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN],
    ids=["explicit", "implicit"],
)
def test_every_field_of_a_machines_report(store: Store, syntax: TransferSyntax) -> None:
    view = tdr_view(store(dicos_tdr(IMAGE, transfer_syntax=syntax)))
    assert (view.report_type, view.decision, view.decision_time) == (
        "MACHINE",
        "ALARM",
        "20261120101114.000000+0000",
    )
    assert view.algorithm == Algorithm("ACME", "7.1.0", ("-threshold=0.5",))
    assert (view.total_objects, view.alarm_objects, view.processing_milliseconds) == (2, 2, 1450)
    assert (view.is_aborted, view.abort_reason, view.image_scale) == (False, "", 1)
    assert view.references == (Reference(IMAGE.sop_class_uid, IMAGE.sop_instance_uid),)
    sheet, knife = view.threats
    assert (sheet.number, knife.number) == (100, 101)
    assert (sheet.analysis_start, sheet.analysis_milliseconds) == ("20261120101113.000000", 1000)
    (assessment,) = knife.assessments
    assert (assessment.category, assessment.flag, assessment.ability) == ("PI", "THREAT", "SHIELD")
    assert assessment.description == "Knife behind shield"
    assert assessment.probability == pytest.approx(0.61)
    (place,) = sheet.representations
    assert (place.mass_grams, place.density, place.location) == (120, 1.5, "Lower left corner")
    assert place.polygon == ((4.0, 4.0, 1.0), (12.0, 12.0, 3.0))
    assert place.references == view.references
    assert [region.box for region in sheet.regions] == [Box((4, 4, 1), (8, 8, 2))]
    assert [region.has_mask for region in knife.regions] == [False]
    assert view.threat(101) == knife


def test_an_operators_report_names_the_operator(store: Store) -> None:
    view = tdr_view(store(dicos_tdr(IMAGE, tdr_type="OPERATOR", decision="CLEAR")))
    assert view.algorithm is None
    (operator,) = view.operators
    assert operator.identification[0] == Code("OP-117", "TSA", "OPERATOR^ONE")
    assert operator.institution == "T2 Screening Room"
    assert view.threats == ()
    assert view.references == (Reference(IMAGE.sop_class_uid, IMAGE.sop_instance_uid),)


def test_an_aborted_report_says_why(store: Store) -> None:
    aborted = [Element(0x40101024, "CS", "ABORT"), Element(0x40101021, "CS", "TIMEOUT")]
    view = tdr_view(store(dicos_tdr(IMAGE, replacing=aborted)))
    assert view.is_aborted
    assert view.abort_reason == "TIMEOUT"


def test_an_aggregate_names_the_reports_it_was_made_of(store: Store) -> None:
    uids = [Element(0x00081150, "UI", "1.2"), Element(0x00081155, "UI", "1.3")]
    view = tdr_view(store(dicos_tdr(IMAGE, replacing=[Element(0x40101077, "SQ", [uids])])))
    assert view.reports == (Reference("1.2", "1.3"),)


def test_a_negative_probability_is_none(store: Store) -> None:
    view = tdr_view(store(dicos_tdr(IMAGE, threats=[Threat(probability=-1.0)])))
    assert view.threats[0].assessments[0].probability is None


def test_bits_of_a_mask_run_along_x_first_the_least_significant_first(store: Store) -> None:
    # 3 x 2 x 2 voxels: bits 0, 4 and 11 are (0, 0, 0), (1, 1, 0) and (2, 1, 1).
    mask = region_of(store, extents=(3, 2, 2), bitmap=bytes((0b0001_0001, 0b0000_1000))).mask()
    assert mask is not None
    assert mask.shape == (2, 2, 3)
    assert mask.dtype == np.bool_
    assert np.argwhere(mask).tolist() == [[0, 0, 0], [0, 1, 1], [1, 1, 2]]


def test_a_region_without_bitmap_has_no_mask(store: Store) -> None:
    assert region_of(store, bitmap=b"").mask() is None


def test_a_mask_longer_than_the_header_keeps_is_read_from_the_file(store: Store) -> None:
    extents = (256.0, 256.0, 16.0)
    mask = region_of(store, extents=extents, bitmap=b"\x01" + bytes(256 * 256 * 2 - 2) + b"\x80").mask()
    assert mask is not None
    assert np.argwhere(mask).tolist() == [[0, 0, 0], [15, 255, 255]]


@pytest.mark.parametrize(
    "extents", [(8, 8, 3), (8, 8, 0), (1e30, 1e30, 1e30), (float("nan"), 1, 1), (float("inf"), 1, 1)]
)
def test_a_bitmap_of_another_length_than_its_box_is_refused(
    store: Store, extents: tuple[float, float, float]
) -> None:
    with pytest.raises(CannotView, match=r"the bitmap \(4010,1006\) has 16 bytes"):
        region_of(store, extents=extents).mask()


def test_a_region_without_a_box_is_refused(store: Store) -> None:
    one = dicos_tdr(IMAGE, threats=[Threat()])
    dataset = one.dataset.replace(b"\x10\x40\x05\x10FL\x0c\0", b"\x10\x40\x09\x10FL\x0c\0")
    with pytest.raises(CannotView, match=r"no three numbers in \(4010,1005\)"):
        _ = tdr_view(store(replace(one, dataset=dataset))).threats


def test_boxes_and_polygons_lie_in_mm_where_the_image_says(store: Store) -> None:
    view = tdr_view(store(dicos_tdr(IMAGE)))
    affine = Affine.of((100, 0, 0), (2, 0, 0), (0, 3, 0), (0, 0, 10))
    (box,) = (region.box for region in view.threats[0].regions)
    corners = box.corners_in_mm(affine)
    # Voxels 4 to 11, 4 to 11 and 1 to 2, each with half a voxel around its centre.
    assert corners[0] == (107.0, 10.5, 5.0)
    assert corners[-1] == (123.0, 34.5, 25.0)
    assert len(set(corners)) == 8
    assert view.threats[0].representations[0].polygon_in_mm(affine) == ((108, 12, 10), (124, 36, 30))
    with pytest.raises(CannotView, match="no threat object 7"):
        view.threat(7)
