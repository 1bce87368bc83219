"""What a retrieve sends: all parts below what its unique keys name, in one statement.

It is over before anything is sent. Every condition is on a column with an index of its own, so what it costs
is in proportion to what is found.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import Connection, Integer, Select, bindparam, literal_column, select

from scp_server.index.base import RetrievablePart, UniqueKey
from scp_server.index.schema import instances, parts, patients, series, studies
from scp_server.index.search_sql import LEVELS, listed

_TABLES: Final = (patients, studies, series, instances)
_COLUMNS: Final = (
    instances.c.sop_class_uid,
    instances.c.sop_instance_uid,
    parts.c.transfer_syntax_uid,
    parts.c.location,
    parts.c.size_bytes,
    parts.c.dataset_offset_bytes,
)


_part_at: Final = (
    select(*_COLUMNS)
    .select_from(parts)
    .join(instances, instances.c.instance_key == parts.c.instance_key)
    .where(parts.c.location == bindparam("location"))
)


def part_at(connection: Connection, location: str) -> RetrievablePart | None:
    """See `Index.part`."""
    row = connection.execute(_part_at, {"location": location}).first()
    return None if row is None else RetrievablePart(*row)


def retrievable_parts(connection: Connection, keys: Sequence[UniqueKey], limit: int) -> list[RetrievablePart]:
    """See `Index.retrievable`."""
    prepared = statement(tuple(key.column for key in keys), connection.dialect.name)
    values: dict[str, Any] = {_parameter(number): json.dumps(key.values) for number, key in enumerate(keys)}
    known: dict[str, str] = {}
    return [
        # Thousands of rows name the same few classes and transfer syntaxes: one text each is kept.
        RetrievablePart(known.setdefault(row[0], row[0]), row[1], known.setdefault(row[2], row[2]), *row[3:])
        for row in connection.execute(prepared, {**values, "limit": limit})
    ]


def _parameter(number: int) -> str:
    return f"values_{number}"


@cache
def statement(columns: tuple[str, ...], dialect: str) -> Select[Any]:
    """For these columns, each compared with the values of one parameter, a JSON array."""
    if not columns:
        raise ValueError("a retrieve needs a key")
    conditions = []
    for number, name in enumerate(columns):
        column = _TABLES[LEVELS[name]].c[name]
        conditions.append(column.in_(listed(_parameter(number), column.type, dialect)))
    return (
        select(*_COLUMNS)
        .select_from(parts)
        .join(instances, instances.c.instance_key == parts.c.instance_key)
        .join(series, series.c.series_key == instances.c.series_key)
        .join(studies, studies.c.study_key == series.c.study_key)
        .join(patients, patients.c.patient_key == studies.c.patient_key)
        .where(*conditions)
        # A sum is no order that the planner could walk all instances in, instead of using a key's index.
        .order_by(instances.c.instance_key + literal_column("0"), parts.c.part_number)
        .limit(bindparam("limit", type_=Integer))
    )
