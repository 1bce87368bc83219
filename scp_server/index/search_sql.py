"""A search as SQL: one statement finds keys, another reads what is wanted of some of them.

Finding looks at conditions only, so that the planner can take whichever index is best and sort bare keys;
reading goes by primary keys only, whatever was asked. A statement is built once for each shape and dialect:
building it takes longer than SQLite takes to answer it.

Columns of lower levels are tested by EXISTS, which costs a look-up for each entity that the other conditions
leave, or, where the index gives few rows for them, by IN.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    Dialect,
    FromClause,
    Index,
    Integer,
    Select,
    Text,
    UniqueConstraint,
    bindparam,
    cast,
    exists,
    false,
    func,
    literal_column,
    or_,
    select,
)
from sqlalchemy.sql.compiler import SQLCompiler

from scp_server.index.schema import (
    SPARSE_INSTANCE_COLUMNS,
    headers,
    instance_references,
    instances,
    parts,
    patients,
    series,
    studies,
)
from scp_server.index.search import MAX_DISTINCT_VALUES, ColumnValue, EntityLevel
from scp_server.index.search_shape import ColumnTest, Operator, Parameters, Shape, parameter

REMEMBERED_SHAPES = 256
"""Shapes whose statements are kept, about 20 KiB each; peers choose what they ask for."""

_TABLES: Final = (patients, studies, series, instances, instance_references)
"""By level; what an instance refers to is as one level below it."""
_KEYS: Final = ("patient_key", "study_key", "series_key", "instance_key")
_SERIES, _INSTANCE = EntityLevel.SERIES, EntityLevel.INSTANCE
_NO_ATTRIBUTES: Final = frozenset({*_KEYS, "unidentified_study_instance_uid"})

LEVELS: Final[Mapping[str, int]] = {
    name: level
    for level, table in enumerate(_TABLES)
    for name in table.columns.keys()  # noqa: SIM118
    if name not in _NO_ATTRIBUTES
}
"""The level of every column that can be asked for; references are one below INSTANCE."""

_SELECTIVE: Final = frozenset(
    {
        *SPARSE_INSTANCE_COLUMNS,
        *("study_instance_uid", "accession_number", "study_id", "series_instance_uid", "sop_instance_uid"),
        "referenced_sop_instance_uid",
    }
)
"""Columns whose index gives few rows for a value: of a lower level, they are looked up first."""

_LAST_RESORT: Final = frozenset({"current_alarm_decision"})
"""Columns whose index gives few rows for some values (ALARM) and nearly all for others (CLEAR): it is used
only where no other test has one."""

_INDEXED: Final = frozenset(
    next(iter(each.columns)).name
    for table in _TABLES
    for each in (*table.indexes, *table.constraints)
    if isinstance(each, (Index, UniqueConstraint))
)
"""Columns that an index begins with."""

_COUNTS: Final = {
    f"number_of_{upper}_related_{_TABLES[below].name}": (level, below)
    for level, upper in enumerate(("patient", "study", "series"))
    for below in range(level + 1, _INSTANCE + 1)
}


class Prepared(NamedTuple):
    """SQL text, and which parameters it takes."""

    text: str
    names: tuple[str, ...] | None
    """In the order of the text; None where the driver takes them by their names."""
    constants: Parameters

    def values(self, parameters: Parameters) -> tuple[str | int, ...] | dict[str, str | int]:
        """The parameters as the driver takes them."""
        given = {**self.constants, **parameters}
        return given if self.names is None else tuple([given[name] for name in self.names])


class Statements(NamedTuple):
    """How a shape is searched for.

    `find` takes the tests' parameters and `after`, `until`, `limit`: rows of a key and the newest key there
    is, ascending. `read` takes `keys`, a JSON array: rows of key, header, then `columns`, of which those from
    `first_list` on are JSON arrays.
    """

    find: Prepared
    read: Prepared
    columns: tuple[str, ...]
    first_list: int

    def named(self, row: Sequence[Any]) -> dict[str, ColumnValue]:
        """The values of a row of `read` by their names."""
        values: dict[str, ColumnValue] = dict(zip(self.columns, row[2:], strict=True))
        for name in self.columns[self.first_list :]:
            listed = values[name]
            values[name] = tuple(sorted(json.loads(listed))) if isinstance(listed, str) else ()
        return values


@lru_cache(REMEMBERED_SHAPES)
def statements(shape: Shape, dialect: Dialect) -> Statements:
    """The statements of a shape. Raises ValueError for a column or count that it cannot have."""
    lists = _distinct_values(shape, dialect.name)
    columns = {**_columns(shape.level), **{name: _count(shape.level, name) for name in shape.counts}}
    header = _first_header(shape.level) if shape.with_header else literal_column("NULL")
    own = _own_key(shape.level)
    read = (
        select(own, header.label("header"), *(value.label(None) for value in (columns | lists).values()))
        .select_from(_with_those_above(shape.level, 0))
        .where(own.in_(listed("keys", BigInteger(), dialect.name)))
    )
    return Statements(
        _prepare(_find(shape, dialect.name), dialect),
        _prepare(read, dialect),
        (*columns, *lists),
        len(columns),
    )


def _prepare(statement: Select[Any], dialect: Dialect) -> Prepared:
    compiled = statement.compile(dialect=dialect)
    if not isinstance(compiled, SQLCompiler):
        raise TypeError(f"{type(compiled).__name__} is no compiler of SQL")
    constants = {name: value for name, value in compiled.params.items() if value is not None}
    names = None if compiled.positiontup is None else tuple(compiled.positiontup)
    return Prepared(str(compiled), names, constants)


def _find(shape: Shape, dialect: str) -> Select[Any]:
    levels = [_level(test.column) for test in shape.tests]
    own = _own_key(shape.level)
    newest = _TABLES[shape.level].alias().c[own.name]
    # As a sum it is neither a range nor an order that the planner could prefer to the index of a test.
    narrow = {
        test.column
        for level, test in zip(levels, shape.tests, strict=True)
        if level <= shape.level and _is_narrow(test)
    }
    others_narrow = not narrow <= _LAST_RESORT or any(test.column in _SELECTIVE for test in shape.tests)
    narrowed = bool(narrow)
    key = own + literal_column("0") if narrowed else own
    return (
        select(own, select(func.max(newest)).scalar_subquery())
        .select_from(_with_those_above(shape.level, min(levels, default=shape.level)))
        .where(key > bindparam("after", type_=BigInteger), key <= bindparam("until", type_=BigInteger))
        .where(
            *(
                _condition(shape.level, number, test, dialect, others_narrow=others_narrow)
                for number, test in enumerate(shape.tests)
            )
        )
        .order_by(key)
        .limit(bindparam("limit", type_=Integer))
    )


def _is_narrow(test: ColumnTest) -> bool:
    """Whether an index leads to the rows that pass, without those that do not."""
    if test.or_missing or test.operator in (Operator.NOTHING, Operator.PRESENT):
        return False
    names = SPARSE_INSTANCE_COLUMNS if test.operator is Operator.CONTAINS else _INDEXED
    return test.column in names


def _condition(
    level: int, number: int, test: ColumnTest, dialect: str, *, others_narrow: bool
) -> ColumnElement[bool]:
    its_level = _level(test.column)
    is_last_resort = test.column in _LAST_RESORT
    without_index = is_last_resort and others_narrow
    if its_level <= level:
        column = _TABLES[its_level].c[test.column]
        passes = _passes(column, number, test.operator, dialect, without_index=without_index)
        return or_(_missing(column), passes) if test.or_missing else passes
    own = _own_key(level)
    source, owner, column = _below(level, its_level, test.column)
    passes = _passes(column, number, test.operator, dialect, without_index=without_index)
    rows = select(owner).select_from(source).where(passes)
    first = is_last_resort and not others_narrow
    found = own.in_(rows) if first or test.column in _SELECTIVE else exists(rows.where(owner == own))
    if not test.or_missing:
        return found
    source, owner, column = _below(level, its_level, test.column)
    return or_(found, ~exists(select(owner).select_from(source).where(owner == own, ~_missing(column))))


def _passes(
    stored: Column[Any], number: int, operator: Operator, dialect: str, *, without_index: bool
) -> ColumnElement[bool]:
    """The test itself. Parameters have the column's type, so that PostgreSQL knows it too."""
    # What is worked out has no index.
    column: ColumnElement[Any] = stored.concat(literal_column("''")) if without_index else stored

    def given(name: str) -> ColumnElement[Any]:
        return bindparam(parameter(number, name), type_=column.type)

    match operator:
        case Operator.NOTHING:
            return false()
        case Operator.PRESENT:
            return ~_missing(stored)
        case Operator.EQUAL:
            return column == given("value")
        case Operator.AMONG:
            return column.in_(listed(parameter(number, "values"), column.type, dialect))
        case Operator.CONTAINS:
            find = func.instr if dialect == "sqlite" else func.strpos
            # The comparison is true of every such text, and lets a partial index be used.
            return (column > "") & (find(column, given("value")) > 0)
        case Operator.AT_LEAST:
            return column >= given("low")
        case Operator.AT_MOST:
            return column <= given("high")
        case Operator.BETWEEN:
            return (column >= given("low")) & (column <= given("high"))
        case Operator.FROM_BELOW:
            return (column >= given("low")) & (column < given("high"))


