"""QR: measurements of quadrupole resonance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from scp_server.views.fields import Code, Point, codes, number, numbers, points, text
from scp_server.views.instance import InstanceView


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measurement and where it was made."""

    polygon: tuple[Point, ...]
    signal_to_noise_ratio: float | None
    threshold: float | None
    target_materials: tuple[Code, ...]


class QRView(InstanceView):
    """A DICOS QR object."""

    @property
    def inspection_selection_criteria(self) -> str:
        return text(self.header, 0x4010107C)

    @cached_property
    def measurements(self) -> tuple[Measurement, ...]:
        """All of them, in order."""
        return tuple(
            Measurement(
                points(numbers(item, 0x4010101D)),
                number(item, 0x00220155),
                number(item, 0x40101073),
                codes(item, 0x40101072),
            )
            for item in self.header.items(0x40101071)
        )
