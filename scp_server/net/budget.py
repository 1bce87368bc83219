"""How many received bytes may wait in memory, and who stops reading when they are too many."""

from __future__ import annotations

from typing import Protocol


class BudgetHolder(Protocol):
    """A connection whose received bytes count against the process's budget."""

    def budget_exhausted(self) -> None:
        """The process holds too much: let go of what can be let go."""

    def stop_for_budget(self) -> None:
        """Stop reading until `go_on_with_budget`."""

    def go_on_with_budget(self) -> None:
        """There is room again."""


class ByteBudget:
    """The bytes that all associations of the process together hold between socket and storage.

    Above `limit_bytes` every holder that takes more stops reading, so that its TCP window closes, and all
    are asked to let go of what they hold; below seven eighths of it the stopped go on. What arrived before
    they stopped is at most one read (256 KiB) each.
    """

    __slots__ = ("_holders", "_low_water_bytes", "_stopped", "held_bytes", "limit_bytes", "peak_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self.peak_bytes = 0
        self._low_water_bytes = limit_bytes - limit_bytes // 8
        self._holders: dict[BudgetHolder, None] = {}
        self._stopped: dict[BudgetHolder, None] = {}

    def set_limit(self, limit_bytes: int) -> None:
        """Another limit from now on; who was stopped goes on at once where there is room under it."""
        self.limit_bytes = limit_bytes
        self._low_water_bytes = limit_bytes - limit_bytes // 8
        self.give(0)

    def join(self, holder: BudgetHolder) -> None:
        """`holder` may take from now on."""
        self._holders[holder] = None

    def leave(self, holder: BudgetHolder) -> None:
        """`holder` is gone; it has given what it held."""
        self._holders.pop(holder, None)
        self._stopped.pop(holder, None)

    def take(self, holder: BudgetHolder, size_bytes: int) -> None:
        """Count bytes that `holder` has received."""
        self.held_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        if self.held_bytes <= self.limit_bytes or holder in self._stopped:
            return
        crossing = not self._stopped
        self._stopped[holder] = None
        holder.stop_for_budget()
        for each in tuple(self._holders) if crossing else (holder,):
            each.budget_exhausted()

    def give(self, size_bytes: int) -> None:
        """Bytes are held no longer; the stopped go on when there is room again."""
        self.held_bytes -= size_bytes
        if self._stopped and self.held_bytes <= self._low_water_bytes:
            stopped, self._stopped = self._stopped, {}
            for holder in stopped:
                holder.go_on_with_budget()
