"""What the archive knows of its objects: the Protocol that an index fulfils."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeVar

from scp_server.index.events import EventLog
from scp_server.index.search import Judge, RunningSearch, Search, SizeOf, of_no_size
from scp_server.interfaces import DuplicatePolicy
from scp_server.objects.summary import InstanceSummary
from scp_server.objects.validation.finding import Report, Severity

__all__ = [
    "AddOutcome",
    "AddResult",
    "DuplicatePolicy",
    "FindingFilter",
    "FindingRecord",
    "Index",
    "IndexEntry",
    "IndexTotals",
    "PackableHeader",
    "PartRecord",
    "RetrievablePart",
    "UniqueKey",
]

T = TypeVar("T")


class AddOutcome(StrEnum):
    """What became of an entry."""

    ADDED = "added"
    """A new instance."""
    ADDED_PART = "added_part"
    """Another part of a known instance."""
    REPLACED = "replaced"
    """The instance now, in place of what was kept under its UID."""
    SAME = "same"
    """The same bytes are already kept: the newcomer is not needed."""
    CONFLICT = "conflict"
    """Other bytes are kept under this UID and the policy keeps those: the newcomer is not indexed."""


class PackableHeader(Protocol):
    """What `RawHeader` has: it becomes one compressed piece of bytes, in whichever thread asks."""

    def pack(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One stored data set, as the index is to know it.

    `digest` is over the data set as received, without File Meta; together with the transfer syntax it is
    the identity of a part. `stored_digest` is over the data set that lies at `location` where that is another
    one, because it was changed on arrival. `received_at_ns` is nanoseconds since the epoch, UTC. `header` is
    packed by the index, off the event loop. What only its association knew is empty for an object that is
    found again. `unsynced` is the whole file, where the storage has not made it durable: the index keeps it
    with the part, until the part goes or `forget_unsynced` says that the file is durable.
    """

    summary: InstanceSummary
    transfer_syntax_uid: str
    digest_algorithm: str
    digest: bytes
    location: str
    size_bytes: int
    dataset_offset_bytes: int
    arrival_id: str
    received_at_ns: int
    calling_ae_title: str
    called_ae_title: str
    header: PackableHeader
    stored_digest: bytes | None = None
    receive_ended_at_ns: int | None = None
    association_id: str = ""
    peer_host: str = ""
    peer_port: int = 0
    peer_name: str | None = None
    is_dicos: bool = False
    unsynced: bytes | None = field(default=None, repr=False)
    report: Report | None = None
    """What its validation found; None where it was not judged."""


@dataclass(frozen=True, slots=True)
class AddResult:
    """`location` is where the kept bytes lie: the entry's own, or those of the same or conflicting part.

    `patient_conflict`: the entry was recorded but names another patient than its study, which keeps its own.
    `discarded` are the locations that no part has any more; their files are the caller's to delete.
    """

    outcome: AddOutcome
    location: str
    part_number: int
    patient_conflict: bool = False
    discarded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PartRecord:
    """One stored data set, as the index knows it. An instance's parts are numbered from 1 as they arrive.

    `digest` and `stored_digest` are as in `IndexEntry`, both of `digest_algorithm`.
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    part_number: int
    transfer_syntax_uid: str
    digest_algorithm: str
    digest: bytes
    location: str
    size_bytes: int
    dataset_offset_bytes: int
    arrival_id: str
    received_at_ns: int
    calling_ae_title: str
    called_ae_title: str
    stored_digest: bytes | None = None

    @property
    def content_digest(self) -> bytes:
        """That of the data set which lies at `location`."""
        return self.digest if self.stored_digest is None else self.stored_digest


class RetrievablePart(NamedTuple):
    """What sending a part needs. Small: a retrieve holds all of its own, up to 65 535."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    location: str
    size_bytes: int
    dataset_offset_bytes: int


class FindingRecord(NamedTuple):
    """One finding of a part, with the place where the next page begins (`after`)."""

    after: str
    severity: str
    code: str
    path: str
    keyword: str
    vr: str
    sentence: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    part_number: int
    received_at_ns: int
    calling_ae_title: str


@dataclass(frozen=True, slots=True)
class FindingFilter:
    """Which findings are looked for; empty: all."""

    severity: Severity | None = None
    code: str = ""
    study_instance_uid: str = ""


class UniqueKey(NamedTuple):
    """A column of the index that says whose parts are meant, and which of its values do."""

    column: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class IndexTotals:
    """How much is kept."""

    patients: int
    studies: int
    series: int
    instances: int
    parts: int
    bytes: int


class Level(StrEnum):
    """What a scope's UID names."""

    STUDY = "study"
    SERIES = "series"
    INSTANCE = "instance"


@dataclass(frozen=True, slots=True)
class Scope:
    """All parts below one UID. A Series Instance UID that two studies use means the series of both."""

    level: Level
    uid: str


