"""The exposition: every metric declared once, well-formed in both formats, from closed sets of labels."""

from __future__ import annotations

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from scp_server.observability.measures import (
    Levels,
    Measures,
    Outcome,
    QuarantineEvent,
    ReadingStop,
    SubOperationResult,
)
from scp_server.observability.metrics import METRICS, TEXT_CONTENT_TYPE, Metrics
from scp_server.observability.samples import added, growing
from scp_server.protocol.message import CStoreRQ
from scp_server.protocol.pdu import RejectReason

FULL = Levels(
    ready=True,
    connections=7,
    connections_limit=4096,
    associations=5,
    associations_limit=2000,
    operations=3,
    held_bytes=11,
    held_bytes_limit=13,
    storage_free_bytes=17,
    storage_size_bytes=19,
    storage_reserve_bytes=23,
    associations_by_peer={"other": 4, "CT1": 1},
    quarantine_objects=29,
    quarantine_objects_limit=31,
    quarantine_bytes=37,
    quarantine_bytes_limit=41,
)


def _samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    body, _ = metrics.render()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_text(body.decode())
        for sample in family.samples
    }


def test_every_name_is_declared_once_and_begins_with_scp() -> None:
    names = [declaration.name for declaration in METRICS]
    assert len(set(names)) == len(names)
    assert all(name.startswith("scp_") for name in names)
    assert all(d.name.endswith("_total") is (d.kind == "counter") for d in METRICS)


def test_every_series_of_the_registry_begins_with_scp() -> None:
    names = {name for name, _ in _samples(Metrics(Measures(), lambda: FULL, "9.9"))}
    assert names
    assert [name for name in names if not name.startswith("scp_")] == []


def test_the_levels_are_those_of_the_moment() -> None:
    levels = FULL
    metrics = Metrics(Measures(), lambda: levels, "9.9")
    found = _samples(metrics)
    none: frozenset[tuple[str, str]] = frozenset()
    assert found["scp_ready", none] == 1
    for name, value in (
        ("scp_connections", 7),
        ("scp_connections_limit", 4096),
        ("scp_associations_active", 5),
        ("scp_associations_limit", 2000),
        ("scp_operations_in_flight", 3),
        ("scp_held_bytes", 11),
        ("scp_held_bytes_limit", 13),
        ("scp_storage_free_bytes", 17),
        ("scp_storage_size_bytes", 19),
        ("scp_storage_reserve_bytes", 23),
        ("scp_quarantine_objects", 29),
        ("scp_quarantine_objects_limit", 31),
        ("scp_quarantine_bytes", 37),
        ("scp_quarantine_bytes_limit", 41),
    ):
        assert found[name, none] == value
    levels = Levels()
    found = _samples(metrics)
    assert found["scp_ready", none] == 0
    assert not [name for name, _ in found if name.startswith("scp_storage_")], "unknown, so not told"


def test_what_was_measured_is_what_is_told() -> None:
    measures = Measures()
    measures.associations.rejected[RejectReason.LOCAL_LIMIT_EXCEEDED] = 2
    measures.associations.ended[Outcome.LOST] = 3
    measures.associations.stops[ReadingStop.PROCESS_BUDGET].stopped()
    request = CStoreRQ(message_id=1, affected_sop_class_uid="1.2", affected_sop_instance_uid="1.2.3")
    measures.peers.configure(["CT1"])
    measures.operations.ended(measures.peers.of("CT1"), request, 0xA700, 0.03, 10)
    measures.operations.ended(measures.peers.of(None), request, 0x0000, 1000.0, 10)
    measures.operations.received(measures.peers.of("CT1"), 6)
    measures.quarantine.events[QuarantineEvent.NOT_KEPT] = 5
    measures.retrieve.results[SubOperationResult.FAILED] = 7
    measures.retrieve.sent_bytes = 11
    measures.retrieve.accepted = 13
    measures.retrieve.decoders_lost = 17
    measures.outbound.waiting = 19
    found = _samples(Metrics(measures, Levels, "9.9"))

    def value(name: str, **labels: str) -> float:
        return found[name, frozenset(labels.items())]

    assert value("scp_associations_rejected_total", reason="local_limit_exceeded") == 2
    assert value("scp_associations_ended_total", outcome="lost") == 3
    assert value("scp_reading_stopped", reason="process_budget") == 1
    assert value("scp_objects_refused_total", status="0xA700") == 1
    assert value("scp_objects_received_bytes_total") == 10
    assert value("scp_peer_operations_total", peer="CT1", status_class="failure") == 1
    assert value("scp_peer_operations_total", peer="other", status_class="success") == 1
    assert value("scp_peer_received_bytes_total", peer="CT1") == 6
    assert value("scp_peer_received_bytes_total", peer="other") == 0
    assert value("scp_quarantine_events_total", event="not_kept") == 5
    assert value("scp_quarantine_events_total", event="kept") == 0
    assert value("scp_suboperations_total", result="failed") == 7
    assert value("scp_suboperations_total", result="completed") == 0
    assert value("scp_suboperations_sent_bytes_total") == 11
    assert value("scp_suboperations_accepted") == 13
    assert value("scp_decoders_lost_total") == 17
    assert value("scp_outbound_associations", state="waiting") == 19
    duration = "scp_operation_duration_seconds"
    failed = {"service": "store", "status_class": "failure"}
    assert value(f"{duration}_bucket", le="0.025", **failed) == 0
    assert value(f"{duration}_bucket", le="0.05", **failed) == 1
    assert value(f"{duration}_bucket", le="+Inf", **failed) == 1
    assert value(f"{duration}_sum", **failed) == 0.03
    kept = {"service": "store", "status_class": "success"}
    assert value(f"{duration}_bucket", le="300.0", **kept) == 0
    assert value(f"{duration}_count", **kept) == 1


