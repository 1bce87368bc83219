"""Taking parts out of the index: a plain function over a connection, inside its caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import Column, Connection, Table, bindparam, delete, exists, select

from scp_server.index.report_links import Leaving, chunks, leaving
from scp_server.index.schema import instances, parts, patients, series, studies


class RemoveRequest(NamedTuple):
    """Where the parts lie that are to be forgotten."""

    locations: tuple[str, ...]


_instances_at = select(parts.c.instance_key).where(
    parts.c.location.in_(bindparam("locations", expanding=True))
)
_delete_parts = delete(parts).where(parts.c.location.in_(bindparam("locations", expanding=True)))


class _Level(NamedTuple):
    """A table with its key, the column that names its parent, and that by which its children name it."""

    table: Table
    key: Column[int]
    parent: Column[int] | None
    child: Column[int]


_INSTANCES = _Level(instances, instances.c.instance_key, instances.c.series_key, parts.c.instance_key)
_ABOVE_INSTANCES = (
    _Level(series, series.c.series_key, series.c.study_key, instances.c.series_key),
    _Level(studies, studies.c.study_key, studies.c.patient_key, series.c.study_key),
    _Level(patients, patients.c.patient_key, None, studies.c.patient_key),
)


def remove_parts(connection: Connection, locations: Sequence[str]) -> tuple[int, Leaving]:
    """Delete the parts at `locations` and what is empty then, upwards; headers and references go with them.

    Returns the number of parts, and what was known of their instances.
    Raises SQLAlchemy's errors; then the transaction must be rolled back.
    """
    touched: set[int] = set()
    for chunk in chunks(locations):
        touched.update(connection.execute(_instances_at, {"locations": chunk}).scalars())
    left = leaving(connection, touched)
    removed = 0
    for chunk in chunks(locations):
        removed += connection.execute(_delete_parts, {"locations": chunk}).rowcount
    emptied_series = _remove_empty(connection, _INSTANCES, touched)
    remove_empty_series(connection, emptied_series)
    return removed, left


def remove_empty_series(connection: Connection, series_keys: Iterable[int]) -> None:
    """Delete those series that have no instance any more, and the studies and patients left empty by that.

    Raises SQLAlchemy's errors. Whoever remembers keys of series or studies forgets them: they may be gone.
    """
    keys = set(series_keys)
    for level in _ABOVE_INSTANCES:
        keys = _remove_empty(connection, level, keys)


def _remove_empty(connection: Connection, level: _Level, keys: Iterable[int]) -> set[int]:
    """Delete those rows among `keys` that no child names; returns the parents of what went."""
    table, key, parent, child = level
    empty = key.in_(bindparam("keys", expanding=True)) & ~exists().where(child == key)
    parents: set[int] = set()
    for chunk in chunks(sorted(keys)):
        if parent is not None:
            parents.update(connection.execute(select(parent).where(empty), {"keys": chunk}).scalars())
        connection.execute(delete(table).where(empty), {"keys": chunk})
    return parents
