"""What `TDRBuilder` makes: valid by our own rules, and read back field by field."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scp_server import Detection, TDRBuilder, open_instance
from scp_server.errors import CannotReport
from scp_server.objects.validation.finding import Report, Severity
from scp_server.objects.validation.threats import Volume
from scp_server.objects.validation.whole_file import FileValidation
from scp_server.reports.builder import AbortReason, OperatorIdentity
from scp_server.reports.report import ThreatReport
from scp_server.testing.dataset_encoder import Element
from scp_server.testing.dicos_objects import dicos_ct, dicos_dx, two_section_ct
from scp_server.testing.encoded_object import EncodedObject
from scp_server.views.fields import Reference
from scp_server.views.threats import Algorithm, Box, TDRView

ALGORITHM = ("ACME", "2.1", "-threshold=0.5")
START = datetime(2026, 11, 20, 10, 11, 12, tzinfo=UTC)
END = START + timedelta(milliseconds=1500)
OPERATOR = OperatorIdentity("OP-117", "OPERATOR^ONE", "TSA", "T2 Screening Room")

Kept = Callable[[EncodedObject], Path]


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    def keep(one: EncodedObject) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir())):03d}.dcs"
        path.write_bytes(one.part10())
        return path

    return keep


def judged(report: ThreatReport, volumes: dict[str, Volume] | None = None) -> Report:
    content = report.part10()
    validation = FileValidation(len(content))
    for _ in validation.steps(content):
        pass
    return validation.finish(volumes)


def read_back(report: ThreatReport, folder: Path) -> TDRView:
    """The report as a view, once our rules have nothing against it."""
    assert [one for one in judged(report).findings if one.severity is not Severity.INFO] == []
    path = folder / "report.dcs"
    report.write(path)
    view = open_instance(path)
    assert isinstance(view, TDRView)
    return view


def sphere() -> Any:
    mask = np.zeros((4, 16, 16), bool)
    mask[1:3, 4:9, 5:8] = True
    mask[1, 4, 5] = False
    return mask


def test_a_detection_is_read_back_field_by_field(kept: Kept, tmp_path: Path) -> None:
    image = dicos_ct()
    builder = TDRBuilder(kept(image), algorithm=ALGORITHM, started_at=START, seed="one")
    builder.add(
        Detection(
            box=((4, 5, 1), (3, 4, 2)),
            polygon=[(4, 5, 1), (7, 9, 3)],
            category="EXPLOSIVE",
            flag="HIGH_THREAT",
            ability="SHIELD",
            probability=0.5,
            description="Sheet",
            mass_grams=120,
            density=1.5,
            location="Lower left corner",
        )
    )
    report = builder.build(decided_at=END)
    view = read_back(report, tmp_path)
    assert (view.report_type, view.decision, view.total_objects, view.alarm_objects) == (
        "MACHINE",
        "ALARM",
        1,
        1,
    )
    assert view.algorithm == Algorithm("ACME", "2.1", ("-threshold=0.5",))
    assert (view.decision_time, view.processing_milliseconds) == ("20261120101113.500000+0000", 1500)
    assert (view.sop_instance_uid, view.scan.study_instance_uid) == (
        report.sop_instance_uid,
        image.study_instance_uid,
    )
    assert view.references == (Reference(image.sop_class_uid, image.sop_instance_uid),)
    (threat,) = view.threats
    assert (threat.number, threat.analysis_milliseconds) == (1, 1500)
    assert (threat.analysis_start, threat.analysis_end) == (
        "20261120101112.000000+0000",
        "20261120101113.500000+0000",
    )
    (assessment,), (place,) = threat.assessments, threat.representations
    assert (assessment.category, assessment.flag, assessment.ability) == (
        "EXPLOSIVE",
        "HIGH_THREAT",
        "SHIELD",
    )
    assert (assessment.probability, assessment.description) == (0.5, "Sheet")
    assert (place.mass_grams, place.density, place.location) == (120, 1.5, "Lower left corner")
    assert list(place.polygon) == [(4, 5, 1), (7, 9, 3)]
    (region,) = place.regions
    assert (region.box, region.has_mask) == (Box((4, 5, 1), (3, 4, 2)), False)


def test_object_scan_and_machine_are_the_images(kept: Kept, tmp_path: Path) -> None:
    path = kept(
        dicos_ct(replacing=[Element(0x00080005, "CS", "ISO_IR 100"), Element(0x00080080, "LO", b"Z\xfcrich")])
    )
    image: Any = open_instance(path)
    view = read_back(TDRBuilder(path, algorithm=ALGORITHM).build(), tmp_path)
    for name in ("object_of_inspection", "scan", "machine", "frame_of_reference_uid", "dicos_version"):
        assert getattr(view, name) == getattr(image, name)
    assert view.machine.location == "Zürich"
    assert view.series.modality == "TDR"
    assert view.series.series_instance_uid != image.series.series_instance_uid


def test_a_mask_of_the_whole_image_becomes_its_box_and_the_bits_within(kept: Kept, tmp_path: Path) -> None:
    mask = sphere()
    builder = TDRBuilder(kept(dicos_ct()), algorithm=ALGORITHM)
    (region,) = read_back(builder.add(Detection(mask=mask)).build(), tmp_path).threats[0].regions
    assert region.box == Box((5, 4, 1), (3, 5, 2))
    found = region.mask()
    assert found is not None
    assert np.array_equal(found, mask[1:3, 4:9, 5:8])


def test_a_polygon_alone_has_the_box_around_it(kept: Kept, tmp_path: Path) -> None:
    polygon = [(2.5, 3, 1), (6, 3, 1), (4, 7.5, 1)]
    builder = TDRBuilder(kept(dicos_ct()), algorithm=ALGORITHM).add(Detection(polygon=polygon))
    (place,) = read_back(builder.build(), tmp_path).threats[0].representations
    assert place.polygon == tuple(polygon)
    assert [one.box for one in place.regions] == [Box((2, 3, 1), (4, 5, 1))]


def test_what_is_not_known_is_read_back_as_none(kept: Kept, tmp_path: Path) -> None:
    builder = TDRBuilder(kept(dicos_ct()), algorithm=ALGORITHM).add(Detection(box=((0, 0, 0), (1, 1, 1))))
    (threat,) = read_back(builder.build(), tmp_path).threats
    assert (threat.representations[0].mass_grams, threat.representations[0].density) == (None, None)
    assert threat.assessments[0].probability is None


@pytest.mark.parametrize(
    ("flags", "decision", "alarms"),
    [
        ((), "CLEAR", 0),
        (("NO_THREAT", "UNKNOWN"), "CLEAR", 0),
        (("NO_THREAT", "THREAT", "HIGH_THREAT"), "ALARM", 2),
    ],
)
def test_the_decision_follows_from_the_detections(
    flags: tuple[str, ...], decision: str, alarms: int, kept: Kept, tmp_path: Path
) -> None:
    builder = TDRBuilder(kept(dicos_ct()), algorithm=ALGORITHM)
    for flag in flags:
        builder.add(Detection(box=((0, 0, 0), (1, 1, 1)), flag=flag))
    view = read_back(builder.build(), tmp_path)
    assert (view.decision, view.total_objects, view.alarm_objects) == (decision, len(flags), alarms)


def test_an_aborted_report_says_why_and_decides_nothing(kept: Kept, tmp_path: Path) -> None:
    builder = TDRBuilder(kept(dicos_ct()), algorithm=ALGORITHM).abort(AbortReason.TIMEOUT)
    view = read_back(builder.build(), tmp_path)
    assert (view.decision, view.is_aborted, view.abort_reason) == ("UNKNOWN", True, "TIMEOUT")


def test_an_operators_report_names_its_operator(kept: Kept, tmp_path: Path) -> None:
    builder = TDRBuilder(kept(dicos_ct()), report_type="OPERATOR", operator=OPERATOR)
    view = read_back(builder.add(Detection(box=((0, 0, 0), (1, 1, 1)))).build(), tmp_path)
    (operator,) = view.operators
    assert (operator.institution, operator.identification[0].value) == ("T2 Screening Room", "OP-117")
    assert view.algorithm is None


def test_one_object_may_be_seen_in_several_images(kept: Kept, tmp_path: Path) -> None:
    views = [dicos_dx(seed=1), dicos_dx(seed=2, rows=12)]
    builder = TDRBuilder([kept(one) for one in views], algorithm=ALGORITHM)
    builder.add(Detection(box=((3, 3, 0), (9, 9, 1)), image=0, number=7))
    builder.add(Detection(box=((1, 2, 0), (4, 4, 1)), image=1, number=7))
    (threat,) = read_back(builder.build(), tmp_path).threats
    assert threat.number == 7
    assert [one.references[0].sop_instance_uid for one in threat.representations] == [
        one.sop_instance_uid for one in views
    ]


def test_both_energies_of_a_scan_are_referred_to_together(kept: Kept, tmp_path: Path) -> None:
    energies = [dicos_ct(seed=1), dicos_ct(seed=2)]
    builder = TDRBuilder([kept(one) for one in energies], algorithm=ALGORITHM)
    (threat,) = read_back(builder.add(Detection(mask=sphere())).build(), tmp_path).threats
    (place,) = threat.representations
    assert [one.sop_instance_uid for one in place.references] == [one.sop_instance_uid for one in energies]


@pytest.mark.parametrize("version", ["V02", "V02A", "V03"])
def test_the_report_has_the_version_of_its_image(version: str, kept: Kept, tmp_path: Path) -> None:
    path = kept(dicos_ct(replacing=[Element(0x4010103A, "CS", version)]))
    builder = TDRBuilder(path, algorithm=ALGORITHM).add(Detection(box=((0, 0, 0), (1, 1, 1)), mass_grams=3))
    view = read_back(builder.build(), tmp_path)
    assert (view.dicos_version, view.threats[0].representations[0].mass_grams) == (version, 3)


def test_of_an_image_without_a_version_the_report_has_the_newest(kept: Kept, tmp_path: Path) -> None:
    path = kept(dicos_ct(replacing=[Element(0x4010103A, "CS", "")]))
    assert read_back(TDRBuilder(path, algorithm=ALGORITHM).build(), tmp_path).dicos_version == "V03"


def test_of_a_person_anomaly_locators_are_reported(kept: Kept, tmp_path: Path) -> None:
    path = kept(dicos_ct(replacing=[Element(0x40101042, "CS", "PERSON")]))
    builder = TDRBuilder(path, algorithm=ALGORITHM).add(Detection(anomaly_locators=[(1.0, 2.0, 3.0)]))
    (threat,) = read_back(builder.build(), tmp_path).threats
    assert threat.representations[0].anomaly_locators == ((1.0, 2.0, 3.0),)
    with pytest.raises(CannotReport, match="of a person"):
        builder.add(Detection(box=((0, 0, 0), (1, 1, 1))))


def test_sections_of_different_sizes_are_reported_on(kept: Kept, tmp_path: Path) -> None:
    parts = [kept(one) for one in two_section_ct()]
    builder = TDRBuilder(open_instance(parts), algorithm=ALGORITHM)
    view = read_back(builder.add(Detection(box=((0, 0, 0), (2, 2, 2)))).build(), tmp_path)
    assert len(view.references) == 1


def test_one_seed_makes_one_report(kept: Kept) -> None:
    path = kept(dicos_ct())
    made = [
        TDRBuilder(path, algorithm=ALGORITHM, started_at=START, seed=seed).build(decided_at=END)
        for seed in ("a", "a", "b", None, None)
    ]
    assert made[0] == made[1]
    assert len({one.sop_instance_uid for one in made}) == 4


def test_a_box_is_compared_with_the_image_by_the_validator(kept: Kept) -> None:
    image = dicos_ct()
    builder = TDRBuilder(kept(image), algorithm=ALGORITHM).add(Detection(box=((15, 15, 3), (1, 1, 1))))
    report = builder.build()
    assert judged(report, {image.sop_instance_uid: Volume(16, 16, 4)}).findings == ()
    assert judged(report, {image.sop_instance_uid: Volume(15, 16, 4)}).findings != ()


@pytest.mark.parametrize(
    ("detection", "problem"),
    [
        (Detection(), "needs a box, a mask or a polygon"),
        (Detection(box=((15, 0, 0), (2, 1, 1))), "has a column outside of 16 x 16 x 4 voxels"),
        (Detection(box=((0, 0, 4), (1, 1, 1))), "has a slice outside"),
        (Detection(box=((0, -1, 0), (1, 1, 1))), "has a row outside"),
        (Detection(box=((0, 0, 0), (1, 0, 1))), "has a row outside"),
        (Detection(box=((0, 0), (1, 1))), "a column, a row and a slice"),  # type: ignore[arg-type]
        (Detection(mask=np.zeros((4, 16, 15), bool)), "has the shape of the image"),
        (Detection(mask=np.zeros((4, 16, 16), bool)), "has no voxel"),
        (Detection(mask=np.zeros((4, 16, 16))), "an array of bool"),
        (Detection(box=((0, 0, 0), (3, 2, 1)), mask=np.ones((1, 3, 2), bool)), "and its box"),
        (Detection(polygon=[(1, 1, 1)]), "two points"),
        (Detection(box=((0, 0, 0), (1, 1, 1)), polygon=[(1, 1, 1), (17, 1, 1)]), "the point"),
        (Detection(box=((0, 0, 0), (1, 1, 1)), probability=1.5), "not from 0 to 1"),
        (Detection(box=((0, 0, 0), (1, 1, 1)), mass_grams=-3), "is no mass"),
        (Detection(box=((0, 0, 0), (1, 1, 1)), density=float("nan")), "is no density"),
        (Detection(box=((0, 0, 0), (1, 1, 1)), category="FROG"), "none of EXPLOSIVE, PI,"),
        (Detection(box=((0, 0, 0), (1, 1, 1)), flag="FROG"), "the flag 'FROG'"),
        (Detection(box=((0, 0, 0), (1, 1, 1)), ability="FROG"), "the ability"),
        (Detection(box=((0, 0, 0), (1, 1, 1)), description="x" * 10_241), "the description has 10241"),
        (Detection(box=((0, 0, 0), (1, 1, 1)), location="x" * 1_025), "the location has 1025"),
        (Detection(box=((0, 0, 0), (1, 1, 1)), image=1), "no image 1"),
        (Detection(box=((0, 0, 0), (1, 1, 1)), number=70_000), "the ids of objects"),
    ],
)
def test_what_cannot_be_reported_is_refused_with_its_reason(
    detection: Detection, problem: str, kept: Kept
) -> None:
    builder = TDRBuilder(kept(dicos_ct()), algorithm=ALGORITHM)
    with pytest.raises(CannotReport, match=problem):
        builder.add(detection)


def test_a_report_that_would_not_be_whole_is_refused(kept: Kept, tmp_path: Path) -> None:
    path = kept(dicos_ct())
    with pytest.raises(CannotReport, match="manufacturer and version"):
        TDRBuilder(path)
    with pytest.raises(CannotReport, match="a text of the algorithm has 65 characters"):
        TDRBuilder(path, algorithm=("ACME", "x" * 65))
    with pytest.raises(CannotReport, match="a backslash"):
        TDRBuilder(path, algorithm=("ACME", "1\\0"))
    with pytest.raises(CannotReport, match="names its operator"):
        TDRBuilder(path, report_type="OPERATOR")
    with pytest.raises(CannotReport, match="an ALARM needs an object"):
        TDRBuilder(path, algorithm=ALGORITHM).build(decision="ALARM")
    with pytest.raises(CannotReport, match="is about an image"):
        TDRBuilder([], algorithm=ALGORITHM)
    report = tmp_path / "report.dcs"
    TDRBuilder(path, algorithm=ALGORITHM).build().write(report)
    with pytest.raises(CannotReport, match="CT, DX or AIT"):
        TDRBuilder(report, algorithm=ALGORITHM)
