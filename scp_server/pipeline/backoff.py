"""When what failed is tried again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Backoff:
    """Twice as long after each failure, up to a maximum; of that between a half and all, so that what failed
    together does not come back together."""

    first_seconds: float
    max_seconds: float
    jitter: Callable[[], float] = random.random

    def after(self, failures: int) -> int:
        """Nanoseconds to wait after so many failures, at least one, of which none succeeded in between."""
        longest = min(self.max_seconds, self.first_seconds * 2.0 ** min(failures - 1, 64))
        return int(longest * (0.5 + 0.5 * self.jitter()) * NANOSECONDS)


class Circuit:
    """Whether a destination is tried at all. While it is open there is one try whenever one is due."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._failures = 0
        self.is_open = False
        """The destination was down when it was tried last."""
        self.is_probing = False
        """That try is under way; only while it is open."""
        self.due_at_ns = 0
        """When the next try is due, while it is open."""

    def is_due(self, now_ns: int) -> bool:
        """Whether something may be tried now, were there anything."""
        return not self.is_open or (not self.is_probing and now_ns >= self.due_at_ns)

    def try_begins(self) -> None:
        """Something is tried."""
        self.is_probing = self.is_open

    def try_failed(self, now_ns: int) -> None:
        """The destination was down."""
        if not self.is_open or self.is_probing:
            # Others that were under way when it opened tell nothing new.
            self._failures += 1
            self.due_at_ns = now_ns + self._backoff.after(self._failures)
        self.is_open = True
        self.is_probing = False

    def try_broken_off(self) -> None:
        """Nobody knows how it would have ended."""
        self.is_probing = False

    def close(self) -> None:
        """It is up again: it answered, no matter what, or somebody says so."""
        self._failures = 0
        self.is_open = self.is_probing = False
