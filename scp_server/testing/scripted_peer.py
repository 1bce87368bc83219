"""A DICOM peer for tests that sends exactly what it is told, however wrong, and reads what comes back."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from types import TracebackType
from typing import Literal, NamedTuple, Self

from scp_server.testing import wire
from scp_server.testing.encoded_object import EncodedObject, LargeObject
from scp_server.testing.wire import Answer, Control, PDUType, ProposedContext, Tag, UserIdentity

DEFAULT_TIMEOUT_SECONDS = 10.0
DEFAULT_FRAGMENT_BYTES = 131_066
"""Fragments of the data set where the other side sets no maximum and none is asked for."""
PDV_HEADER_BYTES = 6
STORAGE_TRANSFER_SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
Framing = Literal["standard", "glued"]


class UnexpectedAnswer(AssertionError):
    """The other side did something else than the test expected."""


class ReceivedPDU(NamedTuple):
    """A PDU's type and what follows its length."""

    pdu_type: int
    body: bytes


class Rejection(NamedTuple):
    """A-ASSOCIATE-RJ (PS3.8 9.3.4)."""

    result: int
    source: int
    reason: int


class AbortReceived(NamedTuple):
    """A-ABORT (PS3.8 9.3.8)."""

    source: int
    reason: int


class Response(NamedTuple):
    """A DIMSE response: its context and the elements of its command set, by element number."""

    context_id: int
    elements: dict[int, bytes]

    @property
    def status(self) -> int:
        """(0000,0900)."""
        return int.from_bytes(self.elements[Tag.STATUS], "little")

    @property
    def error_comment(self) -> str:
        """(0000,0902), empty where there is none."""
        return self.elements.get(Tag.ERROR_COMMENT, b"").decode("ascii").rstrip()

    @property
    def message_id_responded_to(self) -> int:
        """(0000,0120)."""
        return int.from_bytes(self.elements[Tag.MESSAGE_ID_RESPONDED_TO], "little")


