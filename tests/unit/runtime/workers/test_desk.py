"""What a satellite took is given back when it ends, however that happens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import pytest

from scp_server.errors import StorageFull
from scp_server.net.association_manager import AssociationManager
from scp_server.net.places import Places
from scp_server.runtime.workers.desk import Desk
from scp_server.runtime.workers.messages import (
    Doomed,
    GivePlaceBack,
    GiveQuarantineBack,
    KeptInQuarantine,
    TakePlace,
    TakeQuarantineBytes,
    TakeQuarantinePlace,
)
from scp_server.storage.quarantine_room import QuarantineBook


class Manager:
    """Two places."""

    def __init__(self) -> None:
        self.places = Places()

    def take_place_for_another(self, calling_ae_title: str, host: str) -> bool:
        if self.places.taken == 2:
            return False
        self.places.take(calling_ae_title, host)
        return True


class Deletions:
    async def doomed(self, wanted: Iterable[str]) -> set[str]:
        return {each for each in wanted if each.startswith("doomed")}


def _desk() -> tuple[Desk, Manager, QuarantineBook]:
    manager, book = Manager(), QuarantineBook(max_objects=2, max_bytes=100)
    return Desk(cast(AssociationManager, manager), Deletions(), book), manager, book


async def test_places_are_granted_while_there_are_any_and_free_again_with_the_end() -> None:
    desk, manager, _ = _desk()
    asked = [await desk.answer(TakePlace(title, "::1")) for title in ("A", "A", "B")]
    assert asked == [True, True, False]
    desk.hear(GivePlaceBack("A", "::1"))
    desk.hear(GivePlaceBack("NEVER TAKEN", "::1"))
    assert manager.places.taken == 1
    assert await desk.answer(TakePlace("B", "::1")) is True
    desk.leave()
    desk.leave()
    assert manager.places.taken == 0
    assert not manager.places.per_peer
    assert not manager.places.per_address
    assert await desk.answer(TakePlace("C", "::1")) is False, "it is gone, and nobody would give it back"


async def test_what_was_reserved_in_quarantine_is_free_again_with_the_end() -> None:
    desk, _, book = _desk()
    await desk.answer(TakeQuarantinePlace())
    await desk.answer(TakeQuarantineBytes(60))
    with pytest.raises(StorageFull):
        await desk.answer(TakeQuarantineBytes(41))
    desk.hear(KeptInQuarantine("ab", 60))
    desk.hear(GiveQuarantineBack(60))
    assert (book.totals.objects, book.totals.bytes) == (1, 60)
    await desk.answer(TakeQuarantinePlace())
    await desk.answer(TakeQuarantineBytes(40))
    desk.leave()
    await book.take_place()
    await book.take_bytes(40)


async def test_what_is_doomed_is_told() -> None:
    desk, _, _ = _desk()
    assert await desk.answer(Doomed(("doomed 1", "kept 2"))) == {"doomed 1"}
