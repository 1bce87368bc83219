"""Sending what is kept: one part to a `Sender`, as it is stored or in another transfer syntax.

Nothing is decoded where the stored transfer syntax was accepted, and no object is ever held: a piece is read
when the one before it has been sent.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Final, cast

from scp_server.errors import StorageError
from scp_server.index.base import RetrievablePart
from scp_server.interfaces import AcceptedContext, Sender, StoreOutcome, Transcoding
from scp_server.protocol.message import Priority
from scp_server.storage.base import Storage

NO_CONTEXT: Final = "no presentation context that it can be sent on"
CANNOT_READ: Final = "the object cannot be read"
CANNOT_TRANSCODE: Final = "the object cannot be given a transfer syntax that was accepted"
NOT_ANSWERED: Final = "no answer from the destination"


@dataclass(frozen=True, slots=True)
class Source:
    """Where objects come from, and what gives them another transfer syntax, where something does."""

    storage: Storage
    transcoding: Transcoding | None = None

    def targets(self, part: RetrievablePart) -> tuple[str, ...]:
        """The other transfer syntaxes that a part can be sent in, best first."""
        if self.transcoding is None:
            return ()
        return self.transcoding.targets(part.transfer_syntax_uid, dataset_bytes(part))

    async def dataset(self, part: RetrievablePart, transfer_syntax: str) -> AsyncGenerator[bytes, None]:
        """A part's data set. Raises CannotTranscode, StorageError, UnreadableDataset; so do the pieces."""
        stored = self._stored(part)
        if transfer_syntax == part.transfer_syntax_uid or self.transcoding is None:
            return stored
        try:
            return await self.transcoding.start(
                stored, part.transfer_syntax_uid, transfer_syntax, dataset_bytes(part)
            )
        except BaseException:
            await stored.aclose()
            raise

    async def _stored(self, part: RetrievablePart) -> AsyncGenerator[bytes, None]:
        left = dataset_bytes(part)
        pieces = cast(
            AsyncGenerator[bytes, None], self.storage.read(part.location, part.dataset_offset_bytes, left)
        )
        async with aclosing(pieces):
            async for piece in pieces:
                left -= len(piece)
                yield piece
                if not left:
                    return
        if left:
            # Whoever sends these has not sent the last of them: nobody takes a part for the whole.
            raise StorageError(f"the object ends {left} bytes early")


def dataset_bytes(part: RetrievablePart) -> int:
    """How long a part's data set is as it is stored."""
    return part.size_bytes - part.dataset_offset_bytes


def context_for(sender: Sender, source: Source, part: RetrievablePart) -> AcceptedContext | None:
    """The context with the stored transfer syntax, else the best one that the part can be given."""
    contexts = {context.transfer_syntax: context for context in sender.contexts_for(part.sop_class_uid)}
    if part.transfer_syntax_uid in contexts:
        return contexts[part.transfer_syntax_uid]
    targets = source.targets(part) if contexts else ()
    return next((contexts[target] for target in targets if target in contexts), None)


async def send_part(
    sender: Sender,
    context: AcceptedContext,
    source: Source,
    part: RetrievablePart,
    *,
    priority: int = Priority.MEDIUM,
    move_originator: tuple[str, int] | None = None,
    count: Callable[[int], None],
) -> StoreOutcome:
    """C-STORE a part in the transfer syntax of `context`; `count` hears of each number of bytes handed on.

    Raises AssociationError when the association ended by itself. CannotTranscode, OperationRefused and
    StorageError are the object's; after its first bytes they have cost the association.
    """

    async def counted(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for piece in pieces:
            count(len(piece))
            yield piece

    async with AsyncExitStack() as stack:
        pieces = await source.dataset(part, context.transfer_syntax)
        await stack.enter_async_context(aclosing(pieces))
        dataset = await stack.enter_async_context(aclosing(counted(pieces)))
        return await sender.store(
            context,
            sop_class_uid=part.sop_class_uid,
            sop_instance_uid=part.sop_instance_uid,
            dataset=dataset,
            priority=priority,
            move_originator=move_originator,
        )