class ScriptedPeer:
    """One TCP connection, and as much of DICOM as a test wants.

    Every wait ends after `timeout_seconds` (TimeoutError). Raises EOFError when the stream ends before an
    awaited PDU does, ConnectionError when it is reset, and UnexpectedAnswer for another PDU than expected.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._timeout_seconds = timeout_seconds
        self._answer = Answer("", {}, 0)
        self._proposed: dict[int, str] = {}
        self._message_id = 0

    @classmethod
    async def connect(cls, host: str, port: int, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> Self:
        """Open a connection; raises OSError."""
        async with asyncio.timeout(timeout_seconds):
            reader, writer = await asyncio.open_connection(host, port)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(reader, writer, timeout_seconds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def answer(self) -> Answer:
        """The last A-ASSOCIATE-AC received."""
        return self._answer

    # ---- bytes

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send these bytes; waits while the other side does not read."""
        self._writer.write(data)
        async with asyncio.timeout(self._timeout_seconds):
            await self._writer.drain()

    async def drip(self, data: bytes, *, step_bytes: int = 1, pause_seconds: float = 0.0) -> None:
        """Send `data` in pieces of `step_bytes`, each handed to the network by itself."""
        for start in range(0, len(data), step_bytes):
            await self.send(data[start : start + step_bytes])
            await asyncio.sleep(pause_seconds)

    async def read_pdu(self, timeout_seconds: float | None = None) -> ReceivedPDU:
        """The next PDU, whole."""
        async with asyncio.timeout(self._timeout_seconds if timeout_seconds is None else timeout_seconds):
            header = await self._reader.readexactly(6)
            pdu_type, length = struct.unpack(">BxI", header)
            return ReceivedPDU(pdu_type, await self._reader.readexactly(length))

    async def wait_eof(self, timeout_seconds: float | None = None) -> bytes:
        """Read until the other side has closed, and return what it still sent. A reset is ConnectionError."""
        async with asyncio.timeout(self._timeout_seconds if timeout_seconds is None else timeout_seconds):
            return await self._reader.read()

    def half_close(self) -> None:
        """End our direction of the stream (FIN); reading goes on."""
        self._writer.write_eof()

    async def close(self) -> None:
        """Close the connection; what was sent is still delivered."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            pass

    async def reset(self) -> None:
        """Close with a TCP RST, as a crashed peer's machine does; nothing where the other side was faster."""
        linger = struct.pack("ii", 1, 0)
        with suppress(OSError):
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()
        await self.close()

    # ---- association

    async def associate(
        self,
        contexts: Iterable[ProposedContext],
        *,
        application_context: str = wire.DICOM_APPLICATION_CONTEXT,
        called_ae_title: str = "ANY-SCP",
        calling_ae_title: str = "SCRIPTED",
        maximum_length: int = 16384,
        user_identity: UserIdentity | None = None,
        user_items: bytes = b"",
    ) -> Answer:
        """Request an association and expect it to be accepted."""
        proposed = list(contexts)
        self._proposed = {context.context_id: context.abstract_syntax for context in proposed}
        await self.send(
            wire.associate_rq(
                proposed,
                application_context=application_context,
                called_ae_title=called_ae_title,
                calling_ae_title=calling_ae_title,
                maximum_length=maximum_length,
                user_identity=user_identity,
                user_items=user_items,
            )
        )
        return await self.expect_accept()

    async def expect_accept(self) -> Answer:
        """The next PDU is an A-ASSOCIATE-AC."""
        self._answer = wire.read_answer(await self._expect(PDUType.ASSOCIATE_AC))
        return self._answer

    async def expect_reject(self) -> Rejection:
        """The next PDU is an A-ASSOCIATE-RJ."""
        body = await self._expect(PDUType.ASSOCIATE_RJ)
        return Rejection(*body[1:4])

    async def expect_abort(self) -> AbortReceived:
        """The next PDU is an A-ABORT."""
        body = await self._expect(PDUType.ABORT)
        return AbortReceived(*body[2:4])

    async def release(self) -> None:
        """Release, and expect the confirmation."""
        await self.send(wire.release_rq())
        await self._expect(PDUType.RELEASE_RP)

    async def abort(self, source: int = 0, reason: int = 0) -> None:
        """Send an A-ABORT."""
        await self.send(wire.abort(source, reason))

    # ---- messages

    async def echo(self, context_id: int | None = None) -> int:
        """C-ECHO; returns the status."""
        context_id = self._context_for(wire.VERIFICATION) if context_id is None else context_id
        command = wire.c_echo_rq(self._next_message_id())
        await self.send(wire.p_data_tf(wire.PDV(context_id, Control.COMMAND | Control.LAST, command)))
        return (await self.read_response()).status

    async def store(
        self,
        stored: EncodedObject | LargeObject,
        *,
        framing: Framing = "standard",
        cuts: Sequence[int] = (),
        context_id: int | None = None,
        message_id: int | None = None,
    ) -> int:
        """C-STORE; returns the status. See `send_store` for the arguments."""
        await self.send_store(
            stored, framing=framing, cuts=cuts, context_id=context_id, message_id=message_id
        )
        return (await self.read_response()).status

    async def send_store(
        self,
        stored: EncodedObject | LargeObject,
        *,
        framing: Framing = "standard",
        cuts: Sequence[int] = (),
        context_id: int | None = None,
        message_id: int | None = None,
    ) -> None:
        """Send a C-STORE-RQ and its data set, and wait for nothing.

        `cuts` are the lengths of the first fragments (0 is an empty one); the rest is cut at the other side's
        maximum. In the `glued` framing of DICOS scanners command set and data set share one stream of PDVs,
        a single one where the other side announced no maximum.
        """
        if context_id is None:
            context_id = self._context_for(stored.sop_class_uid, stored.transfer_syntax_uid)
        message_id = self._next_message_id() if message_id is None else message_id
        glued = framing == "glued"
        command = wire.c_store_rq(message_id, stored.sop_class_uid, stored.sop_instance_uid, dicos=glued)
        if glued and self._answer.maximum_length == 0 and not cuts:
            size = len(command) + stored.size_bytes
            await self.send(wire.p_data_header(context_id, Control.COMMAND | Control.LAST, size))
            for chunk in chain([command], stored.chunks()):
                await self.send(chunk)
            return
        if not glued:
            await self.send(wire.p_data_tf(wire.PDV(context_id, Control.COMMAND | Control.LAST, command)))
        stream = chain([command], stored.chunks()) if glued else stored.chunks()
        control = Control.COMMAND if glued else Control.DATASET
        for fragment, last in _fragments(stream, cuts, self._fragment_bytes()):
            if last:
                control |= Control.LAST
            await self.send(wire.p_data_header(context_id, control, len(fragment)) + fragment)
            control = Control.DATASET

    async def read_response(self) -> Response:
        """The next DIMSE response's command set; its data set, if any, is left to `read_pdu`."""
        command = bytearray()
        while True:
            for context_id, control, fragment in wire.read_pdvs(await self._expect(PDUType.P_DATA_TF)):
                if not control & Control.COMMAND:
                    raise UnexpectedAnswer(f"a data set's fragment of {len(fragment)} bytes in a command set")
                command += fragment
                if control & Control.LAST:
                    return Response(context_id, wire.read_command_set(bytes(command)))

    def _context_for(self, abstract_syntax: str, transfer_syntax: str | None = None) -> int:
        for context_id, syntax in self._answer.accepted().items():
            if self._proposed.get(context_id) == abstract_syntax and transfer_syntax in (None, syntax):
                return context_id
        raise UnexpectedAnswer(f"no accepted context for {abstract_syntax} in {transfer_syntax}")

    def _fragment_bytes(self) -> int:
        maximum = self._answer.maximum_length
        return max(1, maximum - PDV_HEADER_BYTES) if maximum else DEFAULT_FRAGMENT_BYTES

    def _next_message_id(self) -> int:
        self._message_id += 1
        return self._message_id

    async def _expect(self, pdu_type: PDUType) -> bytes:
        received = await self.read_pdu()
        if received.pdu_type != pdu_type:
            raise UnexpectedAnswer(
                f"expected {pdu_type.name}, received type {received.pdu_type}: {received.body[:64].hex(' ')}"
            )
        return received.body


def storage_contexts(
    *stored: EncodedObject | LargeObject, transfer_syntaxes: Sequence[str] = ()
) -> list[ProposedContext]:
    """Contexts for these objects, one for each pair of SOP class and transfer syntax, and one for C-ECHO."""
    pairs = dict.fromkeys((one.sop_class_uid, one.transfer_syntax_uid) for one in stored)
    contexts = [ProposedContext(1, wire.VERIFICATION, STORAGE_TRANSFER_SYNTAXES[1:])]
    for number, (abstract_syntax, syntax) in enumerate(pairs, start=1):
        contexts.append(ProposedContext(2 * number + 1, abstract_syntax, transfer_syntaxes or (syntax,)))
    return contexts


def _fragments(
    chunks: Iterable[bytes], cuts: Sequence[int], maximum_bytes: int
) -> Iterator[tuple[bytes, bool]]:
    """Cut a stream anew; each fragment with whether it is the last, which may be empty only if asked for."""
    sizes = iter(cuts)
    size = next(sizes, maximum_bytes)
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        while len(buffer) > size:
            yield bytes(buffer[:size]), False
            del buffer[:size]
            size = next(sizes, maximum_bytes)
    yield bytes(buffer), True
