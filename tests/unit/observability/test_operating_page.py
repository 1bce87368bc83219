"""`docs/operating.md` names every metric and every log event there is, and nothing else."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from scp_server.observability.measures import Levels, Measures
from scp_server.observability.metrics import METRICS, Metrics

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "operating.md"
METHODS = frozenset({"debug", "info", "warning", "error", "critical", "exception"})
ALWAYS = frozenset({"timestamp", "level", "event", "exception", "exc_info"})
"""Fields that any line has or may have: the page tells of them above the table."""


def _rows(first_column: re.Pattern[str]) -> Iterator[tuple[str, list[str]]]:
    """Name and further cells of each row of the page whose first cell is such a name."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and (name := first_column.fullmatch(cells[0])):
            yield name[1], cells[1:]


# -- metrics


def _served() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Kind and labels of every metric in a server's registry, by the name that it is queried by."""
    labels = {declaration.name: declaration.labels for declaration in METRICS}
    served = {}
    for family in Metrics(Measures(), Levels, "9.9").registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        served[name] = family.type, labels.get(name, ())
    return served


def test_every_metric_is_on_the_page_with_its_kind_and_labels_and_no_other() -> None:
    written = {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels)))
        for name, (kind, labels, *_) in _rows(re.compile(r"`(scp_\w+)`"))
    }
    assert written == _served()


def test_every_metric_has_its_meaning_and_what_to_do_about_it() -> None:
    for name, (_, _, meaning, advice) in _rows(re.compile(r"`(scp_\w+)`")):
        assert len(meaning) > 10, name
        assert len(advice) > 10, name


def test_no_metric_is_on_the_page_twice() -> None:
    names = [name for name, _ in _rows(re.compile(r"`(scp_\w+)`"))]
    assert len(names) == len(set(names))


# -- log events


def _logged() -> dict[str, set[str]]:
    """The fields of every event that the code logs, as far as the call itself names them."""
    events: dict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "scp_server").rglob("*.py")):
        if "testing" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _logs(node.func) and node.args:
                event = node.args[0]
                assert isinstance(event, ast.Constant), f"{path}:{node.lineno} logs an event without a name"
                assert isinstance(event.value, str)
                events[event.value] |= {keyword.arg for keyword in node.keywords if keyword.arg}
    return events


def _logs(function: ast.expr) -> bool:
    """Whether a call of this is `log.info(...)` or the like, or of the `emit` that was chosen from those."""
    if isinstance(function, ast.Name):
        return function.id == "emit"
    return (
        isinstance(function, ast.Attribute)
        and function.attr in METHODS
        and isinstance(function.value, ast.Name)
        and function.value.id in {"log", "logger"}
    )


OUTSIDE: dict[str, set[str]] = {
    "library.reported": {"logger", "message"},
    "log.dropped": {"lines"},
}
"""What `observability/logs.py` itself writes, through no logger of a module."""


def test_every_event_is_on_the_page_and_no_other() -> None:
    written = {name for name, _ in _rows(re.compile(r"`([a-z_]+\.[a-z_]+)`")) if name.count(".") == 1}
    assert written == set(_logged()) | set(OUTSIDE)


def test_every_field_of_an_event_is_in_its_row() -> None:
    logged = _logged() | OUTSIDE
    rows = dict(_rows(re.compile(r"`([a-z_]+\.[a-z_]+)`")))
    missing = {
        event: sorted(fields - ALWAYS - set(re.findall(r"`(\w+)`", rows.get(event, ["", ""])[1])))
        for event, fields in logged.items()
    }
    assert {event: fields for event, fields in missing.items() if fields} == {}


def test_the_code_names_events_as_noun_and_verb() -> None:
    assert _logged()
    for event in _logged():
        assert re.fullmatch(r"[a-z_]+\.[a-z_]+", event), event
