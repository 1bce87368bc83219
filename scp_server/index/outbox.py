"""What the index keeps for the outbox: how far each subscription is, and what it could not deliver.

Plain functions over a connection, for the transactions and reads of `EventLog`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from scp_server.index.events import OBJECT_STORED, EventRow
from scp_server.index.hierarchy import padded
from scp_server.index.schema import event_log, events, open_associations, parked, subscriptions

MAX_VALUES_PER_STATEMENT = 512


class SubscriptionRow(NamedTuple):
    """How far a subscription is: it is done with everything up to `position`, but for what is parked, and
    what it may have been given ends with `started_to`."""

    name: str
    position: int
    started_to: int


class ParkedRow(NamedTuple):
    """An event before the position of a subscription that it has not been given, or not with success.

    `at_ns` is when it happened. A dead one is not tried again. `may_be_repeated`: it may have arrived.
    """

    name: str
    event_id: int
    order_key: str
    at_ns: int
    attempts: int
    due_at_ns: int
    is_dead: bool
    may_be_repeated: bool
    error: str


@dataclass(slots=True)
class OutboxChanges:
    """What a transaction is to change. Subscriptions that there are not yet are made."""

    subscriptions: list[SubscriptionRow] = field(default_factory=list)
    put: list[ParkedRow] = field(default_factory=list)
    take_away: list[tuple[str, int]] = field(default_factory=list)
    """Parked events, by the subscription's name and the event's id."""

    def __bool__(self) -> bool:
        return bool(self.subscriptions or self.put or self.take_away)


_move = (
    update(subscriptions)
    .where(subscriptions.c.name == bindparam("its_name"))
    .values(position=bindparam("its_position"), started_to=bindparam("its_started_to"))
)
_take_away = delete(parked).where(
    parked.c.name == bindparam("its_name"), parked.c.event_id == bindparam("its_event_id")
)
_events_of = (
    select(*(events.c[name] for name in EventRow._fields))
    .where(events.c.event_id.in_(bindparam("ids", expanding=True)))
    .order_by(events.c.event_id)
)
_association = select(open_associations.c.began_event_id, open_associations.c.ended_event_id).where(
    open_associations.c.association_id == bindparam("id")
)
_objects_of_association = (
    select(*(events.c[name] for name in EventRow._fields))
    .where(
        events.c.event_id > bindparam("after"),
        events.c.event_id < bindparam("before"),
        events.c.association_id == bindparam("id"),
        events.c.kind == OBJECT_STORED,
    )
    .order_by(events.c.event_id)
    .limit(bindparam("limit"))
)


def apply(connection: Connection, changes: OutboxChanges) -> None:
    """Write what has changed."""
    _move_to(connection, changes.subscriptions)
    gone = [*changes.take_away, *((row.name, row.event_id) for row in changes.put)]
    if gone:
        connection.execute(_take_away, [{"its_name": name, "its_event_id": number} for name, number in gone])
    if changes.put:
        connection.execute(
            insert(parked),
            [
                {**row._asdict(), "is_dead": int(row.is_dead), "may_be_repeated": int(row.may_be_repeated)}
                for row in changes.put
            ],
        )


def _move_to(connection: Connection, wanted: Sequence[SubscriptionRow]) -> None:
    """Of those that there are; the others are made."""
    if not wanted:
        return
    values = [
        {"its_name": row.name, "its_position": row.position, "its_started_to": row.started_to}
        for row in wanted
    ]
    if connection.execute(_move, values).rowcount == len(wanted):
        return
    known = set(connection.execute(select(subscriptions.c.name)).scalars())
    if new := [row._asdict() for row in wanted if row.name not in known]:
        connection.execute(insert(subscriptions), new)


def trimmed_to(connection: Connection) -> int:
    """Events up to this id may be gone."""
    return connection.execute(select(event_log.c.trimmed_to)).scalar() or 0


def all_subscriptions(connection: Connection) -> list[SubscriptionRow]:
    """Every subscription that there ever was and that was not forgotten."""
    return [SubscriptionRow(*row) for row in connection.execute(select(subscriptions))]


def forget_subscription(connection: Connection, name: str) -> int:
    """Forget a subscription and all that is parked for it; returns how many events that were."""
    connection.execute(delete(subscriptions).where(subscriptions.c.name == name))
    return connection.execute(delete(parked).where(parked.c.name == name)).rowcount


def parked_of(
    connection: Connection, name: str, *, dead: bool, event_id: int | None = None, limit: int = -1
) -> list[ParkedRow]:
    """What is parked for a subscription, in the order of events: dead letters, or what still waits."""
    wanted = select(parked).where(parked.c.name == name, parked.c.is_dead == int(dead))
    if event_id is not None:
        wanted = wanted.where(parked.c.event_id == event_id)
    rows = connection.execute(wanted.order_by(parked.c.event_id).limit(limit))
    return [
        ParkedRow(name, number, key, at_ns, attempts, due, bool(is_dead), bool(repeated), error)
        for name, number, key, at_ns, attempts, due, is_dead, repeated, error in rows
    ]


def count_parked(connection: Connection) -> dict[tuple[str, bool], int]:
    """How many events are parked for each subscription, dead letters apart."""
    counts = select(parked.c.name, parked.c.is_dead, func.count()).group_by(parked.c.name, parked.c.is_dead)
    return {(name, bool(is_dead)): count for name, is_dead, count in connection.execute(counts)}


def take_away_dead(connection: Connection, name: str, *, keep: int = 0) -> int:
    """Drop the dead letters of a subscription, but for the newest `keep`; returns how many went."""
    dead = parked.c.name == name, parked.c.is_dead == 1
    newest = select(parked.c.event_id).where(*dead).order_by(parked.c.event_id.desc()).limit(keep)
    return connection.execute(delete(parked).where(*dead, parked.c.event_id.not_in(newest))).rowcount


def events_by_id(connection: Connection, ids: Iterable[int]) -> list[EventRow]:
    """Those events that there still are, in their order."""
    wanted, found = sorted(ids), []
    for start in range(0, len(wanted), MAX_VALUES_PER_STATEMENT):
        chunk = padded(wanted[start : start + MAX_VALUES_PER_STATEMENT])
        found += [EventRow(*row) for row in connection.execute(_events_of, {"ids": chunk})]
    return found


def objects_of_association(
    connection: Connection, association_id: str, after: int, limit: int
) -> Sequence[EventRow]:
    """Up to `limit` events of objects that an association brought, with ids greater than `after`. None where
    nobody needs to know any more. Reads what happened during it, whosever that is: there is no index."""
    found = connection.execute(_association, {"id": association_id}).one_or_none()
    if found is None:
        return []
    began, ended = found
    values = {"id": association_id, "after": max(began, after), "before": ended or 2**62, "limit": limit}
    return [EventRow(*row) for row in connection.execute(_objects_of_association, values)]
