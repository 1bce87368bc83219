"""PS3.8 Table 9-10 as this package has it, against pynetdicom's."""

from __future__ import annotations

from itertools import product

import pytest
from pynetdicom.fsm import ACTIONS, TRANSITION_TABLE

from scp_server.protocol.state_machine import NEXT_STATES, TRANSITIONS, Action, State, StateEvent


def _event(name: str) -> StateEvent:
    return StateEvent(int(name.removeprefix("Evt")))


def _state(name: str) -> State:
    return State(int(name.removeprefix("Sta")))


@pytest.mark.parametrize(("event", "state"), list(product(StateEvent, State)))
def test_every_cell_of_table_9_10_equals_the_oracle(event: StateEvent, state: State) -> None:
    expected = TRANSITION_TABLE.get((f"Evt{event.value}", f"Sta{state.value}"))
    action = TRANSITIONS.get((event, state))
    assert (action.value if action else None) == expected


def test_the_oracle_has_no_cell_outside_13_states_and_19_events() -> None:
    assert {(_event(event), _state(state)) for event, state in TRANSITION_TABLE} == set(TRANSITIONS)


@pytest.mark.parametrize("action", list(Action))
def test_every_action_ends_in_the_states_of_the_oracle(action: Action) -> None:
    _, _, ends = ACTIONS[action.value]
    expected = (ends,) if isinstance(ends, str) else ends
    assert NEXT_STATES[action] == tuple(_state(name) for name in expected)


def test_the_oracle_knows_no_other_action() -> None:
    assert set(ACTIONS) == {action.value for action in Action}
