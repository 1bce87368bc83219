"""Reading and listing files in threads, a piece per visit; a reader that stops early leaks nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from scp_server.storage.base import StoredObject
from scp_server.storage.layout import MAX_DEPTH, is_directory_name, is_file_name

if TYPE_CHECKING:
    ScandirIterator = os._ScandirIterator[str]


class FileReader:
    """A file read from an offset on. `read` and `close` block; `close` waits for a `read` in hand."""

    def __init__(self, path: str, offset_bytes: int, length_bytes: int | None) -> None:
        self._path = path
        self._offset = offset_bytes
        self._left = length_bytes
        self._descriptor = -1
        self._closed = False
        self._lock = Lock()

    def read(self, most_bytes: int) -> bytes:
        """The next bytes; empty at the end. Opens the file the first time. Raises OSError."""
        with self._lock:
            if self._closed:
                return b""
            if self._descriptor < 0:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            wanted = most_bytes if self._left is None else min(most_bytes, self._left)
            data = os.pread(self._descriptor, wanted, self._offset) if wanted else b""
            self._offset += len(data)
            if self._left is not None:
                self._left -= len(data)
            return data

    def close(self) -> None:
        """Give the file back; further reads are empty. Never raises."""
        with self._lock:
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


def objects_below(root: str, top: str) -> Iterator[StoredObject]:
    """Every visible object below the relative directory `top`, at any depth that a layout may have.

    What disappears meanwhile is passed over, as is every file that is none of ours. One directory is open on
    each level, and no more of it is held; symbolic links are not followed.
    """
    levels: list[_Level] = []
    _descend(root, top, levels)
    try:
        while levels:
            above, entries = levels[-1]
            entry = next(entries, None)
            if entry is None:
                levels.pop()
            elif is_directory_name(entry.name) and entry.is_dir(follow_symlinks=False):
                directory = f"{above}/{entry.name}"
                yield from objects_in(root, directory)
                if len(levels) < MAX_DEPTH:
                    _descend(root, directory, levels)
    finally:
        for _, entries in levels:
            entries.close()


class _Level(NamedTuple):
    """A directory that is being listed. Its entries close themselves at their end."""

    directory: str
    entries: ScandirIterator


def _descend(root: str, directory: str, levels: list[_Level]) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        levels.append(_Level(directory, os.scandir(f"{root}/{directory}")))


def objects_in(root: str, directory: str) -> Iterator[StoredObject]:
    """The visible objects of one directory, without those below."""
    try:
        entries = os.scandir(f"{root}/{directory}")
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            if not is_file_name(entry.name):
                continue
            with suppress(FileNotFoundError):
                yield StoredObject(f"{directory}/{entry.name}", entry.stat(follow_symlinks=False).st_size)


def size_at(path: str) -> int | None:
    """The bytes of the regular file at `path`; None where there is none. Raises OSError."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
