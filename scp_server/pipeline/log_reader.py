"""The event log as the pipeline sees it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection
from functools import partial
from typing import Final

from scp_server.index.events import EventLog, EventRow
from scp_server.index.outbox import events_by_id, objects_of_association
from scp_server.pipeline.deliveries import EventKind, LoggedEvent

PAGE: Final = 512
"""Events read at once, of about a kilobyte each."""

_OF_STUDIES: Final = frozenset(
    {
        *(EventKind.STUDY_SETTLED, EventKind.DECISION_CHANGED),
        *(EventKind.TDR_RECEIVED, EventKind.TDR_MISSING, EventKind.TDR_ORPHAN),
    }
)
_KINDS: Final = {kind.value: kind for kind in EventKind}


def logged_event(row: EventRow) -> LoggedEvent:
    """A row of the log, read. What belongs to one series has one order key, all of an association's and a
    study's own events have theirs."""
    event_id, name, at_ns, association_id, location, text = row
    kind, data = _KINDS[name], json.loads(text)
    if kind in (EventKind.OBJECT_STORED, EventKind.OBJECT_INVALID):
        order_key = f"{data['study_instance_uid']}/{data['series_instance_uid']}"
    elif kind in _OF_STUDIES:
        order_key = data["study_instance_uid"]
    else:
        order_key = association_id
    return LoggedEvent(event_id, kind, at_ns, order_key, location, association_id, data)


class LogReader:
    """Reads events. Every method raises IndexUnavailable."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    async def page(self, after: int) -> list[LoggedEvent]:
        """The next PAGE events behind the id `after`."""
        rows = self._log.recent(after, PAGE)
        if rows is None:
            rows = await self._log.rows(after, PAGE)
        return [logged_event(row) for row in rows]

    async def by_id(self, ids: Collection[int]) -> dict[int, LoggedEvent]:
        """Those events that there still are."""
        rows = await self._log.read(lambda connection: events_by_id(connection, ids))
        return {row.event_id: logged_event(row) for row in rows}

    async def stored_by(self, association_id: str) -> AsyncIterator[LoggedEvent]:
        """See `StoredEvents.stored_by`."""
        after = 0
        while True:
            rows = await self._log.read(
                partial(objects_of_association, association_id=association_id, after=after, limit=PAGE)
            )
            for row in rows:
                yield logged_event(row)
            if len(rows) < PAGE:
                return
            after = rows[-1].event_id
