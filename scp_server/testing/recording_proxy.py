"""A TCP proxy between a real peer and a server: it keeps what was sent, and finds the data sets in it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Self

from scp_server.testing import wire
from scp_server.testing.wire import Control, PDUType, Tag

C_STORE_RQ = 0x0001
READ_BYTES = 1 << 18
STREAM_CLOSE_SECONDS = 10.0


class SentObject(NamedTuple):
    """A C-STORE as it went over the wire."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    dataset: bytes
    glued: bool
    """Command set and data set shared one stream of PDVs, as DICOS scanners send them."""


@dataclass(slots=True)
class Recording:
    """Both directions of one connection, from its first byte on."""

    sent: bytearray = field(default_factory=bytearray)
    answered: bytearray = field(default_factory=bytearray)

    def stores(self) -> list[SentObject]:
        """The whole C-STOREs of this connection, in their order."""
        return self._stores(self.sent)

    def sub_operations(self) -> list[SentObject]:
        """The C-STOREs that the server sent: those of C-GET."""
        return self._stores(self.answered)

    def _stores(self, stream: bytearray) -> list[SentObject]:
        accepted: dict[int, str] = {}
        for pdu_type, body in _pdus(self.answered):
            if pdu_type == PDUType.ASSOCIATE_AC:
                accepted = wire.read_answer(body).accepted()
                break
        return [
            SentObject(
                _text(command.get(Tag.AFFECTED_SOP_CLASS_UID, b"")),
                _text(command.get(Tag.AFFECTED_SOP_INSTANCE_UID, b"")),
                accepted[context_id],
                dataset,
                glued,
            )
            for context_id, command, dataset, glued in _messages(stream)
            if int.from_bytes(command[Tag.COMMAND_FIELD], "little") == C_STORE_RQ
        ]

    def sent_datasets(self) -> list[tuple[bytes, bool]]:
        """Data set of each C-STORE, and whether it was glued: also where the A-ASSOCIATE-AC is malformed."""
        return [
            (dataset, glued)
            for _, command, dataset, glued in _messages(self.sent)
            if int.from_bytes(command[Tag.COMMAND_FIELD], "little") == C_STORE_RQ
        ]

    def statuses(self) -> list[int]:
        """The statuses of the responses, in their order."""
        return [
            int.from_bytes(command[Tag.STATUS], "little")
            for _, command, _, _ in _messages(self.answered)
            if Tag.STATUS in command
        ]


class RecordingProxy:
    """Listens on a loopback port and passes everything on to `host` and `port`. An async context manager."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.recordings: list[Recording] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    @property
    def port(self) -> int:
        """The port it listens on. Raises RuntimeError before it does."""
        if self._server is None:
            raise RuntimeError("the proxy has not been started")
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def drained(self) -> None:
        """Wait until every connection so far has ended, so that the recordings are complete."""
        async with asyncio.timeout(STREAM_CLOSE_SECONDS):
            await asyncio.gather(*self._connections, return_exceptions=True)

    def stores(self) -> list[SentObject]:
        """The C-STOREs of every connection."""
        return [store for recording in self.recordings for store in recording.stores()]

    def sub_operations(self) -> list[SentObject]:
        """The C-STOREs that the server sent on any connection."""
        return [store for recording in self.recordings for store in recording.sub_operations()]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
        recording = Recording()
        self.recordings.append(recording)
        onward_reader, onward_writer = await asyncio.open_connection(*self._target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pass_on(reader, onward_writer, recording.sent))
                group.create_task(_pass_on(onward_reader, writer, recording.answered))
        finally:
            writer.close()
            onward_writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: bytearray) -> None:
    try:
        while data := await reader.read(READ_BYTES):
            record += data
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except (ConnectionError, OSError):
        writer.transport.abort()


def _pdus(stream: bytes | bytearray) -> Iterator[tuple[int, bytes]]:
    """The whole PDUs in a stream."""
    view, position = bytes(stream), 0
    while position + 6 <= len(view):
        pdu_type, length = struct.unpack_from(">BxI", view, position)
        end = position + 6 + length
        if end > len(view):
            return
        yield pdu_type, view[position + 6 : end]
        position = end


def _messages(stream: bytes | bytearray) -> Iterator[tuple[int, dict[int, bytes], bytes, bool]]:
    """Context, command elements, data set and whether it was glued, of each whole message in a stream.

    A command set ends at its group length; in the glued framing the data set follows in the same PDVs.
    """
    message = bytearray()
    command_ended = False
    for pdu_type, body in _pdus(stream):
        if pdu_type != PDUType.P_DATA_TF:
            continue
        for context_id, control, fragment in wire.read_pdvs(body):
            message += fragment
            command_ended |= bool(control & Control.COMMAND and control & Control.LAST)
            if not control & Control.LAST:
                continue
            end = 12 + struct.unpack_from("<I", message, 8)[0]
            command = wire.read_command_set(bytes(message[:end]))
            has_dataset = int.from_bytes(command[Tag.DATASET_TYPE], "little") != wire.NO_DATASET
            if control & Control.COMMAND and has_dataset and len(message) == end:
                continue
            glued = has_dataset and (bool(control & Control.COMMAND) or not command_ended)
            yield context_id, command, bytes(message[end:]), glued
            message.clear()
            command_ended = False


def _text(value: bytes) -> str:
    return value.decode("ascii").rstrip("\0 ")
