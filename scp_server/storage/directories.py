"""The directories that objects lie in: made when needed, durable before use, gone when empty.

A directory is *known* once its name in its parent, and theirs in turn, are durable (or, with durability
`process`, exist). Existence alone says nothing: another thread may have made it a moment ago and not have
synced it, or a killed process long ago.

Making and removing happen under one of a few locks, chosen by the first level below `objects`; looking at
what is known needs none. So an unlocked look may be stale, and whoever places a file asks again *after* the
rename: the file then keeps its directory from being removed, and a directory that was removed and made
again is unknown until its maker has synced it.

Other processes that write here remove directories without our locks. Each counts, in memory that all share,
before it removes one and again after it (`pruning`). Whoever sees that another has counted knows nothing any
more, and comes to know nothing while another is between the two. This too is looked at after the rename:
either the file kept its directory, or the removal was counted before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from threading import Lock

from scp_server.storage.layout import OBJECTS
from scp_server.storage.pruning import PruneCounts, is_removing
from scp_server.storage.sync import DIRECTORY_MODE, sync_directory

_LOCKS = 64
_MAX_KNOWN = 16_384
"""Known directories remembered: some 3 MiB. Past that all are forgotten, which costs a sync each."""


class DirectoryTree:
    """The directories below `objects`. Methods block; any thread may call them."""

    def __init__(self, root: str, *, durable: bool, prunes: PruneCounts | None = None) -> None:
        self._root = root
        self._durable = durable
        self._prunes = prunes
        self._seen = b"" if prunes is None else prunes.of_others()
        self._known: set[str] = set()
        self._locks = tuple(Lock() for _ in range(_LOCKS))

    def _lock_of(self, directory: str) -> Lock:
        return self._locks[hash(directory.split("/", 2)[1]) % _LOCKS]

    def path(self, relative: str) -> str:
        """The absolute path of a directory or a location."""
        return f"{self._root}/{relative}"

    def is_known(self, directory: str) -> bool:
        """Whether `ensure` has nothing to do, unless somebody removes it. Never blocks."""
        return directory in self._known_still()

    def ensure(self, directory: str) -> None:
        """Make `directory` (relative, below `objects`) exist and be known. Raises OSError."""
        known = self._known_still()
        if directory in known:
            return
        with self._lock_of(directory):
            try:
                self._make(directory, known)
            except FileNotFoundError:
                # Somebody else's hand removed a directory that we knew.
                known.difference_update(_levels(directory))
                self._make(directory, known)

    def _known_still(self) -> set[str]:
        """What is known. Once another process has pruned, and each time while one does, that is another,
        empty set: what a thread adds afterwards, to the one that it was given before, is lost."""
        if self._prunes is not None:
            seen = self._prunes.of_others()
            if seen != self._seen or is_removing(seen):
                self._known = set()
                self._seen = seen
        return self._known

    def _make(self, directory: str, known: set[str]) -> None:
        for level in reversed(_levels(directory)):
            if level in known:
                continue
            path = self.path(level)
            with suppress(FileExistsError):
                os.mkdir(path, DIRECTORY_MODE)
            if self._durable:
                sync_directory(os.path.dirname(path))
            if len(known) >= _MAX_KNOWN:
                known.clear()
            known.add(level)

    def forget(self, directory: str) -> None:
        """`directory` was found missing: the next `ensure` makes it anew, and its parents where need be."""
        with self._lock_of(directory):
            self._known.difference_update(_levels(directory))

    def prune(self, directory: str) -> None:
        """Remove `directory` and its parents below `objects`, as far as they are empty. Raises no OSError."""
        with self._lock_of(directory):
            for level in _levels(directory):
                path = self.path(level)
                try:
                    if self._prunes is None:
                        os.rmdir(path)
                    elif _has_entries(path):
                        return
                    else:
                        # Unknown first: another process may make it again at once.
                        self._known.discard(level)
                        with self._prunes.removing():
                            os.rmdir(path)
                except FileNotFoundError:
                    pass
                except OSError:
                    return
                self._known.discard(level)

    def sync_nearest(self, directories: Iterable[str]) -> None:
        """Sync each of `directories`, or its nearest parent that is still there, once for all that share it:
        what was removed stays removed. Raises OSError.

        The deepest come first: so a parent is synced after whatever was found missing below it.
        """
        depths: dict[int, set[str]] = {}
        for directory in directories:
            depths.setdefault(directory.count("/"), set()).add(directory)
        for depth in range(max(depths, default=0), -1, -1):
            for directory in depths.get(depth, ()):
                try:
                    sync_directory(self.path(directory))
                except FileNotFoundError:
                    if directory != OBJECTS:
                        depths.setdefault(depth - 1, set()).add(directory.rpartition("/")[0])


def _has_entries(path: str) -> bool:
    with os.scandir(path) as entries:
        return next(entries, None) is not None


def _levels(directory: str) -> list[str]:
    """`objects/a/b/c`, `objects/a/b`, `objects/a`."""
    levels: list[str] = []
    while directory != OBJECTS:
        levels.append(directory)
        directory = directory.rpartition("/")[0]
    return levels
