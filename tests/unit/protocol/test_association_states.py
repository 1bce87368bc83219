"""Table 9-10 as an association lives it: every cell that a peer, a timer or a primitive can reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import pytest

from scp_server.errors import LocalProtocolError
from scp_server.protocol.association import Association, Role, State
from scp_server.protocol.events import (
    Aborted,
    AssociateAccepted,
    AssociateRejected,
    AssociateRequested,
    CommandReceived,
    ReleaseConfirmed,
    ReleaseRequested,
    TransportClosed,
)
from scp_server.protocol.message import CEchoRSP
from scp_server.protocol.pdu import AssociateRJ, RejectReason
from scp_server.protocol.state_machine import NEXT_STATES, TRANSITIONS, Action, StateEvent, StateMachine
from scp_server.testing import wire
from scp_server.testing.association_driver import (
    SMALL_LIMITS,
    VERIFICATION_CONTEXT_ID,
    acceptor_in,
    answer,
    answer_bytes,
    drain,
    echo_bytes,
    request,
    request_bytes,
    requestor_in,
    sent,
)

NOW = 5.0
ACCEPTOR_STATES = [State(n) for n in (2, 3, 6, 7, 8, 10, 12, 13)]
REQUESTOR_STATES = [State(n) for n in (5, 6, 7, 8, 9, 11, 13)]
PLACES = [(Role.ACCEPTOR, state) for state in ACCEPTOR_STATES]
PLACES += [(Role.REQUESTOR, state) for state in REQUESTOR_STATES]
OVERSIZED = SMALL_LIMITS.max_associate_pdu_bytes + 1

BYTES: dict[StateEvent, bytes] = {
    StateEvent.EVT3: answer_bytes(),
    StateEvent.EVT4: wire.associate_rj(1, 1, 7),
    StateEvent.EVT6: request_bytes(),
    StateEvent.EVT10: echo_bytes(),
    StateEvent.EVT12: wire.release_rq(),
    StateEvent.EVT13: wire.release_rp(),
    StateEvent.EVT16: wire.abort(2, 4),
}
INVALID: dict[str, tuple[bytes, int]] = {
    # name: bytes, the provider's reason
    "unknown PDU type 0": (bytes(6), 1),
    "unknown PDU type 8": (b"\x08" + bytes(9), 1),
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", 1),
    "TLS": (bytes.fromhex("16030100c8010000c40303"), 1),
    "A-ASSOCIATE-RQ too long": (b"\1\0" + OVERSIZED.to_bytes(4, "big"), 6),
    "A-ASSOCIATE-AC too long": (b"\2\0" + OVERSIZED.to_bytes(4, "big"), 6),
    "A-ASSOCIATE-RQ of 4 GiB": (b"\1\0\xff\xff\xff\xff", 6),
    "A-ASSOCIATE-RJ of length 5": (b"\3\0\0\0\0\5", 6),
    "A-RELEASE-RQ of length 0": (b"\5\0\0\0\0\0", 6),
    "A-RELEASE-RP of length 3": (b"\6\0\0\0\0\3", 6),
    "A-ABORT of 4 GiB": (b"\7\0\xff\xff\xff\xff", 6),
    "P-DATA-TF of length 0": (b"\4\0\0\0\0\0", 6),
    "P-DATA-TF of length 5": (b"\4\0\0\0\0\5", 6),
}
EXERCISED: set[tuple[StateEvent, State]] = set()


@pytest.fixture(autouse=True)
def cells(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[StateEvent, State, Action]]]:
    """The cells that the code under test moves through, in order."""
    moves: list[tuple[StateEvent, State, Action]] = []
    advance = StateMachine.advance

    def recording(machine: StateMachine, event: StateEvent) -> Action:
        state = machine.state
        action = advance(machine, event)
        moves.append((event, state, action))
        return action

    monkeypatch.setattr(StateMachine, "advance", recording)
    yield moves
    EXERCISED.update((event, state) for event, state, _ in moves)


def bring(role: Role, state: State) -> Association:
    return acceptor_in(state, now=0.0) if role is Role.ACCEPTOR else requestor_in(state, now=0.0)


def expect_effect(association: Association, action: Action, reason: int, had_output: bytes) -> None:
    """The visible effect of the actions that a peer's PDU can cause."""
    events, output = drain(association), sent(association)
    kinds = [type(event) for event in events]
    assert output.startswith(had_output)
    output = output[len(had_output) :]
    match action:
        case Action.AA_1:
            assert output == wire.abort(0, 0)
            assert [(e.source, e.reason, e.by_peer) for e in events if isinstance(e, Aborted)] == [
                (0, 0, False)
            ]
        case Action.AA_8:
            assert output == wire.abort(2, reason)
            assert [(e.source, e.reason, e.by_peer) for e in events if isinstance(e, Aborted)] == [
                (2, reason, False)
            ]
        case Action.AA_7:
            assert (output, events) == (wire.abort(2, reason), [])
        case Action.AA_6 | Action.AA_2 | Action.AA_5 | Action.AR_5:
            assert (output, [kind for kind in kinds if kind is not TransportClosed]) == (b"", [])
        case Action.AA_3:
            assert (output, events) == (b"", [Aborted(2, 4, by_peer=True)])
        case Action.AE_3:
            assert (output, kinds) == (b"", [AssociateAccepted])
        case Action.AE_4:
            assert (output, events) == (b"", [AssociateRejected(AssociateRJ(1, 1, 7))])
        case Action.AE_6:
            assert (output, kinds) == (b"", [AssociateRequested])
        case Action.DT_2 | Action.AR_6:
            assert (output, kinds) == (b"", [CommandReceived])
        case Action.AR_2 | Action.AR_8:
            assert (output, events) == (b"", [ReleaseRequested(collision=action is Action.AR_8)])
        case Action.AR_3 | Action.AR_10:
            assert (output, events) == (b"", [ReleaseConfirmed()])
        case Action.AA_4:
            assert (output, kinds) == (b"", [TransportClosed])
        case _:
            pytest.fail(f"{action} was not expected")
    assert association.write_shutdown_wanted is (association.state is State.STA13)
    assert association.closed is (association.state is State.STA1)


