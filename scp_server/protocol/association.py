"""One association, acceptor's or requestor's, without I/O (PS3.8 7 and 9).

Bytes and times go in, events and bytes come out. The owner of the transport

- feeds what it reads to `receive_data`, and says with `receive_eof` that there will be no more;
- takes events from `next_event` until there is none, and answers some of them with a primitive;
- writes what `data_to_send` returns, in order; when `write_shutdown_wanted` turns true it shuts its write
  side down after that and goes on reading, so that no reset overtakes an A-ABORT;
- calls `handle_timer` once `next_timer` is reached; when `closed` turns true it writes what is left, closes
  the transport, and says so with `receive_eof`.

A primitive that the state does not allow raises LocalProtocolError and changes nothing. What is read at once
may hold more than the event at hand: an A-ASSOCIATE-RQ with an A-ABORT behind it, for one. So look at `state`
before answering an event. Whatever the peer sends ends in events or in an A-ABORT, never in an exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from scp_server.errors import LocalProtocolError
from scp_server.protocol import timers
from scp_server.protocol.events import (
    Aborted,
    Buffer,
    Event,
    TransportClosed,
)
from scp_server.protocol.items import PresentationContextAC
from scp_server.protocol.message import Message, Request
from scp_server.protocol.negotiation import is_dicos_application_context
from scp_server.protocol.pdu import (
    Abort,
    AssociateAC,
    AssociateRJ,
    AssociateRQ,
    RejectReason,
    ReleaseRP,
    ReleaseRQ,
    encode_pdu,
)
from scp_server.protocol.state_machine import Action, Role, State, StateEvent
from scp_server.protocol.upper_layer import UpperLayer, is_final_response

__all__ = ["Association", "Role", "State"]

_RELEASE_ASKED_BY_PEER = frozenset({State.STA8, State.STA9, State.STA10, State.STA11, State.STA12})
_ARTIM_STATES = frozenset({State.STA2, State.STA13})


class Association(UpperLayer):
    """One association. An acceptor's begins with a transport connection (Sta2), a requestor's in Sta1.

    Not safe for use by several threads. `now` is everywhere seconds of one monotonic clock.
    """

    # --- what the owner may look at -----------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Where Table 9-10 has us now, with everything taken into account that was received."""
        return self._machine.state

    @property
    def accepted_contexts(self) -> Mapping[int, PresentationContextAC]:
        """The presentation contexts both sides agreed on, by id; empty until there is an association."""
        return MappingProxyType(self._contexts)

    @property
    def peer_maximum_length(self) -> int:
        """The peer's maximum length for P-DATA-TF, without the 6-byte header; 0 is no limit (PS3.8 D.1)."""
        return self._outbox.peer_maximum_length

    @property
    def is_dicos(self) -> bool:
        """A DICOS application context name was used, or the glued framing has been seen."""
        return self._is_dicos

    @property
    def message_in_progress(self) -> bool:
        """A message has begun to arrive and is not whole yet."""
        return self._p_data.in_message

    @property
    def outstanding_requests(self) -> int:
        """Requests of both sides whose final response has not passed yet; a C-CANCEL-RQ has none."""
        return self._requests_received + self._requests_sent

    @property
    def write_shutdown_wanted(self) -> bool:
        """The last PDU we shall ever send is queued or sent (Sta13)."""
        return self._machine.state is State.STA13

    @property
    def closed(self) -> bool:
        """The transport is to be closed now, or has ended."""
        return self._closed

    # --- what comes in ------------------------------------------------------------------------------------

    def receive_data(self, data: Buffer, now: float, *, stop_after_command: bool = False) -> int:
        """Take bytes from the transport. `DatasetFragment` events are views of `data`: it must not change.

        Returns how many were taken. That is all of them, unless `stop_after_command` and P-DATA follows a
        command set: then the rest is to be given again, so that what a peer sends ahead is not unfolded
        into messages before anyone can perform them.
        Raises LocalProtocolError before the transport is connected; after the end, bytes are dropped.
        """
        if self._machine.state is State.STA1:
            return len(data)
        if self._machine.state is State.STA4:
            raise LocalProtocolError("there is no transport connection to receive from")
        self._now = now
        self._stop_after_command = stop_after_command
        self._p_data.paused = False
        taken = self._framing.feed(memoryview(data))
        p_data = self._p_data
        incomplete = self._framing.in_pdu or (p_data.in_message and self._takes_data)
        self._timers.received(taken, now, incomplete=incomplete, whole_messages=p_data.whole_messages)
        return taken

    def receive_eof(self, now: float) -> None:
        """The transport ended, or the peer will send no more: there is no association without both ways."""
        if self._transport_ended:
            return
        self._transport_ended = True
        self._now = now
        expected = self._ended_properly or self._machine.state in _RELEASE_ASKED_BY_PEER
        if self._machine.state is not State.STA1:
            self._machine.advance(StateEvent.EVT17)
        self._close()
        self._events.append(TransportClosed(expected))

    def handle_timer(self, now: float) -> None:
        """Act on every deadline that `now` has reached; too early a call does nothing."""
        self._now = now
        if now >= self._timers.state_deadline:
            if self._machine.state in _ARTIM_STATES:
                self._machine.advance(StateEvent.EVT18)
                self._close()
            else:
                self.abort(now, text=f"no answer within {self._limits.response_seconds:g} s")
        elif now >= self._receiving_deadline():
            self.abort(now, text="the peer fell silent or too slow inside a message or PDU")
        elif now >= self._idle_deadline():
            self.abort(now, text="idle for too long")

    # --- what goes out ------------------------------------------------------------------------------------

    def next_event(self) -> Event | None:
        """The next thing that happened, or None."""
        return self._events.popleft() if self._events else None

    def data_to_send(self) -> list[bytes | memoryview]:
        """Everything to be written now, in order; the caller owns it. Views are of what `send_dataset` got.

        Once this was called while `write_shutdown_wanted`, it returns nothing any more.
        """
        return self._outbox.take(is_final=self.write_shutdown_wanted)

    def next_timer(self) -> float | None:
        """The earliest deadline, absolute, or None."""
        deadline = min(self._timers.state_deadline, self._receiving_deadline(), self._idle_deadline())
        return None if deadline == timers.NEVER else deadline

    def pause_timers(self, now: float) -> None:
        """Our side stops reading: until `resume_timers` no silence, slowness or idleness counts."""
        self._timers.pause(now)

    def resume_timers(self, now: float) -> None:
        """Our side reads again."""
        self._timers.resume(now)

    def set_idle_seconds(self, seconds: float) -> None:
        """Take this idle time instead of both of the limits, for this peer; 0 is never."""
        self._timers.set_idle_seconds(seconds)

    # --- the service user's primitives (PS3.8 7) ----------------------------------------------------------

    def request(self, request: AssociateRQ, now: float) -> None:
        """Requestor, A-ASSOCIATE request: the owner is to connect, then to call `transport_connected`."""
        if self._role is not Role.REQUESTOR or self._closed:
            raise LocalProtocolError("only a fresh association of a requestor can be requested")
        self._machine.check(StateEvent.EVT1)
        self._request_pdu = encode_pdu(request)
        self._announced_length = request.user_information.maximum_length or 0
        self._proposed_context_ids = frozenset(
            context.context_id for context in request.presentation_contexts
        )
        self._is_dicos = is_dicos_application_context(request.application_context_name)
        self._now = now
        self._machine.advance(StateEvent.EVT1)

    def transport_connected(self, now: float) -> None:
        """Requestor: the transport connection is open."""
        self._machine.advance(StateEvent.EVT2)
        self._now = now
        self._outbox.add(self._request_pdu)
        self._timers.start_response(now)

    def accept(self, answer: AssociateAC, now: float) -> None:
        """Acceptor, A-ASSOCIATE response: what `answer` accepts and announces holds from now on."""
        self._machine.check(StateEvent.EVT7)
        data = encode_pdu(answer)
        self._machine.advance(StateEvent.EVT7)
        self._outbox.add(data)
        self._announced_length = answer.user_information.maximum_length or 0
        self._establish(answer.presentation_contexts, now)

    def reject(self, reason: RejectReason, now: float) -> None:
        """Acceptor, A-ASSOCIATE response: refused; the transport ends."""
        self._machine.advance(StateEvent.EVT8)
        self._outbox.add(encode_pdu(AssociateRJ(reason.result, reason.source, reason.reason)))
        self._end(now)

    def release(self, now: float) -> None:
        """A-RELEASE request: everything was sent; `ReleaseConfirmed` follows, or `Aborted`."""
        self._machine.check(StateEvent.EVT11)
        self._outbox.refuse_inside_dataset()
        self._machine.advance(StateEvent.EVT11)
        self._outbox.add(encode_pdu(ReleaseRQ()))
        self._timers.start_response(now)

    def release_response(self, now: float) -> None:
        """A-RELEASE response to `ReleaseRequested`.

        On a release collision (PS3.8 7.2.2.7) the requestor may answer at once, the acceptor only after
        its own `ReleaseConfirmed`.
        """
        self._machine.check(StateEvent.EVT14)
        self._outbox.refuse_inside_dataset()
        action = self._machine.advance(StateEvent.EVT14)
        self._outbox.add(encode_pdu(ReleaseRP()))
        if action is Action.AR_9:
            self._timers.start_response(now)
        else:
            self._end(now)

    def abort(self, now: float, *, source: int = 0, reason: int = 0, text: str = "") -> None:
        """A-ABORT request; `Aborted` with `text` follows. Not allowed before an A-ASSOCIATE-RQ, nor twice."""
        self._now = now
        action = self._machine.advance(StateEvent.EVT15)
        if action is Action.AA_2:
            self._close()
            self._ended_properly = True
        else:
            self._outbox.add(encode_pdu(Abort(source, reason)))
            self._end(now)
        self._events.append(Aborted(source, reason, by_peer=False, text=text))

    def send_command(self, context_id: int, message: Message, now: float, *, glued: bool = False) -> None:
        """Queue a command set; when `message.has_dataset`, `send_dataset` must follow (PS3.8 E.1).

        `glued` puts it into one PDV stream with that data set: for peers that speak as DICOS scanners do.
        """
        self._machine.check(StateEvent.EVT9)
        self._outbox.refuse_inside_dataset()
        if context_id not in self._contexts:
            raise LocalProtocolError(f"presentation context {context_id} was not accepted")
        self._outbox.add_command(context_id, message, glued=glued)
        self._machine.advance(StateEvent.EVT9)
        if isinstance(message, Request):
            self._requests_sent += 1
        elif is_final_response(message):
            self._requests_received = max(0, self._requests_received - 1)
        if not message.has_dataset:
            self._timers.message_ended(now)

    def send_dataset(self, context_id: int, data: Buffer, now: float, *, last: bool) -> None:
        """Queue the next piece of the data set, of any length. `data` must not change until it is written."""
        self._machine.check(StateEvent.EVT9)
        self._outbox.add_dataset(context_id, data, last=last)
        self._machine.advance(StateEvent.EVT9)
        if last:
            self._timers.message_ended(now)
