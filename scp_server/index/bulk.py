"""The statements of every batch, handed to SQLite's driver as text that was rendered once.

SQLAlchemy's execution of a statement costs some 15 to 20 µs beside 3 of SQLite's own, and a batch of one
entry has five. Measured (three rows an entry, SQLite, WAL on tmpfs, Python 3.11), CPU for each entry of
batches of 1, 4 and 16: 161, 64, 33 µs through SQLAlchemy, 89, 44, 27 µs as here. Rows of a batch share a
statement for another reason: the driver lets go of the interpreter lock around every step and has to win it
back from a busy event loop, so a statement per batch waits once where a statement per row waits 64 times.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Select, Table, Update, insert

from scp_server.index.sqlite import driver_of

MAX_ROWS = 32
"""Rows of one statement: few enough that all lengths stay prepared and no parameter limit is met."""

Row = tuple[Any, ...]


def _driver(connection: Connection) -> sqlite3.Connection | None:
    """Whom the texts are for; None where that is no SQLite, or is asked in other words."""
    dialect = connection.dialect
    return driver_of(connection) if (dialect.name, dialect.paramstyle) == ("sqlite", "qmark") else None


class BulkInsert:
    """An INSERT of whole rows, up to `max_rows` at once, rendered once for each number of them."""

    def __init__(self, table: Table, max_rows: int = MAX_ROWS, without: Sequence[str] = ()) -> None:
        """The columns `without` are NULL."""
        self.columns = tuple(name for name in table.columns.keys() if name not in without)  # noqa: SIM118
        self._max_rows = max_rows
        self._statement = insert(table)
        self._texts: dict[int, str] = {}

    def execute(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Insert `rows`, each with a value for every one of `columns`, in order.

        Raises SQLAlchemy's errors or sqlite3's.
        """
        driver = _driver(connection)
        if driver is None:
            if rows:
                connection.execute(
                    self._statement, [dict(zip(self.columns, row, strict=True)) for row in rows]
                )
            return
        for start in range(0, len(rows), self._max_rows):
            chunk = rows[start : start + self._max_rows]
            parameters = chunk[0] if len(chunk) == 1 else tuple([value for row in chunk for value in row])
            driver.execute(self._text(connection, len(chunk)), parameters)

    def _text(self, connection: Connection, row_count: int) -> str:
        text = self._texts.get(row_count)
        if text is None:
            compiled = self._statement.compile(dialect=connection.dialect, column_keys=list(self.columns))
            head, values = str(compiled).split(" VALUES ")
            text = self._texts[row_count] = f"{head} VALUES {', '.join([values] * row_count)}"
        return text


class BulkUpdate:
    """An UPDATE whose parameters, `names`, are in the order in which its text has them."""

    def __init__(self, statement: Update, names: tuple[str, ...]) -> None:
        self._statement = statement
        self._names = names
        self._text = ""

    def execute(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Update once for each of `rows`, its values in the order of `names`.

        Raises SQLAlchemy's errors or sqlite3's.
        """
        if not rows:
            return
        driver = _driver(connection)
        if driver is None:
            connection.execute(self._statement, [dict(zip(self._names, row, strict=True)) for row in rows])
            return
        if not self._text:
            compiled = self._statement.compile(dialect=connection.dialect)
            if compiled.positiontup != list(self._names):
                raise ValueError(f"the text has {compiled.positiontup} and not {self._names}")
            self._text = str(compiled)
        driver.executemany(self._text, rows)


class ListSelect:
    """A SELECT whose only parameter is a list, `name`, of text or numbers: rendered once for each length."""

    def __init__(self, statement: Select[Any], name: str) -> None:
        self._statement = statement
        self._name = name
        self._texts: dict[int, str] = {}

    def rows(self, connection: Connection, values: Sequence[object]) -> Iterable[Row]:
        """The rows. Few lengths should occur: see `padded`. Raises SQLAlchemy's errors or sqlite3's."""
        driver = _driver(connection)
        if driver is None:
            return [tuple(row) for row in connection.execute(self._statement, {self._name: values})]
        text = self._texts.get(len(values))
        if text is None:
            text = self._texts[len(values)] = str(
                self._statement.params({self._name: list(values)}).compile(
                    dialect=connection.dialect, compile_kwargs={"render_postcompile": True}
                )
            )
        return driver.execute(text, tuple(values)).fetchall()
