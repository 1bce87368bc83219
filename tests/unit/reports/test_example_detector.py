"""The example's detector: what it finds is what is there, and the picture in the docs shows it."""

from __future__ import annotations

import zlib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scp_server.testing.phantom import LUGGAGE
from scp_server.testing.phantom import Box as Thing
from tests.unit.reports.detector_picture import COLUMNS, FRAMES, PICTURE, ROWS, examined, picture


def voxels_of(thing: Thing) -> tuple[tuple[int, int], ...]:
    """First and last voxel of a thing along columns, rows and slices."""
    found = []
    for low, high, count in zip(thing.low, thing.high, (COLUMNS, ROWS, FRAMES), strict=True):
        inside = [one for one in range(count) if low <= (2 * one + 1) / count - 1 <= high]
        found.append((inside[0], inside[-1]))
    return tuple(found)


def test_it_finds_the_dense_things_where_they_are_and_nothing_else(tmp_path: Path) -> None:
    _, report = examined(tmp_path)
    dense = [thing for thing in LUGGAGE if isinstance(thing, Thing) and thing.value >= 1_500]
    truth = sorted(voxels_of(thing) for thing in dense)
    boxes = [region.box for threat in report.threats for region in threat.regions]
    found = sorted(
        tuple((int(at), int(at + size) - 1) for at, size in zip(box.base, box.extents, strict=True))
        for box in boxes
    )
    assert len(truth) == 2
    assert found == truth
    flags = {one.assessments[0].flag for one in report.threats}
    assert (report.decision, flags) == ("ALARM", {"THREAT", "HIGH_THREAT"})


@pytest.mark.parametrize("seed", range(3))
def test_components_are_what_a_flood_finds(seed: int) -> None:
    dense = np.random.default_rng(seed).random((5, 6, 7)) < 0.35
    masks = list(import_module("examples.density_detector").components(dense))
    left = {tuple(map(int, place)) for place in np.argwhere(dense)}
    flooded: list[set[tuple[int, ...]]] = []
    while left:
        group, edge = set(), [left.pop()]
        while edge:
            here = edge.pop()
            group.add(here)
            for axis in range(3):
                for step in (-1, 1):
                    there = (*here[:axis], here[axis] + step, *here[axis + 1 :])
                    if there in left:
                        left.remove(there)
                        edge.append(there)
        flooded.append(group)
    found: list[Any] = [{tuple(map(int, place)) for place in np.argwhere(mask)} for mask in masks]
    assert sorted(map(sorted, found)) == sorted(map(sorted, flooded))


def test_the_picture_in_the_docs_shows_it(tmp_path: Path) -> None:
    """Point by point: how they are compressed is zlib's affair."""
    assert points(PICTURE.read_bytes()) == points(picture(*examined(tmp_path)))


def points(png: bytes) -> tuple[bytes, bytes]:
    """Everything before the compressed points, and the points."""
    head, _, rest = png.partition(b"IDAT")
    return head[:-4], zlib.decompress(rest)
