"""A null sink: accepts every association, answers every request with 0x0000, keeps nothing.

    python -m benchmarks.sink PORT

Nothing is parsed but the lengths of PDUs and PDVs, and every answer is the same bytes, so that what is
measured against it is the load generator and loopback. There is a process for each association.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from functools import lru_cache
from typing import Final

from benchmarks.peers import MAXIMUM_PDU_BYTES, MOST_SENDERS
from scp_server.testing.wire import (
    NO_DATASET,
    PDV,
    Control,
    PDUType,
    Tag,
    associate_ac,
    command_set,
    p_data_tf,
    read_proposed,
    release_rp,
)

BUFFER_BYTES = 262_144
_PDU_HEADER_BYTES: Final = 6
_COMMAND_PEEK_BYTES: Final = 256
_C_ECHO_RQ: Final = b"\0\0\0\1\2\0\0\0\x30\0"
"""Command Field (0000,0100) of a C-ECHO-RQ, as it lies in the command set: no data set follows."""


def _answer(command_field: int, context_id: int = 1) -> bytes:
    command = command_set(
        {
            Tag.COMMAND_FIELD: command_field,
            Tag.MESSAGE_ID_RESPONDED_TO: 1,
            Tag.DATASET_TYPE: NO_DATASET,
            Tag.STATUS: 0,
        }
    )
    return p_data_tf(PDV(context_id, Control.COMMAND | Control.LAST, command))


class SinkAssociation:
    """One association: `feed` takes what arrived and returns what is to be answered."""

    def __init__(self) -> None:
        self._held = b""
        """Of a PDU whose beginning has not come whole."""
        self._skip = 0
        """Bytes of a data set still to be passed over."""
        self._ends = False
        """Whether the data set, and with it the request, ends with these."""
        self._stored = _answer(0x8001)
        self._echoed = _answer(0x8030)

    def feed(self, data: memoryview) -> bytes:
        """Pass over what arrived. Each PDU has one PDV, as the load generator sends them."""
        answers = b""
        position = 0
        if self._held:
            data = memoryview(self._held + data)
            self._held = b""
        while True:
            if self._skip:
                passed = min(self._skip, len(data) - position)
                self._skip -= passed
                position += passed
                if self._skip:
                    return answers
                if self._ends:
                    answers += self._stored
            left = len(data) - position
            if left < 2 * _PDU_HEADER_BYTES:
                # A-RELEASE-RQ is the shortest PDU, of ten bytes.
                if left >= _PDU_HEADER_BYTES and data[position] == PDUType.RELEASE_RQ:
                    return answers + release_rp()
                self._held = bytes(data[position:])
                return answers
            length = int.from_bytes(data[position + 2 : position + 6], "big")
            end = position + _PDU_HEADER_BYTES + length
            if data[position] == PDUType.P_DATA_TF and not data[position + 11] & Control.COMMAND:
                self._ends = bool(data[position + 11] & Control.LAST)
                self._skip = length - 6
                position += 12
                continue
            if end > len(data):
                self._held = bytes(data[position:])
                return answers
            answers += self._whole(data[position:end])
            position = end

    def _whole(self, pdu: memoryview) -> bytes:
        if pdu[0] == PDUType.P_DATA_TF:
            return self._echoed if _C_ECHO_RQ in bytes(pdu[:_COMMAND_PEEK_BYTES]) else b""
        if pdu[0] == PDUType.ASSOCIATE_RQ:
            return _accept(bytes(pdu[_PDU_HEADER_BYTES:]))
        return b""


@lru_cache(maxsize=16)
def _accept(request: bytes) -> bytes:
    contexts = {each.context_id: (0, each.transfer_syntaxes[0]) for each in read_proposed(request)}
    return associate_ac(contexts, maximum_length=MAXIMUM_PDU_BYTES)


def serve(listener: socket.socket) -> None:
    """Take one association after the other, for ever."""
    buffer = memoryview(bytearray(BUFFER_BYTES))
    while True:
        connection, _ = listener.accept()
        with connection, suppress(ConnectionError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            association = SinkAssociation()
            while size := connection.recv_into(buffer):
                if answers := association.feed(buffer[:size]):
                    connection.sendall(answers)


def main() -> None:
    """Listen, and serve in several processes; whoever started the first ends their group."""
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    for _ in range(MOST_SENDERS - 1):
        if not os.fork():
            break
    serve(listener)


if __name__ == "__main__":
    main()
