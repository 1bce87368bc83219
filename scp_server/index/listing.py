"""Which parts there are: the rows that become `PartRecord`s, and pages of them.

A page is found by the location it begins after, so that reading a million parts costs each page the same and
holds no cursor open over what others write meanwhile.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, Select, select

from scp_server.index.base import Level, Scope
from scp_server.index.schema import instances, parts, series, studies

columns_of_parts: Final[Select[Any]] = (
    select(
        studies.c.study_instance_uid,
        series.c.series_instance_uid,
        instances.c.sop_class_uid,
        instances.c.sop_instance_uid,
        parts.c.part_number,
        parts.c.transfer_syntax_uid,
        parts.c.digest_algorithm,
        parts.c.digest,
        parts.c.location,
        parts.c.size_bytes,
        parts.c.dataset_offset_bytes,
        parts.c.arrival_id,
        parts.c.received_at_ns,
        parts.c.calling_ae_title,
        parts.c.called_ae_title,
    )
    .select_from(parts)
    .join(instances, instances.c.instance_key == parts.c.instance_key)
    .join(series, series.c.series_key == instances.c.series_key)
    .join(studies, studies.c.study_key == series.c.study_key)
)
"""Every column of a PartRecord."""

_UID_COLUMNS: Final[dict[Level, ColumnElement[str]]] = {
    Level.STUDY: studies.c.study_instance_uid,
    Level.SERIES: series.c.series_instance_uid,
    Level.INSTANCE: instances.c.sop_instance_uid,
}


def page_of_parts(after: str, limit: int, scope: Scope | None) -> Select[Any]:
    """Up to `limit` parts whose location is greater than `after`, in the order of locations."""
    if scope is None:
        key: ColumnElement[str] = parts.c.location
        rows = columns_of_parts
    else:
        # Not the column itself: else all locations are walked to find the few of a scope in their order.
        key = parts.c.location.concat("")
        rows = columns_of_parts.where(_UID_COLUMNS[scope.level] == scope.uid)
    return rows.where(key > after).order_by(key).limit(limit)
