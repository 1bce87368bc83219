"""`scan.show` over the control socket: a scan, what has come of it, and which report decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scp_server.errors import ObjectNotFound, SCPServerError
from scp_server.index.events import EventLog
from scp_server.index.scans import MAX_LISTED, MAX_SCANS, AnyRow, KeptImage, KeptReport, KeptScan, read_scan
from scp_server.objects.dicos.decision import DICOS_CLASSES, current, reason, scan_to_decision_ms
from scp_server.objects.raw_header import RawHeader
from scp_server.runtime.control import Command, WrongArguments, only, text

_ALGORITHM = 0x40101029
_OPERATORS = 0x00081072
_CODES = 0x00401101
_CODE_VALUE, _CODE_MEANING = 0x00080100, 0x00080104
_MILLISECOND_NS = 1_000_000


def scan_commands(log: EventLog) -> dict[str, Command]:
    """`scan.show`: one scan, or a list of those that have the id."""

    async def show(arguments: Mapping[str, Any]) -> dict[str, Any]:
        only(arguments, "id")
        wanted = text(arguments, "id")
        if not wanted:
            raise WrongArguments("id is missing")
        found = await log.read(lambda connection: read_scan(connection, wanted))
        if isinstance(found, KeptScan):
            return {"scan": _scan(found)}
        if not found:
            raise ObjectNotFound(f"there is no scan, object of inspection or study {wanted}")
        return {"matches": [_match(row) for row in found], "more": len(found) == MAX_SCANS}

    return {"scan.show": show}


def _match(row: AnyRow) -> dict[str, Any]:
    return {
        "study_instance_uid": row.study_instance_uid,
        "scan_id": row.study_id,
        "object_id": row.patient_id,
        "scan_date": row.study_date,
        "scan_time": row.study_time,
        "alarm_decision": row.current_alarm_decision,
        "tdr_type": row.current_tdr_type,
        "state": _state(row),
    }


def _state(row: AnyRow) -> str:
    """`decided`, `undecided` (reports that do not decide), `waiting` for a report, `missing` one, or `none`:
    a study that nothing is known of as a scan."""
    if row.current_alarm_decision is not None:
        return "decided"
    if row.has_report:
        return "undecided"
    if row.first_image_at_ns is None:
        return "none"
    return "missing" if row.awaits_since_ns is None else "waiting"


def _scan(found: KeptScan) -> dict[str, Any]:
    row, machine = found.scan, found.machine
    return {
        **_match(row),
        "description": row.study_description,
        "scan_type": row.scan_type,
        "object": {
            "id": row.patient_id,
            "issuer": row.issuer_of_patient_id,
            "id_type": row.type_of_patient_id,
            "type": row.ooi_type,
        },
        "machine": {"peer_name": row.peer_name, **({} if machine is None else machine._mapping)},
        "images": [_image(image) for image in found.images[:MAX_LISTED]],
        "more_images": len(found.images) > MAX_LISTED,
        "reports": _reports(found.reports[:MAX_LISTED], row.deciding_sop_instance_uid),
        "more_reports": len(found.reports) > MAX_LISTED,
        "orphans": _reports(found.orphans[:MAX_LISTED], None),
        "decision": _decision(found),
    }


def _image(image: KeptImage) -> dict[str, Any]:
    return {
        "sop_instance_uid": image.sop_instance_uid,
        "sop_class_uid": image.sop_class_uid,
        "modality": image.modality,
        "is_dicos": image.sop_class_uid.startswith(DICOS_CLASSES),
        "parts": [dict(part._mapping) for part in image.parts],
    }


def _reports(reports: Sequence[KeptReport], deciding: str | None) -> list[dict[str, Any]]:
    return [
        {
            "sop_instance_uid": kept.report.sop_instance_uid,
            "tdr_type": kept.report.tdr_type,
            "alarm_decision": kept.report.alarm_decision,
            "alarm_decision_time": kept.alarm_decision_time,
            "alarm_objects": kept.number_of_alarm_objects,
            "by": _by(kept.header),
            "received_at_ns": kept.report.received_at_ns,
            "may_decide": kept.report.rank is not None,
            "decides": kept.report.sop_instance_uid == deciding,
            "told_as_orphan": kept.told_as_orphan,
            "parts": [dict(part._mapping) for part in kept.parts],
        }
        for kept in reports
    ]


def _by(packed: bytes | None) -> str:
    """The operators that a report names, or else its algorithm."""
    try:
        header = None if packed is None else RawHeader.unpack(packed)
        if header is None:
            return ""
        codes = [code for operator in header.items(_OPERATORS) for code in operator.items(_CODES)]
        named = [code.text(_CODE_MEANING) or code.text(_CODE_VALUE) or "" for code in codes]
        algorithm = (header.text(_ALGORITHM) or "").split("\\")
    except (ValueError, SCPServerError):
        return ""
    return ", ".join(filter(None, named)) or " ".join(part.strip() for part in algorithm[:2]).strip()


def _decision(found: KeptScan) -> dict[str, Any] | None:
    """The decision and why it is that; None where there is none."""
    row = found.scan
    if row.current_alarm_decision is None:
        return None
    reports = [kept.report for kept in found.reports]
    decides = current(reports)
    known = decides is not None and decides.sop_instance_uid == row.deciding_sop_instance_uid
    received_ms = None
    if decides is not None and known and row.first_image_at_ns is not None:
        received_ms = max(0, decides.received_at_ns - row.first_image_at_ns) // _MILLISECOND_NS
    return {
        "alarm_decision": row.current_alarm_decision,
        "tdr_type": row.current_tdr_type,
        "alarm_decision_time": row.current_alarm_decision_time,
        "sop_instance_uid": row.deciding_sop_instance_uid,
        # Of more reports than are read here it may be another one.
        "reason": reason(decides, reports) if decides is not None and known else "",
        "scan_to_decision_ms": scan_to_decision_ms(
            row.current_alarm_decision_time, row.study_date, row.study_time, None
        ),
        "image_to_report_ms": received_ms,
    }
