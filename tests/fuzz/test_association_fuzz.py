"""Any bytes give events or an A-ABORT, never another exception, and the same ones however they are cut.

Runs for about 20 seconds; SCP_FUZZ_SECONDS sets another time, SCP_FUZZ_SEED another start.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scp_server.protocol.association import Association, State
from scp_server.protocol.events import Aborted, TransportClosed
from scp_server.testing import wire
from scp_server.testing.association_driver import (
    Transcript,
    acceptor_in,
    answer_bytes,
    byte_by_byte,
    converse,
    cut_at,
    drain,
    echo_bytes,
    request_bytes,
    requestor_in,
    sent,
    store_command,
    whole,
)
from scp_server.testing.wire import PDV, Control

SECONDS = float(os.environ.get("SCP_FUZZ_SECONDS", "20"))
SEED = int(os.environ.get("SCP_FUZZ_SEED", "20240501"))

STORE = wire.p_data_tf(PDV(3, Control.COMMAND | Control.LAST, store_command())) + wire.p_data_tf(
    PDV(3, Control.DATASET, bytes(200)), PDV(3, Control.DATASET, b""), PDV(3, Control.LAST, b"abcdef")
)
GLUED = wire.p_data_tf(PDV(3, Control.COMMAND, store_command(0, dicos=True) + bytes(50)))
GLUED += wire.p_data_tf(PDV(3, Control.DATASET, bytes(90))) + wire.p_data_tf(PDV(3, Control.LAST, bytes(9)))
IN_PIECES = b"".join(
    wire.p_data_tf(PDV(3, Control.COMMAND, bytes([byte]))) for byte in store_command(2)
) + wire.p_data_tf(PDV(3, Control.COMMAND | Control.LAST, b""), PDV(3, Control.LAST, b"data"))
IDENTIFIED = wire.associate_rq(
    [
        wire.ProposedContext(i, f"1.2.840.{i}", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
        for i in range(1, 40, 2)
    ],
    application_context=wire.DICOS_V03_APPLICATION_CONTEXT,
    user_identity=wire.UserIdentity(2, b"name", b"passcode"),
)

Conversation = tuple[Callable[[], Association], list[bytes]]
CONVERSATIONS: list[Conversation] = [
    (lambda: acceptor_in(State.STA2), [request_bytes(), echo_bytes() + STORE, wire.release_rq()]),
    (lambda: acceptor_in(State.STA2), [request_bytes(), GLUED + STORE, GLUED, wire.abort()]),
    (lambda: acceptor_in(State.STA2), [IDENTIFIED, echo_bytes()]),
    (lambda: acceptor_in(State.STA6), [STORE + GLUED + IN_PIECES + echo_bytes(3)]),
    (lambda: acceptor_in(State.STA7), [echo_bytes() + wire.release_rq(), wire.release_rp()]),
    (lambda: acceptor_in(State.STA13), [request_bytes() + echo_bytes(), wire.abort()]),
    (lambda: requestor_in(State.STA5), [answer_bytes(), STORE, wire.release_rq()]),
    (lambda: requestor_in(State.STA5), [wire.associate_rj(1, 2, 2)]),
    (lambda: requestor_in(State.STA9), [wire.release_rp()]),
]
INTERESTING = [
    b"\0",
    b"\xff",
    b"\x01",
    b"\x80",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\0\0\2",
]


def mutate(rng: random.Random, data: bytes) -> bytes:
    """One to four changes of the kinds that break parsers."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        position = rng.randrange(len(changed) + 1)
        match rng.randrange(7):
            case 0:
                changed[position : position + 1] = bytes([rng.randrange(256)])
            case 1:
                value = rng.choice(INTERESTING)
                changed[position : position + len(value)] = value
            case 2:
                changed[position:position] = rng.randbytes(rng.randint(1, 8))
            case 3:
                del changed[position : position + rng.randint(1, 12)]
            case 4:
                del changed[position:]
            case 5:
                begin = rng.randrange(len(changed) + 1)
                changed[position:position] = changed[begin : begin + rng.randint(1, 60)]
            case _:
                if position < len(changed):
                    changed[position] ^= 1 << rng.randrange(8)
    return bytes(changed)


def check(
    begin: Callable[[], Association], turns: list[bytes], cut: Callable[[bytes], list[bytes]]
) -> Transcript:
    """Hold a conversation whole and cut, and check what must hold for any bytes."""
    association = begin()
    transcript = converse(association, turns)
    assert converse(begin(), turns, cut) == transcript
    aborted = [event for event in transcript.events if isinstance(event, Aborted)]
    assert len(aborted) <= 1
    if aborted and not aborted[0].by_peer:
        assert wire.abort(aborted[0].source, aborted[0].reason) in transcript.output
        assert transcript.events[-1] is aborted[0]
    assert transcript.closed is (transcript.state is State.STA1)
    # Whatever it was: time, or the transport's end, ends it.
    while (deadline := association.next_timer()) is not None:
        association.handle_timer(deadline)
    association.receive_eof(1e9)
    assert association.closed
    *_, last = drain(association)
    assert isinstance(last, TransportClosed)
    association.receive_data(request_bytes(), 1e9)
    assert drain(association) == []
    sent(association)
    return transcript


def test_mutated_conversations_end_in_events_or_an_abort() -> None:
    rng = random.Random(SEED)
    deadline = time.monotonic() + SECONDS
    outcomes: set[State] = set()
    for round_number in count(1):
        begin, turns = rng.choice(CONVERSATIONS)
        broken = [mutate(rng, turn) if rng.random() < 0.6 else turn for turn in turns]
        cut = byte_by_byte if round_number % 50 == 0 else cut_at(rng.randrange(4000) for _ in range(6))
        try:
            outcomes.add(check(begin, broken, cut).state)
        except Exception as error:
            error.add_note(f"seed {SEED}, round {round_number}: {[turn.hex() for turn in broken]}")
            raise
        if time.monotonic() > deadline:
            break
    # Mutations that never leave a conversation alive, or never end one, would prove little.
    assert {State.STA1, State.STA2, State.STA6, State.STA13} <= outcomes


@settings(max_examples=150, deadline=None)
@given(
    place=st.sampled_from(CONVERSATIONS),
    data=st.binary(max_size=200),
    pdu_type=st.integers(0, 9),
    positions=st.lists(st.integers(0, 250), max_size=5),
)
def test_random_bodies_in_well_formed_pdus(
    place: Conversation, data: bytes, pdu_type: int, positions: list[int]
) -> None:
    begin, turns = place
    check(begin, [*turns[:-1], wire.pdu(pdu_type, data) + turns[-1]], cut_at(positions))


@settings(max_examples=150, deadline=None)
@given(
    control=st.integers(0, 255),
    context_id=st.sampled_from([1, 3, 5]),
    fragments=st.lists(st.binary(max_size=60)),
)
def test_random_fragments_in_well_formed_pdvs(control: int, context_id: int, fragments: list[bytes]) -> None:
    turn = wire.p_data_tf(*(PDV(context_id, Control(control & 3), fragment) for fragment in fragments))
    check(lambda: acceptor_in(State.STA6), [turn + echo_bytes()], whole)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_in_any_state(seed: int) -> None:
    rng = random.Random(seed)
    for begin, _ in CONVERSATIONS:
        check(begin, [rng.randbytes(rng.randint(1, 300)), rng.randbytes(50)], byte_by_byte)
