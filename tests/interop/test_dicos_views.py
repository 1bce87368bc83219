"""Views beside the real DICOS toolkit: voxel by voxel and field by field what it reads from the same file."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scp_server import Detection, TDRBuilder, open_instance
from scp_server.reports.builder import OperatorIdentity
from scp_server.testing.dataset_encoder import Element, TransferSyntax
from scp_server.testing.dicos_objects import dicos_ct, dicos_dx, dicos_tdr
from scp_server.testing.encoded_object import EncodedObject
from scp_server.views.radiographs import DXView, Window
from scp_server.views.threats import TDRView
from scp_server.views.volumes import CTView, Section

pytestmark = pytest.mark.interop

PROGRAM = Path(__file__).with_name("dicos_files.py")
FOUR = {
    "explicit": TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN,
    "long": TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN_64,
    "implicit": TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN,
    "rle": TransferSyntax.RLE_LOSSLESS,
}
TYPES = {
    "enumUnsigned16Bit": "<u2",
    "enumSigned16Bit": "<i2",
    "enumUnsigned32Bit": "<u4",
    "enumUnsigned64Bit": "<u8",
    "enumFloat": "<f4",
}
WORDS = {
    "enumExplosive": "EXPLOSIVE",
    "enumProhibitedItem": "PI",
    "enumShield": "SHIELD",
    "enumNoInterference": "NO_INTERFERENCE",
    "enumThreat": "THREAT",
    "enumHighThreat": "HIGH_THREAT",
    "enumMachine": "MACHINE",
    "enumOperator": "OPERATOR",
    "enumAlarm": "ALARM",
    "enumClear": "CLEAR",
    "enumUnknownAlarmDecision": "UNKNOWN",
    "enumAnomaly": "ANOMALY",
    "enumContraband": "CONTRABAND",
}
"""The standard's words for the toolkit's."""


def _typed(tag: int, vr: str, dtype: str, sop_class: str) -> EncodedObject:
    """A CT of the factory whose voxels have another type."""
    voxels = (np.arange(4 * 16 * 16) - (500 if "i" in dtype else 0)).astype(dtype)
    bits = voxels.itemsize * 8
    description = [
        Element(0x00080016, "UI", "1.2.840.10008.5.1.4.1.1.501." + sop_class),
        Element(0x00280100, "US", bits),
        Element(0x00280101, "US", bits),
        Element(0x00280102, "US", bits - 1),
        Element(0x00280103, "US", int("i" in dtype)),
    ]
    return dicos_ct(replacing=[*description, Element(tag, vr, voxels.tobytes())])


def _made() -> dict[str, EncodedObject]:
    """The factories' objects that the toolkit is to read."""
    made = {f"ct-ours-{name}": dicos_ct(transfer_syntax=syntax) for name, syntax in FOUR.items()}
    for version in ("V02", "V02A", "V03"):
        made[f"ct-ours-{version}"] = dicos_ct(replacing=[Element(0x4010103A, "CS", version)])
    made["ct-ours-signed"] = _typed(0x7FE00010, "OW", "<i2", "1")
    made["ct-ours-32"] = _typed(0x7FE00011, "OL", "<u4", "1.1")
    made["ct-ours-float"] = _typed(0x7FE00013, "OF", "<f4", "1.3")
    made["dx-ours"] = dicos_dx()
    made["tdr-ours"] = dicos_tdr()
    made["tdr-ours-operator"] = dicos_tdr(tdr_type="OPERATOR")
    return made


OURS = _made()
BUILT = [
    f"tdr-built-{name}"
    for name in ("box", "mask", "polygon", "clear", "aborted", "operator", "two", "dx", "v02a")
]


