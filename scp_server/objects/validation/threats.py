"""Threat detection reports: what must agree across the potential threat objects of one report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from scp_server.objects.raw_header import AttributeSource
from scp_server.objects.uids import clean_uid
from scp_server.objects.validation.finding import Code, Findings, Path
from scp_server.objects.validation.images import number
from scp_server.objects.validation.steps import Budget, Steps
from scp_server.objects.validation.subject import THREAT_SEQUENCE, Subject

_PTO_ID: Final = 0x40101010
_REPRESENTATIONS: Final = 0x40101037
_REFERENCED_INSTANCES: Final = 0x0008114A
_REFERENCED_INSTANCE_UID: Final = 0x00081155
_REGIONS: Final = 0x40101001
_REGION_BASE: Final = 0x40101004
_REGION_EXTENTS: Final = 0x40101005
_REGION_BITMAP: Final = 0x40101006
_POLYGON: Final = 0x4010101D
_ASSESSMENTS: Final = 0x40101038
_PROBABILITY: Final = 0x40101016
_TOTAL_OBJECTS: Final = 0x40101033
_ALARM_OBJECTS: Final = 0x40101034
_IMAGE_SCALE: Final = 0x40101075
_COORDINATES: Final = 3
_FLOAT_BYTES: Final = 4


class Volume(NamedTuple):
    """The size of a referenced image in voxels, in the order of a region's base and extents."""

    columns: int
    rows: int
    frames: int


Volumes = Mapping[str, Volume]
"""Sizes of images that a report may refer to, by their SOP Instance UIDs."""


def check_threats(subject: Subject, volumes: Volumes, findings: Findings, budget: Budget) -> Steps:
    """Look at every potential threat object (PTO), and compare their number with what the report says.

    A region is compared with the image it lies in where `volumes` has that.
    """
    ids: set[int] = set()
    count = 0
    for count, pto in enumerate(subject.header.items(THREAT_SEQUENCE), 1):
        path = Path(THREAT_SEQUENCE)
        identifier = number(pto, _PTO_ID)
        if identifier is not None and identifier in ids:
            sentence = f"PotentialThreatObjectID {identifier} was there before."
            findings.add(Code.PTO_ID, sentence, Path(_PTO_ID, path.inside(count)), "US")
        elif identifier is not None:
            ids.add(identifier)
        budget.spend()
        yield
        for where, inner in _items(pto, _REPRESENTATIONS, path.inside(count)):
            yield from _check_representation(inner, where, volumes, findings, budget)
        for where, inner in _items(pto, _ASSESSMENTS, path.inside(count)):
            if budget.spend():
                yield
            _check_probability(inner, where, findings)
    _check_scale(subject.header, findings)
    if subject.is_whole(THREAT_SEQUENCE):
        _check_counts(subject.header, count, findings)


_Around = tuple[tuple[int, int], ...]


def _items(source: AttributeSource, tag: int, around: _Around) -> Iterator[tuple[_Around, AttributeSource]]:
    path = Path(tag, around)
    for item_number, item in enumerate(source.items(tag), 1):
        yield path.inside(item_number), item


def _check_scale(header: AttributeSource, findings: Findings) -> None:
    for value in header.value(_IMAGE_SCALE):
        if not isinstance(value, float) or not 0 < value < math.inf:
            sentence = f"ImageScaleRepresentation is {value}, which is no scale."
            findings.add(Code.SCALE, sentence, Path(_IMAGE_SCALE), "FD")
            return


def _check_counts(header: AttributeSource, count: int, findings: Findings) -> None:
    alarms, total = number(header, _ALARM_OBJECTS), number(header, _TOTAL_OBJECTS)
    if alarms is not None and alarms > count:
        sentence = f"NumberOfAlarmObjects is {alarms}, but the report has {count} threat objects."
        findings.add(Code.ALARM_OBJECTS, sentence, Path(_ALARM_OBJECTS), "US")
    if total is not None and total != count:
        sentence = f"NumberOfTotalObjects is {total}, but the report has {count} threat objects."
        findings.add(Code.TOTAL_OBJECTS, sentence, Path(_TOTAL_OBJECTS), "US")


def _check_representation(
    source: AttributeSource, around: _Around, volumes: Volumes, findings: Findings, budget: Budget
) -> Steps:
    polygon = source.get(_POLYGON)
    if polygon is not None and polygon.length_bytes:
        numbers = polygon.length_bytes // _FLOAT_BYTES
        if numbers % _COORDINATES or numbers < 2 * _COORDINATES:
            sentence = f"BoundingPolygon has {numbers} numbers: two or more points have three each."
            findings.add(Code.POLYGON, sentence, Path(_POLYGON, around), polygon.vr)
    known = (
        []
        if not volumes
        else [
            volumes[uid]
            for item in source.items(_REFERENCED_INSTANCES)
            if (uid := clean_uid(item.raw(_REFERENCED_INSTANCE_UID) or b"")) in volumes
        ]
    )
    for where, region in _items(source, _REGIONS, around):
        if budget.spend():
            yield
        _check_region(region, where, known, findings)


def _check_region(
    region: AttributeSource, around: _Around, volumes: list[Volume], findings: Findings
) -> None:
    base, extents = _point(region, _REGION_BASE), _point(region, _REGION_EXTENTS)
    if extents is None:
        return
    if not all(math.isfinite(extent) and extent >= 0 for extent in extents):
        sentence = "ThreatROIExtents has a number that is no length."
        findings.add(Code.REGION, sentence, Path(_REGION_EXTENTS, around), "FL")
        return
    bitmap = region.get(_REGION_BITMAP)
    if bitmap is not None and bitmap.length_bytes:
        expected = -(-math.prod(round(extent) for extent in extents) // 8)
        if bitmap.length_bytes not in (expected, expected + expected % 2):
            sentence = (
                f"ThreatROIBitmap has {bitmap.length_bytes} bytes; a bit for each voxel makes {expected}."
            )
            findings.add(Code.BITMAP, sentence, Path(_REGION_BITMAP, around), bitmap.vr)
    if base is None or not volumes:
        return
    if not any(_lies_in(volume, base, extents) for volume in volumes):
        sentence = "The region reaches beyond the image that it refers to."
        findings.add(Code.REGION, sentence, Path(_REGION_BASE, around), "FL")


def _lies_in(volume: Volume, base: tuple[float, ...], extents: tuple[float, ...]) -> bool:
    edges = zip(base, extents, volume, strict=True)
    return all(low >= 0 and low + length <= size for low, length, size in edges)


def _point(source: AttributeSource, tag: int) -> tuple[float, ...] | None:
    """Three numbers; None where there are others, or another number of them."""
    values = tuple(value for value in source.value(tag) if isinstance(value, int | float))
    return values if len(values) == _COORDINATES else None


def _check_probability(source: AttributeSource, around: _Around, findings: Findings) -> None:
    """0 to 1; a negative one says that there is none."""
    for value in source.value(_PROBABILITY):
        if not isinstance(value, float) or not value <= 1:
            sentence = f"ATDAssessmentProbability is {value}, which is no probability."
            findings.add(Code.PROBABILITY, sentence, Path(_PROBABILITY, around), "FL")
            return
