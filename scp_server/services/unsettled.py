"""The objects whose bytes the index keeps safe for now: how many there may be, and which can be settled.

An object is *unsettled* from before its commit, which may leave it unsynced, until its file is durable and
the index keeps its bytes no longer (`runtime/settling.py`). So what is counted here bounds both the memory
that such objects hold while they wait for the index, and the space that they take in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from scp_server.observability.measures import SettlingMeasures


@dataclass(frozen=True, slots=True)
class UnsettledLimits:
    """How large an object may be, and how much all of them may be together; 0 bytes is none at all."""

    object_bytes: int = 65_536
    objects: int = 2_048
    bytes: int = 32 * 1024 * 1024

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot work."""
        if min(self.object_bytes, self.objects, self.bytes) < 0:
            raise ValueError("the limits are not negative")


class UnsettledObjects:
    """Keeps count, by arrival id. Methods are for one event loop, and none of them waits but `wait`."""

    def __init__(self, limits: UnsettledLimits, measures: SettlingMeasures | None = None) -> None:
        self._limits = limits
        self.accepting = True
        """False while nothing can be settled: then everybody's objects are synced by themselves."""
        self._measures = measures or SettlingMeasures()
        self._sizes: dict[str, int] = {}
        self._bytes = 0
        self._recorded: dict[str, None] = {}
        self._any, self._many = asyncio.Event(), asyncio.Event()

    def admit(self, arrival_id: str, size_bytes: int) -> bool:
        """Whether this object may be left unsynced; it counts from now on if so."""
        limits = self._limits
        if (
            not self.accepting
            or size_bytes > limits.object_bytes
            or len(self._sizes) >= limits.objects
            or self._bytes + size_bytes > limits.bytes
        ):
            return False
        self._sizes[arrival_id] = size_bytes
        self._bytes += size_bytes
        self._changed()
        return True

    def withdraw(self, arrival_id: str) -> None:
        """It was synced after all, or there is nothing of it."""
        self.settled([arrival_id])

    def record(self, arrival_id: str) -> None:
        """The index has answered, in whatever way: if it keeps the bytes, they are there to be settled."""
        if arrival_id in self._sizes:
            self._recorded[arrival_id] = None
            self._changed()

    def recorded(self) -> list[str]:
        """Arrival ids of those that the index has answered for."""
        return list(self._recorded)

    def settled(self, arrival_ids: Iterable[str]) -> None:
        """These no longer count."""
        for arrival_id in arrival_ids:
            self._bytes -= self._sizes.pop(arrival_id, 0)
            self._recorded.pop(arrival_id, None)
        self._changed()

    async def wait(self, seconds: float) -> None:
        """Return so long after there was one to settle, or as soon as there is half of what may be."""
        await self._any.wait()
        try:
            async with asyncio.timeout(seconds):
                await self._many.wait()
        except TimeoutError:
            pass

    def _changed(self) -> None:
        objects, size_bytes = len(self._sizes), self._bytes
        self._measures.objects, self._measures.bytes = objects, size_bytes
        half_full = 2 * objects >= self._limits.objects or 2 * size_bytes >= self._limits.bytes
        _set(self._any, bool(self._recorded))
        _set(self._many, bool(self._recorded) and half_full)


def _set(event: asyncio.Event, value: bool) -> None:
    if value:
        event.set()
    else:
        event.clear()
