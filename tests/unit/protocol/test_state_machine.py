from __future__ import annotations

import pytest

from scp_server.errors import LocalProtocolError
from scp_server.protocol.state_machine import (
    NEXT_STATES,
    TRANSITIONS,
    Action,
    Role,
    State,
    StateEvent,
    StateMachine,
)

FROM_THE_PEER = {StateEvent(n) for n in (3, 4, 6, 10, 12, 13, 16, 17, 19)}


def test_the_table_has_no_empty_cell_that_bytes_from_the_peer_can_reach() -> None:
    open_states = set(State) - {State.STA1, State.STA4}
    assert {(event, state) for event in FROM_THE_PEER for state in open_states} <= set(TRANSITIONS)


def test_an_empty_cell_is_a_local_protocol_error_and_changes_nothing() -> None:
    machine = StateMachine(Role.ACCEPTOR)
    for refuse in (machine.check, machine.advance):
        with pytest.raises(LocalProtocolError, match="Evt9 cannot happen in Sta1"):
            refuse(StateEvent.EVT9)
    assert machine.state is State.STA1


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize(("event", "state"), list(TRANSITIONS))
def test_a_cell_leads_to_a_state_of_its_action(event: StateEvent, state: State, role: Role) -> None:
    machine = StateMachine(role)
    machine.state = state
    machine.check(event)
    assert machine.advance(event) is TRANSITIONS[event, state]
    assert machine.state in NEXT_STATES[TRANSITIONS[event, state]]


@pytest.mark.parametrize(("role", "expected"), [(Role.REQUESTOR, State.STA9), (Role.ACCEPTOR, State.STA10)])
def test_a_release_collision_parts_by_role(role: Role, expected: State) -> None:
    machine = StateMachine(role)
    machine.state = State.STA7
    assert machine.advance(StateEvent.EVT12) is Action.AR_8
    assert machine.state is expected


def test_an_acceptable_request_awaits_the_local_response() -> None:
    machine = StateMachine(Role.ACCEPTOR)
    machine.advance(StateEvent.EVT5)
    machine.advance(StateEvent.EVT6)
    assert machine.state is State.STA3


def test_every_action_stands_in_the_table() -> None:
    assert set(TRANSITIONS.values()) == set(Action)
