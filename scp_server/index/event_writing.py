"""What goes into the event log: plain functions over the writer's connection, inside its transactions.

`EventWriter` is called in the thread that writes the index, and belongs to it. It gives out the ids itself,
so that a batch costs the log one INSERT. What it remembers holds from a commit on; after a transaction that
did not commit it is read again.
"""

from __future__ import annotations

import json
import secrets
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from json.encoder import encode_basestring_ascii as _quoted
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from scp_server.index.base import AddOutcome, AddResult, IndexEntry
from scp_server.index.bulk import BulkInsert, BulkUpdate
from scp_server.index.events import (
    ASSOCIATION_ACCEPTED,
    ASSOCIATION_ENDED,
    CRASHED,
    OBJECT_INVALID,
    OBJECT_STORED,
    STUDY_SETTLED,
    LogRequest,
    Told,
)
from scp_server.index.schema import event_log, events, open_associations, unsettled_studies
from scp_server.objects.validation.finding import Report

_TOLD_OF: Final = frozenset({AddOutcome.ADDED, AddOutcome.ADDED_PART, AddOutcome.REPLACED})
"""SAME and CONFLICT are not: nothing has become true by them that was not before."""
_THE_LOG: Final = 1
_OBJECT_NAMES: Final = (
    *("study_instance_uid", "series_instance_uid", "sop_instance_uid", "sop_class_uid", "modality"),
    *("part_number", "transfer_syntax_uid", "size_bytes", "digest_algorithm", "digest"),
    *("calling_ae_title", "called_ae_title", "peer_host", "peer_port", "peer_name", "is_dicos"),
    *("receive_began_at_ns", "receive_ended_at_ns", "stored_at_ns"),
)
MAX_MODALITY_CHARACTERS: Final = 64
"""Of an event: a value of VR CS has 16 at most, the index keeps what was sent."""
RECENT: Final = 512
"""Events that stay in memory after they were written, about a kilobyte each: whoever delivers is seldom
further behind, and reads them without asking the database."""
_OBJECT_DATA: Final = "{" + ",".join(f'"{name}":%s' for name in _OBJECT_NAMES) + "}"
"""JSON to be filled in: a dictionary and its encoding take four times as long, for every object."""

Row = tuple[Any, ...]

_insert_events = BulkInsert(events)
_insert_unsettled = BulkInsert(unsettled_studies)
_insert_open = BulkInsert(open_associations)
_forget_study = delete(unsettled_studies).where(unsettled_studies.c.study_instance_uid == bindparam("uid"))
_open = (
    select(open_associations.c.association_id, open_associations.c.data)
    .where(open_associations.c.ended_event_id.is_(None))
    .order_by(open_associations.c.began_event_id)
)
_close = BulkUpdate(
    update(open_associations)
    .where(open_associations.c.association_id == bindparam("id"))
    .values(ended_event_id=bindparam("event_id")),
    ("event_id", "id"),
)
_began = select(open_associations.c.began_event_id).where(
    open_associations.c.association_id == bindparam("id")
)
_count_parts = select(func.count()).where(
    events.c.event_id > _began.scalar_subquery(),
    events.c.association_id == bindparam("id"),
    events.c.kind == OBJECT_STORED,
)
_newest = select(func.max(events.c.event_id))
_log = select(event_log.c.archive_id, event_log.c.trimmed_to)


