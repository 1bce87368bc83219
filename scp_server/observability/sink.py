"""Where log lines go: a stream that may be slow, full or broken, and must never hold the daemon up."""

from __future__ import annotations

import errno
import os
import select
import stat
from collections.abc import Callable
from typing import TextIO

PIPE_BUF = select.PIPE_BUF
"""A pipe that reports room takes at least so many bytes without blocking (POSIX)."""

_NO_WAIT = getattr(os, "RWF_NOWAIT", 0)
_NOT_OFFERED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ESPIPE})


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
                if self._poll is None:
                    written = os.write(descriptor, view)
                else:
                    written = _write_at_once(descriptor, view[:PIPE_BUF])
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


def _write_at_once(descriptor: int, data: memoryview) -> int:
    """Write to a pipe or socket that had room: another process may have taken it since, and then this raises
    an OSError rather than waits. To make the descriptor itself non-blocking would concern others too."""
    if _NO_WAIT:
        try:
            return os.pwritev(descriptor, [data], -1, _NO_WAIT)
        except OSError as error:
            if error.errno not in _NOT_OFFERED:
                raise
    return os.write(descriptor, data)


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
