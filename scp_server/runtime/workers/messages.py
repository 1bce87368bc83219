"""What the primary and its satellites ask and tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scp_server.net.listener import BoundAddress
from scp_server.observability.samples import Samples
from scp_server.runtime.workers.channel import Notice, Question
from scp_server.settings import Settings

# -- the primary asks a satellite


@dataclass(frozen=True, slots=True)
class Prepare(Question[None]):
    """Build everything, and bind; accept nothing yet.

    `settings` are this worker's share; its arrival ids end in `writer`. `addresses` is what to bind to, and
    is empty where the listening socket was inherited.
    """

    settings: Settings
    number: int
    workers: int
    writer: str
    addresses: tuple[BoundAddress, ...]


@dataclass(frozen=True, slots=True)
class Accept(Question[None]):
    """Accept connections from now on."""


@dataclass(frozen=True, slots=True)
class Pulse(Question[Samples]):
    """Are you alive? The answer is what was counted."""


@dataclass(frozen=True, slots=True)
class AskStatus(Question[dict[str, Any]]):
    """What the command `status` tells of one process."""


@dataclass(frozen=True, slots=True)
class Holding(Question[set[str]]):
    """Which of these have you made visible, without knowing yet that the index has them?"""

    locations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TakeOver(Question[None]):
    """Other settings, this worker's share, hold for associations that come."""

    settings: Settings


@dataclass(frozen=True, slots=True)
class Drain(Question[bool]):
    """Accept no more, end what runs within `seconds`, close; whether everything ended by itself."""

    seconds: float


# -- a satellite asks the primary


@dataclass(frozen=True, slots=True)
class Doomed(Question[set[str]]):
    """Which of these are to be deleted?"""

    locations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TakePlace(Question[bool]):
    """Is there a place for one more association? If so it is taken."""

    calling_ae_title: str
    host: str


@dataclass(frozen=True, slots=True)
class GivePlaceBack(Notice):
    """It is free again."""

    calling_ae_title: str
    host: str


@dataclass(frozen=True, slots=True)
class TakeQuarantinePlace(Question[None]):
    """Reserve a place in quarantine."""


@dataclass(frozen=True, slots=True)
class TakeQuarantineBytes(Question[None]):
    """Reserve so many bytes there."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class GiveQuarantineBack(Notice):
    """One place there, and so many bytes, are reserved no longer."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class KeptInQuarantine(Notice):
    """This object lies there now."""

    object_id: str
    size_bytes: int
