"""Every metric of the server, declared once: its name, its kind, its labels, and where its number comes from.

The numbers are kept in `measures`; here they are read, when Prometheus asks. A new metric is one line in
`METRICS` and one row in `docs/operating.md`, which a test compares with what the server says. Labels come
from closed sets: a peer's text is never one.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Literal

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from scp_server.observability.measures import OTHER_STATUS, Histogram, Levels, Measures
from scp_server.observability.samples import Samples, Sum, samples_of
from scp_server.protocol.pdu import RejectReason

TEXT_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_OPENMETRICS = "application/openmetrics-text"

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class View:
    """What a reading is made from."""

    measures: Measures
    levels: Levels
    version: str


@dataclass(frozen=True, slots=True)
class Declaration:
    """One metric. `read` yields label values and the number (a Histogram, where that is the kind)."""

    name: str
    kind: Kind
    meaning: str
    labels: Labels
    read: Callable[[View], Iterable[tuple[Labels, float | Histogram]]]


def _single(
    name: str, kind: Kind, meaning: str, read: Callable[[View], float | Histogram | None]
) -> Declaration:
    """A metric without labels; a number of None is left out."""

    def sample(view: View) -> Iterator[tuple[Labels, float | Histogram]]:
        value = read(view)
        if value is not None:
            yield (), value

    return Declaration(name, kind, meaning, (), sample)


METRICS: tuple[Declaration, ...] = (
    Declaration(
        "scp_build_info",
        "gauge",
        "Always 1; its labels say what is running.",
        ("version", "python"),
        lambda view: [((view.version, platform.python_version()), 1)],
    ),
    _single("scp_ready", "gauge", "1 while associations are accepted.", lambda view: view.levels.ready),
    _single("scp_workers", "gauge", "Processes that accept associations.", lambda v: v.levels.workers),
    _single("scp_workers_limit", "gauge", "The setting workers.", lambda v: v.levels.workers_limit),
    _single(
        "scp_workers_lost_total",
        "counter",
        "Workers that ended by themselves, or were ended because they were silent.",
        lambda v: v.measures.workers.lost,
    ),
    # -- connections and associations
    _single(
        "scp_connections", "gauge", "Sockets open for DICOM, ending ones too.", lambda v: v.levels.connections
    ),
    _single(
        "scp_connections_limit", "gauge", "limits.max_connections.", lambda v: v.levels.connections_limit
    ),
    _single(
        "scp_connections_opened_total",
        "counter",
        "Sockets accepted for DICOM.",
        lambda v: v.measures.associations.connections,
    ),
    _single(
        "scp_connections_displaced_total",
        "counter",
        "Sockets without an association that were reset to make room.",
        lambda v: v.measures.associations.displaced,
    ),
    _single(
        "scp_associations_active",
        "gauge",
        "Associations accepted and not ended.",
        lambda v: v.levels.associations,
    ),
    _single(
        "scp_associations_limit", "gauge", "limits.max_associations.", lambda v: v.levels.associations_limit
    ),
    _single(
        "scp_associations_accepted_total",
        "counter",
        "Associations accepted.",
        lambda v: v.measures.associations.accepted,
    ),
    Declaration(
        "scp_associations_rejected_total",
        "counter",
        "Associations rejected, by the reason of PS3.8 9.3.4.",
        ("reason",),
        lambda v: [
            ((RejectReason(reason).name.lower(),), count)
            for reason, count in v.measures.associations.rejected.items()
        ],
    ),
    Declaration(
        "scp_associations_ended_total",
        "counter",
        "Accepted associations that ended.",
        ("outcome",),
        lambda v: [((str(outcome),), count) for outcome, count in v.measures.associations.ended.items()],
    ),
    _single(
        "scp_received_bytes_total",
        "counter",
        "Bytes read from DICOM sockets.",
        lambda v: v.measures.associations.received_bytes,
    ),
    # -- peers
    Declaration(
        "scp_peer_associations_active",
        "gauge",
        "Associations accepted and not ended, by peer.",
        ("peer",),
        lambda v: [
            ((peer,), v.levels.associations_by_peer.get(peer, 0)) for peer in v.measures.peers.by_name
        ],
    ),
    Declaration(
        "scp_peer_associations_accepted_total",
        "counter",
        "Associations accepted, by peer.",
        ("peer",),
        lambda v: [((peer,), counts.associations) for peer, counts in v.measures.peers.by_name.items()],
    ),
    Declaration(
        "scp_peer_operations_total",
        "counter",
        "DIMSE operations that ended, by peer.",
        ("peer", "status_class"),
        lambda v: [
            ((peer, result), count)
            for peer, counts in v.measures.peers.by_name.items()
            for result, count in counts.operations.items()
        ],
    ),
    Declaration(
        "scp_peer_received_bytes_total",
        "counter",
        "Bytes of data sets, as they arrive, by peer.",
        ("peer",),
        lambda v: [((peer,), counts.dataset_bytes) for peer, counts in v.measures.peers.by_name.items()],
    ),
    # -- operations and objects
    _single(
        "scp_operations_in_flight",
        "gauge",
        "DIMSE requests that are performed or wait for their turn.",
        lambda v: v.levels.operations,
    ),
    Declaration(
        "scp_operation_duration_seconds",
        "histogram",
        "From a DIMSE request to its final response sent, its turn waited for.",
        ("service", "status_class"),
        lambda v: [
            ((str(service), result), histogram)
            for service, by_result in v.measures.operations.durations.items()
            for result, histogram in by_result.items()
        ],
    ),
    _single(
        "scp_objects_received_total",
        "counter",
        "C-STORE answered with success or a warning.",
        lambda v: v.measures.operations.objects,
    ),
    _single(
        "scp_objects_received_bytes_total",
        "counter",
        "Bytes of the data sets of those objects.",
        lambda v: v.measures.operations.object_bytes,
    ),
    Declaration(
        "scp_objects_refused_total",
        "counter",
        "C-STORE answered with a failure status.",
        ("status",),
        lambda v: [
            (("other" if status == OTHER_STATUS else f"0x{status:04X}",), count)
            for status, count in v.measures.operations.refused.items()
        ],
    ),
    Declaration(
        "scp_stage_duration_seconds",
        "histogram",
        "Where the time of an object went that the index answered for.",
        ("stage",),
        lambda v: [
            (("receive",), v.measures.reception.receive),
            (("parse",), v.measures.reception.parse),
            (("persist",), v.measures.reception.persist),
            (("index",), v.measures.reception.index),
        ],
    ),
    _single(
        "scp_patient_conflicts_total",
        "counter",
        "Objects kept that name another patient than their study.",
        lambda v: v.measures.reception.patient_conflicts,
    ),
    _single(
        "scp_objects_coerced_total",
        "counter",
        "Objects of which attributes were changed before they were stored.",
        lambda v: v.measures.reception.coerced,
    ),
    Declaration(
        "scp_findings_total",
        "counter",
        "Findings of the validation of objects.",
        ("severity",),
        lambda v: [((str(each),), count) for each, count in v.measures.reception.findings.items()],
    ),
    _single(
        "scp_validator_failures_total",
        "counter",
        "Objects that were not judged to the end: a rule failed or took too long.",
        lambda v: v.measures.reception.validator_failures,
    ),
    # -- back-pressure
    Declaration(
        "scp_reading_stopped",
        "gauge",
        "Connections that nothing is read from at this moment.",
        ("reason",),
        lambda v: [((str(why),), stop.count) for why, stop in v.measures.associations.stops.items()],
    ),
    Declaration(
        "scp_reading_stopped_seconds_total",
        "counter",
        "Time that connections were not read from, those of this moment included.",
        ("reason",),
        lambda v: [((str(why),), stop.seconds) for why, stop in v.measures.associations.stops.items()],
    ),
    _single(
        "scp_held_bytes",
        "gauge",
        "Received bytes in memory, between socket and storage.",
        lambda v: v.levels.held_bytes,
    ),
    _single(
        "scp_held_bytes_limit", "gauge", "limits.process_buffer_bytes.", lambda v: v.levels.held_bytes_limit
    ),
    _single(
        "scp_event_loop_lag_seconds",
        "histogram",
        "How late the event loop is, asked twice a second.",
        lambda v: v.measures.loop_lag,
    ),
    # -- index and storage
    _single(
        "scp_index_batch_entries",
        "histogram",
        "Entries that shared a transaction of the index.",
        lambda v: v.measures.index.batch_entries,
    ),
    _single(
        "scp_index_batch_duration_seconds",
        "histogram",
        "Time that a batch of the index took, its commit included.",
        lambda v: v.measures.index.batch_seconds,
    ),
    _single(
        "scp_index_waiting_entries",
        "gauge",
        "Entries that wait for the index's commit.",
        lambda v: v.measures.index.waiting,
    ),
    _single(
        "scp_index_failures_total",
        "counter",
        "Entries that the index could not record.",
        lambda v: v.measures.index.failures,
    ),
    # -- decisions
    Declaration(
        "scp_decisions_total",
        "counter",
        "Times that the decision on a DICOS scan became another, by the machine and what it is now.",
        ("peer", "decision"),
        lambda v: v.measures.index.decisions.decisions.copy().items(),
    ),
    Declaration(
        "scp_reports_missing_total",
        "counter",
        "DICOS scans that had no report after decisions.missing_after_seconds.",
        ("peer",),
        lambda v: [((peer,), count) for peer, count in v.measures.index.decisions.missing.copy().items()],
    ),
    _single(
        "scp_reports_orphaned_total",
        "counter",
        "Reports on nothing that had come after decisions.orphan_after_seconds.",
        lambda v: v.measures.index.decisions.orphaned,
    ),
    Declaration(
        "scp_time_to_decision_seconds",
        "histogram",
        "From a scan's first image to each report that decided on it, by our clock.",
        ("peer",),
        lambda v: [((peer,), seconds) for peer, seconds in v.measures.index.decisions.seconds.copy().items()],
    ),
    _single(
        "scp_unsettled_objects",
        "gauge",
        "Small objects whose bytes the index keeps until their files are durable.",
        lambda v: v.measures.settling.objects,
    ),
    _single(
        "scp_unsettled_bytes",
        "gauge",
        "Bytes of those objects.",
        lambda v: v.measures.settling.bytes,
    ),
    _single(
        "scp_settling_failures_total",
        "counter",
        "Attempts to make files durable that failed.",
        lambda v: v.measures.settling.failures,
    ),
    _single(
        "scp_storage_free_bytes",
        "gauge",
        "Free space of the data folder's filesystem, the reserve included.",
        lambda v: v.levels.storage_free_bytes,
    ),
    _single(
        "scp_storage_size_bytes",
        "gauge",
        "Size of the data folder's filesystem.",
        lambda v: v.levels.storage_size_bytes,
    ),
    _single(
        "scp_storage_reserve_bytes",
        "gauge",
        "Space that objects are never given (storage.reserve_bytes).",
        lambda v: v.levels.storage_reserve_bytes,
    ),
    # -- associations to remotes
    Declaration(
        "scp_outbound_associations",
        "gauge",
        "Associations to remotes: in use, kept for the next one, or waited for.",
        ("state",),
        lambda v: [
            (("used",), v.measures.outbound.used),
            (("idle",), v.measures.outbound.idle),
            (("waiting",), v.measures.outbound.waiting),
        ],
    ),
    _single(
        "scp_outbound_associations_opened_total",
        "counter",
        "Associations to remotes that were opened.",
        lambda v: v.measures.outbound.opened,
    ),
    _single(
        "scp_outbound_associations_reused_total",
        "counter",
        "Times that an open association to a remote was used again.",
        lambda v: v.measures.outbound.reused,
    ),
    _single(
        "scp_outbound_associations_failed_total",
        "counter",
        "Associations to remotes that could not be opened.",
        lambda v: v.measures.outbound.failed,
    ),
    # -- retrieves
    _single(
        "scp_suboperations_accepted",
        "gauge",
        "Sub-operations of the retrieves that are performed now.",
        lambda v: v.measures.retrieve.accepted,
    ),
    Declaration(
        "scp_suboperations_total",
        "counter",
        "C-STOREs that C-MOVE and C-GET asked for.",
        ("result",),
        lambda v: [((str(result),), count) for result, count in v.measures.retrieve.results.items()],
    ),
    _single(
        "scp_suboperations_sent_bytes_total",
        "counter",
        "Bytes of data sets that they sent.",
        lambda v: v.measures.retrieve.sent_bytes,
    ),
    _single(
        "scp_decoders_lost_total",
        "counter",
        "Decoding processes that crashed or took too long.",
        lambda v: v.measures.retrieve.decoders_lost,
    ),
    # -- rules
    Declaration(
        "scp_forward_objects_total",
        "counter",
        "Tries to forward an object.",
        ("rule", "remote", "result"),
        lambda v: [
            ((rule, remote, str(result)), count)
            for (rule, remote), counts in v.measures.forward.by_rule.items()
            for result, count in counts.results.items()
        ],
    ),
    Declaration(
        "scp_forward_sent_bytes_total",
        "counter",
        "Bytes of data sets that were forwarded.",
        ("rule", "remote"),
        lambda v: [(labels, counts.sent_bytes) for labels, counts in v.measures.forward.by_rule.items()],
    ),
    Declaration(
        "scp_webhook_calls_total",
        "counter",
        "Calls of webhooks.",
        ("rule", "result"),
        lambda v: [
            ((rule, str(result)), count)
            for rule, results in v.measures.webhook.by_rule.items()
            for result, count in results.items()
        ],
    ),
    # -- callbacks
    Declaration(
        "scp_callback_calls_total",
        "counter",
        "Calls of callbacks that ended, and notices that were dropped before one.",
        ("callback", "outcome"),
        lambda v: [
            ((name, str(outcome)), count)
            for name, counts in v.measures.callbacks.by_name.items()
            for outcome, count in counts.outcomes.items()
        ],
    ),
    Declaration(
        "scp_callback_duration_seconds",
        "histogram",
        "Time that calls of callbacks took.",
        ("callback",),
        lambda v: [((name,), counts.seconds) for name, counts in v.measures.callbacks.by_name.items()],
    ),
    Declaration(
        "scp_callbacks_running",
        "gauge",
        "Calls of callbacks under way.",
        ("callback",),
        lambda v: [((name,), counts.running) for name, counts in v.measures.callbacks.by_name.items()],
    ),
    Declaration(
        "scp_callbacks_waiting",
        "gauge",
        "Notices that callbacks have not been called with yet.",
        ("callback",),
        lambda v: [((name,), counts.waiting) for name, counts in v.measures.callbacks.by_name.items()],
    ),
    Declaration(
        "scp_callback_threads_abandoned",
        "gauge",
        "Threads that did not end at their callback's deadline.",
        ("callback",),
        lambda v: [((name,), counts.abandoned) for name, counts in v.measures.callbacks.by_name.items()],
    ),
    Declaration(
        "scp_callback_blocked_loop_total",
        "counter",
        "Times that an async callback blocked the event loop.",
        ("callback",),
        lambda v: [((name,), counts.blocked) for name, counts in v.measures.callbacks.by_name.items()],
    ),
    # -- the outbox
    Declaration(
        "scp_outbox_deliveries_total",
        "counter",
        "Tries to deliver an event that ended.",
        ("subscription", "outcome"),
        lambda v: [
            ((name, str(outcome)), count)
            for name, counts in v.measures.outbox.by_name.items()
            for outcome, count in counts.outcomes.items()
        ],
    ),
    Declaration(
        "scp_outbox_running",
        "gauge",
        "Deliveries under way.",
        ("subscription",),
        lambda v: [((name,), counts.running) for name, counts in v.measures.outbox.by_name.items()],
    ),
    Declaration(
        "scp_outbox_behind_events",
        "gauge",
        "Events of the log behind the position of a subscription.",
        ("subscription",),
        lambda v: [((name,), counts.behind) for name, counts in v.measures.outbox.by_name.items()],
    ),
    Declaration(
        "scp_outbox_lag_seconds",
        "gauge",
        "Age of the oldest event that is neither delivered nor dead.",
        ("subscription",),
        lambda v: [
            ((name,), counts.lag_seconds(time.time_ns()))
            for name, counts in v.measures.outbox.by_name.items()
        ],
    ),
    Declaration(
        "scp_outbox_parked_events",
        "gauge",
        "Events that wait for another try, or behind one that does.",
        ("subscription",),
        lambda v: [((name,), counts.parked) for name, counts in v.measures.outbox.by_name.items()],
    ),
    Declaration(
        "scp_outbox_dead_letters",
        "gauge",
        "Events that are not tried again.",
        ("subscription",),
        lambda v: [((name,), counts.dead) for name, counts in v.measures.outbox.by_name.items()],
    ),
    Declaration(
        "scp_outbox_down",
        "gauge",
        "1 while the destination takes nothing.",
        ("subscription",),
        lambda v: [((name,), int(counts.is_open)) for name, counts in v.measures.outbox.by_name.items()],
    ),
    _single(
        "scp_events_newest_id",
        "gauge",
        "Id of the newest event of the log.",
        lambda v: v.measures.outbox.newest_id,
    ),
    _single("scp_event_followers", "gauge", "Clients of GET /events.", lambda v: v.measures.outbox.followers),
    Declaration(
        "scp_event_followers_ended_total",
        "counter",
        "Clients of GET /events that are gone.",
        ("reason",),
        lambda v: [((str(why),), count) for why, count in v.measures.outbox.followers_ended.items()],
    ),
    # -- quarantine
    _single(
        "scp_quarantine_objects", "gauge", "Objects in quarantine.", lambda v: v.levels.quarantine_objects
    ),
    _single(
        "scp_quarantine_objects_limit",
        "gauge",
        "quarantine.max_objects.",
        lambda v: v.levels.quarantine_objects_limit,
    ),
    _single("scp_quarantine_bytes", "gauge", "Bytes of their files.", lambda v: v.levels.quarantine_bytes),
    _single(
        "scp_quarantine_bytes_limit",
        "gauge",
        "quarantine.max_bytes.",
        lambda v: v.levels.quarantine_bytes_limit,
    ),
    Declaration(
        "scp_quarantine_events_total",
        "counter",
        "What became of refused objects worth keeping.",
        ("event",),
        lambda v: [((str(event),), count) for event, count in v.measures.quarantine.events.items()],
    ),
)


class Metrics:
    """The metrics of one server, in a registry of its own, so that a process may have several servers.

    `others` are the samples of other processes of the server, which are added.
    """

    def __init__(
        self,
        measures: Measures,
        levels: Callable[[], Levels],
        version: str,
        others: Callable[[], Samples] = dict,
    ) -> None:
        self._own = CollectorRegistry()
        self._own.register(_Reader(measures, levels, version))
        ProcessCollector(namespace="scp", registry=self._own)
        self.registry = CollectorRegistry()
        self.registry.register(Sum(self._own, others))

    def samples(self) -> Samples:
        """What this process has counted, for another one to add."""
        return samples_of(self._own)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type: OpenMetrics where `accept` names it, else Prometheus text."""
        types = {each.partition(";")[0].strip().lower() for each in accept.split(",")}
        if _OPENMETRICS in types:
            # Untyped in the library.
            body: bytes = openmetrics.generate_latest(self.registry)  # type: ignore[no-untyped-call]
            return body, openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(self.registry), TEXT_CONTENT_TYPE


