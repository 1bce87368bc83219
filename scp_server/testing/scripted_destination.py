"""Storage SCPs for tests, which do with each association what they are told: the destinations of C-MOVE."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from scp_server.testing import wire
from scp_server.testing.scripted_peer import ScriptedPeer
from scp_server.testing.wire import PDV, Control, PDUType, Tag


class StorageScript(ScriptedPeer):
    """A storage SCP that does what it is told, one association."""

    request: bytes = b""
    """The A-ASSOCIATE-RQ."""

    async def accept(
        self, *, refused: Sequence[str] = (), malformed: bool = False, maximum_length: int = 16_384
    ) -> None:
        """Accept every context but those of these classes, each in its first transfer syntax.

        `malformed` is how the DICOS toolkit's server says so: contexts in descending order, their items
        declared four bytes too long, those it refuses left out.
        """
        self.request = (await self.read_pdu()).body
        proposed = wire.read_proposed(self.request)
        answers = {
            context.context_id: (3 if context.abstract_syntax in refused else 0, context.transfer_syntaxes[0])
            for context in proposed
        }
        if not malformed:
            await self.send(wire.associate_ac(answers, maximum_length=maximum_length))
            return
        taken = {number: answer for number, answer in sorted(answers.items(), reverse=True) if not answer[0]}
        answer = bytearray(wire.associate_ac(taken, maximum_length=0))
        at = 74
        while at < len(answer):
            length = int.from_bytes(answer[at + 2 : at + 4], "big")
            if answer[at] == wire.ItemType.CONTEXT_AC:
                answer[at + 2 : at + 4] = (length + 4).to_bytes(2, "big")
            at += 4 + length
        await self.send(answer)

    async def read_store(self) -> tuple[dict[int, bytes], bytes] | None:
        """Command set and data set of the next C-STORE-RQ; None when the release was asked for, and given.

        Raises EOFError when the association is aborted.
        """
        command = b""
        data: list[bytes] = []
        while True:
            pdu_type, body = await self.read_pdu()
            if pdu_type == PDUType.RELEASE_RQ:
                await self.send(wire.release_rp())
                return None
            if pdu_type == PDUType.ABORT:
                raise EOFError("the association was aborted")
            assert pdu_type == PDUType.P_DATA_TF, pdu_type
            for self.context_id, control, fragment in wire.read_pdvs(body):
                if control & Control.COMMAND:
                    command += fragment
                    continue
                data.append(fragment)
                if control & Control.LAST:
                    return wire.read_command_set(command), b"".join(data)

    async def respond(self, command: dict[int, bytes], status: int = 0, comment: str = "") -> None:
        """Answer a C-STORE-RQ."""
        message_id = int.from_bytes(command[Tag.MESSAGE_ID], "little")
        answer = wire.c_store_rsp(message_id, status, error_comment=comment)
        await self.send(wire.p_data_tf(PDV(self.context_id, Control.COMMAND | Control.LAST, answer)))

    async def take_all(self, taken: list[bytes] | None = None, status: int = 0, comment: str = "") -> None:
        """Answer every C-STORE with `status`, until the release."""
        while (store := await self.read_store()) is not None:
            if taken is not None:
                taken.append(store[1])
            await self.respond(store[0], status, comment)


Script = Callable[[StorageScript], Awaitable[None]]


@contextlib.asynccontextmanager
async def destination(script: Script) -> AsyncIterator[int]:
    """The port of a storage SCP that follows a script on each association; its failures are the test's."""
    followers: list[asyncio.Task[None]] = []

    async def follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        followers.append(task)
        async with StorageScript(reader, writer, 5) as peer:
            await script(peer)

    server = await asyncio.start_server(follow, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        async with asyncio.timeout(8):
            await asyncio.gather(*followers)
