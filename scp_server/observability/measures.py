"""What the server counts while it works: plain numbers, which `metrics` names and renders when somebody asks.

Adding to them takes no lock and looks up no text, so that an object costs a few microseconds of counting and
a fragment one addition. Everything here is changed in the event loop alone, except `IndexMeasures`' batches,
which the index's one writing thread adds to; whoever reads in between sees numbers of a moment ago.

Every key comes from a closed set: nothing that a peer sends can make another series. Whatever happens is
counted here once; what `status` tells of it (`rates`) is read from the same numbers.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from scp_server.objects.validation.finding import Severity
from scp_server.observability.rule_measures import ForwardMeasures, WebhookMeasures
from scp_server.protocol.message import CEchoRQ, CFindRQ, CGetRQ, CMoveRQ, CStoreRQ, Message
from scp_server.protocol.pdu import RejectReason
from scp_server.protocol.status import Status, StatusClass, status_class

DURATION_BOUNDS_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0,
)  # fmt: skip
DECISION_BOUNDS_SECONDS = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0)
LAG_BOUNDS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCH_BOUNDS_ENTRIES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)

OTHER_STATUS = -1
"""Stands for every failure status that `Status` does not know."""


class Histogram:
    """Observed values, counted by the smallest of `bounds` that is not below them; the last count is of those
    above all bounds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count `value`."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class StoppedTime:
    """How many are stopped now, and how long all together have been, those of this moment included."""

    __slots__ = ("_clock", "_ended_seconds", "count")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended_seconds = 0.0
        self.count = 0

    def stopped(self) -> None:
        """One more is stopped."""
        self.count += 1
        self._ended_seconds -= self._clock()

    def went_on(self) -> None:
        """One fewer is stopped."""
        self.count -= 1
        self._ended_seconds += self._clock()

    @property
    def seconds(self) -> float:
        """Time stopped; a second that two are stopped counts twice."""
        return max(0.0, self._ended_seconds + self.count * self._clock())


class ReadingStop(StrEnum):
    """Why nothing is read from a connection: which back-pressure bites."""

    PEER_DOES_NOT_READ = "peer_does_not_read"
    """Our answers wait in `limits.send_buffer_bytes`."""
    ASSOCIATION_BUFFER = "association_buffer"
    """`limits.association_buffer_bytes` are held."""
    PROCESS_BUDGET = "process_budget"
    """`limits.process_buffer_bytes` are held."""
    OPERATIONS = "operations"
    """`limits.max_pending_operations` wait."""


class Outcome(StrEnum):
    """How an association ended."""

    RELEASED = "released"
    ABORTED = "aborted"
    LOST = "lost"


class AssociationMeasures:
    """Sockets and associations of the acceptor."""

    def __init__(self) -> None:
        self.connections = 0
        self.displaced = 0
        self.received_bytes = 0
        self.accepted = 0
        self.rejected: dict[int, int] = dict.fromkeys(RejectReason, 0)
        self.ended: dict[str, int] = dict.fromkeys(Outcome, 0)
        self.stops: Mapping[str, StoppedTime] = MappingProxyType(
            {reason: StoppedTime() for reason in ReadingStop}
        )


class Service(StrEnum):
    """The services that are told apart."""

    STORE = "store"
    ECHO = "echo"
    FIND = "find"
    MOVE = "move"
    GET = "get"
    OTHER = "other"


SERVICES: Mapping[type[Message], Service] = MappingProxyType(
    {
        CStoreRQ: Service.STORE,
        CEchoRQ: Service.ECHO,
        CFindRQ: Service.FIND,
        CMoveRQ: Service.MOVE,
        CGetRQ: Service.GET,
    }
)
UNANSWERED = "unanswered"
RESULTS = ("success", "warning", "cancel", "failure", UNANSWERED)
"""The class of the final status, or that none was sent before the association ended."""
_KEPT = frozenset({StatusClass.SUCCESS.value, StatusClass.WARNING.value})


OTHER_PEER = "other"
"""Stands for every caller that no entry of the settings is about."""


@dataclass(slots=True)
class PeerCounts:
    """What one peer of the settings did, or all others together."""

    associations: int = 0
    operations: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RESULTS, 0))
    dataset_bytes: int = 0


