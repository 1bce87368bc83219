"""The last warnings and errors, for whoever asks how the server is."""

from __future__ import annotations

from collections import deque
from collections.abc import MutableMapping
from typing import Any, Final

RECENT_PROBLEMS: Final = 20
"""Most that are remembered; each is bounded as every log line is."""
_PROBLEM_LEVELS: Final = frozenset({"warning", "error", "critical"})

_recent: deque[dict[str, Any]] = deque(maxlen=RECENT_PROBLEMS)


def remember(_logger: object, _method_name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor behind `prepare`: notes what is a problem, without its traceback."""
    if event.get("level") in _PROBLEM_LEVELS:
        _recent.append({key: value for key, value in event.items() if key != "exception"})
    return event


def recent_problems() -> list[dict[str, Any]]:
    """The last lines of level warning and above that were logged, the oldest first."""
    return list(_recent)


def forget_problems() -> None:
    """Begin anew; for tests, which share a process."""
    _recent.clear()
