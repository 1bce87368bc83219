"""A detector to begin with: what is as dense as it should not be, and large enough, is a threat.

It marks every group of voxels that touch each other and are all denser than a threshold. A real detector
looks for more than density; this one is an example, and no judge of baggage.
"""

from itertools import pairwise

import numpy

from scp_server import Detection, detector

ALARM = 1_500
"""Rescaled voxels from here on are dense."""
SMALLEST_VOXELS = 20
"""Fewer are noise."""


@detector(name="density", algorithm=("EXAMPLE", "1.0", f"-alarm={ALARM}"), timeout_seconds=60)
def detect(bag):
    """Find what is dense in a CT."""
    voxels = bag.volume(rescaled=True)
    column_mm, row_mm, slice_mm = bag.planes.spacing
    voxel_cm3 = column_mm * row_mm * slice_mm / 1_000
    for mask in components(voxels >= ALARM):
        size = int(mask.sum())
        if size < SMALLEST_VOXELS:
            continue
        mean = float(voxels[mask].mean())
        density = mean / 1_000  # Of water it is about 1 where voxels are Hounsfield units and 1000.
        yield Detection(
            mask=mask,
            category="ANOMALY",
            flag="HIGH_THREAT" if mean >= 2 * ALARM else "THREAT",
            probability=min(0.99, mean / (4 * ALARM) + 0.25),
            description=f"{size} dense voxels",
            density=density,
            mass_grams=density * size * voxel_cm3,
        )


def components(dense):
    """The groups of voxels that share a face, each as a mask of the whole volume, the first voxel first.

    Every voxel begins with a number of its own, and takes the highest of its neighbours' until nothing
    changes; each pass carries numbers along whole axes, so that few are needed.
    """
    labels = numpy.where(dense, numpy.arange(1, dense.size + 1).reshape(dense.shape), 0)
    while True:
        before = labels.copy()
        for axis in range(3):
            for there in (labels, numpy.flip(labels, axis)):
                _carry(numpy.moveaxis(there, axis, 0))
        if numpy.array_equal(before, labels):
            break
    for label in sorted(numpy.unique(labels[dense]), key=lambda one: numpy.argmax(labels == one)):
        yield labels == label


def _carry(labels):
    """From the first plane to the last, each voxel takes the number before it where that is higher."""
    for before, here in pairwise(labels):
        numpy.maximum(here, before, out=here, where=here > 0)
