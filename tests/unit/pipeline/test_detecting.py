"""Detectors, as the outbox sees them: one report for each image, whatever happens."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from scp_server import Detection, NotDelivered, Reject, Undeliverable, detector
from scp_server.errors import CannotView, ConfigurationError
from scp_server.index.base import PartRecord
from scp_server.pipeline.callback import callbacks_of
from scp_server.pipeline.callbacks import ActiveCallbacks
from scp_server.pipeline.deliveries import Delivery, EventKind, LoggedEvent
from scp_server.pipeline.detecting import DetectorSubscriber
from scp_server.pipeline.instances import Archive, StoredFiles
from scp_server.pipeline.registry import CallbackSources, load_callbacks
from scp_server.reports.report import ThreatReport
from scp_server.testing.dicos_objects import dicos_ct, dicos_tdr, two_section_ct
from scp_server.testing.encoded_object import EncodedObject

ALGORITHM = ("ACME", "2.1")


@detector(algorithm=ALGORITHM)
def finds(bag: Any) -> Iterator[Detection]:
    for number, section in enumerate(bag.sections):
        yield Detection(box=((0, 0, number), (1, 1, 1)), description=f"{section.shape}")


@detector(algorithm=ALGORITHM, timeout_seconds=0.5)
def sleeps(bag: Any) -> list[Detection]:
    time.sleep(60)
    return []


@detector(algorithm=ALGORITHM)
def raises(bag: Any) -> list[Detection]:
    raise RuntimeError("no model")


@detector(algorithm=ALGORITHM)
def cannot_read(bag: Any) -> list[Detection]:
    raise CannotView("the pixels are damaged")


@detector(algorithm=ALGORITHM)
def rejects(bag: Any) -> list[Detection]:
    raise Reject(0xC000, "no bag")


@detector(algorithm=ALGORITHM, attempts=1, abort_report=False)
def gives_something_else(bag: Any) -> list[Any]:
    return ["a knife"]


@dataclass
class Lane:
    """An archive with what one association has brought, and the reports that are kept in it."""

    folder: Path
    records: list[PartRecord] = field(default_factory=list)
    reports: list[ThreatReport] = field(default_factory=list)
    refusal: Exception | None = None

    def bring(self, *objects: EncodedObject) -> None:
        for one in objects:
            number = 1 + sum(each.sop_instance_uid == one.sop_instance_uid for each in self.records)
            location = f"{len(self.records)}.dcm"
            (self.folder / location).write_bytes(one.part10())
            record = PartRecord(
                study_instance_uid=one.study_instance_uid,
                series_instance_uid=one.series_instance_uid,
                sop_class_uid=one.sop_class_uid,
                sop_instance_uid=one.sop_instance_uid,
                part_number=number,
                transfer_syntax_uid=one.transfer_syntax_uid,
                digest_algorithm="sha256",
                digest=hashlib.sha256(one.dataset).digest(),
                location=location,
                size_bytes=len(one.part10()),
                dataset_offset_bytes=0,
                arrival_id="a",
                received_at_ns=1,
                calling_ae_title="LANE7",
                called_ae_title="ARCHIVE",
            )
            self.records.append(record)

    async def parts(self, sop_instance_uid: str) -> list[PartRecord]:
        kept = [one for one in self.reports if one.sop_instance_uid == sop_instance_uid]
        template = self.records[0]
        return [
            *(one for one in self.records if one.sop_instance_uid == sop_instance_uid),
            *(replace(template, sop_instance_uid=one.sop_instance_uid) for one in kept),
        ]

    async def keep(self, report: ThreatReport, detector: str) -> None:
        if self.refusal is not None:
            raise self.refusal
        assert detector
        self.reports.append(report)

    async def stored_by(self, association_id: str) -> AsyncIterator[LoggedEvent]:
        assert association_id == "a-1"
        for number, one in enumerate(self.records):
            data = {
                "sop_class_uid": one.sop_class_uid,
                "sop_instance_uid": one.sop_instance_uid,
                "study_instance_uid": one.study_instance_uid,
                "modality": "TDR" if one.sop_class_uid.endswith(".3") else "CT",
                "calling_ae_title": "LANE7",
            }
            yield LoggedEvent(number, EventKind.OBJECT_STORED, 0, "", one.location, "a-1", data)


@pytest.fixture
def lane(tmp_path: Path) -> Lane:
    return Lane(tmp_path)


class Detecting:
    """A detector with its process."""

    def __init__(self, function: Any, lane: Lane) -> None:
        files = StoredFiles(lane.folder)
        registry = load_callbacks(CallbackSources([function], entry_points=False))
        self.callbacks = ActiveCallbacks(registry)
        (found,) = self.callbacks.subscribers(Archive(files, files), lane, lane)
        assert isinstance(found, DetectorSubscriber)
        self.subscriber = found

    async def __aenter__(self) -> Detecting:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.callbacks.close()

    async def deliver(self, attempt: int = 1) -> None:
        event = LoggedEvent(
            9, EventKind.ASSOCIATION_ENDED, 0, "a-1", None, "a-1", {"calling_ae_title": "LANE7"}
        )
        await self.subscriber.deliver(Delivery(event, attempt, attempt > 1, "key"))


async def test_each_image_has_one_report_however_often_it_is_delivered(lane: Lane) -> None:
    lane.bring(dicos_ct(seed=1), dicos_ct(seed=2), dicos_tdr())
    async with Detecting(finds, lane) as detecting:
        await detecting.deliver()
        await detecting.deliver(attempt=2)
        assert [(one.decision, one.total_objects) for one in lane.reports] == [("ALARM", 1), ("ALARM", 1)]
        lane.bring(dicos_ct(seed=3))
        await detecting.deliver()
    assert len({one.sop_instance_uid for one in lane.reports}) == len(lane.reports) == 3


async def test_all_parts_of_an_image_are_examined_together_and_another_part_is_another_image(
    lane: Lane,
) -> None:
    first, second = two_section_ct()
    lane.bring(first)
    async with Detecting(finds, lane) as detecting:
        await detecting.deliver()
        lane.bring(second)
        await detecting.deliver()
    assert [one.total_objects for one in lane.reports] == [1, 2]


async def test_one_that_takes_too_long_is_tried_again_and_then_reported_as_an_abort(lane: Lane) -> None:
    lane.bring(dicos_ct())
    async with Detecting(sleeps, lane) as detecting:
        with pytest.raises(NotDelivered, match=r"longer than 0\.5 s"):
            await detecting.deliver()
        assert lane.reports == []
        with pytest.raises(Undeliverable, match=r"longer than 0\.5 s"):
            await detecting.deliver(attempt=2)
        # Killed before it was a dead letter.
        with pytest.raises(Undeliverable, match="given up before"):
            await detecting.deliver(attempt=3)
    (report,) = lane.reports
    assert report.decision == "UNKNOWN"
    assert b"TIMEOUT " in report.dataset


@pytest.mark.parametrize(
    ("function", "attempt", "reason"),
    [(raises, 2, b"NOT_REVIEWED"), (cannot_read, 1, b"UNKNOWN_DATATYPE"), (rejects, 1, b"UNKNOWN_DATATYPE")],
)
async def test_the_reason_of_an_abort_is_why_it_was_given_up(
    function: Any, attempt: int, reason: bytes, lane: Lane
) -> None:
    lane.bring(dicos_ct())
    async with Detecting(function, lane) as detecting:
        with pytest.raises(Undeliverable):
            await detecting.deliver(attempt)
    assert [reason in one.dataset for one in lane.reports] == [True]


async def test_without_abort_reports_there_is_a_dead_letter_alone(lane: Lane) -> None:
    lane.bring(dicos_ct())
    async with Detecting(gives_something_else, lane) as detecting:
        with pytest.raises(Undeliverable, match="CannotReport at "):
            await detecting.deliver()
    assert lane.reports == []


async def test_an_image_that_fails_does_not_keep_others_from_being_examined(lane: Lane) -> None:
    lane.bring(dicos_ct(seed=1), dicos_ct(seed=2))
    (lane.folder / lane.records[0].location).write_bytes(b"no image")
    async with Detecting(finds, lane) as detecting:
        with pytest.raises(Undeliverable, match="not even that it was given up"):
            await detecting.deliver()
    assert [one.decision for one in lane.reports] == ["ALARM"]


async def test_a_report_that_cannot_be_kept_now_is_tried_again(lane: Lane) -> None:
    lane.bring(dicos_ct())
    lane.refusal = NotDelivered("disk full")
    async with Detecting(finds, lane) as detecting:
        with pytest.raises(NotDelivered, match="disk full"):
            await detecting.deliver(attempt=5)
        lane.refusal = None
        await detecting.deliver(attempt=6)
    assert len(lane.reports) == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"algorithm": "ACME"}, "manufacturer, version"),
        ({"algorithm": ("ACME",)}, "manufacturer, version"),
        ({"algorithm": ("AC\\ME", "1")}, "backslash"),
        ({"algorithm": ALGORITHM, "attempts": 0}, "attempts: must be at least 1"),
        ({"algorithm": ALGORITHM, "modalities": "CT"}, "must be a list of texts"),
        ({"algorithm": ALGORITHM, "timeout_seconds": 0}, "timeout_seconds: must be greater than 0"),
    ],
)
def test_a_detector_that_cannot_be_is_refused_where_it_is_made(
    arguments: dict[str, Any], problem: str
) -> None:
    def detect(bag: Any) -> list[Detection]:
        return []

    detect.__qualname__ = "detect"
    with pytest.raises(ConfigurationError, match=problem):
        detector(**arguments)(detect)


def test_a_detector_stays_a_function_and_looks_at_cts_unless_it_says_otherwise() -> None:
    assert list(finds(type("Bag", (), {"sections": ()})())) == []
    (made,) = callbacks_of(finds)
    assert (made.filter.sop_classes, made.filter.modalities) == (("dicos",), ("CT",))
