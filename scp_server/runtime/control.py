"""The control socket: an administrator's commands to the running server."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scp_server.errors import ConfigurationError, ObjectNotFound, SCPServerError
from scp_server.observability.logs import get_logger, peer_text
from scp_server.runtime.control_protocol import (
    SOCKET_NAME,
    TELL_SECONDS,
    FailureCode,
    decode_line,
    encode_line,
    socket_address,
)
from scp_server.runtime.control_telling import NobodyListens, Telling

log = get_logger(__name__)

SOCKET_MODE = 0o600
_BACKLOG = 16

Command = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""Performs one command with its arguments; the result is what JSON can hold. Raises WrongArguments, or any
SCPServerError, whose text the caller is told."""


LongCommand = Callable[[Mapping[str, Any], Telling], Coroutine[Any, Any, Any]]
"""The same for one that tells how far it is. When whoever asked goes away it is cancelled."""


class WrongArguments(ValueError):
    """The arguments of a command are missing, unknown or of the wrong type; the text says which."""


def only(arguments: Mapping[str, Any], *names: str) -> None:
    """Raises WrongArguments for an argument that is none of `names`."""
    for name in arguments:
        if name not in names:
            raise WrongArguments(f"unknown argument {name}")


def text(arguments: Mapping[str, Any], name: str) -> str:
    """An argument that is text; empty where it is not given. Raises WrongArguments."""
    value = arguments.get(name, "")
    if not isinstance(value, str):
        raise WrongArguments(f"{name} is no text")
    return value


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """Bounds of the control socket."""

    max_connections: int = 16
    max_request_bytes: int = 65_536
    request_seconds: float = 30.0
    command_seconds: float = 600.0


class ControlServer:
    """Serves `control.sock` of a data folder that this process has locked."""

    def __init__(
        self,
        data_dir: Path,
        config: ControlConfig,
        commands: Mapping[str, Command],
        long_commands: Mapping[str, LongCommand] | None = None,
    ) -> None:
        self._data_dir = data_dir
        self._path = data_dir / SOCKET_NAME
        self._config = config
        self._commands = commands
        self._long_commands = long_commands or {}
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; a socket that an earlier process left is replaced. Raises ConfigurationError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._bind(listener)
            self._server = await asyncio.start_unix_server(
                self._accepted, sock=listener, backlog=_BACKLOG, limit=self._config.max_request_bytes
            )
        except OSError as error:
            listener.close()
            raise ConfigurationError(f"data_dir: cannot make {self._path}: {error.strerror}") from error
        except BaseException:
            listener.close()
            raise

    def _bind(self, listener: socket.socket) -> None:
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(self._path).st_mode):
                raise ConfigurationError(f"data_dir: {self._path} is there and is no socket")
            os.unlink(self._path)
        with socket_address(self._data_dir) as address:
            listener.bind(address)
        # Before it listens nobody can connect, so nobody does under another mode.
        os.chmod(self._path, SOCKET_MODE)
        listener.setblocking(False)

    async def stop(self) -> None:
        """Listen no more, give up the commands that run, remove the socket. A second time does nothing."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for task in tuple(self._connections):
            task.cancel("the server stops")
        if self._connections:
            await asyncio.wait(tuple(self._connections))
        with suppress(OSError):
            os.unlink(self._path)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= self._config.max_connections:
            log.warning("control.refused", connections=len(self._connections))
            writer.close()
            return
        task = asyncio.create_task(self._serve(reader, writer), name="control")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        # Not in the task: one that is cancelled before its first step runs no `finally`.
        task.add_done_callback(lambda _: writer.close())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await self._read(reader):
                answer, go_on = await self._answer(line, writer)
                writer.write(encode_line(answer))
                async with asyncio.timeout(self._config.request_seconds):
                    await writer.drain()
                if not go_on:
                    break
        except (TimeoutError, OSError, NobodyListens):
            pass

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        """The next line; empty at the end, and a lone line end for one that is too long."""
        async with asyncio.timeout(self._config.request_seconds):
            try:
                return await reader.readline()
            except ValueError:
                return b"\n"

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> tuple[dict[str, Any], bool]:
        """What is said to a request, and whether another one may follow."""
        try:
            request = decode_line(line)
            name, arguments = request.get("command"), request.get("arguments", {})
            if not isinstance(name, str) or name not in {*self._commands, *self._long_commands}:
                raise ValueError("no such command")
            if not isinstance(arguments, dict):
                raise ValueError("arguments are no JSON object")
        except ValueError as error:
            # Whoever does not speak this language is not listened to any further.
            return _failure(FailureCode.REQUEST, f"not a request: {error}"), False
        try:
            if name in self._long_commands:
                return {"ok": True, "result": await self._perform_long(name, arguments, writer)}, True
            async with asyncio.timeout(self._config.command_seconds):
                return {"ok": True, "result": await self._commands[name](arguments)}, True
        except NobodyListens:
            log.info("control.abandoned", command=name)
            raise
        except WrongArguments as error:
            return _failure(FailureCode.REQUEST, str(error)), True
        except ObjectNotFound as error:
            return _failure(FailureCode.NOT_FOUND, str(error)), True
        except SCPServerError as error:
            return _failure(FailureCode.FAILED, str(error)), True
        except TimeoutError:
            log.error("control.timed_out", command=name)
            return _failure(FailureCode.TIMEOUT, "the command took too long"), True
        except Exception:
            log.exception("control.failed", command=name)
            return _failure(FailureCode.INTERNAL, "internal error"), True

    async def _perform_long(
        self, name: str, arguments: Mapping[str, Any], writer: asyncio.StreamWriter
    ) -> Any:
        """Perform a command while telling how far it is.

        Raises TimeoutError once it has not moved for `command_seconds`, NobodyListens when that is so.
        """
        telling = Telling(writer, self._config.request_seconds)
        task = asyncio.create_task(self._long_commands[name](arguments, telling), name=f"control.{name}")
        try:
            while not (await asyncio.wait((task,), timeout=TELL_SECONDS))[0]:
                await telling.send()
                if telling.still_seconds > self._config.command_seconds:
                    raise TimeoutError
            result = task.result()
            await telling.send()
            return result
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _failure(code: FailureCode, text: str) -> dict[str, Any]:
    return {"ok": False, "code": code.value, "error": peer_text(text)}
