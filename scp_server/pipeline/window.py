"""The events of a subscription that are in memory: read and not done with, in the order of the log.

Those of one order key are begun one after another; of which key is next, the one that has waited longest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from scp_server.pipeline.deliveries import LoggedEvent

WINDOW: Final = 1_024
"""Events of a subscription in memory, beside a page of the log and what is read again."""


@dataclass(slots=True, eq=False)
class Item:
    """An event in memory that is to be delivered."""

    event: LoggedEvent
    attempts: int = 0
    may_be_repeated: bool = False
    is_parked: bool = False
    """The position is past it: it has a place among the parked, and none in the window."""
    is_broken_off: bool = False
    is_done: bool = False


class Window:
    """Items in the order of the log, and which of them may be begun."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._by_key: dict[str, deque[Item]] = {}
        """What may be begun; the first of each may be under way."""
        self._ready: deque[str] = deque()
        """Keys of which nothing is under way."""

    @property
    def is_full(self) -> bool:
        """No more should be read."""
        return len(self._items) >= WINDOW

    @property
    def first(self) -> Item | None:
        """The first that is not done with."""
        return self._items[0] if self._items else None

    @property
    def last(self) -> Item | None:
        """The one read last, where it or another is not done with."""
        return self._items[-1] if self._items else None

    def add(self, item: Item) -> None:
        """It was read."""
        self._items.append(item)

    # -- which is next ------------------------------------------------------------------------------------

    @property
    def has_ready(self) -> bool:
        """Whether one may be begun."""
        return bool(self._ready)

    def make_ready(self, item: Item) -> None:
        """It may be begun once those of its key are done with that may be already."""
        key = item.event.order_key
        waiting = self._by_key.get(key)
        if waiting is None:
            self._by_key[key] = deque((item,))
            self._ready.append(key)
        else:
            waiting.append(item)

    def begin(self) -> Item:
        """The next one. To be followed by `give_back` or `end`."""
        return self._by_key[self._ready.popleft()][0]

    def give_back(self, item: Item) -> None:
        """It has not been tried, and is the next one again."""
        self._ready.appendleft(item.event.order_key)

    def end(self, item: Item, *, blocks: bool) -> Sequence[Item]:
        """It is done with, or parked. Returns those behind it which it `blocks`: they are here no longer."""
        item.is_done = True
        key = item.event.order_key
        waiting = self._by_key.get(key)
        blocked: Sequence[Item] = ()
        if waiting and waiting[0] is item:
            waiting.popleft()
            if blocks:
                blocked = list(waiting)
                waiting.clear()
            if waiting:
                self._ready.append(key)
            else:
                del self._by_key[key]
        for behind in blocked:
            behind.is_done = not behind.is_parked
        return blocked

    def shift(self) -> bool:
        """Let go of what is done with at the beginning; whether there is room that there was not."""
        items = self._items
        was_full = len(items) >= WINDOW
        while items and items[0].is_done:
            items.popleft()
        return not items or (was_full and len(items) < WINDOW)

    # -- its end ------------------------------------------------------------------------------------------

    def close(self) -> tuple[list[Item], int]:
        """Of those before one that was begun, which are not done with; and where what is left begins, 0 for
        nothing."""
        items = self._items
        last = max((each.event.event_id for each in items if each.is_done or each.is_broken_off), default=0)
        before = []
        while items and items[0].event.event_id <= last:
            item = items.popleft()
            if not item.is_done:
                before.append(item)
        begins = items[0].event.event_id if items else 0
        items.clear()
        return before, begins
