"""How much is going on: what the measures counted, divided by time. One loop, no locks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from scp_server.observability.measures import OperationMeasures

KEPT_SECONDS = 60.0
"""The longest span that a rate can be asked for."""
SHORTEST_SECONDS = 1.0
"""Shortly after the start what there was counts as if it had taken so long."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Averages over `seconds`, which are fewer than asked for shortly after the start."""

    seconds: float
    operations_per_second: float
    bytes_per_second: float


class _Reading(NamedTuple):
    at: float
    operations: int
    dataset_bytes: int


class Rates:
    """Remembers what was counted when, each time somebody calls `note`. `now` is a monotonic clock."""

    def __init__(self, operations: OperationMeasures, now: Callable[[], float]) -> None:
        self._operations = operations
        self._now = now
        self._readings: deque[_Reading] = deque([self._read()])

    def note(self) -> None:
        """Remember what is counted now; to be called every second or so. What is too old is forgotten."""
        reading, readings = self._read(), self._readings
        while len(readings) > 1 and reading.at - readings[1].at >= KEPT_SECONDS:
            readings.popleft()
        readings.append(reading)

    def over(self, seconds: float) -> Rate:
        """Averages over the last `seconds`, at most KEPT_SECONDS, and up to an interval of `note` more."""
        now = self._read()
        since = self._readings[0]
        for reading in reversed(self._readings):
            if now.at - reading.at >= seconds:
                since = reading
                break
        span = max(SHORTEST_SECONDS, now.at - since.at)
        return Rate(
            round(span, 3),
            (now.operations - since.operations) / span,
            (now.dataset_bytes - since.dataset_bytes) / span,
        )

    def _read(self) -> _Reading:
        return _Reading(self._now(), self._operations.answered, self._operations.dataset_bytes)
