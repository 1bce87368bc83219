"""Messages both ways: two associations that talk to each other, what is sent, and what is owed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scp_server.errors import LocalProtocolError
from scp_server.protocol.association import Association, Role, State
from scp_server.protocol.events import (
    AssociateAccepted,
    AssociateRequested,
    CommandReceived,
    DatasetFragment,
    Event,
    ReleaseConfirmed,
    ReleaseRequested,
    TransportClosed,
)
from scp_server.protocol.limits import Limits
from scp_server.protocol.message import (
    CCancelRQ,
    CEchoRQ,
    CEchoRSP,
    CFindRQ,
    CFindRSP,
    CStoreRQ,
    CStoreRSP,
    Message,
)
from scp_server.protocol.pdu import AssociateAC
from scp_server.testing import wire
from scp_server.testing.association_driver import (
    CT_IMAGE_STORAGE,
    SMALL_LIMITS,
    STORAGE_CONTEXT_ID,
    VERIFICATION_CONTEXT_ID,
    acceptor_in,
    answer,
    byte_by_byte,
    converse,
    cut_at,
    drain,
    echo_bytes,
    normalised,
    request,
    request_bytes,
    requestor_in,
    sent,
    store_command,
    whole,
)
from scp_server.testing.wire import PDV, Control

ECHO = CEchoRQ(message_id=1, affected_sop_class_uid=wire.VERIFICATION)
STORE = CStoreRQ(
    message_id=2, affected_sop_class_uid=CT_IMAGE_STORAGE, affected_sop_instance_uid="1.2.3", has_dataset=True
)
STORED = CStoreRSP(message_id_being_responded_to=2, status=0)


def pair(
    requestor_maximum: int = 16384, acceptor_maximum: int | None = 16384
) -> tuple[Association, Association]:
    """A requestor and an acceptor that have agreed."""
    requestor = Association(Role.REQUESTOR, Limits(), now=0)
    acceptor = Association(Role.ACCEPTOR, Limits(), now=0)
    requestor.request(request(requestor_maximum), 0)
    requestor.transport_connected(0)
    acceptor.receive_data(sent(requestor), 0)
    (asked,) = drain(acceptor)
    assert isinstance(asked, AssociateRequested)
    acceptor.accept(answer(asked.request, acceptor_maximum), 0)
    requestor.receive_data(sent(acceptor), 0)
    (accepted,) = drain(requestor)
    assert isinstance(accepted, AssociateAccepted)
    return requestor, acceptor


def carry(source: Association, target: Association) -> list[Event]:
    target.receive_data(sent(source), 0)
    return normalised(drain(target))


# --- two of us ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
def test_echo_and_store_travel_in_both_directions(flip: bool) -> None:
    requestor, acceptor = pair()
    scu, scp = (acceptor, requestor) if flip else (requestor, acceptor)
    data = bytes(range(256)) * 300
    scu.send_command(VERIFICATION_CONTEXT_ID, ECHO, 0)
    assert carry(scu, scp) == [CommandReceived(VERIFICATION_CONTEXT_ID, ECHO)]
    echoed = CEchoRSP(message_id_being_responded_to=1, status=0)
    scp.send_command(VERIFICATION_CONTEXT_ID, echoed, 0)
    assert carry(scp, scu) == [CommandReceived(VERIFICATION_CONTEXT_ID, echoed)]
    scu.send_command(STORAGE_CONTEXT_ID, STORE, 0)
    scu.send_dataset(STORAGE_CONTEXT_ID, data, 0, last=True)
    assert carry(scu, scp) == [
        CommandReceived(STORAGE_CONTEXT_ID, STORE),
        DatasetFragment(STORAGE_CONTEXT_ID, memoryview(data), True),
    ]
    scp.send_command(STORAGE_CONTEXT_ID, STORED, 0)
    assert carry(scp, scu) == [CommandReceived(STORAGE_CONTEXT_ID, STORED)]
    assert (scu.outstanding_requests, scp.outstanding_requests) == (0, 0)
    requestor.release(0)
    assert carry(requestor, acceptor) == [ReleaseRequested()]
    acceptor.release_response(0)
    assert carry(acceptor, requestor) == [ReleaseConfirmed()]
    assert requestor.closed
    acceptor.receive_eof(0)
    assert drain(acceptor) == [TransportClosed(expected=True)]


def test_the_side_asked_to_release_may_still_send_and_the_asker_takes_it() -> None:
    """PS3.8 7.2."""
    requestor, acceptor = pair()
    requestor.release(0)
    carry(requestor, acceptor)
    acceptor.send_command(VERIFICATION_CONTEXT_ID, ECHO, 0)
    acceptor.release_response(0)
    assert carry(acceptor, requestor) == [CommandReceived(VERIFICATION_CONTEXT_ID, ECHO), ReleaseConfirmed()]


def test_a_message_in_hand_is_visible_until_it_is_whole_or_the_association_over() -> None:
    association = acceptor_in(State.STA6)
    seen = [association.message_in_progress]
    for piece in (echo_bytes()[:30], echo_bytes()[30:], echo_bytes()[:30]):
        association.receive_data(piece, 0)
        seen.append(association.message_in_progress)
    association.abort(0)
    seen.append(association.message_in_progress)
    assert seen == [False, True, False, True, False]


# --- what is sent ---------------------------------------------------------------------------------------


def fragments(output: bytes, maximum_length: int) -> list[PDV]:
    """The PDVs in `output`, each PDU checked against the peer's maximum length."""
    pdvs, position = [], 0
    while position < len(output):
        pdu_type, length = output[position], int.from_bytes(output[position + 2 : position + 6], "big")
        assert pdu_type == wire.PDUType.P_DATA_TF
        assert not maximum_length or length <= maximum_length
        (pdv,) = wire.read_pdvs(output[position + 6 : position + 6 + length])
        pdvs.append(pdv)
        position += 6 + length
    return pdvs


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.binary(max_size=300), max_size=6),
    maximum_length=st.sampled_from([8, 9, 16, 17, 100, 4096, 16384, 0]),
)
def test_data_sets_go_out_in_even_fragments_of_the_peer_s_size(
    pieces: list[bytes], maximum_length: int
) -> None:
    """PS3.8 D.1."""
    association = acceptor_in(State.STA2)
    association.receive_data(request_bytes(maximum_length=maximum_length), 0)
    association.accept(answer(request(), 4096), 0)
    assert association.peer_maximum_length == maximum_length
    sent(association)
    association.send_command(STORAGE_CONTEXT_ID, STORE, 0)
    for piece in pieces:
        association.send_dataset(STORAGE_CONTEXT_ID, piece, 0, last=False)
    association.send_dataset(STORAGE_CONTEXT_ID, b"", 0, last=True)
    pdvs = fragments(sent(association), maximum_length)
    commands = [pdv for pdv in pdvs if pdv.control & Control.COMMAND]
    data = pdvs[len(commands) :]
    assert b"".join(pdv.fragment for pdv in commands).endswith(b"1.2.3\0")
    assert b"".join(pdv.fragment for pdv in data) == b"".join(pieces)
    for kind in (commands, data):
        assert [bool(pdv.control & Control.LAST) for pdv in kind] == [False] * (len(kind) - 1) + [True]
        assert all(len(pdv.fragment) % 2 == 0 for pdv in kind[:-1])


