"""What the validation found in the parts, page by page."""

from __future__ import annotations

import re
from typing import Final

from sqlalchemy import Connection, select, tuple_

from scp_server.index.base import FindingFilter, FindingRecord
from scp_server.index.schema import findings, instances, parts, series, studies
from scp_server.objects.validation.finding import SEVERITIES, Code

_AFTER: Final = re.compile(r"([0-9]{1,18})\.([0-9]{1,9})")
_COLUMNS: Final = (
    *(findings.c.severity, findings.c.code, findings.c.path),
    *(findings.c.keyword, findings.c.vr, findings.c.sentence),
    *(studies.c.study_instance_uid, series.c.series_instance_uid, instances.c.sop_instance_uid),
    *(parts.c.part_number, parts.c.received_at_ns, parts.c.calling_ae_title),
)
_BELOW_STUDIES: Final = (
    select(parts.c.part_key)
    .join(instances, instances.c.instance_key == parts.c.instance_key)
    .join(series, series.c.series_key == instances.c.series_key)
    .join(studies, studies.c.study_key == series.c.study_key)
)


def page_of_findings(
    connection: Connection, wanted: FindingFilter, after: str, limit: int
) -> list[FindingRecord]:
    """See `Index.findings`."""
    statement = (
        select(findings.c.part_key, findings.c.number, *_COLUMNS)
        .select_from(findings)
        .join(parts, parts.c.part_key == findings.c.part_key)
        .join(instances, instances.c.instance_key == parts.c.instance_key)
        .join(series, series.c.series_key == instances.c.series_key)
        .join(studies, studies.c.study_key == series.c.study_key)
        .order_by(findings.c.part_key, findings.c.number)
        .limit(limit)
    )
    if after:
        statement = statement.where(tuple_(findings.c.part_key, findings.c.number) > tuple_(*_place(after)))
    severity = wanted.severity
    if wanted.code:
        statement = statement.where(findings.c.code == wanted.code)
        # A code has one severity, and severities are what there is an index of.
        severity = severity or SEVERITIES[Code(wanted.code)]
    if severity:
        statement = statement.where(findings.c.severity == severity.value)
    if wanted.study_instance_uid:
        below = _BELOW_STUDIES.where(studies.c.study_instance_uid == wanted.study_instance_uid)
        statement = statement.where(findings.c.part_key.in_(below))
    rows = connection.execute(statement)
    return [FindingRecord._make((f"{row[0]}.{row[1]}", *row[2:])) for row in rows]


def _place(after: str) -> tuple[int, int]:
    matched = _AFTER.fullmatch(after)
    if matched is None:
        raise ValueError(f"{after!r} is no place among the findings")
    return int(matched[1]), int(matched[2])
