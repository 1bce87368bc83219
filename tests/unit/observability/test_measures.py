from __future__ import annotations

import pytest

from scp_server.observability.measures import (
    OTHER_STATUS,
    UNANSWERED,
    Histogram,
    OperationMeasures,
    ReceptionMeasures,
    Service,
    StageClock,
    StoppedTime,
)
from scp_server.protocol.message import CEchoRQ, CFindRQ, CStoreRQ
from scp_server.protocol.status import Status
from scp_server.testing.clock import ManualClock

STORE = CStoreRQ(message_id=1, affected_sop_class_uid="1.2", affected_sop_instance_uid="1.2.3")


def _count(histogram: Histogram) -> int:
    return sum(histogram.counts)


def test_a_value_on_a_bound_counts_below_it_and_one_above_all_bounds_counts_last() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.sum == 7.5


def test_time_stopped_grows_while_it_lasts_and_counts_for_each(manual_clock: ManualClock) -> None:
    stop = StoppedTime(manual_clock)
    stop.stopped()
    manual_clock.advance(2)
    assert (stop.count, stop.seconds) == (1, 2)
    stop.stopped()
    manual_clock.advance(3)
    assert (stop.count, stop.seconds) == (2, 8)
    stop.went_on()
    stop.went_on()
    manual_clock.advance(100)
    assert (stop.count, stop.seconds) == (0, 8)


@pytest.mark.parametrize(
    ("status", "result"),
    [
        (0x0000, "success"),
        (0xB000, "warning"),
        (0xFE00, "cancel"),
        (0xA700, "failure"),
        (0x4242, "failure"),
        (0xFF00, UNANSWERED),
        (None, UNANSWERED),
    ],
)
def test_an_operation_is_counted_by_its_service_and_the_class_of_its_status(
    status: int | None, result: str
) -> None:
    measures = OperationMeasures()
    measures.ended(CEchoRQ(message_id=1), status, 0.2, 0)
    found = {
        (service, name): (_count(histogram), histogram.sum)
        for service, by_result in measures.durations.items()
        for name, histogram in by_result.items()
        if _count(histogram)
    }
    assert found == {(Service.ECHO, result): (1, 0.2)}


def test_a_request_without_a_service_of_its_own_is_another() -> None:
    measures = OperationMeasures()
    measures.ended(CFindRQ(message_id=1, affected_sop_class_uid="1.2"), 0x0122, 0.1, 0)
    assert _count(measures.durations[Service.OTHER]["failure"]) == 1
    assert sum(measures.refused.values()) == 0


def test_only_answered_objects_count_as_received_or_refused() -> None:
    measures = OperationMeasures()
    for status in (0x0000, 0xB007, 0xA700, 0xC111, 0xC999, None):
        measures.ended(STORE, status, 0.1, 1000)
    assert (measures.objects, measures.object_bytes) == (2, 2000)
    refused = {status: count for status, count in measures.refused.items() if count}
    assert refused == {
        Status.OUT_OF_RESOURCES: 1,
        Status.DUPLICATE_SOP_INSTANCE_KEPT: 1,
        OTHER_STATUS: 1,
    }


def test_no_status_that_a_service_makes_up_adds_a_series() -> None:
    measures = OperationMeasures()
    known = set(measures.refused)
    for status in range(0x10000):
        measures.ended(STORE, status, 0.0, 0)
    assert set(measures.refused) == known


def test_every_moment_of_a_reception_belongs_to_one_stage(manual_clock: ManualClock) -> None:
    stages = StageClock(manual_clock)
    for seconds, ended in (
        (1, stages.received),
        (2, stages.parsed),
        (4, stages.persisted),
        (8, stages.received),
        (16, stages.indexed),
    ):
        manual_clock.advance(seconds)
        ended()
    assert (stages.receive, stages.parse, stages.persist, stages.index) == (9, 2, 4, 16)
    measures = ReceptionMeasures()
    measures.recorded(stages)
    each = (measures.receive, measures.parse, measures.persist, measures.index)
    assert [histogram.sum for histogram in each] == [9, 2, 4, 16]
