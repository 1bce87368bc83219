"""What a search's conditions ask of a column: their shapes, and the values that go with them.

Two searches of one shape are the same SQL with other parameters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum, auto
from typing import Final, NamedTuple, assert_never

from scp_server.index.search import EntityLevel, Search
from scp_server.objects.matching_hints import AnyOf, Between, Contains, Hint, StartsWith

Parameters = Mapping[str, str | int]

_LAST_CODE_POINT: Final = 0x10FFFF
_SURROGATES: Final = range(0xD800, 0xE000)
_INTEGERS: Final = range(-(1 << 63), 1 << 63)


class Operator(Enum):
    """How a column is compared with its parameters."""

    NOTHING = auto()
    """No value passes."""
    PRESENT = auto()
    """Every value passes, but not its absence."""
    EQUAL = auto()
    AMONG = auto()
    """One of a JSON array."""
    CONTAINS = auto()
    AT_LEAST = auto()
    AT_MOST = auto()
    BETWEEN = auto()
    """`low` and `high` included."""
    FROM_BELOW = auto()
    """`low` included, `high` not."""


class ColumnTest(NamedTuple):
    """A condition without its values."""

    column: str
    operator: Operator
    or_missing: bool


class Shape(NamedTuple):
    """A search without its values."""

    level: EntityLevel
    tests: tuple[ColumnTest, ...]
    below: tuple[str, ...]
    counts: tuple[str, ...]
    with_header: bool


def parameter(number: int, name: str) -> str:
    """What the SQL calls a value of the test of that number."""
    return f"{name}_{number}"


def take_apart(search: Search) -> tuple[Shape, Parameters]:
    """The shape of a search, and its values by what the SQL calls them."""
    tests = []
    parameters: dict[str, str | int] = {}
    for number, condition in enumerate(search.conditions):
        operator, values = _operator(condition.hint)
        tests.append(ColumnTest(condition.column, operator, condition.or_missing))
        parameters.update({parameter(number, name): value for name, value in values.items()})
    shape = Shape(
        search.level,
        tuple(tests),
        tuple(sorted(search.below)),
        tuple(sorted(search.counts)),
        search.with_header,
    )
    return shape, parameters


def _operator(hint: Hint) -> tuple[Operator, Parameters]:
    match hint:
        case AnyOf(values):
            return _any_of([value for value in values if isinstance(value, str) or value in _INTEGERS])
        case Contains(text):
            return Operator.CONTAINS, {"value": text}
        case StartsWith(prefix):
            after = text_after(prefix)
            if after is None:
                return Operator.AT_LEAST, {"low": prefix}
            return Operator.FROM_BELOW, {"low": prefix, "high": after}
        case Between(None, None):
            return Operator.PRESENT, {}
        case Between(None, str(high)):
            return Operator.AT_MOST, {"high": high}
        case Between(str(low), None):
            return Operator.AT_LEAST, {"low": low}
        case Between(low, high):
            return Operator.BETWEEN, {"low": low or "", "high": high or ""}
        case _:
            assert_never(hint)


def _any_of(values: list[str | int]) -> tuple[Operator, Parameters]:
    if not values:
        return Operator.NOTHING, {}
    if len(values) == 1:
        return Operator.EQUAL, {"value": values[0]}
    return Operator.AMONG, {"values": json.dumps(values)}


def text_after(prefix: str) -> str | None:
    """The least text, by code points, that is greater than all that begin with `prefix`; None if none is."""
    kept = prefix.rstrip(chr(_LAST_CODE_POINT))
    if not kept:
        return None
    following = ord(kept[-1]) + 1
    return kept[:-1] + chr(_SURROGATES.stop if following in _SURROGATES else following)
