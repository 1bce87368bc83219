"""Which callbacks a server has: from arguments, from the `plugins` setting, from installed packages."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import Final

from scp_server.errors import ConfigurationError
from scp_server.pipeline.callback import Callback, callbacks_of
from scp_server.pipeline.stages import Stage

ENTRY_POINT_GROUP: Final = "scp_server.callbacks"


@dataclass(frozen=True, slots=True)
class CallbackSources:
    """Where to look for callbacks.

    `arguments` are decorated functions, or modules that hold such. `plugins` are `module` or `module:name`.
    """

    arguments: Sequence[object] = ()
    plugins: Sequence[str] = ()
    entry_points: bool = True
    """Whether packages that are installed with entry points of ENTRY_POINT_GROUP take part."""


@dataclass(frozen=True, slots=True)
class CallbackRegistry:
    """All callbacks of a server, each name once, in the order in which those of one stage are called."""

    callbacks: tuple[Callback, ...] = ()
    _by_stage: dict[Stage, tuple[Callback, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        seen: dict[str, Callback] = {}
        for each in self.callbacks:
            first = seen.setdefault(each.name, each)
            if first is not each:
                raise ConfigurationError(
                    f"callback {each.name}: {each.import_name} ({each.source}) has the name of "
                    f"{first.import_name} ({first.source}); give one of them another with name="
                )
        ordered = tuple(sorted(self.callbacks, key=lambda each: (each.order, each.name)))
        object.__setattr__(self, "callbacks", ordered)
        by_stage = {stage: tuple(each for each in ordered if each.stage is stage) for stage in Stage}
        object.__setattr__(self, "_by_stage", by_stage)

    def at(self, stage: Stage) -> tuple[Callback, ...]:
        """Those of a stage, in their order."""
        return self._by_stage[stage]


def load_callbacks(sources: CallbackSources) -> CallbackRegistry:
    """Find all callbacks. Raises ConfigurationError, naming what cannot be imported or is no callback."""
    found: list[Callback] = []
    for given in sources.arguments:
        found += _found_in(given, "argument")
    for plugin in sources.plugins:
        found += _found_in(_imported(plugin), f"plugins: {plugin}")
    if sources.entry_points:
        for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
            source = f"entry point {point.name}"
            try:
                loaded = point.load()
            except Exception as error:
                raise _cannot_load(source, point.value, error) from error
            found += _found_in(loaded, source)
    # A package may be installed and named in the settings as well: one function is one callback.
    once = {(each.name, each.stage, each.import_name): each for each in reversed(found)}
    return CallbackRegistry(tuple(reversed(once.values())))


def _imported(plugin: str) -> object:
    module_name, _, name = plugin.partition(":")
    source = f"plugins: {plugin}"
    try:
        module = import_module(module_name)
    except Exception as error:
        raise _cannot_load(source, module_name, error) from error
    if not name:
        return module
    try:
        return getattr(module, name)
    except AttributeError:
        raise ConfigurationError(f"{source}: {module_name} has no {name}") from None


def _found_in(given: object, source: str) -> list[Callback]:
    """The callbacks of a function, or of all functions that a module or a list holds."""
    if inspect.ismethod(given):
        raise ConfigurationError(f"{source}: {_shown(given)} is a method; a callback is a function")
    found = [replace(each, source=source) for one in _candidates(given) for each in callbacks_of(one)]
    if not found:
        raise ConfigurationError(f"{source}: {_shown(given)} is no callback; decorate it with @callback")
    return found


def _candidates(given: object) -> Iterator[object]:
    if isinstance(given, ModuleType):
        # By what they are, not by their names: one that is bound to two names is one callback.
        unique = {id(value): value for value in vars(given).values() if callable(value)}
        yield from unique.values()
    elif isinstance(given, Iterable) and not callable(given):
        for each in given:
            yield from _candidates(each)
    else:
        yield given


def _shown(given: object) -> str:
    return str(getattr(given, "__qualname__", None) or getattr(given, "__name__", None) or repr(given))


def _cannot_load(source: str, what: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"{source}: {what} cannot be loaded: {type(error).__name__}: {error}")
