"""What makes a function a callback: `@callback(stage=...)`, which only notes what is to hold for it.

Nothing is registered by the decorator: the function stays what it is, and may be called as it is in a test.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Any, Final, TypeVar

from scp_server.errors import ConfigurationError
from scp_server.pipeline.filters import ObjectFilter
from scp_server.pipeline.stages import DURABLE_STAGES, INLINE_STAGES, Stage

_TAGS: Final = "__scp_server_callbacks__"
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_WITHOUT_ASSOCIATION: Final = frozenset({Stage.CONNECTED, Stage.DISCONNECTED, Stage.STUDY_SETTLED})
_OBJECT_STAGES: Final = frozenset({Stage.RECEIVED, Stage.STORED})

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)
_Member = TypeVar("_Member", bound=StrEnum)


class RunIn(StrEnum):
    """Where a callback runs, and what holds there when it misbehaves."""

    AUTO = "auto"
    """`LOOP` for an async function, `THREAD` for a plain one."""
    LOOP = "loop"
    """In the event loop: cancelled at its deadline. One that blocks makes everybody wait; it is named."""
    THREAD = "thread"
    """In a thread: abandoned at its deadline, for a thread cannot be ended. They are counted and bounded."""
    PROCESS = "process"
    """In a process of its own: killed at its deadline, with all that it started, and limited in memory."""


class OnFailure(StrEnum):
    """What a failure of an inline callback does to what it was asked about."""

    REFUSE = "refuse"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class DetectorTerms:
    """What holds for a callback that is a detector."""

    algorithm: tuple[str, ...]
    """Manufacturer, version, parameters."""
    attempts: int
    """To examine one image, before it is given up."""
    abort_report: bool
    """Whether that is reported, too."""


@dataclass(frozen=True, slots=True)
class Callback:
    """A function and when, for what and within which bounds it is called. None is the setting's value."""

    name: str
    stage: Stage
    function: Function
    filter: ObjectFilter
    order: int
    run_in: RunIn
    """Never `AUTO`."""
    on_failure: OnFailure
    timeout_seconds: float | None
    concurrency: int | None
    memory_bytes: int | None
    takes_delivery: bool
    """The function has a second parameter, for the `Delivery`."""
    source: str = "argument"
    """Who registered it: an argument, a setting, an entry point."""
    detector: DetectorTerms | None = None
    """Where it is one: it examines images, and what it returns is reported."""

    @property
    def import_name(self) -> str:
        """`module:name` of the function."""
        return f"{self.function.__module__}:{_called(self.function)}"


def callback(
    stage: Stage | str,
    *,
    name: str | None = None,
    sop_classes: Sequence[str] = (),
    modalities: Sequence[str] = (),
    calling_ae_titles: Sequence[str] = (),
    called_ae_titles: Sequence[str] = (),
    order: int = 0,
    timeout_seconds: float | None = None,
    concurrency: int | None = None,
    run_in: RunIn | str = RunIn.AUTO,
    memory_bytes: int | None = None,
    on_failure: OnFailure | str = OnFailure.REFUSE,
) -> Callable[[F], F]:
    """Have a function called at `stage`; returns it unchanged.

    `name` is what logs, metrics and commands call it: the function's own when not given. The filters are
    those of `ObjectFilter`. Callbacks of a stage are called in the order of `order`, then of their names.
    `timeout_seconds`, `concurrency` (calls at once) and `memory_bytes` (of its process) are the settings'
    `callbacks.*` when not given. `on_failure` says what an inline callback that raises, takes too long or
    returns something does: `refuse` what it was asked about, or `ignore` it.

    Raises ConfigurationError, naming function and parameter.
    """

    def tag(function: F) -> F:
        made = make_callback(
            function,
            stage=stage,
            name=name,
            filters={
                "sop_classes": sop_classes,
                "modalities": modalities,
                "calling_ae_titles": calling_ae_titles,
                "called_ae_titles": called_ae_titles,
            },
            order=order,
            timeout_seconds=timeout_seconds,
            concurrency=concurrency,
            run_in=run_in,
            memory_bytes=memory_bytes,
            on_failure=on_failure,
        )
        note(function, made)
        return function

    return tag


def note(function: Function, made: Callback) -> None:
    """Note on a function that it is this callback. Raises ConfigurationError for a method."""
    if inspect.ismethod(function):
        raise ConfigurationError(f"callback {_called(function)}: a method cannot be one; a function can")
    setattr(function, _TAGS, (*callbacks_of(function), made))


def callbacks_of(function: object) -> tuple[Callback, ...]:
    """What `callback` noted on a function: several where it was decorated several times."""
    found: tuple[Callback, ...] = getattr(function, _TAGS, ())
    return found


