"""Keeping each scan's current decision: in the transactions that add and remove reports and images.

`DecisionWriter` is called in the thread that writes the index, inside its transactions. It finds the reports
that what has come or gone concerns, links them to their scans (`report_links`), has the rule choose
(`objects/dicos/decision.py`), and tells of what has become true; the log has that in the same transaction. An
object that is not of DICOS costs one comparison.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import BindParameter, Connection, bindparam, exists, func, select, union, update

from scp_server.index.awaiting import NEW, Addition, Awaiting
from scp_server.index.base import AddOutcome
from scp_server.index.event_writing import EventWriter
from scp_server.index.events import DECISION_CHANGED, TDR_RECEIVED, Told
from scp_server.index.report_links import Leaving, Relinked, chunks, referring, relink
from scp_server.index.schema import (
    DECISION_COLUMNS,
    instance_references,
    instances,
    parts,
    scan_reports,
    scans,
    series,
    studies,
)
from scp_server.objects.dicos.decision import (
    DICOS_CLASSES,
    TDR_STORAGE,
    Report,
    current,
    moment_of,
    scan_to_decision_ms,
)
from scp_server.observability.measures import DecisionMeasures

MAX_SCANS_NAMED: Final = 64
"""Scans of one report that its event names."""
_MILLISECOND_NS: Final = 1_000_000
_KEPT: Final = NEW | {AddOutcome.ADDED_PART}

_UIDS: BindParameter[str] = bindparam("uids", expanding=True)
_KEYS: BindParameter[int] = bindparam("keys", expanding=True)
_keys_of = select(instances.c.sop_instance_uid, instances.c.instance_key).where(
    instances.c.sop_instance_uid.in_(_UIDS)
)
_names_of_studies = select(studies.c.study_key, studies.c.study_instance_uid).where(
    studies.c.study_key.in_(_KEYS)
)
_operators_report = instances.alias("operators_report")
_received_at = (
    select(parts.c.received_at_ns)
    .where(parts.c.instance_key == instances.c.instance_key)
    .order_by(parts.c.part_number)
    .limit(1)
    .scalar_subquery()
)
REFERS_TO_OPERATOR = (
    exists()
    .where(instance_references.c.instance_key == instances.c.instance_key)
    .where(_operators_report.c.sop_instance_uid == instance_references.c.referenced_sop_instance_uid)
    .where(_operators_report.c.sop_class_uid == TDR_STORAGE)
    .where(_operators_report.c.tdr_type == "OPERATOR")
)
"""Whether an instance refers to the report of an operator."""
_reports = (
    select(
        instances.c.sop_instance_uid,
        instances.c.tdr_type,
        instances.c.alarm_decision,
        instances.c.alarm_decision_time,
        _received_at,
        (instances.c.tdr_type == "AGGREGATE") & REFERS_TO_OPERATOR,
    )
    .select_from(scan_reports)
    .join(instances, instances.c.instance_key == scan_reports.c.report_key)
    .where(scan_reports.c.study_key == bindparam("study_key"))
)
_candidate = instances.alias("candidate")
_some_reports = _reports.where(
    # As two conditions with "or" it would be a walk through all reports of the study.
    scan_reports.c.report_key.in_(
        union(
            select(_candidate.c.instance_key).where(_candidate.c.instance_key.in_(_KEYS)),
            select(_candidate.c.instance_key).where(_candidate.c.sop_instance_uid == bindparam("deciding")),
        )
    )
)
_study = (
    select(
        studies.c.study_instance_uid,
        studies.c.study_date,
        studies.c.study_time,
        *(studies.c[name] for name in DECISION_COLUMNS),
        scans.c.peer_name,
        scans.c.first_image_at_ns,
    )
    .select_from(studies)
    .outerjoin(scans, scans.c.study_instance_uid == studies.c.study_instance_uid)
    .where(studies.c.study_key == bindparam("study_key"))
)
_acquired = (
    select(func.min(instances.c.acquisition_date_time))
    .join(series, series.c.series_key == instances.c.series_key)
    .where(series.c.study_key == bindparam("study_key"))
)
_decide = (
    update(studies)
    .where(studies.c.study_key == bindparam("its_key"))
    .values({name: bindparam(f"new_{name}") for name in DECISION_COLUMNS})
)

_Peers = dict[str, str | None]
"""The names of peers, by the UIDs of the reports, and of the studies of the images, that they have sent."""


class _Decided(NamedTuple):
    """What is counted of a decision."""

    peer_name: str | None
    decision: str
    seconds: float | None


class DecisionWriter:
    """Links reports and decides for the writer of one index; what it tells goes to the log of `events`."""

    def __init__(
        self,
        events: EventWriter,
        measures: DecisionMeasures | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._events = events
        self._measures = measures or DecisionMeasures()
        self.awaiting = Awaiting(self._measures, clock_ns)
        self._decided: list[_Decided] = []

    def open(self, connection: Connection) -> None:
        """Begin with a database that has this version's tables."""
        self.awaiting.open(connection)

    def committed(self) -> None:
        """What was told is true for good, and counts."""
        self.awaiting.committed()
        for decided in self._decided:
            self._measures.decided(*decided)
        if self._decided:
            self._decided = []

    def forget(self) -> None:
        """The transaction did not commit, or nobody knows whether it did."""
        self.awaiting.forget()
        self._decided = []

    def added(self, connection: Connection, additions: Sequence[Addition], left: Leaving) -> None:
        """Entries were recorded; `left` are instances that they replaced.

        Raises SQLAlchemy's errors or sqlite3's; then the transaction must be rolled back.
        """
        kept = [
            each
            for each in additions
            if each[1].outcome in _KEPT and each[0].summary.sop_class_uid.startswith(DICOS_CLASSES)
        ]
        if not kept and not left.uids and not left.study_keys:
            return
        self.awaiting.images_came(connection, kept, keeps=self._events.keeps)
        reports = [each for each in kept if each[0].summary.sop_class_uid == TDR_STORAGE]
        keys = _keys(connection, [entry.summary.sop_instance_uid for entry, _ in reports])
        concerned = {*keys.values(), *referring(connection, left.uids | _names_of(kept))}
        if not concerned and not left.study_keys:
            return
        relinked = relink(connection, concerned)
        self.awaiting.reports_came(connection, reports, keys, relinked, keeps=self._events.keeps)
        peers: _Peers = {entry.summary.study_instance_uid: entry.peer_name for entry, _ in kept}
        peers |= {entry.summary.sop_instance_uid: entry.peer_name for entry, _ in reports}
        # Where something was replaced, what referred to it may count for less now.
        lost = left.study_keys | relinked.gained.keys() if left.uids else left.study_keys
        told = _received(connection, reports, keys, relinked)
        told += self._decide_all(connection, relinked, lost, peers)
        self._events.tell(connection, told)

    def removed(self, connection: Connection, left: Leaving) -> None:
        """Parts of these instances were deleted, or all. Raises as `added`."""
        if not left.uids and not left.study_keys:
            return
        self.awaiting.forget_gone(connection, left.uids)
        relinked = relink(connection, referring(connection, left.uids))
        # What referred to an operator's report that is gone may count for less now.
        lost = left.study_keys | relinked.gained.keys()
        self._events.tell(connection, self._decide_all(connection, relinked, lost, {}))

    def tell_overdue(self, connection: Connection, scans_until_ns: int, reports_until_ns: int) -> None:
        """See `EventLog.tell_overdue`. Raises as `added`."""
        self._events.tell(connection, self.awaiting.overdue(connection, scans_until_ns, reports_until_ns))

    def _decide_all(
        self, connection: Connection, relinked: Relinked, lost: Collection[int], peers: _Peers
    ) -> list[Told]:
        """Decide anew for each study that reports have come to or gone from."""
        lost = {*lost, *relinked.lost}
        told = []
        for key in sorted({*relinked.gained, *lost}):
            candidates = None if key in lost else relinked.gained[key]
            change = self._decide(connection, key, candidates, peers)
            if change is not None:
                told.append(change)
        return told

    def _decide(
        self, connection: Connection, study_key: int, candidates: Collection[int] | None, peers: _Peers
    ) -> Told | None:
        """Decide for one study, between the report that decides now and `candidates`, or among all."""
        study = connection.execute(_study, {"study_key": study_key}).one_or_none()
        if study is None:
            return None
        before = tuple(getattr(study, name) for name in DECISION_COLUMNS)
        times = _reports_of(connection, study_key, candidates, study.deciding_sop_instance_uid)
        decides = current(times)
        after: tuple[str | None, ...] = (None,) * len(DECISION_COLUMNS)
        if decides is not None:
            uid = decides.sop_instance_uid
            after = (decides.decision.value, times[decides], decides.tdr_type, uid)
        if before == after:
            return None
        named = {f"new_{name}": value for name, value in zip(DECISION_COLUMNS, after, strict=True)}
        connection.execute(_decide, {"its_key": study_key, **named})
        data = {
            "study_instance_uid": study.study_instance_uid,
            "from": study.current_alarm_decision,
            "from_tdr_type": study.current_tdr_type,
            "to": after[0],
            "tdr_type": after[2],
            "sop_instance_uid": after[3],
            "peer_name": study.peer_name,
        }
        if decides is not None:
            if study.first_image_at_ns is None:
                data["peer_name"] = peers.get(uid, peers.get(study.study_instance_uid))
            data |= self._latency(connection, study_key, study, decides, times[decides], data["peer_name"])
        return Told(DECISION_CHANGED, json.dumps(data))

    def _latency(
        self,
        connection: Connection,
        study_key: int,
        study: Any,
        decides: Report,
        decided_at: str | None,
        peer_name: str | None,
    ) -> dict[str, int | None]:
        """How long it took, by the machine's clock and by ours; counts the decision."""
        acquired = None
        if not (study.study_date and study.study_time):
            acquired = connection.execute(_acquired, {"study_key": study_key}).scalar()
        ours = None
        if study.first_image_at_ns is not None:
            ours = max(0, decides.received_at_ns - study.first_image_at_ns) // _MILLISECOND_NS
        seconds = None if ours is None else ours / 1_000
        self._decided.append(_Decided(peer_name, decides.decision.value, seconds))
        theirs = scan_to_decision_ms(decided_at, study.study_date, study.study_time, acquired)
        return {"scan_to_decision_ms": theirs, "image_to_report_ms": ours}


