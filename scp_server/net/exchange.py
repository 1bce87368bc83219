"""A request of ours with its data set, and the single response to it: C-ECHO and C-STORE."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Protocol

from scp_server.errors import AssociationError, AssociationLost, LocalProtocolError
from scp_server.interfaces import AcceptedContext
from scp_server.net.responses import ResponseReceiver, SingleResponse
from scp_server.protocol.association import Association
from scp_server.protocol.message import Request, Response


class Requesting(Protocol):
    """A connection that requests are sent on, whoever asked for its association."""

    association: Association
    sending: asyncio.Lock
    """Held while a message is handed on in pieces: nothing may come between them (PS3.8 E.1)."""

    @property
    def error(self) -> AssociationError | None:
        """What ended the association."""
        ...

    def expect_responses(self, request: Request, receiver: ResponseReceiver) -> None:
        """Hand the responses to `request` to `receiver`. Raises AssociationError when there will be none."""
        ...

    def forget_responses(self, message_id: int) -> None:
        """Nobody waits for them any more."""
        ...

    def flush(self) -> None:
        """Write what is queued."""
        ...

    async def writable(self) -> None:
        """Wait until the peer has taken most of what was written."""
        ...

    def abort_association(self, text: str) -> None:
        """End it."""
        ...


async def perform(
    connection: Requesting,
    context: AcceptedContext,
    request: Request,
    dataset: AsyncIterable[bytes] | None,
    progress: Callable[[int], None] | None,
    *,
    response_seconds: float,
    glued: bool = False,
) -> Response:
    """Send a request, with its data set if it has one, and wait for its single response.

    `glued` sends command set and data set in one PDV stream.

    Raises AssociationError, and LocalProtocolError for what cannot be sent. Whatever ends it early aborts the
    association, unless nothing was sent yet: what `dataset` raises before its first piece, for one. Who gives
    `dataset` closes it.
    """
    pieces = None if dataset is None else aiter(dataset)
    first = b"" if pieces is None else await anext(pieces, b"")
    receiver = SingleResponse()
    async with connection.sending:
        connection.expect_responses(request, receiver)
        now = asyncio.get_running_loop().time()
        try:
            connection.association.send_command(context.context_id, request, now, glued=glued)
        except LocalProtocolError:
            connection.forget_responses(request.message_id)
            raise  # Nothing was queued.
        try:
            if pieces is not None:
                await _send_dataset(connection, context, first, pieces, progress)
            connection.flush()
        except BaseException as error:
            _give_up(connection, request, error)
            raise
    try:
        return await _answer(receiver.future, response_seconds)
    except BaseException as error:
        _give_up(connection, request, error)
        raise
    finally:
        connection.forget_responses(request.message_id)


def _give_up(connection: Requesting, request: Request, error: BaseException) -> None:
    """Half a message, or an answer that nobody waits for: nothing can follow it."""
    connection.forget_responses(request.message_id)
    if connection.error is None:
        connection.abort_association(f"given up: {type(error).__name__}")


async def _answer(answer: asyncio.Future[Response], seconds: float) -> Response:
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError as error:
        raise AssociationLost(f"no response within {seconds:g} s") from error


async def _send_dataset(
    connection: Requesting,
    context: AcceptedContext,
    waiting: bytes,
    pieces: AsyncIterator[bytes],
    progress: Callable[[int], None] | None,
) -> None:
    """Send one piece behind, so that the last one is known to be the last."""
    loop = asyncio.get_running_loop()
    async for piece in pieces:
        if connection.error is not None:
            raise connection.error
        connection.association.send_dataset(context.context_id, waiting, loop.time(), last=False)
        connection.flush()
        await connection.writable()
        # The peer may read as fast as we write: what it sends meanwhile must still be seen.
        await asyncio.sleep(0)
        if progress is not None:
            progress(len(waiting))
        waiting = piece
    if connection.error is not None:
        raise connection.error
    connection.association.send_dataset(context.context_id, waiting, loop.time(), last=True)
    if progress is not None:
        progress(len(waiting))
