"""How often each of several processes has begun and ended to remove a directory, in memory that they share.

See `directories` for what it is good for. Each process writes its own number only, so nothing needs a lock
between them. A number that is odd says that its process is removing one.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_COUNT = struct.Struct("=Q")


class PruneCounts:
    """The counts of all processes, seen from one of them, between `open` and `close`. For any thread."""

    def __init__(self, processes: int, own: int = 0, descriptor: int = -1) -> None:
        """`own` is the number of this process, from 0; `descriptor` is that of the process that made the
        memory, inherited, and belongs to this object."""
        self._size_bytes = processes * _COUNT.size
        self._own = own * _COUNT.size
        self._lock = Lock()
        self.descriptor = descriptor
        """Of the memory, for passing it on."""

    def open(self) -> None:
        """Make the memory where none was inherited. Raises OSError."""
        if self.descriptor < 0:
            self.descriptor = os.memfd_create("scp-server", os.MFD_CLOEXEC)
            os.ftruncate(self.descriptor, self._size_bytes)
        self._memory = mmap.mmap(self.descriptor, self._size_bytes)
        if self._counted % 2:
            # Our predecessor was killed between the two.
            self._count()

    def close(self) -> None:
        """Let go of it."""
        self._memory.close()
        os.close(self.descriptor)

    @contextmanager
    def removing(self) -> Iterator[None]:
        """This process removes a directory meanwhile; one at a time."""
        with self._lock:
            self._count()
            try:
                yield
            finally:
                self._count()

    @property
    def _counted(self) -> int:
        (counted,) = _COUNT.unpack_from(self._memory, self._own)
        return int(counted)

    def _count(self) -> None:
        _COUNT.pack_into(self._memory, self._own, self._counted + 1)

    def of_others(self) -> bytes:
        """What the others have counted: another value once one of them has counted again."""
        return self._memory[: self._own] + self._memory[self._own + _COUNT.size :]


def is_removing(counts: bytes) -> bool:
    """Whether one of `counts` says that its process is removing a directory."""
    return any(counted % 2 for (counted,) in _COUNT.iter_unpack(counts))
