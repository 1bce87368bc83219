"""One subscription of the outbox at work: what it reads, delivers, parks, and how far that is.

Everything here happens in memory, at once; `Outbox` reads the log for it and writes what has changed. In
between is the promise: an event is begun to be delivered only when the database says that it may have been
(`started_to`, or its row among the parked), so that whatever a crash makes to be repeated is known to be.

An event is in one of three places. In the *window*: read and not done, in the order of the log; the position
is before the first of these. *Parked*: it failed, or it waits behind one of its order key that did, and the
position has gone past it. Or it is done with, delivered or dead.

Events of one order key are begun in the order of the log, one after another, in every life of the server and
over all of them. This is what makes it hold:

- Of a key, either the window has events, or there are parked ones, of which some may be lent to the window.
  What is read of a key that has parked ones is parked behind them. When one fails, all of its key that the
  window has go to the parked ones, in the same moment; so the database hears of all of them or of none.
- Of the parked, a chain is lent: the first few of the key, whole, and no more until all have come back
  (`parking`).
- After a start nothing parked is tried before the log has been read as far as the last life had to do with
  it: up to `started_to`, and to the last that it has parked. What may have been delivered behind the position
  comes again, and is then in its place among the parked; and what is parked behind the position is passed
  over while it is known to be parked. `started_to` stays in the database, whatever is written meanwhile, for
  this life may be killed as well.
- A dead letter holds up nobody. One of which the database has not heard before a kill is tried once more,
  then perhaps behind others of its key; it is marked as a repeat.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from scp_server.index.outbox import OutboxChanges, ParkedRow, SubscriptionRow
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import DeliveryOutcome, SubscriptionCounts
from scp_server.observability.text import peer_text
from scp_server.pipeline.backoff import NANOSECONDS, Backoff, Circuit
from scp_server.pipeline.deliveries import Delivery, LoggedEvent, Subscriber
from scp_server.pipeline.outbox_workers import OutboxWorkers
from scp_server.pipeline.parking import Parking
from scp_server.pipeline.verdicts import DestinationDown, NotDelivered, Undeliverable
from scp_server.pipeline.window import Item, Window

log = get_logger(__name__)

_ERROR_CHARACTERS: Final = 256


@dataclass(frozen=True, slots=True)
class OutboxConfig:
    """What failing deliveries may cost."""

    first_retry_seconds: float = 2.0
    max_retry_seconds: float = 3_600.0
    max_attempts: int = 36
    """Tries after which an event is a dead letter."""
    max_parked: int = 10_000
    """Parked events of one subscription; with more it reads no further."""
    gather_seconds: float = 0.1
    """While much happens the log is read no more often than so, for a reading costs as much as delivering ten
    events. What happens after a silence is read at once."""
    max_dead: int = 10_000
    """Dead letters of one subscription; the oldest make room for new ones."""


class OutboxLine:
    """See the module. `wake` is called when there is something for the outbox to do."""

    def __init__(
        self,
        subscriber: Subscriber,
        config: OutboxConfig,
        backoff: Backoff,
        counts: SubscriptionCounts,
        archive_id: str,
        now_ns: Callable[[], int],
        wake: Callable[[], None],
    ) -> None:
        self.subscriber = subscriber
        self.name = subscriber.name
        self.counts = counts
        self.circuit = Circuit(backoff)
        self.last_error = ""
        self._config = config
        self._backoff = backoff
        self._now_ns = now_ns
        self._wake = wake
        self._archive_id = archive_id
        self._written = SubscriptionRow(self.name, -1, -1)
        self.read_to = 0
        """The log has been read up to here."""
        self._started_before = 0
        """Up to here events may have been delivered by an earlier process."""
        self._touched_before = 0
        """Up to here such events, parked ones and dead ones may lie behind the position."""
        self._dead_ahead: frozenset[int] = frozenset()
        self._window = Window()
        self._fresh: list[Item] = []
        """Read, and not to be begun yet: the database does not know of it."""
        self._parking = Parking(self.name)
        self._workers = OutboxWorkers(
            self.name,
            subscriber.concurrency,
            self._has_work,
            self._waits_for_a_turn,
            self._deliver_next,
            wake,
        )
        self._is_stopping = False

    # -- where it begins ----------------------------------------------------------------------------------

    def begin_at(self, row: SubscriptionRow | None, newest_id: int) -> None:
        """Go on where the database says; it is at the end of the log where that does not know it."""
        if row is None:
            self.read_to = self._started_before = newest_id
        else:
            self._written = row
            self.read_to, self._started_before = row.position, row.started_to
        self._touched_before = self._started_before

    def remember(self, parked: Iterable[ParkedRow], dead: Collection[ParkedRow]) -> None:
        """What is parked already, and the dead letters."""
        parked = list(parked)
        ids = [each.event_id for rows in (parked, dead) for each in rows]
        self._touched_before = max([self._started_before, *ids])
        self.counts.dead = len(dead)
        self._dead_ahead = frozenset(each.event_id for each in dead if each.event_id > self.read_to)
        self._parking.remember(parked)

    # -- reading ------------------------------------------------------------------------------------------

    @property
    def wants_more(self) -> bool:
        """Whether the log should be read for it."""
        if self._is_stopping or self._window.is_full:
            return False
        if self._knows_what_was_before and len(self._parking) >= self._config.max_parked:
            return False
        return not self.circuit.is_open or (
            self._window.first is None and not self._parking.is_lent and self.circuit.is_due(self._now_ns())
        )

    @property
    def _knows_what_was_before(self) -> bool:
        """Whether the log was read as far as an earlier process had to do with it."""
        return self.read_to >= self._touched_before

    def take(self, events: Iterable[LoggedEvent], read_to: int) -> None:
        """What the log has behind `self.read_to`, up to `read_to`."""
        wants, begin = self.subscriber.wants, self.read_to
        parking, dead_ahead = self._parking, self._dead_ahead
        has_parked = len(parking) > 0
        for event in events:
            event_id = event.event_id
            if event_id <= begin or not wants(event):
                continue
            if event_id in dead_ahead or (has_parked and event_id in parking):
                continue
            may_be_repeated = event_id <= self._started_before
            item = Item(event, may_be_repeated=may_be_repeated)
            if has_parked and parking.has_key(event.order_key):
                parking.add(self._row_of(item))
                continue
            self._window.add(item)
            self._fresh.append(item)
        self.read_to = read_to

    def due_events(self) -> list[int]:
        """Parked events that are due and are not in memory yet. They are given to `load`."""
        now = self._now_ns()
        may_try = self._knows_what_was_before and not self._is_stopping and self.circuit.is_due(now)
        return self._parking.due(now) if may_try else []

    def load(self, wanted: Collection[int], events: Mapping[int, LoggedEvent]) -> None:
        """`events` are those of `wanted` that the log still has."""
        for event_id in wanted:
            event = events.get(event_id)
            if event is None:
                self._is_dead(self._parking[event_id], "the event is no longer in the log")
                continue
            row = self._parking.lend(event_id)
            self._fresh.append(Item(event, row.attempts, row.may_be_repeated, is_parked=True))

    # -- what the database is told ------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """Everything up to here is done with, or parked."""
        first = self._window.first
        return self.read_to if first is None else first.event.event_id - 1

    @property
    def written_position(self) -> int:
        """The same, as the database knows it: where it is gone on from after a crash."""
        return self._written.position

    @property
    def has_to_write(self) -> bool:
        """Whether something waits for the database to know of it."""
        return bool(self._fresh) or self._parking.has_changed

    @property
    def has_moved(self) -> bool:
        """Whether the database knows less than how far it is."""
        return self.position != self._written.position

    def changes(self) -> OutboxChanges:
        """What the database is to know before what was read is begun. `written` says that it does; nothing is
        taken or loaded in between."""
        position = self.position
        last = self._window.last
        started_to = max(position, self._started_before, 0 if last is None else last.event.event_id)
        changes = OutboxChanges()
        if (position, started_to) != self._written[1:]:
            changes.subscriptions.append(SubscriptionRow(self.name, position, started_to))
        self._parking.add_to(changes)
        return changes

    def written(self, changes: OutboxChanges) -> None:
        """The database knows `changes`: what was read may be begun."""
        for row in changes.subscriptions:
            self._written = row
        self._parking.written(changes)
        fresh, self._fresh = self._fresh, []
        for item in fresh:
            self._make_ready(item)

    # -- delivering ---------------------------------------------------------------------------------------

    def _make_ready(self, item: Item) -> None:
        if not item.is_parked and self._parking.has_key(item.event.order_key):
            # Something of its key has failed since it was read.
            self._put_back(item)
            item.is_done = True
            self._shift()
        else:
            self._window.make_ready(item)

    def begin(self) -> None:
        """Deliver what is ready, as much at once as the subscriber takes."""
        self._workers.begin()

    def _has_work(self) -> bool:
        return (
            self._window.has_ready
            and not self._is_stopping
            and (not self.circuit.is_open or self.circuit.is_due(self._now_ns()))
        )

    def _waits_for_a_turn(self) -> bool:
        return self._window.has_ready or self.circuit.is_open

    async def _deliver_next(self) -> None:
        item = self._window.begin()
        self.circuit.try_begins()
        self.counts.running += 1
        try:
            await self._deliver(item)
        finally:
            self.counts.running -= 1

    async def _deliver(self, item: Item) -> None:
        event = item.event
        key = f"{self._archive_id}:{event.event_id}:{self.name}"
        delivery = Delivery(event, item.attempts + 1, item.may_be_repeated, key)
        try:
            await self.subscriber.deliver(delivery)
        except DestinationDown as error:
            self._went_down(item, error)
        except Undeliverable as error:
            self._answered()
            self._give_up(item, error)
        except NotDelivered as error:
            self._answered()
            self._failed(item, error)
        except asyncio.CancelledError as error:
            item.may_be_repeated = item.is_broken_off = True
            self.circuit.try_broken_off()
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._failed(item, error)  # Not this task, but something that the subscriber waited for.
        except Exception as error:
            log.exception("delivery.failed", subscription=self.name, event_id=event.event_id)
            self._answered()
            self._failed(item, error)
        else:
            self._answered()
            self._delivered(item)

    def _answered(self) -> None:
        if self.circuit.is_open:
            log.info("outbox.circuit_closed", subscription=self.name)
            self._wake()
            self.circuit.close()

    def _went_down(self, item: Item, error: DestinationDown) -> None:
        """It keeps its place, and nothing has been tried."""
        was_open = self.circuit.is_open
        self.circuit.try_failed(self._now_ns())
        self.counts.outcomes[DeliveryOutcome.DOWN] += 1
        self._window.give_back(item)
        self._note(error)
        if not was_open:
            log.warning("outbox.circuit_opened", subscription=self.name, error=self.last_error)
        self._wake()

    def _delivered(self, item: Item) -> None:
        self.counts.outcomes[DeliveryOutcome.DELIVERED] += 1
        if item.is_parked:
            self._parking.remove(item.event.event_id)
        self._is_done(item)

    def _give_up(self, item: Item, error: BaseException) -> None:
        row = self._row_of(item)._replace(attempts=item.attempts + 1)
        self._is_dead(row, self._note(error))
        self._is_done(item)

    def _failed(self, item: Item, error: BaseException) -> None:
        """It is parked until another try is due, with everything behind it that has its key."""
        attempts = item.attempts + 1
        if attempts >= self._config.max_attempts:
            self._give_up(item, error)
            return
        self.counts.outcomes[DeliveryOutcome.FAILED] += 1
        retry_ns = self._backoff.after(attempts)
        if isinstance(error, NotDelivered) and error.retry_after_seconds is not None:
            retry_ns = max(retry_ns, int(error.retry_after_seconds * NANOSECONDS))
        row = self._row_of(item)._replace(
            attempts=attempts,
            due_at_ns=self._now_ns() + retry_ns,
            error=self._note(error),
        )
        self._parking.add(row)
        self._is_done(item, blocks=True)
        log.warning(
            "delivery.postponed",
            subscription=self.name,
            event_id=row.event_id,
            attempts=attempts,
            seconds=round(retry_ns / NANOSECONDS, 1),
            error=row.error,
        )

    def _is_done(self, item: Item, *, blocks: bool = False) -> None:
        """What is next of its key may begin, or is parked where this one `blocks` it."""
        for behind in self._window.end(item, blocks=blocks):
            self._put_back(behind)
        self._shift()
        if item.is_parked:
            self._wake()

    def _shift(self) -> None:
        """The position moves on, past what is done."""
        if self._window.shift():
            self._wake()

    def _put_back(self, item: Item) -> None:
        """It will be tried after what is before it."""
        if item.is_parked:
            self._parking.take_back(item.event.event_id)
        else:
            self._parking.add(self._row_of(item))

    def _note(self, error: BaseException) -> str:
        self.last_error = peer_text(str(error) or type(error).__name__)[:_ERROR_CHARACTERS]
        return self.last_error

    # -- what is parked -----------------------------------------------------------------------------------

    def _row_of(self, item: Item) -> ParkedRow:
        event = item.event
        return ParkedRow(
            name=self.name,
            event_id=event.event_id,
            order_key=event.order_key,
            at_ns=event.at_ns,
            attempts=item.attempts,
            due_at_ns=0,
            is_dead=False,
            may_be_repeated=item.may_be_repeated,
            error="",
        )

    def _is_dead(self, row: ParkedRow, error: str) -> None:
        self._parking.remove(row.event_id, row._replace(is_dead=True, error=error))
        self.counts.dead += 1
        self.counts.outcomes[DeliveryOutcome.DEAD] += 1
        self.last_error = error
        log.error(
            "delivery.dead",
            subscription=self.name,
            event_id=row.event_id,
            attempts=row.attempts,
            error=error,
        )
        self._wake()

    def revive(self, rows: Iterable[ParkedRow]) -> None:
        """Dead letters are parked again, to be tried at once."""
        for row in rows:
            self.counts.dead -= 1
            self._parking.add(row._replace(is_dead=False, attempts=0, due_at_ns=0))
        self._wake()

    def retry(self, event_id: int | None = None) -> int:
        """Try what is parked at once, or one event of that; returns how many. Its attempts count from 0."""
        self.circuit.close()
        self._wake()
        return self._parking.try_now(event_id)

    def drop(self, event_id: int) -> bool:
        """Forget a parked event; False where it is not parked, or being delivered."""
        if not self._parking.is_free(event_id):
            return False
        self._parking.remove(event_id)
        self._wake()
        return True

    def forget_dead(self, event_id: int) -> None:
        """A dead letter is no longer kept."""
        self._parking.forget_dead(event_id)
        self.counts.dead -= 1
        self._wake()

    # -- ends ---------------------------------------------------------------------------------------------

    @property
    def due_at_ns(self) -> int | None:
        """When there is something to do of which nobody tells; None where there is nothing."""
        if self._workers.are_all_busy:
            return None
        due = self._parking.due_at_ns if self._knows_what_was_before else None
        if not self.circuit.is_open:
            return due
        if self.circuit.is_probing:
            return None
        if self._window.has_ready:
            return self.circuit.due_at_ns
        return None if due is None else max(due, self.circuit.due_at_ns)

    def stop(self) -> None:
        """Begin nothing more."""
        self._is_stopping = True
        self._workers.stop()

    async def ended(self, seconds: float) -> None:
        """Wait for what is under way; after `seconds` it is broken off, and may have arrived."""
        await self._workers.end(seconds)

    def leave_nothing_open(self) -> None:
        """Once it has ended: park what is before something that was begun, so that of what was delivered
        nothing is behind the position, and nothing will have to be repeated."""
        before, begins = self._window.close()
        for item in before:
            self._parking.add(self._row_of(item))
        self._fresh.clear()
        self.read_to = begins - 1 if begins else self.read_to

    def look(self, newest_id: int) -> None:
        """Bring the counts up to date."""
        counts = self.counts
        counts.behind = max(0, newest_id - self.position)
        counts.is_open = self.circuit.is_open
        counts.parked = len(self._parking)
        first = self._window.first
        oldest = [self._parking.oldest_at_ns, None if first is None else first.event.at_ns]
        counts.oldest_at_ns = min((at_ns for at_ns in oldest if at_ns is not None), default=0)
