"""One log event as one line: what is hidden, what is escaped, and the two formats."""

from __future__ import annotations

import json
import math
import re
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from scp_server.observability.text import printable, safe_text

MAX_VALUE_TEXT = 1_024
"""Longest string of any log value, in characters; peers' own texts are cut to 128 before (`peer_text`)."""
MAX_EXCEPTION_TEXT = 8_192
"""Longest traceback in a log line, in characters: its end is kept, which names the exception."""
MAX_NESTING = 4
"""Deepest list or mapping that is written as such."""
MAX_ITEMS = 64
"""Most items of one list or mapping that are written."""

SECRET_KEYS = frozenset(
    {
        "authorization",
        "credential",
        "credentials",
        "passcode",
        "password",
        "private_key",
        "secondary_field",
        "secret",
        "token",
    }
)
"""Never written, at any level."""
IDENTITY_KEYS = frozenset(
    {
        "accession_number",
        "ooi_id",
        "ooi_name",
        "other_patient_ids",
        "passenger_id",
        "passenger_name",
        "patient",
        "patient_address",
        "patient_age",
        "patient_birth_date",
        "patient_id",
        "patient_name",
        "patient_sex",
        "referring_physician_name",
    }
)
"""Who was examined: written at DEBUG only."""

EventDict = MutableMapping[str, Any]
Renderer = Callable[[object, str, EventDict], str]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

_LEVELS = {"exception": "error", "fatal": "critical", "msg": "info", "warn": "warning"}
_HIDDEN_AT_DEBUG = SECRET_KEYS
_HIDDEN = SECRET_KEYS | IDENTITY_KEYS


def prepare(_logger: object, method_name: str, event: EventDict) -> EventDict:
    """A structlog processor: time, level and event first, hidden keys gone, every value safe for one line."""
    level = _LEVELS.get(method_name, method_name)
    hidden = _HIDDEN_AT_DEBUG if level == "debug" else _HIDDEN
    exception = event.pop("exc_info", None)
    prepared: EventDict = {
        "timestamp": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "level": level,
        "event": safe_value(event.pop("event", ""), hidden),
    }
    for key, value in event.items():
        if key not in hidden:
            name = key if key.isidentifier() and key.isascii() else safe_text(str(key), MAX_VALUE_TEXT)
            prepared[name] = value if _is_safe(value) else safe_value(value, hidden)
    if exception:
        prepared["exception"] = _exception_text(exception)
    return prepared


def _is_safe(value: object) -> bool:
    """Whether `safe_value` would leave this as it is: so nearly all values are, of lines that are many."""
    if type(value) is str:
        return len(value) <= MAX_VALUE_TEXT and value.isprintable()
    return value is None or type(value) is int or type(value) is bool


def safe_value(value: object, hidden: frozenset[str] = _HIDDEN, depth: int = 0) -> Any:
    """A value that JSON can hold and that cannot begin a line of its own.

    Strings are escaped and cut, bytes read as ASCII, containers bounded in depth and length, `hidden` keys
    of mappings left out, and everything else becomes its text.
    """
    if isinstance(value, str):
        return safe_text(str(value), MAX_VALUE_TEXT)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray):
        return safe_text(
            bytes(value[: MAX_VALUE_TEXT + 1]).decode("ascii", "backslashreplace"), MAX_VALUE_TEXT
        )
    if depth < MAX_NESTING:
        if isinstance(value, Mapping):
            items = [(str(key), item) for key, item in list(value.items())[:MAX_ITEMS]]
            return {
                safe_text(key, MAX_VALUE_TEXT): safe_value(item, hidden, depth + 1)
                for key, item in items
                if key not in hidden
            }
        if isinstance(value, list | tuple | set | frozenset):
            return [safe_value(item, hidden, depth + 1) for item in list(value)[:MAX_ITEMS]]
    elif isinstance(value, Mapping | list | tuple | set | frozenset):
        return MARK_TOO_DEEP
    return safe_text(_text_of(value), MAX_VALUE_TEXT)


