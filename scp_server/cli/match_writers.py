"""How matches are written as they come: a table for people, lines with tabs, or a JSON array."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from scp_server.cli.match_cells import Column, plain_text, readable_text

if TYPE_CHECKING:
    from rich.console import Console

    from scp_server.objects.match import Match

_BATCH_ROWS: Final = 100
"""Rows whose widths decide how wide the table's columns are."""
_MAX_WIDTH: Final = 64
"""Of a column, in cells of the terminal: a UID fits."""
_MIN_WIDTH: Final = 8
_GAP_WIDTH: Final = 2
"""Between columns."""


_COUNTER_SECONDS: Final = 0.2


class Counter:
    """How many matches have come, on standard error while that is a terminal and nothing else is there."""

    def __init__(self, *, as_json: bool) -> None:
        lines_at_terminal = as_json and sys.stdout.isatty()
        self._enabled = sys.stderr.isatty() and not lines_at_terminal
        self._next = 0.0
        self._shown = False

    def show(self, matches: int) -> None:
        """Show the number, a few times each second."""
        if self._enabled and time.monotonic() >= self._next:
            sys.stderr.write(f"\r{matches} ...")
            sys.stderr.flush()
            self._next = time.monotonic() + _COUNTER_SECONDS
            self._shown = True

    def clear(self) -> None:
        """Take it away, so that something else can be written."""
        if self._shown:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
            self._shown = False


class MatchWriter(Protocol):
    """Writes each match to standard output, holding a bounded number of them."""

    def write(self, match: Match) -> None:
        """Raises UnreadableDataset."""
        ...

    def end(self, *, found_all: bool) -> None:
        """There are no more; `found_all` says that nothing failed."""
        ...


class JSONWriter:
    """One JSON array in the DICOM JSON Model (PS3.18 F), a match on each line.

    Where the search fails before its first match nothing is written, so that the error can be the document.
    """

    def __init__(self) -> None:
        self.begun = False

    def write(self, match: Match) -> None:
        """See `MatchWriter`."""
        text = json.dumps(match.to_json(), separators=(",", ":"))
        sys.stdout.write((",\n" if self.begun else "[\n") + text)
        sys.stdout.flush()
        self.begun = True

    def end(self, *, found_all: bool) -> None:
        """See `MatchWriter`."""
        if self.begun:
            print("\n]", flush=True)
        elif found_all:
            print("[]", flush=True)


class LineWriter:
    """A line with the columns' names, then one for each match, with tabs between the values as they are."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._begun = False

    def write(self, match: Match) -> None:
        """See `MatchWriter`."""
        source = match.attributes()
        self._begin()
        print("\t".join(column.cell(source, plain_text) for column in self._columns), flush=True)

    def end(self, *, found_all: bool) -> None:
        """See `MatchWriter`."""
        if found_all:
            self._begin()

    def _begin(self) -> None:
        if not self._begun:
            print("\t".join(column.full_name for column in self._columns), flush=True)
            self._begun = True


class TableWriter:
    """A table as wide as the terminal at most; the first rows decide the widths, longer values are folded."""

    def __init__(self, columns: Sequence[Column], console: Console, counter: Counter) -> None:
        self._columns = columns
        self._counter = counter
        self._console = console
        self._rows: list[list[str]] = []
        self._widths: list[int] = []

    def write(self, match: Match) -> None:
        """See `MatchWriter`."""
        source = match.attributes()
        self._rows.append([column.cell(source, readable_text) for column in self._columns])
        if len(self._rows) == _BATCH_ROWS:
            self._print_rows()

    def end(self, *, found_all: bool) -> None:
        """See `MatchWriter`."""
        if self._rows:
            self._print_rows()

    def _print_rows(self) -> None:
        from rich.table import Table
        from rich.text import Text

        self._counter.clear()
        is_first = not self._widths
        self._widths = self._widths or self._make_widths()
        table = Table(box=None, show_header=is_first, pad_edge=False, padding=(0, _GAP_WIDTH, 0, 0))
        for column, width in zip(self._columns, self._widths, strict=True):
            table.add_column(column.title, width=width, overflow="fold")
        for row in self._rows:
            # Text: what a peer sent is no markup.
            table.add_row(*map(Text, row))
        self._console.print(table)
        self._rows.clear()

    def _make_widths(self) -> list[int]:
        """As wide as titles and values; where there is no room, titles by words, then the widest narrower."""
        from rich.cells import cell_len

        room = self._console.width - _GAP_WIDTH * len(self._columns)
        titles = [column.title for column in self._columns]
        widths = self._widths_with(titles)
        if sum(widths) > room:
            widths = self._widths_with([max(title.split(" "), key=cell_len) for title in titles])
        while sum(widths) > room and max(widths) > _MIN_WIDTH:
            widths[widths.index(max(widths))] -= 1
        return widths

    def _widths_with(self, heads: list[str]) -> list[int]:
        from rich.cells import cell_len

        columns = zip(heads, *self._rows, strict=True)
        return [min(_MAX_WIDTH, max(1, *map(cell_len, column))) for column in columns]


def choose_writer(columns: Sequence[Column], counter: Counter, *, as_json: bool) -> MatchWriter:
    """JSON where it is asked for, a table at a terminal, lines otherwise."""
    if as_json:
        return JSONWriter()
    if not sys.stdout.isatty():
        return LineWriter(columns)
    from rich.console import Console

    return TableWriter(columns, Console(highlight=False), counter)
