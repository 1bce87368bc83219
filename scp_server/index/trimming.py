"""Taking old events out of the log, a piece at a time: a plain function over the writer's connection."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, bindparam, delete, select, update

from scp_server.index.schema import event_log, events, open_associations, parked


class Trimmed(NamedTuple):
    """How far a piece went; whether there is another one behind it."""

    scanned_to: int
    has_more: bool


_piece = (
    select(events.c.event_id, events.c.at_ns)
    .where(events.c.event_id > bindparam("after"), events.c.event_id <= bindparam("up_to"))
    .order_by(events.c.event_id)
    .limit(bindparam("limit"))
)
_needed = select(parked.c.event_id)
_delete_events = delete(events).where(
    events.c.event_id > bindparam("after"),
    events.c.event_id <= bindparam("last"),
    events.c.event_id.not_in(_needed),
    events.c.association_id.not_in(select(open_associations.c.association_id)),
)
_note_trimmed = (
    update(event_log).where(event_log.c.trimmed_to < bindparam("last")).values(trimmed_to=bindparam("last"))
)
_forget_associations = delete(open_associations).where(
    open_associations.c.ended_event_id <= bindparam("up_to"),
    open_associations.c.ended_event_id.not_in(_needed),
)


def trim(
    connection: Connection, *, after: int, up_to: int, too_many: int, before_ns: int, limit: int
) -> Trimmed:
    """Look at up to `limit` events behind the id `after`, and drop those that nobody needs.

    None needs an event up to `up_to`, that nothing is parked for, whose association is not open and that is
    old: its id is at most `too_many`, or it happened before `before_ns`.
    """
    connection.execute(_forget_associations, {"up_to": up_to})
    found = connection.execute(_piece, {"after": after, "up_to": up_to, "limit": limit}).all()
    last = after
    for event_id, at_ns in found:
        if event_id > too_many and at_ns >= before_ns:
            break
        last = event_id
    if last == after:
        return Trimmed(after, has_more=False)
    connection.execute(_delete_events, {"after": after, "last": last})
    connection.execute(_note_trimmed, {"last": last})
    return Trimmed(last, has_more=len(found) == limit and last == found[-1].event_id)