MARK_TOO_DEEP = "(nested too deep)"


def _text_of(value: object) -> str:
    try:
        return str(value)
    except Exception as error:
        return f"({type(value).__name__}, whose text failed: {type(error).__name__})"


def _exception_text(exc_info: object) -> str:
    """The traceback, one safe line below the other; the end is kept where it is too long."""
    if isinstance(exc_info, BaseException):
        exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
    elif not isinstance(exc_info, tuple):
        import sys

        exc_info = sys.exc_info()
    if exc_info[1] is None:
        return ""
    try:
        lines = "".join(traceback.format_exception(exc_info[1], limit=-32)).splitlines()
    except Exception:
        lines = [type(exc_info[1]).__name__]
    text = "\n".join(printable(line[:MAX_VALUE_TEXT]) for line in lines[-128:])
    return text if len(text) <= MAX_EXCEPTION_TEXT else "..." + text[3 - MAX_EXCEPTION_TEXT :]


_encode = json.JSONEncoder(default=_text_of).encode


def render_json(_logger: object, _method_name: str, event: EventDict) -> str:
    """One JSON object in ASCII, the last processor for machines."""
    return _encode(event)


_PLAIN = re.compile(r'[^\s"=]+')
_COLOURS = {
    "debug": "\033[2m",
    "info": "\033[32m",
    "warning": "\033[33m",
    "error": "\033[31m",
    "critical": "\033[31m",
}
_RESET = "\033[0m"


def console_renderer(*, colours: bool) -> Renderer:
    """The last processor for people: time, level, event, then `key=value`, with a traceback below it.

    Values with blanks, quotes or `=` are quoted, so that none can pretend to be another key; the lines of
    a traceback begin with a bar, so that none can pretend to be a line of the log.
    """

    def render(_logger: object, _method_name: str, event: EventDict) -> str:
        when, level, name = event.pop("timestamp"), event.pop("level"), event.pop("event")
        exception = event.pop("exception", "")
        shown_level = f"{level:<8}"
        if colours:
            shown_level = f"{_COLOURS.get(level, '')}{shown_level}{_RESET}"
        parts = [when[11:23], shown_level, _console_value(name)]
        parts += [f"{key}={_console_value(value)}" for key, value in event.items()]
        line = " ".join(parts)
        if exception:
            line += "".join(f"\n    | {below}" for below in exception.split("\n"))
        return line

    return render


_SHORTER = (512, 128, 32)
"""Characters left of each text in a line that is too long; of a container a sixteenth as many items."""


def fitting(render: Renderer, most_bytes: int) -> Renderer:
    """A renderer whose lines have at most so many bytes, their end included: a pipe takes these whole,
    whoever else writes to it (PIPE_BUF, pipe(7)). Of a line that would be longer, texts and lists are cut."""

    def render_to_fit(logger: object, method_name: str, event: EventDict) -> str:
        for most in _SHORTER:
            line = render(logger, method_name, dict(event))
            if len(line.encode("utf-8", "backslashreplace")) < most_bytes:
                return line
            event = {key: _shorter(value, most) for key, value in event.items()}
        line = render(logger, method_name, dict(event))
        if len(line.encode("utf-8", "backslashreplace")) < most_bytes:
            return line
        first = {key: event[key] for key in ("timestamp", "level", "event") if key in event}
        return render(logger, method_name, {**first, "cut": True})

    return render_to_fit


def _shorter(value: Any, most: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= most else value[: most - 3] + "..."
    if isinstance(value, Mapping):
        return {key: _shorter(item, most // 2) for key, item in list(value.items())[: most // 16]}
    if isinstance(value, list):
        return [_shorter(item, most // 2) for item in value[: most // 16]]
    return value


def _console_value(value: object) -> str:
    if isinstance(value, str):
        if _PLAIN.fullmatch(value):
            return value
        quoted = value.replace('"', '\\"')
        return f'"{quoted}"'
    return json.dumps(value, ensure_ascii=False, default=_text_of)
