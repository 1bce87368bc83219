"""What an administrator asks of the outbox: where subscriptions are, and to try or to drop what is parked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from scp_server.errors import ObjectNotFound, SCPServerError
from scp_server.index import outbox as rows
from scp_server.index.events import EventLog
from scp_server.observability.logs import get_logger
from scp_server.pipeline.backoff import NANOSECONDS
from scp_server.pipeline.outbox import Outbox
from scp_server.pipeline.outbox_line import OutboxLine

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SubscriptionState:
    """Where a subscription is. `behind` are events of the log that it has not got past, whether or not it
    wants them; times are seconds."""

    name: str
    is_active: bool
    """Somebody is subscribed under this name; else nothing is kept in the log for it."""
    position: int
    behind: int
    parked: int
    dead: int
    circuit: str
    """`closed`, or `open` where the destination is down."""
    retry_in_seconds: float | None
    oldest_waiting_seconds: float | None
    last_error: str


class OutboxDesk:
    """Raises IndexUnavailable, ObjectNotFound for a subscription or an event that there is not, and
    SCPServerError for what cannot be done."""

    def __init__(self, outbox: Outbox, log: EventLog) -> None:
        self._outbox = outbox
        self._log = log

    async def states(self) -> list[SubscriptionState]:
        """All subscriptions, also those that nobody is subscribed to any more, by name."""
        known = await self._log.read(rows.all_subscriptions)
        counts = await self._log.read(rows.count_parked)
        states = [self._state(name) for name in self._outbox.names]
        states += [
            SubscriptionState(
                name=row.name,
                is_active=False,
                position=row.position,
                behind=max(0, self._log.newest_id - row.position),
                parked=counts.get((row.name, False), 0),
                dead=counts.get((row.name, True), 0),
                circuit="closed",
                retry_in_seconds=None,
                oldest_waiting_seconds=None,
                last_error="",
            )
            for row in known
            if row.name not in self._outbox.names
        ]
        return sorted(states, key=lambda state: state.name)

    def _state(self, name: str) -> SubscriptionState:
        line = self._outbox.line(name)
        line.look(self._log.newest_id)
        now, counts = self._outbox.now_ns(), line.counts
        due = line.due_at_ns
        oldest = counts.oldest_at_ns
        return SubscriptionState(
            name=name,
            is_active=True,
            position=line.position,
            behind=counts.behind,
            parked=counts.parked,
            dead=counts.dead,
            circuit="open" if counts.is_open else "closed",
            retry_in_seconds=None if due is None else round(max(0, due - now) / NANOSECONDS, 1),
            oldest_waiting_seconds=round((now - oldest) / NANOSECONDS, 1) if oldest else None,
            last_error=line.last_error,
        )

    async def retry(self, name: str, event_id: int | None) -> int:
        """Try at once, and as if for the first time, one event that is parked or dead, or all of them;
        returns how many."""
        line = self._active(name)
        async with self._outbox.turn:
            dead = await self._log.read(partial(rows.parked_of, name=name, dead=True, event_id=event_id))
            tried = line.retry(event_id)
            line.revive(dead)
        if event_id is not None and not tried and not dead:
            raise ObjectNotFound(f"event {event_id} is not parked for {name}, or it is being delivered")
        log.warning("outbox.retried", subscription=name, events=tried + len(dead))
        return tried + len(dead)

    async def drop(self, name: str, event_id: int) -> None:
        """Give one parked or dead event up for good."""
        line = self._active(name)
        async with self._outbox.turn:
            if not line.drop(event_id):
                dead = await self._log.read(partial(rows.parked_of, name=name, dead=True, event_id=event_id))
                if not dead:
                    raise ObjectNotFound(
                        f"event {event_id} is not parked for {name}, or it is being delivered"
                    )
                line.forget_dead(event_id)
        log.warning("outbox.dropped", subscription=name, events=1)

    async def drop_dead(self, name: str) -> int:
        """Give all dead letters of a subscription up; returns how many."""
        line = self._active(name)
        async with self._outbox.turn:
            count = await self._log.perform(partial(rows.take_away_dead, name=name), at_once=True)
            line.counts.dead -= count
        log.warning("outbox.dropped", subscription=name, events=count)
        return count

    async def drop_subscription(self, name: str) -> int:
        """Forget a subscription that nobody has any more; returns how many events were parked."""
        if name in self._outbox.names:
            raise SCPServerError(f"{name} is in use: take its rule or callback out of the settings first")
        async with self._outbox.turn:
            known = {row.name for row in await self._log.read(rows.all_subscriptions)}
            if name not in known:
                raise ObjectNotFound(f"there is no subscription {name}")
            count = await self._log.perform(partial(rows.forget_subscription, name=name), at_once=True)
            self._outbox.forget(name)
        log.warning("outbox.subscription_dropped", subscription=name, events=count)
        return count

    def _active(self, name: str) -> OutboxLine:
        if name not in self._outbox.names:
            raise ObjectNotFound(f"nobody is subscribed as {name}")
        return self._outbox.line(name)
