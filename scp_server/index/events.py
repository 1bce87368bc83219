"""The event log that an index keeps: what is in it, and the Protocol that gives access to it.

A row for everything that happened, written by the transaction that made it true, with ascending ids: an
object that was recorded, an association that began or ended, a study for which nothing comes any more. What
delivers events, and to whom, is no matter of the index (`pipeline/outbox.py`); it keeps for it how far each
subscription is, because that has to go into the same transactions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection

OBJECT_STORED: Final = "object.stored"
ASSOCIATION_ACCEPTED: Final = "association.accepted"
ASSOCIATION_ENDED: Final = "association.ended"
STUDY_SETTLED: Final = "study.settled"
TDR_RECEIVED: Final = "tdr.received"
TDR_MISSING: Final = "tdr.missing"
TDR_ORPHAN: Final = "tdr.orphan"
DECISION_CHANGED: Final = "decision.changed"
OBJECT_INVALID: Final = "object.invalid"

CRASHED: Final = "crashed"
"""The outcome of an association during which the process ended."""

T = TypeVar("T")


class EventRow(NamedTuple):
    """One row of the log. `data` is a JSON object. `location` is that of the object's file."""

    event_id: int
    kind: str
    at_ns: int
    association_id: str
    location: str | None
    data: str


class LogPage(NamedTuple):
    """Some events in their order. Those up to `trimmed_to` may be gone: whoever has seen that one has missed
    nothing."""

    rows: Sequence[EventRow]
    trimmed_to: int


class LogRequest(NamedTuple):
    """Note that an association was accepted, or has ended. `data` is a JSON object.

    Of one that has ended the log adds to `data` what it knows itself: `parts`, how many objects it brought.
    """

    kind: str
    association_id: str
    at_ns: int
    data: str


class Told(NamedTuple):
    """Something that the index itself has found to be so. `data` is a JSON object."""

    kind: str
    data: str


class Work(NamedTuple):
    """Something to be done in the next transaction, between what was asked for before and after it.

    It may be called again after a transaction that failed, so it changes nothing but the database.
    """

    run: Callable[[Connection], object]


class EventSource(Protocol):
    """The log, for reading."""

    @property
    def newest_id(self) -> int:
        """That of the last committed event; 0 where there was never any."""
        ...

    async def rows(self, after: int, limit: int) -> Sequence[EventRow]:
        """Up to `limit` events with an id greater than `after`, ascending. Raises IndexUnavailable."""
        ...

    async def page(self, after: int, limit: int) -> LogPage:
        """The same, and what may be missing of it. Raises IndexUnavailable."""
        ...

    def on_news(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have `callback` called in the event loop whenever there are new events; what it returns ends it."""
        ...


class EventLog(EventSource, Protocol):
    """The log, also for writing. For the tasks of one event loop."""

    @property
    def keeps(self) -> bool:
        """Whether anything that happens is written."""
        ...

    def keep(self, keeps: bool) -> None:
        """From now on, write what happens, or do not."""
        ...

    @property
    def archive_id(self) -> str:
        """Made once for each log, and kept in it: with an event's id it is unique in the world."""
        ...

    def note(self, request: LogRequest) -> None:
        """Write this before whatever is handed to the index from now on. Cheap and never raises.

        It goes along with the next transaction, within HOLD_SECONDS at the latest. Where the index fails it
        is tried again with each that follows.
        """
        ...

    def recent(self, after: int, limit: int) -> Sequence[EventRow] | None:
        """The same as `rows`, from memory; None where it does not reach back so far. What was trimmed since
        may still be there."""
        ...

    async def perform(self, run: Callable[[Connection], T], *, at_once: bool = False) -> T:
        """Run a function over the writer's connection, in the next transaction, and wait for its commit.

        Unless it is to be `at_once` it waits for another one's transaction for up to HOLD_SECONDS. Raises
        IndexUnavailable, or IndexFailure for what `run` raises.
        """
        ...

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run a function over a reader's connection. Raises IndexUnavailable."""
        ...

    async def settle_studies(self, stored_until_ns: int) -> None:
        """Log as settled the studies to which nothing has come since. Raises IndexUnavailable."""
        ...

    @property
    def oldest_unsettled_ns(self) -> int:
        """When the last object came to the study that will be settled next; 0 where there is none."""
        ...

    async def tell_overdue(self, scans_until_ns: int, reports_until_ns: int) -> None:
        """Log that the report of each scan is missing that has waited for one since `scans_until_ns` or
        before, and that reports are orphans that have so waited for an image. Some of them, where that are
        many; each once. Raises IndexUnavailable."""
        ...

    @property
    def oldest_awaiting_ns(self) -> tuple[int, int]:
        """Since when, at the earliest, a scan waits for a report, and a report for an image; 0 where none
        does."""
        ...

    async def end_open_associations(self, id_prefix: str = "") -> int:
        """Log as ended, with the outcome `crashed`, each association whose end was not logged and whose id
        begins so; returns how many. To be called once the process that accepted them is gone, and before
        any other is accepted. Raises IndexUnavailable."""
        ...
