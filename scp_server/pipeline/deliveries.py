"""Between the outbox and whoever it delivers to.

The event log is one table of the index: a row for everything that happened, written by the transaction that
made it true, with ascending ids. A *subscription* is a position in that log, plus what is parked: the events
before the position that failed and wait for another try, or wait behind one of the same order key, or are
dead letters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol


class EventKind(StrEnum):
    """What an event of the log says. The values are public: the event stream and webhooks use them."""

    ASSOCIATION_ACCEPTED = "association.accepted"
    ASSOCIATION_ENDED = "association.ended"
    """Also means: complete, these were all of its parts."""
    OBJECT_STORED = "object.stored"
    STUDY_SETTLED = "study.settled"
    TDR_RECEIVED = "tdr.received"
    TDR_MISSING = "tdr.missing"
    TDR_ORPHAN = "tdr.orphan"
    DECISION_CHANGED = "decision.changed"
    OBJECT_INVALID = "object.invalid"
    """The validation has found errors in an object that was stored."""


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One row of the event log.

    `order_key`: events of one key are delivered to a subscription in the order of their ids, one after
    another (an object's is its study and series). `location` is that of the object's file, None for other
    kinds. `data` is plain JSON without any identity of a patient or passenger, fit for the event stream:
    UIDs, SOP class, modality, AE titles, association id, sizes, digest, times in nanoseconds since the epoch.
    """

    event_id: int
    kind: EventKind
    at_ns: int
    order_key: str
    location: str | None
    association_id: str
    data: Mapping[str, object]


class Delivery(NamedTuple):
    """An event on its way to one subscriber; a tuple, since one is made for each of an object's.

    `attempt` is 1 at first. `may_be_repeated`: the process ended while this was being delivered, so it may
    have arrived. `idempotency_key` is the same for every attempt and no other delivery has it, over restarts.
    """

    event: LoggedEvent
    attempt: int
    may_be_repeated: bool
    idempotency_key: str


class Subscriber(Protocol):
    """Whom the outbox delivers to. One instance for each subscription, in one event loop."""

    @property
    def name(self) -> str:
        """Ours, unique and stable over restarts: the position in the log is kept under it."""
        ...

    @property
    def concurrency(self) -> int:
        """Deliveries of different order keys that may be under way together."""
        ...

    def wants(self, event: LoggedEvent) -> bool:
        """Whether it is to be delivered at all. Cheap, called for every event, must not raise."""
        ...

    async def deliver(self, delivery: Delivery) -> None:
        """Return once it is delivered. Raises NotDelivered (tried again, with backoff, and dead after
        `outbox.max_attempts`), DestinationDown (everything to this subscriber waits; not counted as a try),
        Undeliverable (dead at once); anything else counts as NotDelivered and is logged with its traceback.
        """
        ...