def pending_output(association: Association) -> bytes:
    """In Sta13 the A-ABORT of the way there still waits, so that AA-7 has somewhere to go."""
    return wire.abort(0, 0) if association.state is State.STA13 else b""


@pytest.mark.parametrize(("place", "event"), list(product(PLACES, BYTES)))
def test_every_pdu_in_every_state_does_what_the_table_says(
    place: tuple[Role, State], event: StateEvent, cells: list[tuple[StateEvent, State, Action]]
) -> None:
    """PS3.8 9.2."""
    association = bring(*place)
    waiting = pending_output(association)
    association.receive_data(BYTES[event], NOW)
    action = TRANSITIONS[event, place[1]]
    assert cells[-1] == (event, place[1], action)
    assert association.state in NEXT_STATES[action]
    expect_effect(association, action, 2, waiting)


@pytest.mark.parametrize(("place", "name"), list(product(PLACES, INVALID)))
def test_an_invalid_pdu_in_every_state_does_what_the_table_says(
    place: tuple[Role, State], name: str, cells: list[tuple[StateEvent, State, Action]]
) -> None:
    association = bring(*place)
    waiting = pending_output(association)
    data, reason = INVALID[name]
    association.receive_data(data, NOW)
    assert cells[-1][:2] == (StateEvent.EVT19, place[1])
    expect_effect(association, cells[-1][2], reason, waiting)
    # Framing is lost: nothing that follows means anything.
    association.receive_data(wire.abort() + request_bytes() * 3, NOW)
    assert association.state is State.STA13
    assert (drain(association), sent(association)) == ([], b"")


@pytest.mark.parametrize("place", PLACES)
def test_the_end_of_the_transport_in_every_state_is_the_last_event(
    place: tuple[Role, State], cells: list[tuple[StateEvent, State, Action]]
) -> None:
    role, state = place
    association = bring(role, state)
    waiting = pending_output(association)
    association.receive_eof(NOW)
    assert cells[-1] == (StateEvent.EVT17, state, TRANSITIONS[StateEvent.EVT17, state])
    expected = state not in (State.STA2, State.STA3, State.STA5, State.STA6, State.STA7)
    assert drain(association) == [TransportClosed(expected)]
    assert (association.state, association.closed, sent(association)) == (State.STA1, True, waiting)
    association.receive_eof(NOW)
    association.receive_data(request_bytes(), NOW)
    assert (drain(association), association.next_timer()) == ([], None)


@pytest.mark.parametrize("place", PLACES)
def test_after_the_peer_s_abort_nothing_more_is_delivered(place: tuple[Role, State]) -> None:
    association = bring(*place)
    association.receive_data(wire.abort() + echo_bytes() + request_bytes(), NOW)
    assert all(isinstance(event, Aborted) for event in drain(association))
    assert association.closed
    association.receive_data(echo_bytes(), NOW)
    assert drain(association) == []
    association.receive_eof(NOW)
    assert drain(association) == [TransportClosed(expected=True)]


