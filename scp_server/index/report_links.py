"""Which scans a threat detection report is on: plain functions over the writer's connection.

A report is on the study of each image that it refers to and that is here, and on each study that it names
itself (Referenced Study Sequence). One that refers to nothing, as a CLEAR may, or only to reports that are
here, is on its own study.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from sqlalchemy import BindParameter, Connection, Executable, bindparam, delete, exists, insert, select, union

from scp_server.index.bulk import ListSelect
from scp_server.index.hierarchy import padded
from scp_server.index.schema import instance_references, instances, scan_reports, series, studies
from scp_server.objects.dicos.decision import DICOS_CLASSES, TDR_STORAGE

MAX_VALUES_PER_STATEMENT = 512

T = TypeVar("T")

_KEYS: BindParameter[int] = bindparam("keys", expanding=True)
_UIDS: BindParameter[str] = bindparam("uids", expanding=True)
_referenced = instances.alias("referenced")
_report = instances.alias("report")
_reference = instance_references.c.referenced_sop_instance_uid
_wanted = union(
    select(instance_references.c.instance_key, series.c.study_key)
    .join(_referenced, _referenced.c.sop_instance_uid == _reference)
    .join(series, series.c.series_key == _referenced.c.series_key)
    .where(instance_references.c.instance_key.in_(_KEYS), _referenced.c.sop_class_uid != TDR_STORAGE),
    select(instance_references.c.instance_key, studies.c.study_key)
    .join(studies, studies.c.study_instance_uid == _reference)
    .where(instance_references.c.instance_key.in_(_KEYS)),
    select(instances.c.instance_key, series.c.study_key)
    .join(series, series.c.series_key == instances.c.series_key)
    .where(
        instances.c.instance_key.in_(_KEYS),
        ~exists(
            select(instance_references.c.instance_key)
            .outerjoin(
                _report, (_report.c.sop_instance_uid == _reference) & (_report.c.sop_class_uid == TDR_STORAGE)
            )
            .where(
                instance_references.c.instance_key == instances.c.instance_key,
                _report.c.instance_key.is_(None),
            )
        ),
    ),
)
_present = select(scan_reports.c.report_key, scan_reports.c.study_key).where(
    scan_reports.c.report_key.in_(_KEYS)
)
_unlink = delete(scan_reports).where(
    scan_reports.c.report_key == bindparam("report"), scan_reports.c.study_key == bindparam("study")
)
_referring = ListSelect(
    select(instance_references.c.instance_key, instances.c.sop_class_uid)
    .join(instances, instances.c.instance_key == instance_references.c.instance_key)
    .where(_reference.in_(_UIDS)),
    "uids",
)
_names_of_dicos = (
    select(instances.c.sop_instance_uid, studies.c.study_instance_uid)
    .join(series, series.c.series_key == instances.c.series_key)
    .join(studies, studies.c.study_key == series.c.study_key)
    .where(instances.c.instance_key.in_(_KEYS), instances.c.sop_class_uid.startswith(DICOS_CLASSES))
)


class Relinked(NamedTuple):
    """What has changed: the reports that studies have now, by the studies' keys, and studies that have lost
    any; and those of the reports that are on no study."""

    gained: dict[int, set[int]]
    lost: set[int]
    orphans: set[int]


class Leaving(NamedTuple):
    """Instances that are about to go: the UIDs by which reports may call them, and the studies that they are
    on as reports."""

    uids: frozenset[str] = frozenset()
    study_keys: frozenset[int] = frozenset()


def relink(connection: Connection, report_keys: Collection[int]) -> Relinked:
    """Bring what is recorded of these reports to what is here now. Raises SQLAlchemy's errors.

    Every report that is on a study counts as gained by it, since what it says beside others may be new.
    """
    wanted = _pairs(connection, _wanted, report_keys)
    present = _pairs(connection, _present, report_keys)
    new = [{"report_key": report, "study_key": study} for report, study in sorted(wanted - present)]
    if new:
        connection.execute(insert(scan_reports), new)
    gone = [{"report": report, "study": study} for report, study in sorted(present - wanted)]
    if gone:
        connection.execute(_unlink, gone)
    gained: dict[int, set[int]] = {}
    for report, study in wanted:
        gained.setdefault(study, set()).add(report)
    linked = {report for report, _ in wanted}
    return Relinked(gained, {study for _, study in present - wanted}, set(report_keys) - linked)


def referring(connection: Connection, uids: Iterable[str]) -> set[int]:
    """The keys of the reports that refer to any of `uids`. Raises SQLAlchemy's errors."""
    found: set[int] = set()
    for chunk in chunks(sorted(set(uids))):
        found.update(row[0] for row in _referring.rows(connection, chunk) if row[1] == TDR_STORAGE)
    return found


def leaving(connection: Connection, instance_keys: Collection[int]) -> Leaving:
    """What has to be known of instances before they are deleted. Raises SQLAlchemy's errors."""
    uids: set[str] = set()
    for chunk in chunks(sorted(instance_keys)):
        for row in connection.execute(_names_of_dicos, {"keys": chunk}):
            uids.update(row)
    on = _pairs(connection, _present, instance_keys)
    return Leaving(frozenset(uids), frozenset(study for _, study in on))


def _pairs(connection: Connection, statement: Executable, keys: Collection[int]) -> set[tuple[int, int]]:
    return {
        (first, second)
        for chunk in chunks(sorted(keys))
        for first, second in connection.execute(statement, {"keys": chunk})
    }


def chunks(values: Sequence[T]) -> Iterator[list[T]]:
    """`values`, some at a time, as parameters of a statement."""
    for start in range(0, len(values), MAX_VALUES_PER_STATEMENT):
        yield padded(values[start : start + MAX_VALUES_PER_STATEMENT])