def _reports_of(
    connection: Connection, study_key: int, candidates: Collection[int] | None, deciding: str | None
) -> dict[Report, str | None]:
    """All reports of a study, or the candidates and the one that decides now; with their times as text."""
    if candidates is None:
        rows = connection.execute(_reports, {"study_key": study_key}).all()
    else:
        rows = [
            row
            for chunk in chunks(sorted(candidates))
            for row in connection.execute(
                _some_reports, {"study_key": study_key, "keys": chunk, "deciding": deciding or ""}
            )
        ]
    return {
        Report(uid, kind, decision, moment_of(at), received_at_ns or 0, bool(has_operator)): at
        for uid, kind, decision, at, received_at_ns, has_operator in rows
    }


def _names_of(additions: Iterable[Addition]) -> set[str]:
    """The UIDs by which reports may refer to what is new among these."""
    return {
        uid
        for entry, result in additions
        if result.outcome in NEW
        for uid in (entry.summary.sop_instance_uid, entry.summary.study_instance_uid)
    }


def _keys(connection: Connection, uids: Sequence[str]) -> dict[str, int]:
    """The keys of the instances of these UIDs."""
    return {uid: key for chunk in chunks(uids) for uid, key in connection.execute(_keys_of, {"uids": chunk})}


def _received(
    connection: Connection, reports: Iterable[Addition], keys: dict[str, int], relinked: Relinked
) -> list[Told]:
    """What is told of reports that have come."""
    names: dict[int, str] = {}
    for chunk in chunks(sorted(relinked.gained)):
        names.update((key, uid) for key, uid in connection.execute(_names_of_studies, {"keys": chunk}))
    told = []
    for entry, _ in reports:
        summary = entry.summary
        key = keys[summary.sop_instance_uid]
        on = sorted(names[study] for study, found in relinked.gained.items() if key in found)
        data = {
            "study_instance_uid": summary.study_instance_uid,
            "sop_instance_uid": summary.sop_instance_uid,
            "tdr_type": summary.tdr_type,
            "alarm_decision": summary.alarm_decision,
            "alarm_decision_time": summary.alarm_decision_time,
            "scans": on[:MAX_SCANS_NAMED],
            "peer_name": entry.peer_name,
        }
        told.append(Told(TDR_RECEIVED, json.dumps(data)))
    return told