class _Reader(Collector):
    def __init__(self, measures: Measures, levels: Callable[[], Levels], version: str) -> None:
        self._measures = measures
        self._levels = levels
        self._version = version

    def collect(self) -> Iterator[Metric]:
        view = View(self._measures, self._levels(), self._version)
        for declaration in METRICS:
            yield _family(declaration, view)


def _family(declaration: Declaration, view: View) -> Metric:
    name, meaning, labels = declaration.name, declaration.meaning, declaration.labels
    if declaration.kind == "histogram":
        histograms = HistogramMetricFamily(name, meaning, labels=labels)
        for values, value in declaration.read(view):
            if isinstance(value, Histogram):
                histograms.add_metric(values, _buckets(value), value.sum)
        return histograms
    family: CounterMetricFamily | GaugeMetricFamily
    if declaration.kind == "counter":
        family = CounterMetricFamily(name, meaning, labels=labels)
    else:
        family = GaugeMetricFamily(name, meaning, labels=labels)
    for values, value in declaration.read(view):
        if not isinstance(value, Histogram):
            family.add_metric(values, value)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    return list(zip(_names(histogram.bounds), accumulate(histogram.counts), strict=True))


@cache
def _names(bounds: tuple[float, ...]) -> tuple[str, ...]:
    return (*map(floatToGoString, bounds), "+Inf")