class PeerMeasures:
    """The counts of each configured peer, by the name that we gave it, and of all others."""

    def __init__(self) -> None:
        self.by_name: dict[str, PeerCounts] = {OTHER_PEER: PeerCounts()}

    def configure(self, names: Iterable[str]) -> None:
        """These are the peers from now on. Who was one keeps its counts; whoever is none any more is one of
        the others, also for what its associations still do."""
        known = self.by_name
        self.by_name = {name: known.get(name) or PeerCounts() for name in (OTHER_PEER, *names)}

    def label(self, name: str | None) -> str:
        """What a peer that the settings call `name` is called: the same, or `OTHER_PEER`."""
        return name if name in self.by_name else OTHER_PEER

    def of(self, name: str | None) -> PeerCounts:
        """Where to count for it."""
        return self.by_name[self.label(name)]


class OperationMeasures:
    """DIMSE operations of the acceptor, and the objects among them."""

    def __init__(self) -> None:
        self.durations: Mapping[Service, Mapping[str, Histogram]] = MappingProxyType(
            {
                service: {result: Histogram(DURATION_BOUNDS_SECONDS) for result in RESULTS}
                for service in Service
            }
        )
        self._by_request = {request: self.durations[service] for request, service in SERVICES.items()}
        self._other = self.durations[Service.OTHER]
        self.dataset_bytes = 0
        """Bytes of data sets as they arrive, whatever becomes of them."""
        self.objects = 0
        self.object_bytes = 0
        self.refused: dict[int, int] = {
            OTHER_STATUS: 0,
            **{status: 0 for status in Status if status_class(status) is StatusClass.FAILURE},
        }

    def received(self, peer: PeerCounts, size_bytes: int) -> None:
        """A fragment of a data set has arrived."""
        self.dataset_bytes += size_bytes
        peer.dataset_bytes += size_bytes

    def ended(
        self, peer: PeerCounts, request: Message, status: int | None, seconds: float, dataset_bytes: int
    ) -> None:
        """An operation is over, `seconds` after its request; `status` None when it was not answered."""
        result = _result(status)
        peer.operations[result] += 1
        self._by_request.get(type(request), self._other)[result].observe(seconds)
        if status is None or result == UNANSWERED or not isinstance(request, CStoreRQ):
            return
        if result in _KEPT:
            self.objects += 1
            self.object_bytes += dataset_bytes
        else:
            self.refused[status if status in self.refused else OTHER_STATUS] += 1

    @property
    def answered(self) -> int:
        """Operations that got a final status."""
        return sum(self._count(result) for result in RESULTS if result != UNANSWERED)

    @property
    def failed(self) -> int:
        """Those whose status was a failure."""
        return self._count(StatusClass.FAILURE.value)

    def _count(self, result: str) -> int:
        return sum(sum(by_result[result].counts) for by_result in self.durations.values())


def _result(status: int | None) -> str:
    kind = StatusClass.PENDING if status is None else status_class(status)
    return UNANSWERED if kind is StatusClass.PENDING else kind.value


class StageClock:
    """Divides the time of one reception among its stages: every moment belongs to exactly one."""

    __slots__ = ("_clock", "_last", "index", "parse", "persist", "receive")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.receive = self.parse = self.persist = self.index = 0.0
        self._clock = clock
        self._last = clock()

    def received(self) -> None:
        """What went by since the last call was waiting for the peer."""
        now = self._clock()
        self.receive += now - self._last
        self._last = now

    def parsed(self) -> None:
        """What went by since the last call was reading the header."""
        now = self._clock()
        self.parse += now - self._last
        self._last = now

    def persisted(self) -> None:
        """What went by since the last call was waiting for the storage."""
        now = self._clock()
        self.persist += now - self._last
        self._last = now

    def indexed(self, *, persist_seconds: float = 0.0) -> None:
        """What went by since the last call was waiting for the index, but for `persist_seconds`."""
        now = self._clock()
        self.persist += persist_seconds
        self.index += now - self._last - persist_seconds
        self._last = now


def _durations() -> Histogram:
    return Histogram(DURATION_BOUNDS_SECONDS)


@dataclass(slots=True)
class ReceptionMeasures:
    """The way of objects through storage and index, of those that the index answered for."""

    receive: Histogram = field(default_factory=_durations)
    parse: Histogram = field(default_factory=_durations)
    persist: Histogram = field(default_factory=_durations)
    index: Histogram = field(default_factory=_durations)
    patient_conflicts: int = 0
    coerced: int = 0
    findings: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Severity, 0))
    """Of the validation, by severity."""
    validator_failures: int = 0

    def recorded(self, stages: StageClock) -> None:
        """An object went through all stages."""
        self.receive.observe(stages.receive)
        self.parse.observe(stages.parse)
        self.persist.observe(stages.persist)
        self.index.observe(stages.index)


