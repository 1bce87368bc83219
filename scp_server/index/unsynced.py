"""Files that the index keeps until they are durable in the storage: finding and forgetting them."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, delete, select

from scp_server.index.hierarchy import padded
from scp_server.index.schema import parts, unsynced_objects

_MAX_LOCATIONS = 256

_keys = select(parts.c.part_key).where(parts.c.location.in_(bindparam("locations", expanding=True)))
_kept = select(parts.c.location).where(parts.c.part_key.in_(select(unsynced_objects.c.part_key)))
_contents = (
    select(parts.c.location, unsynced_objects.c.content)
    .join(unsynced_objects, unsynced_objects.c.part_key == parts.c.part_key)
    .where(parts.c.location.in_(bindparam("locations", expanding=True)))
)
_forget = delete(unsynced_objects).where(unsynced_objects.c.part_key.in_(_keys))


def unsynced_locations(connection: Connection) -> list[str]:
    """Where the files belong that the index keeps, in the order of their keys."""
    return list(connection.execute(_kept).scalars())


def unsynced_contents(connection: Connection, locations: Sequence[str]) -> dict[str, bytes]:
    """Those files that are kept, by location."""
    found: dict[str, bytes] = {}
    for start in range(0, len(locations), _MAX_LOCATIONS):
        chunk = padded(locations[start : start + _MAX_LOCATIONS])
        rows = connection.execute(_contents, {"locations": chunk})
        found.update((location, bytes(content)) for location, content in rows)
    return found


def forget_unsynced(connection: Connection, locations: Sequence[str]) -> None:
    """Keep these files no longer. Raises SQLAlchemy's errors; then the transaction must be rolled back."""
    for start in range(0, len(locations), _MAX_LOCATIONS):
        connection.execute(_forget, {"locations": padded(locations[start : start + _MAX_LOCATIONS])})
