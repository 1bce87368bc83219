"""What a subscription could not deliver yet: events that failed, and those of the same order key behind them.

Of each key the first is tried when it is due. A few behind it are lent with it, to be tried at once one after
another. Until the last of these has come back nothing more of the key is lent: so what is in the hands of who
delivers is the beginning of the key, whole, and nothing can overtake what has failed of it. All of it is in
the database as well; `changed` is what that is still to be told.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from operator import attrgetter
from typing import Final

from scp_server.index.outbox import OutboxChanges, ParkedRow

CHAIN: Final = 64
"""Events of one key that are lent together."""
LENT: Final = 512
"""Of all keys; with the chain of the last one it may be a few more."""

_event_id = attrgetter("event_id")


class Parking:
    """The parked events of one subscription, `name`, in memory."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rows: dict[int, ParkedRow] = {}
        self._by_key: dict[str, list[ParkedRow]] = {}
        self._lent: dict[str, set[int]] = {}
        """By key, those in the hands of who delivers."""
        self._lent_count = 0
        self._due: dict[str, int] = {}
        """When each key of which nothing is lent is to be tried."""
        self._changed: dict[int, ParkedRow | None] = {}
        """As the database is to know them; None is not at all."""

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, event_id: int) -> bool:
        return event_id in self._rows

    def __getitem__(self, event_id: int) -> ParkedRow:
        return self._rows[event_id]

    def has_key(self, key: str) -> bool:
        """Whether anything of that order key is parked: then what comes waits behind it."""
        return key in self._by_key

    @property
    def is_lent(self) -> bool:
        """Whether any are in the hands of who delivers."""
        return bool(self._lent)

    @property
    def oldest_at_ns(self) -> int | None:
        """When the oldest of them happened."""
        return min((rows[0].at_ns for rows in self._by_key.values()), default=None)

    # -- in and out ---------------------------------------------------------------------------------------

    def remember(self, rows: Iterable[ParkedRow]) -> None:
        """Those that the database has."""
        for row in rows:
            self._put(row)
        for key in self._by_key:
            self._is_due(key)

    def add(self, row: ParkedRow) -> None:
        """Park one, or what has become of one that is parked; it is given back by who had it."""
        known = self._rows.get(row.event_id)
        if known is None:
            self._put(row)
        else:
            rows = self._by_key[row.order_key]
            rows[bisect_left(rows, row.event_id, key=_event_id)] = self._rows[row.event_id] = row
        self._changed[row.event_id] = row
        self._is_back(row)

    def remove(self, event_id: int, dead: ParkedRow | None = None) -> None:
        """It is done with: delivered, dropped, or a dead letter, `dead`. The next of its key is due."""
        row = self._rows.pop(event_id, None)
        if row is not None:
            rows = self._by_key[row.order_key]
            del rows[bisect_left(rows, event_id, key=_event_id)]
            if not rows:
                del self._by_key[row.order_key]
            self._is_back(row)
        if row is not None or dead is not None:
            self._changed[event_id] = dead

    def forget_dead(self, event_id: int) -> None:
        """A dead letter is no longer kept."""
        self._changed[event_id] = None

    def is_free(self, event_id: int) -> bool:
        """It is parked, and not in the hands of who delivers."""
        row = self._rows.get(event_id)
        return row is not None and event_id not in self._lent.get(row.order_key, ())

    def _put(self, row: ParkedRow) -> None:
        insort(self._by_key.setdefault(row.order_key, []), row, key=_event_id)
        self._rows[row.event_id] = row

    # -- when they are tried ------------------------------------------------------------------------------

    @property
    def due_at_ns(self) -> int | None:
        """When the next is due; None where that is for somebody else to say."""
        return min(self._due.values(), default=None) if self._lent_count < LENT else None

    def due(self, now_ns: int) -> list[int]:
        """Those that are due, each with a few behind it, for `lend` or `remove`."""
        found: list[int] = []
        for _, key in sorted((at_ns, key) for key, at_ns in self._due.items() if at_ns <= now_ns):
            if self._lent_count + len(found) >= LENT:
                break
            found += [row.event_id for row in self._by_key[key][:CHAIN]]
        return found

    def lend(self, event_id: int) -> ParkedRow:
        """Somebody is to deliver it: until it is known how that ends, it may be arriving."""
        row = self._rows[event_id]
        self._lent.setdefault(row.order_key, set()).add(event_id)
        self._lent_count += 1
        self._due.pop(row.order_key, None)
        self._changed[event_id] = row._replace(may_be_repeated=True)
        return row

    def take_back(self, event_id: int) -> None:
        """It was not tried."""
        row = self._changed[event_id] = self._rows[event_id]
        self._is_back(row)

    def _is_back(self, row: ParkedRow) -> None:
        """It is in nobody's hands, perhaps for good."""
        key = row.order_key
        lent = self._lent.get(key)
        if lent is not None and row.event_id in lent:
            lent.remove(row.event_id)
            self._lent_count -= 1
            if not lent:
                del self._lent[key]
        self._is_due(key)

    def _is_due(self, key: str) -> None:
        """When its first is, unless some of it are lent or there are none."""
        rows = self._by_key.get(key)
        if rows and key not in self._lent:
            self._due[key] = rows[0].due_at_ns
        else:
            self._due.pop(key, None)

    def try_now(self, event_id: int | None) -> int:
        """Have one of them, or all, be due, as if for the first time; returns how many."""
        found = [number for number in self._rows if event_id in (None, number) and self.is_free(number)]
        for number in found:
            self.add(self._rows[number]._replace(attempts=0, due_at_ns=0))
        return len(found)

    # -- what the database is told ------------------------------------------------------------------------

    @property
    def has_changed(self) -> bool:
        """Whether there is something to tell."""
        return bool(self._changed)

    def add_to(self, changes: OutboxChanges) -> None:
        """Tell it."""
        for event_id, row in self._changed.items():
            if row is None:
                changes.take_away.append((self._name, event_id))
            else:
                changes.put.append(row)

    def written(self, changes: OutboxChanges) -> None:
        """The database knows what was told of these."""
        for row in changes.put:
            if self._changed.get(row.event_id) is row:
                del self._changed[row.event_id]
        for _, event_id in changes.take_away:
            if event_id in self._changed and self._changed[event_id] is None:
                del self._changed[event_id]