@given(
    pieces=st.lists(st.binary(max_size=300), min_size=1, max_size=4),
    maximum_length=st.sampled_from([0, 8, 64, 110, 128, 130, 4096]),
)
def test_a_glued_message_is_one_stream_that_an_acceptor_reads_alike(
    pieces: list[bytes], maximum_length: int
) -> None:
    requestor, acceptor = pair(acceptor_maximum=maximum_length)
    requestor.send_command(STORAGE_CONTEXT_ID, STORE, 0, glued=True)
    assert sent(requestor) == b"", "the command set waits for its data set"
    for number, piece in enumerate(pieces, start=1):
        requestor.send_dataset(STORAGE_CONTEXT_ID, piece, 0, last=number == len(pieces))
    acceptor.receive_data(sent(requestor), 0)
    command, *fragments = drain(acceptor)
    assert isinstance(command, CommandReceived)
    assert command.message == STORE
    # Where the command set fills its PDVs exactly, or the first piece has no even part, nothing shows.
    assert command.glued or maximum_length or len(pieces[0]) < 2
    assert b"".join(one.data for one in fragments if isinstance(one, DatasetFragment)) == b"".join(pieces)
    (last,) = [one for one in fragments if isinstance(one, DatasetFragment) and one.last]
    assert last is fragments[-1]
    assert acceptor.state is State.STA6


@pytest.mark.parametrize(("maximum_length", "expected"), [(0, 131072), (None, 131072), (1 << 20, 131072)])
def test_without_a_limit_pdus_of_128_kib_are_sent(maximum_length: int | None, expected: int) -> None:
    requestor, _ = pair(acceptor_maximum=maximum_length)
    assert requestor.peer_maximum_length == (maximum_length or 0)
    requestor.send_command(STORAGE_CONTEXT_ID, STORE, 0)
    sent(requestor)
    requestor.send_dataset(STORAGE_CONTEXT_ID, bytes(300_000), 0, last=True)
    sizes = [len(pdv.fragment) + 6 for pdv in fragments(sent(requestor), 0)]
    assert sizes[:2] == [expected, expected]


