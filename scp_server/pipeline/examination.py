"""One image that a detector is to examine: what goes to its process, and the report that comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scp_server.errors import CannotReport, CannotView
from scp_server.index.base import PartRecord
from scp_server.observability.text import peer_text
from scp_server.pipeline.verdicts import Undeliverable
from scp_server.reports.builder import AbortReason, TDRBuilder
from scp_server.reports.detection import Detection
from scp_server.reports.report import ThreatReport, made_uid
from scp_server.views.opening import open_instance

Detect = Callable[[Any], Iterable[Detection]]
"""What a detector is: from a view to what was found."""

_ABORTED: Final = "aborted"


@dataclass(slots=True)
class Examination:
    """An image, all its parts, and what its report is to say of its origin.

    `seed` follows from the detector and from every byte of the image, so that one image has one report
    however often it is examined. `report` is what came of it; None before.
    """

    sop_instance_uid: str
    paths: tuple[Path, ...]
    """The files of its parts, in the order of their arrival."""
    algorithm: tuple[str, ...]
    seed: str
    report: ThreatReport | None = None

    @classmethod
    def of(
        cls, name: str, algorithm: tuple[str, ...], parts: Sequence[PartRecord], path: Callable[[str], Path]
    ) -> Examination:
        """That of an image with these parts, at least one, by the detector `name`."""
        uid = parts[0].sop_instance_uid
        digests = sorted(one.content_digest.hex() for one in parts)
        ordered = sorted(parts, key=lambda one: one.part_number)
        paths = tuple(path(one.location) for one in ordered)
        return cls(uid, paths, algorithm, "\0".join(("detector", name, uid, *digests)))

    @property
    def report_uid(self) -> str:
        """The SOP Instance UID of its report."""
        return made_uid(self.seed, "instance")

    @property
    def abort_uid(self) -> str:
        """The SOP Instance UID of the report that says that it was given up."""
        return made_uid(self.seed + _ABORTED, "instance")

    @property
    def log_fields(self) -> dict[str, object]:
        """What log lines say of it."""
        return {"sop_instance_uid": peer_text(self.sop_instance_uid)}

    def examine(self, detect: Detect) -> None:
        """Have it examined, in this process. Raises Undeliverable where it cannot be read, CannotReport for a
        detection that cannot be said, and what the detector raises."""
        try:
            builder = self._builder(self.seed)
            for detection in detect(open_instance(self.paths)):
                if not isinstance(detection, Detection):
                    raise CannotReport(f"a detector gives detections, not {type(detection).__name__}")
                builder.add(detection)
        except CannotView as error:
            raise Undeliverable(str(error)) from error
        self.report = builder.build()

    def aborted(self, reason: AbortReason) -> ThreatReport:
        """The report that it was given up. Reads the image's header. Raises CannotReport, CannotView or
        OSError."""
        return self._builder(self.seed + _ABORTED).abort(reason).build()

    def _builder(self, seed: str) -> TDRBuilder:
        view = open_instance(self.paths)
        return TDRBuilder([view], algorithm=self.algorithm, seed=seed)
