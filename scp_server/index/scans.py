"""Reading all that is known of a scan: plain functions over a reader's connection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, bindparam, exists, select, union

from scp_server.index.deciding import REFERS_TO_OPERATOR
from scp_server.index.schema import (
    DECISION_COLUMNS,
    headers,
    instances,
    orphaned_reports,
    parts,
    patients,
    scan_reports,
    scans,
    series,
    studies,
)
from scp_server.objects.dicos.decision import TDR_STORAGE, Report, moment_of

MAX_SCANS: Final = 100
"""Scans that are found by one id."""
MAX_LISTED: Final = 200
"""Images, and reports, of one scan that are read."""

AnyRow = Any
"""A row of several columns: its type has as many parameters as it has columns."""

_SCAN: Final = (
    studies.c.study_key,
    studies.c.study_instance_uid,
    studies.c.study_id,
    studies.c.study_date,
    studies.c.study_time,
    studies.c.study_description,
    studies.c.scan_type,
    patients.c.patient_id,
    patients.c.issuer_of_patient_id,
    patients.c.type_of_patient_id,
    patients.c.ooi_type,
    *(studies.c[name] for name in DECISION_COLUMNS),
    scans.c.peer_name,
    scans.c.first_image_at_ns,
    scans.c.awaits_since_ns,
    exists().where(scan_reports.c.study_key == studies.c.study_key).label("has_report"),
)
_find = (
    select(*_SCAN)
    .select_from(studies)
    .join(patients, patients.c.patient_key == studies.c.patient_key)
    .outerjoin(scans, scans.c.study_instance_uid == studies.c.study_instance_uid)
    .where(
        # Three look-ups in three indexes; as one condition it would be a walk through all studies.
        studies.c.study_key.in_(
            union(
                select(studies.c.study_key).where(studies.c.study_instance_uid == bindparam("id")),
                select(studies.c.study_key).where(studies.c.study_id == bindparam("id")),
                select(studies.c.study_key)
                .join(patients, patients.c.patient_key == studies.c.patient_key)
                .where(patients.c.patient_id == bindparam("id")),
            )
        )
    )
    .order_by(studies.c.study_key)
    .limit(MAX_SCANS)
)
_machine = (
    select(
        series.c.station_name,
        series.c.manufacturer,
        series.c.manufacturer_model_name,
        series.c.device_serial_number,
        series.c.institution_name,
    )
    .where(series.c.study_key == bindparam("study_key"))
    .order_by(series.c.modality == "TDR", series.c.series_key)
    .limit(1)
)
_images = (
    select(
        instances.c.sop_instance_uid, instances.c.sop_class_uid, series.c.modality, instances.c.instance_key
    )
    .join(series, series.c.series_key == instances.c.series_key)
    .where(series.c.study_key == bindparam("study_key"), instances.c.sop_class_uid != TDR_STORAGE)
    .order_by(instances.c.instance_key)
    .limit(MAX_LISTED + 1)
)
_parts = (
    select(
        parts.c.part_number,
        parts.c.size_bytes,
        parts.c.transfer_syntax_uid,
        parts.c.received_at_ns,
        parts.c.calling_ae_title,
        parts.c.location,
    )
    .where(parts.c.instance_key == bindparam("instance_key"))
    .order_by(parts.c.part_number)
)
_REPORT: Final = (
    instances.c.instance_key,
    instances.c.sop_instance_uid,
    instances.c.tdr_type,
    instances.c.alarm_decision,
    instances.c.alarm_decision_time,
    instances.c.number_of_alarm_objects,
    (instances.c.tdr_type == "AGGREGATE") & REFERS_TO_OPERATOR,
)
_reports = (
    select(*_REPORT)
    .select_from(scan_reports)
    .join(instances, instances.c.instance_key == scan_reports.c.report_key)
    .where(scan_reports.c.study_key == bindparam("study_key"))
    .order_by(instances.c.instance_key)
    .limit(MAX_LISTED + 1)
)
_orphans = (
    select(*_REPORT)
    .select_from(instances)
    .join(series, series.c.series_key == instances.c.series_key)
    .where(
        series.c.study_key == bindparam("study_key"),
        instances.c.sop_class_uid == TDR_STORAGE,
        ~exists().where(scan_reports.c.report_key == instances.c.instance_key),
    )
    .order_by(instances.c.instance_key)
    .limit(MAX_LISTED + 1)
)
_told_of = select(orphaned_reports.c.sop_instance_uid).where(
    orphaned_reports.c.sop_instance_uid == bindparam("uid"), orphaned_reports.c.awaits_since_ns.is_(None)
)
_header = (
    select(headers.c.header)
    .join(parts, parts.c.part_key == headers.c.part_key)
    .where(parts.c.instance_key == bindparam("instance_key"))
    .order_by(parts.c.part_number)
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class KeptImage:
    """An image of a scan, with its parts."""

    sop_instance_uid: str
    sop_class_uid: str
    modality: str | None
    parts: Sequence[AnyRow]


@dataclass(frozen=True, slots=True)
class KeptReport:
    """A report, with what is read of it: the packed header of its first part, and its parts."""

    report: Report
    alarm_decision_time: str | None
    number_of_alarm_objects: int | None
    header: bytes | None
    parts: Sequence[AnyRow]
    told_as_orphan: bool


@dataclass(frozen=True, slots=True)
class KeptScan:
    """All of a scan. `scan` has the columns of `find_scans`. Of images and reports there may be one more than
    MAX_LISTED: then they are not all. `orphans` are reports of its study that are on no scan."""

    scan: AnyRow
    machine: AnyRow | None
    images: Sequence[KeptImage]
    reports: Sequence[KeptReport]
    orphans: Sequence[KeptReport]


def find_scans(connection: Connection, wanted: str) -> Sequence[AnyRow]:
    """The studies of this Study Instance UID, Scan ID (Study ID) or OOI ID (Patient ID), up to MAX_SCANS."""
    return connection.execute(_find, {"id": wanted}).all()


def read_scan(connection: Connection, wanted: str) -> KeptScan | Sequence[AnyRow]:
    """The one scan that is meant, or those that may be."""
    found = find_scans(connection, wanted)
    if len(found) != 1:
        return found
    scan = found[0]
    key = {"study_key": scan.study_key}
    images = [
        KeptImage(uid, sop_class_uid, modality, _parts_of(connection, instance_key))
        for uid, sop_class_uid, modality, instance_key in connection.execute(_images, key)
    ]
    return KeptScan(
        scan,
        connection.execute(_machine, key).one_or_none(),
        images,
        [_report(connection, row) for row in connection.execute(_reports, key)],
        [_report(connection, row) for row in connection.execute(_orphans, key)],
    )


def _parts_of(connection: Connection, instance_key: int) -> Sequence[AnyRow]:
    return connection.execute(_parts, {"instance_key": instance_key}).all()


def _report(connection: Connection, row: AnyRow) -> KeptReport:
    key, uid, kind, decision, at, alarms, has_operator = row
    found = _parts_of(connection, key)
    received_at_ns = found[0].received_at_ns if found else 0
    return KeptReport(
        Report(uid, kind, decision, moment_of(at), received_at_ns, bool(has_operator)),
        at,
        alarms,
        connection.execute(_header, {"instance_key": key}).scalar(),
        found,
        connection.execute(_told_of, {"uid": uid}).first() is not None,
    )
