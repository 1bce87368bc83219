"""DICOS objects as facts, from their views."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Final

from scp_server.cli.info_facts import Block, Fact, Part, Table, by, moment, moments, pixel_type
from scp_server.errors import CannotView
from scp_server.views.fields import Code, Reference
from scp_server.views.instance import InstanceView
from scp_server.views.opening import View
from scp_server.views.quadrupole import QRView
from scp_server.views.radiographs import DXView
from scp_server.views.threats import Algorithm, Assessment, Region, Representation, TDRView, ThreatObject
from scp_server.views.volumes import AITView, CTView, Section, VolumeView

_NO_ALGORITHM: Final = Algorithm("", "", ())
_NO_ASSESSMENT: Final = Assessment("", "", "", "", None)
_NO_PLACE: Final = Representation((), (), (), None, None, None, None, None, None, "", ())


def kind(view: View) -> str:
    """What it is, in a word or two."""
    match view:
        case CTView():
            return "DICOS CT"
        case AITView():
            return "DICOS AIT"
        case DXView():
            return "DICOS DX"
        case TDRView():
            return "DICOS threat detection report"
        case QRView():
            return "DICOS QR"


def identity(view: InstanceView) -> Iterator[Part]:
    """Object of inspection, scan, series and machine."""
    thing, scan, series, machine = view.object_of_inspection, view.scan, view.series, view.machine
    yield Block(
        "object of inspection",
        (
            Fact("id", thing.object_id),
            Fact("id type", thing.id_type),
            Fact("issuer", thing.issuer),
            Fact("type", thing.object_type),
        ),
    )
    yield Block(
        "scan",
        (
            Fact("id", scan.scan_id),
            Fact("date", scan.date, moments(scan.date, scan.time)),
            Fact("time", scan.time, ""),
            Fact("description", scan.description),
            Fact("type", scan.scan_type),
            Fact("study instance uid", scan.study_instance_uid),
        ),
    )
    yield Block(
        "series",
        (
            Fact("modality", series.modality),
            Fact("acquisition", series.acquisition_status),
            Fact("series instance uid", series.series_instance_uid),
            Fact("frame of reference uid", view.frame_of_reference_uid),
        ),
    )
    yield Block(
        "machine",
        (
            Fact("id", machine.machine_id),
            Fact("location", machine.location),
            Fact("address", machine.address),
            Fact("manufacturer", machine.manufacturer),
            Fact("model", machine.model),
            Fact("serial number", machine.serial_number),
            Fact("software", machine.software_versions),
        ),
    )


def content(view: View, problems: list[str]) -> Iterator[Part]:
    """What the kind of object is about. What cannot be read becomes one of `problems`."""
    try:
        match view:
            case VolumeView():
                yield from _volumes(view)
            case DXView():
                yield from _radiograph(view)
            case TDRView():
                yield from _report(view, problems)
            case QRView():
                yield _measurements(view)
    except CannotView as error:
        problems.append(str(error))


def _volumes(view: VolumeView) -> Iterator[Part]:
    facts = [
        Fact("image type", list(view.image_type)),
        Fact("image origin", view.image_origin),
        Fact("coordinate system", view.coordinate_system),
    ]
    if isinstance(view, CTView):
        seconds = view.acquisition_seconds
        facts += [
            Fact("acquired", view.acquisition_time, moment(view.acquisition_time)),
            Fact("acquisition seconds", seconds, "" if seconds is None else f"{seconds:.6g} s"),
        ]
    if isinstance(view, AITView):
        facts += [
            Fact("device type", view.device_type),
            Fact("inspection selection criteria", view.inspection_selection_criteria),
        ]
    yield Block("image", tuple(facts))
    yield Table("sections", tuple(_section(number, one) for number, one in enumerate(view.sections)))


def _section(number: int, section: Section) -> tuple[Fact, ...]:
    slices, rows, columns, *_ = section.shape
    slope, intercept, unit = section.rescale_slope, section.rescale_intercept, section.rescale_type
    return (
        Fact("section", number),
        Fact("slices", slices),
        Fact("rows", rows),
        Fact("columns", columns),
        Fact("pixel type", section.dtype, pixel_type(section.dtype)),
        Fact("spacing mm", list(section.spacing), by(section.spacing)),
        Fact("position mm", list(section.position)),
        Fact("kvp", section.kvp),
        Fact("rescale", [slope, intercept], f"x {slope:.6g} {intercept:+.6g} {unit}".strip()),
        Fact("rescale type", unit, ""),
    )


def _radiograph(view: DXView) -> Iterator[Part]:
    spacing = view.spacing
    tables = [len(table.entries) for table in view.lookup_tables]
    yield Block(
        "image",
        (
            Fact("shape", list(view.shape), by(view.shape)),
            Fact("pixel type", view.dtype, pixel_type(view.dtype)),
            Fact("photometric interpretation", view.photometric_interpretation),
            Fact("presentation", view.presentation_intent),
            Fact("kvp", view.kvp, "" if view.kvp is None else f"{view.kvp:.6g} kV"),
            Fact("spacing mm", list(spacing) if spacing else None, by(spacing) if spacing else ""),
            Fact("position mm", list(view.position) if view.position else None),
            Fact("orientation", list(view.orientation)),
            Fact("coordinate system", view.coordinate_system),
            Fact("image origin", view.image_origin),
            Fact("rescale slope", view.rescale_slope),
            Fact("rescale intercept", view.rescale_intercept),
            Fact("rescale type", view.rescale_type),
            Fact("lookup tables", tables, ", ".join(f"{count} entries" for count in tables)),
        ),
    )
    if view.windows:
        yield Table(
            "windows",
            tuple(
                (Fact("center", one.center), Fact("width", one.width), Fact("explanation", one.explanation))
                for one in view.windows
            ),
        )


def _report(view: TDRView, problems: list[str]) -> Iterator[Part]:
    algorithm = view.algorithm or _NO_ALGORITHM
    milliseconds = view.processing_milliseconds
    yield Block(
        "report",
        (
            Fact("type", view.report_type),
            Fact("decision", view.decision),
            Fact("decided", view.decision_time, moment(view.decision_time)),
            Fact("aborted", view.is_aborted),
            Fact("abort reason", view.abort_reason),
            Fact("algorithm", algorithm.manufacturer),
            Fact("algorithm version", algorithm.version),
            Fact("algorithm parameters", list(algorithm.parameters)),
            *(_operator(view)),
            Fact("processing ms", milliseconds),
            Fact("objects", view.total_objects),
            Fact("objects of alarm", view.alarm_objects),
        ),
    )
    yield Table("threats", tuple(_threat(one, problems) for one in view.threats))
    yield Table("images", tuple(_reference(one) for one in view.references))


def _operator(view: TDRView) -> Iterator[Fact]:
    if view.operators:
        named = [_coded(code) for one in view.operators for code in one.identification]
        yield Fact("operators", named)
        yield Fact("operators at", [one.institution for one in view.operators])


def _coded(code: Code) -> str:
    """A coded entry in words."""
    source = " ".join(part for part in (code.scheme, code.value) if part)
    return f"{code.meaning} ({source})" if code.meaning and source else code.meaning or source


def _threat(threat: ThreatObject, problems: list[str]) -> tuple[Fact, ...]:
    assessment = next(iter(threat.assessments), _NO_ASSESSMENT)
    place = next(iter(threat.representations), _NO_PLACE)
    regions = list(threat.regions)
    box = regions[0].box if regions else None
    probability = assessment.probability
    return (
        Fact("id", threat.number),
        Fact("flag", assessment.flag),
        Fact("category", assessment.category),
        Fact("probability", probability, "" if probability is None else f"{probability:.0%}"),
        Fact("description", assessment.description),
        Fact("ability", assessment.ability),
        Fact("mass g", place.mass_grams),
        Fact("density", place.density),
        Fact("base", list(box.base) if box else None),
        Fact("extents", list(box.extents) if box else None, by(box.extents) if box else ""),
        Fact("mask voxels", *_mask_voxels(regions, problems)),
        Fact("location", place.location),
        Fact("polygon", [list(one) for one in place.polygon], ""),
        Fact("assessments", [asdict(one) for one in threat.assessments], ""),
    )


def _mask_voxels(regions: list[Region], problems: list[str]) -> tuple[int | None, str]:
    try:
        counts = [count for count in (region.mask_voxels() for region in regions) if count is not None]
    except CannotView as error:
        problems.append(str(error))
        return None, "unreadable"
    return (sum(counts), str(sum(counts))) if counts else (None, "")


def _reference(reference: Reference) -> tuple[Fact, ...]:
    return (
        Fact("sop instance uid", reference.sop_instance_uid),
        Fact("sop class uid", reference.sop_class_uid),
    )


def _measurements(view: QRView) -> Part:
    return Table(
        "measurements",
        tuple(
            (
                Fact("signal to noise ratio", one.signal_to_noise_ratio),
                Fact("threshold", one.threshold),
                Fact("target materials", [_coded(code) for code in one.target_materials]),
                Fact("polygon", [list(point) for point in one.polygon]),
            )
            for one in view.measurements
        ),
    )
