"""Names the async callback that does not give the event loop back, while it does not.

How long a step took is measured in the loop, afterwards; a callback that never comes back leaves nobody there
to say so, and whoever looks at a server that hangs is to find its name in the log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from scp_server.observability.logs import get_logger

log = get_logger(__name__)

LOOK_SECONDS: Final = 1.0
STUCK_SECONDS: Final = 5.0


class LoopOccupant:
    """Which callback has the loop now. Written by the loop, read by a thread: a name, then a moment."""

    __slots__ = ("name", "since")

    def __init__(self) -> None:
        self.name = ""
        self.since = 0.0


class StuckWatch:
    """A thread that looks at a `LoopOccupant` once a second, from `start` to `stop`."""

    def __init__(
        self,
        occupant: LoopOccupant,
        look_seconds: float = LOOK_SECONDS,
        stuck_seconds: float = STUCK_SECONDS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._occupant = occupant
        self._look_seconds = look_seconds
        self._stuck_seconds = stuck_seconds
        self._clock = clock
        self._ended = threading.Event()
        self._named = 0.0

    def start(self) -> None:
        """Begin to look."""
        threading.Thread(target=self._watch, name="callbacks in the loop", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(self._look_seconds):
            self.look()

    def look(self) -> None:
        """Name the occupant that has been there for too long, once for each time."""
        name, since = self._occupant.name, self._occupant.since
        seconds = self._clock() - since
        if name and since != self._named and seconds > self._stuck_seconds:
            self._named = since
            log.error("callback.blocks_loop", callback=name, seconds=round(seconds, 1))