def _build(folder: Path) -> None:
    """Reports of `TDRBuilder` that the toolkit is to read."""
    earlier = dicos_ct(seed=3, replacing=[Element(0x4010103A, "CS", "V02A")])
    images = [dicos_ct(seed=1), dicos_ct(seed=2), dicos_dx(), earlier]
    files = [folder / f"{number}.image" for number in range(len(images))]
    for file, one in zip(files, images, strict=True):
        file.write_bytes(one.part10())
    algorithm = ("ACME", "2.1", "-threshold=0.5")
    ct, dx = files[0], files[2]
    mask = np.zeros((4, 16, 16), bool)
    mask[1:3, 4:9, 5:8] = np.arange(30).reshape(2, 5, 3) % 3 > 0
    known = {"probability": 0.5, "mass_grams": 3.0, "density": 1.5, "description": "A thing"}
    box = Detection(box=((4, 5, 1), (3, 4, 2)), category="EXPLOSIVE", flag="HIGH_THREAT", **known)  # type: ignore[arg-type]
    masked = Detection(mask=mask, category="CONTRABAND", ability="SHIELD", **known)  # type: ignore[arg-type]
    drawn = Detection(polygon=[(2.5, 3, 1), (6, 3, 1), (4, 7.5, 1)], **known)  # type: ignore[arg-type]
    flat = Detection(box=((4, 5, 0), (3, 4, 1)), **known)  # type: ignore[arg-type]
    operator = OperatorIdentity("OP-117", "OPERATOR^ONE", "TSA", "T2 Screening Room")
    builders = [
        TDRBuilder(ct, algorithm=algorithm).add(box).add(box),
        TDRBuilder(ct, algorithm=algorithm).add(masked),
        TDRBuilder(ct, algorithm=algorithm).add(drawn),
        TDRBuilder(ct, algorithm=algorithm),
        TDRBuilder(ct, algorithm=algorithm).abort("TIMEOUT"),
        TDRBuilder(ct, report_type="OPERATOR", operator=operator).add(box),
        TDRBuilder(files[:2], algorithm=algorithm).add(masked),
        TDRBuilder(dx, algorithm=algorithm).add(flat),
        TDRBuilder(files[3], algorithm=algorithm).add(masked),
    ]
    for name, builder in zip(BUILT, builders, strict=True):
        builder.build().write(folder / f"{name}.dcs")


THEIRS = [
    *(f"{kind}-{name}" for kind in ("ct", "tdr", "dx") for name in (*FOUR, "jpeg")),
    *(f"{kind}-{name}" for kind in ("ctfloat", "ct32", "ct64") for name in ("explicit", "long", "implicit")),
    *("ctsigned-explicit", "dxpalette-explicit"),
    *("sections-explicit0000", "sections-explicit0001", "stack-explicit"),
]


@dataclass(frozen=True, slots=True)
class Toolkit:
    """What the toolkit wrote, and what it read."""

    folder: Path
    found: dict[str, dict[str, Any]]

    def array(self, name: str) -> Any:
        return np.load(self.folder / name)


@pytest.fixture(scope="module")
def run_toolkit(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Toolkit]:
    results: list[Toolkit] = []

    def run() -> Toolkit:
        if not results:
            folder = tmp_path_factory.mktemp("dicos")
            for name, one in OURS.items():
                (folder / f"{name}.dcs").write_bytes(one.part10())
            _build(folder)
            done = subprocess.run(
                [sys.executable, PROGRAM, folder],
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
                env={**os.environ, "TZ": "UTC"},
            )
            read = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            results.append(Toolkit(folder, {one["file"].removesuffix(".dcs"): one for one in read}))
        return results[0]

    return run


@pytest.fixture
def toolkit(run_toolkit: Callable[[], Toolkit], require_peer: Callable[[str, object], None]) -> Toolkit:
    require_peer("the DICOS toolkit (pydicos)", importlib.util.find_spec("pyDICOS"))
    return run_toolkit()


def compare_section(toolkit: Toolkit, section: Section, read: dict[str, Any]) -> None:
    assert section.dtype == TYPES[read["type"]]
    assert list(section.shape) == read["shape"]
    assert list(section.position) == pytest.approx(read["position"])
    assert list(section.spacing) == pytest.approx(read["spacing"], abs=1e-6)
    assert section.slice_thickness == pytest.approx(read["thickness"])
    assert section.rescale_type == read["rescale_type"]
    if read["array"] is not None:
        assert np.array_equal(section.volume(), toolkit.array(read["array"]))
    else:
        assert section.dtype in ("<u4", "<u8"), "the toolkit hands every other type to Python"
        assert section.volume().shape == section.shape


def compare_ct(toolkit: Toolkit, view: CTView, read: dict[str, Any]) -> None:
    assert view.object_of_inspection.object_id == read["object_id"]
    assert view.sop_instance_uid == read["uid"]
    for section, found in zip(view.sections, read["sections"], strict=True):
        compare_section(toolkit, section, found)


