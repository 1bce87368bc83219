"""Messages between the processes of one server: a length of four bytes (big endian), then a pickle.

Both ends are ours, of one version, over a pair of sockets that nobody else has: so a pickle is believed. Its
length is not: one beyond MAX_FRAME_BYTES is a defect, and ends the connection.
"""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Iterator
from typing import BinaryIO, Final

MAX_FRAME_BYTES: Final = 1 << 26
"""Longest message: some MiB of packed headers, of which none that can be read has more than 16."""
_LENGTH: Final = struct.Struct(">I")


class FrameTooLong(ValueError):
    """A message is longer than any may be."""


def encoded(message: object) -> bytes:
    """A message as it is sent. Raises FrameTooLong."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _length_of(data) + data


def _length_of(data: bytes) -> bytes:
    if len(data) > MAX_FRAME_BYTES:
        raise FrameTooLong(f"a message of {len(data)} bytes")
    return _LENGTH.pack(len(data))


class FrameReader:
    """Takes bytes as they come, and gives whole messages."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def feed(self, data: bytes) -> Iterator[object]:
        """The messages that are whole with `data`. Raises FrameTooLong."""
        self._waiting += data
        while len(self._waiting) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._waiting)
            if length > MAX_FRAME_BYTES:
                raise FrameTooLong(f"a message of {length} bytes is announced")
            end = _LENGTH.size + length
            if len(self._waiting) < end:
                return
            message = pickle.loads(memoryview(self._waiting)[_LENGTH.size : end].tobytes())
            del self._waiting[:end]
            yield message


def send(connection: socket.socket, message: object) -> None:
    """Send a message; blocks until it is handed over. Raises FrameTooLong, OSError."""
    connection.sendall(encoded(message))


def receive(stream: BinaryIO) -> object:
    """The next message of a buffered stream; blocks until it is whole.

    Raises EOFError at the end, FrameTooLong, OSError.
    """
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise FrameTooLong(f"a message of {length} bytes is announced")
    return pickle.loads(_exactly(stream, length))


def _exactly(stream: BinaryIO, size_bytes: int) -> bytes:
    data = stream.read(size_bytes)
    if len(data) < size_bytes:
        raise EOFError("the other process has ended")
    return data