def test_nothing_that_is_measured_adds_a_series() -> None:
    measures = Measures()
    metrics = Metrics(measures, lambda: FULL, "9.9")
    before = set(_samples(metrics))
    request = CStoreRQ(message_id=1, affected_sop_class_uid="9.8", affected_sop_instance_uid="9.8.7")
    for status in (0, 1, 0xA7FF, 0xC123, None):
        measures.operations.ended(measures.peers.of(None), request, status, 0.1, 5)
    assert set(_samples(metrics)) == before


@pytest.mark.parametrize(
    "accept",
    ["", "*/*", "text/plain;version=0.0.4", "application/openmetrics-text-not", "text/html;q=x,,;;"],
)
def test_prometheus_text_is_what_most_get(accept: str) -> None:
    body, content_type = Metrics(Measures(), lambda: FULL, "9.9").render(accept)
    assert content_type == TEXT_CONTENT_TYPE
    assert not body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text",
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3",
        "text/plain, Application/OpenMetrics-Text; version=\x01",
    ],
)
def test_openmetrics_is_given_to_who_asks_for_it(accept: str) -> None:
    body, content_type = Metrics(Measures(), lambda: FULL, "9.9").render(accept)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    names = {family.name for family in parse_openmetrics(body.decode())}  # type: ignore[no-untyped-call]
    assert {declaration.name.removesuffix("_total") for declaration in METRICS} <= names


def test_two_servers_of_a_process_count_for_themselves() -> None:
    first, second = Measures(), Measures()
    metrics = Metrics(first, Levels, "9.9"), Metrics(second, Levels, "9.9")
    first.associations.accepted = 4
    name = ("scp_associations_accepted_total", frozenset[tuple[str, str]]())
    assert [_samples(each)[name] for each in metrics] == [4, 0]


def test_a_peer_s_name_is_a_label_only_while_the_settings_name_it() -> None:
    measures = Measures()
    metrics = Metrics(measures, lambda: FULL, "9.9")

    def active() -> dict[str, float]:
        name = "scp_peer_associations_active"
        return {dict(labels)["peer"]: value for (n, labels), value in _samples(metrics).items() if n == name}

    assert active() == {"other": 4}
    measures.peers.configure(["CT1", 'A"B@10.0.0.0/8'])
    assert active() == {"other": 4, "CT1": 1, 'A"B@10.0.0.0/8': 0}
    measures.peers.configure([])
    assert active() == {"other": 4}


def test_what_other_processes_have_counted_is_added_and_what_is_of_one_only_is_not() -> None:
    mine, theirs = Measures(), Measures()
    mine.associations.accepted, theirs.associations.accepted = 2, 3
    mine.index.batch_entries.observe(4)
    theirs.index.batch_entries.observe(200)
    other = Metrics(theirs, lambda: Levels(ready=True, connections=7, connections_limit=10), "9.9").samples()
    metrics = Metrics(mine, lambda: Levels(ready=True, connections_limit=20), "9.9", lambda: other)
    body = metrics.render()[0].decode()
    for line in (
        "scp_associations_accepted_total 5.0",
        'scp_index_batch_entries_bucket{le="4.0"} 1.0',
        'scp_index_batch_entries_bucket{le="+Inf"} 2.0',
        "scp_index_batch_entries_sum 204.0",
        "scp_connections 7.0",
        "scp_connections_limit 30.0",
        "scp_ready 1.0",
    ):
        assert f"\n{line}\n" in body, line
    assert body.count("\nscp_build_info{") == 1
    assert '"} 1.0' in body[body.index("scp_build_info{") :].splitlines()[0]


def test_of_a_process_that_has_ended_only_what_grows_is_kept() -> None:
    measures = Measures()
    measures.associations.accepted = 3
    measures.loop_lag.observe(0.5)
    samples = growing(Metrics(measures, lambda: Levels(connections=7), "9.9").samples())
    names = {name for name, _ in samples}
    assert {"scp_associations_accepted_total", "scp_event_loop_lag_seconds_count"} <= names
    assert "scp_connections" not in names
    assert added(samples, samples)["scp_associations_accepted_total", ()] == 6
