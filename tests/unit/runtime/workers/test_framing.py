"""Messages between processes: whole in any pieces, bounded, and an end is an end."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from scp_server.runtime.workers import framing
from scp_server.runtime.workers.framing import (
    MAX_FRAME_BYTES,
    FrameReader,
    FrameTooLong,
    encoded,
    receive,
    send,
)

MESSAGES: list[object] = ["", ("a", [1, 2]), {"b": b"\0" * 70_000}, None]


@pytest.mark.parametrize("step", [1, 3, 4, 5, 1_000, 10_000_000])
def test_messages_come_out_whole_however_they_are_cut(step: int) -> None:
    reader, data = FrameReader(), b"".join(map(encoded, MESSAGES))
    found = [
        message for start in range(0, len(data), step) for message in reader.feed(data[start : start + step])
    ]
    assert found == MESSAGES


def test_a_length_beyond_the_bound_is_refused_before_its_body() -> None:
    header = struct.pack(">I", MAX_FRAME_BYTES + 1)
    with pytest.raises(FrameTooLong):
        list(FrameReader().feed(header))
    here, there = socket.socketpair()
    with here, there, there.makefile("rb") as stream:
        here.sendall(header)
        with pytest.raises(FrameTooLong):
            receive(stream)


def test_a_message_beyond_the_bound_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "MAX_FRAME_BYTES", 100)
    with pytest.raises(FrameTooLong):
        encoded(b"\0" * 101)


def _send_all(connection: socket.socket) -> None:
    for message in MESSAGES:
        send(connection, message)


def test_a_blocking_end_gets_messages_and_learns_of_the_end() -> None:
    here, there = socket.socketpair()
    with here, there, there.makefile("rb") as stream:
        sender = threading.Thread(target=_send_all, args=(here,))
        sender.start()
        assert [receive(stream) for _ in MESSAGES] == MESSAGES
        sender.join()
        here.sendall(encoded("cut")[:-1])
        here.close()
        with pytest.raises(EOFError):
            receive(stream)
