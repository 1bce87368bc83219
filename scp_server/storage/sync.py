"""The system calls below the filesystem storage: whole writes, syncing, free space, and what errors mean.

Everything here blocks and belongs into the storage's threads. EINTR needs no care: Python repeats the call
(PEP 475).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from scp_server.errors import StorageError, StorageFull
from scp_server.protocol.events import Buffer

FILE_MODE = 0o640
DIRECTORY_MODE = 0o750

_MAX_VECTORS = 1024
"""Buffers in one writev: UIO_MAXIOV of Linux, and IOV_MAX elsewhere."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_GIBIBYTE = 1 << 30
_READING_SECONDS = 1.0


class Durability(StrEnum):
    """What an acknowledged object survives."""

    FULL = "full"
    """Power loss: object and directories are synced before `commit` returns."""
    PROCESS = "process"
    """The end of the process, kill -9 included; not power loss."""


def storage_failure(error: OSError, action: str) -> StorageError:
    """Our error for the system's: StorageFull for ENOSPC and EDQUOT. Its text carries no path."""
    text = f"cannot {action}: {error.strerror or 'unknown error'}"
    return StorageFull(text) if error.errno in _FULL else StorageError(text)


def size_of(data: Buffer) -> int:
    """A buffer's length in bytes."""
    return data.nbytes if isinstance(data, memoryview) else len(data)


def write_all(descriptor: int, buffers: Sequence[Buffer]) -> int:
    """Append every buffer, however often the system writes less than asked. Returns the bytes written."""
    total = 0
    for start in range(0, len(buffers), _MAX_VECTORS):
        batch = buffers[start : start + _MAX_VECTORS]
        expected = sum(map(size_of, batch))
        written = os.writev(descriptor, batch) if expected else 0
        while written < expected:
            written += _write_rest(descriptor, batch, written)
        total += expected
    return total


def _write_rest(descriptor: int, batch: Sequence[Buffer], written: int) -> int:
    rest: list[memoryview] = []
    for data in batch:
        view = memoryview(data).cast("B")
        if written < view.nbytes:
            rest.append(view[written:])
        written = max(0, written - view.nbytes)
    return _progress(os.writev(descriptor, rest))


def write_at(descriptor: int, data: Buffer, offset_bytes: int) -> None:
    """Overwrite at `offset_bytes`, however often the system writes less than asked."""
    view = memoryview(data)
    while view.nbytes:
        written = _progress(os.pwrite(descriptor, view, offset_bytes))
        view = view[written:]
        offset_bytes += written


def _progress(written: int) -> int:
    if written <= 0:
        # A filesystem that takes nothing and reports nothing would keep the thread for ever.
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return written


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: str, *, durable: bool) -> None:
    """Make a folder and its missing parents; `durable` syncs the parent of each one that was made, and of the
    one that was there: whoever made it may have been killed before that."""
    missing: list[str] = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    if durable:
        # Where we may not read, none of us has made anything.
        with suppress(PermissionError):
            sync_directory(os.path.dirname(path))
    for folder in reversed(missing):
        try:
            os.mkdir(folder, DIRECTORY_MODE)
        except FileExistsError:
            if not os.path.isdir(folder):
                raise
        if durable:
            sync_directory(os.path.dirname(folder))


@dataclass(frozen=True, slots=True)
class SpaceReading:
    """What a filesystem said of itself. `free_bytes` includes the reserve."""

    free_bytes: int
    size_bytes: int
    reserve_bytes: int


class FreeSpace:
    """Watches that the reserve stays free.

    `check` reads the filesystem anew; `recently_ample` looks at the last reading only, and never blocks.
    """

    def __init__(self, folder: str, reserve_bytes: int | None) -> None:
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        self._ample_until = float("-inf")

    def check(self) -> None:
        """Raise StorageFull when less than the reserve is free. Blocks as long as statvfs does."""
        now = time.monotonic()
        space = self.read()
        if space.free_bytes < space.reserve_bytes:
            self._ample_until = float("-inf")
            raise StorageFull("only the reserve is free")
        self._ample_until = now + _READING_SECONDS

    def read(self) -> SpaceReading:
        """Ask the filesystem. Blocks as long as statvfs does; raises its OSError."""
        reading = os.statvfs(self._folder)
        size_bytes = reading.f_blocks * reading.f_frsize
        reserve = self._reserve_bytes
        if reserve is None:
            reserve = min(_GIBIBYTE, size_bytes // 50)
        return SpaceReading(reading.f_bavail * reading.f_frsize, size_bytes, reserve)

    @property
    def recently_ample(self) -> bool:
        """Whether the last reading is less than a second old and found more than the reserve."""
        return time.monotonic() < self._ample_until