def _missing(column: Column[Any]) -> ColumnElement[bool]:
    """Absent text is the empty string where a column is part of a key."""
    return column.is_(None) if column.nullable else column == ""


def listed(name: str, type_: Any, dialect: str) -> Select[Any]:
    """The values of a JSON array that is one parameter, however many there are."""
    given: ColumnElement[str] = bindparam(name, type_=Text)
    if dialect == "sqlite":
        return select(func.json_each(given).table_valued("value").c.value)
    return select(cast(func.json_array_elements_text(cast(given, JSON)), type_))


def _level(column: str) -> int:
    try:
        return LEVELS[column]
    except KeyError:
        raise ValueError(f"the index has no column {column}") from None


def _own_key(level: int) -> Column[int]:
    return _TABLES[level].c[_KEYS[level]]


def _with_those_above(level: int, top: int) -> FromClause:
    """The table of `level`, joined with those up to `top`."""
    source: FromClause = _TABLES[level]
    for above in range(level - 1, top - 1, -1):
        source = source.join(_TABLES[above], _own_key(above) == _TABLES[above + 1].c[_KEYS[above]])
    return source


def _below(level: int, lowest: int, column: str) -> tuple[FromClause, Column[int], Column[Any]]:
    """The tables below `level` down to `lowest`, the column that names a row's entity, and `column`."""
    first = table = _TABLES[level + 1].alias()
    source: FromClause = first
    for each in range(level + 2, lowest + 1):
        upper, table = table, _TABLES[each].alias()
        source = source.join(table, table.c[_KEYS[each - 1]] == upper.c[_KEYS[each - 1]])
    return source, first.c[_KEYS[level]], table.c[column]


