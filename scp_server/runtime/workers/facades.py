"""What a satellite has in the place of what only the primary can know: each asks it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from scp_server.errors import StorageError
from scp_server.runtime.workers.channel import Channel, ChannelEnded
from scp_server.runtime.workers.messages import (
    Doomed,
    GivePlaceBack,
    GiveQuarantineBack,
    KeptInQuarantine,
    TakePlace,
    TakeQuarantineBytes,
    TakeQuarantinePlace,
)


class RemoteDeletions:
    """The `Deletions` of the storage service."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def doomed(self, wanted: Iterable[str]) -> set[str]:
        """See `Deletions.doomed`."""
        try:
            return await self._channel.ask(Doomed(tuple(wanted)))
        except ChannelEnded as error:
            raise StorageError(str(error)) from error


class RemoteGrants:
    """The `Grants` of the association manager."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def ask(self, calling_ae_title: str, host: str) -> asyncio.Future[bool]:
        """See `Grants.ask`."""
        return self._channel.asked(TakePlace(calling_ae_title, host))

    def give_back(self, calling_ae_title: str, host: str) -> None:
        """See `Grants.give_back`."""
        self._channel.tell(GivePlaceBack(calling_ae_title, host))


class RemoteRoom:
    """The `QuarantineRoom`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def take_place(self) -> None:
        """See `QuarantineRoom.take_place`."""
        await self._take(TakeQuarantinePlace())

    async def take_bytes(self, size_bytes: int) -> None:
        """See `QuarantineRoom.take_bytes`."""
        await self._take(TakeQuarantineBytes(size_bytes))

    async def _take(self, question: TakeQuarantinePlace | TakeQuarantineBytes) -> None:
        try:
            await self._channel.ask(question)
        except ChannelEnded as error:
            raise StorageError(str(error)) from error

    def give_back(self, size_bytes: int) -> None:
        """See `QuarantineRoom.give_back`."""
        self._channel.tell(GiveQuarantineBack(size_bytes))

    def kept(self, object_id: str, size_bytes: int) -> None:
        """See `QuarantineRoom.kept`."""
        self._channel.tell_from_thread(KeptInQuarantine(object_id, size_bytes))