def compare_dx(toolkit: Toolkit, view: DXView, read: dict[str, Any]) -> None:
    assert np.array_equal(view.pixels(), toolkit.array(read["array"]))
    assert [[one.center, one.width] for one in view.windows] == read["windows"]
    tables = [list(one.entries) for one in view.palette or ()]
    assert tables == [table for table in read["tables"] if table]


def compare_tdr(toolkit: Toolkit, view: TDRView, read: dict[str, Any]) -> None:
    assert (view.report_type, view.decision) == (WORDS[read["type"]], WORDS[read["decision"]])
    assert view.object_of_inspection.object_id == read["object_id"]
    assert (view.processing_milliseconds, view.image_scale) == (read["milliseconds"], read["scale"])
    for threat, found in zip(view.threats, read["threats"], strict=True):
        (place,), (assessment,), (region,) = threat.representations, threat.assessments, threat.regions
        assert threat.number == found["id"]
        assert [list(region.box.base), list(region.box.extents)] == [found["base"], found["extents"]]
        assert [list(point) for point in place.polygon] == found["polygon"]
        assert (place.mass_grams, place.density) == (found["mass"], found["density"])
        assert assessment.probability == found["probability"]
        assert assessment.description == found["description"]
        words = [WORDS[found[name]] for name in ("category", "flag", "ability")]
        assert [assessment.category, assessment.flag, assessment.ability] == words
        mask = region.mask()
        assert (mask is None) == (found["mask"] is None)
        if mask is not None:
            assert np.array_equal(mask, toolkit.array(found["mask"]).astype(bool))


@pytest.mark.parametrize("name", [*THEIRS, *OURS, *BUILT])
def test_a_view_reads_what_the_toolkit_reads(name: str, toolkit: Toolkit) -> None:
    read, view = toolkit.found[name], open_instance(toolkit.folder / f"{name}.dcs")
    assert read["kind"], read.get("log")
    match view:
        case CTView():
            compare_ct(toolkit, view, read)
        case DXView():
            compare_dx(toolkit, view, read)
        case TDRView():
            compare_tdr(toolkit, view, read)
        case _:
            pytest.fail(f"{view!r} is no view")


def test_every_file_was_compared(toolkit: Toolkit) -> None:
    assert set(toolkit.found) == {*THEIRS, *OURS, *BUILT}


@pytest.mark.parametrize("name", BUILT)
def test_the_toolkit_has_nothing_against_a_report_that_was_built(name: str, toolkit: Toolkit) -> None:
    assert toolkit.found[name]["log"] == ""


def test_sections_in_files_of_their_own_are_joined_in_the_toolkits_order(toolkit: Toolkit) -> None:
    names = ["sections-explicit0000", "sections-explicit0001"]
    view = open_instance([toolkit.folder / f"{name}.dcs" for name in names])
    assert isinstance(view, CTView)
    read = [toolkit.found[name]["sections"][0] for name in names]
    assert [one.shape for one in view.sections] == [(5, 6, 8), (3, 4, 10)]
    for section, found in zip(view.sections, read, strict=True):
        compare_section(toolkit, section, found)


def test_sections_that_follow_each_other_are_one_volume(toolkit: Toolkit) -> None:
    view = open_instance(toolkit.folder / "stack-explicit.dcs")
    assert isinstance(view, CTView)
    read = sorted(toolkit.found["stack-explicit"]["sections"], key=lambda one: float(one["position"][2]))
    assert len(read) == 3
    assert np.array_equal(view.volume(), np.concatenate([toolkit.array(one["array"]) for one in read]))
    assert view.affine((0, 0, 14)) == pytest.approx((0, 0, 28))


def test_a_machines_report_names_its_algorithm_and_image(toolkit: Toolkit) -> None:
    view = open_instance(toolkit.folder / "tdr-explicit.dcs")
    assert isinstance(view, TDRView)
    assert view.algorithm is not None
    assert view.algorithm.parameters == ("-threshold=0.5", "-model=v7")
    assert [one.sop_instance_uid for one in view.references] == [toolkit.found["ct-explicit"]["uid"]]
    assert (view.decision_time[:14], view.threats[0].analysis_milliseconds) == ("20261120101114", 1000)


def test_a_window_has_the_explanation_that_was_written(toolkit: Toolkit) -> None:
    view = open_instance(toolkit.folder / "dx-explicit.dcs")
    assert isinstance(view, DXView)
    assert view.windows == (Window(20_000, 10_000, "NORMAL"),)
