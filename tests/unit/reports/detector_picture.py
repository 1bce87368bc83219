"""`docs/detector.png`: what the example's detector finds in a suitcase.

`python -m tests.unit.reports.detector_picture` writes it again.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.picture import Canvas
from scp_server import TDRBuilder, open_instance
from scp_server.testing.dicos_objects import dicos_ct
from scp_server.testing.phantom import LUGGAGE, slices
from scp_server.views.threats import TDRView
from scp_server.views.volumes import CTView

PICTURE: Final = Path(__file__).parents[3] / "docs/detector.png"
FRAMES, ROWS, COLUMNS = 16, 36, 48
BAG = dicos_ct(
    frames=FRAMES, rows=ROWS, columns=COLUMNS, pixels=b"".join(slices(LUGGAGE, FRAMES, ROWS, COLUMNS))
)

_GREYS: Final = 250
_BACKGROUND, _INK, _WORST, _BAD = range(_GREYS, _GREYS + 4)
_COLOURS: Final = (*(0x010101 * grey for grey in range(_GREYS)), 0xFFFFFF, 0x202020, 0xE31A1C, 0xFF9F1C)
_BRIGHTEST: Final = 4_000
_SCALE: Final = 6
_MARGIN: Final = 18
_CAPTION: Final = 22
_LEGEND: Final = 64
_ACROSS: Final = 3
_SHOWN: Final = tuple(range(3, 14, 2))


def detect() -> Any:
    """The example's function."""
    return import_module("examples.density_detector").detect


def examined(folder: Path) -> tuple[CTView, TDRView]:
    """The suitcase, and what is reported of it."""
    bag, report = folder / "bag.dcs", folder / "report.dcs"
    bag.write_bytes(BAG.part10())
    view = open_instance(bag)
    assert isinstance(view, CTView)
    builder = TDRBuilder(view, algorithm=("EXAMPLE", "1.0"))
    for found in detect()(view):
        builder.add(found)
    builder.build().write(report)
    read = open_instance(report)
    assert isinstance(read, TDRView)
    return view, read


def picture(bag: CTView, report: TDRView) -> bytes:
    """Slices with the boxes of what was found, and below what that is, as a PNG."""
    voxels = bag.volume()
    wide, high = COLUMNS * _SCALE, ROWS * _SCALE
    down = -(-len(_SHOWN) // _ACROSS)
    canvas = Canvas(
        _ACROSS * (wide + _MARGIN) + _MARGIN, down * (high + _MARGIN + _CAPTION) + _MARGIN + _LEGEND, _COLOURS
    )
    canvas.box(0, 0, canvas.width, canvas.height, _BACKGROUND)
    for place, number in enumerate(_SHOWN):
        left = _MARGIN + place % _ACROSS * (wide + _MARGIN)
        top = _MARGIN + place // _ACROSS * (high + _MARGIN + _CAPTION)
        canvas.text(left, top, f"slice {number}", _INK)
        top += _CAPTION
        for row in range(ROWS):
            for column in range(COLUMNS):
                grey = min(_GREYS - 1, int(voxels[number, row, column]) * _GREYS // _BRIGHTEST)
                canvas.box(left + column * _SCALE, top + row * _SCALE, _SCALE, _SCALE, grey)
        for threat in report.threats:
            for region in threat.regions:
                (x, y, z), (width, height, depth) = region.box.base, region.box.extents
                if z <= number < z + depth:
                    corner = left + int(x) * _SCALE, top + int(y) * _SCALE
                    colour = _WORST if threat.assessments[0].flag == "HIGH_THREAT" else _BAD
                    _frame(canvas, *corner, int(width) * _SCALE, int(height) * _SCALE, colour)
                    canvas.text(corner[0], corner[1] - 18, f"{threat.number}", colour)
    _legend(canvas, report)
    return canvas.png()


def _legend(canvas: Canvas, report: TDRView) -> None:
    top = canvas.height - _LEGEND
    canvas.text(_MARGIN, top, f"decision {report.decision}", _INK)
    for line, threat in enumerate(report.threats, 1):
        (found,), (place,) = threat.assessments, threat.representations
        colour = _WORST if found.flag == "HIGH_THREAT" else _BAD
        told = f"{threat.number}  {found.flag}  probability {found.probability:.2f}"
        told += f"  density {place.density:.2f}  {found.description}"
        canvas.text(_MARGIN, top + 20 * line, told, colour)


def _frame(canvas: Canvas, left: int, top: int, width: int, height: int, colour: int) -> None:
    for side in (top - 2, top + height):
        canvas.box(left - 2, side, width + 4, 2, colour)
    for side in (left - 2, left + width):
        canvas.box(side, top - 2, 2, height + 4, colour)


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        PICTURE.write_bytes(picture(*examined(Path(temporary))))
