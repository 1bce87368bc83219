"""Logs: one line per event, for people at a terminal and as JSON otherwise.

Event names are noun.verb (`association.accepted`). Modules say `log = get_logger(__name__)`; nothing is
written below WARNING until `configure_logging` was called, and structlog is imported only when something is.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, TextIO
from weakref import WeakSet

from scp_server.observability.text import peer_text, printable

__all__ = [
    "LEVELS",
    "Format",
    "Level",
    "Logger",
    "captured_logs",
    "configure_logging",
    "get_logger",
    "peer_text",
    "printable",
]

Format = Literal["json", "console"]
Level = Literal["debug", "info", "warning", "error", "critical"]
LEVELS: Final[dict[Level, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
LIBRARY_EVENT = "library.reported"
"""Event name of what libraries say through `logging`; at WARNING and above only, since a database library's
statements at INFO carry their parameters, which are identities."""

Write = Callable[..., Any]
_METHODS_ALWAYS_WRITTEN = ("warning", "error", "critical", "exception")


class Logger:
    """What modules log with. Its methods are structlog's own once logging is configured, so that a level
    that is switched off costs an attribute and an empty call."""

    __slots__ = ("__weakref__", "_values", "critical", "debug", "error", "exception", "info", "warning")

    debug: Write
    info: Write
    warning: Write
    error: Write
    critical: Write
    exception: Write

    def __init__(self, values: dict[str, object]) -> None:
        self._values = values
        _current.loggers.add(self)
        self._connect()

    def bind(self, **values: object) -> Logger:
        """A logger that adds `values` to each of its lines."""
        return Logger({**self._values, **values})

    def _connect(self) -> None:
        """Take over the methods of the configured logger, or those that configure one when it is needed."""
        if _current.configured is None:
            self.debug = self.info = _ignore
            for method in _METHODS_ALWAYS_WRITTEN:
                setattr(self, method, self._configure_and(method))
            return
        bound = _current.configured.bind(**self._values)
        for method in ("debug", "info", *_METHODS_ALWAYS_WRITTEN):
            setattr(self, method, getattr(bound, method))

    def _configure_and(self, method: str) -> Write:
        def write(event: str, **values: object) -> None:
            configure_logging(None, "warning")
            getattr(self, method)(event, **values)

        return write


class _Current:
    """The one configured structlog logger of the process, and everybody who writes through it."""

    def __init__(self) -> None:
        self.configured: Any = None
        self.loggers: WeakSet[Logger] = WeakSet()

    def replace(self, configured: Any) -> None:
        self.configured = configured
        for logger in list(self.loggers):
            logger._connect()


_current = _Current()


def _ignore(_event: str, **_values: object) -> None:
    """What is below the level before anything is configured."""


def get_logger(name: str = "") -> Logger:
    """The logger of a module. `name` is not written: event names say where they come from."""
    del name
    return Logger({})


def configure_logging(
    format: Format | None, level: Level, stream: TextIO | None = None, *, worker: int | None = None
) -> None:
    """Send all logs, those of libraries too, to `stream` (standard error when None). May be called again.

    `format` None means console at a terminal and JSON otherwise. A broken or full stream loses lines and
    nothing else. `worker` is the number of this process where several write there: it is in each line, and
    no line is longer than what is written whole.
    """
    from scp_server.observability.recent import remember
    from scp_server.observability.render import console_renderer, fitting, prepare, render_json
    from scp_server.observability.sink import PIPE_BUF, LineSink

    stream = sys.stderr if stream is None else stream
    at_terminal = _is_terminal(stream)
    if format is None:
        format = "console" if at_terminal else "json"
    renderer = render_json if format == "json" else console_renderer(colours=at_terminal)

    if worker is not None:
        renderer = fitting(renderer, PIPE_BUF)

    def dropped_line(count: int) -> str:
        return renderer(None, "warning", prepare(None, "warning", {"event": "log.dropped", "lines": count}))

    values: dict[str, object] = {} if worker is None else {"worker": worker}
    _install([prepare, remember, renderer], LineSink(stream, dropped_line), level, values)


def _install(
    processors: list[Any], sink: object, level: Level, values: dict[str, object] | None = None
) -> None:
    import structlog

    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_names: sink,
        cache_logger_on_first_use=True,
    )
    _current.replace(structlog.get_logger().bind(**(values or {})))
    _route_libraries()


class _LibraryHandler(logging.Handler):
    """Brings the records of `logging` (uvicorn, SQLAlchemy, asyncio, warnings) into the same pipeline."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:
            message = f"(a message that could not be formatted: {record.msg!r})"
        logger = _current.configured
        if logger is None:
            return
        write = logger.error if record.levelno >= logging.ERROR else logger.warning
        values: dict[str, object] = {"exc_info": record.exc_info} if record.exc_info else {}
        write(LIBRARY_EVENT, logger=record.name, message=message, **values)


_library_handler = _LibraryHandler(logging.WARNING)


def _route_libraries() -> None:
    root = logging.getLogger()
    if _library_handler not in root.handlers:
        root.addHandler(_library_handler)
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)


@contextlib.contextmanager
def captured_logs(level: Level = "debug") -> Iterator[list[dict[str, Any]]]:
    """Collect what is logged inside the block as dictionaries instead of writing it, for tests."""
    import structlog

    from scp_server.observability.render import prepare

    before, before_logger = structlog.get_config(), _current.configured
    events: list[dict[str, Any]] = []

    def collect(_logger: object, _method_name: str, event: Any) -> Any:
        events.append(dict(event))
        raise structlog.DropEvent

    root = logging.getLogger()
    root_level, had_handler = root.level, _library_handler in root.handlers
    _install([prepare, collect], object(), level)
    try:
        yield events
    finally:
        structlog.configure(**before)
        _current.replace(before_logger)
        root.setLevel(root_level)
        if not had_handler:
            root.removeHandler(_library_handler)
            logging.captureWarnings(False)


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (OSError, ValueError, AttributeError):
        return False
