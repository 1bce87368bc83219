"""The client's side of the control socket (`runtime/control_protocol.py`)."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from scp_server.errors import ConfigurationError, SCPServerError
from scp_server.observability.text import printable
from scp_server.runtime.control_protocol import (
    MAX_ANSWER_BYTES,
    MAX_SILENCE_SECONDS,
    FailureCode,
    decode_line,
    encode_line,
    socket_address,
)

if TYPE_CHECKING:
    from scp_server.runtime.maintenance.progress import Progress

ANSWER_SECONDS = 660.0
"""Longest wait for an answer, above what the server allows a command by default: it gets to say so."""


class CommandFailed(SCPServerError):
    """The server answered that a command was not done; `code` says of which kind that is."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class ControlClient:
    """A connection to the server that runs on a data folder. A context manager."""

    def __init__(self, data_dir: Path, timeout_seconds: float = ANSWER_SECONDS) -> None:
        """Connect. Raises ConfigurationError when no server runs there, or it may not be asked."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_seconds)
        try:
            with socket_address(data_dir) as address:
                self._socket.connect(address)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            self._socket.close()
            raise NoServerRuns(f"data_dir: no server runs on {data_dir}") from error
        except OSError as error:
            self._socket.close()
            raise ConfigurationError(
                f"data_dir: the server on {data_dir} cannot be asked: {error.strerror or error}"
            ) from error
        except BaseException:
            self._socket.close()
            raise
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._socket.close()

    def ask(self, command: str, **arguments: Any) -> Any:
        """Send a command, return its result. Raises CommandFailed, also when no answer comes."""
        self._send(command, arguments)
        return self._result(self._read())

    def follow(
        self,
        command: str,
        arguments: dict[str, Any],
        progress: Progress,
        take: Callable[[dict[str, Any]], None] = lambda _item: None,
    ) -> Any:
        """Send a long command and return its result; meanwhile show how far it is, and take what it finds.

        Raises CommandFailed, also after MAX_SILENCE_SECONDS without a word.
        """
        self._socket.settimeout(MAX_SILENCE_SECONDS)
        self._send(command, arguments)
        shown = _Shown(progress)
        while "ok" not in (line := self._read()):
            for item in line.get("items", ()):
                take(item)
            if "progress" in line:
                shown.show(**line["progress"])
        return self._result(line)

    def _send(self, command: str, arguments: dict[str, Any]) -> None:
        try:
            self._socket.sendall(encode_line({"command": command, "arguments": arguments}))
        except TimeoutError as error:
            raise CommandFailed(FailureCode.TIMEOUT, "the server does not answer") from error
        except OSError as error:
            raise CommandFailed(FailureCode.FAILED, "the server has gone away") from error

    def _read(self) -> dict[str, Any]:
        try:
            line = self._lines.readline(MAX_ANSWER_BYTES)
        except TimeoutError as error:
            raise CommandFailed(FailureCode.TIMEOUT, "the server does not answer") from error
        except OSError as error:
            raise CommandFailed(FailureCode.FAILED, "the server has gone away") from error
        if not line.endswith(b"\n"):
            raise CommandFailed(FailureCode.FAILED, "the server has gone away")
        try:
            return decode_line(line)
        except ValueError as error:
            raise CommandFailed(FailureCode.FAILED, f"the server's answer makes no sense: {error}") from error

    @staticmethod
    def _result(answer: dict[str, Any]) -> Any:
        if answer.get("ok") is not True:
            code, text = str(answer.get("code")), str(answer.get("error"))
            raise CommandFailed(code, printable(text))
        return answer.get("result")


@contextmanager
def running_server(data_dir: Path) -> Iterator[ControlClient | None]:
    """The server that runs on a data folder; None where none does. Raises ConfigurationError."""
    try:
        client = ControlClient(data_dir)
    except NoServerRuns:
        yield None
        return
    with client:
        yield client


class _Shown:
    """What a server said last of how far it is, and what that changes."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stage: tuple[str, int | None] | None = None
        self._done = 0

    def show(self, stage: str, done: int, total: int | None) -> None:
        if (stage, total) != self._stage:
            self._stage, self._done = (stage, total), 0
            self._progress.begin(stage, total)
        self._progress.advance(done - self._done)
        self._done = done


class NoServerRuns(ConfigurationError):
    """No server listens on the control socket of a data folder."""
