"""Commands that a running server answers, and this process itself where none runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self


class Asked(Protocol):
    """A server, or what stands in for one."""

    def ask(self, command: str, **arguments: Any) -> Any: ...


class OfflineCommands:
    """Answers as the server would, by the functions that it has for its commands. Closed as a context."""

    def __init__(self, commands: Mapping[str, Callable[[dict[str, Any]], Awaitable[Any]]]) -> None:
        self._commands = commands
        self._runner = asyncio.Runner()

    def ask(self, command: str, **arguments: Any) -> Any:
        """See `ControlClient.ask`."""
        return self._runner.run(self._perform(command, arguments))

    async def _perform(self, command: str, arguments: dict[str, Any]) -> Any:
        return await self._commands[command](arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.close()
