"""A request with its data set, and the single response to it: C-ECHO and C-STORE."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable

from scp_server.errors import AssociationLost
from scp_server.interfaces import AcceptedContext
from scp_server.net.requestor_connection import RequestorConnection
from scp_server.net.responses import SingleResponse
from scp_server.protocol.message import Request, Response


async def perform(
    connection: RequestorConnection,
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

    Raises AssociationError; whatever ends it early aborts the association.
    """
    receiver = SingleResponse()
    connection.expect_responses(request, receiver)
    try:
        now = asyncio.get_running_loop().time()
        connection.association.send_command(context.context_id, request, now, glued=glued)
        try:
            if dataset is not None:
                await _send_dataset(connection, context, dataset, progress)
            connection.flush()
            return await _answer(receiver.future, response_seconds)
        except BaseException as error:
            # Half a message, or an answer that nobody waits for: nothing can follow it.
            if connection.error is None:
                connection.abort_association(f"given up: {type(error).__name__}")
            raise
    finally:
        connection.forget_responses(request.message_id)


async def _answer(answer: asyncio.Future[Response], seconds: float) -> Response:
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError as error:
        raise AssociationLost(f"no response within {seconds:g} s") from error


async def _send_dataset(
    connection: RequestorConnection,
    context: AcceptedContext,
    dataset: AsyncIterable[bytes],
    progress: Callable[[int], None] | None,
) -> None:
    """Send one chunk behind, so that the last one is known to be the last."""
    loop = asyncio.get_running_loop()
    waiting = b""
    async for chunk in dataset:
        if waiting:
            if connection.error is not None:
                raise connection.error
            connection.association.send_dataset(context.context_id, waiting, loop.time(), last=False)
            connection.flush()
            await connection.writable()
            if progress is not None:
                progress(len(waiting))
        waiting = chunk
    if connection.error is not None:
        raise connection.error
    connection.association.send_dataset(context.context_id, waiting, loop.time(), last=True)
    if progress is not None:
        progress(len(waiting))