@pytest.mark.parametrize("place", [p for p in PLACES if p[1] in (State.STA2, State.STA13)])
def test_artim_s_expiry_closes_the_transport(
    place: tuple[Role, State], cells: list[tuple[StateEvent, State, Action]]
) -> None:
    association = bring(*place)
    deadline = association.next_timer()
    assert deadline == SMALL_LIMITS.artim_seconds
    association.handle_timer(deadline - 0.001)
    assert not association.closed
    association.handle_timer(deadline)
    assert cells[-1] == (StateEvent.EVT18, place[1], Action.AA_2)
    assert (association.closed, drain(association)) == (True, [])


# --- primitives -----------------------------------------------------------------------------------------

PRIMITIVES: dict[StateEvent, Callable[[Association], None]] = {
    StateEvent.EVT1: lambda a: a.request(request(), NOW),
    StateEvent.EVT2: lambda a: a.transport_connected(NOW),
    StateEvent.EVT7: lambda a: a.accept(answer(request(), 16384), NOW),
    StateEvent.EVT8: lambda a: a.reject(RejectReason.CALLED_AE_TITLE_NOT_RECOGNIZED, NOW),
    StateEvent.EVT9: lambda a: a.send_command(
        VERIFICATION_CONTEXT_ID, CEchoRSP(message_id_being_responded_to=1, status=0), NOW
    ),
    StateEvent.EVT11: lambda a: a.release(NOW),
    StateEvent.EVT14: lambda a: a.release_response(NOW),
    StateEvent.EVT15: lambda a: a.abort(NOW, text="because"),
}
OUTPUT: dict[Action, bytes] = {
    Action.AE_1: b"",
    Action.AE_8: wire.associate_rj(1, 1, 7),
    Action.AR_1: wire.release_rq(),
    Action.AR_4: wire.release_rp(),
    Action.AR_9: wire.release_rp(),
    Action.AA_1: wire.abort(0, 0),
    Action.AA_2: b"",
}
ALL_PLACES = [*PLACES, (Role.REQUESTOR, State.STA1), (Role.REQUESTOR, State.STA4)]


@pytest.mark.parametrize(("place", "event"), list(product(ALL_PLACES, PRIMITIVES)))
def test_every_primitive_in_every_state_does_what_the_table_says_or_is_refused(
    place: tuple[Role, State], event: StateEvent, cells: list[tuple[StateEvent, State, Action]]
) -> None:
    association = bring(*place)
    waiting = pending_output(association)
    action = TRANSITIONS.get((event, place[1]))
    moved = len(cells)
    if action is None:
        with pytest.raises(LocalProtocolError):
            PRIMITIVES[event](association)
        assert (association.state, sent(association), drain(association)) == (place[1], waiting, [])
        return
    PRIMITIVES[event](association)
    assert cells[moved:] == [(event, place[1], action)]
    assert association.state in NEXT_STATES[action]
    output = sent(association)
    if action in OUTPUT:
        assert output == OUTPUT[action]
    else:
        assert output[0] == {Action.AE_2: 1, Action.AE_7: 2, Action.DT_1: 4, Action.AR_7: 4}[action]
    aborted = [Aborted(0, 0, by_peer=False, text="because")] if event is StateEvent.EVT15 else []
    assert drain(association) == aborted
    assert association.write_shutdown_wanted is (association.state is State.STA13)


def test_a_requestor_whose_connection_fails_hears_so() -> None:
    association = requestor_in(State.STA4)
    with pytest.raises(LocalProtocolError):
        association.receive_data(b"\2", NOW)
    association.receive_eof(NOW)
    assert drain(association) == [TransportClosed(expected=False)]
    with pytest.raises(LocalProtocolError):
        association.request(request(), NOW)


def test_an_acceptor_cannot_request_even_when_it_is_over() -> None:
    association = acceptor_in(State.STA2)
    association.receive_eof(NOW)
    assert association.state is State.STA1
    with pytest.raises(LocalProtocolError):
        association.request(request(), NOW)


def test_every_cell_of_the_table_was_exercised() -> None:
    """Runs last in this file; meaningless when only a part of it is selected."""
    if len(EXERCISED) < len(TRANSITIONS) // 2:
        pytest.skip("only with the whole file")
    assert set(TRANSITIONS) - EXERCISED == set()


# --- release collision ----------------------------------------------------------------------------------