class DecisionMeasures:
    """What became of DICOS scans, by the peer whose scan it is: the name that the settings gave it when its
    images came, or `OTHER_PEER`.

    Added to in the index's writing thread, by transactions that were committed; copy before you iterate.
    """

    def __init__(self) -> None:
        self.decisions: dict[tuple[str, str], int] = {}
        """By peer and decision."""
        self.seconds: dict[str, Histogram] = {}
        """From a scan's first image to each report that decided."""
        self.missing: dict[str, int] = {}
        self.orphaned = 0

    def decided(self, peer_name: str | None, decision: str, seconds: float | None) -> None:
        """A scan's decision is another one now; `seconds` is None where no image of it has come."""
        peer = peer_name or OTHER_PEER
        self.decisions[peer, decision] = self.decisions.get((peer, decision), 0) + 1
        if seconds is not None:
            if peer not in self.seconds:
                self.seconds[peer] = Histogram(DECISION_BOUNDS_SECONDS)
            self.seconds[peer].observe(seconds)

    def missing_of(self, peer_name: str | None) -> None:
        """A scan has waited for a report for too long."""
        peer = peer_name or OTHER_PEER
        self.missing[peer] = self.missing.get(peer, 0) + 1


@dataclass(slots=True)
class IndexMeasures:
    """The index's writer. `batch_entries` and `batch_seconds` are added to in its thread."""

    batch_entries: Histogram = field(default_factory=lambda: Histogram(BATCH_BOUNDS_ENTRIES))
    batch_seconds: Histogram = field(default_factory=_durations)
    waiting: int = 0
    failures: int = 0
    decisions: DecisionMeasures = field(default_factory=DecisionMeasures)


@dataclass(slots=True)
class SettlingMeasures:
    """Objects whose bytes the index keeps until their files are durable, and those on their way to it."""

    objects: int = 0
    bytes: int = 0
    failures: int = 0
    """Attempts to make their files durable."""


@dataclass(slots=True)
class OutboundMeasures:
    """Associations that we asked remotes for. `used`, `idle` and `waiting` are of this moment."""

    used: int = 0
    idle: int = 0
    waiting: int = 0
    """Sub-operations' associations whose turn it is not yet: there are as many as there may be."""
    opened: int = 0
    reused: int = 0
    failed: int = 0


class SubOperationResult(StrEnum):
    """What became of a C-STORE that a C-MOVE or C-GET asked for; by the names of PS3.7's counts."""

    COMPLETED = "completed"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(slots=True)
class RetrieveMeasures:
    """The sub-operations of C-MOVE and C-GET, and the bytes of data sets that they sent.

    `accepted` are those of the retrieves that are performed now, `decoders_lost` processes that crashed while
    they decoded a frame, or took too long.
    """

    accepted: int = 0
    results: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SubOperationResult, 0))
    sent_bytes: int = 0
    decoders_lost: int = 0


class QuarantineEvent(StrEnum):
    """What happens to a refused data set that is worth keeping."""

    KEPT = "kept"
    NOT_KEPT = "not_kept"
    """The quarantine was full, or failed."""
    RELEASED = "released"
    RELEASE_REFUSED = "release_refused"
    DROPPED = "dropped"


@dataclass(slots=True)
class QuarantineMeasures:
    """The quarantine's comings and goings; how much lies in it is asked, not counted."""

    events: dict[str, int] = field(default_factory=lambda: dict.fromkeys(QuarantineEvent, 0))


@dataclass(slots=True)
class WorkerMeasures:
    """The other processes that accept associations beside this one."""

    lost: int = 0
    """Times that one ended by itself, or had to be ended because it was silent."""


class CallbackOutcome(StrEnum):
    """How a call of a callback ended."""

    RETURNED = "returned"
    REJECTED = "rejected"
    """It said no on purpose: `Reject`, or a delivery that it does not take."""
    RAISED = "raised"
    TIMED_OUT = "timed_out"
    NONSENSE = "nonsense"
    """It returned something."""
    LOST = "lost"
    """Its process crashed, or there is no thread left for it."""
    DROPPED = "dropped"
    """It was not called: too many notices waited for it."""


@dataclass(slots=True)
class CallbackCounts:
    """The calls of one callback. `running`, `waiting` and `abandoned` are of this moment."""

    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CallbackOutcome, 0))
    seconds: Histogram = field(default_factory=_durations)
    running: int = 0
    waiting: int = 0
    """Notices that it has not been called with yet."""
    abandoned: int = 0
    """Threads that did not end at their deadline, and have not ended since."""
    blocked: int = 0
    """Times that it kept the event loop from anything else for too long."""