class Index(Protocol):
    """Methods may be called from any task of one event loop."""

    @property
    def event_log(self) -> EventLog:
        """What has happened, in its order: `add` writes of it what it records, in the same transaction."""
        ...

    async def open(self) -> None:
        """Create or migrate, and make ready. Raises IndexSchemaUnknown or IndexUnavailable."""
        ...

    async def close(self) -> None:
        """Write what was accepted, then close."""
        ...

    async def add(
        self, entry: IndexEntry, policy: DuplicatePolicy, first: Callable[[], None] | None = None
    ) -> AddResult:
        """Record an entry; returns when it is committed. Entries of several tasks share a transaction.

        `first` is called before that transaction, in a thread, once or never; what it raises is raised here,
        and nothing of the entry is recorded.

        One outcome for each SOP Instance UID, however many tasks add it at once. A cancelled caller does
        not undo its entry. Waits while the queue is full. Raises IndexUnavailable, or IndexFailure when it
        is this entry that cannot be recorded: then nothing of it is in the index.
        """
        ...

    async def discarded(self) -> list[str]:
        """Locations that no part has any more, and whose files may not be deleted yet.

        They are recorded by the transaction that took their rows away, so that no crash forgets them.
        """
        ...

    def forget_discarded(self, locations: Sequence[str]) -> None:
        """The files at these locations are gone. Cheap and never raises: the next transaction records it,
        and until then `discarded` may still name them."""
        ...

    async def parts(self, sop_instance_uid: str) -> list[PartRecord]:
        """Every part of an instance, in order of arrival; empty when it is unknown."""
        ...

    async def part(self, location: str) -> RetrievablePart | None:
        """What sending the part at `location` needs; None where there is no such part (any more)."""
        ...

    async def header(self, location: str) -> bytes | None:
        """The packed raw header of the part at `location`."""
        ...

    async def unknown_locations(self, locations: Sequence[str]) -> list[str]:
        """Those of `locations` that no part has."""
        ...

    async def totals(self) -> IndexTotals:
        """How much is kept. Who watches asks every second, so it takes no longer with a million instances."""
        ...

    async def list_parts(self, *, after: str = "", limit: int = 500) -> list[PartRecord]:
        """Up to `limit` parts in the order of their locations, from the first location greater than `after`
        on: the last one's location is where the next page begins."""
        ...

    def parts_below(self, scope: Scope, *, limit: int = 500) -> AsyncIterator[list[PartRecord]]:
        """Yield the parts of `scope` in the order of their locations, up to `limit` together: those that are
        known when the first page is asked for, without what is removed before its page comes.

        A page takes as long as it is long, however many there are. Holds eight bytes for each part."""
        ...

    def search(self, search: Search, judge: Judge[T], size_of: SizeOf[T] = of_no_size) -> RunningSearch[T]:
        """Look for entities; nothing happens before the first page is asked for.

        What `add` returned before that is found. `judge` is called in another thread, one entity at a time;
        what it raises is raised by the page, and ends the search. `size_of` says how much memory is in what
        it gave, so that a page has not much more than a MiB of that. A search may be dropped at any time. A
        column or count that its level cannot have: ValueError, with the first page.
        """
        ...

    async def findings(
        self, wanted: FindingFilter, *, after: str = "", limit: int = 200
    ) -> list[FindingRecord]:
        """Up to `limit` findings of the parts, in the order in which these were recorded and of each in its
        own, behind the one whose `after` is given. Raises IndexUnavailable, ValueError for an `after` that is
        none of its own."""
        ...

    async def retrievable(self, keys: Sequence[UniqueKey], limit: int) -> list[RetrievablePart]:
        """Up to `limit` parts of the instances for which every key has one of its values, in the order of the
        instances, and of each in that of its parts. Each once, however often a value is given, and however
        many values there are. What `add` returned before that is among them. Raises IndexUnavailable."""
        ...

    async def unsynced(self) -> list[str]:
        """Locations of the parts whose files the index keeps, because they may not be durable yet."""
        ...

    async def unsynced_contents(self, locations: Sequence[str]) -> dict[str, bytes]:
        """The files that the index keeps of `locations`; ask for few. Without those it does not keep."""
        ...

    async def forget_unsynced(self, locations: Sequence[str]) -> None:
        """The files at `locations` are durable: the index need not keep them. What it does not keep is no
        error. Raises IndexUnavailable or IndexFailure, and then it keeps them all."""
        ...

    async def remove(self, locations: Sequence[str]) -> int:
        """Forget the parts at `locations`, all in one transaction, with every instance, series, study and
        patient that has nothing left. Returns how many there were; unknown locations are no error. Numbers of
        other parts stay. Raises IndexUnavailable or IndexFailure, and then nothing was removed.
        """
        ...