def test_on_a_release_collision_the_requestor_answers_first() -> None:
    """PS3.8 7.2.2.7."""
    requestor, acceptor = requestor_in(State.STA7), acceptor_in(State.STA7)
    for association in (requestor, acceptor):
        association.receive_data(wire.release_rq(), NOW)
        assert drain(association) == [ReleaseRequested(collision=True)]
    assert (requestor.state, acceptor.state) == (State.STA9, State.STA10)
    with pytest.raises(LocalProtocolError):
        acceptor.release_response(NOW)
    requestor.release_response(NOW)
    acceptor.receive_data(sent(requestor), NOW)
    assert (requestor.state, acceptor.state) == (State.STA11, State.STA12)
    assert drain(acceptor) == [ReleaseConfirmed()]
    acceptor.release_response(NOW)
    requestor.receive_data(sent(acceptor), NOW)
    assert drain(requestor) == [ReleaseConfirmed()]
    assert requestor.closed
    requestor.receive_eof(NOW)
    acceptor.receive_eof(NOW)
    assert drain(requestor) == drain(acceptor) == [TransportClosed(expected=True)]


# --- Sta13 ----------------------------------------------------------------------------------------------


def test_p_data_s_event_fires_at_its_header_and_its_body_is_skipped() -> None:
    association = acceptor_in(State.STA8)
    echo = echo_bytes()
    association.receive_data(echo[:6], NOW)
    assert sent(association) == wire.abort(2, 2)
    association.receive_data(echo[6:] + wire.abort(), NOW)
    assert association.closed


def test_what_follows_a_fatal_pdu_in_the_same_bytes_is_judged_in_sta13() -> None:
    association = acceptor_in(State.STA6)
    association.receive_data(wire.release_rp() + echo_bytes() + request_bytes(), NOW)
    assert sent(association) == wire.abort(2, 2) + wire.abort(2, 2)
    assert len(drain(association)) == 1


def test_the_rest_of_a_bad_p_data_tf_is_skipped_and_framing_goes_on() -> None:
    association = acceptor_in(State.STA6)
    bad = wire.p_data_tf(wire.PDV(77, wire.Control.LAST, bytes(100)))
    association.receive_data(bad[:50], NOW)
    assert sent(association) == wire.abort(2, 6)
    association.receive_data(bad[50:] + wire.abort(), NOW)
    assert association.closed


def test_an_endless_row_of_requests_in_sta13_is_answered_once() -> None:
    association = acceptor_in(State.STA13)
    for _ in range(1000):
        association.receive_data(request_bytes(), NOW)
    assert sent(association) == wire.abort(0, 0) + wire.abort(2, 2)
    association.receive_data(request_bytes(), NOW)
    assert sent(association) == b""


def test_nothing_is_sent_once_the_write_side_may_be_shut() -> None:
    association = acceptor_in(State.STA3)
    association.reject(RejectReason.LOCAL_LIMIT_EXCEEDED, NOW)
    assert sent(association) == wire.associate_rj(2, 3, 2)
    assert association.write_shutdown_wanted
    association.receive_data(request_bytes() + bytes(6), NOW)
    assert (sent(association), association.state) == (b"", State.STA13)


# --- negotiation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7])
def test_a_maximum_length_that_no_fragment_fits_is_refused(length: int) -> None:
    acceptor, requestor = acceptor_in(State.STA2), requestor_in(State.STA5)
    acceptor.receive_data(request_bytes(maximum_length=length), NOW)
    requestor.receive_data(answer_bytes(length), NOW)
    assert sent(acceptor) == wire.abort(0, 0)
    assert sent(requestor) == wire.abort(2, 6)


def test_a_broken_request_in_sta2_is_aborted_by_the_service_user() -> None:
    association = acceptor_in(State.STA2)
    association.receive_data(wire.pdu(1, bytes(68)), NOW)
    assert sent(association) == wire.abort(0, 0)


def test_a_broken_answer_in_sta5_is_aborted_by_the_provider() -> None:
    association = requestor_in(State.STA5)
    association.receive_data(wire.pdu(2, bytes(20)), NOW)
    assert sent(association) == wire.abort(2, 6)


def test_the_requestor_counts_only_contexts_it_proposed() -> None:
    assert set(requestor_in(State.STA6).accepted_contexts) == {1, 3}


def test_a_p_data_tf_above_what_was_announced_is_refused_at_its_header() -> None:
    for association in (acceptor_in(State.STA6), requestor_in(State.STA6)):
        association.receive_data(b"\4\0" + (SMALL_LIMITS.max_pdu_bytes + 1).to_bytes(4, "big"), NOW)
        assert sent(association) == wire.abort(2, 6)
        assert association.state is State.STA13


@pytest.mark.parametrize(
    ("name", "expected"),
    [(wire.DICOM_APPLICATION_CONTEXT, False), (wire.DICOS_V03_APPLICATION_CONTEXT, True)],
)
def test_a_dicos_application_context_makes_a_dicos_association(name: str, expected: bool) -> None:
    association = acceptor_in(State.STA2)
    association.receive_data(request_bytes(name), NOW)
    assert association.is_dicos is expected
