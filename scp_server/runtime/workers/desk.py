"""What the primary answers to one satellite, and the book of what that has taken."""

from __future__ import annotations

from collections import Counter
from typing import Any

from scp_server.net.association_manager import AssociationManager
from scp_server.runtime.workers.channel import Notice, Question
from scp_server.runtime.workers.messages import (
    Doomed,
    GivePlaceBack,
    GiveQuarantineBack,
    KeptInQuarantine,
    TakePlace,
    TakeQuarantineBytes,
    TakeQuarantinePlace,
)
from scp_server.services.storage import Deletions
from scp_server.storage.quarantine_room import QuarantineBook


class Desk:
    """Serves one satellite until `leave`, which gives back whatever that had taken when it ended."""

    def __init__(self, manager: AssociationManager, deletions: Deletions, quarantine: QuarantineBook) -> None:
        self._manager = manager
        self._deletions = deletions
        self._quarantine = quarantine
        self._places: Counter[tuple[str, str]] = Counter()
        self._reserved_objects = 0
        self._reserved_bytes = 0
        self._left = False

    async def answer(self, question: Question[Any]) -> object:
        """Raises what the components raise."""
        if isinstance(question, TakePlace):
            return self._take_place(question.calling_ae_title, question.host)
        if isinstance(question, Doomed):
            return await self._deletions.doomed(question.locations)
        if isinstance(question, TakeQuarantinePlace):
            await self._quarantine.take_place()
            self._reserved_objects += 1
            return None
        if isinstance(question, TakeQuarantineBytes):
            await self._quarantine.take_bytes(question.size_bytes)
            self._reserved_bytes += question.size_bytes
            return None
        raise TypeError(f"the primary is not asked {type(question).__name__}")

    def hear(self, notice: Notice) -> None:
        """Take note of what the satellite tells."""
        if isinstance(notice, GivePlaceBack):
            self._give_place_back((notice.calling_ae_title, notice.host))
        elif isinstance(notice, KeptInQuarantine):
            self._quarantine.kept(notice.object_id, notice.size_bytes)
        elif isinstance(notice, GiveQuarantineBack):
            self._reserved_objects -= 1
            self._reserved_bytes -= notice.size_bytes
            self._quarantine.give_back(notice.size_bytes)
        else:
            raise TypeError(f"the primary is not told {type(notice).__name__}")

    def _take_place(self, calling_ae_title: str, host: str) -> bool:
        if self._left or not self._manager.take_place_for_another(calling_ae_title, host):
            return False
        self._places[calling_ae_title, host] += 1
        return True

    def _give_place_back(self, place: tuple[str, str]) -> None:
        if self._places[place]:
            self._places[place] -= 1
            self._manager.places.give_back(*place)

    def leave(self) -> None:
        """The satellite has ended. A second time does nothing."""
        self._left = True
        for place in list(self._places.elements()):
            self._give_place_back(place)
        while self._reserved_objects > 0:
            self._reserved_objects -= 1
            self._quarantine.give_back(self._reserved_bytes)
            self._reserved_bytes = 0
