"""Brings a sans-IO `Association` into any state by bytes and primitives, and holds whole conversations.

The peer's bytes come from `wire`, which knows nothing of `scp_server.protocol`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from scp_server.protocol.association import Association, Role, State
from scp_server.protocol.events import (
    AssociateRequested,
    CommandReceived,
    DatasetFragment,
    Event,
    ReleaseConfirmed,
    ReleaseRequested,
)
from scp_server.protocol.items import PresentationContextAC, PresentationContextRQ, UserInformation
from scp_server.protocol.limits import Limits
from scp_server.protocol.message import Request, response_to
from scp_server.protocol.negotiation import NegotiationPolicy, negotiate, rejection
from scp_server.protocol.pdu import AssociateAC, AssociateRQ
from scp_server.testing import wire
from scp_server.testing.wire import PDV, Control

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
VERIFICATION_CONTEXT_ID = 1
STORAGE_CONTEXT_ID = 3
SMALL_LIMITS = Limits(max_pdu_bytes=4096, max_command_bytes=512, max_empty_fragments=5)
POLICY = NegotiationPolicy(any_sop_class=True, maximum_length=SMALL_LIMITS.max_pdu_bytes)

_PROPOSED = {VERIFICATION_CONTEXT_ID: wire.VERIFICATION, STORAGE_CONTEXT_ID: CT_IMAGE_STORAGE}


def request_bytes(
    application_context: str = wire.DICOM_APPLICATION_CONTEXT, maximum_length: int = 16384
) -> bytes:
    """A-ASSOCIATE-RQ with the two contexts of this module."""
    contexts = [wire.ProposedContext(i, uid, [EXPLICIT_LITTLE_ENDIAN]) for i, uid in _PROPOSED.items()]
    return wire.associate_rq(contexts, application_context=application_context, maximum_length=maximum_length)


def answer_bytes(maximum_length: int = 16384) -> bytes:
    """A-ASSOCIATE-AC that accepts both contexts, and one that nobody proposed."""
    contexts = dict.fromkeys((*_PROPOSED, 99), (0, EXPLICIT_LITTLE_ENDIAN))
    return wire.associate_ac(contexts, maximum_length=maximum_length)


def echo_bytes(message_id: int = 1) -> bytes:
    """A whole C-ECHO-RQ."""
    command = wire.c_echo_rq(message_id)
    return wire.p_data_tf(PDV(VERIFICATION_CONTEXT_ID, Control.COMMAND | Control.LAST, command))


def store_command(message_id: int = 1, *, dicos: bool = False) -> bytes:
    """The command set of a C-STORE-RQ."""
    return wire.c_store_rq(message_id, CT_IMAGE_STORAGE, f"1.2.3.{message_id}", dicos=dicos)


def request(maximum_length: int = 16384) -> AssociateRQ:
    """The A-ASSOCIATE-RQ that our own requestor sends."""
    contexts = tuple(PresentationContextRQ(i, uid, (EXPLICIT_LITTLE_ENDIAN,)) for i, uid in _PROPOSED.items())
    name = wire.DICOM_APPLICATION_CONTEXT
    return AssociateRQ("CALLED", "CALLING", name, contexts, UserInformation(maximum_length, "1.2.3"))


def answer(request: AssociateRQ, maximum_length: int | None) -> AssociateAC:
    """An A-ASSOCIATE-AC that accepts every context."""
    return AssociateAC(
        request.called_ae_title,
        request.calling_ae_title,
        request.application_context_name,
        tuple(
            PresentationContextAC(context.context_id, 0, context.transfer_syntaxes[0])
            for context in request.presentation_contexts
        ),
        UserInformation(maximum_length, "1.2.3"),
    )


def drain(association: Association) -> list[Event]:
    """Every event there is now."""
    events = []
    while (event := association.next_event()) is not None:
        events.append(event)
    return events


def sent(association: Association) -> bytes:
    """Everything there is to send now, as one."""
    return b"".join(association.data_to_send())


def acceptor_in(state: State, *, limits: Limits = SMALL_LIMITS, now: float = 0.0) -> Association:
    """An acceptor that came to `state` by what a peer may send and a user may ask."""
    association = Association(Role.ACCEPTOR, limits, now=now)
    if state is State.STA2:
        return association
    association.receive_data(request_bytes(), now)
    (event,) = drain(association)
    assert isinstance(event, AssociateRequested)
    if state is not State.STA3:
        association.accept(answer(event.request, limits.max_pdu_bytes), now)
        _go_on(association, state, now)
    return _settled(association, state)


def requestor_in(state: State, *, limits: Limits = SMALL_LIMITS, now: float = 0.0) -> Association:
    """A requestor that came to `state` by what a peer may send and a user may ask."""
    association = Association(Role.REQUESTOR, limits, now=now)
    if state is not State.STA1:
        association.request(request(limits.max_pdu_bytes), now)
    if state not in (State.STA1, State.STA4):
        association.transport_connected(now)
        if state is not State.STA5:
            association.receive_data(answer_bytes(), now)
            _go_on(association, state, now)
    return _settled(association, state)


def _go_on(association: Association, state: State, now: float) -> None:
    """From Sta6 to `state`."""
    if state is State.STA8:
        association.receive_data(wire.release_rq(), now)
    elif state is State.STA13:
        sent(association)
        association.abort(now)
    elif state > State.STA6:
        association.release(now)
        if state > State.STA7:
            association.receive_data(wire.release_rq(), now)
        if state is State.STA11:
            association.release_response(now)
        elif state is State.STA12:
            association.receive_data(wire.release_rp(), now)


def _settled(association: Association, state: State) -> Association:
    """Events and output are taken, except the A-ABORT that led to Sta13."""
    drain(association)
    if state is not State.STA13:
        sent(association)
    assert association.state is state
    return association


def whole(data: bytes) -> list[bytes]:
    """No cut at all."""
    return [data]


def byte_by_byte(data: bytes) -> list[bytes]:
    """A cut between any two bytes."""
    return [data[i : i + 1] for i in range(len(data))]


def cut_at(positions: Iterable[int]) -> Callable[[bytes], list[bytes]]:
    """Cuts at `positions`, taken modulo the length of what is cut."""
    positions = list(positions)

    def cut(data: bytes) -> list[bytes]:
        points = sorted({0, len(data), *(position % (len(data) + 1) for position in positions)})
        return [data[a:b] for a, b in pairwise(points)]

    return cut


def normalised(events: Iterable[Event]) -> list[Event]:
    """The same events with neighbouring fragments of one data set joined, so that cuts don't show."""
    joined: list[Event] = []
    for event in events:
        before = joined[-1] if joined else None
        if isinstance(event, DatasetFragment):
            data = bytes(event.data)
            if isinstance(before, DatasetFragment) and not before.last:
                data = bytes(before.data) + data
                joined.pop()
            joined.append(DatasetFragment(event.context_id, memoryview(data), event.last))
        else:
            joined.append(event)
    return joined


