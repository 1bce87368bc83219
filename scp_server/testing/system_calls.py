"""A stand-in for the system calls of one data folder: records them, fails them, kills before them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import pytest

_BY_PATH = ("open", "mkdir", "rename", "unlink", "rmdir")
_BY_DESCRIPTOR = ("writev", "pwrite", "fdatasync", "fsync", "close")


class Killed(BaseException):
    """The process ended here: nothing after it happens, no clean-up either."""


class SystemCalls:
    """Sees every call that concerns `root`, as `(name, path relative to root)`, from any thread.

    `before` is called with the call's number, name and path, and may raise or block.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = str(root)
        self.log: list[tuple[str, str]] = []
        self.before: Callable[[int, str, str], None] | None = None
        self._paths: dict[int, str] = {}
        self._lock = Lock()
        for name in _BY_PATH:
            monkeypatch.setattr(os, name, self._by_path(name, getattr(os, name)))
        for name in _BY_DESCRIPTOR:
            monkeypatch.setattr(os, name, self._by_descriptor(name, getattr(os, name)))

    def names(self) -> list[str]:
        return [name for name, _ in self.log]

    def fail(self, number: int, error: int) -> None:
        """The call of that number, counted from now, fails."""
        self.log.clear()

        def before(at: int, name: str, path: str) -> None:
            if at == number:
                raise OSError(error, os.strerror(error), path)

        self.before = before

    def kill(self, number: int) -> None:
        """The process ends before the call of that number, counted from now."""
        self.log.clear()

        def before(at: int, name: str, path: str) -> None:
            if at >= number:
                raise Killed

        self.before = before

    def _enter(self, name: str, path: str) -> None:
        with self._lock:
            number = len(self.log)
            self.log.append((name, os.path.relpath(path, self.root)))
        if self.before is not None:
            self.before(number, name, self.log[number][1])

    def _by_path(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            if not str(path).startswith(self.root):
                return real(path, *args, **kwargs)
            self._enter(name, str(args[0] if name == "rename" else path))
            result = real(path, *args, **kwargs)
            if name == "open":
                self._paths[result] = str(path)
            return result

        return call

    def _by_descriptor(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, *args: Any) -> Any:
            path = self._paths.get(descriptor)
            if path is None:
                return real(descriptor, *args)
            if name == "close":
                # As Linux does: the descriptor is gone, also when close reports an error.
                del self._paths[descriptor]
                real(descriptor)
                return self._enter(name, path)
            self._enter(name, path)
            return real(descriptor, *args)

        return call
