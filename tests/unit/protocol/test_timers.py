"""Deadlines of an association, with time as an argument."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scp_server.protocol.association import Association, Role, State
from scp_server.protocol.events import Aborted
from scp_server.protocol.limits import Limits
from scp_server.protocol.message import CEchoRQ, CEchoRSP, CStoreRSP
from scp_server.testing import wire
from scp_server.testing.association_driver import (
    STORAGE_CONTEXT_ID,
    VERIFICATION_CONTEXT_ID,
    acceptor_in,
    answer,
    drain,
    echo_bytes,
    request,
    request_bytes,
    requestor_in,
    sent,
    store_command,
)
from scp_server.testing.wire import PDV, Control

LIMITS = Limits(
    artim_seconds=10, response_seconds=30, idle_seconds=300, dimse_seconds=60, minimum_bytes_per_second=100
)
ECHO_RESPONSE = CEchoRSP(message_id_being_responded_to=1, status=0)


def expect_abort_at(association: Association, deadline: float, text: str) -> None:
    """The association asks to be called at `deadline`, does nothing before, and aborts then."""
    assert association.next_timer() == pytest.approx(deadline)
    association.handle_timer(deadline - 0.001)
    assert association.state is not State.STA13
    association.handle_timer(deadline)
    assert sent(association) == wire.abort(0, 0)
    (event,) = [event for event in drain(association) if isinstance(event, Aborted)]
    assert not event.by_peer
    assert text in event.text
    assert association.next_timer() == pytest.approx(deadline + LIMITS.artim_seconds)


def begin_store(association: Association, now: float, data: bytes = b"ab") -> None:
    association.receive_data(
        wire.p_data_tf(
            PDV(STORAGE_CONTEXT_ID, Control.COMMAND | Control.LAST, store_command()),
            PDV(STORAGE_CONTEXT_ID, Control.DATASET, data),
        ),
        now,
    )


def go_on(association: Association, now: float, data: bytes, control: Control = Control.DATASET) -> None:
    association.receive_data(wire.p_data_tf(PDV(STORAGE_CONTEXT_ID, control, data)), now)


# --- the state's deadline -------------------------------------------------------------------------------


def test_artim_is_not_restarted_by_bytes() -> None:
    """PS3.8 9.1.5."""
    association = Association(Role.ACCEPTOR, LIMITS, now=100)
    for i, byte in enumerate(request_bytes()[:9]):
        association.receive_data(bytes([byte]), 101 + i)
        assert association.next_timer() == 110
    association.handle_timer(110)
    assert association.closed
    assert sent(association) == b""


def test_artim_ends_with_the_whole_request() -> None:
    assert acceptor_in(State.STA3, limits=LIMITS).next_timer() is None


def test_artim_in_sta13_runs_from_its_beginning_whatever_comes() -> None:
    association = acceptor_in(State.STA6, limits=LIMITS)
    association.abort(50)
    for i in range(5):
        association.receive_data(echo_bytes() + request_bytes(), 51 + i)
    assert association.next_timer() == 60


def test_a_time_of_0_means_never() -> None:
    limits = Limits(
        artim_seconds=0, response_seconds=0, idle_seconds=0, dimse_seconds=0, minimum_bytes_per_second=100
    )
    for state in (State.STA2, State.STA6, State.STA7, State.STA13):
        association = acceptor_in(state, limits=limits)
        assert association.next_timer() is None
        association.receive_data(b"\4\0\0", 0)
        assert association.next_timer() is None
        association.handle_timer(1e9)
        assert association.state is state
    assert requestor_in(State.STA5, limits=limits).next_timer() is None


def test_an_unanswered_associate_request_is_aborted() -> None:
    association = requestor_in(State.STA5, limits=LIMITS)
    association.receive_data(b"\2\0\0\0", 20)
    expect_abort_at(association, 30, "no answer")


@pytest.mark.parametrize(("role", "state"), [(Role.ACCEPTOR, 7), (Role.ACCEPTOR, 10), (Role.REQUESTOR, 11)])
def test_an_unanswered_release_request_is_aborted(role: Role, state: int) -> None:
    bring = acceptor_in if role is Role.ACCEPTOR else requestor_in
    expect_abort_at(bring(State(state), limits=LIMITS), 30, "no answer")


def test_p_data_does_not_put_off_the_answer_to_a_release() -> None:
    association = acceptor_in(State.STA7, limits=LIMITS)
    association.receive_data(echo_bytes(), 29)
    expect_abort_at(association, 30, "no answer")


@pytest.mark.parametrize("state", [State.STA8, State.STA12])
def test_our_own_slowness_to_answer_a_release_is_not_the_peer_s(state: State) -> None:
    assert acceptor_in(state, limits=LIMITS).next_timer() is None


# --- idle -----------------------------------------------------------------------------------------------


def test_an_idle_association_is_aborted_counted_from_the_last_message() -> None:
    association = acceptor_in(State.STA6, limits=LIMITS)
    assert association.next_timer() == 300
    association.receive_data(echo_bytes(), 100)
    assert association.next_timer() is None  # The request is not answered yet.
    association.send_command(VERIFICATION_CONTEXT_ID, ECHO_RESPONSE, 120)
    sent(association)
    expect_abort_at(association, 420, "idle")


def test_nobody_is_idle_while_our_request_is_unanswered() -> None:
    association = requestor_in(State.STA6, limits=LIMITS)
    association.send_command(
        VERIFICATION_CONTEXT_ID, CEchoRQ(message_id=1, affected_sop_class_uid=wire.VERIFICATION), 10
    )
    sent(association)
    assert association.next_timer() is None
    association.receive_data(response_bytes(), 50)
    expect_abort_at(association, 350, "idle")


def response_bytes() -> bytes:
    other = acceptor_in(State.STA6)
    other.send_command(VERIFICATION_CONTEXT_ID, ECHO_RESPONSE, 0)
    return sent(other)


def test_a_dicos_association_has_an_idle_time_of_its_own() -> None:
    for seconds, expected in ((0.0, None), (7.0, 7.0)):
        association = Association(Role.ACCEPTOR, replace(LIMITS, dicos_idle_seconds=seconds), now=0)
        association.receive_data(request_bytes(wire.DICOS_V03_APPLICATION_CONTEXT), 0)
        association.accept(answer(request(), 16384), 0)
        assert association.next_timer() == expected


def test_the_glued_framing_makes_a_dicos_association_too() -> None:
    association = acceptor_in(State.STA6, limits=LIMITS)
    before = association.is_dicos
    go_on(association, 1, store_command() + b"ab", Control.COMMAND | Control.LAST)
    assert (before, association.is_dicos) == (False, True)
    response = CStoreRSP(message_id_being_responded_to=1, status=0)
    association.send_command(STORAGE_CONTEXT_ID, response, 2)
    assert association.next_timer() is None


# --- inside a message -----------------------------------------------------------------------------------


def test_silence_inside_a_message_is_aborted_and_any_byte_ends_it() -> None:
    association = acceptor_in(State.STA6, limits=replace(LIMITS, minimum_bytes_per_second=0))
    begin_store(association, 10)
    for now in (60, 115, 170):
        go_on(association, now, b"ab")
    expect_abort_at(association, 230, "silent")


def test_silence_inside_a_pdu_is_aborted() -> None:
    association = acceptor_in(State.STA6, limits=LIMITS)
    association.receive_data(b"\4", 10)
    expect_abort_at(association, 70, "silent")


def test_a_drip_is_aborted_once_it_has_lasted_and_is_too_slow_on_average() -> None:
    association = acceptor_in(State.STA6, limits=LIMITS)
    begin_store(association, 0)
    for now in range(1, 60):
        go_on(association, now, b"ab")
        assert association.next_timer() == 60
    expect_abort_at(association, 60, "slow")


def test_a_fast_message_may_take_as_long_as_it_likes() -> None:
    association = acceptor_in(State.STA6, limits=LIMITS)
    begin_store(association, 0)
    for now in range(0, 3600, 30):
        go_on(association, now, bytes(3200))
        association.handle_timer(now)
        timer = association.next_timer()
        assert timer is not None
        assert now < timer <= now + LIMITS.dimse_seconds
    assert association.state is State.STA6


def test_a_message_that_was_fast_falls_under_the_rate_when_its_average_does() -> None:
    association = acceptor_in(State.STA6, limits=LIMITS)
    begin_store(association, 0, bytes(4000))
    begun = len(store_command()) + 6 + 6 + 6 + 4000
    go_on(association, 0, bytes(3990))
    total = begun + 3990 + 12
    for now in range(10, 80, 10):
        association.receive_data(b"", now)
    expect_abort_at(association, total / LIMITS.minimum_bytes_per_second, "slow")


def test_the_end_of_a_message_ends_the_measurement() -> None:
    association = acceptor_in(State.STA6, limits=LIMITS)
    begin_store(association, 0)
    go_on(association, 50, b"ab", Control.LAST)
    assert association.next_timer() is None  # The response is ours to give.
    begin_store(association, 55)
    assert association.next_timer() == 115


def test_another_message_in_the_same_bytes_is_measured_anew() -> None:
    association = acceptor_in(State.STA6, limits=LIMITS)
    begin_store(association, 0)
    last = wire.p_data_tf(PDV(STORAGE_CONTEXT_ID, Control.LAST, b"ab"))
    association.receive_data(last + echo_bytes()[:20], 50)
    expect_abort_at(association, 110, "silent")


def test_a_message_left_incomplete_by_a_release_is_not_waited_for() -> None:
    association = acceptor_in(State.STA6, limits=LIMITS)
    begin_store(association, 0)
    association.receive_data(wire.release_rq(), 1)
    assert association.state is State.STA8
    assert association.next_timer() is None


# --- back-pressure --------------------------------------------------------------------------------------


def test_while_we_do_not_read_neither_silence_nor_rate_counts() -> None:
    association = acceptor_in(State.STA6, limits=LIMITS)
    begin_store(association, 10)
    association.pause_timers(30)
    association.pause_timers(40)
    assert association.next_timer() is None
    association.handle_timer(10_000)
    assert association.state is State.STA6
    association.resume_timers(1030)
    association.resume_timers(1040)
    expect_abort_at(association, 1070, "silent")


def test_bytes_that_arrive_during_a_pause_do_not_earn_extra_time() -> None:
    association = acceptor_in(State.STA6, limits=LIMITS)
    begin_store(association, 10)
    association.pause_timers(20)
    go_on(association, 25, b"ab")
    association.resume_timers(120)
    assert association.next_timer() == 110 + LIMITS.dimse_seconds


@pytest.mark.parametrize("state", [State.STA3, State.STA6])
@pytest.mark.parametrize("application_context", ["", "1.2.840.10008.3.1.1.1.3"])
def test_an_idle_time_of_the_owners_holds_instead_of_both(state: State, application_context: str) -> None:
    association = Association(Role.ACCEPTOR, replace(LIMITS, dicos_idle_seconds=50), now=0)
    context = application_context or wire.DICOM_APPLICATION_CONTEXT
    association.receive_data(request_bytes(application_context=context), 0)
    if state is State.STA3:
        association.set_idle_seconds(7)
    association.accept(answer(request(), 16384), 100)
    if state is State.STA6:
        association.set_idle_seconds(7)
    assert sent(association)
    expect_abort_at(association, 107, "idle")


def test_idleness_does_not_count_while_we_do_not_read() -> None:
    association = acceptor_in(State.STA6, limits=LIMITS)
    association.pause_timers(100)
    assert association.next_timer() is None
    association.resume_timers(150)
    expect_abort_at(association, 350, "idle")


def test_artim_counts_whether_we_read_or_not() -> None:
    association = Association(Role.ACCEPTOR, LIMITS, now=0)
    association.pause_timers(1)
    assert association.next_timer() == 10
