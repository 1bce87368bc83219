"""The page of `scp-server info`. Every text of the object goes into a rich Text, which reads no markup."""

from __future__ import annotations

from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from scp_server.cli.info_facts import Block, Description, Fact, Outline, Part, Table
from scp_server.observability.text import printable

_LABEL: Final = "cyan"
_HEADING: Final = "bold"
_STYLES: Final = {
    ("decision", "ALARM"): "bold red",
    ("decision", "CLEAR"): "bold green",
    ("flag", "HIGH_THREAT"): "bold red",
    ("flag", "THREAT"): "red",
    ("aborted", "yes"): "bold yellow",
}


def page(description: Description, columns: int) -> RenderableType:
    """The whole description, for a terminal of so many columns."""
    lines: list[RenderableType] = [Text(description.title, style="bold cyan")]
    for part in description.parts:
        shown = _part(part, columns)
        if shown is not None:
            lines += [Text(""), Text(part.name, style=_HEADING), shown]
    if description.problems:
        lines += [Text(""), Text("problems", style="bold red")]
        lines += [Text(f"  {printable(problem)}", style="red") for problem in description.problems]
    return Group(*lines)


def _part(part: Part, columns: int) -> RenderableType | None:
    match part:
        case Block():
            facts = [fact for fact in part.facts if fact.text]
            return _facts(facts) if facts else None
        case Outline():
            return Text("\n".join(f"  {'  ' * depth}{printable(line)}" for depth, line, _ in part.lines))
        case Table():
            return _table(part, columns) if part.rows else None


def _facts(facts: list[Fact]) -> RenderableType:
    grid = Grid.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for fact in facts:
        grid.add_row(Text(f"  {fact.name}", style=_LABEL), _value(fact))
    return grid


def _table(table: Table, columns: int) -> RenderableType:
    names = [
        fact.name for place, fact in enumerate(table.rows[0]) if any(row[place].text for row in table.rows)
    ]
    rows = [[fact for fact in row if fact.name in names] for row in table.rows]
    widths = [
        max(len(fact.name), *(len(row[place].text) for row in rows)) for place, fact in enumerate(rows[0])
    ]
    if sum(widths) + 2 * len(widths) > columns:
        return Group(*(_facts([fact for fact in row if fact.text]) for row in _apart(rows)))
    grid = Grid(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for place, name in enumerate(names):
        grid.add_column(Text(("  " if place == 0 else "") + name, style=_LABEL), no_wrap=True)
    for row in rows:
        cells = [_value(fact) for fact in row]
        cells[0] = Text("  ").append(cells[0])
        grid.add_row(*cells)
    return grid


def _apart(rows: list[list[Fact]]) -> list[list[Fact]]:
    """Rows that stand one below the other, an empty line between two."""
    between = [Fact("", None, " ")]
    apart: list[list[Fact]] = []
    for row in rows:
        apart += [between] * bool(apart) + [row]
    return apart


def _value(fact: Fact) -> Text:
    text = printable(fact.text)
    return Text(text, style=_STYLES.get((fact.name, text), ""))