class CallbackMeasures:
    """The counts of each callback, by the name that it was registered with."""

    def __init__(self) -> None:
        self.by_name: dict[str, CallbackCounts] = {}

    def of(self, name: str) -> CallbackCounts:
        """Where to count for it; names are ours, and few."""
        return self.by_name.setdefault(name, CallbackCounts())


class DeliveryOutcome(StrEnum):
    """How trying to deliver an event ended."""

    DELIVERED = "delivered"
    FAILED = "failed"
    """To be tried again."""
    DOWN = "down"
    """The destination takes nothing now."""
    DEAD = "dead"
    """Not to be tried again."""


@dataclass(slots=True)
class SubscriptionCounts:
    """What the outbox does for one subscription, and where it is."""

    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DeliveryOutcome, 0))
    running: int = 0
    parked: int = 0
    """Events that wait for another try, or behind one that does."""
    dead: int = 0
    behind: int = 0
    """Events of the log behind its position."""
    oldest_at_ns: int = 0
    """When the oldest event happened that is neither delivered nor dead; 0 where there is none."""
    is_open: bool = False
    """Its destination is down."""

    def lag_seconds(self, now_ns: int) -> float:
        """Age of the oldest event that is neither delivered nor dead."""
        return max(0.0, (now_ns - self.oldest_at_ns) / 1e9) if self.oldest_at_ns else 0.0


class FollowerEnd(StrEnum):
    """Why a follower of the event stream is no longer sent anything."""

    LEFT = "left"
    SLOW = "slow"
    FAILED = "failed"
    """The log could not be read."""
    STOPPED = "stopped"
    """The server stops."""


class OutboxMeasures:
    """The counts of each subscription, by its name; names are ours, and few."""

    def __init__(self) -> None:
        self.by_name: dict[str, SubscriptionCounts] = {}
        self.newest_id = 0
        """Of the event log."""
        self.followers = 0
        """Who follows the event stream."""
        self.followers_ended: dict[str, int] = dict.fromkeys(FollowerEnd, 0)

    def of(self, name: str) -> SubscriptionCounts:
        """Where to count for it."""
        return self.by_name.setdefault(name, SubscriptionCounts())


@dataclass(frozen=True, slots=True)
class Measures:
    """Everything one server counts. Each component gets its own part."""

    associations: AssociationMeasures = field(default_factory=AssociationMeasures)
    peers: PeerMeasures = field(default_factory=PeerMeasures)
    operations: OperationMeasures = field(default_factory=OperationMeasures)
    reception: ReceptionMeasures = field(default_factory=ReceptionMeasures)
    index: IndexMeasures = field(default_factory=IndexMeasures)
    settling: SettlingMeasures = field(default_factory=SettlingMeasures)
    outbound: OutboundMeasures = field(default_factory=OutboundMeasures)
    retrieve: RetrieveMeasures = field(default_factory=RetrieveMeasures)
    quarantine: QuarantineMeasures = field(default_factory=QuarantineMeasures)
    workers: WorkerMeasures = field(default_factory=WorkerMeasures)
    forward: ForwardMeasures = field(default_factory=ForwardMeasures)
    webhook: WebhookMeasures = field(default_factory=WebhookMeasures)
    callbacks: CallbackMeasures = field(default_factory=CallbackMeasures)
    outbox: OutboxMeasures = field(default_factory=OutboxMeasures)
    loop_lag: Histogram = field(default_factory=lambda: Histogram(LAG_BOUNDS_SECONDS))


@dataclass(frozen=True, slots=True)
class Levels:
    """What is not counted but asked for at the moment of a reading. The space is None when it is unknown."""

    ready: bool = False
    workers: int = 0
    workers_limit: int = 0
    connections: int = 0
    connections_limit: int = 0
    associations: int = 0
    associations_limit: int = 0
    associations_by_peer: Mapping[str, int] = field(default_factory=dict)
    operations: int = 0
    held_bytes: int = 0
    held_bytes_limit: int = 0
    storage_free_bytes: int | None = None
    storage_size_bytes: int | None = None
    storage_reserve_bytes: int | None = None
    quarantine_objects: int = 0
    quarantine_objects_limit: int = 0
    quarantine_bytes: int = 0
    quarantine_bytes_limit: int = 0