def is_async(function: Function) -> bool:
    """Whether a function is a coroutine function, also one behind a callable object or a partial."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


def make_callback(
    function: Function,
    *,
    stage: Stage | str,
    name: str | None,
    filters: Mapping[str, Sequence[str]],
    order: int = 0,
    timeout_seconds: float | None,
    concurrency: int | None,
    run_in: RunIn | str,
    memory_bytes: int | None,
    on_failure: OnFailure | str = OnFailure.REFUSE,
    detector: DetectorTerms | None = None,
) -> Callback:
    """The callback that a function is to be. Raises ConfigurationError, naming function and parameter."""
    if not callable(function) or isinstance(function, type):
        raise ConfigurationError(f"callback: {function!r} is no function")
    known_stage = _member(function, "stage", Stage, stage)
    where = _where(function, _member(function, "run_in", RunIn, run_in))
    texts = {parameter: _texts(function, parameter, values) for parameter, values in filters.items()}
    if detector is None:
        _check_filters(function, known_stage, texts)
    for parameter, value in (
        ("timeout_seconds", timeout_seconds),
        ("concurrency", concurrency),
        ("memory_bytes", memory_bytes),
    ):
        if value is not None and (isinstance(value, bool) or not value > 0):
            raise _wrong(function, parameter, "must be greater than 0")
    if memory_bytes is not None and where is not RunIn.PROCESS:
        raise _wrong(function, "memory_bytes", 'is for run_in="process" alone')
    failing = _member(function, "on_failure", OnFailure, on_failure)
    if failing is OnFailure.IGNORE and known_stage not in INLINE_STAGES:
        raise _wrong(function, "on_failure", f"is for the stages {_listed(INLINE_STAGES)} alone")
    return Callback(
        name=_name(function, name),
        stage=known_stage,
        function=function,
        filter=_filter(function, texts),
        order=order,
        run_in=where,
        on_failure=failing,
        timeout_seconds=timeout_seconds,
        concurrency=concurrency,
        memory_bytes=memory_bytes,
        takes_delivery=_takes_delivery(function, known_stage),
        detector=detector,
    )


def _where(function: Function, run_in: RunIn) -> RunIn:
    is_coroutine = is_async(function)
    if run_in is RunIn.AUTO:
        return RunIn.LOOP if is_coroutine else RunIn.THREAD
    if is_coroutine and run_in is not RunIn.LOOP:
        raise _wrong(function, "run_in", f"an async function runs in the loop, not in a {run_in}")
    if not is_coroutine and run_in is RunIn.LOOP:
        raise _wrong(function, "run_in", "a plain function runs in a thread or a process, not in the loop")
    if run_in is RunIn.PROCESS:
        _check_importable(function)
    return run_in


def _check_importable(function: Function) -> None:
    """Raises ConfigurationError for a function that another process could not find by its name."""
    module, qualname = function.__module__, function.__qualname__
    if module == "__main__" or "<" in qualname:
        raise _wrong(
            function, "run_in", "a process needs a function that can be imported, at the top of a module"
        )


def find_function(import_name: str) -> Function:
    """The function of `module:name`. Raises ImportError or AttributeError."""
    module_name, _, qualname = import_name.partition(":")
    found: Any = sys.modules.get(module_name) or import_module(module_name)
    for part in qualname.split("."):
        found = getattr(found, part)
    function: Function = found
    return function


def _check_filters(function: Function, stage: Stage, filters: dict[str, tuple[str, ...]]) -> None:
    for parameter, values in filters.items():
        if not values:
            continue
        if parameter in ("sop_classes", "modalities") and stage not in _OBJECT_STAGES:
            raise _wrong(function, parameter, f"is for the stages {_listed(_OBJECT_STAGES)} alone")
        if stage in _WITHOUT_ASSOCIATION:
            raise _wrong(function, parameter, f"{stage} knows of no association")


def _filter(function: Function, filters: dict[str, tuple[str, ...]]) -> ObjectFilter:
    try:
        return ObjectFilter(**filters)
    except ConfigurationError as error:
        raise ConfigurationError(f"callback {_called(function)}: {error}") from None


def _texts(function: Function, parameter: str, values: Sequence[str]) -> tuple[str, ...]:
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise _wrong(function, parameter, "must be a list of texts")
    return tuple(values)


def _member(function: Function, parameter: str, kind: type[_Member], value: str) -> _Member:
    try:
        return kind(value)
    except ValueError:
        raise _wrong(function, parameter, f"{value!r} is none of {_listed(kind)}") from None


def _name(function: Function, name: str | None) -> str:
    chosen = name if name is not None else getattr(function, "__name__", "")
    if _NAME.fullmatch(chosen) is None:
        raise _wrong(function, "name", f"{chosen!r} must be 1 to 64 letters, digits, _ . or -")
    return chosen


def _takes_delivery(function: Function, stage: Stage) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [each for each in parameters if each.kind in by_position]
    needed = [each for each in positional if each.default is each.empty]
    takes_any = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    wants_two = len(needed) == 2 and stage in DURABLE_STAGES
    if len(needed) > 1 and not wants_two:
        what = "a subject, and a delivery where it likes" if stage in DURABLE_STAGES else "one argument"
        raise ConfigurationError(f"callback {_called(function)}: at stage {stage} it is given {what}")
    if not positional and not takes_any:
        raise ConfigurationError(f"callback {_called(function)}: it takes no argument, and is given one")
    return wants_two


def _listed(members: object) -> str:
    values: Iterator[str] = (str(member) for member in members)  # type: ignore[attr-defined]
    return ", ".join(sorted(values))


def _called(function: object) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _wrong(function: object, parameter: str, problem: str) -> ConfigurationError:
    return ConfigurationError(f"callback {_called(function)}: {parameter}: {problem}")
