"""How long to wait before a worker that ended is started again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

STEADY_SECONDS: Final = 10.0
"""One that lived so long is started again at once."""
FIRST_SECONDS: Final = 0.5
MOST_SECONDS: Final = 30.0


class Patience:
    """Of one worker: one that dies soon after its start, again and again, is left longer and longer."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started_at = clock()
        self._next_seconds = 0.0

    def started(self) -> None:
        """It is tried again now."""
        self._started_at = self._clock()

    def ended(self) -> float:
        """It has ended; how many seconds to wait."""
        if self._clock() - self._started_at >= STEADY_SECONDS:
            self._next_seconds = 0.0
        seconds = self._next_seconds
        self._next_seconds = min(MOST_SECONDS, max(FIRST_SECONDS, 2 * seconds))
        return seconds
