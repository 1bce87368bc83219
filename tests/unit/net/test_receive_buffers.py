"""Memory for reads: what is looked at stays as it is, what is not is used again."""

from __future__ import annotations

from scp_server.net.dataset_stream import KEPT_ALIVE_AT_MOST
from scp_server.net.receive_buffers import (
    BUFFER_BYTES,
    COPIED_READ_BYTES,
    LEAST_ROOM_BYTES,
    MOST_BUFFERS,
    ReceiveBuffers,
)


def read(buffers: ReceiveBuffers, value: int, size_bytes: int = BUFFER_BYTES) -> memoryview:
    """What a transport does: so many bytes of one value arrive."""
    room = buffers.room()
    size_bytes = min(size_bytes, len(room))
    room[:size_bytes] = bytes([value]) * size_bytes
    room.release()
    return buffers.take(size_bytes)


def test_what_is_looked_at_does_not_change() -> None:
    buffers = ReceiveBuffers()
    held = [read(buffers, value, COPIED_READ_BYTES + 1000 * value) for value in range(1, 100)]
    for value, view in enumerate(held, start=1):
        assert view == bytes([value]) * len(view)


def test_a_part_of_what_was_read_keeps_it() -> None:
    buffers = ReceiveBuffers()
    part = read(buffers, 1)[100:116]
    for value in range(2, 2 * MOST_BUFFERS):
        read(buffers, value)
    assert part == bytes([1]) * 16


def test_what_nobody_looks_at_any_more_is_used_again() -> None:
    buffers = ReceiveBuffers()
    seen = {id(read(buffers, 1).obj) for _ in range(10)}
    assert len(seen) == 1
    held = [read(buffers, 1) for _ in range(3)]
    more = {id(view.obj) for view in held}
    held.clear()
    assert {id(read(buffers, 1).obj) for _ in range(10)} <= more | seen


def test_reads_share_a_buffer_until_little_room_is_left() -> None:
    buffers = ReceiveBuffers()
    size_bytes = (BUFFER_BYTES - LEAST_ROOM_BYTES) // 4
    held = [read(buffers, 1, size_bytes) for _ in range(5)]
    assert len({id(view.obj) for view in held}) == 1
    assert len(buffers.room()) >= LEAST_ROOM_BYTES


def test_a_small_read_is_copied_and_takes_no_room() -> None:
    buffers = ReceiveBuffers()
    first = len(buffers.room())
    small = read(buffers, 1, COPIED_READ_BYTES - 1)
    assert isinstance(small.obj, bytes)
    assert len(buffers.room()) == first
    read(buffers, 2, COPIED_READ_BYTES - 1)
    assert small == bytes([1]) * len(small)


def test_while_all_buffers_are_looked_at_others_are_made_and_not_kept() -> None:
    buffers = ReceiveBuffers()
    held = [read(buffers, 1) for _ in range(MOST_BUFFERS + 3)]
    assert len({id(view.obj) for view in held}) == len(held)
    kept = {id(view.obj) for view in held[:MOST_BUFFERS]}
    held.clear()
    again = [read(buffers, 1) for _ in range(MOST_BUFFERS)]
    assert {id(view.obj) for view in again} == kept


def test_fragments_of_usual_pdus_are_not_copied_for_the_size_of_a_buffer() -> None:
    assert (16_384 - 12) * KEPT_ALIVE_AT_MOST >= BUFFER_BYTES