def test_data_sets_are_sent_without_copying() -> None:
    requestor, _ = pair()
    data = bytes(100_000)
    requestor.send_command(STORAGE_CONTEXT_ID, STORE, 0)
    requestor.send_dataset(STORAGE_CONTEXT_ID, data, 0, last=True)
    output = requestor.data_to_send()
    views = [piece for piece in output if isinstance(piece, memoryview)]
    assert sum(map(len, views)) == len(data)
    assert all(view.obj is data for view in views)
    assert requestor.data_to_send() == []


def test_nothing_comes_between_a_command_set_and_its_data_set() -> None:
    requestor, _ = pair()
    with pytest.raises(LocalProtocolError):
        requestor.send_dataset(STORAGE_CONTEXT_ID, b"ab", 0, last=True)
    requestor.send_command(STORAGE_CONTEXT_ID, STORE, 0)
    sent(requestor)
    attempts: list[Callable[[], None]] = [
        lambda: requestor.send_command(VERIFICATION_CONTEXT_ID, ECHO, 0),
        lambda: requestor.send_dataset(VERIFICATION_CONTEXT_ID, b"ab", 0, last=True),
        lambda: requestor.release(0),
    ]
    for attempt in attempts:
        with pytest.raises(LocalProtocolError):
            attempt()
    assert (requestor.state, sent(requestor)) == (State.STA6, b"")
    requestor.send_dataset(STORAGE_CONTEXT_ID, b"ab", 0, last=True)
    requestor.release(0)


def test_a_context_that_was_not_accepted_cannot_be_used() -> None:
    requestor, _ = pair()
    with pytest.raises(LocalProtocolError, match="context 5"):
        requestor.send_command(5, ECHO, 0)


def test_rejected_contexts_are_not_accepted_ones() -> None:
    acceptor = acceptor_in(State.STA3)
    full = answer(request(), 4096)
    contexts = (full.presentation_contexts[0], type(full.presentation_contexts[0])(STORAGE_CONTEXT_ID, 3, ""))
    name = full.application_context_name
    acceptor.accept(AssociateAC("A", "B", name, contexts, full.user_information), 0)
    assert set(acceptor.accepted_contexts) == {VERIFICATION_CONTEXT_ID}
    acceptor.receive_data(wire.p_data_tf(PDV(STORAGE_CONTEXT_ID, Control.COMMAND, b"ab")), 0)
    assert sent(acceptor)[-10:] == wire.abort(2, 6)


# --- what is owed ---------------------------------------------------------------------------------------


def test_outstanding_requests_count_both_sides_and_pending_responses_do_not_settle() -> None:
    requestor, acceptor = pair()
    find = CFindRQ(message_id=9, affected_sop_class_uid=CT_IMAGE_STORAGE)
    steps: list[tuple[Association, Association, Message, int]] = [
        (requestor, acceptor, find, 1),
        (requestor, acceptor, ECHO, 2),
        (requestor, acceptor, CCancelRQ(message_id_being_responded_to=9), 2),
        (acceptor, requestor, CFindRSP(message_id_being_responded_to=9, status=0xFF00), 2),
        (acceptor, requestor, CFindRSP(message_id_being_responded_to=9, status=0xFF01), 2),
        (acceptor, requestor, CFindRSP(message_id_being_responded_to=9, status=0xFE00), 1),
        (acceptor, requestor, ECHO, 2),
        (acceptor, requestor, CEchoRSP(message_id_being_responded_to=1, status=0), 1),
        (requestor, acceptor, CEchoRSP(message_id_being_responded_to=1, status=0x0110), 0),
        (requestor, acceptor, CEchoRSP(message_id_being_responded_to=1, status=0), 0),
    ]
    for source, target, message, expected in steps:
        source.send_command(STORAGE_CONTEXT_ID, message, 0)
        carry(source, target)
        assert (source.outstanding_requests, target.outstanding_requests) == (expected, expected)


# --- cuts -----------------------------------------------------------------------------------------------

