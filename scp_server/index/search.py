"""What can be asked of an index: a search for the entities of one level.

A search narrows down; it may yield more than is wanted, never less. Whether an entity really matches is for
`judge`, which sees it before anybody else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol, TypeVar

from scp_server.objects.matching_hints import Hint

T = TypeVar("T")

MAX_DISTINCT_VALUES = 64
"""Most values of a lower level's column that an entity is given."""

ColumnValue = str | int | tuple[str | int, ...] | None


class EntityLevel(IntEnum):
    """The levels of the information model (PS3.4 C.6), the highest first."""

    PATIENT = 0
    STUDY = 1
    SERIES = 2
    INSTANCE = 3


@dataclass(frozen=True, slots=True)
class Condition:
    """What a column's value has to be. A column of a lower level than the search's: one value below has to.

    `column` is a column of the schema, or `referenced_sop_instance_uid`.
    """

    column: str
    hint: Hint
    or_missing: bool = False
    """An entity without a value is found too; if the column is below it, one without any value there."""


@dataclass(frozen=True, slots=True)
class Search:
    """Which entities, and what is to be known of them besides the columns of their level and those above."""

    level: EntityLevel
    conditions: tuple[Condition, ...] = ()
    below: frozenset[str] = frozenset()
    """Columns of lower levels (and `referenced_sop_instance_uid`): their distinct values, in order, are given
    as a tuple."""
    counts: frozenset[str] = frozenset()
    """`number_of_{patient_related_studies,patient_related_series,patient_related_instances,
    study_related_series,study_related_instances,series_related_instances}`, of the level or above."""
    with_header: bool = False
    """Give the packed header of the first instance's first part."""


class Entity(NamedTuple):
    """One found. `values` has columns, what is below, and counts by their names; None is no value."""

    key: int
    values: Mapping[str, ColumnValue]
    header: bytes | None


Judge = Callable[[Entity], T | None]
"""Called in a thread of the index; None means that the entity is not wanted. What it raises ends the search
and is raised to the caller."""


SizeOf = Callable[[T], int]
"""How many bytes something that the judge gave holds."""


def of_no_size(_: object) -> int:
    """For what is small."""
    return 0


class RunningSearch(Protocol[T]):
    """A search being carried out: pages of what the judge gave, as lists that may be empty.

    Every page is a short transaction, so that nothing is held back while the caller takes its time.
    """

    def __aiter__(self) -> AsyncIterator[list[T]]: ...

    async def __anext__(self) -> list[T]:
        """The next page. Raises IndexUnavailable; SearchInterrupted after `interrupt`."""
        ...

    def interrupt(self) -> None:
        """Stop: a statement that runs ends at once, the iteration with SearchInterrupted. Never raises."""
        ...
