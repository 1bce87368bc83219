"""Where log lines go: a stream that may be slow, full or broken, and must never hold the daemon up."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable
from typing import TextIO

PIPE_BUF = select.PIPE_BUF
"""A pipe that reports room takes at least so many bytes without blocking (POSIX)."""


class LineSink:
    """Writes lines to a stream. Never raises, and never waits for the reader of a pipe or a socket.

    What cannot be written at once is dropped and counted; as soon as the stream takes lines again,
    `dropped_line(count)` is written first.
    """

    def __init__(self, stream: TextIO, dropped_line: Callable[[int], str]) -> None:
        self._stream = stream
        self._dropped_line = dropped_line
        self._torn = False
        self.dropped = 0
        self._descriptor = _descriptor_of(stream)
        self._poll = _poll_of(self._descriptor)

    def write_line(self, line: str) -> None:
        """Write `line` and an end of line, or drop it."""
        if self.dropped and self._write(self._dropped_line(self.dropped)):
            self.dropped = 0
        if not self._write(line):
            self.dropped += 1

    # The names under which structlog calls a logger.
    debug = info = warning = error = critical = log = msg = write_line

    def _write(self, line: str) -> bool:
        try:
            if self._descriptor is None:
                self._stream.write(line + "\n")
                self._stream.flush()
                return True
            return self._write_bytes(line.encode("utf-8", "backslashreplace") + b"\n")
        except UnicodeEncodeError:
            return self._write(line.encode("ascii", "backslashreplace").decode("ascii"))
        except (OSError, ValueError):
            return False

    def _write_bytes(self, data: bytes) -> bool:
        if self._torn:
            data = b"\n" + data
        view = memoryview(data)
        descriptor = self._descriptor
        if descriptor is None:
            return False
        while view:
            if self._poll is not None and not self._has_room():
                break
            try:
                written = os.write(descriptor, view[:PIPE_BUF] if self._poll is not None else view)
            except OSError:
                break
            self._torn = True
            view = view[written:]
        if view:
            return False
        self._torn = False
        return True

    def _has_room(self) -> bool:
        events = self._poll.poll(0) if self._poll is not None else []
        return (
            bool(events)
            and events[0][1] & (select.POLLOUT | select.POLLERR | select.POLLHUP) == select.POLLOUT
        )


def _descriptor_of(stream: TextIO) -> int | None:
    try:
        descriptor = stream.fileno()
        stream.flush()
    except (OSError, ValueError, AttributeError):
        return None
    return descriptor


def _poll_of(descriptor: int | None) -> select.poll | None:
    """A poll object where writing could wait for a reader; files and terminals are written directly."""
    if descriptor is None:
        return None
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return None
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return None
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return poll
