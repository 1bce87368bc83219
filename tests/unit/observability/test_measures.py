from __future__ import annotations

import pytest

from scp_server.observability.measures import (
    OTHER_PEER,
    OTHER_STATUS,
    UNANSWERED,
    Histogram,
    OperationMeasures,
    PeerCounts,
    PeerMeasures,
    ReceptionMeasures,
    Service,
    StageClock,
    StoppedTime,
)
from scp_server.protocol.message import CEchoRQ, CFindRQ, CGetRQ, CMoveRQ, CStoreRQ, Message, NDeleteRQ
from scp_server.protocol.status import Status
from scp_server.testing.clock import ManualClock

STORE = CStoreRQ(message_id=1, affected_sop_class_uid="1.2", affected_sop_instance_uid="1.2.3")


PEER = PeerCounts()


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
    measures.ended(PEER, CEchoRQ(message_id=1), status, 0.2, 0)
    found = {
        (service, name): (_count(histogram), histogram.sum)
        for service, by_result in measures.durations.items()
        for name, histogram in by_result.items()
        if _count(histogram)
    }
    assert found == {(Service.ECHO, result): (1, 0.2)}


@pytest.mark.parametrize(
    ("request_", "service"),
    [
        (CFindRQ(message_id=1, affected_sop_class_uid="1.2"), Service.FIND),
        (CMoveRQ(message_id=1, affected_sop_class_uid="1.2", move_destination="DEST"), Service.MOVE),
        (CGetRQ(message_id=1, affected_sop_class_uid="1.2"), Service.GET),
        (
            NDeleteRQ(message_id=1, requested_sop_class_uid="1.2", requested_sop_instance_uid="1.2.3"),
            Service.OTHER,
        ),
    ],
)
def test_every_service_is_told_apart_and_what_is_none_of_them_is_another(
    request_: Message, service: Service
) -> None:
    measures = OperationMeasures()
    measures.ended(PEER, request_, 0x0122, 0.1, 0)
    assert _count(measures.durations[service]["failure"]) == 1
    assert sum(measures.refused.values()) == 0


def test_only_answered_objects_count_as_received_or_refused() -> None:
    measures = OperationMeasures()
    for status in (0x0000, 0xB007, 0xA700, 0xC111, 0xC999, None):
        measures.ended(PEER, STORE, status, 0.1, 1000)
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
        measures.ended(PEER, STORE, status, 0.0, 0)
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


def test_what_status_tells_of_operations_is_what_the_metrics_count() -> None:
    measures, peer = OperationMeasures(), PeerCounts()
    for status in (0x0000, 0xB007, 0xA700, 0xFE00, None):
        measures.ended(peer, STORE, status, 0.1, 1000)
    measures.ended(peer, CEchoRQ(message_id=1), 0x0122, 0.1, 0)
    measures.received(peer, 700)
    assert (measures.answered, measures.failed, measures.dataset_bytes) == (5, 2, 700)
    assert peer.operations == {"success": 1, "warning": 1, "cancel": 1, "failure": 2, UNANSWERED: 1}
    assert peer.dataset_bytes == 700


def test_only_peers_of_the_settings_have_counts_of_their_own() -> None:
    peers = PeerMeasures()
    peers.configure(["CT1", "10.0.0.0/8"])
    assert list(peers.by_name) == [OTHER_PEER, "CT1", "10.0.0.0/8"]
    for name in ("CT1", "CT2", None):
        peers.of(name).associations += 1
    assert {name: counts.associations for name, counts in peers.by_name.items()} == {
        OTHER_PEER: 2, "CT1": 1, "10.0.0.0/8": 0,
    }  # fmt: skip


def test_peers_that_change_keep_their_counts_and_who_goes_becomes_another() -> None:
    peers = PeerMeasures()
    peers.configure(["CT1", "CT2"])
    peers.of("CT1").associations = 3
    peers.of("CT2").associations = 4
    peers.configure(["CT3", "CT1"])
    peers.of("CT2").associations += 1
    assert {name: counts.associations for name, counts in peers.by_name.items()} == {
        OTHER_PEER: 1, "CT3": 0, "CT1": 3,
    }  # fmt: skip


def test_a_peer_that_is_called_as_all_others_are_counts_with_them() -> None:
    peers = PeerMeasures()
    peers.configure([OTHER_PEER, "CT1", "CT1"])
    assert list(peers.by_name) == [OTHER_PEER, "CT1"]
    assert peers.of(None) is peers.of(OTHER_PEER)
