"""What a retrieve asks for: a level and unique keys, nothing else (PS3.4 C.4.2.2.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from scp_server.errors import QueryError
from scp_server.objects.query import Query, QueryKey, make_query
from scp_server.objects.query_model import QueryLevel, QueryModel

UNIQUE_KEYS: Final = {
    QueryLevel.PATIENT: (0x00100020, "PatientID"),
    QueryLevel.STUDY: (0x0020000D, "StudyInstanceUID"),
    QueryLevel.SERIES: (0x0020000E, "SeriesInstanceUID"),
    QueryLevel.IMAGE: (0x00080018, "SOPInstanceUID"),
}
"""Tag and keyword of each level's unique key (PS3.4 C.6.1.1)."""
_LEVEL_KEYS: Final = {tag: level for level, (tag, _) in UNIQUE_KEYS.items()}
_LEVELS: Final = tuple(QueryLevel)


def make_retrieve(keys: Mapping[str, object], *, level: str | None = None, model: str | None = None) -> Query:
    """Read what is to be retrieved: unique keys with values, a list of UIDs at the level itself.

    Without `level` it is that of the lowest key. Without `model` it is the Patient Root where the patient's
    key is there, and the Study Root otherwise. Raises QueryError.
    """
    query = make_query(keys, level=level or _level_of(keys), model=model or _model_of(keys), complete=False)
    if query.level is None:
        raise QueryError("nothing can be retrieved from a worklist")
    found: dict[QueryLevel, QueryKey] = {}
    for key in query.keys:
        its_level = _LEVEL_KEYS.get(key.key.tag)
        if its_level is None or _LEVELS.index(its_level) > _LEVELS.index(query.level):
            raise QueryError(f"{key.key.name}: a retrieve at level {query.level} has unique keys only")
        if its_level not in query.model.levels:
            raise QueryError(f"{key.key.name}: the model {query.model} has no level {its_level}")
        _check_value(key, its_level, several=its_level is query.level)
        found[its_level] = key
    if query.level not in found:
        raise QueryError(f"a retrieve at level {query.level} needs {UNIQUE_KEYS[query.level][1]}")
    return query


def asked_instances(query: Query) -> frozenset[str]:
    """The SOP Instance UIDs asked for by name; empty where all of something is asked for."""
    for key in query.keys:
        if key.key.tag == UNIQUE_KEYS[QueryLevel.IMAGE][0] and isinstance(key.value, str):
            return frozenset(key.value.split("\\"))
    return frozenset()


def _check_value(key: QueryKey, level: QueryLevel, *, several: bool) -> None:
    value = key.value
    if not isinstance(value, str) or not all(part.strip() for part in value.split("\\")):
        raise QueryError(f"{key.key.name}: a retrieve needs its value")
    if "*" in value or "?" in value:
        raise QueryError(f"{key.key.name}: a retrieve has no wild cards")
    if "\\" in value and not (several and level is not QueryLevel.PATIENT):
        raise QueryError(f"{key.key.name}: several values only of a UID at the level of the retrieve")


def _level_of(keys: Mapping[str, object]) -> str | None:
    """The level of the lowest unique key; None where the keys name one, or have none that is known."""
    tags = _tags(keys)
    if _QUERY_LEVEL in tags:
        return None
    found = [_LEVEL_KEYS[tag] for tag in tags if tag in _LEVEL_KEYS]
    return max(found, key=_LEVELS.index, default=None)


def _model_of(keys: Mapping[str, object]) -> QueryModel:
    patient = UNIQUE_KEYS[QueryLevel.PATIENT][0] in _tags(keys)
    return QueryModel.PATIENT if patient else QueryModel.STUDY


_QUERY_LEVEL: Final = 0x00080052


def _tags(keys: Mapping[str, object]) -> set[int]:
    from scp_server.objects.query_keys import parse_key

    return {parse_key(str(key)).tag for key in keys}
