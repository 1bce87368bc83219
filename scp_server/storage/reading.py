"""Reading and listing files in threads, a piece per visit; a reader that stops early leaks nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from threading import Lock

from scp_server.storage.base import StoredObject
from scp_server.storage.layout import is_directory, is_location

READ_PIECE_BYTES = 655_360
"""What a read takes at once. A visit to a thread costs as much as copying half a megabyte, so that of a CT
slice is one, with 128 KiB for its header. While a piece is used the next is read, and none beyond it."""


class FileReader:
    """A file read from an offset on. `read` and `close` block; `close` waits for a `read` in hand.

    The read that comes to the end closes the file: where the length is known, one visit to a thread may do.
    """

    def __init__(self, path: str, offset_bytes: int, length_bytes: int | None) -> None:
        self._path = path
        self._offset = offset_bytes
        self._left = length_bytes
        self._descriptor = -1
        self._closed = False
        self._lock = Lock()

    @property
    def is_closed(self) -> bool:
        """Nothing more will be read, and no file is open."""
        return self._closed

    def read(self, most_bytes: int) -> bytes:
        """The next bytes; empty at the end. Opens the file the first time. Raises OSError."""
        with self._lock:
            if self._closed:
                return b""
            if self._descriptor < 0:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            wanted = most_bytes if self._left is None else min(most_bytes, self._left)
            data = os.pread(self._descriptor, wanted, self._offset) if wanted else b""
            self._offset += len(data)
            if self._left is not None:
                self._left -= len(data)
            if self._left == 0 or not data:
                self._close()
            return data

    def close(self) -> None:
        """Give the file back; further reads are empty. Never raises."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        self._closed = True
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)


class Batches:
    """An iterator stepped through in threads. `close` waits for a batch in hand, then ends the iterator."""

    def __init__(self, objects: Iterator[StoredObject]) -> None:
        self._objects = objects
        self._lock = Lock()

    def next(self, most: int) -> list[StoredObject]:
        """The next objects; empty at the end. Raises OSError."""
        with self._lock:
            return list(islice(self._objects, most))

    def close(self) -> None:
        """End the iteration."""
        with self._lock:
            self._objects = iter(())


def objects_below(root: str, directory: str) -> Iterator[StoredObject]:
    """Every visible object at any depth below a relative directory, in the filesystem's order.

    What disappears meanwhile is passed over, as is every file that is none of ours; symbolic links are not
    followed. Holds an open directory for each level, and never a whole one in memory.
    """
    for entry in _entries(root, directory):
        if entry.is_dir(follow_symlinks=False):
            below = f"{directory}/{entry.name}"
            if is_directory(below):
                yield from objects_below(root, below)
        else:
            yield from _object(directory, entry)


def objects_in(root: str, directory: str) -> Iterator[StoredObject]:
    """The visible objects that lie in one directory itself."""
    for entry in _entries(root, directory):
        yield from _object(directory, entry)


def _entries(root: str, directory: str) -> Iterator[os.DirEntry[str]]:
    try:
        entries = os.scandir(f"{root}/{directory}")
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        yield from entries


def _object(directory: str, entry: os.DirEntry[str]) -> Iterator[StoredObject]:
    """The object that an entry is, if it is one."""
    location = f"{directory}/{entry.name}"
    if is_location(location):
        with suppress(FileNotFoundError):
            found = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(found.st_mode):
                yield StoredObject(location, found.st_size)


def size_at(path: str) -> int | None:
    """The bytes of the regular file at `path`; None where there is none. Raises OSError."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
