"""An association as a load generator has it: a blocking socket, bytes made beforehand, answers barely read.

Costs tens of microseconds a message, so that what is measured is the server. TCP_QUICKACK is set before every
wait: peers that write an answer in two pieces with Nagle's algorithm on would else be measured by their
client's delayed acknowledgements.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from types import TracebackType
from typing import NamedTuple, Self

from benchmarks.peers import Address
from benchmarks.receiver import MAXIMUM_LENGTH, TIMEOUT_SECONDS, Digested, Receiver
from scp_server.testing.wire import (
    PDV,
    Control,
    ProposedContext,
    Tag,
    associate_rq,
    command_set,
    p_data_header,
    p_data_tf,
    read_answer,
    release_rq,
)

FIRST_PDV_BYTES = 6
READ_BYTES = 65_536
MOVE_DESTINATION = 0x0600
_ELEMENT = struct.Struct("<II").unpack_from
_STATUS = 0x09000000
"""(0000,0900) as group and element lie, in one number."""


class Exchange(NamedTuple):
    """What answered one request."""

    responses: int
    """Pending ones."""
    status: int
    """The final one."""
    dataset_bytes: int


class Fetched(NamedTuple):
    """What a C-GET brought."""

    status: int
    """The final one."""
    instances: int
    dataset_bytes: int


class Rejected(ConnectionError):
    """The peer took no association."""


def _hashable(context: ProposedContext) -> ProposedContext:
    return context._replace(transfer_syntaxes=tuple(context.transfer_syntaxes))


@lru_cache(maxsize=16)
def _associate_rq(address: Address, contexts: tuple[ProposedContext, ...], user_items: bytes) -> bytes:
    return associate_rq(
        contexts,
        called_ae_title=address.called_ae_title,
        calling_ae_title=address.calling_ae_title,
        maximum_length=MAXIMUM_LENGTH,
        user_items=user_items,
    )


class RawAssociation:
    """Associated from the start; released at the end. Raises OSError, ConnectionError, Rejected."""

    def __init__(
        self,
        address: Address,
        contexts: Sequence[ProposedContext],
        user_items: bytes = b"",
        silence_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """`silence_seconds` is how long the peer may send nothing where something is awaited."""
        self._socket = socket.socket()
        self._socket.settimeout(silence_seconds)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._waiting = bytearray()
        try:
            self._socket.connect(("127.0.0.1", address.port))
            self._socket.sendall(_associate_rq(address, tuple(map(_hashable, contexts)), user_items))
            pdu_type, self._answer = self._pdu()
        except BaseException:
            self._socket.close()
            raise
        if pdu_type != 2:
            self._socket.close()
            raise Rejected(f"the association was not accepted: PDU {pdu_type}")

    @cached_property
    def maximum_length(self) -> int:
        """What the peer takes in a P-DATA-TF."""
        return read_answer(self._answer).maximum_length or MAXIMUM_LENGTH

    @cached_property
    def accepted(self) -> frozenset[int]:
        """Ids of the contexts that it accepted."""
        return frozenset(read_answer(self._answer).accepted())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exc is None:
                self._socket.sendall(release_rq())
                while self._pdu()[0] != 6:
                    pass
        finally:
            self.close()

    def close(self) -> None:
        """End it without a release."""
        self._socket.close()

    def perform(self, message: bytes | bytearray) -> Exchange:
        """Send a request, whole, and read up to its final response."""
        self._socket.sendall(message)
        responses = dataset_bytes = 0
        command = b""
        while True:
            pdu_type, body = self._pdu()
            if pdu_type != 4:
                raise ConnectionError(f"PDU {pdu_type} instead of an answer")
            offset = 0
            while offset < len(body):
                length, _, control = struct.unpack_from(">IBB", body, offset)
                fragment = body[offset + FIRST_PDV_BYTES : offset + 4 + length]
                offset += 4 + length
                if not control & Control.COMMAND:
                    dataset_bytes += len(fragment)
                    continue
                command += fragment
                if control & Control.LAST:
                    status = status_of(command)
                    command = b""
                    if status >> 8 != 0xFF:
                        return Exchange(responses, status, dataset_bytes)
                    responses += 1

    def store(self, context_id: int, command: bytes, dataset: Iterable[bytes]) -> int:
        """Send a data set of any length, in pieces that may be as long as `maximum_length`; the status."""
        self._socket.sendall(p_data_tf(PDV(context_id, Control.COMMAND | Control.LAST, command)))
        for fragment, is_last in _with_last(dataset, self.maximum_length - FIRST_PDV_BYTES):
            control = Control.LAST if is_last else Control.DATASET
            header = p_data_header(context_id, control, len(fragment))
            # Both at once: a header by itself would be a segment, and a wakeup of the server, of its own.
            sent = self._socket.sendmsg([header, fragment])
            if sent < len(header):
                self._socket.sendall(header[sent:])
                sent = len(header)
            self._socket.sendall(fragment[sent - len(header) :])
        return self.perform(b"").status

    def fetch(self, message: bytes, digested: Digested | None = None) -> Fetched:
        """Send a C-GET request, and take what comes up to its final response."""
        final: list[int] = []

        def responded(command: dict[int, bytes]) -> None:
            status = int.from_bytes(command[Tag.STATUS], "little")
            if status >> 8 != 0xFF:
                final.append(status)

        def other(pdu_type: int, _: bytes) -> None:
            raise ConnectionError(f"PDU {pdu_type} instead of an answer")

        receiver = Receiver(self._socket, on_pdu=other, on_command=responded, digested=digested)
        self._socket.sendall(message)
        while not final:
            if not receiver.read():
                raise ConnectionError("the server closed the connection")
        return Fetched(final[0], receiver.instances, receiver.dataset_bytes)

    def _pdu(self) -> tuple[int, bytes]:
        header = self._take(6)
        return header[0], self._take(int.from_bytes(header[2:6], "big"))

    def _take(self, size: int) -> bytes:
        waiting = self._waiting
        while len(waiting) < size:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            data = self._socket.recv(READ_BYTES)
            if not data:
                raise ConnectionError("the server closed the connection")
            waiting += data
        taken = bytes(waiting[:size])
        del waiting[:size]
        return taken


def status_of(command: bytes) -> int:
    """Status (0000,0900) of a command set. Raises ConnectionError where there is none."""
    offset = 0
    while offset < len(command):
        tag, length = _ELEMENT(command, offset)
        if tag == _STATUS:
            return int.from_bytes(command[offset + 8 : offset + 10], "little")
        offset += 8 + length
    raise ConnectionError("an answer without a status")


def request(
    context_id: int,
    command_field: int,
    sop_class_uid: str,
    identifier: bytes,
    *,
    message_id: int = 1,
    move_destination: str = "",
) -> bytes:
    """A C-FIND-RQ or the like with its identifier, in two PDUs as most peers send them."""
    elements: dict[int, int | str | bytes] = {
        Tag.AFFECTED_SOP_CLASS_UID: sop_class_uid,
        Tag.COMMAND_FIELD: command_field,
        Tag.MESSAGE_ID: message_id,
        Tag.PRIORITY: 0,
        Tag.DATASET_TYPE: 1,
    }
    if move_destination:
        elements[MOVE_DESTINATION] = move_destination
    return p_data_tf(PDV(context_id, Control.COMMAND | Control.LAST, command_set(elements))) + p_data_tf(
        PDV(context_id, Control.LAST, identifier)
    )


def _with_last(pieces: Iterable[bytes], most_bytes: int) -> Iterator[tuple[memoryview, bool]]:
    """Pieces cut to `most_bytes`, each with whether it is the last of all."""
    waiting: memoryview | None = None
    for piece in pieces:
        for start in range(0, len(piece), most_bytes):
            if waiting is not None:
                yield waiting, False
            waiting = memoryview(piece)[start : start + most_bytes]
    if waiting is not None:
        yield waiting, True


def store_request(
    context_id: int, message_id: int, sop_class_uid: str, sop_instance_uid: str, dataset: bytes
) -> bytes:
    """A C-STORE-RQ whose data set fits into one PDU."""
    command = command_set(
        {
            Tag.AFFECTED_SOP_CLASS_UID: sop_class_uid,
            Tag.COMMAND_FIELD: 1,
            Tag.MESSAGE_ID: message_id,
            Tag.PRIORITY: 0,
            Tag.DATASET_TYPE: 1,
            Tag.AFFECTED_SOP_INSTANCE_UID: sop_instance_uid,
        }
    )
    return p_data_tf(PDV(context_id, Control.COMMAND | Control.LAST, command)) + p_data_tf(
        PDV(context_id, Control.LAST, dataset)
    )