class EventWriter:
    """Writes the events of one log."""

    def __init__(self, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._clock_ns = clock_ns
        self.keeps = True
        """Whether anything is written; may be changed at any time."""
        self.archive_id = ""
        self.newest_id = 0
        """Of the last committed event."""
        self._recent: deque[Row] = deque(maxlen=RECENT)
        """The last that were committed, all up to `newest_id`."""
        self._new_rows: list[Row] = []
        self._written_id = 0
        self._is_certain = False
        """What is remembered is what the database holds."""
        self._parts: dict[str, int] = {}
        """How many objects each open association has brought, where that is known."""
        self._new_parts: dict[str, int] = {}
        self._ended: list[str] = []
        self._opened: dict[str, Row] = {}
        """Rows of associations that are still to be inserted."""
        self._closed: list[Row] = []
        """The ends of those whose rows were inserted before."""
        self._unsettled: dict[str, int] = {}
        """When the last object came to each unsettled study, the longest ago first."""
        self._new_unsettled: dict[str, int] = {}
        self._settled: list[str] = []

    @property
    def oldest_unsettled_ns(self) -> int:
        """When the last object came to the study that will be settled next; 0 where there is none."""
        return next(iter(self._unsettled.values()), 0)

    def recent(self, after: int, limit: int) -> list[Row] | None:
        """Up to `limit` rows behind the id `after`; None where they have to be read. For any thread."""
        rows = list(self._recent)  # In one piece: the writing thread may be adding to it.
        if not rows or rows[0][0] > after + 1:
            return None
        first = bisect_right(rows, after, key=itemgetter(0))
        return rows[first : first + limit]

    def open(self, connection: Connection) -> None:
        """Begin, or go on with, the log of a database that has this version's tables."""
        found = connection.execute(_log).one_or_none()
        if found is None:
            first = {"log_key": _THE_LOG, "archive_id": secrets.token_hex(8), "trimmed_to": 0}
            connection.execute(insert(event_log), first)
        self._unsettled.clear()
        self._recent.clear()
        self._read_again(connection)
        self.newest_id = self._written_id

    def _read_again(self, connection: Connection) -> None:
        self.archive_id, trimmed_to = connection.execute(_log).one()
        self._written_id = max(trimmed_to, connection.execute(_newest).scalar() or 0)
        self._parts.clear()
        # Found without its time: whoever sends the rest of such a study may first have to connect again.
        now = self._clock_ns()
        for uid in connection.execute(select(unsettled_studies.c.study_instance_uid)).scalars():
            self._unsettled.setdefault(uid, now)
        self._is_certain = True

    def committed(self) -> None:
        """What was written is there for good."""
        # Before they are known of: whoever has been told of an id finds it among them.
        self._recent.extend(self._new_rows)
        self.newest_id = self._written_id
        self._parts.update(self._new_parts)
        for association_id in self._ended:
            self._parts.pop(association_id, None)
        for uid in self._settled:
            self._unsettled.pop(uid, None)
        for uid, stored_at_ns in self._new_unsettled.items():
            self._unsettled.pop(uid, None)
            self._unsettled[uid] = stored_at_ns
        self._clear_new()

    def forget(self) -> None:
        """The transaction did not commit, or nobody knows whether it did."""
        self._is_certain = False
        self._recent.clear()  # They would have a gap, where it did commit.
        self._clear_new()

    def _clear_new(self) -> None:
        if self._new_rows:
            self._new_rows = []
        if self._new_parts:
            self._new_parts = {}
        if self._ended or self._settled:
            self._ended, self._settled = [], []
        if self._opened or self._closed:
            self._opened, self._closed = {}, []
        if self._new_unsettled:
            self._new_unsettled = {}

    def write(
        self, connection: Connection, happened: Iterable[LogRequest | tuple[IndexEntry, AddResult]]
    ) -> None:
        """Log what a transaction brings about, in its order. Raises SQLAlchemy's errors or sqlite3's."""
        if not self.keeps:
            return
        if not self._is_certain:
            self._read_again(connection)
        now = self._clock_ns()
        rows: list[Row] = []
        for each in happened:
            if isinstance(each, LogRequest):
                self._note(connection, each, rows)
            elif each[1].outcome in _TOLD_OF:
                entry, result = each
                rows.append(self._object(entry, result, now))
                if entry.report is not None and entry.report.errors:
                    rows.append(self._invalid(entry, entry.report, result, now))
        if rows:
            self._insert(connection, rows)
        new = [(uid,) for uid in self._new_unsettled if uid not in self._unsettled]
        if new:
            _insert_unsettled.execute(connection, new)

    def tell(self, connection: Connection, told: Sequence[Told]) -> None:
        """Log what the index itself has found. Raises as `write`."""
        if not self.keeps or not told:
            return
        if not self._is_certain:
            self._read_again(connection)
        now = self._clock_ns()
        self._insert(connection, [(self._next_id(), each.kind, now, "", None, each.data) for each in told])

    def settle(self, connection: Connection, stored_until_ns: int) -> None:
        """Log as settled the studies to which nothing has come since. Raises as `write`."""
        if not self._is_certain:
            self._read_again(connection)
        now = self._clock_ns()
        for uid, stored_at_ns in self._unsettled.items():
            if stored_at_ns > stored_until_ns:
                break
            if uid not in self._new_unsettled:
                self._settled.append(uid)
        rows = [
            (self._next_id(), STUDY_SETTLED, now, "", None, json.dumps({"study_instance_uid": uid}))
            for uid in self._settled
        ]
        self._insert(connection, rows)
        for uid in self._settled:
            connection.execute(_forget_study, {"uid": uid})

    def end_open_associations(self, connection: Connection, id_prefix: str = "") -> int:
        """Log as crashed each association whose end was not logged and whose id begins so; returns how many.
        Raises as `write`."""
        if not self._is_certain:
            self._read_again(connection)
        found = [row for row in connection.execute(_open) if row[0].startswith(id_prefix)]
        outcome = json.dumps({"outcome": CRASHED})
        now = self._clock_ns()
        rows: list[Row] = []
        for association_id, data in found:
            request = LogRequest(ASSOCIATION_ENDED, association_id, now, f"{data[:-1]},{outcome[1:]}")
            self._note(connection, request, rows)
        self._insert(connection, rows)
        return len(found)

    def _insert(self, connection: Connection, rows: Sequence[Row]) -> None:
        _insert_events.execute(connection, rows)
        if self._opened or self._closed:
            _insert_open.execute(connection, list(self._opened.values()))
            _close.execute(connection, self._closed)
            self._opened, self._closed = {}, []
        self._new_rows += rows

    def _next_id(self) -> int:
        self._written_id += 1
        return self._written_id

    def _object(self, entry: IndexEntry, result: AddResult, now: int) -> Row:
        summary, association_id = entry.summary, entry.association_id
        self._new_unsettled[summary.study_instance_uid] = now
        parts = self._new_parts.get(association_id, self._parts.get(association_id))
        if parts is not None:
            self._new_parts[association_id] = parts + 1
        data = _OBJECT_DATA % (
            _quoted(summary.study_instance_uid),
            _quoted(summary.series_instance_uid),
            _quoted(summary.sop_instance_uid),
            _quoted(summary.sop_class_uid),
            "null" if summary.modality is None else _quoted(summary.modality[:MAX_MODALITY_CHARACTERS]),
            result.part_number,
            _quoted(entry.transfer_syntax_uid),
            entry.size_bytes,
            _quoted(entry.digest_algorithm),
            _quoted(entry.digest.hex()),
            _quoted(entry.calling_ae_title),
            _quoted(entry.called_ae_title),
            _quoted(entry.peer_host),
            entry.peer_port,
            "null" if entry.peer_name is None else _quoted(entry.peer_name),
            "true" if entry.is_dicos else "false",
            entry.received_at_ns,
            "null" if entry.receive_ended_at_ns is None else entry.receive_ended_at_ns,
            now,
        )
        return (self._next_id(), OBJECT_STORED, now, association_id, entry.location, data)

    def _invalid(self, entry: IndexEntry, report: Report, result: AddResult, now: int) -> Row:
        summary = entry.summary
        data = {
            "study_instance_uid": summary.study_instance_uid,
            "series_instance_uid": summary.series_instance_uid,
            "sop_instance_uid": summary.sop_instance_uid,
            "sop_class_uid": summary.sop_class_uid,
            "modality": summary.modality,
            "part_number": result.part_number,
            "calling_ae_title": entry.calling_ae_title,
            "called_ae_title": entry.called_ae_title,
            "peer_name": entry.peer_name,
            "is_dicos": entry.is_dicos,
            "errors": report.errors,
            "warnings": report.warnings,
            "infos": report.infos,
            "error_codes": report.error_codes,
        }
        event_id, association_id = self._next_id(), entry.association_id
        return (event_id, OBJECT_INVALID, now, association_id, entry.location, json.dumps(data))

    def _note(self, connection: Connection, request: LogRequest, rows: list[Row]) -> None:
        kind, association_id, at_ns, data = request
        event_id = self._next_id()
        if kind == ASSOCIATION_ACCEPTED:
            self._new_parts[association_id] = 0
            self._opened[association_id] = (association_id, event_id, None, data)
        elif kind == ASSOCIATION_ENDED:
            parts = self._new_parts.get(association_id, self._parts.get(association_id))
            if parts is None:
                self._insert(connection, rows)
                rows.clear()
                parts = connection.execute(_count_parts, {"id": association_id}).scalar() or 0
            self._ended.append(association_id)
            if opened := self._opened.get(association_id):
                self._opened[association_id] = (association_id, opened[1], event_id, opened[3])
            else:
                self._closed.append((event_id, association_id))
            data = f'{data[:-1]},"parts":{parts}}}'
        rows.append((event_id, kind, at_ns, association_id, None, data))
