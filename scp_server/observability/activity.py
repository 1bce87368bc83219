"""How much is going on: totals since the start, and rates over the last seconds. One loop, no locks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

KEPT_SECONDS = 60
"""The longest span that a rate can be asked for."""


@dataclass(slots=True)
class _Second:
    """What happened in one second of the clock."""

    second: int
    operations: int = 0
    dataset_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Rate:
    """Averages over `seconds`, which are fewer than asked for shortly after the start."""

    seconds: float
    operations_per_second: float
    bytes_per_second: float


class Activity:
    """Counts what peers do. `now` is a monotonic clock in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._started_at = now()
        self._seconds: deque[_Second] = deque(maxlen=KEPT_SECONDS + 1)
        self.operations = 0
        self.operations_failed = 0
        self.dataset_bytes = 0

    @property
    def uptime_seconds(self) -> float:
        """Since this was made."""
        return self._now() - self._started_at

    def received(self, size_bytes: int) -> None:
        """Bytes of data sets have arrived."""
        self.dataset_bytes += size_bytes
        self._current().dataset_bytes += size_bytes

    def performed(self, *, success: bool) -> None:
        """An operation was answered; anything but a failure status is a success."""
        self.operations += 1
        self.operations_failed += not success
        self._current().operations += 1

    def rate(self, seconds: int) -> Rate:
        """Averages over the last `seconds` whole seconds, at most KEPT_SECONDS."""
        now = self._now()
        current = int(now)
        counted = [each for each in self._seconds if current - seconds <= each.second < current]
        # The second that the start fell into counts as a whole one.
        span = float(max(1, min(seconds, current - int(self._started_at))))
        return Rate(
            span,
            sum(each.operations for each in counted) / span,
            sum(each.dataset_bytes for each in counted) / span,
        )

    def _current(self) -> _Second:
        second = int(self._now())
        if not self._seconds or self._seconds[-1].second != second:
            self._seconds.append(_Second(second))
        return self._seconds[-1]
