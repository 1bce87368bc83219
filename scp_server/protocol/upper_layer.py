"""What a peer's bytes and the passing of time do to an association (PS3.8 9.2).

The other half, what its owner does, is `association.Association`, which stands on this.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from scp_server.errors import ProtocolError
from scp_server.protocol import timers
from scp_server.protocol.admission import PDU_NAMES, RECEIVED, check_maximum_length, judge_header
from scp_server.protocol.events import (
    Aborted,
    AssociateAccepted,
    AssociateRejected,
    AssociateRequested,
    CommandReceived,
    DatasetFragment,
    Event,
    ReleaseConfirmed,
    ReleaseRequested,
)
from scp_server.protocol.framing import Body, PDUFraming
from scp_server.protocol.items import ContextResult, PresentationContextAC
from scp_server.protocol.limits import Limits
from scp_server.protocol.message import Message, Request, Response
from scp_server.protocol.negotiation import is_dicos_application_context
from scp_server.protocol.pdata import PDataParser
from scp_server.protocol.pdu import (
    PDU,
    Abort,
    AbortReason,
    AbortSource,
    AssociateAC,
    AssociateRJ,
    AssociateRQ,
    PDUType,
    decode_pdu,
    encode_pdu,
)
from scp_server.protocol.sending import Outbox
from scp_server.protocol.state_machine import Action, Role, State, StateEvent, StateMachine
from scp_server.protocol.status import StatusClass, status_class


class UpperLayer:
    """The state of one association, moved by PDUs; a handler of `framing.PDUFraming`."""

    def __init__(self, role: Role, limits: Limits, *, now: float) -> None:
        self._role = role
        self._limits = limits
        self._machine = StateMachine(role)
        self._events: deque[Event] = deque()
        self._outbox = Outbox()
        self._now = now
        self._timers = timers.Timers(limits, now)
        self._framing = PDUFraming(self)
        self._contexts: dict[int, PresentationContextAC] = {}
        self._p_data = PDataParser(limits, self._contexts, self._message_event)
        self._announced_length = 0
        self._proposed_context_ids: frozenset[int] = frozenset()
        self._requests_received = 0
        self._requests_sent = 0
        self._is_dicos = False
        self._closed = False
        self._ended_properly = False
        self._transport_ended = False
        self._request_pdu = b""
        self._stop_after_command = False
        if role is Role.ACCEPTOR:
            self._machine.advance(StateEvent.EVT5)
            self._timers.start_artim(now)

    # --- PDUs, as the framing finds them (framing.PDUHandler) ---------------------------------------------

    def handle_header(self, pdu_type: int, length: int) -> Body:
        """Judge a PDU by its header, before a byte of its body is taken."""
        try:
            body = judge_header(pdu_type, length, self._machine.state, self._announced_length, self._limits)
        except ProtocolError as error:
            self._receive(StateEvent.EVT19, error=error)
            return Body.LOST
        if body is Body.STREAM:
            if not self._takes_data:
                self._receive(StateEvent.EVT10)
                return Body.SKIP
            self._machine.advance(StateEvent.EVT10)
            self._p_data.begin_pdu(length)
        return body

    def handle_body(self, pdu_type: int, body: bytes | None) -> None:
        """A PDU other than P-DATA-TF is whole, or has been skipped."""
        if pdu_type == PDUType.P_DATA_TF:
            return
        pdu: PDU | None = None
        if body is not None and self._machine.state is not State.STA13:
            try:
                pdu = decode_pdu(pdu_type, body, self._limits)
                check_maximum_length(pdu)
            except ProtocolError as error:
                self._receive(StateEvent.EVT19, error=error)
                return
        self._receive(RECEIVED[pdu_type], pdu)

    def handle_stream(self, view: memoryview, offset: int, stop: int) -> int:
        """Bytes of a P-DATA-TF; they are dropped once the association has ended in the middle of it."""
        if self._takes_data:
            try:
                return self._p_data.feed(view, offset, stop)
            except ProtocolError as error:
                self._receive(StateEvent.EVT19, error=error)
        return stop

    @property
    def _takes_data(self) -> bool:
        """P-DATA-TF from the peer is welcome (DT-2, AR-6)."""
        state = self._machine.state
        return state is State.STA6 or state is State.STA7

    # --- the state machine --------------------------------------------------------------------------------

    def _receive(
        self, event: StateEvent, pdu: PDU | None = None, *, error: ProtocolError | None = None
    ) -> None:
        """Do what a PDU from the peer asks for; `error` says what is wrong with it (Evt19)."""
        state = self._machine.state
        action = self._machine.advance(event)
        match action:
            case Action.AA_6:
                pass
            case Action.AR_2 | Action.AR_8:
                self._timers.stop()
                if self._machine.state is State.STA10:
                    self._timers.start_response(self._now)
                self._events.append(ReleaseRequested(collision=action is Action.AR_8))
            case Action.AR_3 | Action.AR_10:
                self._timers.stop()
                self._events.append(ReleaseConfirmed())
                if action is Action.AR_3:
                    self._ended_properly = True
                    self._close()
            case Action.AA_1 | Action.AA_8 | Action.AA_7:
                self._abort_for_cause(action, state, event, error)
            case Action.AA_2 | Action.AA_3:
                self._ended_properly = True
                self._close()
                if action is Action.AA_3 and isinstance(pdu, Abort):
                    self._events.append(Aborted(pdu.source, pdu.reason, by_peer=True))
            case _:
                self._negotiated(pdu)

    def _negotiated(self, pdu: PDU | None) -> None:
        """AE-6, AE-3 and AE-4: the first PDU of the association arrived as it should."""
        if isinstance(pdu, AssociateRQ):
            self._timers.stop()
            self._is_dicos = is_dicos_application_context(pdu.application_context_name)
            self._outbox.peer_maximum_length = pdu.user_information.maximum_length or 0
            self._events.append(AssociateRequested(pdu))
        elif isinstance(pdu, AssociateAC):
            self._outbox.peer_maximum_length = pdu.user_information.maximum_length or 0
            answered = [c for c in pdu.presentation_contexts if c.context_id in self._proposed_context_ids]
            self._establish(answered, self._now)
            self._events.append(AssociateAccepted(pdu))
        elif isinstance(pdu, AssociateRJ):
            self._ended_properly = True
            self._close()
            self._events.append(AssociateRejected(pdu))

    def _abort_for_cause(
        self, action: Action, state: State, event: StateEvent, error: ProtocolError | None
    ) -> None:
        text = f"{PDU_NAMES.get(event, 'PDU')} in {state.name.title()}"
        source, reason = AbortSource.SERVICE_PROVIDER, AbortReason.UNEXPECTED_PDU
        if error is not None:
            text, reason = str(error), AbortReason(error.reason)
        if action is Action.AA_1:
            source, reason = AbortSource.SERVICE_USER, AbortReason.NOT_SPECIFIED
        pdu = encode_pdu(Abort(source, reason))
        if action is Action.AA_7:
            self._outbox.add_last(pdu)
            return
        self._outbox.add(pdu)
        self._end(self._now)
        self._events.append(Aborted(source, reason, by_peer=False, text=text))

    def _establish(self, answered: Iterable[PresentationContextAC], now: float) -> None:
        """There is an association (Sta6), on the contexts that were accepted."""
        accepted = {c.context_id: c for c in answered if c.result == ContextResult.ACCEPTANCE}
        self._contexts.update(accepted)
        self._timers.stop()
        self._timers.message_ended(now)

    def _end(self, now: float) -> None:
        """The association is over, the last PDU queued; the transport lives on for a while (Sta13)."""
        self._now = now
        self._ended_properly = True
        self._forget_messages()
        self._timers.start_artim(now)

    def _close(self) -> None:
        """The transport is to be closed, or has ended (Sta1)."""
        self._closed = True
        self._forget_messages()
        self._timers.stop()
        self._framing.lose()

    def _forget_messages(self) -> None:
        self._p_data = PDataParser(self._limits, self._contexts, self._message_event)
        self._outbox.forget_dataset()

    # --- messages and deadlines ---------------------------------------------------------------------------

    def _message_event(self, event: CommandReceived | DatasetFragment) -> None:
        self._events.append(event)
        if isinstance(event, DatasetFragment):
            if event.last:
                self._timers.message_ended(self._now)
            return
        message = event.message
        self._p_data.paused = self._stop_after_command
        if event.glued:
            self._is_dicos = True
        if isinstance(message, Request):
            self._requests_received += 1
        elif is_final_response(message):
            self._requests_sent = max(0, self._requests_sent - 1)
        if not message.has_dataset:
            self._timers.message_ended(self._now)

    def _receiving_deadline(self) -> float:
        if self._machine.state is State.STA3 or State.STA6 <= self._machine.state <= State.STA12:
            return self._timers.receiving_deadline()
        return timers.NEVER

    def _idle_deadline(self) -> float:
        busy = (
            self._requests_received
            or self._requests_sent
            or self._outbox.inside_dataset
            or self._p_data.in_message
        )
        if self._machine.state is not State.STA6 or busy:
            return timers.NEVER
        return self._timers.idle_deadline(is_dicos=self._is_dicos)


def is_final_response(message: Message) -> bool:
    """Whether a message settles a request: a response whose status is not pending."""
    return isinstance(message, Response) and status_class(message.status) is not StatusClass.PENDING
