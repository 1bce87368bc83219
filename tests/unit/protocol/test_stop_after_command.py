"""`receive_data(..., stop_after_command=True)`: the same events, no more than can be performed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scp_server.protocol.association import Association, State
from scp_server.protocol.events import CommandReceived, Event
from scp_server.testing import wire
from scp_server.testing.association_driver import (
    acceptor_in,
    cut_at,
    drain,
    echo_bytes,
    normalised,
    sent,
    store_command,
)
from scp_server.testing.wire import PDV, Control

STORE = wire.p_data_tf(PDV(3, Control.COMMAND | Control.LAST, store_command())) + wire.p_data_tf(
    PDV(3, Control.DATASET, bytes(200)), PDV(3, Control.LAST, b"abcdef")
)
GLUED = wire.p_data_tf(PDV(3, Control.COMMAND | Control.LAST, store_command(0, dicos=True) + bytes(50)))
IN_ONE_PDU = wire.p_data_tf(
    *(PDV(1, Control.COMMAND | Control.LAST, wire.c_echo_rq(number)) for number in range(5))
)
SPLIT = wire.p_data_tf(*(PDV(1, Control.COMMAND, bytes([byte])) for byte in wire.c_echo_rq(3)))
BROKEN = wire.p_data_tf(PDV(99, Control.COMMAND, b"no such context"))
PARTS = [STORE, GLUED, IN_ONE_PDU, SPLIT, echo_bytes(9), wire.release_rq(), wire.abort(), BROKEN, b"\x0f" * 8]


def _step_by_step(association: Association, pieces: list[bytes]) -> list[Event]:
    """Feed until all is taken, looking at what came of it each time."""
    events: list[Event] = []
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            taken = association.receive_data(rest, 0.0, stop_after_command=True)
            assert 0 < taken <= len(rest), "it must go on"
            new = drain(association)
            assert sum(isinstance(event, CommandReceived) for event in new) <= 1
            events += new
            rest = rest[taken:]
    return events


@given(
    parts=st.lists(st.sampled_from(PARTS), max_size=6),
    positions=st.lists(st.integers(0, 2000), max_size=5),
)
def test_the_events_and_the_answer_are_those_of_feeding_all_at_once(
    parts: list[bytes], positions: list[int]
) -> None:
    data = b"".join(parts)
    at_once, stepwise = acceptor_in(State.STA6), acceptor_in(State.STA6)
    assert at_once.receive_data(data, 0.0) == len(data)
    events = _step_by_step(stepwise, cut_at(positions)(data))
    assert normalised(events) == normalised(drain(at_once))
    assert sent(stepwise) == sent(at_once)
    assert stepwise.state is at_once.state


@pytest.mark.parametrize("flood", [echo_bytes() * 50, IN_ONE_PDU * 10])
def test_of_a_flood_of_requests_one_is_taken_at_a_time(flood: bytes) -> None:
    association = acceptor_in(State.STA6)
    taken = association.receive_data(flood, 0.0, stop_after_command=True)
    assert taken < len(echo_bytes()) + 12
    assert len(drain(association)) == 1


def test_a_data_set_behind_its_command_is_taken_whole() -> None:
    association = acceptor_in(State.STA6)
    taken = association.receive_data(STORE, 0.0, stop_after_command=True)
    assert association.receive_data(STORE[taken:], 0.0, stop_after_command=True) == len(STORE) - taken
    assert association.message_in_progress is False
