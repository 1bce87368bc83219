"""How many associations there are, and whether one more may be: the caps of PS3.8 9.3.4's 2/3/2."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Protocol


class Caps(Protocol):
    """What bounds associations: all, those of one calling AE title, and those from one address."""

    @property
    def max_associations(self) -> int: ...
    @property
    def max_associations_per_peer(self) -> int: ...
    @property
    def max_associations_per_address(self) -> int: ...


class Places:
    """Counts associations: those of one process, or of all where this one lets in for the others too."""

    def __init__(self) -> None:
        self.taken = 0
        self.per_peer: Counter[str] = Counter()
        self.per_address: Counter[str] = Counter()

    def is_full_for(self, calling_ae_title: str, host: str, caps: Caps) -> bool:
        """Whether there is no place for one more association of this title from this address."""
        return (
            self.taken >= caps.max_associations
            or self.per_peer[calling_ae_title] >= caps.max_associations_per_peer
            or self.per_address[host] >= caps.max_associations_per_address
        )

    def take(self, calling_ae_title: str, host: str) -> None:
        """An association begins."""
        self.taken += 1
        self.per_peer[calling_ae_title] += 1
        self.per_address[host] += 1

    def give_back(self, calling_ae_title: str, host: str) -> None:
        """It has ended."""
        self.taken -= 1
        for counter, key in ((self.per_peer, calling_ae_title), (self.per_address, host)):
            counter[key] -= 1
            if counter[key] <= 0:
                del counter[key]


class Grants(Protocol):
    """Where another process counts the associations of all: each that is let in here is asked for there."""

    def ask(self, calling_ae_title: str, host: str) -> asyncio.Future[bool]:
        """Whether there is a place; then it is taken."""
        ...

    def give_back(self, calling_ae_title: str, host: str) -> None:
        """The place is free again. Never raises."""
        ...
