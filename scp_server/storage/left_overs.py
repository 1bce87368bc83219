"""Files that should be gone, and could not be removed because the disk failed just then."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

MAX_LEFT_OVERS = 1_000
"""Remembered at most; what is beyond is for the next start, which finds part files and the ledger anyway."""


class LeftOvers:
    """Remembers how to remove them, for when the disk works again. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._removals: deque[Callable[[], bool]] = deque(maxlen=MAX_LEFT_OVERS)

    def add(self, remove: Callable[[], bool]) -> None:
        """`remove` blocks, says whether it was done, and raises nothing."""
        self._removals.append(remove)

    def remove_all(self) -> None:
        """Try again, up to the first that fails still. Blocks; costs nothing where nothing is left."""
        while self._removals:
            try:
                remove = self._removals.popleft()
            except IndexError:
                # Another thread took the last one.
                return
            if not remove():
                self._removals.append(remove)
                return
