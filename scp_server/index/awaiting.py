"""What waits to be complete: scans for a report on them, reports for an image of a scan.

`Awaiting` belongs to the thread that writes the index, and is called inside its transactions. Since when
something waits is a row, so that it is told of once, also after a restart. A scan waits from its last image
on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from sqlalchemy import BindParameter, Connection, bindparam, delete, exists, func, select, update

from scp_server.index.base import AddOutcome, AddResult, IndexEntry
from scp_server.index.bulk import BulkInsert, ListSelect
from scp_server.index.events import TDR_MISSING, TDR_ORPHAN, Told
from scp_server.index.report_links import Relinked, chunks
from scp_server.index.schema import instances, orphaned_reports, scan_reports, scans, series, studies
from scp_server.objects.dicos.decision import TDR_STORAGE
from scp_server.observability.measures import DecisionMeasures

OVERDUE_AT_ONCE: Final = 500
"""Scans, and reports, that are told of in one transaction."""
NEW: Final = frozenset({AddOutcome.ADDED, AddOutcome.REPLACED})

_LONG_AGO_NS: Final = 1

Addition = tuple[IndexEntry, AddResult]

_UIDS: BindParameter[str] = bindparam("uids", expanding=True)
_KEYS: BindParameter[int] = bindparam("keys", expanding=True)
_scan, _since = scans.c.study_instance_uid, scans.c.awaits_since_ns
_orphan, _orphan_since = orphaned_reports.c.sop_instance_uid, orphaned_reports.c.awaits_since_ns

_reported = ListSelect(
    select(studies.c.study_instance_uid)
    .where(studies.c.study_instance_uid.in_(_UIDS))
    .where(exists().where(scan_reports.c.study_key == studies.c.study_key)),
    "uids",
)
_known_scans = ListSelect(select(_scan, _since).where(_scan.in_(_UIDS)), "uids")
_insert_scans = BulkInsert(scans)
_insert_orphans = BulkInsert(orphaned_reports)
_await_longer = update(scans).where(_scan.in_(_UIDS)).values(awaits_since_ns=bindparam("since"))
_scans_complete = (
    update(scans)
    .where(
        _scan.in_(select(studies.c.study_instance_uid).where(studies.c.study_key.in_(_KEYS))),
        _since.is_not(None),
    )
    .values(awaits_since_ns=None)
)
_reports_complete = delete(orphaned_reports).where(
    _orphan.in_(select(instances.c.sop_instance_uid).where(instances.c.instance_key.in_(_KEYS)))
)
_forget_orphans = delete(orphaned_reports).where(_orphan.in_(_UIDS))
_forget_gone_orphans = _forget_orphans.where(_orphan.not_in(select(instances.c.sop_instance_uid)))
_forget_gone_scans = delete(scans).where(_scan.in_(_UIDS), _scan.not_in(select(studies.c.study_instance_uid)))
_oldest = select(
    select(func.min(_since)).where(_since.is_not(None)).scalar_subquery(),
    select(func.min(_orphan_since)).where(_orphan_since.is_not(None)).scalar_subquery(),
)
_missing = (
    select(_scan, scans.c.peer_name, _since)
    .where(_since <= bindparam("until"))
    .order_by(_since, _scan)
    .limit(OVERDUE_AT_ONCE)
)
_orphans = (
    select(_orphan, _orphan_since, studies.c.study_instance_uid)
    .select_from(orphaned_reports)
    .outerjoin(instances, instances.c.sop_instance_uid == _orphan)
    .outerjoin(series, series.c.series_key == instances.c.series_key)
    .outerjoin(studies, studies.c.study_key == series.c.study_key)
    .where(_orphan_since <= bindparam("until"))
    .order_by(_orphan_since, _orphan)
    .limit(OVERDUE_AT_ONCE)
)
_scans_told = update(scans).where(_scan.in_(_UIDS)).values(awaits_since_ns=None)
_orphans_told = update(orphaned_reports).where(_orphan.in_(_UIDS)).values(awaits_since_ns=None)


class Awaiting:
    """The scans and reports of one index that wait. While events are not kept nothing begins to."""

    def __init__(self, measures: DecisionMeasures, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._measures = measures
        self._clock_ns = clock_ns
        self.oldest_ns = (0, 0)
        """Since when a scan waits, and a report, or before that; 0 where none does."""
        self._new_oldest: tuple[int, int] | None = None
        self._missing: list[str | None] = []
        self._orphaned = 0

    def open(self, connection: Connection) -> None:
        """Begin with a database that has this version's tables."""
        self.oldest_ns = _read_oldest(connection)

    def committed(self) -> None:
        """What was told is true for good, and counts."""
        if self._new_oldest is not None:
            self.oldest_ns = self._new_oldest
        for peer_name in self._missing:
            self._measures.missing_of(peer_name)
        self._measures.orphaned += self._orphaned
        self._clear_new()

    def forget(self) -> None:
        """The transaction did not commit, or nobody knows whether it did: something may wait. The next look
        for what is overdue finds out."""
        self.oldest_ns = (_LONG_AGO_NS, _LONG_AGO_NS)
        self._clear_new()

    def _clear_new(self) -> None:
        self._new_oldest = None
        self._orphaned = 0
        if self._missing:
            self._missing = []

    def images_came(self, connection: Connection, additions: Iterable[Addition], *, keeps: bool) -> None:
        """Remember the scans of those additions that are images; without a report they wait from now on.

        Raises SQLAlchemy's errors or sqlite3's.
        """
        first: dict[str, IndexEntry] = {}
        for entry, _ in additions:
            if entry.summary.sop_class_uid != TDR_STORAGE:
                first.setdefault(entry.summary.study_instance_uid, entry)
        if not first:
            return
        uids = list(first)
        known = {row[0]: row[1] for chunk in chunks(uids) for row in _known_scans.rows(connection, chunk)}
        new = [uid for uid in uids if uid not in known]
        reported = {row[0] for chunk in chunks(new) for row in _reported.rows(connection, chunk)}
        since = self._clock_ns() if keeps else None
        rows = [
            (uid, first[uid].peer_name, first[uid].received_at_ns, None if uid in reported else since)
            for uid in new
        ]
        _insert_scans.execute(connection, rows)
        for chunk in chunks([uid for uid, awaits_since in known.items() if awaits_since is not None]):
            connection.execute(_await_longer, {"uids": chunk, "since": since})
        self._began_to_wait(0, since)

    def reports_came(
        self,
        connection: Connection,
        reports: Sequence[Addition],
        keys: dict[str, int],
        relinked: Relinked,
        *,
        keeps: bool,
    ) -> None:
        """What has found the other waits no more; a new report on no scan waits from now on. `keys` are those
        of `reports`. Raises as `images_came`."""
        linked = sorted({key for found in relinked.gained.values() for key in found})
        for keys_of_reports in chunks(linked):
            connection.execute(_reports_complete, {"keys": keys_of_reports})
        for keys_of_studies in chunks(sorted(relinked.gained)):
            connection.execute(_scans_complete, {"keys": keys_of_studies})
        new = {entry.summary.sop_instance_uid for entry, result in reports if result.outcome in NEW}
        orphans = sorted(uid for uid in new if keys[uid] in relinked.orphans)
        if orphans and keeps:
            since = self._clock_ns()
            for chunk in chunks(orphans):
                connection.execute(_forget_orphans, {"uids": chunk})
            _insert_orphans.execute(connection, [(uid, since) for uid in orphans])
            self._began_to_wait(1, since)

    def forget_gone(self, connection: Connection, uids: Iterable[str]) -> None:
        """Forget those of these studies and reports that are not here any more. Raises as `images_came`."""
        for chunk in chunks(sorted(uids)):
            connection.execute(_forget_gone_scans, {"uids": chunk})
            connection.execute(_forget_gone_orphans, {"uids": chunk})

    def overdue(self, connection: Connection, scans_until_ns: int, reports_until_ns: int) -> list[Told]:
        """What is to be told of, and is told of from now on, at most OVERDUE_AT_ONCE of either; see
        `EventLog.tell_overdue`. Raises as `images_came`."""
        missing = connection.execute(_missing, {"until": scans_until_ns}).all()
        orphans = connection.execute(_orphans, {"until": reports_until_ns}).all()
        told = []
        for study_uid, peer_name, since in missing:
            data = {"study_instance_uid": study_uid, "peer_name": peer_name, "last_image_at_ns": since}
            told.append(Told(TDR_MISSING, json.dumps(data)))
            self._missing.append(peer_name)
        for uid, since, study_uid in orphans:
            if study_uid is not None:
                data = {"study_instance_uid": study_uid, "sop_instance_uid": uid, "stored_at_ns": since}
                told.append(Told(TDR_ORPHAN, json.dumps(data)))
                self._orphaned += 1
        for chunk in chunks([row[0] for row in missing]):
            connection.execute(_scans_told, {"uids": chunk})
        for chunk in chunks([row[0] for row in orphans]):
            connection.execute(_orphans_told, {"uids": chunk})
        self._new_oldest = _read_oldest(connection)
        return told

    def _began_to_wait(self, which: int, since: int | None) -> None:
        """Whatever waited already has done so for longer."""
        oldest = self._new_oldest or self.oldest_ns
        if since is not None and not oldest[which]:
            self._new_oldest = (since, oldest[1]) if which == 0 else (oldest[0], since)


def _read_oldest(connection: Connection) -> tuple[int, int]:
    scan, report = connection.execute(_oldest).one()
    return scan or 0, report or 0