GLUED = wire.p_data_tf(PDV(3, Control.COMMAND | Control.LAST, store_command(4, dicos=True) + bytes(500)))
GLUED_IN_PIECES = wire.p_data_tf(PDV(3, Control.COMMAND, store_command(5, dicos=True) + bytes(500)))
GLUED_IN_PIECES += wire.p_data_tf(PDV(3, Control.LAST, bytes(30)))
NORMAL = wire.p_data_tf(
    PDV(3, Control.COMMAND | Control.LAST, store_command(6)),
    PDV(3, Control.DATASET, b""),
    PDV(3, Control.LAST, b"xy"),
)
CONVERSATIONS: dict[str, list[bytes]] = {
    "echo and release": [request_bytes(), echo_bytes(), wire.release_rq()],
    "stores in both framings": [request_bytes(), NORMAL + GLUED + NORMAL, GLUED_IN_PIECES + echo_bytes()],
    "two requests at once": [request_bytes(), echo_bytes(1) + echo_bytes(2), wire.abort()],
    "data before the answer": [request_bytes() + echo_bytes()],
    "data after a release": [request_bytes(), wire.release_rq() + echo_bytes() + request_bytes()],
    "unknown PDU type": [request_bytes(), echo_bytes() + b"\x0b" + bytes(20) + echo_bytes()],
    "bad context": [request_bytes(), wire.p_data_tf(PDV(9, Control.LAST, bytes(90))) + wire.abort()],
    "oversized": [request_bytes(), NORMAL + b"\4\0\0\1\0\0" + bytes(50)],
    "no association": [wire.release_rq() + request_bytes() + request_bytes()],
}


@pytest.mark.parametrize("name", list(CONVERSATIONS))
def test_cuts_change_neither_events_nor_answers(name: str) -> None:
    turns = CONVERSATIONS[name]
    expected = converse(acceptor_in(State.STA2), turns)
    assert expected.events
    assert converse(acceptor_in(State.STA2), turns, byte_by_byte) == expected


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(list(CONVERSATIONS)),
    positions=st.lists(st.integers(0, 5000), max_size=15),
    mutations=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=3),
)
def test_cuts_change_nothing_even_in_broken_conversations(
    name: str, positions: list[int], mutations: list[tuple[int, int]]
) -> None:
    turns = [bytearray(turn) for turn in CONVERSATIONS[name]]
    for position, value in mutations:
        turn = turns[position % len(turns)]
        turn[position % len(turn)] = value
    data = [bytes(turn) for turn in turns]
    expected = converse(acceptor_in(State.STA2), data, whole)
    assert converse(acceptor_in(State.STA2), data, cut_at(positions)) == expected


# --- memory ---------------------------------------------------------------------------------------------


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_lengths_of_4_gib_allocate_nothing() -> None:
    association = acceptor_in(State.STA6, limits=Limits(max_pdu_bytes=0))
    start = wire.p_data_header(3, Control.COMMAND | Control.LAST, 2**32 - 7) + store_command()
    piece = bytes(1 << 16)

    def stream() -> None:
        association.receive_data(start, 0)
        for _ in range(200):
            association.receive_data(piece, 0)
            while association.next_event() is not None:
                pass

    assert peak_bytes(stream) < 50_000
    assert association.state is State.STA6
    assert association.message_in_progress


@pytest.mark.parametrize("state", [State.STA2, State.STA6, State.STA13])
def test_a_flood_that_makes_no_sense_is_dropped(state: State) -> None:
    association = acceptor_in(state)
    junk = b"\xff" * 65536

    def flood() -> None:
        for _ in range(200):
            association.receive_data(junk, 0)

    assert peak_bytes(flood) < 50_000
    assert association.state is State.STA13


def test_a_declared_request_of_the_greatest_size_costs_what_has_arrived() -> None:
    association = acceptor_in(State.STA2)
    length = SMALL_LIMITS.max_associate_pdu_bytes
    assert peak_bytes(lambda: association.receive_data(b"\1\0" + length.to_bytes(4, "big") + b"x", 0)) < 5000


def test_an_associate_pdu_in_the_wrong_state_is_not_kept() -> None:
    association = acceptor_in(State.STA6)
    length = SMALL_LIMITS.max_associate_pdu_bytes
    association.receive_data(b"\1\0" + length.to_bytes(4, "big"), 0)
    piece = bytes(length // 16)

    def arrive() -> None:
        for _ in range(16):
            association.receive_data(piece, 0)

    assert peak_bytes(arrive) < 20_000
    assert sent(association) == wire.abort(2, 2)


def test_a_flood_of_commands_is_cut_at_the_limit() -> None:
    limits = Limits()
    association = acceptor_in(State.STA6, limits=limits)
    pdu = wire.p_data_tf(PDV(1, Control.COMMAND, bytes(16378)))

    def flood() -> None:
        for _ in range(1000):
            association.receive_data(pdu, 0)

    assert peak_bytes(flood) < 4 * limits.max_command_bytes
    assert sent(association) == wire.abort(2, 6)


def test_requestor_takes_events_in_any_cut() -> None:
    scp = acceptor_in(State.STA6)
    scp.send_command(VERIFICATION_CONTEXT_ID, CEchoRSP(message_id_being_responded_to=1, status=0), 0)
    turn = sent(scp) + wire.release_rq()
    expected = converse(requestor_in(State.STA6), [turn])
    assert [type(event) for event in expected.events] == [CommandReceived, ReleaseRequested]
    assert converse(requestor_in(State.STA6), [turn], byte_by_byte) == expected
