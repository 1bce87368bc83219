"""A clock that stands still until a test moves it."""

from __future__ import annotations

DEFAULT_EPOCH_SECONDS = 1_700_000_000


class ManualClock:
    """Stands in for `time.monotonic` (call it) and `time.time_ns`; both move by `advance` only."""

    def __init__(self, now: float = 0.0, epoch_seconds: int = DEFAULT_EPOCH_SECONDS) -> None:
        self._now = now
        self._epoch_ns = epoch_seconds * 1_000_000_000

    def __call__(self) -> float:
        """Seconds on the monotonic clock."""
        return self._now

    @property
    def now(self) -> float:
        """The same as calling the clock."""
        return self._now

    def time_ns(self) -> int:
        """Nanoseconds since the epoch, UTC."""
        return self._epoch_ns

    def advance(self, seconds: float) -> float:
        """Move both clocks on, and return the new monotonic time. Raises ValueError for a step backwards."""
        if seconds < 0:
            raise ValueError("a monotonic clock does not go back")
        self._now += seconds
        self._epoch_ns += round(seconds * 1_000_000_000)
        return self._now
