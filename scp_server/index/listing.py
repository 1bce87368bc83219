"""Which parts there are: the rows that become `PartRecord`s, and pages of them.

A page of everything is found by the location it begins after, so that reading a million parts costs each
page the same and holds no cursor open over what others write meanwhile. No index has what lies below one UID
in the order of locations: the keys of that are sorted once, and a page is found by its keys.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, Select, bindparam, select

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
        parts.c.stored_digest,
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


parts_with_keys: Final[Select[Any]] = columns_of_parts.where(
    parts.c.part_key.in_(bindparam("keys", expanding=True))
)
"""The parts whose keys are `keys`, in no particular order."""


def page_of_parts(after: str, limit: int) -> Select[Any]:
    """Up to `limit` parts whose location is greater than `after`, in the order of locations."""
    return columns_of_parts.where(parts.c.location > after).order_by(parts.c.location).limit(limit)


def keys_below(scope: Scope) -> Select[Any]:
    """The keys of all parts of `scope`, in the order of their locations."""
    return (
        columns_of_parts.with_only_columns(parts.c.part_key)
        .where(_UID_COLUMNS[scope.level] == scope.uid)
        # Not the column itself: else all locations are walked to find the few of a scope in their order.
        .order_by(parts.c.location.concat(""))
    )
