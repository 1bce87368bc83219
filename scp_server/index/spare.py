"""Room kept for opening the index on a full disk.

SQLite cannot open a database with a write-ahead log, not even for reading, where there is no space for some
tens of KiB beside it. Objects leave the reserve alone, but other programs do not: so a small file lies beside
the index, and gives its place up when a start finds no other.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

SPARE_BYTES = 262_144
"""Shared memory of the log (32 KiB), and a log of some transactions."""


class SpareFile:
    """The file; of 0 bytes it is none. Methods block."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes

    @property
    def is_short_of_space(self) -> bool:
        """Whether its disk has less free than the file would take."""
        try:
            reading = os.statvfs(self._path.parent)
        except OSError:
            return False
        return reading.f_bavail * reading.f_frsize < max(self._size_bytes, 1)

    def give_up(self) -> bool:
        """Remove the file; False when there is none, or it stays."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True

    def lay_up(self) -> None:
        """Write the file where it is missing and has room. Raises no OSError."""
        if not self._size_bytes or self._path.exists() or self.is_short_of_space:
            return
        try:
            self._path.write_bytes(bytes(self._size_bytes))
        except OSError:
            with suppress(OSError):
                self._path.unlink()
