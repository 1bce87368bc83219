"""Taking instances away to make room: their rows now, their files afterwards.

The rows go in the transaction that records the newcomer; it also records the locations in
`discarded_objects`, so that the files are deleted even when the process ends before its caller could. A
series, study or patient that loses its last instance goes too: what is made in its place has the newcomer's
attributes, not those that were wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import BindParameter, Connection, bindparam, delete, insert, select

from scp_server.index.hierarchy import padded
from scp_server.index.removal import remove_empty_series
from scp_server.index.schema import discarded_objects, headers, instance_references, instances, parts

_KEYS: BindParameter[int] = bindparam("keys", expanding=True)
_MAX_LOCATIONS = 256

_locations = select(parts.c.instance_key, parts.c.location).where(parts.c.instance_key.in_(_KEYS))
_delete_headers = delete(headers).where(
    headers.c.part_key.in_(select(parts.c.part_key).where(parts.c.instance_key.in_(_KEYS)))
)
_delete_parts = delete(parts).where(parts.c.instance_key.in_(_KEYS))
_delete_references = delete(instance_references).where(instance_references.c.instance_key.in_(_KEYS))
_delete_instances = (
    delete(instances).where(instances.c.instance_key.in_(_KEYS)).returning(instances.c.series_key)
)
_forget = delete(discarded_objects).where(
    discarded_objects.c.location.in_(bindparam("locations", expanding=True))
)


def remove_instances(connection: Connection, instance_keys: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """Take instances and all that belongs to them away; returns the locations of each one's parts.

    Raises SQLAlchemy's errors. Whoever remembers keys of series or studies forgets them: they may be gone.
    """
    if not instance_keys:
        return {}
    keys = {"keys": padded(instance_keys)}
    found: dict[int, list[str]] = {key: [] for key in instance_keys}
    for key, location in connection.execute(_locations, keys):
        found[key].append(location)
    for statement in (_delete_headers, _delete_parts, _delete_references):
        connection.execute(statement, keys)
    emptied = set(connection.execute(_delete_instances, keys).scalars())
    remove_empty_series(connection, emptied)
    discarded = [{"location": location} for each in found.values() for location in each]
    if discarded:
        connection.execute(insert(discarded_objects), discarded)
    return {key: tuple(locations) for key, locations in found.items()}


def forget_discarded(connection: Connection, locations: Sequence[str]) -> None:
    """The files at these locations are gone."""
    for start in range(0, len(locations), _MAX_LOCATIONS):
        connection.execute(_forget, {"locations": padded(locations[start : start + _MAX_LOCATIONS])})