def _columns(level: int) -> dict[str, ColumnElement[Any]]:
    """What is known of an entity and those above it."""
    return {
        name: _TABLES[its_level].c[name]
        if _TABLES[its_level].c[name].nullable or name.endswith("_uid")
        else func.nullif(_TABLES[its_level].c[name], "")
        for name, its_level in LEVELS.items()
        if its_level <= level
    }


def _count(level: int, name: str) -> ColumnElement[int]:
    upper, lower = _COUNTS.get(name, (len(_TABLES), 0))
    if upper > level:
        raise ValueError(f"there is no {name} at level {EntityLevel(level).name}")
    source, owner, _ = _below(upper, lower, _KEYS[lower])
    return select(func.count()).select_from(source).where(owner == _own_key(upper)).scalar_subquery()


def _distinct_values(shape: Shape, dialect: str) -> dict[str, ColumnElement[Any]]:
    """JSON arrays of what lies below."""
    found: dict[str, ColumnElement[Any]] = {}
    collect = func.json_group_array if dialect == "sqlite" else func.json_agg
    for name in shape.below:
        if (its_level := _level(name)) <= shape.level:
            raise ValueError(f"{name} is not below level {shape.level.name}")
        source, owner, column = _below(shape.level, its_level, name)
        distinct = (
            select(column.label("value"))
            .select_from(source)
            .where(owner == _own_key(shape.level), ~_missing(column))
            .distinct()
            .order_by(column)
            .limit(literal_column(str(MAX_DISTINCT_VALUES)))
            .correlate(_TABLES[shape.level])
            .subquery()
        )
        found[name] = select(cast(collect(distinct.c.value), Text)).scalar_subquery()
    return found


def _first_header(level: int) -> ColumnElement[bytes]:
    """The packed header of the first part of the first instance: its key is the smallest."""
    entity = _TABLES[level]
    if level == _INSTANCE:
        first: ColumnElement[int] = instances.c.instance_key
    elif level == _SERIES:
        first = _first_of(series)
    else:
        source, owner, key = _below(level, _SERIES, "series_key")
        of_each = select(func.min(_first_of(key.table))).select_from(source).where(owner == _own_key(level))
        first = of_each.correlate(entity).scalar_subquery()
    part = (
        select(parts.c.part_key)
        .where(parts.c.instance_key == first)
        .order_by(parts.c.part_number)
        .limit(literal_column("1"))
        .correlate(entity)
        .scalar_subquery()
    )
    return select(headers.c.header).where(headers.c.part_key == part).correlate(entity).scalar_subquery()


def _first_of(its_series: FromClause) -> ColumnElement[int]:
    each = instances.alias()
    first = select(func.min(each.c.instance_key)).where(each.c.series_key == its_series.c.series_key)
    return first.correlate(its_series).scalar_subquery()