@dataclass(slots=True)
class Transcript:
    """What came of a conversation."""

    events: list[Event] = field(default_factory=list)
    output: bytes = b""
    state: State = State.STA1
    closed: bool = False


def converse(
    association: Association, turns: Sequence[bytes], cut: Callable[[bytes], Iterable[bytes]] = whole
) -> Transcript:
    """Let the peer say `turns`, each cut into pieces; answer as a willing service after each turn."""
    transcript = Transcript()
    for turn in turns:
        events: list[Event] = []
        for piece in cut(turn):
            association.receive_data(piece, 0.0)
            events += drain(association)
        _respond(association, events)
        transcript.events += events
        transcript.output += sent(association)
    transcript.events = normalised([*transcript.events, *drain(association)])
    transcript.state, transcript.closed = association.state, association.closed
    return transcript


def _respond(association: Association, events: Iterable[Event]) -> None:
    waiting: CommandReceived | None = None
    for event in events:
        match event:
            case AssociateRequested() if association.state is State.STA3:
                reason = rejection(event.request, POLICY)
                if reason is not None:
                    association.reject(reason, 0.0)
                else:
                    association.accept(negotiate(event.request, POLICY).answer, 0.0)
            case CommandReceived():
                waiting = event
            case ReleaseRequested() if association.state in (State.STA8, State.STA9):
                association.release_response(0.0)
            case ReleaseConfirmed() if association.state is State.STA12:
                association.release_response(0.0)
        whole = (isinstance(event, CommandReceived) and not event.message.has_dataset) or (
            isinstance(event, DatasetFragment) and event.last
        )
        if whole and waiting is not None and association.state in (State.STA6, State.STA8):
            if isinstance(waiting.message, Request):
                association.send_command(waiting.context_id, response_to(waiting.message, 0), 0.0)
            waiting = None
